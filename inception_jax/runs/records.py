"""Records of runs, read without their networks: one, several, or all below a folder."""

import dataclasses
import datetime
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from inception_jax import files
from inception_jax.config import default_config
from inception_jax.errors import UserError
from inception_jax.files import read_json
from inception_jax.runs.metrics_log import Row, read_metrics
from inception_jax.text import format_table, html_table, printable

MADE_BY_US = {"model", "data", "checkpoint"}  # sections that distinguish a run's config.json from other programs'

LARGEST = 1e300  # a summary's numbers are smaller, so that they fit a float
OTHERS = ""  # in a table of types: that of all other fields
METRICS: Mapping[str, Any] = {OTHERS: float}
SPLITS: Mapping[str, Any] = dict.fromkeys(("train", "validation", "test"), METRICS)
# The types of a summary's values; other fields than these and those of a split may have any type.
SUMMARY: Mapping[str, Any] = {
    **dict.fromkeys(("steps", "epochs", "images_per_second", "parameters"), float),
    **dict.fromkeys(("seconds", "training_seconds", "evaluation_seconds"), float),
    **dict.fromkeys(("name", "stopped", "device", "command"), str),
    **SPLITS,
    "best": {**dict.fromkeys(("step", "epoch", "value"), float), **SPLITS},
    "versions": {},
}

ROWS_SHOWN = 20  # of a list of runs, as text

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, repr=False)
class Record:
    """A run's config.json, metrics.csv and summary.json.

    Attributes:
      name: the name to display.
      folder: the run's folder.
      summary: None until the run has finished. Values of the wrong type are left out, as if unknown.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    rows: Sequence[Row]
    summary: Mapping[str, Any] | None

    def __repr__(self) -> str:
        facts = (f"{name} {value}" if name else value for name, value in self._facts().items())
        return printable(f"Record({', '.join(facts)})")

    def _facts(self) -> dict[str, str]:
        """What a list of runs shows of it, as text by column; "" is the run itself."""
        last = self.rows[-1] if self.rows else {}
        found = {
            "": self.name,
            "network": str(self.config["model"].get("name")),
            "data": str(self.config["data"].get("name")),
            "status": self.status,
            "epochs": f"{last.get('epoch', 0):g}/{self.config.get('num_epochs')}",
        }
        for split in ("validation", "test"):
            top1 = (self.summary or {}).get(split, {}).get("top1", last.get(f"{split}_top1", math.nan))
            if math.isfinite(top1):
                found[f"{split} top-1"] = f"{100 * top1:.2f} %"
        return found

    @property
    def best(self) -> Mapping[str, Any]:
        """The summary's entry on the best weights; empty if no metric was watched: then only the last ones exist."""
        best = (self.summary or {}).get("best") or {}
        return best if isinstance(best.get("metric"), str) else {}

    @property
    def fields(self) -> dict[str, Any]:
        """Every field of the config by its path, sections last."""
        flat = flatten(self.config)
        return dict(sorted(flat.items(), key=lambda item: ("." in item[0], item[0])))

    @property
    def status(self) -> str:
        """How the run ended: "completed", "early" (early stopping), "target" or "callback"; else "unfinished" or "not
        begun".
        """
        if self.summary:
            return str(self.summary.get("stopped", "completed"))
        return "unfinished" if self.rows else "not begun"

    def points(self, column: str) -> list[tuple[float, float]]:
        """(epoch, value) of a column of metrics.csv where it is finite."""
        rows = [row for row in self.rows if math.isfinite(row.get(column, math.nan))]
        return [(row["epoch"], row[column]) for row in rows]


class RecordList(list[Record]):
    """Records, shown as a table."""

    def _table(self) -> tuple[list[str], list[list[str]]]:
        facts = [record._facts() for record in self]
        columns = list(dict.fromkeys(name for each in facts for name in each))
        return [name or "run" for name in columns], [[each.get(name, "-") for name in columns] for each in facts]

    def __repr__(self) -> str:
        header, rows = self._table()
        more = f"\n... and {len(rows) - ROWS_SHOWN} more" if len(rows) > ROWS_SHOWN else ""
        return (format_table(header, rows[:ROWS_SHOWN], left=len(header)) if rows else "no runs") + more

    def _repr_html_(self) -> str:
        return html_table(*self._table())


