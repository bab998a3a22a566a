"""Figures in one style and one palette, for files, reports and studies."""

import base64
import contextlib
import dataclasses
import fnmatch
import io
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from inception_jax.errors import UserError
from inception_jax.files import write_bytes
from inception_jax.text import chart_label


@dataclasses.dataclass(frozen=True)
class Shade:
    """A color on light and on dark pages, as #rrggbb."""

    light: str
    dark: str


# Text in each of them is readable on the pages' backgrounds (contrast of 4.5 and more, WCAG 2.1, 1.4.3). The hues stay
# distinct with color blindness (after Okabe and Ito's palette).
PALETTE: Mapping[str, Shade] = {
    "blue": Shade("#1371b0", "#4ba3e3"),
    "orange": Shade("#b45309", "#f0914a"),
    "green": Shade("#0a7b5e", "#2fc19b"),
    "pink": Shade("#a84e92", "#dd8fc6"),
    "yellow": Shade("#7d6a00", "#cdb53a"),
    "violet": Shade("#5b66cf", "#8c99f5"),
    "red": Shade("#bf3848", "#f2808b"),
    "gray": Shade("#686e77", "#9299a3"),
    "ink": Shade("#5c626b", "#a3a9b3"),  # axes, their text, and text of less importance
}
HUES = ("blue", "orange", "green", "pink", "yellow", "violet", "red")  # of lines, in this order
# Families of networks: the hue, and patterns of the registered names.
FAMILIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "Inception": ("blue", ("googlenet*", "*inception*")),
    "ResNet": ("orange", ("resnet*",)),
    "VGG": ("green", ("vgg*", "tiny_vgg*")),
    "AlexNet": ("pink", ("alexnet*",)),
    "simple CNN": ("yellow", ("simple_cnn*",)),
}
OTHER = ("other", "violet")  # family and hue of all other networks
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)))  # of lines with the same hue
WIDTHS = (1.6, 3.0)  # points: of lines with the same hue and dashes
Y_AXES = {"top1": "percent", "top5": "percent", "error": "percent", "images_per_second": "zero"}  # others: "auto"
LOG_RATIO = 50  # quantities with a larger ratio of maximum to minimum get a log scale
MOST_NAMES = 40  # on an axis
LONGEST_LABEL = 36  # maximum characters of a line's name in the legend
SIZE = (4.6, 2.9)  # inches: the width of a phone's page at 80 px per inch
DPI = 120  # of charts in files
FILES = (".png", ".pdf", ".svg")  # suffixes of charts in files
SAME_BYTES: Mapping[str, Any] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}  # metadata without the time

Points = Sequence[tuple[float, float]]
Bands = Mapping[str, tuple[Sequence[float], Sequence[float]]]  # by name: lowest and highest y at each point


def color(hue: str) -> str:
    """A color of the palette as it is on light pages."""
    return PALETTE[hue].light


def palette_css() -> str:
    """The palette as CSS variables such as --blue, which follow the light or dark scheme of the reader."""
    light, dark = (
        "".join(f"--{name}:{getattr(shade, scheme)};" for name, shade in PALETTE.items())
        for scheme in ("light", "dark")
    )
    return f":root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"


@contextlib.contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for all figures, as a context or a function's decorator.

    A user's own settings, such as a matplotlibrc in the current folder, have no effect. Some elements are created only
    when a figure is rendered, which needs the same settings.
    """
    inked = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    settings: dict[Any, Any] = {"svg.hashsalt": "inception_jax", "font.size": 10, "lines.markersize": 5}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings | dict.fromkeys(inked, color("ink")))
        yield


def family(network: str) -> str:
    """The family of a network by its registered name; networks from outside the package are "other"."""
    return _family(network)[0]


def family_color(network: str) -> str:
    """The color of a network's family."""
    return color(_family(network)[1])


def _family(network: str) -> tuple[str, str]:
    for name, (hue, patterns) in FAMILIES.items():
        if any(fnmatch.fnmatchcase(network, pattern) for pattern in patterns):
            return name, hue
    return OTHER


