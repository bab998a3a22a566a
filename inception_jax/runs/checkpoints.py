"""Checkpoints: what a run needs to go on as if it had not been stopped, each verified when it is read.

Orbax writes them (asynchronously, atomically) and reads them back onto any devices, but it does not notice a
flipped bit. So each checkpoint carries a digest of every leaf, and a damaged one is named and passed over.
"""

import asyncio
import contextlib
import functools
import hashlib
import json
import logging as python_logging
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import PyTree
from orbax.checkpoint.checkpoint_managers import PreservationPolicy

from inception_jax.distributed import multihost
from inception_jax.distributed.watch import waiting
from inception_jax.errors import UserError, WriteError, unknown_name
from inception_jax.files import no_room, parse_json

# Of what `_Records` writes. 1 had no such field, and its checksum did not cover all of the digest.
FORMAT = 2

# That a process which was asked to stop still waits for a checkpoint of all: less than schedulers leave it.
SAVE_SECONDS = 100.0
LEAVING_SECONDS = 60.0  # how long reads and writes that go on when one of them has failed are waited for

# Folders that are no checkpoints, or not now. Orbax lists only those whose whole name is a number.
DAMAGED = "damaged-"  # set aside, for its owner to look at
REPLACED = "replaced-"  # until its successor is complete


