"""How long a run has taken, and the speed of its steps."""

import time

from inception_jax.train.record import TrainingRecord


class Clock:
    """The run's duration in seconds, over all its sessions, and the speed of its training steps.

    Args:
      record: to which the timed seconds and images are added.
      batch_size: examples per step.
      started: `time.monotonic()` at the start of this session.
    """

    def __init__(self, record: TrainingRecord, batch_size: int, started: float):
        self._record = record
        self._batch_size = batch_size
        self._before = record.elapsed_seconds
        self._started = started
        self._mark: tuple[float, int] | None = None  # time and step at which the current timing began

    def elapsed(self) -> float:
        """Seconds over all sessions."""
        return self._before + self.session()

    def session(self) -> float:
        """Seconds of this session."""
        return time.monotonic() - self._started

    def resume(self, step: int) -> None:
        """Begins timing after `step`, unless it is under way."""
        if self._mark is None:
            self.restart(step)

    def restart(self, step: int) -> None:
        """Begins timing after `step`, and drops the timing under way."""
        self._mark = (time.monotonic(), step)

    def rate(self, step: int) -> float:
        """Images per second since the clock was resumed; 0 before the first timed step."""
        if self._mark is None or step == self._mark[1]:
            return 0.0
        return (step - self._mark[1]) * self._batch_size / (time.monotonic() - self._mark[0])

    def pause(self, step: int) -> float:
        """Adds the timing so far to the record, and returns the rate."""
        rate = self.rate(step)
        if self._mark is not None:
            self._record.training_seconds += time.monotonic() - self._mark[0]
            self._record.training_images += (step - self._mark[1]) * self._batch_size
        self._mark = None
        return rate
