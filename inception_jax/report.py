"""A run's report: one HTML page with its pictures inside, readable offline, made of the run's files alone."""

import base64
import io
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from inception_jax.errors import UserError
from inception_jax.writers import Row, format_seconds, read_metrics

SPLITS = ("train", "validation", "test")
# Two hues and a grey that keep apart on white, on black and for colour-blind eyes (Okabe and Ito's palette).
COLOURS = {"train": "#8a8f98", "validation": "#1f8fd0", "test": "#e0781e"}
GREY = "#80858e"  # axes and text of the pictures: as readable on white as on black
TITLES = {"loss": "Loss", "top1": "Top-1 accuracy", "top5": "Top-5 accuracy", "learning_rate": "Learning rate"}
LOG_RATIO = 50  # a quantity that spans more than this is drawn on a logarithmic scale


def write_report(run_folder: str | Path) -> Path:
    """Writes `report.html` into a run's folder from its config.json, metrics.csv and summary.json.

    A run that goes on has no summary.json yet: its report says so and shows what is there.

    Raises:
      UserError: the folder holds no run, or one of these files is damaged.
    """
    folder = Path(run_folder)
    config = _read_json(folder / "config.json")
    if config is None:
        raise UserError(f"{folder} holds no run: it has no config.json")
    summary = _read_json(folder / "summary.json")
    rows = read_metrics(folder / "metrics.csv")
    best = (summary or {}).get("best") or {}
    if best.get("metric") is None:  # nothing was watched: the last weights are the only ones
        best = {}
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("inception_jax"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    page = environment.get_template("report.html").render(
        name=(summary or {}).get("name") or folder.resolve().name,
        summary=summary,
        rows=rows,
        num_epochs=config.get("num_epochs"),
        notes=_notes(config),
        facts=_facts(summary, rows),
        best=best,
        results=_final_results(summary, best) if summary else _running_results(rows, config),
        pictures=_pictures(rows, best.get("epoch")),
        fields=sorted(_flatten(config).items(), key=lambda item: ("." in item[0], item[0])),
        versions=(summary or {}).get("versions") or {},
    )
    path = folder / "report.html"
    partial = folder / ".report.html.partial"
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _notes(config: Mapping[str, Any]) -> list[str]:
    """What a reader has to know to judge the numbers: every choice that was made on the test split."""
    evaluate, schedule = config.get("evaluate", {}), config.get("schedule", {})
    notes = []
    if str(evaluate.get("watch", "")).startswith("test_"):
        notes.append(
            f"Chosen on test data: the best weights were picked by {evaluate['watch']}, "
            "so their test results flatter the network."
        )
        if evaluate.get("early_stopping_patience"):
            notes.append("Stopped on test data: early stopping watched the same metric.")
        if evaluate.get("stop_at"):
            notes.append(f"Stopped on test data: the run was to end at {evaluate['watch']} {evaluate['stop_at']:g}.")
    if schedule.get("name") == "plateau" and str(schedule.get("metric", "")).startswith("test_"):
        notes.append(f"Chosen on test data: the learning rate was lowered by {schedule['metric']}.")
    return notes


def _facts(summary: Mapping[str, Any] | None, rows: list[Row]) -> list[tuple[str, str]]:
    """Time, throughput and size, of the summary or, before there is one, of the last row."""
    last = rows[-1] if rows else {}
    values = summary or {"epochs": last.get("epoch"), "steps": last.get("step"), **last}
    stopped = {"early": "early stopping", "completed": "all epochs", "target": "reaching the target"}
    formats = {
        "epochs": ("Epochs", lambda value: f"{value:g}"),
        "steps": ("Updates", lambda value: f"{value:,}"),
        "stopped": ("Ended by", lambda value: stopped.get(value, value)),
        "seconds": ("Time", format_seconds),
        "training_seconds": ("Training steps alone", format_seconds),
        "images_per_second": ("Images per second", lambda value: f"{value:,.0f}"),
        "parameters": ("Parameters", lambda value: f"{value:,}"),
        "device": ("Device", str),
    }
    return [(title, show(values[key])) for key, (title, show) in formats.items() if values.get(key) is not None]


def _final_results(summary: Mapping[str, Any], best: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The evaluations at the end: of the last weights and of the best."""
    groups = [(f"Last (epoch {summary['epochs']:g})", summary)]
    if best:
        groups.append((f"Best (epoch {best['epoch']:g})", best))
    return [
        {"weights": weights, "split": split, **metrics[split]}
        for weights, metrics in groups
        for split in SPLITS
        if metrics.get(split)
    ]


def _running_results(rows: list[Row], config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The evaluations during training: of the last row, and of the best by the watched metric."""
    watch = config.get("evaluate", {}).get("watch", "")
    watched = [row for row in rows if watch in row and not math.isnan(row[watch])]
    chosen = [("Last", rows[-1])] if rows else []
    if watched:
        pick = min if config["evaluate"].get("watch_mode") == "min" else max
        chosen.append(("Best", pick(watched, key=lambda row: row[watch])))
    return [
        {"weights": f"{weights} (epoch {row['epoch']:g})", "split": split}
        | {name: row.get(f"{split}_{name}") for name in ("top1", "top5", "loss")}
        for weights, row in chosen
        for split in SPLITS
        if f"{split}_loss" in row
    ]


def _pictures(rows: list[Row], best_epoch: float | None) -> list[dict[str, str]]:
    """Curves over the epochs as images within the page, each with a text for those who cannot see it."""
    pictures = []
    for name, title in TITLES.items():
        columns = {"": name} if name == "learning_rate" else {split: f"{split}_{name}" for split in SPLITS}
        curves = {
            split: [(row["epoch"], row[column]) for row in rows if math.isfinite(row.get(column, math.nan))]
            for split, column in columns.items()
        }
        curves = {split: points for split, points in curves.items() if points}
        if curves:
            pictures.append(
                {"title": title, "alt": _describe(title, name, curves), "source": _draw(name, curves, best_epoch)}
            )
    return pictures


def _describe(title: str, name: str, curves: Mapping[str, list[tuple[float, float]]]) -> str:
    def show(value):
        return f"{value:.2%}" if name in ("top1", "top5") else f"{value:.4g}"

    parts = []
    for split, points in curves.items():
        first, last = points[0][1], points[-1][1]
        label = f"{split}: " if split else ""
        parts.append(f"{label}from {show(first)} to {show(last)}" if len(points) > 1 else f"{label}{show(last)}")
    epochs = sorted({epoch for points in curves.values() for epoch, _ in points})
    span = f"epochs {epochs[0]:g} to {epochs[-1]:g}" if len(epochs) > 1 else f"epoch {epochs[0]:g}"
    return f"{title} over {span}; {'; '.join(parts)}"


def _draw(name: str, curves: Mapping[str, list[tuple[float, float]]], best_epoch: float | None) -> str:
    """A data URI of an SVG picture, the best weights' epoch marked; the same numbers give the same bytes."""
    style: dict[Any, Any] = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), GREY
    )
    style |= {"svg.hashsalt": "inception_jax", "font.size": 10, "lines.markersize": 5}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(4.6, 2.9), layout="constrained")  # inches: as wide as a phone's page at 80 px an inch
        axes = figure.add_subplot()
        values = [value for points in curves.values() for _, value in points]
        for split, points in curves.items():
            marked = [i for i, (epoch, _) in enumerate(points) if len(points) == 1 or (split and epoch == best_epoch)]
            axes.plot(
                *zip(*points, strict=True), color=COLOURS.get(split, GREY), label=split, marker="o", markevery=marked
            )
        if min(values) > 0 and max(values) / min(values) > LOG_RATIO:
            axes.set_yscale("log")
        elif name in ("top1", "top5"):
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        epochs = [epoch for points in curves.values() for epoch, _ in points]
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        axes.grid(color=GREY, alpha=0.25, lw=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if len(curves) > 1:
            axes.legend(handles=[Line2D([], [], color=COLOURS[split], label=split) for split in curves], frameon=False)
        picture = io.BytesIO()
        figure.savefig(picture, format="svg", transparent=True, metadata={"Date": None})
    return "data:image/svg+xml;base64," + base64.b64encode(picture.getvalue()).decode()
