"""The charts of a study's report: curves over the epochs, and the gradients of the layers."""

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from inception_jax.inspection import drawing
from inception_jax.studies.results import StudyResults
from inception_jax.studies.wording import SHARES, kind_of, label, show
from inception_jax.trained.pages import LineChart


@dataclasses.dataclass(frozen=True)
class Chart:
    """A chart of lines.

    Attributes:
      name: of its file.
      words: what it shows, for its caption and for those who cannot see it.
    """

    name: str
    title: str
    words: str
    lines: LineChart


@dataclasses.dataclass(frozen=True)
class Curve:
    """(epoch, mean over the seeds), and the lowest and highest of the seeds at each epoch."""

    points: drawing.Points
    low: Sequence[float]
    high: Sequence[float]


def charts(table: StudyResults) -> list[Chart]:
    """The study's charts, as far as there are results."""
    drawn = []
    for column in table.plan.study.curves:
        if curves := _curves(table, column):
            drawn.append(Chart(column, label(column), _described(curves, column), _curves_chart(table, curves, column)))
    norms = _gradient_norms(table)
    if len(layers := _layers(norms)) > 1:
        words = (
            "The gradient's norm in each layer, before and after training: the median over the seeds, and their range"
        )
        drawn.append(Chart("gradient_norms", label("gradient_norms"), words, _norms_chart(norms, layers)))
    return drawn


def _curves(table: StudyResults, column: str) -> dict[str, Curve]:
    """Curves by variation, over the epochs that all its seeds have; none of a single epoch."""
    curves = {}
    for name, results in table.results.items():
        if name in table.plan.study.pairs:
            continue
        seeds = [{row["epoch"]: row[column] for row in result.rows if column in row} for result in results]
        seeds = [points for points in seeds if points]
        epochs = sorted(set.intersection(*map(set, seeds))) if seeds else []
        if len(epochs) > 1:
            values = [[points[epoch] for points in seeds] for epoch in epochs]
            points = list(zip(epochs, map(statistics.fmean, values), strict=True))
            curves[name] = Curve(points, list(map(min, values)), list(map(max, values)))
    return curves


def _bounds(curves: Mapping[str, Curve]) -> list[float]:
    return [value for curve in curves.values() for bound in (curve.low, curve.high) for value in bound]


def _described(curves: Mapping[str, Curve], column: str) -> str:
    ends = (f"{name} ends at {show(column, curve.points[-1][1])}" for name, curve in curves.items())
    steep = kind_of(column) not in SHARES and drawing.is_steep(_bounds(curves))
    axis = ", on a logarithmic axis" if steep else ""
    return f"{label(column)} over the epochs{axis}: {'; '.join(ends)}"


def _curves_chart(table: StudyResults, curves: Mapping[str, Curve], column: str) -> LineChart:
    networks = {name: table.results[name][0].planned.load_config().model.name for name in curves}
    bands = {name: (curve.low, curve.high) for name, curve in curves.items() if curve.low != curve.high}
    return LineChart(
        {name: curve.points for name, curve in curves.items()},
        drawing.line_styles(networks),
        drawing.Y_AXES.get(kind_of(column), "auto"),
        {"bands": bands, "y_label": label(column)},
        partial(show, column),
    )


def _gradient_norms(table: StudyResults) -> dict[str, dict[str, list[float]]]:
    """Gradient norms by variation and time (start or end), then by layer, as lists over the complete seeds."""
    norms: dict[str, dict[str, list[float]]] = {}
    for name, results in table.results.items():
        for result in results:
            for when, by_layer in result.extras.get("gradient_norms", {}).items():
                layers = norms.setdefault(f"{name}, {when}", {})
                for layer, norm in by_layer.items():
                    layers.setdefault(layer, []).append(norm)
    return norms


def _layers(norms: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(layer for by_layer in norms.values() for layer in by_layer))


def _norms_chart(norms: Mapping[str, Mapping[str, Sequence[float]]], layers: Sequence[str]) -> LineChart:
    seeds = {name: [by_layer.get(layer, [math.nan]) for layer in layers] for name, by_layer in norms.items()}
    bands = {name: ([*map(min, values)], [*map(max, values)]) for name, values in seeds.items()}
    return LineChart(
        {name: list(enumerate(map(statistics.median, values))) for name, values in seeds.items()},
        drawing.line_styles(dict.fromkeys(norms, "")),
        "log",
        {"bands": bands, "y_label": "norm of the gradient", "x_names": layers},
    )
