"""Figures of one style: the palette on light and dark pages, colors by family, axes, the stylesheet of the pages."""

import re
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb

from inception_jax.errors import UserError
from inception_jax.inspection import Summary, bubble_chart, drawing
from inception_jax.inspection.compare import Accuracy
from inception_jax.models import list_models
from inception_jax.trained import pages

STYLES = drawing.line_styles({"first": "googlenet", "second": "googlenet"})


def sheet():
    return pages.environment().get_template("style.css").render()


def luminance(color):
    """WCAG 2.1, relative luminance."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(color)]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_color_is_readable_on_the_pages(scheme):
    variables = re.findall(r"--(page|card|text): (#\w{6})", sheet())
    assert len(variables) == 6
    surfaces = dict(variables[:3] if scheme == "light" else variables[3:])
    colors = {name: getattr(shade, scheme) for name, shade in drawing.PALETTE.items()} | {"text": surfaces.pop("text")}
    for name, color in colors.items():
        for surface in surfaces.values():
            low, high = sorted((luminance(color), luminance(surface)))
            assert (high + 0.05) / (low + 0.05) >= 4.5, name


def test_every_network_of_the_package_has_a_family():
    families = {name: drawing.family(name) for name in list_models()}
    assert set(families.values()) == set(drawing.FAMILIES)
    assert families["googlenet_naive"] == families["inception_resnet_v2"] == "Inception"
    assert families["tiny_vgg_a"] == families["vgg16_bn"] == "VGG"
    assert drawing.family("my_networks:Net") == "other"
    hues = [hue for hue, _ in drawing.FAMILIES.values()]
    assert len({*hues, drawing.OTHER[1]}) == len(hues) + 1


def test_a_family_has_the_same_color_in_all_charts():
    networks = {"a": "vgg11", "b": "googlenet", "c": "resnet18", "d": "inception_v3", "e": "my_networks:Net"}
    styles = drawing.line_styles(networks)
    assert {name: style["color"] for name, style in styles.items()} == {
        name: drawing.family_color(network) for name, network in networks.items()
    }
    reversed_styles = drawing.line_styles(dict(reversed(networks.items())))
    assert {name: style["color"] for name, style in reversed_styles.items()} == {
        name: style["color"] for name, style in styles.items()
    }
    known = Accuracy(0.7, "ImageNet", "nobody")
    axes = bubble_chart([Summary(name, (8, 8, 3), 9, 9, 9, None, known) for name in networks.values()]).axes[0]
    bubbles = [to_hex(bubble.get_facecolor()[0]) for bubble in axes.collections if len(bubble.get_offsets())]
    assert sorted(bubbles) == sorted(drawing.family_color(network) for network in networks.values())


@pytest.mark.parametrize("networks", [["googlenet"] * 20, ["googlenet"] * 6 + ["resnet18"] * 6])
def test_no_two_lines_look_the_same(networks):
    styles = drawing.line_styles({str(index): network for index, network in enumerate(networks)})
    assert len(set(map(str, styles.values()))) == len(networks)


def test_drawings_of_pages_follow_the_readers_scheme():
    figure = drawing.draw_lines({"first": [(1, 0.5), (2, 0.25)], "second": [(1, 0.25)]}, styles=STYLES)
    content = drawing.svg(figure).decode()
    assert drawing.palette_css() in content
    assert drawing.palette_css() in sheet()
    drawn = content.replace(drawing.palette_css(), "")
    assert not re.search(r"#(?!ffffff|000000)[0-9a-f]{6}\b", drawn)
    for name in ("blue", "orange", "ink"):
        assert f"var(--{name})" in drawn
    ElementTree.fromstring(content)
    assert content.encode() == drawing.svg(figure)


def test_a_users_own_settings_of_matplotlib_change_no_figure(tmp_path, monkeypatch):
    lines = {"first": [(1, 0.5), (2, 0.25)]}
    before = drawing.svg(drawing.draw_lines(lines, styles=STYLES))
    (tmp_path / "matplotlibrc").write_text(
        "axes.facecolor: black\nfont.size: 30\nlines.linewidth: 9\nsvg.fonttype: none\n"
    )
    monkeypatch.chdir(tmp_path)
    with matplotlib.rc_context(fname=matplotlib.matplotlib_fname()):
        assert matplotlib.rcParams["font.size"] == 30
        assert drawing.svg(drawing.draw_lines(lines, styles=STYLES)) == before
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize(
    ("values", "y_axis", "scale"),
    [
        ((2.0, 1.0), "auto", "linear"),
        ((2.0, 1e-3), "auto", "log"),
        ((2.0, 0.0), "auto", "linear"),
        ((2.0, 1e-3, float("nan")), "auto", "log"),
        ((0.9, 1e-3), "percent", "linear"),
        ((2.0, 1.0), "log", "log"),
        ((900.0, 2.0), "zero", "linear"),
        ((0.0, 0.0), "zero", "linear"),
    ],
)
def test_axes(values, y_axis, scale):
    axes = drawing.draw_lines({"first": list(enumerate(values))}, styles=STYLES, y_axis=y_axis).axes[0]
    assert axes.get_yscale() == scale
    assert y_axis != "zero" or (axes.get_ylim()[0] == 0 and axes.get_ylim()[1] > max(values))
    if y_axis == "percent":
        assert axes.yaxis.get_major_formatter()(0.5, 0) == "50 %"


def test_of_many_names_on_an_axis_some_are_shown():
    names = [f"layer{index}" for index in range(100)]
    axes = drawing.draw_lines({"first": [(x, 1.0 + x) for x in range(100)]}, styles=STYLES, x_names=names).axes[0]
    shown = [tick.get_text() for tick in axes.get_xticklabels()]
    assert shown == names[::3]


def test_files_of_charts_are_known_by_their_suffix(tmp_path):
    for name in ("a.png", "a.PDF", "a.svg"):
        drawing.check_file(tmp_path / name)
    with pytest.raises(UserError, match=r"chart: it must end in \.png, \.pdf, \.svg$"):
        drawing.check_file(tmp_path / "a.csv")
