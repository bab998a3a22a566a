"""The host's part of a run: checkpoints, record, clock, batches, files and output."""

import collections
import dataclasses
import itertools
import logging
import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np

from inception_jax.data.dataset import Dataset
from inception_jax.distributed import multihost
from inception_jax.distributed.watch import moved, waiting
from inception_jax.experiment import training_key
from inception_jax.runs.checkpoints import Checkpoints
from inception_jax.steps.state import TrainState
from inception_jax.text import format_seconds
from inception_jax.train.batches import training_batches
from inception_jax.train.clock import Clock
from inception_jax.train.console import Console
from inception_jax.train.listeners import Hooks
from inception_jax.train.profiling import Profiler
from inception_jax.train.record import TrainingRecord
from inception_jax.train.start import Start
from inception_jax.train.stopping import STEPS_IN_FLIGHT, Interrupted, NonFiniteLoss, StopRequests, Votes

logger = logging.getLogger(__name__)

STEPS_TO_ESTIMATE = 12  # after which the run's duration is estimated


class Session:
    """One invocation of the command, from the current state of the run's folder to the end or a stop.

    It never owns the TrainState: `loop.run` does, and passes it in for saving.

    Args:
      start: what the run computes.
      folder: the run's.
      dataset: decoded or streamed.
      checkpoints: open for writing.
      requests: to stop.
      console: factory for the progress display; called like `Console`.
      started: `time.monotonic()` when the command began.
      hooks: writers and callbacks.

    Attributes:
      record: the run's metadata besides its TrainState.
      key: for the training steps' random numbers.
      first_step: where this session, or its last attempt, starts.
      rate_scale: what the schedule's learning rate is multiplied by, see `PlateauState`.
    """

    def __init__(
        self,
        start: Start,
        folder: Path,
        dataset: Dataset,
        checkpoints: Checkpoints,
        requests: StopRequests,
        console: Callable[..., Console],
        started: float,
        hooks: Hooks,
    ):
        self.start, self.experiment, self.config = start, start.experiment, start.experiment.config
        self.folder, self.dataset, self.checkpoints = folder, dataset, checkpoints
        self.votes = Votes(start.mesh, requests)
        self.record = TrainingRecord.of(start.experiment, dataset)
        self.key = training_key(self.config, self.record.named_streams)
        self.first_step = 0
        self.rate_scale = 1.0
        self.started = started
        self._writers, self._callbacks = hooks.writers, hooks.callbacks
        self._point_every = self.config.log.every_steps if hooks.writers else 0
        self._make_console = console
        self._source: Generator[tuple[Any, Any], None, None] | None = None
        self._batches: Iterator[tuple[Any, Any]] = iter(())
        self._in_flight: collections.deque[tuple[int, Any]] = collections.deque()
        # Not with retries: the result would depend on the clock, which chose the step that the run goes back to.
        self._save_seconds = 0.0 if self.config.nonfinite.retries else 60 * self.config.checkpoint.every_minutes

    def restore(self) -> TrainState | None:
        """The last checkpoint's state, or None if there is none; the record is replaced by the checkpoint's.

        Raises:
          UserError: the run began with different data.
        """
        if self.checkpoints.latest_step() is None:
            return None
        state, kept = self.checkpoints.restore(None, self.start.template)
        self.record = TrainingRecord.from_checkpoint(kept, self.checkpoints)
        self.record.require_same_data(self.folder, self.experiment, self.dataset)
        self.key = training_key(self.config, self.record.named_streams)
        self.first_step = int(state.step)
        return state

    def open_batches(self) -> None:
        """Starts reading batches, from `first_step` on."""
        self.close_batches()
        self._source = self._batches = training_batches(self.experiment, self.dataset, self.start.mesh, self.first_step)

    def close_batches(self) -> None:
        if self._source is not None:
            self._source.close()

    def example(self) -> tuple[Any, Any]:
        """The next batch, without consuming it."""
        batch = next(self._batches)
        self._batches = itertools.chain([batch], self._batches)
        return batch

    @contextmanager
    def attempt(self, state: TrainState) -> Iterator[None]:
        """Opens the console and the profiler for training that starts from `state`."""
        first, first_step = multihost.is_first(), int(state.step)
        self.first_step = self._saved_step = first_step
        self.rate_scale = float(state.plateau.scale)
        self._saved_at = time.monotonic()
        self._in_flight.clear()
        self.seconds_before = self.record.elapsed_seconds
        self.clock = Clock(self.record, self.config.batch_size, self.started)
        with ExitStack() as exits:
            self._console = exits.enter_context(
                self._make_console(
                    self.experiment.total_steps,
                    self.experiment.steps_per_epoch,
                    batch_size=self.config.batch_size,
                    first_step=first_step,
                    mode=self.config.log.progress,
                    every_seconds=self.config.log.every_seconds,
                    active=first,
                )
            )
            if self.experiment.metrics:
                self._console.metrics = (*Console.metrics, *self.experiment.metrics)
            self._profiler = exits.enter_context(
                Profiler(self.folder if self.config.profile and first else None, first_step)
            )
            yield

    def settle(self, number_left: int = 0) -> None:
        """Waits until at most `number_left` steps are in flight.

        Raises:
          NonFiniteLoss: the loss of one of them is not finite.
        """
        while len(self._in_flight) > number_left:
            finished, result = self._in_flight.popleft()
            with waiting(f"step {finished} of all processes"):
                loss = self.votes.read(finished, result)
            moved()
            if not math.isfinite(loss):
                raise self._not_finite(f"the loss of step {finished} is {loss}")
            self._report_loss(finished, loss)

    def _report_loss(self, step: int, loss: float) -> None:
        """Gives the loss of a finished step to callbacks and, every log.every_steps, to loggers."""
        self._note_asking(self._callbacks.on_step(step, {"batch_loss": loss}))
        if self.votes.ends(step, self.record.ended_by is not None):
            self._end_after(step + STEPS_IN_FLIGHT)
        if self._point_every and step % self._point_every == 0:
            rate = float(self.experiment.schedule(step - 1)) * self.rate_scale
            self._writers.write_point(step, {"batch_loss": loss, "learning_rate": rate})

    def _note_asking(self, callback: str | None) -> None:
        """Notes which callback was the first to ask for the run's end."""
        self.record.ended_by = self.record.ended_by or callback

    def _end_after(self, step: int) -> None:
        """Ends the run after `step`, unless it ends before."""
        self.record.end_step = min(step, self.record.end_step or step)

    def save(self, state: TrainState, watched: dict[str, float] | None = None) -> None:
        """Saves a checkpoint.

        Args:
          watched: the metric by which the checkpoint may become the best one.

        Raises:
          NonFiniteLoss: a loss or a weight is not finite.
          WriteError: the disk is full, or permission is missing.
        """
        self.settle()
        step = int(state.step)
        # Weights can be non-finite although the loss is finite, and returning to them would be useless.
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.batch_stats))):
            raise self._not_finite(f"the weights after step {step} are NaN or infinite")
        self.clock.pause(step)  # the timing so far belongs to the checkpoint
        self.record.elapsed_seconds = self.clock.elapsed()
        self.checkpoints.save(step, state, dataclasses.asdict(self.record), watched)
        self._saved_step, self._saved_at = step, time.monotonic()

    def saves(self, step: int, due: bool) -> bool:
        """Whether to save after `step`: because it is `due`, or by time. A step is saved only once.

        Raises:
          WriteError: an earlier checkpoint could not be written.
        """
        self.checkpoints.check()
        due = self.votes.saves(step, self._saved_step, self._due_by_clock()) or due
        return due and step > max(self.first_step, self.record.evaluated_step)

    def _due_by_clock(self) -> bool:
        return bool(self._save_seconds) and time.monotonic() - self._saved_at >= self._save_seconds

    def asked_to_stop(self, step: int) -> bool:
        """Whether a signal asked the run to stop after `step`."""
        return bool(self.votes.outcome(step))

    def stop(self, state: TrainState) -> NoReturn:
        """Saves, and raises Interrupted."""
        self.votes.requests.saving = True
        self.save(state)
        self.checkpoints.wait()
        step = int(state.step)
        raise Interrupted(
            f"stopped after step {step} of {self.experiment.total_steps} and saved: the same command continues from "
            "there",
            self.votes.outcome(step),
        )

    def interrupt_timing(self, step: int) -> None:
        """Leaves what follows `step` out of the speed of training, up to the next step."""
        self.settle()
        self.clock.pause(step)

    @contextmanager
    def timing_interrupted(self, step: int) -> Iterator[None]:
        """Leaves what is done here, after `step`, out of the speed and of the time that is left."""
        self.interrupt_timing(step)
        began = time.monotonic()
        yield
        self._console.leave_out(time.monotonic() - began)

    def dispatch(self, train_step: Callable, state: TrainState, step: int) -> TrainState:
        """Starts the step after `step` and returns its state. At most STEPS_IN_FLIGHT losses stay unread."""
        if self._profiler.starts_with(step + 1):
            self.interrupt_timing(step)
            self._profiler.start()
        with self._profiler.step(step + 1):
            self.clock.resume(step)
            with waiting("the next batch", alone=True):
                batch = next(self._batches)
            votes = self.votes.cast(self._due_by_clock(), self.record.ended_by is not None)
            state, result = train_step(state, *batch, self.key, *votes)
            self._in_flight.append((step + 1, result))
            # Wait for the first step: it may compile, and the clock starts after it.
            self.settle(STEPS_IN_FLIGHT if step > self.first_step else 0)
        return state

    def report_step(self, step: int, running: Callable[[], dict[str, float]]) -> None:
        """Shows and times the dispatched `step`; `running` computes the metrics of the epoch so far."""
        if step == self.first_step + 1:
            logger.info("first step: after %.1f s, compilation included", self.clock.session())
            self.clock.restart(step)
        if self._profiler.ends_with(step):
            self.settle()
            self._profiler.stop()
            self.clock.restart(step)  # steps under the profiler are slower
        if step == self.first_step + STEPS_TO_ESTIMATE:
            self.settle()
            rate, steps_left = self.clock.rate(step), self.experiment.total_steps - step
            left = format_seconds(steps_left * self.config.batch_size / rate)
            logger.info("estimate: %s for the %d steps left, at %.0f images/s", left, steps_left, rate)
        if self._console.due(step):
            self._console.update(step, running())

    def report_epoch(self, step: int, row: dict[str, float], rate: float) -> None:
        """Writes and shows an evaluation's metrics; `rate` is the training speed before it, images/s."""
        full = row | {"images_per_second": rate, "seconds": self.clock.elapsed()}
        self._writers.write_row(step, full)
        self._console.epoch(step, row)
        asking = self._callbacks.on_evaluation(step, full)
        self._note_asking(asking)
        if asking is not None and multihost.count() == 1:  # several processes vote at the next steps
            self._end_after(step)

    def go_back(self, error: NonFiniteLoss) -> TrainState:
        """The last checkpoint's state, with a smaller learning rate from there on; the record counts the retry.

        Raises:
          NonFiniteLoss: there are no retries left.
        """
        state, kept = self.checkpoints.restore(None, self.start.template)
        self.record = TrainingRecord.from_checkpoint(kept, self.checkpoints)
        retries = self.config.nonfinite.retries
        if self.record.retries >= retries:
            raise NonFiniteLoss(f"{error}. The run has already returned to a checkpoint {retries} time(s)") from error
        self.record.retries += 1
        step, factor = int(state.step), self.config.nonfinite.factor
        logger.warning(
            "%s. Returning to step %d with %g times the learning rate (%d of %d)",
            error, step, factor, self.record.retries, retries,
        )  # fmt: skip
        scale = state.plateau.scale
        state = state.replace(plateau=state.plateau.replace(scale=scale * np.asarray(factor, scale.dtype)))
        now = time.monotonic()  # the lost time counts, too
        self.record.elapsed_seconds, self.started = self.seconds_before + now - self.started, now
        self.checkpoints.save(step, state, dataclasses.asdict(self.record), self.checkpoints.manifest(step).metrics)
        self.first_step = step
        self._writers.resume(step)
        self.open_batches()
        return state

    def _not_finite(self, what: str) -> NonFiniteLoss:
        kept = self.checkpoints.latest_step()
        where = "no checkpoint was saved" if kept is None else f"the checkpoint of step {kept} is kept"
        return NonFiniteLoss(
            f"{what}; {where}. A smaller schedule.learning_rate, schedule.warmup_epochs, optimizer.clip_norm or "
            "nonfinite.retries may help"
        )
