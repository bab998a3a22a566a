"""Checkpoints: everything that a run needs to continue as if it had not stopped, verified when it is read.

Orbax writes them, asynchronously and atomically, and reads them back onto any devices, but it does not detect changed
bits. So each checkpoint has a digest of every array; a damaged one is reported and skipped.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from absl import logging
from jaxtyping import PyTree

from inception_jax.distributed import multihost
from inception_jax.distributed.collectives import any_process, from_first
from inception_jax.distributed.watch import waiting
from inception_jax.errors import UserError, WriteError, check_choice
from inception_jax.files import no_room
from inception_jax.runs import checkpoint_folders as folders
from inception_jax.runs.checkpoint_reading import DamagedError, read_items, read_state, verify_items
from inception_jax.runs.orbax_quirks import Kept, quieten_orbax, write_failure
from inception_jax.runs.verification import Manifest, abstract, describe, require_fit

# How long a process that was asked to stop waits for a checkpoint of all processes: less than schedulers allow.
SAVE_SECONDS = 100.0


class Checkpoints(contextlib.AbstractContextManager["Checkpoints"]):
    """The checkpoints of a run: a folder below `directory` for each step that is kept, named by the step.

    A checkpoint has three items: `state`, a tree of arrays; `progress`, a JSON object; and `digest`, which verifies
    the other two. The latest `keep_latest` and the best `keep_best` checkpoints are kept (the best by the watched
    metric, the first one of equals), and permanently those of `keep_steps` and of every multiple of
    `keep_every_steps`.

    A damaged checkpoint is reported in a warning and treated as missing. Damage to its JSON is found when the folder
    is opened, damage to its arrays when they are restored. The next save renames it to `damaged-STEP`.

    All processes of a run must call the same methods, except for `check` and `close`, on the same files. A checkpoint
    that one process cannot read or write is damaged or not written for all. Other programs may read meanwhile.

    Args:
      directory: created if it does not exist.
      keep_latest: 1 or more.
      keep_best: 0 or more.
      keep_every_steps: 0: none are kept permanently.
      keep_steps: steps whose checkpoints are kept permanently, once they are saved.
      watch: the metric, among those given to `save`, that decides which checkpoint is best.
      watch_mode: "max" or "min": which values are better.
      read_only: whether to leave the folder unchanged, since another program may be training in it.

    Raises:
      UserError: the folder cannot be created or read, it has a checkpoint from a later version, or the mode is
        unknown.
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
        self._watched: dict[int, float] = {}  # by step: the watched metric times the sign, so that the largest is best
        self._damaged: dict[int, str] = {}  # by step: what is wrong
        self._saving: _Saving | None = None  # until `wait` has confirmed that it is written
        self._running = False  # whether this process is writing its part of it
        self._error: Exception | None = None  # what this process raised while writing it
        self._tidy = False
        try:
            if not read_only:
                folders.restore_replaced(self.directory)
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
                with contextlib.suppress(DamagedError):
                    self._watch_step(step, self._read_manifest(step).metrics)
        except UserError:
            self._manager.close()
            raise
        if self._damaged:
            self._manager.reload()  # a run in progress may have removed them while they were read
            self._damaged = {step: why for step, why in self._damaged.items() if step in self._all_steps()}
        if self._damaged:
            logging.warning("in %s %s", self.directory, self._damages())

    def steps(self) -> list[int]:
        """The steps of all checkpoints that are not known to be damaged, in ascending order."""
        return [step for step in self._all_steps() if step not in self._damaged]

    def latest_step(self) -> int | None:
        """The latest step; None if there is no checkpoint.

        Raises:
          UserError: all checkpoints are damaged.
        """
        steps = self.steps()
        if not steps and self._damaged:
            raise self._nothing_to_restore()
        return max(steps, default=None)

    def best_steps(self) -> list[int]:
        """The steps of all checkpoints that have the watched metric, best first."""
        return self._best_steps(self.steps())

    def best_step(self) -> int | None:
        """The step with the best watched metric; None if no checkpoint has it."""
        return next(iter(self.best_steps()), None)

    def watched(self, step: int) -> float | None:
        """The watched metric of a step's checkpoint; None if it has none, is damaged, or does not exist."""
        return self._sign * self._watched[step] if step in self.best_steps() else None

    def lost(self) -> dict[int, str]:
        """What is wrong with each damaged checkpoint, by step, including those that were set aside."""
        aside = {step: "is damaged, and was set aside" for step in folders.damaged_steps(self.directory)}
        return aside | {step: f"is damaged: {why}" for step, why in self._damaged.items()}

    def save(
        self, step: int, state: PyTree, progress: Mapping[str, Any], metrics: Mapping[str, float] | None = None
    ) -> None:
        """Saves in the background, from copies made before this returns, then removes what is no longer kept.

        An existing checkpoint of this step is replaced, unless it has the same content. If the state is the same and
        no metrics are given, it keeps its metrics, so that a run may save again when it is stopped.

        Args:
          step: number of updates made.
          state: tree of arrays; random keys may be typed or raw.
          progress: a JSON object, which `restore` returns.
          metrics: results for this state. Without a finite watched metric, the checkpoint is not a candidate for the
            best one.

        Raises:
          UserError: there are checkpoints of later steps, so this is another run.
          WriteError: this checkpoint or the previous one could not be written.
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
        # Process 0's values are written, since timings differ between processes.
        manifest = Manifest(*_from_first(lambda: [describe(state, with_bytes=True), progress, metrics]))

        replaces = False
        if step in self.steps():
            try:
                present = self._read_manifest(step)
            except DamagedError:
                self._set_aside_damaged()
            else:
                if metrics is None and manifest.leaves == present.leaves:
                    manifest = manifest._replace(metrics=present.metrics)
                if manifest.digest() == present.digest():  # compares JSON, in which NaN equals itself
                    return
                self._set_aside(step, folders.REPLACED)
                replaces = True

        self._saving = _Saving(step, self._watched.get(step), replaces)
        self._watch_step(step, manifest.metrics)
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            progress=ocp.args.JsonSave(manifest.progress),
            digest=ocp.args.JsonSave(manifest.digest()),
        )
        self._running = True  # set first, since Ctrl-C may come while it starts
        try:
            with waiting("the checkpoint to be written", SAVE_SECONDS):
                self._manager.save(step, args=items, force=True)  # otherwise Orbax may skip it silently
        except (OSError, ValueError) as error:  # TensorStore raises ValueError
            self._running, self._error = False, error
            self._give_up()

    def restore(self, step: int | None, template: PyTree) -> tuple[PyTree, dict[str, Any]]:
        """The verified `(state, progress)` of `step`, or of the latest intact step if that is None.

        Damaged checkpoints that are skipped are reported in a warning, and set aside by the next save.

        Args:
          template: a state of the same shapes and dtypes; it may be abstract (`jax.eval_shape`). Each leaf gets the
            sharding of the template's leaf, whatever it was when it was saved; by default it is on the first device.

        Raises:
          UserError: there is no such checkpoint, it is damaged, or it does not fit the template.
        """
        self.wait()
        if step is not None:
            return self._read_given(step, template)
        known = set(self._damaged)
        for candidate in self.steps()[::-1]:
            try:
                restored = self._read(candidate, template)
            except DamagedError:
                continue
            if self._damaged.keys() - known:
                logging.warning("%s. Continuing from step %d", self._damages(known), candidate)
            return restored
        if self._damaged:
            raise self._nothing_to_restore()
        raise UserError(f"there is no checkpoint in {self.directory}")

    def restore_part(self, step: int, template: dict[str, PyTree]) -> dict[str, PyTree]:
        """Some fields of a step's state, verified, for a reader that does not know the shapes of the others.

        Args:
          template: the fields by name, as in `restore`.

        Raises:
          UserError: as `restore`.
        """
        self.wait()
        return self._read_given(step, template, whole=False)[0]

    def progress(self, step: int) -> dict[str, Any]:
        """The JSON object saved with `step`. It tells a reader how to create a template for the state.

        Raises:
          UserError: there is no such checkpoint, or it is damaged.
        """
        return self.manifest(step).progress

    def manifest(self, step: int) -> Manifest:
        """What was saved with `step`: the metrics, and shape, dtype and digest of each array, beside the progress.

        Raises:
          UserError: there is no such checkpoint, or it is damaged.
        """
        self.wait()
        self._require_present(step)
        try:
            return self._read_manifest(step)
        except DamagedError as damage:
            raise UserError(f"the checkpoint of step {step} in {self.directory} is damaged: {damage}") from damage

    def check(self) -> None:
        """Raises the error of a save that has failed in the background. Takes microseconds and never waits.

        With several processes, only the one that could not write its part raises; it should end.

        Raises:
          WriteError: the last checkpoint could not be written.
        """
        if self._running and not self._manager.is_saving_in_progress():
            self._join()
            if self._error:
                self._give_up()

    def wait(self) -> None:
        """Waits until the last save is on disk.

        Raises:
          WriteError: it could not be written.
        """
        self._join()
        if self._saving and _any_process(self._error is not None):
            self._give_up()
        self._end_saving()

    def close(self) -> None:
        """Waits for the last save, and ends the threads.

        Raises:
          WriteError: it could not be written.
        """
        # Not `wait`: if one process ends early with an error, the others do not get here.
        try:
            self._join()
            if self._error:
                self._give_up()
            self._end_saving()
        finally:
            self._manager.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    # Writing

    def _join(self) -> None:
        if not self._running:
            return
        try:
            with waiting("the checkpoint to be written", SAVE_SECONDS):
                self._manager.wait_until_finished()
        except Exception as error:  # of many types: OSError, ValueError, TensorStore's own
            self._error = error
        self._running = False  # not in a `finally`: after Ctrl-C it is still being written

    def _end_saving(self) -> None:
        if self._saving and self._saving.replaces:
            if (self.directory / str(self._saving.step)).is_dir():
                folders.remove_replaced(self.directory, self._saving.step)
            else:  # Ctrl-C came before it had begun
                folders.restore_replaced(self.directory)
        self._saving = None

    def _give_up(self) -> NoReturn:
        """Restores what was there before the save that failed, and raises its WriteError."""
        assert self._saving
        step, watched_before, _ = self._saving
        self._watched.pop(step, None)
        if watched_before is not None:
            self._watched[step] = watched_before
        folders.restore_replaced(self.directory)
        self._manager.reload()  # Orbax already counts those as removed that the new one would have displaced
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
        """What is wrong with the damaged checkpoints, except for the `known` ones."""
        return "; ".join(
            f"the checkpoint of step {step} is damaged: {why}"
            for step, why in self._damaged.items()
            if step not in known
        )

    def _nothing_to_restore(self) -> UserError:
        return UserError(f"nothing to restore in {self.directory}: {self._damages()}. Remove the folder to start over")

    def _read_manifest(self, step: int) -> Manifest:
        folder = self.directory / str(step)
        try:
            return verify_items(folder, _from_first(partial(read_items, folder)))
        except DamagedError as damage:
            self._damaged[step] = str(damage)
            raise

    def _read_given(self, step: int, template: PyTree, *, whole: bool = True) -> tuple[PyTree, dict[str, Any]]:
        self._require_present(step)
        try:
            return self._read(step, template, whole=whole)
        except DamagedError as damage:
            raise UserError(
                f"nothing to restore in {self.directory}: the checkpoint of step {step} is damaged: {damage}. "
                "Choose another step"
            ) from damage

    def _read(self, step: int, template: PyTree, *, whole: bool = True) -> tuple[PyTree, dict[str, Any]]:
        """As `restore`; `whole` is False if the template has only some fields of the state, by name."""
        manifest = self._read_manifest(step)
        shapes = jax.tree.map(abstract, template)
        leaves = {path: leaf for path, leaf in manifest.leaves.items() if whole or path.partition("/")[0] in template}
        require_fit(step, leaves, describe(shapes, with_bytes=False))
        with waiting("the checkpoint to be read", SAVE_SECONDS):
            state, why = read_state(self._manager.directory / str(step), shapes, leaves, whole=whole)
        if _any_process(bool(why)):
            self._damaged[step] = why or "another process cannot read it"
            raise DamagedError(self._damaged[step])
        return state, manifest.progress

    # Selection of the best

    def _watch_step(self, step: int, metrics: Mapping[str, float] | None) -> None:
        self._watched.pop(step, None)
        value = (metrics or {}).get(self._watch, math.nan)
        if math.isfinite(value):
            self._watched[step] = self._sign * value

    def _best_steps(self, steps: Sequence[int]) -> list[int]:
        """The steps that have the watched metric, best first."""
        return sorted((step for step in steps if step in self._watched), key=lambda step: (-self._watched[step], step))

    # Folders

    def _tidy_up(self) -> None:
        """Before a save: removes what a killed run left unfinished, and sets damaged checkpoints aside.

        Not when the folder is opened, since a program that only reads must not disturb the run that writes.
        """
        if not self._tidy:
            folders.remove_unfinished(self.directory)
            self._tidy = True
        self._set_aside_damaged()

    def _set_aside_damaged(self) -> None:
        for step in sorted(self._damaged):
            self._set_aside(step, folders.DAMAGED)
        self._damaged.clear()

    def _set_aside(self, step: int, prefix: str) -> None:
        folders.set_aside(self.directory, step, prefix)
        multihost.wait_for_all("checkpoints.set_aside")
        self._manager.reload()


class _Saving(NamedTuple):
    """A checkpoint that is being written."""

    step: int
    watched_before: float | None  # the watched metric of the checkpoint that it replaces
    replaces: bool


def _any_process(flag: bool) -> bool:
    return any_process(flag, "the checkpoint of all processes", SAVE_SECONDS)


def _from_first(make: Callable[[], Any]) -> Any:
    return from_first(make, "process 0 to read or write a checkpoint", SAVE_SECONDS)