def read_record(run_folder: str | Path, name: str | None = None) -> Record:
    """Reads a run's files; an unfinished run has no summary.json yet.

    Args:
      name: None: the summary's, else the folder's.

    Raises:
      UserError: the folder does not contain a run, or one of these files is damaged.
    """
    folder = files.expand(run_folder, "the run's folder")
    config, summary = _read_json(folder / "config.json"), read_summary(folder)
    if config is None:
        raise UserError(f"{folder} is not a run's folder: it has no config.json")
    for section, default in default_config().items():
        if isinstance(default, ConfigDict) and not isinstance(config.get(section, {}), dict):
            raise UserError(f"{folder / 'config.json'} is damaged: {section} is not a section with fields")
    rows = read_metrics(folder / "metrics.csv")
    if not all(math.isfinite(row.get("epoch", math.nan)) for row in rows):
        raise UserError(f"{folder / 'metrics.csv'} is damaged: not every row has an epoch")
    name = name or (summary or {}).get("name")
    return Record(name or folder.resolve().name, folder, config, rows, summary)


def _of_type(values: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, Any]:
    """The values without those that do not match `types`: a type, or the types of nested fields, or None for any."""

    def fits(value: Any, expected: Any) -> bool:
        if expected is float:
            return type(value) in (int, float) and abs(value) < LARGEST  # false for NaN, too
        return isinstance(value, dict if isinstance(expected, dict) else expected)

    expected = {name: types.get(name, types.get(OTHERS)) for name in values}
    return {
        name: _of_type(value, expected[name]) if isinstance(expected[name], dict) else value
        for name, value in values.items()
        if expected[name] is None or fits(value, expected[name])
    }


def read_records(run_folders: Sequence[str | Path]) -> list[Record]:
    """Reads several runs, named by their folders or, if two names are equal, by paths from the common parent.

    A run with a damaged file is left out with a warning.

    Raises:
      UserError: a folder does not contain a run, or is given twice; or all are damaged.
    """
    folders = [files.expand(folder, "the run's folder") for folder in run_folders]
    resolved = [folder.resolve() for folder in folders]
    for place, folder in enumerate(resolved):
        if folder in resolved[:place]:
            raise UserError(f"{folders[place]} is given twice")
    names = [folder.name for folder in resolved]
    if len(set(names)) < len(names):
        above = os.path.commonpath(resolved)
        names = [os.path.relpath(folder, above) for folder in resolved]
    records = []
    for folder, name in zip(folders, names, strict=True):
        try:
            records.append(read_record(folder, name))
        except UserError as error:
            if len(folders) == 1 or not (folder / "config.json").exists():
                raise
            logger.warning("%s is left out: %s", folder, error)
    if not records:
        raise UserError("none of the runs can be read")
    return records


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    if not path.is_file():  # reading a pipe would block forever
        raise UserError(f"{path} is damaged: it is not a file")
    content = read_json(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: it has no fields")
    return content


def read_summary(run_folder: Path) -> dict[str, Any] | None:
    """Reads a run's summary.json, without values of the wrong type; None if the run has not finished.

    Raises:
      UserError: the file is damaged.
    """
    summary = _read_json(run_folder / "summary.json")
    return None if summary is None else _of_type(summary, SUMMARY)


def ended(run_folder: Path) -> datetime.datetime | None:
    """When the run ended, in UTC: when its summary.json was written; None if it has none."""
    try:
        seconds = (run_folder / "summary.json").stat().st_mtime
    except FileNotFoundError:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by their path, such as "data.name"."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def show(value: Any) -> str:
    """A config value as it is written on the command line."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def default_fields() -> dict[str, Any]:
    """The default of every config field by its path, as in config.json."""
    return flatten(json.loads(default_config().to_json()))


def differing_fields(records: Sequence[Record]) -> dict[str, list[Any]]:
    """The config fields that differ, with each run's value; top level first.

    A field missing from an older run had the current default.
    """
    defaults = default_fields()
    configs = [defaults | record.fields for record in records]
    fields = sorted({field for config in configs for field in config}, key=lambda field: ("." in field, field))
    values = {field: [config.get(field) for config in configs] for field in fields}
    return {field: found for field, found in values.items() if any(value != found[0] for value in found)}


def list_runs(folder: str | Path) -> RecordList:
    """All runs below a folder, at any depth, named by their relative paths and sorted by them.

    Damaged runs are left out with a warning; links are not followed.

    Raises:
      UserError: the folder does not exist.
    """
    folder = files.expand(folder, "the folder of runs")
    if not folder.is_dir():
        raise UserError(f"{folder} is not a directory")
    found = []
    for place, folders, names in os.walk(folder):
        folders.sort()
        if "config.json" not in names:
            continue
        try:
            record = read_record(place, os.path.relpath(place, folder))
        except UserError as error:
            logger.warning("%s is left out: %s", place, error)
            continue
        if all(isinstance(record.config.get(section), dict) for section in MADE_BY_US):
            found.append(record)
            folders.clear()  # runs are not nested
    return RecordList(sorted(found, key=lambda record: record.name))
