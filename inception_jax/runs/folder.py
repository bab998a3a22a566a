"""A run's folder: its config, which is kept and compared, and its checkpoints."""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_collections
from jax import numpy as jnp

from inception_jax import files
from inception_jax.config import Config, check_types, default_config, may_differ, per_process
from inception_jax.errors import UserError, WriteError
from inception_jax.experiment import Inputs, dtypes
from inception_jax.registry import is_outside
from inception_jax.runs.checkpoints import Checkpoints
from inception_jax.steps.schedules import cycle_ends

ENDING = ("cosine",)  # schedules whose rates depend on the number of epochs


def prepare_folder(folder: Path, config: Config) -> int | None:
    """Creates the run's folder with its config.json, or checks that an existing one has the same config.

    More epochs than the run was started with extend it, unless its schedule has used their number. A cosine schedule is
    extended by whole cycles. Its config.json is then to be replaced by `write_config`, once its data is known to be the
    same.

    Returns the number of epochs until now if they become more, else None.

    Raises:
      UserError: the folder cannot be written, or contains a run with another config; the message shows the difference.
    """
    path = folder / "config.json"
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        exists = path.exists()
    if not exists:
        write_config(folder, config)
        return None
    kept = read_config(path)
    differences = config_differences(kept, config)
    if _is_longer(kept, config, differences):
        if _may_end(config.schedule.name) and not _has_more_cycles(kept, config):
            more = "give the number of whole cycles with --config.schedule.cycles, or choose another --workdir"
            raise UserError(
                f"{folder} cannot be extended from {kept.num_epochs} to {config.num_epochs} epochs: its "
                f"{config.schedule.name} schedule was computed for {kept.num_epochs}. "
                f"{more if kept.schedule.cycles > 1 else 'Choose another --workdir'}; with --config.init_from "
                "a new run starts from its weights"
            )
        return kept.num_epochs
    if differences:
        raise UserError(
            f"{folder} contains a run with another config: {'; '.join(differences)}. "
            "Choose another --workdir, or the same config to resume that run"
        )
    return None


def write_config(folder: Path, config: Config) -> None:
    """Writes the run's config.json. Raises UserError or WriteError if that is not possible."""
    with _writing(folder):
        files.write_json(folder / "config.json", json.loads(config.to_json()))


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = WriteError if files.no_room(error) else UserError
        raise kind(f"cannot write the run's folder {folder}: {error.strerror or error}") from error


def _may_end(schedule: str) -> bool:
    """Whether a schedule depends on the number of epochs; those of Optax are given steps by the config's own fields."""
    return schedule in ENDING or (is_outside(schedule) and not schedule.startswith("optax."))


def _is_longer(kept: Config, given: Config, differences: Sequence[str]) -> bool:
    """Whether the given config differs only in having more epochs, and, of a cosine schedule, more cycles."""
    fields = {phrase.partition(" ")[0] for phrase in differences} - {"num_epochs"}
    return kept.num_epochs < given.num_epochs and (
        not fields or (fields == {"schedule.cycles"} and given.schedule.name == "cosine")
    )


def _has_more_cycles(kept: Config, given: Config) -> bool:
    """Whether the cycles of the kept config are the first ones of the given config, which has more."""
    # In millionths of an epoch.
    before, now = (
        cycle_ends(config.num_epochs, 10**6, config.schedule.cycles, config.schedule.cycle_factor)
        for config in (kept, given)
    )
    return len(before) < len(now) and all(math.isclose(*pair, abs_tol=1) for pair in zip(before, now, strict=False))


def read_config(path: Path) -> Config:
    """Reads the config that a run has saved. A field missing from an older run has the current default.

    Raises:
      UserError: the file cannot be read, or was not written by a run.
    """

    def thaw(value: Any) -> Any:  # JSON has no tuples
        if isinstance(value, dict):
            return {key: thaw(item) for key, item in value.items()}
        return tuple(map(thaw, value)) if isinstance(value, list) else value

    try:
        content = files.parse_json(path.read_bytes())
        if not isinstance(content, dict) or not {"model", "data", "checkpoint"} <= content.keys():
            raise ValueError("it has no sections model, data and checkpoint")  # other programs use this file name, too
        config = ml_collections.ConfigDict(_merge(default_config().to_dict(), thaw(content)))
        check_types(config, others=True)
        config.init_from = config.init_from or None  # in version 0.1.0, "" also meant None
        return config
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a run's config: {error}") from error


def _merge(default: dict[str, Any], kept: dict[str, Any]) -> dict[str, Any]:
    both = default.keys() & kept.keys()
    sections = [key for key in both if isinstance(default[key], dict) and isinstance(kept[key], dict)]
    return default | kept | {key: _merge(default[key], kept[key]) for key in sections}


def config_differences(kept: Config, given: Config) -> list[str]:
    """One phrase for every field that affects the computation and has two different values.

    A field missing from the saved config had the current default.
    """
    default, old, new = map(fields_of, (default_config(), kept, given))
    old = {field: default[field] for field in default.keys() & new.keys()} | old
    given = new.get("compute_dtype")
    if old.get("compute_dtype") == "auto" != given and given == jnp.dtype(dtypes("auto")[0]).name:
        old["compute_dtype"] = new["compute_dtype"]  # recipes that said "auto" now name the type
    return [
        f"{field} was {old.get(field)!r}, now {new.get(field)!r}"
        for field in sorted(old.keys() | new.keys())
        if old.get(field) != new.get(field) and not may_differ(field)
    ]


def fields_of(config: Config) -> dict[str, Any]:
    """All fields, as JSON values by full name."""
    return _flatten(json.loads(config.to_json()))


def common_fields(config: Config) -> dict[str, Any]:
    """The fields, as JSON values by full name, that are the same in all processes of a run."""
    return {field: value for field, value in fields_of(config).items() if not per_process(field)}


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in tree.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def kept_inputs(folder: Path) -> Inputs | None:
    """The inputs saved by a run; None if it has no checkpoint yet."""
    if not (folder / "config.json").is_file():
        return None
    with open_checkpoints(folder, read_config(folder / "config.json"), read_only=True) as checkpoints:
        step = checkpoints.latest_step()
        return None if step is None else Inputs.from_json(checkpoints.progress(step)["inputs"])


def open_checkpoints(
    folder: Path, config: Config, *, keep_steps: Sequence[int] = (), read_only: bool = False
) -> Checkpoints:
    """Opens the run's checkpoints with its retention rules; `read_only` if the run may be training elsewhere.

    Args:
      keep_steps: steps whose checkpoints are never deleted.
    """
    return Checkpoints(
        folder / "checkpoints",
        keep_latest=config.checkpoint.keep_latest,
        keep_best=config.checkpoint.keep_best,
        keep_every_steps=config.checkpoint.keep_every_steps,
        keep_steps=keep_steps,
        watch=config.evaluate.watch,
        watch_mode=config.evaluate.watch_mode,
        read_only=read_only,
    )
