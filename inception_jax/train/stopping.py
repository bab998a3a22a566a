"""Why training ends early: signals, the votes of several processes on them, and losses that are not finite."""

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

STEPS_IN_FLIGHT = 2  # how far the host may run ahead of the devices
SECONDS_OF_PRESSING = 1.0  # many people press Ctrl-C twice and mean it once


class Interrupted(Exception):  # noqa: N818 (nothing went wrong)
    """The run was asked to stop and has saved its state; the message says how to continue.

    Attributes:
      signal: that asked for it, signal.SIGINT or signal.SIGTERM.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


class StoppedAtOnce(KeyboardInterrupt):
    """A second Ctrl-C came before the state was saved; the message says which checkpoint there is."""


class NonFiniteLoss(Exception):  # noqa: N818
    """The loss or a weight became NaN or infinite; the last checkpoint is from an earlier step."""


class EvaluationStopped(Exception):  # noqa: N818
    """A request to stop came during the evaluation of a split."""


class StopRequests:
    """Signals that ask the run to stop. Calling the object returns the one that came, or 0.

    Attributes:
      step: the last step that training has reached; None before the first one.
      saving: whether the run is saving because it was asked to stop: one more Ctrl-C does not end that.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.saving = False
        self._received: list[int] = []
        self._pressed = 0.0  # when Ctrl-C came first

    def __call__(self) -> int:
        return max(self._received, default=0)

    def note(self, number: int, frame: Any) -> None:
        """Handles a signal; raises KeyboardInterrupt if Ctrl-C is to end the run at once."""
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
    """Notes SIGINT and SIGTERM, which are answered between two steps; a later SIGINT ends the run at once.

    Raises:
      StoppedAtOnce: a later SIGINT came, and the last steps are not saved.
      Interrupted: it came after everything had been saved.
    """
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers only there
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
    # What was being saved was finished on the way here, so the folder shows what is there.
    paths = (folder / "checkpoints").glob("*")
    saved = max((int(path.name) for path in paths if path.name.isdecimal()), default=None)
    if saved is not None and saved == requests.step:
        return Interrupted(
            f"stopped at once after step {saved}, which is saved: the same command goes on from there",
            requests() or signal.SIGINT,
        )
    when = "before the first step" if requests.step is None else f"after step {requests.step}"
    kept = f"the checkpoint of step {saved} is kept, and the same command goes on from there"
    return StoppedAtOnce(
        f"stopped at once {when}, without saving: {kept if saved is not None else 'there is no checkpoint yet'}"
    )


class Votes:
    """Requests to stop or to save, on which several processes have to agree, since each step needs all of them.

    Every process hands its own request to each step, which returns the largest of all. How many steps a process has
    seen the results of depends on its devices, so a vote counts a fixed number of steps later, when every process
    knows it. A single process needs none of this and answers at once. The first process's clock decides when to save.
    """

    def __init__(self, mesh: Mesh, requests: StopRequests):
        self._mesh = mesh
        self.requests = requests
        self._several = multihost.count() > 1
        self._outcomes: dict[int, int] = {}  # by the step that returned them: twice the signal, plus 1 to save

    def counted(self, train_step: Callable) -> Callable:
        """The step, which takes what `cast` gives and whose second result `read` understands."""
        if not self._several:
            return train_step

        def step_with_votes(state, images, labels, key, requests):
            state, loss = train_step(state, images, labels, key)
            return state, (loss, requests.max())

        return step_with_votes

    def cast(self, save: bool = False) -> tuple[jax.Array, ...]:
        """What the step takes besides its other arguments; `save`: a checkpoint is due by this process's clock."""
        if not self._several:
            return ()
        request = 2 * self.requests() + (save and multihost.is_first())
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
        """The signal that asks the run to stop after `step`, the last one done; 0 if there is none."""
        self.requests.step = step
        if not self._several:
            return self.requests()
        return max((request // 2 for at, request in self._outcomes.items() if at <= step - STEPS_IN_FLIGHT), default=0)

    def saves(self, step: int, saved_step: int, due: bool) -> bool:
        """Whether to save a checkpoint after `step`, the last one saved being that of `saved_step`.

        Args:
          due: it is by this process's clock.
        """
        if not self._several:
            return due
        return any(request % 2 and saved_step < at <= step - STEPS_IN_FLIGHT for at, request in self._outcomes.items())