class Checkpoints:
    """The checkpoints of one run: a folder per kept step, named by the step, below `directory`.

    Each folder holds three items: `state`, a tree of arrays; `progress`, a JSON object; and `digest`, from which
    the other two are verified. The `keep_latest` latest ones and the `keep_best` best ones are kept, best by the
    watched metric; of equals, the first; and for good those of every multiple of `keep_every_steps`.

    A damaged checkpoint is named in a warning and counts as not there, whenever that is found out: of its JSON when
    the folder is opened, of its arrays when they are restored. The next save sets it aside, as `damaged-STEP`.

    All processes of a run call every method together, save `check` and `close`, and on the same files. What is read
    and decided is process 0's word, and what is damaged or not written for one process is so for all of them.
    Other programs may read while a run writes.

    Args:
      directory: is made if it is not there
      keep_latest: 1 or more
      keep_best: 0 or more
      keep_every_steps: 0: none are kept for good
      watch: the metric, among those given to `save`, that decides which checkpoint is the best
      watch_mode: which is better, "max" or "min" of it
      read_only: leave the folder as it is, which another program's run may be writing

    Raises:
      UserError: the folder cannot be made or read; it has a checkpoint that a later version wrote; an unknown mode.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str],
        *,
        keep_latest: int = 1,
        keep_best: int = 1,
        keep_every_steps: int = 0,
        watch: str = "validation_top1",
        watch_mode: str = "max",
        read_only: bool = False,
    ):
        if watch_mode not in ("max", "min"):
            raise unknown_name("watch mode", watch_mode, ("max", "min"))
        _quieten_orbax()
        self.directory = Path(directory).absolute()
        self._watch = watch
        self._sign = 1 if watch_mode == "max" else -1
        self._watched: dict[int, float] = {}  # by step: the watched metric, times the sign; the greatest is best
        self._damaged: dict[int, str] = {}  # by step: why
        self._saving: _Saving | None = None  # until `wait` has found it written
        self._running = False  # the same for this process alone
        self._error: Exception | None = None  # of the save, in this process
        self._tidy = False
        try:
            if not read_only:
                self._put_back()
            multihost.wait_for_all("checkpoints.opened")
            policy = _Kept(self._best_steps, keep_latest, keep_best, keep_every_steps)
            with waiting("the folder of checkpoints to be opened"):
                self._manager = ocp.CheckpointManager(
                    self.directory, options=ocp.CheckpointManagerOptions(preservation_policy=policy)
                )
        except OSError as error:
            kind = WriteError if no_room(error) else UserError
            raise kind(f"the folder of checkpoints {self.directory} cannot be used: {error}") from error
        try:
            for step in self.steps():
                with contextlib.suppress(_DamagedError):
                    self._watch_step(step, self._read_records(step).metrics)
        except UserError:
            self._manager.close()
            raise
        if self._damaged:
            self._manager.reload()  # a run that goes on may have removed them while they were read
            self._damaged = {step: why for step, why in self._damaged.items() if step in self._all_steps()}
        if self._damaged:
            logging.warning("in %s %s", self.directory, self._damages())

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint that is not known to be damaged, in order."""
        return [step for step in self._all_steps() if step not in self._damaged]

    def latest_step(self) -> int | None:
        """None if there is no checkpoint.

        Raises:
          UserError: all that there are are damaged.
        """
        steps = self.steps()
        if not steps and self._damaged:
            raise self._nothing_to_restore()
        return max(steps, default=None)

    def best_steps(self) -> list[int]:
        """The steps of which there is a checkpoint with a watched metric, the best first."""
        return self._best_steps(self.steps())

    def best_step(self) -> int | None:
        """The step whose watched metric is best among those that are there; None if no checkpoint has one."""
        return next(iter(self.best_steps()), None)

    def watched(self, step: int) -> float | None:
        """The watched metric of a step's checkpoint; None where it has none, or is damaged or not there."""
        return self._sign * self._watched[step] if step in self.best_steps() else None

    def lost(self) -> dict[int, str]:
        """By step, what is wrong with each checkpoint that is damaged, those that were set aside included."""
        aside = (path.name.removeprefix(DAMAGED) for path in self.directory.glob(f"{DAMAGED}*"))
        steps = {int(step): "is damaged, and was set aside" for step in aside if step.isdecimal()}
        return steps | {step: f"is damaged: {why}" for step, why in self._damaged.items()}

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
          UserError: there are checkpoints of later steps, so this is another course of the run.
          WriteError: this one or the last one could not be written.
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
        progress = json.loads(json.dumps(dict(progress)))
        # Other processes' timings differ. What is written is process 0's.
        records = _Records(*_from_first(lambda: [_describe(state, with_bytes=True), progress, metrics]))

        replaces = False
        if step in self.steps():
            try:
                present = self._read_records(step)
            except _DamagedError:
                self._set_aside_damaged()
            else:
                if metrics is None and records.leaves == present.leaves:
                    records = records._replace(metrics=present.metrics)
                if records.digest() == present.digest():  # NaN is unequal to itself, its JSON is not
                    return
                self._set_aside(step, REPLACED)
                replaces = True

        self._saving = _Saving(step, self._watched.get(step), replaces)
        self._watch_step(step, records.metrics)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            progress=ocp.args.JsonSave(records.progress),
            digest=ocp.args.JsonSave(records.digest()),
        )
        self._running = True  # also where Ctrl-C comes while it starts
        try:
            with waiting("the checkpoint to be written", SAVE_SECONDS):
                self._manager.save(step, args=items, force=True)  # unforced, Orbax may decide, silently, not to
        except (OSError, ValueError) as error:  # TensorStore's are ValueErrors
            self._running, self._error = False, error
            self._give_up()

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
            try:
                return self._read(step, template)
            except _DamagedError as damage:
                raise UserError(
                    f"nothing to restore in {self.directory}: the checkpoint of step {step} is damaged: {damage}. "
                    "Choose another step"
                ) from damage
        known = set(self._damaged)
        for candidate in self.steps()[::-1]:
            try:
                restored = self._read(candidate, template)
            except _DamagedError:
                continue
            if self._damaged.keys() - known:
                logging.warning("%s. Going on from step %d", self._damages(known), candidate)
            return restored
        if self._damaged:
            raise self._nothing_to_restore()
        raise UserError(f"there is no checkpoint in {self.directory}")

    def progress(self, step: int) -> dict[str, Any]:
        """The JSON object saved with `step`, from which a reader learns how to make a template for its state.

        Raises:
          UserError: there is no such checkpoint, or it is damaged.
        """
        return self._records_of(step).progress

    def metrics(self, step: int) -> dict[str, float] | None:
        """The metrics saved with `step`; None if there were none.

        Raises:
          UserError: there is no such checkpoint, or it is damaged.
        """
        return self._records_of(step).metrics

    def _records_of(self, step: int) -> "_Records":
        self.wait()
        self._require_present(step)
        try:
            return self._read_records(step)
        except _DamagedError as damage:
            raise UserError(f"the checkpoint of step {step} in {self.directory} is damaged: {damage}") from damage

    def check(self) -> None:
        """Says at once that what was saved in the background could not be written; takes microseconds, never waits.

        Of several processes, the one that could not write its part says so alone, and should end.

        Raises:
          WriteError: so it is.
        """
        if self._running and not self._manager.is_saving_in_progress():
            self._join()
            if self._error:
                self._give_up()

    def wait(self) -> None:
        """Returns once what was saved is on disk.

        Raises:
          WriteError: it could not be written.
        """
        self._join()
        if self._saving and _any_process(self._error is not None):
            self._give_up()
        self._end_saving()

    def close(self) -> None:
        """Waits for what was saved, and ends the threads.

        Raises:
          WriteError: it could not be written.
        """
        # Not `wait`: where one process ends early, by an error of its own, the others do not come here.
        try:
            self._join()
            if self._error:
                self._give_up()
            self._end_saving()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing

    def _join(self) -> None:
        if not self._running:
            return
        try:
            with waiting("the checkpoint to be written", SAVE_SECONDS):
                self._manager.wait_until_finished()
        except Exception as error:  # of many types: the storage library's own, OSError, ValueError
            self._error = error
        self._running = False  # and not where Ctrl-C has ended the waiting

    def _end_saving(self) -> None:
        if self._saving and self._saving.replaces:
            if (self.directory / str(self._saving.step)).is_dir():  # complete, so its predecessor may go
                self._remove([self.directory / f"{REPLACED}{self._saving.step}"])
            else:  # Ctrl-C came before it had begun
                self._put_back()
        self._saving = None

    def _give_up(self) -> NoReturn:
        """Raises WriteError for the save that failed, with everything as it was before it."""
        assert self._saving
        step, watched_before, _ = self._saving
        self._watched.pop(step, None)
        if watched_before is not None:
            self._watched[step] = watched_before
        self._put_back()
        self._manager.reload()  # Orbax has counted those as removed that were to go after it
        self._tidy = False
        error, self._error, self._saving = self._error, None, None
        kept = max(self.steps(), default=None)
        raise WriteError(
            f"the checkpoint of step {step} could not be written in {self.directory}: "
            f"{_write_failure(error) if error else 'another process failed to write its part'}; "
            + ("none was saved before" if kept is None else f"that of step {kept} is kept")
        ) from error

    # Reading

    def _all_steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def _require_present(self, step: int) -> None:
        if step not in self._all_steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"there is no checkpoint of step {step} in {self.directory}; there are: {there}")

    def _damages(self, known: Iterable[int] = ()) -> str:
        """What is wrong with the damaged ones, save those that are `known`."""
        return "; ".join(
            f"the checkpoint of step {step} is damaged: {why}"
            for step, why in self._damaged.items()
            if step not in known
        )

    def _nothing_to_restore(self) -> UserError:
        return UserError(f"nothing to restore in {self.directory}: {self._damages()}. Remove the folder to start anew")

    def _damage(self, step: int, why: str) -> "_DamagedError":
        self._damaged[step] = why
        return _DamagedError(why)

    def _read_records(self, step: int) -> "_Records":
        def read() -> Any:
            files = (self.directory / str(step) / item / "metadata" for item in ("digest", "progress"))
            try:
                return [parse_json(file.read_bytes()) for file in files]
            except Exception as error:  # whatever a changed byte can lead to
                return _brief(error)

        content = _from_first(read)
        if isinstance(content, str):
            raise self._damage(step, content)
        try:
            digest, progress = content
            written_format, records = _Records.verified(digest, progress)
        except Exception as error:
            raise self._damage(step, "progress and digest do not agree") from error
        if written_format > FORMAT:
            raise UserError(
                f"the checkpoint of step {step} in {self.directory} was written by a later version of inception_jax "
                f"(format {written_format}; this one reads up to {FORMAT}): install that version, or use another folder"
            )
        return records

    def _read(self, step: int, template: PyTree) -> tuple[PyTree, dict[str, Any]]:
        records = self._read_records(step)
        abstract = jax.tree.map(_abstract, template)
        _require_fit(step, records.leaves, _describe(abstract, with_bytes=False))
        state, why = None, None
        try:
            # Not by the manager: its processes wait for one another, for ever if one of them could not read.
            folder = self._manager.directory / str(step) / "state"
            with waiting("the checkpoint to be read", SAVE_SECONDS):
                state = ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(abstract))
            found = _describe(state, with_bytes=True)
            changed = [path for path, leaf in records.leaves.items() if found.get(path) != leaf]
            why = f"{_some(changed)} not as saved" if changed else None
        except jax.errors.JaxRuntimeError:
            raise  # the device's fault, such as no memory left
        except Exception as error:
            why = _brief(error)
        if _any_process(why is not None):
            raise self._damage(step, why or "another process cannot read it")
        return state, records.progress

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

    def _tidy_up(self) -> None:
        """Before a save: removes what a killed run left half done, and sets damaged checkpoints aside.

        Not when the folder is opened, since a program that only reads must not disturb the run that writes.
        """
        if not self._tidy:
            self._remove(self.directory.glob("*.orbax-checkpoint-tmp*"))
            self._remove(self.directory.glob(f"{REPLACED}*"))
            self._tidy = True
        self._set_aside_damaged()

    def _set_aside_damaged(self) -> None:
        for step in sorted(self._damaged):
            self._set_aside(step, DAMAGED)
        self._damaged.clear()

    def _set_aside(self, step: int, prefix: str) -> None:
        target = self.directory / f"{prefix}{step}"
        self._remove([target])
        if jax.process_index() == 0:
            with contextlib.suppress(FileNotFoundError):  # somebody has removed it
                (self.directory / str(step)).rename(target)
        multihost.wait_for_all("checkpoints.set_aside")
        self._manager.reload()

    @staticmethod
    def _remove(folders: Iterable[Path]) -> None:
        for folder in folders if jax.process_index() == 0 else ():
            shutil.rmtree(folder, ignore_errors=True)


