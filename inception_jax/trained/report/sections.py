"""The sections of a report."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from inception_jax.inspection import drawing
from inception_jax.inspection.confusion import confusion_overview
from inception_jax.runs.records import Record, default_fields, show
from inception_jax.text import printable
from inception_jax.trained.pages import LineChart
from inception_jax.trained.report import tables
from inception_jax.trained.report.page import Block, Cell, Facts, Figure, PageTable, Pictures, Section, Text
from inception_jax.trained.report.tables import MEASURES, SPLITS, percent

if TYPE_CHECKING:
    from inception_jax.trained.report.findings import Example, Findings

SPLIT_HUES = {"train": "gray", "validation": "blue", "test": "orange"}
SPLIT_STYLES = {split: {"color": drawing.color(hue)} for split, hue in SPLIT_HUES.items()}
QUANTITIES = {
    "loss": "Loss",
    "top1": "Top-1 accuracy",
    "top5": "Top-5 accuracy",
    "learning_rate": "Learning rate",
    "images_per_second": "Images per second",
}
READABLE = 25  # classes: with more, the confusion matrix is drawn, and the most frequent confusions are listed
CONFUSIONS = 15  # number of confusions listed


def results(record: Record) -> Section:
    """Results of the last and the best weights on every split."""
    table, best = tables.results_table(record), record.best
    blocks: list[Block] = [table] if table.rows else []
    if best:
        found = [f"{best['value']:.4f}"] if "value" in best else []
        found += [f"step {best['step']:,}"] if "step" in best else []
        blocks.append(Text(f"The best weights are those with the best {best['metric']} ({', '.join(found) or '-'})."))
    return Section("Results", blocks)


def curves(record: Record) -> Section:
    """Every quantity over the epochs, with all its splits in one figure."""
    epoch = record.best.get("epoch")
    pictures = []
    own = dict.fromkeys(tables.own_measures(record))
    for quantity, title in (QUANTITIES | {name: name for name in own}).items():
        split = quantity in MEASURES or quantity in own
        columns = {name: f"{name}_{quantity}" for name in SPLITS} if split else {"": quantity}
        lines = {name: record.points(column) for name, column in columns.items()}
        styles = SPLIT_STYLES if split else {"": SPLIT_STYLES["train"]}
        if picture := curve_picture(title, quantity, lines, styles, dict.fromkeys(SPLITS, epoch)):
            pictures.append(picture)
    return _curves(pictures, "A dot marks the epoch of the best weights." if epoch is not None else "")


def curves_of_runs(runs: Sequence[Record]) -> Section:
    """Every quantity of every split over the epochs, with all runs in one figure."""
    models = {record.name: record.config.get("model", {}) for record in runs}
    styles = drawing.line_styles({name: str(model.get("name", "")) for name, model in models.items()})
    marks = {record.name: record.best.get("epoch") for record in runs}
    pictures = []
    own = dict.fromkeys(name for record in runs for name in tables.own_measures(record))
    for quantity, title in (QUANTITIES | {name: name for name in own}).items():
        for split in SPLITS if quantity in MEASURES or quantity in own else ("",):
            column, name = (f"{split}_{quantity}", f"{title}, {split}") if split else (quantity, title)
            lines = {record.name: record.points(column) for record in runs}
            if picture := curve_picture(name, quantity, lines, styles, marks if split else {}):
                pictures.append(picture)
    marked = any(epoch is not None for epoch in marks.values())
    return _curves(pictures, "A dot marks the epoch of a run's best weights." if marked else "")


def _curves(pictures: list[Figure], remark: str) -> Section:
    return Section("Curves", [Pictures(pictures), *([Text(remark)] if remark else [])] if pictures else [])


def curve_picture(
    title: str,
    quantity: str,
    lines: Mapping[str, drawing.Points],
    styles: Mapping[str, Mapping],
    marks: Mapping[str, float | None] | None = None,
) -> Figure | None:
    """Draws and describes the lines that have points; None if there are none. See `drawing.draw_lines`."""
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    y_axis = drawing.Y_AXES.get(quantity, "auto")
    shown = percent if y_axis == "percent" else "{:.4g}".format

    def show(value: float) -> str:
        return f"{value:.2%}" if y_axis == "percent" else f"{value:.4g}"

    parts = []
    for name, points in lines.items():
        first, last = points[0][1], points[-1][1]
        label = f"{name}: " if name else ""
        parts.append(f"{label}from {show(first)} to {show(last)}" if len(points) > 1 else f"{label}{show(last)}")
    epochs = sorted({epoch for points in lines.values() for epoch, _ in points})
    span = f"epochs {epochs[0]:g} to {epochs[-1]:g}" if len(epochs) > 1 else f"epoch {epochs[0]:g}"
    alt = f"{title} over {span}; {'; '.join(parts)}"
    return Figure(title, alt, LineChart(lines, styles, y_axis, {"marks": marks}, shown))


def facts(record: Record) -> Section:
    """Time, throughput and size."""
    found = list(tables.facts(record).items())
    return Section("Time and size", [Facts(found)] if found else [])


def versions(record: Record) -> Section:
    """Versions of the packages that computed the run."""
    found = ((record.summary or {}).get("versions") or {}).items()
    rows = sorted((package, show(version)) for package, version in found)
    shown = f"{len(rows)} packages"
    return Section(
        "Versions", [PageTable("Versions", ["Package", "Version"], rows, 2, "values", shown)] if rows else []
    )


def config(record: Record) -> Section:
    """The fields of the config that differ from the defaults, then the others."""
    defaults = default_fields()
    own = {field: value for field, value in record.fields.items() if field not in defaults or value != defaults[field]}
    rows = [[field, show(value), show(defaults.get(field))] for field, value in own.items()]
    others = [[field, show(value)] for field, value in record.fields.items() if field not in own]
    summary = f"{len(others)} fields at their defaults"
    blocks: list[Block] = []
    if rows:
        blocks.append(
            PageTable("Fields that differ from the defaults", ["Field", "Value", "Default"], rows, 3, "values")
        )
    if others:
        blocks.append(PageTable("Fields at their defaults", ["Field", "Value"], others, 2, "values", summary))
    return Section("Config", blocks)


def examined(findings: "Findings") -> list[Section]:
    """Findings on a network: its per-class metrics, confusions, mistakes and Grad-CAM on a split."""
    means = findings.metrics
    summary = (
        f"The {findings.checkpoint} weights (step {findings.step:,}) on the {means['count']:,} examples of the "
        f"{findings.split} split: top-1 {percent(means['top1'])}, "
        f"calibration error {percent(findings.calibration_error)}."
    )
    mistakes = [Pictures([_mistake(example) for example in findings.mistakes], 8)] if findings.mistakes else []
    heat: list[Block] = [Text(f"None: {findings.no_sample}.")] if findings.no_sample else []
    if findings.sample:
        remark = "Right: evidence for the predicted class, from blue (low) to red (high)."
        heat = [Pictures([_heated(example) for example in findings.sample], 15), Text(remark)]
    return [
        Section("Classes", [Text(summary), class_table(findings)]),
        confusions(findings),
        Section("Most confident mistakes", mistakes),
        Section("Grad-CAM", heat),
    ]


def class_table(findings: "Findings") -> PageTable:
    """Precision and recall of each class; if there are many, those with the lowest recall first."""
    classes = findings.classes
    if len(classes) > READABLE:
        classes = sorted(classes, key=lambda one: math.inf if math.isnan(one.recall) else one.recall)
    rows = [[one.name, _bar(one.recall), _bar(one.precision), f"{one.count:,}"] for one in classes]
    return PageTable("Accuracy of each class", ["Class", "Recall (accuracy)", "Precision", "Examples"], rows)


def classes_of_runs(findings: Mapping[str, "Findings"]) -> Section:
    """Each class's accuracy in several runs, by run name; if there are many classes, the hardest first."""
    recalls = {run: {one.name: one.recall for one in found.classes} for run, found in findings.items()}
    names = list(dict.fromkeys(name for own in recalls.values() for name in own))
    if len(names) > READABLE:
        names.sort(key=lambda name: min(own.get(name, math.inf) for own in recalls.values()))
    rows = [[name, *(_bar(own.get(name, math.nan)) for own in recalls.values())] for name in names]
    header = ["Class", *(f"{run}, {found.split}" for run, found in findings.items())]
    weights = "; ".join(f"{run}, step {found.step:,}" for run, found in findings.items())
    remark = f"Recall: the share of a class's examples that are predicted correctly. Weights: {weights}."
    return Section("Classes", [PageTable("Accuracy of each class by run", header, rows), Text(remark)])


