"""Checkpoints: what a run needs to go on as if it had not been stopped, each verified when it is read.

Orbax writes them (asynchronously, atomically) and reads them back onto any devices, but it does not notice a
flipped bit. So each checkpoint carries a digest of every leaf, and a damaged one is named and passed over.
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from inception_jax.distributed import multihost
from inception_jax.distributed.watch import waiting
from inception_jax.errors import UserError, WriteError, check_choice
from inception_jax.files import no_room, parse_json
from inception_jax.runs.orbax_quirks import Kept, brief, quieten_orbax, write_failure
from inception_jax.runs.verification import FORMAT, LISTED, Records, abstract, describe, require_fit
from inception_jax.text import listed

# That a process which was asked to stop still waits for a checkpoint of all: less than schedulers leave it.
SAVE_SECONDS = 100.0
# Folders that are no checkpoints, or not now. Orbax lists only those whose whole name is a number.
DAMAGED = "damaged-"  # set aside, for its owner to look at
REPLACED = "replaced-"  # until its successor is complete


class Checkpoints:
    """The checkpoints of one run: a folder per kept step, named by the step, below `directory`.

    Each folder holds three items: `state`, a tree of arrays; `progress`, a JSON object; and `digest`, from which
    the other two are verified. The `keep_latest` latest ones and the `keep_best` best ones are kept, best by the
    watched metric; of equals, the first; and for good `keep_steps` and every multiple of `keep_every_steps`.

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
      keep_steps: that are kept for good, once they are saved
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
        keep_steps: Sequence[int] = (),
        watch: str = "validation_top1",
        watch_mode: str = "max",
        read_only: bool = False,
    ):
        check_choice("watch mode", watch_mode, ("max", "min"))
        quieten_orbax()
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
            policy = Kept(self._best_steps, keep_latest, keep_best, keep_every_steps, keep_steps)
            with waiting("the checkpoint folder to be opened"):
                self._manager = ocp.CheckpointManager(
                    self.directory, options=ocp.CheckpointManagerOptions(preservation_policy=policy)
                )
        except OSError as error:
            kind = WriteError if no_room(error) else UserError
            raise kind(f"cannot use the checkpoint folder {self.directory}: {error}") from error
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
        records = Records(*_from_first(lambda: [describe(state, with_bytes=True), progress, metrics]))

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
                raise self._damaged_step(step, damage) from damage
        known = set(self._damaged)
        for candidate in self.steps()[::-1]:
            try:
                restored = self._read(candidate, template)
            except _DamagedError:
                continue
            if self._damaged.keys() - known:
                logging.warning("%s. Continuing from step %d", self._damages(known), candidate)
            return restored
        if self._damaged:
            raise self._nothing_to_restore()
        raise UserError(f"there is no checkpoint in {self.directory}")

    def restore_part(self, step: int, template: dict[str, PyTree]) -> dict[str, PyTree]:
        """Some fields of a step's state, verified: for a reader that cannot know the others' shapes.

        Args:
          template: the fields by name, as in `restore`.

        Raises:
          UserError: as `restore`.
        """
        self.wait()
        self._require_present(step)
        try:
            return self._read(step, template, whole=False)[0]
        except _DamagedError as damage:
            raise self._damaged_step(step, damage) from damage

    def _damaged_step(self, step: int, damage: "_DamagedError") -> UserError:
        return UserError(
            f"nothing to restore in {self.directory}: the checkpoint of step {step} is damaged: {damage}. "
            "Choose another step"
        )

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

    def leaves(self, step: int) -> dict[str, dict[str, Any]]:
        """The shape, dtype and digest of each array saved with `step`, by its path, such as "plateau/scale".

        Raises:
          UserError: there is no such checkpoint, or it is damaged.
        """
        return self._records_of(step).leaves

    def _records_of(self, step: int) -> "Records":
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
            f"{write_failure(error) if error else 'another process failed to write its part'}; "
            + ("no earlier one was saved" if kept is None else f"that of step {kept} is kept")
        ) from error

    # Reading

    def _all_steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def _require_present(self, step: int) -> None:
        if step not in self._all_steps():
            there = ", ".join(map(str, self.steps())) or "none"
            raise UserError(f"there is no checkpoint of step {step} in {self.directory}; available: {there}")

    def _damages(self, known: Iterable[int] = ()) -> str:
        """What is wrong with the damaged ones, save those that are `known`."""
        return "; ".join(
            f"the checkpoint of step {step} is damaged: {why}"
            for step, why in self._damaged.items()
            if step not in known
        )

    def _nothing_to_restore(self) -> UserError:
        return UserError(f"nothing to restore in {self.directory}: {self._damages()}. Remove the folder to start over")

    def _damage(self, step: int, why: str) -> "_DamagedError":
        self._damaged[step] = why
        return _DamagedError(why)

    def _read_records(self, step: int) -> "Records":
        def read() -> Any:
            files = (self.directory / str(step) / item / "metadata" for item in ("digest", "progress"))
            try:
                return [parse_json(file.read_bytes()) for file in files]
            except Exception as error:  # whatever a changed byte can lead to
                return brief(error)

        content = _from_first(read)
        if isinstance(content, str):
            raise self._damage(step, content)
        try:
            digest, progress = content
            written_format, records = Records.verified(digest, progress)
        except Exception as error:
            raise self._damage(step, "progress and digest do not match") from error
        if written_format > FORMAT:
            raise UserError(
                f"the checkpoint of step {step} in {self.directory} was written by a later version of inception_jax "
                f"(format {written_format}; this one reads up to {FORMAT}): install that version, or use another folder"
            )
        return records

    def _read(self, step: int, template: PyTree, *, whole: bool = True) -> tuple[PyTree, dict[str, Any]]:
        """`whole`: whether the template has all of the state, and not just some fields of it, by name."""
        records = self._read_records(step)
        shapes = jax.tree.map(abstract, template)
        leaves = {path: leaf for path, leaf in records.leaves.items() if whole or path.partition("/")[0] in template}
        require_fit(step, leaves, describe(shapes, with_bytes=False))
        state, why = None, None
        try:
            # Not by the manager: its processes wait for one another, for ever if one of them could not read.
            folder = self._manager.directory / str(step) / "state"
            with waiting("the checkpoint to be read", SAVE_SECONDS):
                if whole:
                    state = ocp.StandardCheckpointHandler().restore(folder, args=ocp.args.StandardRestore(shapes))
                else:
                    targets = ocp.checkpoint_utils.construct_restore_args(shapes)
                    args = ocp.args.PyTreeRestore(shapes, restore_args=targets, partial_restore=True)
                    state = ocp.PyTreeCheckpointHandler().restore(folder, args=args)
            found = describe(state, with_bytes=True)
            changed = [path for path, leaf in leaves.items() if found.get(path) != leaf]
            why = f"{listed(changed, LISTED, '; ')} not as saved" if changed else None
        except jax.errors.JaxRuntimeError:
            raise  # the device's fault, such as no memory left
        except Exception as error:
            why = brief(error)
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
