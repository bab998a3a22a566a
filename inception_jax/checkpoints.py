"""Checkpoints: what a run needs to go on as if it had not been stopped, each verified when it is read.

Orbax writes them (asynchronously, atomically) and reads them back onto any devices, but it does not notice a
flipped bit. So each checkpoint carries a digest of every leaf, and a damaged one is named and passed over.
"""

import hashlib
import json
import logging as python_logging
import math
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from inception_jax.errors import UserError, unknown_name

# Folders that are no checkpoints, or not now. Orbax lists only those whose whole name is a number.
DAMAGED = "damaged-"  # set aside, for its owner to look at
REPLACED = "replaced-"  # until its successor is complete


class Checkpoints:
    """The checkpoints of one run: a folder per kept step, named by the step, below `directory`.

    Each folder holds three items: `state`, a tree of arrays; `progress`, a JSON object; and `digest`, from which
    the other two are verified. The `keep_latest` latest ones and the `keep_best` best ones are kept, best by the
    watched metric; of equals, the first.

    All processes of a run call every method together. Other programs may read while a run writes.

    Args:
      directory: is made if it is not there
      keep_latest: 1 or more
      keep_best: 0 or more
      watch: the metric, among those given to `save`, that decides which checkpoint is the best
      watch_mode: which is better, "max" or "min" of it

    Raises:
      UserError: the folder cannot be made or read; an unknown mode.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_latest: int = 1,
        keep_best: int = 1,
        watch: str = "validation_top1",
        watch_mode: str = "max",
    ):
        if watch_mode not in ("max", "min"):
            raise unknown_name("watch mode", watch_mode, ("max", "min"))
        _quieten_orbax()
        self.directory = Path(directory).absolute()
        self._watch = watch
        self._sign = 1 if watch_mode == "max" else -1
        self._watched: dict[int, float] = {}  # by step: the watched metric, times the sign; the greatest is best
        self._damaged: set[int] = set()  # found by restore
        self._replaced: int | None = None  # the step that the save which is being written replaces
        self._tidy = False
        try:
            self._put_back()
            self._manager = ocp.CheckpointManager(
                self.directory,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=_LatestAndBest(self._best_steps, keep_latest, keep_best),
                ),
            )
        except OSError as error:
            raise UserError(f"the folder of checkpoints {self.directory} cannot be used: {error}") from error
        for step in self.steps():
            try:
                self._watch_step(step, self._read_records(step).metrics)
            except _DamagedError:
                continue  # restore() reports it to whoever wants it

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, in order."""
        return sorted(self._manager.all_steps())

    def latest_step(self) -> int | None:
        return max(self.steps(), default=None)

    def best_step(self) -> int | None:
        """The step whose watched metric is best; None if no checkpoint has one."""
        return next(iter(self._best_steps(self.steps())), None)

    def save(
        self, step: int, state: PyTree, progress: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Saves in the background, from copies made before this returns, then removes what is not to be kept.

        A checkpoint of this same step is replaced; if its content is the same, nothing is done. Where the state is
        the same and no metrics are given, its metrics are kept: so a run may save once more when it is stopped.

        Args:
          step: the number of updates made
          state: tree of arrays; random keys may be typed or raw
          progress: a JSON object, which `restore` gives back
          metrics: what was measured of this state; if the watched one is not among them, or not finite, the
            checkpoint is not considered for the best

        Raises:
          UserError: there are checkpoints of later steps, so this is another course of the run; or the last save
            could not be written.
        """
        self.wait()
        self._tidy_up()
        if any(later > step for later in self.steps()):
            raise UserError(
                f"cannot save step {step} in {self.directory}: there is already a checkpoint of step "
                f"{self.latest_step()}. Remove the later ones, or use another folder"
            )
        state = jax.tree.map(jnp.asarray, state)
        metrics = None if metrics is None else {name: float(value) for name, value in metrics.items()}
        records = _Records(_describe(state, with_bytes=True), json.loads(json.dumps(dict(progress))), metrics)

        if step in self.steps():
            try:
                present = self._read_records(step)
            except _DamagedError:
                self._set_aside(step, DAMAGED)
            else:
                if metrics is None and records.leaves == present.leaves:
                    records = records._replace(metrics=present.metrics)
                if records.checksum() == present.checksum():  # NaN is unequal to itself, its JSON is not
                    return
                self._set_aside(step, REPLACED)
                self._replaced = step

        self._watch_step(step, records.metrics)
        digest = {"leaves": records.leaves, "metrics": records.metrics, "checksum": records.checksum()}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            progress=ocp.args.JsonSave(records.progress),
            digest=ocp.args.JsonSave(digest),
        )
        try:
            self._manager.save(step, args=items, force=True)  # unforced, Orbax may decide, silently, not to
        except OSError as error:
            raise self._not_written(error) from error

    def restore(self, step: int | None, template: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The verified `(state, progress)` of `step`, or, if that is None, of the latest step that is undamaged.

        Damaged checkpoints that are passed over are named in a warning, and set aside when the run next saves.

        Args:
          template: a state of the same shapes and dtypes; it may be abstract (`jax.eval_shape`). Each leaf is put
            where the template's is, however it was laid out when it was saved; by default on the first device.

        Raises:
          UserError: there is no such checkpoint; it is damaged; or it does not fit the template.
        """
        self.wait()
        if step is not None:
            self._require_present(step)
        candidates = self.steps()[::-1] if step is None else [step]
        damages: list[str] = []
        for candidate in candidates:
            try:
                restored = self._read(candidate, template)
            except _DamagedError as damage:
                self._damaged.add(candidate)
                damages.append(f"the checkpoint of step {candidate} is damaged: {damage}")
                continue
            if damages:
                logging.warning("%s. Going on from step %d", "; ".join(damages), candidate)
            return restored
        if not damages:
            raise UserError(f"there is no checkpoint in {self.directory}")
        remedy = "Remove the folder to start anew" if step is None else "Choose another step"
        raise UserError(f"nothing to restore in {self.directory}: {'; '.join(damages)}. {remedy}")

    def progress(self, step: int) -> dict[str, Any]:
        """The JSON object saved with `step`, from which a reader learns how to make a template for its state.

        Raises:
          UserError: there is no such checkpoint, or it is damaged.
        """
        self.wait()
        self._require_present(step)
        try:
            return self._read_records(step).progress
        except _DamagedError as damage:
            raise UserError(f"the checkpoint of step {step} in {self.directory} is damaged: {damage}") from damage

    def wait(self) -> None:
        """Returns once what was saved is on disk.

        Raises:
          UserError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # of many types: the storage library's own, OSError, ValueError
            raise self._not_written(error) from error
        if self._replaced in self.steps():  # complete, so its predecessor may go
            self._remove([self.directory / f"{REPLACED}{self._replaced}"])
            self._replaced = None

    def close(self) -> None:
        """Waits for what was saved, and ends the threads."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _not_written(self, error: Exception) -> UserError:
        return UserError(f"a checkpoint could not be written in {self.directory}: {_brief(error)}")

    # Reading

    def _require_present(self, step: int) -> None:
        if step not in self.steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"there is no checkpoint of step {step} in {self.directory}; there are: {there}")

    def _read_records(self, step: int) -> "_Records":
        try:
            items = self._manager.restore(
                step, args=ocp.args.Composite(progress=ocp.args.JsonRestore(), digest=ocp.args.JsonRestore())
            )
            records = _Records(items["digest"]["leaves"], items["progress"], items["digest"]["metrics"])
            intact = records.checksum() == items["digest"]["checksum"]
        except Exception as error:  # whatever a changed byte can lead to
            raise _DamagedError(_brief(error)) from error
        if not intact:
            raise _DamagedError("progress and digest do not agree")
        return records

    def _read(self, step: int, template: PyTree) -> tuple[PyTree, dict[str, Any]]:
        records = self._read_records(step)
        abstract = jax.tree.map(_abstract, template)
        _require_fit(step, records.leaves, _describe(abstract, with_bytes=False))
        try:
            items = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))
            found = _describe(items["state"], with_bytes=True)
        except jax.errors.JaxRuntimeError:
            raise  # the device's fault, such as no memory left
        except Exception as error:
            raise _DamagedError(_brief(error)) from error
        changed = [path for path, leaf in records.leaves.items() if found.get(path) != leaf]
        if changed:
            raise _DamagedError(f"{_some(changed)} not as saved")
        return items["state"], records.progress

    # Which are kept

    def _watch_step(self, step: int, metrics: Mapping[str, float] | None) -> None:
        self._watched.pop(step, None)
        value = (metrics or {}).get(self._watch, math.nan)
        if math.isfinite(value):
            self._watched[step] = self._sign * value

    def _best_steps(self, steps: Sequence[int]) -> list[int]:
        """Those of the steps that have a watched metric, the best first."""
        return sorted((step for step in steps if step in self._watched), key=lambda step: (-self._watched[step], step))

    # Folders

    def _put_back(self) -> None:
        """Undoes a replacement that was cut off before the new checkpoint was complete."""
        for folder in self.directory.glob(f"{REPLACED}*") if jax.process_index() == 0 else ():
            final = folder.with_name(folder.name.removeprefix(REPLACED))
            if not final.exists():
                folder.rename(final)
        multihost_utils.sync_global_devices("inception_jax.checkpoints.put_back")

    def _tidy_up(self) -> None:
        """Before a save: removes what a killed run left half done, and sets damaged checkpoints aside.

        Not when the folder is opened, since a program that only reads must not disturb the run that writes.
        """
        if not self._tidy:
            self._remove(self.directory.glob("*.orbax-checkpoint-tmp*"))
            self._remove(self.directory.glob(f"{REPLACED}*"))
            self._tidy = True
        for step in sorted(self._damaged.intersection(self.steps())):
            self._set_aside(step, DAMAGED)
        self._damaged.clear()

    def _set_aside(self, step: int, prefix: str) -> None:
        target = self.directory / f"{prefix}{step}"
        self._remove([target])
        if jax.process_index() == 0:
            (self.directory / str(step)).rename(target)
        multihost_utils.sync_global_devices("inception_jax.checkpoints.set_aside")
        self._manager.reload()

    @staticmethod
    def _remove(folders: Iterable[Path]) -> None:
        for folder in folders if jax.process_index() == 0 else ():
            shutil.rmtree(folder, ignore_errors=True)


