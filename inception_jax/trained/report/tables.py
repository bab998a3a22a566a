"""Tables and other elements of reports, from the records of runs."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from inception_jax.runs.records import Record, differing_fields, ended, show
from inception_jax.text import format_seconds
from inception_jax.trained.report.page import Cell, Headline, PageTable

SPLITS = ("train", "validation", "test")
MEASURES = {"top1": "Top-1", "top5": "Top-5", "loss": "Loss"}
CONFIDENCE = 0.95


def percent(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2%}".replace("%", " %")


def measured(name: str, value: float | None) -> str:
    """Formats a result by the name of its metric."""
    if name in ("top1", "top5"):
        return percent(value)
    return "-" if value is None else f"{value:.4f}"


def _weights(which: str, epoch: float | None) -> str:
    return which if epoch is None else f"{which} (epoch {epoch:g})"


def own_measures(record: Record) -> list[str]:
    """The names of the run's metrics from outside the package: whatever else its evaluated splits have."""
    columns = dict.fromkeys(name for row in record.rows for name in row) if record.config.get("metrics") else {}
    split_of = {column: column.partition("_") for column in columns}
    names = (name for split, _, name in split_of.values() if split in ("validation", "test") and name not in MEASURES)
    return list(dict.fromkeys(names))


def config_notes(config: Mapping[str, Any]) -> list[str]:
    """Caveats for judging the numbers: every choice that was made on the test split."""
    evaluate, schedule = config.get("evaluate", {}), config.get("schedule", {})
    notes = []
    if str(evaluate.get("watch", "")).startswith("test_"):
        notes.append(
            f"Selected on test data: the best weights were chosen by {evaluate['watch']}, "
            "so their test results are optimistic."
        )
        if evaluate.get("early_stopping_patience"):
            notes.append("Stopped on test data: early stopping watched the same metric.")
        if evaluate.get("stop_at"):
            notes.append(f"Stopped on test data: the target was {evaluate['watch']} {show(evaluate['stop_at'])}.")
    if schedule.get("name") == "plateau" and str(schedule.get("metric", "")).startswith("test_"):
        notes.append(f"Selected on test data: the learning rate was reduced by {schedule['metric']}.")
    return notes


def facts(record: Record) -> dict[str, str]:
    """Time, throughput and size by title, from the summary or, if there is none yet, from the last row."""
    last = record.rows[-1] if record.rows else {}
    values = record.summary or {"epochs": last.get("epoch"), "steps": last.get("step"), **last}
    stopped = {"early": "early stopping", "completed": "all epochs", "target": "reaching the target"}
    stopped["callback"] = f"the callback {values.get('stopped_by', '')}"
    formats = {
        "epochs": ("Epochs", lambda value: f"{value:g}"),
        "steps": ("Updates", lambda value: f"{value:,}"),
        "stopped": ("Ended by", lambda value: stopped.get(value, value)),
        "seconds": ("Time", format_seconds),
        "training_seconds": ("Training steps only", format_seconds),
        "evaluation_seconds": ("Evaluation only", format_seconds),
        "images_per_second": ("Images per second", lambda value: f"{value:,.0f}"),
        "parameters": ("Parameters", lambda value: f"{value:,}"),
        "device": ("Device", str),
    }
    return {title: form(values[key]) for key, (title, form) in formats.items() if values.get(key) is not None}


def results(record: Record) -> dict[str, dict[str, Mapping[str, float | None]]]:
    """Evaluations by weights ("Last (epoch 3)", then "Best ...") and split: those at the end or, for an unfinished
    run, during training."""
    summary, best, rows = record.summary, record.best, record.rows
    if summary:
        groups = {_weights("Last", summary.get("epochs")): summary}
        if best:
            groups[_weights("Best", best.get("epoch"))] = best
        return {
            weights: {split: metrics[split] for split in SPLITS if metrics.get(split)}
            for weights, metrics in groups.items()
        }
    evaluate = record.config.get("evaluate", {})
    chosen = [("Last", rows[-1])] if rows else []
    if watched := record.points(str(evaluate.get("watch", ""))):
        pick = min if evaluate.get("watch_mode") == "min" else max
        epoch, _ = pick(watched, key=lambda point: point[1])
        chosen.append(("Best", next(row for row in rows if row["epoch"] == epoch)))
    return {
        _weights(weights, row["epoch"]): {
            split: {name: row.get(f"{split}_{name}") for name in (*MEASURES, *own_measures(record))}
            for split in SPLITS
            if f"{split}_loss" in row
        }
        for weights, row in chosen
    }