class _DamagedError(Exception):
    """The content of a checkpoint is not what was saved."""


class _Saving(NamedTuple):
    """A checkpoint that is being written."""

    step: int
    watched_before: float | None  # of the one that it replaces
    replaces: bool


class _Records(NamedTuple):
    """What a checkpoint holds besides its arrays."""

    leaves: dict[str, dict[str, Any]]  # by path: shape, dtype, digest of the bytes
    progress: dict[str, Any]
    metrics: dict[str, float] | None

    def digest(self) -> dict[str, Any]:
        """The JSON object of that name: all but the progress, with a checksum over both."""
        content = {"format": FORMAT, "leaves": self.leaves, "metrics": self.metrics}
        return content | {"checksum": _checksum([content, self.progress])}

    @classmethod
    def verified(cls, digest: dict[str, Any], progress: dict[str, Any]) -> tuple[int, "_Records"]:
        """The format in which they were written, and the records; some error or other if they are damaged.

        A later format is to keep this checksum, which tells it from a damaged field.
        """
        content = {name: value for name, value in digest.items() if name != "checksum"}
        written_format, signed = content.get("format", 1), [content, progress]
        if written_format == 1:
            signed = [content["leaves"], progress, content["metrics"]]
        if _checksum(signed) != digest["checksum"]:
            raise ValueError
        return written_format, cls(content.get("leaves", {}), progress, content.get("metrics"))