def line_styles(networks: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Matplotlib's style of each line by name.

    Lines of several families have their family's color; those of a single one have colors in their order.

    Args:
      networks: the registered name of each line's network, by the line's name.
    """
    families = {name: _family(network) for name, network in networks.items()}
    if len(set(families.values())) > 1:
        hues = {name: hue for name, (_, hue) in families.items()}
    else:
        hues = {name: HUES[index % len(HUES)] for index, name in enumerate(networks)}
    before = Counter[str]()
    styles = {}
    for name, hue in hues.items():
        rank = before[hue]
        before[hue] += 1
        styles[name] = {
            "color": color(hue),
            "linestyle": DASHES[rank % len(DASHES)],
            "linewidth": WIDTHS[rank // len(DASHES) % len(WIDTHS)],
        }
    return styles


def new_figure(width: float, height: float, *, dpi: float = DPI, grid: bool = True) -> tuple[Figure, Axes]:
    """An empty figure of that size in inches, without lines on the top and on the right."""
    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    axes = figure.add_subplot()
    if grid:
        add_grid(axes)
    return figure, axes


def add_grid(axes: Axes) -> None:
    """Adds a grid, and removes the lines on the top and on the right."""
    axes.grid(color=color("ink"), alpha=0.25, lw=0.6, zorder=0)
    axes.spines[["top", "right"]].set_visible(False)


def is_steep(values: Sequence[float]) -> bool:
    """Whether the largest value is so far above the smallest that most would look the same on a linear axis."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) > LOG_RATIO


def all_values(lines: Mapping[str, Points], bands: Bands | None = None) -> list[float]:
    """Every y of the lines and of the bands around them."""
    values = [value for points in lines.values() for _, value in points]
    return values + [value for band in (bands or {}).values() for bound in band for value in bound]


def other_axis(y_axis: str, values: Sequence[float]) -> str | None:
    """The y-axis of a second drawing of the same lines: "log" where the first one is linear, or "linear".

    None for shares and speeds, and where a value is not positive.
    """
    if y_axis == "log" or (y_axis == "auto" and is_steep(values)):
        return "linear"
    finite = [value for value in values if math.isfinite(value)]
    return "log" if y_axis == "auto" and finite and min(finite) > 0 else None


def x_places(figure: Figure, xs: Sequence[float]) -> list[float]:
    """Where x lies in a figure, as fractions of its width. The figure has been saved, which decides its layout."""
    axes = figure.axes[0]
    box, (low, high) = axes.get_position(), axes.get_xlim()
    return [round(box.x0 + box.width * (x - low) / (high - low), 4) for x in xs]


@style()
def draw_lines(
    lines: Mapping[str, Points],
    *,
    styles: Mapping[str, Mapping[str, Any]],
    bands: Bands | None = None,
    marks: Mapping[str, float | None] | None = None,
    y_axis: str = "auto",
    y_label: str = "",
    x_names: Sequence[str] | None = None,
) -> Figure:
    """Lines through points (x, y), by name, with a legend if there are several.

    Args:
      styles: Matplotlib's style of each line, see `line_styles`.
      bands: drawn around the lines.
      marks: x of each line's point that gets a dot.
      y_axis: "percent" for fractions, "zero" to begin at 0, "log", "linear", or "auto": log for steep values, see
        `is_steep`.
      x_names: names of x = 0, 1, ...; None: x is the epoch.
    """
    labels = {name: chart_label(name, LONGEST_LABEL) for name in lines}
    below = len(lines) > 3 or max(map(len, lines.values())) > 12  # place the legend where it has room
    columns = 2 if max(map(len, labels.values())) <= LONGEST_LABEL // 2 else 1
    legend_rows = -(-len(lines) // columns) if below and len(lines) > 1 else 0
    figure, axes = new_figure(SIZE[0], SIZE[1] + 0.2 * legend_rows + (0.6 if x_names else 0))
    for name, points in lines.items():
        marked = [i for i, (x, _) in enumerate(points) if len(points) == 1 or x == (marks or {}).get(name)]
        axes.plot(*zip(*points, strict=True), marker="o", markevery=marked, zorder=2, **styles[name])
        if bands and name in bands:
            epochs = [x for x, _ in points]
            axes.fill_between(epochs, *bands[name], color=styles[name]["color"], alpha=0.15, lw=0)
    _scale(axes, y_axis, all_values(lines, bands))
    axes.set_ylabel(y_label)
    if x_names:
        named = range(0, len(x_names), math.ceil(len(x_names) / MOST_NAMES))
        axes.set_xticks(named, [chart_label(x_names[place]) for place in named], rotation=90, fontsize=7)
    else:
        places = [x for points in lines.values() for x, _ in points]
        axes.set_xlim(min(places) - 0.5, max(places) + 0.5)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    if len(lines) > 1:
        handles = [Line2D([], [], label=labels[name], **styles[name]) for name in lines]
        if below:
            figure.legend(handles=handles, frameon=False, loc="outside lower left", ncols=columns)
        else:
            axes.legend(handles=handles, frameon=False)
    return figure


def _scale(axes: Axes, y_axis: str, values: Sequence[float]) -> None:
    if y_axis == "log" or (y_axis == "auto" and is_steep(values)):
        axes.set_yscale("log")
    elif y_axis == "percent":
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    elif y_axis == "zero":
        axes.set_ylim(0, 1.08 * max(values) or 1)


def draw_grid(
    values: np.ndarray,
    columns: Mapping[int, str],
    rows: Mapping[int, str],
    *,
    size: tuple[float, float],
    font_size: float,
    **image: Any,
) -> tuple[Figure, Axes, AxesImage]:
    """Values as a grid of colors (rows, columns).

    Args:
      columns: names by position.
      rows: names by position.
      size: of the figure, in inches.
      font_size: of the names, in points.
      image: options of Matplotlib's `imshow`.
    """
    figure, axes = new_figure(*size, grid=False)
    picture = axes.imshow(values, interpolation="nearest", **image)
    axes.set_xticks(list(columns), list(columns.values()), rotation=90, fontsize=font_size)
    axes.set_yticks(list(rows), list(rows.values()), fontsize=font_size)
    return figure, axes, picture


def write_figure(figure: Figure, file: Any, kind: str, **options: Any) -> None:
    """Saves a figure to an open file; `kind` is png, pdf or svg, and `options` are those of savefig."""
    with style(), warnings.catch_warnings():
        # Names may have characters that are missing in Matplotlib's font and are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(file, format=kind, metadata=SAME_BYTES.get(kind), **options)


def _rendered(figure: Figure, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    write_figure(figure, content, kind, **options)
    return content.getvalue()


def svg(figure: Figure) -> bytes:
    """The figure as an SVG for a page, without a background, whose colors follow the reader's light or dark scheme.

    The same figure gives the same bytes.
    """
    drawing = _rendered(figure, "svg", transparent=True).decode()
    for name, shade in PALETTE.items():
        drawing = drawing.replace(shade.light, f"var(--{name})")
    return re.sub("<svg[^>]*>", rf"\g<0><style>{palette_css()}</style>", drawing, count=1).encode()


def png(figure: Figure) -> bytes:
    """The figure as a PNG, on white."""
    return _rendered(figure, "png", dpi=160)


def data_uri(figure: Figure) -> str:
    """The figure as the source of a page's picture, see `svg`."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg(figure)).decode()}"


def check_file(path: Path, what: str = "chart", others: Sequence[str] = ()) -> None:
    """Raises UserError if the path's suffix is not one of a chart's file.

    Args:
      what: what is written, for the message.
      others: suffixes that are allowed in addition.
    """
    allowed = (*others, *FILES)
    if path.suffix.lower() not in allowed:
        raise UserError(f"{path} is not allowed for a {what}: it must end in {', '.join(allowed)}")


def save_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Saves a figure atomically in the format of the suffix; `options` are those of savefig.

    Raises:
      ValueError: Matplotlib does not support the format.
      WriteError: the file cannot be written.
    """
    # In memory first: Matplotlib raises errors of its own if the disk is full.
    write_bytes(path, _rendered(figure, path.suffix.lower()[1:], **options))
