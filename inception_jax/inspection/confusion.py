"""Confusion matrices as charts or tables."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from inception_jax import files
from inception_jax.inspection import drawing
from inception_jax.text import chart_label, csv_cell

COUNTED = 20  # classes; with more, there is no room for counts in the cells
LABELLED = 250  # classes; with more, some have no label
LONGEST_NAME = 28  # characters; the rest is cut off


@drawing.style()
def confusion_chart(matrix: np.ndarray, class_names: Sequence[str]) -> Figure:
    """Draws true classes from top to bottom and predicted ones from left to right; darker is a larger share of the row.

    The figure grows with the number of classes, so that labels stay readable. Up to 20 classes, cells show counts.

    Args:
      matrix: how many examples of class i (row) were predicted as class j (column), `(classes, classes)`.
    """
    number = len(class_names)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    few = number <= COUNTED
    cell, size = (0.5, 9) if few else (0.125, 6)  # inches, points
    side = max(3.0, cell * min(number, LABELLED))
    names = [chart_label(name, LONGEST_NAME) for name in class_names]
    shown = {label: names[label] for label in range(0, number, math.ceil(number / LABELLED))}
    # The square root shows a confusion of 1 % at a tenth of the full color.
    norm = PowerNorm(0.5, 0, 1)
    figure, axes, picture = drawing.draw_grid(
        shares, shown, shown, size=(side + 2.5, side + 2), font_size=size, cmap="Blues", norm=norm
    )
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    if few:
        for row, column in np.argwhere(matrix):
            color = "white" if shares[row, column] > 0.4 else "black"
            text = f"{matrix[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", fontsize=size - 1, color=color)
    bar = figure.colorbar(picture, shrink=min(1.0, 6 / side), aspect=30, ticks=(0, 0.01, 0.1, 0.25, 0.5, 1))
    bar.ax.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    bar.set_label("share of the true class")
    return figure


@drawing.style()
def confusion_overview(matrix: np.ndarray) -> Figure:
    """Draws a confusion matrix of many classes in the width of a page, without names.

    The opacity is the share of the row: blue if correct, orange otherwise.

    Args:
      matrix: see `confusion_chart`.
    """
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    right = np.eye(len(matrix), dtype=bool)[..., None]
    pixels = np.zeros((*matrix.shape, 4))
    pixels[..., :3] = np.where(right, to_rgb(drawing.color("blue")), to_rgb(drawing.color("orange")))
    pixels[..., 3] = np.sqrt(shares)  # so that rare confusions are visible
    figure, axes = drawing.new_figure(5.6, 5.6, grid=False)
    axes.imshow(pixels, interpolation="nearest")
    axes.set_xlabel("predicted class, by its number")
    axes.set_ylabel("true class, by its number")
    return figure


def save_confusion(matrix: np.ndarray, class_names: Sequence[str], path: str | Path) -> None:
    """Saves a confusion matrix as a chart (.png, .pdf or .svg) or as counts (.csv), with a row for each true class.

    In .csv, names that a spreadsheet would take for formulas are prefixed with a quote, see `text.csv_cell`.

    Raises:
      UserError: the suffix is another one.
      WriteError: the file cannot be written.
    """
    path = files.expand(path)
    check_suffix(path)
    if path.suffix.lower() in drawing.FILES:
        drawing.save_figure(confusion_chart(matrix, class_names), path)
        return
    names = list(map(csv_cell, class_names))
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["true class", *names])
    writer.writerows([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
    files.write_text(path, lines.getvalue())


def check_suffix(path: Path) -> None:
    """Raises UserError if `save_confusion` does not support the suffix."""
    drawing.check_file(path, "confusion matrix", (".csv",))