def interval(share: float, count: float) -> tuple[float, float]:
    """95 % confidence interval of a share of `count` examples (Wilson's score interval, Brown et al. 2001, eq. 4)."""
    z = statistics.NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z**2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def headline(record: Record) -> Headline | None:
    """The accuracy to quote: of the weights that validation data chose, or else of the last, on test if possible.

    None while the run has not finished.
    """
    summary, best = record.summary or {}, record.best
    chosen = bool(best) and not best["metric"].startswith("test_")
    weights = best if chosen else summary
    split = next((split for split in ("test", "validation") if weights.get(split)), None)
    metrics = weights[split] if split else {}
    top1, count = metrics.get("top1", math.nan), metrics.get("count", 0)
    if not (0 <= top1 <= 1 and count >= 1):
        return None
    low, high = interval(top1, count)
    epoch = weights.get("epoch" if chosen else "epochs")
    which = "" if epoch is None else f" of epoch {epoch:g}"
    words = (
        f"top-1 accuracy on {split} data: {count:,.0f} images, 95 % interval {100 * low:.1f} to {100 * high:.1f} %, "
        f"{'best' if chosen else 'last'} weights{which}" + (f", selected by {best['metric']}" if chosen else "")
    )
    return Headline(percent(top1), words + (" on the same data" if chosen and split == "validation" else ""))


def origin(record: Record) -> str:
    """What the run trained on what, when it ended, and the commit of the package."""
    network, data = (record.config.get(section, {}).get("name") for section in ("model", "data"))
    when, commit = ended(record.folder), (record.summary or {}).get("versions", {}).get("commit")
    parts = [f"{network} on {data}", when.strftime("%Y-%m-%d") if when else "", f"commit {commit}" if commit else ""]
    return ", ".join(filter(None, parts))


def results_table(record: Record) -> PageTable:
    """One run's results: one row per split."""
    rows: list[Sequence[str | Cell]] = []
    measures = MEASURES | {name: name for name in own_measures(record)}
    counted = ["count"] if record.summary else []
    for weights, splits in results(record).items():
        rows += [[weights]] if splits else []
        for split, metrics in splits.items():
            count = ["-" if (number := metrics.get("count")) is None else f"{number:,.0f}" for _ in counted]
            rows.append([split, *(measured(name, metrics.get(name)) for name in measures), *count])
    return PageTable("Results", ["Split", *measures.values(), *(["Images"] if counted else [])], rows)


def results_of_runs(records: Sequence[Record]) -> PageTable:
    """Last and best results of several runs on all splits, the best of each column in bold.

    None on test is in bold, so that nobody chooses a network by test data, and none of a metric from outside the
    package, of which it is not known whether more is better.
    """
    found = [(record.name, weights, splits) for record in records for weights, splits in results(record).items()]
    own = dict.fromkeys(name for record in records for name in own_measures(record))
    titles = {name: title.lower() for name, title in MEASURES.items()} | {name: name for name in own}
    columns = [
        (split, name)
        for split in SPLITS
        for name in titles
        if any(splits.get(split, {}).get(name) is not None for _, _, splits in found)
    ]
    header = ["Run", "Weights", *(f"{split} {titles[name]}" for split, name in columns)]
    rows: list[list[str | Cell]] = [[run, weights] for run, weights, _ in found]
    for split, name in columns:
        shown = [measured(name, splits.get(split, {}).get(name)) for _, _, splits in found]
        values = [splits.get(split, {}).get(name) for _, _, splits in found]
        comparable = [value for value in values if value is not None and not math.isnan(value)]
        comparable = comparable if split != "test" and name not in own else []
        best = (min if name == "loss" else max)(comparable, default=None)
        for row, value, text in zip(rows, values, shown, strict=True):
            row.append(Cell(text) if value is not None and value == best else text)
    return PageTable("Results of the runs", header, rows, left=2)


def facts_of_runs(records: Sequence[Record]) -> PageTable:
    """Time, throughput and size of several runs: one row per run."""
    found = [facts(record) for record in records]
    titles = list(dict.fromkeys(title for own in found for title in own))
    rows = [
        [record.name, *(own.get(title, "-") for title in titles)] for record, own in zip(records, found, strict=True)
    ]
    return PageTable("Time and size", ["Run", *titles], rows)


def config_differences(records: Sequence[Record]) -> PageTable:
    """The config fields that differ between runs; values that differ from the first run's are in bold."""
    rows: list[list[str | Cell]] = []
    for field, (first, *others) in differing_fields(records).items():
        cells = [Cell(show(value)) if value != first else show(value) for value in others]
        rows.append([field, show(first), *cells])
    return PageTable("Fields that differ", ["Field", *(record.name for record in records)], rows, len(records) + 1)