def _checksum(content: Any) -> str:
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16).hexdigest()


class _Kept(PreservationPolicy):
    """Orbax's LatestN, BestN and EveryNSteps together, save that BestN prefers the last of equals."""

    def __init__(self, best_steps, keep_latest: int, keep_best: int, keep_every_steps: int):
        self._best_steps = best_steps
        self._keep_latest = keep_latest
        self._keep_best = keep_best
        self._keep_every_steps = keep_every_steps

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        kept = {*steps[-self._keep_latest :], *self._best_steps(steps)[: self._keep_best]}
        if self._keep_every_steps:
            kept.update(step for step in steps if step % self._keep_every_steps == 0)
        return [checkpoint.step in kept for checkpoint in checkpoints]


def saved_steps(directory: Path) -> list[int]:
    """The steps of which there is a checkpoint in the folder, whole or damaged, as this process sees it now."""
    return sorted(int(path.name) for path in directory.glob("*") if path.name.isdecimal())


# Several processes


def _any_process(flag: bool) -> bool:
    """Whether it is set in any of the processes, which all ask together."""
    with waiting("the checkpoint of all processes", SAVE_SECONDS):
        return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def _from_first(make: Callable[[], Any]) -> Any:
    """What `make` returns in process 0, a JSON value, in all processes; it may not raise."""
    if jax.process_count() == 1:
        return make()
    content = json.dumps(make()).encode() if jax.process_index() == 0 else b""
    with waiting("process 0 to read or write a checkpoint", SAVE_SECONDS):
        size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
        # Of a size that recurs, since each is compiled.
        padded = np.frombuffer(content.ljust(1 << size.bit_length()), np.uint8)
        return json.loads(np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes())


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
    """The first line of the message, which may run to pages, of an error or of what it came from."""
    while error.__cause__:
        error = error.__cause__
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line[:500]}"


def _write_failure(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))  # in TensorStore's long messages
    return os.strerror(int(code.group(1))) if code else _brief(error)


def _quieten_orbax() -> None:
    """Orbax logs every stage of every save, through the logger of our own lines. What fails, it also raises.

    And where one of many reads or writes fails, it forgets the others: each then ends in a traceback of its own, on
    standard error, as its event loop is closed. They are waited for, if this version of Orbax runs them as we know.
    """
    logger = python_logging.getLogger("absl")
    if _is_ours not in logger.filters:
        logger.addFilter(_is_ours)
    runner: Any = sys.modules.get("orbax.checkpoint._src.asyncio_utils")
    run_sync = getattr(runner, "run_sync", None)
    if run_sync and not hasattr(run_sync, "__wrapped__"):
        runner.run_sync = functools.wraps(run_sync)(lambda work: run_sync(_with_all_tasks(work)))


async def _with_all_tasks(work: Coroutine[Any, Any, Any]) -> Any:
    try:
        return await work
    except BaseException:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*others, return_exceptions=True), LEAVING_SECONDS)
        raise


def _is_ours(record: python_logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}checkpoint{os.sep}" not in record.pathname