class _DamagedError(Exception):
    """The content of a checkpoint is not what was saved."""


class _Records(NamedTuple):
    """What a checkpoint holds besides its arrays."""

    leaves: dict[str, dict[str, Any]]  # by path: shape, dtype, digest of the bytes
    progress: dict[str, Any]
    metrics: dict[str, float] | None

    def checksum(self) -> str:
        return hashlib.blake2b(json.dumps(self, sort_keys=True).encode(), digest_size=16).hexdigest()


class _LatestAndBest(PreservationPolicy):
    """Orbax's LatestN and BestN together, save that BestN prefers the last of equals."""

    def __init__(self, best_steps, keep_latest: int, keep_best: int):
        self._best_steps = best_steps
        self._keep_latest = keep_latest
        self._keep_best = keep_best

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        kept = {*steps[-self._keep_latest :], *self._best_steps(steps)[: self._keep_best]}
        return [checkpoint.step in kept for checkpoint in checkpoints]


def _describe(tree: PyTree, *, with_bytes: bool) -> dict[str, dict[str, Any]]:
    """Shape, dtype and, on request, digest of every leaf, by its path."""
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        record = {"shape": list(leaf.shape), "dtype": str(leaf.dtype)}
        if with_bytes:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                leaf = jax.random.key_data(leaf)
            content = np.ascontiguousarray(leaf).reshape(-1).view(np.uint8)
            record["digest"] = hashlib.blake2b(content.data, digest_size=16).hexdigest()
        leaves[jax.tree_util.keystr(path, simple=True, separator="/")] = record
    return leaves


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
        leaf = jnp.asarray(leaf)
    sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _require_fit(step: int, saved: dict[str, dict[str, Any]], wanted: dict[str, dict[str, Any]]) -> None:
    def show(leaves, path):
        return f"{leaves[path]['dtype']}{leaves[path]['shape']}" if path in leaves else "nothing"

    differing = [
        f"{path}: {show(saved, path)} there, {show(wanted, path)} here"
        for path in {**wanted, **saved}
        if show(saved, path) != show(wanted, path)
    ]
    if differing:
        raise UserError(
            f"the checkpoint of step {step} is of another network or optimizer: {_some(differing)}. "
            "Use the configuration that it was made with, or another folder"
        )


def _some(entries: Sequence[str], most: int = 3) -> str:
    rest = f" and {len(entries) - most} more" if len(entries) > most else ""
    return "; ".join(entries[:most]) + rest


def _brief(error: BaseException) -> str:
    """The first line of an error's message, which may run to pages."""
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line[:500]}"


def _quieten_orbax() -> None:
    """Orbax logs every stage of every save, through the logger of our own lines. What fails, it also raises."""
    logger = python_logging.getLogger("absl")
    if _is_ours not in logger.filters:
        logger.addFilter(_is_ours)


def _is_ours(record: python_logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}checkpoint{os.sep}" not in record.pathname
