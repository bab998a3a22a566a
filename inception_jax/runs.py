"""What runs have kept of themselves, read without their networks: one, several, or all below a folder."""

import dataclasses
import json
import logging
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inception_jax.config import default_config
from inception_jax.errors import UserError
from inception_jax.writers import Row, read_metrics

MADE_BY_US = {"model", "data", "checkpoint"}  # sections that tell a run's config.json from other programs'

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Record:
    """A run's config.json, metrics.csv and summary.json.

    Attributes:
      name: under which it is shown.
      folder: the run's.
      summary: None while the run has not finished.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    rows: Sequence[Row]
    summary: Mapping[str, Any] | None

    @property
    def best(self) -> Mapping[str, Any]:
        """The summary's entry on the best weights; empty where nothing was watched: the last are the only ones then."""
        best = (self.summary or {}).get("best") or {}
        return best if best.get("metric") is not None else {}

    @property
    def fields(self) -> dict[str, Any]:
        """Every field of the config by its path, sections last."""
        flat = flatten(self.config)
        return dict(sorted(flat.items(), key=lambda item: ("." in item[0], item[0])))

    @property
    def status(self) -> str:
        """How it ended, "completed", "early" (no better any more) or "target"; "unfinished" or "not begun" before."""
        if self.summary:
            return str(self.summary.get("stopped", "completed"))
        return "unfinished" if self.rows else "not begun"

    def points(self, column: str) -> list[tuple[float, float]]:
        """(epoch, value) of a column of metrics.csv where it is finite."""
        rows = [row for row in self.rows if math.isfinite(row.get(column, math.nan))]
        return [(row["epoch"], row[column]) for row in rows]


def read_record(run_folder: str | Path, name: str | None = None) -> Record:
    """A run's files; a run that goes on has no summary.json yet.

    Args:
      name: None: the summary's, else the folder's.

    Raises:
      UserError: the folder holds no run, or one of these files is damaged.
    """
    folder = Path(run_folder)
    config, summary = _read_json(folder / "config.json"), _read_json(folder / "summary.json")
    if config is None:
        raise UserError(f"{folder} holds no run: it has no config.json")
    name = name or (summary or {}).get("name")
    return Record(name or folder.resolve().name, folder, config, read_metrics(folder / "metrics.csv"), summary)


def read_records(run_folders: Sequence[str | Path]) -> list[Record]:
    """Several runs' files, under the names of their folders; where two are the same, the paths from where they part.

    Raises:
      UserError: as `read_record`, or one folder is given twice.
    """
    folders = [Path(folder) for folder in run_folders]
    resolved = [folder.resolve() for folder in folders]
    for place, folder in enumerate(resolved):
        if folder in resolved[:place]:
            raise UserError(f"{folders[place]} is given twice")
    names = [folder.name for folder in resolved]
    if len(set(names)) < len(names):
        above = os.path.commonpath(resolved)
        names = [os.path.relpath(folder, above) for folder in resolved]
    return [read_record(folder, name) for folder, name in zip(folders, names, strict=True)]


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no fields")
        return content
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Fields within fields by their path, such as "data.name"."""
    flat = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def show(value: Any) -> str:
    """A config's value as it is written on the command line."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def differing_fields(records: Sequence[Record]) -> dict[str, list[Any]]:
    """The fields of configs that differ, with each run's value; top level first.

    A field that a run does not know yet had the value that is the default now.
    """
    defaults = flatten(json.loads(default_config().to_json()))
    configs = [defaults | record.fields for record in records]
    fields = sorted({field for config in configs for field in config}, key=lambda field: ("." in field, field))
    values = {field: [config.get(field) for config in configs] for field in fields}
    return {field: found for field, found in values.items() if any(value != found[0] for value in found)}


def list_runs(folder: str | Path) -> list[Record]:
    """All runs below a folder, at any depth, under their paths from there; sorted by these.

    What is damaged is named in a warning and left out; links are not followed.

    Raises:
      UserError: there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder")
    found = []
    for place, folders, files in os.walk(folder):
        folders.sort()
        if "config.json" not in files:
            continue
        try:
            record = read_record(place, os.path.relpath(place, folder))
        except UserError as error:
            logger.warning("%s is left out: %s", place, error)
            continue
        if record.config.keys() >= MADE_BY_US:
            found.append(record)
            folders.clear()  # a run has none inside
    return sorted(found, key=lambda record: record.name)
