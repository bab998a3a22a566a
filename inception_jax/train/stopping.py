"""Why training ends early: signals, the votes of several processes on them, and non-finite losses."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from inception_jax.distributed import multihost, sharding
from inception_jax.errors import UserError

STEPS_IN_FLIGHT = 2  # how far the host may run ahead of the devices
END = 256  # a vote to end the run, besides the numbers of signals, which are smaller
SECONDS_OF_PRESSING = 1.0  # a second Ctrl-C within this time counts as the same one


class Interrupted(Exception):  # noqa: N818 (nothing went wrong)
    """The run was asked to stop and has saved its state; the message says how to continue.

    Attributes:
      signal: the signal received, signal.SIGINT or signal.SIGTERM.
    """

    _render_traceback_ = UserError._render_traceback_  # a notebook shows one line

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


class StoppedAtOnce(KeyboardInterrupt):
    """A second Ctrl-C came before the state was saved; the message names the available checkpoint."""


class NonFiniteLoss(Exception):  # noqa: N818
    """The loss or a weight became NaN or infinite; the last checkpoint is from an earlier step."""

    _render_traceback_ = UserError._render_traceback_


class EvaluationStopped(Exception):  # noqa: N818
    """A stop was requested during the evaluation of a split."""


class StopRequests:
    """Signals that ask the run to stop. Calling the object returns the received one, or 0.

    Attributes:
      step: the last step that training has reached; None before the first one.
      saving: whether the run is saving because it was asked to stop, which another Ctrl-C does not interrupt.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.saving = False
        self._received: list[int] = []
        self._pressed = 0.0  # time of the first Ctrl-C

    def __call__(self) -> int:
        return max(self._received, default=0)

    def note(self, number: int, frame: Any) -> None:
        """Handles a signal; raises KeyboardInterrupt if Ctrl-C should end the run immediately."""
        first = number not in self._received
        self._received.append(number)
        if number != signal.SIGINT:
            return
        if first:
            self._pressed = time.monotonic()
        elif time.monotonic() - self._pressed < SECONDS_OF_PRESSING:
            return
        elif self.saving:
            self.saving = False
            with suppress(OSError):
                os.write(2, b"the run is being saved; one more Ctrl-C ends it without that\n")
        else:
            raise KeyboardInterrupt


@contextmanager
def stop_requests(folder: Path) -> Iterator[StopRequests]:
    """Records SIGINT and SIGTERM, which are handled between two steps; a later SIGINT ends the run immediately.

    Raises:
      StoppedAtOnce: a later SIGINT came, and the last steps are not saved.
      Interrupted: it came after everything had been saved.
    """
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():  # Python allows signal handlers only there
        yield requests
        return
    before = {number: signal.signal(number, requests.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    except KeyboardInterrupt:
        raise _stopped_at_once(folder, requests) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped_at_once(folder: Path, requests: StopRequests) -> BaseException:
    # A save in progress has finished by now, so the folder shows the available checkpoints.
    paths = (folder / "checkpoints").glob("*")
    saved = max((int(path.name) for path in paths if path.name.isdecimal()), default=None)
    if saved is not None and saved == requests.step:
        return Interrupted(
            f"stopped at once after step {saved}, which is saved: the same command continues from there",
            requests() or signal.SIGINT,
        )
    when = "before the first step" if requests.step is None else f"after step {requests.step}"
    kept = f"the checkpoint of step {saved} is kept, and the same command continues from there"
    return StoppedAtOnce(
        f"stopped at once {when}, without saving: {kept if saved is not None else 'there is no checkpoint yet'}"
    )


class Votes:
    """Requests to stop, to save or to end the run, on which processes must agree, since each step needs all of them.

    Every process passes its own request to each step, which returns the maximum over all. How many steps' results a
    process has seen depends on its devices, so a vote takes effect a fixed number of steps later, when every process
    knows it. A single process needs none of this and reacts at once. The first process's clock decides when to save.
    """

    def __init__(self, mesh: Mesh, requests: StopRequests):
        self._mesh = mesh
        self.requests = requests
        self._several = multihost.count() > 1
        # By the step that returned them: twice the signal, plus 1 to save, plus END to end the run.
        self._outcomes: dict[int, int] = {}

    def counted(self, train_step: Callable) -> Callable:
        """The step, extended by the arguments from `cast` and a second result for `read`."""
        if not self._several:
            return train_step

        def step_with_votes(state, images, labels, key, requests):
            state, loss = train_step(state, images, labels, key)
            return state, (loss, requests.max())

        return step_with_votes

    def cast(self, save: bool = False, end: bool = False) -> tuple[jax.Array, ...]:
        """The additional arguments of the step.

        Args:
          save: a checkpoint is due by this process's clock.
          end: a callback of this process has asked to end the run.
        """
        if not self._several:
            return ()
        request = 2 * self.requests() + (END * end + save if multihost.is_first() else 0)
        own = np.full(len(self._mesh.local_devices), request, np.int32)
        return (sharding.split_batch(own, self._mesh),)

    def read(self, step: int, result: Any) -> float:
        """The loss of a step."""
        if not self._several:
            return float(result)
        loss, outcome = result
        if int(outcome):
            self._outcomes[step] = int(outcome)
        return float(loss)

    def outcome(self, step: int) -> int:
        """The signal that asks the run to stop after `step`, the last completed one; 0 if there is none."""
        self.requests.step = step
        if not self._several:
            return self.requests()
        known = (request for at, request in self._outcomes.items() if at <= step - STEPS_IN_FLIGHT)
        return max((request % END // 2 for request in known), default=0)

    def ends(self, step: int, asked: bool) -> bool:
        """Whether the run is to end, by what is known when the result of `step` has been read.

        Args:
          asked: whether a callback of this process has asked for it.
        """
        return self._outcomes.get(step, 0) >= END if self._several else asked

    def saves(self, step: int, saved_step: int, due: bool) -> bool:
        """Whether to save a checkpoint after `step`, given that `saved_step` was saved last.

        Args:
          due: whether one is due by this process's clock.
        """
        if not self._several:
            return due
        return any(request % 2 and saved_step < at <= step - STEPS_IN_FLIGHT for at, request in self._outcomes.items())
