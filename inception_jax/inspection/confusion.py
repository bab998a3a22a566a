"""Confusion matrices as charts or tables."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from inception_jax import files
from inception_jax.errors import UserError
from inception_jax.inspection.figures import save_figure
from inception_jax.text import chart_label, csv_cell

PICTURES = (".png", ".pdf", ".svg")
COUNTED = 20  # classes; with more, there is no room for counts in the cells
LABELLED = 250  # classes; with more, some have no label
LONGEST_NAME = 28  # characters; the rest is cut off
DPI = 120


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
    every = range(0, number, math.ceil(number / LABELLED))
    figure = Figure(figsize=(side + 2.5, side + 2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    # The square root shows a confusion of 1 % at a tenth of the full color.
    norm = PowerNorm(0.5, 0, 1)
    picture = axes.imshow(shares, cmap="Blues", norm=norm, interpolation="nearest")
    axes.set_xticks(every, [names[label] for label in every], rotation=90, fontsize=size)
    axes.set_yticks(every, [names[label] for label in every], fontsize=size)
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


def save_confusion(matrix: np.ndarray, class_names: Sequence[str], path: str | Path) -> None:
    """Saves a confusion matrix as a chart (.png, .pdf or .svg) or as counts (.csv), with a row for each true class.

    In .csv, names that a spreadsheet would take for formulas are prefixed with a quote, see `text.csv_cell`.

    Raises:
      UserError: the suffix is another one.
      WriteError: the file cannot be written.
    """
    path = files.expand(path)
    check_suffix(path)
    if path.suffix.lower() in PICTURES:
        save_figure(confusion_chart(matrix, class_names), path)
        return
    names = list(map(csv_cell, class_names))
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["true class", *names])
    writer.writerows([name, *row] for name, row in zip(names, matrix.tolist(), strict=True))
    files.write_text(path, lines.getvalue())


def check_suffix(path: Path) -> None:
    """Raises UserError if `save_confusion` does not support the suffix."""
    if path.suffix.lower() not in (".csv", *PICTURES):
        raise UserError(f"{path} is not allowed for a confusion matrix: it must end in .csv, {', '.join(PICTURES)}")
