"""What the pages of reports, studies, queues and the server share: one stylesheet and palette, nothing from outside."""

import asyncio
import re

import numpy as np
import pytest
from browser import WIDTHS, assert_reachable, browser, page
from fake_runs import fake_plan

from inception_jax.inspection import drawing
from inception_jax.studies.report import write_report as write_study
from inception_jax.studies.results import read_table
from inception_jax.studies.status import Status
from inception_jax.trained import pages
from inception_jax.trained.report import write_report


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The pages as they are sent and written."""
    folder = tmp_path_factory.mktemp("pages")
    plan = fake_plan(folder, wide=(0.9, 0.92, 0.91), narrow=(0.8, 0.81, 0.805))
    Status(folder, ["--form full"], [plan]).write()
    return {
        "queue": (folder / "queue.html").read_text(),
        "report": write_report(plan.runs[0].folder).read_text(),
        "study": write_study(read_table(plan)).read_text(),
        "serve": served(),
    }


def served():
    pytest.importorskip("starlette")
    from starlette.requests import Request

    from inception_jax.data.images import Format
    from inception_jax.trained import serving

    class Classifier:
        class_names = ("dark", "x" * 240)  # without a place to break it
        form = Format(4, 1)

        def compute(self, images):
            return np.zeros((len(images), 2), np.float32)

    service = serving.create_app(Classifier(), "a network", serving.Limits()).service
    scope = {"type": "http", "scheme": "http", "server": ("127.0.0.1", 80), "path": "/", "headers": []}
    try:
        return asyncio.run(service.page(Request(scope))).body.decode()
    finally:
        service.decoders.close()


def test_the_stylesheet_is_the_same_in_all_pages(texts):
    sheets = {name: re.findall("<style[^>]*>(.*?)</style>", text, re.DOTALL) for name, text in texts.items()}
    expected = pages.environment().get_template("style.css").render().strip()
    for name, found in sheets.items():
        assert [sheet.strip() for sheet in found] == [expected], name
    assert drawing.palette_css() in expected
    assert not re.search(r"https?:|url\(|@import", expected)


def test_pages_have_no_colors_of_their_own(texts):
    for name, text in texts.items():
        assert not re.search(r"style=\"[^\"]*#[0-9a-f]{3}", text), name


def test_every_class_of_the_pages_is_in_the_stylesheet(texts):
    sheet = pages.environment().get_template("style.css").render()
    no_style = {"plain", "none"}  # a table's kind, a verdict
    for name, text in texts.items():
        used = {word for found in re.findall(r'class="([^"]*)"', text) for word in found.split()}
        assert {word for word in used - no_style if not re.search(rf"\.{word}\b", sheet)} == set(), name


@pytest.mark.parametrize("width", WIDTHS)
def test_they_fit(texts, tmp_path, width):
    with browser() as started:
        for name, text in texts.items():
            (tmp_path / name).with_suffix(".html").write_text(text)
            with page(started, (tmp_path / name).with_suffix(".html").as_uri(), width) as shown:
                shown.evaluate("document.querySelectorAll('details').forEach(each => { each.open = true; })")
                wide, window = shown.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
                assert wide <= window, name
                assert_reachable(shown)
