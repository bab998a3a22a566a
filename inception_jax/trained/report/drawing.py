"""Figures that are readable on both white and black."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from inception_jax.inspection.figures import write_figure
from inception_jax.text import chart_label

# Hues that are distinct on white, on black and with color blindness (after Okabe and Ito's palette).
PALETTE = ("#1f8fd0", "#e0781e", "#12a37f", "#cc79a7", "#b59b00", "#6f7fe0", "#d1495b")
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)))  # for more lines than hues
GREY = "#80858e"  # of axes and text
LOG_RATIO = 50  # quantities with a larger ratio of maximum to minimum get a log scale
LONGEST_LABEL = 36  # maximum characters of a line's name in the legend
SIZE = (4.6, 2.9)  # inches: the width of a phone's page at 80 px per inch
STYLE: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), GREY),
    "svg.hashsalt": "inception_jax",
    "font.size": 10,
    "lines.markersize": 5,
}

Points = Sequence[tuple[float, float]]


def line_style(index: int) -> dict[str, Any]:
    """Color and dashes of the line with this index."""
    return {"color": PALETTE[index % len(PALETTE)], "linestyle": DASHES[index // len(PALETTE) % len(DASHES)]}


def draw_curves(
    curves: Mapping[str, Points],
    *,
    styles: Mapping[str, Mapping[str, Any]],
    marks: Mapping[str, float | None] | None = None,
    percent: bool = False,
    x_label: str = "epoch",
) -> Figure:
    """Lines through points (x, y), by name.

    Args:
      styles: Matplotlib's style of each line; see `line_style`.
      marks: x of each line's point that gets a dot.
      percent: whether y values are fractions.
    """
    below = len(curves) > 3 or max(map(len, curves)) > 12  # place the legend where it has room
    rows = len(curves) if below else 0
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(SIZE[0], SIZE[1] + 0.2 * rows), layout="constrained")
        axes = figure.add_subplot()
        for name, points in curves.items():
            marked = [i for i, (x, _) in enumerate(points) if len(points) == 1 or x == (marks or {}).get(name)]
            axes.plot(
                *zip(*points, strict=True),
                label=chart_label(name, LONGEST_LABEL),
                marker="o",
                markevery=marked,
                **styles[name],
            )
        values = [value for points in curves.values() for _, value in points]
        if min(values) > 0 and max(values) / min(values) > LOG_RATIO:
            axes.set_yscale("log")
        elif percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        places = [x for points in curves.values() for x, _ in points]
        axes.set_xlim(min(places) - 0.5, max(places) + 0.5)
        axes.set_xlabel(x_label)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.grid(color=GREY, alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1:
            handles = [Line2D([], [], **styles[name], label=chart_label(name, LONGEST_LABEL)) for name in curves]
            if below:
                figure.legend(handles=handles, frameon=False, loc="outside lower left")
            else:
                axes.legend(handles=handles, frameon=False)
    return figure


def draw_matrix(matrix: np.ndarray) -> Figure:
    """Draws a confusion matrix of many classes: each row's fractions as opacity, blue if correct, orange otherwise."""
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(matrix), dtype=bool)
    pixels = np.zeros((*matrix.shape, 4))
    pixels[..., :3] = np.where(right[..., None], to_rgb(PALETTE[0]), to_rgb(PALETTE[1]))
    pixels[..., 3] = np.sqrt(shares)  # so that rare confusions are visible
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(5.6, 5.6), layout="constrained")
        axes = figure.add_subplot()
        axes.imshow(pixels, interpolation="nearest")
        axes.set_xlabel("predicted class, by its number")
        axes.set_ylabel("true class, by its number")
    return figure


def render(figure: Figure, kind: str) -> bytes:
    """Renders the figure as "svg" or "png"; the same numbers give the same bytes."""
    content = io.BytesIO()
    with matplotlib.rc_context(STYLE):  # some elements are only created now
        if kind == "svg":
            write_figure(figure, content, kind, transparent=True, metadata={"Date": None})
        else:
            write_figure(figure, content, kind, dpi=160)
    return content.getvalue()
