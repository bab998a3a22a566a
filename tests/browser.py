"""Pages in a headless browser: what goes wrong in them, and how they look."""

import contextlib
import shutil

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTHS = (400, 1400)  # of a phone and of a desk, in pixels


@contextlib.contextmanager
def browser():
    """A headless Chromium; the test is skipped where there is none."""
    program = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=FLAGS)
        try:
            yield started
        finally:
            started.close()


@contextlib.contextmanager
def page(started, address, width):
    """The page at an address, in a window of that width, dark in the narrow one.

    Its errors and refused requests fail the test at the end.
    """
    found = []
    scheme = "dark" if width == min(WIDTHS) else "light"
    shown = started.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    shown.on("console", lambda message: found.append(message.text) if message.type in ("error", "warning") else None)
    shown.on("pageerror", lambda error: found.append(str(error)))
    shown.on("requestfailed", lambda request: found.append(f"{request.url}: {request.failure}"))
    try:
        shown.goto(address)
        yield shown
    finally:
        shown.close()
    assert not found


def assert_reachable(shown):
    """Whatever scrolls in its own box can be scrolled by keyboard, and every chart has its slider."""
    scrolling = """[...document.querySelectorAll("main *, body > *")].filter(element =>
        (element.scrollWidth > element.clientWidth + 1 || element.scrollHeight > element.clientHeight + 1)
        && ["auto", "scroll"].includes(getComputedStyle(element).overflowX) && element.tabIndex < 0
    ).map(element => element.outerHTML.slice(0, 99))"""
    assert shown.evaluate(scrolling) == []
    values = "[...document.querySelectorAll('.chart')].map(chart => chart.querySelector('input').ariaValueText)"
    assert all(shown.evaluate(values))


def assert_fits(shown):
    """Every picture has loaded, and nothing has to be scrolled for sideways."""
    broken = "[...document.images].filter(image => !image.complete || !image.naturalWidth).map(image => image.alt)"
    assert shown.evaluate(broken) == []
    wide, window = shown.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window
