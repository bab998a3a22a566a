"""Callbacks: user code that is called during training. It observes the run, and may end it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from inception_jax.errors import UserError, described

STOP = "stop"
METHODS = ("on_step", "on_evaluation", "on_end")


class Callback(Protocol):
    """The methods that a callback may have; one of them is enough.

    With several processes, the first one calls them. Their state is not saved with the run.
    """

    def on_step(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Called after every update, in order, as soon as its loss is known, so that no device waits for it.

        By then the devices may be working on the next two steps.

        Args:
          step: the number of updates.
          metrics: `batch_loss`, the training loss of the step's batch.

        Returns:
          "stop" to end the run two steps later, with several processes a few more; else None.
        """

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Called after every evaluation.

        Args:
          metrics: the row of metrics.csv.

        Returns:
          "stop" to end the run at this step, with several processes a few steps later; else None.
        """

    def on_end(self, summary: Mapping[str, Any]) -> None:
        """Called when the run has ended by itself, not when it was interrupted.

        Args:
          summary: the content of summary.json.
        """


class Callbacks:
    """The callbacks of a run.

    Args:
      named: (name, callback).

    Raises:
      UserError: one has none of the methods. By every method: a callback raises, or returns another value than allowed.
    """

    def __init__(self, named: Sequence[tuple[str, Any]]):
        for name, callback in named:
            if not any(callable(getattr(callback, method, None)) for method in METHODS):
                raise UserError(f"callback {name}: it has none of the methods {', '.join(METHODS)}")
        self._named = named

    def on_step(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Returns the name of the first callback that asks to end the run, if there is one."""
        return self._each("on_step", step, metrics)

    def on_evaluation(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Returns the name of the first callback that asks to end the run, if there is one."""
        return self._each("on_evaluation", step, metrics)

    def on_end(self, summary: Mapping[str, Any]) -> None:
        self._each("on_end", summary)

    def _each(self, method: str, *arguments: Any) -> str | None:
        asking = None
        for name, callback in self._named:
            function = getattr(callback, method, None)
            if function is None:
                continue
            try:
                answer = function(*arguments)
            except Exception as error:
                raise UserError(f"callback {name}: {method} {described(error)}") from error
            if not (answer is None or (isinstance(answer, str) and answer == STOP)):
                raise UserError(f"callback {name}: {method} returned {answer!r}; it must return {STOP!r} or None")
            if answer == STOP:
                asking = asking or name
        return asking