def details_of_runs(findings: Mapping[str, "Findings"]) -> list[Section]:
    """Confusions, the most confident mistakes and Grad-CAM of each run, by run name.

    The more runs, the fewer pictures of each, which keeps the page small.
    """
    found = []
    for run, own in findings.items():
        shares = [shown[: math.ceil(len(shown) / len(findings))] for shown in (own.mistakes, own.sample)]
        _, *details = examined(dataclasses.replace(own, mistakes=shares[0], sample=shares[1]))
        found += [Section(f"{section.title}: {run}", section.blocks) for section in details]
    return found


def _bar(share: float) -> Cell:
    return Cell(percent(share), "bar", 0.0 if math.isnan(share) else share)


def confusions(findings: "Findings") -> Section:
    """The confusion matrix, as a table if readable, else as a figure, and the most frequent confusions."""
    names = [one.name for one in findings.classes]
    matrix = findings.confusion
    wrong = np.where(np.eye(len(matrix), dtype=bool), 0, matrix)
    counts = matrix.sum(axis=1)
    shares = matrix / np.maximum(counts, 1)[:, None]
    if len(names) <= READABLE:
        strongest = max((wrong / np.maximum(counts, 1)[:, None]).max(), 1e-9)  # so that rare confusions are visible
        rows: list[list[str | Cell]] = [
            [
                name,
                *(
                    "" if not matrix[i, j]
                    else Cell(f"{matrix[i, j]:,}", "right", float(shares[i, j])) if i == j
                    else Cell(f"{matrix[i, j]:,}", "wrong", float(shares[i, j] / strongest))
                    for j in range(len(names))
                ),
            ]
            for i, name in enumerate(names)
        ]  # fmt: skip
        shown: Block = PageTable("Confusion matrix", ["True \\ predicted", *names], rows, kind="matrix")
    else:
        alt = f"Confusion matrix of {len(names)} classes; the most frequent confusions are in the table below"
        shown = Pictures([Figure("Confusion matrix", alt, confusion_overview(matrix))])
    order = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS]
    pairs = [(i, j) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]
    listed = [[names[i], names[j], f"{wrong[i, j]:,}", percent(float(shares[i, j]))] for i, j in pairs]
    header = ["Class", "Predicted as", "Examples", "Share of class"]
    blocks = [shown, PageTable("The most frequent confusions", header, listed, 2)] if listed else [shown]
    return Section("Confusions", blocks)


def _mistake(example: "Example") -> Figure:
    alt = f"Picture of class {example.label}, predicted as {example.predicted}"
    return Figure(_caption(example), alt, example.image)


def _heated(example: "Example") -> Figure:
    """The picture beside its Grad-CAM overlay."""
    from inception_jax.inspection.pictures import overlay

    assert example.heat is not None
    plain = overlay(example.image, np.zeros((1, 1))).array  # enlarged like the other
    alt = f"Picture of class {example.label}, predicted as {example.predicted}, and its Grad-CAM beside it"
    gap = np.full((len(plain), 4, 3), 128, np.uint8)
    return Figure(_caption(example), alt, np.concatenate([plain, gap, example.heat], axis=1))


def _caption(example: "Example") -> str:
    return (
        f"true: {printable(example.label)}\npredicted: {printable(example.predicted)}, {percent(example.probability)}"
    )
