"""Where Orbax's behavior differs from what a run needs. Its private modules are used here alone."""

import asyncio
import contextlib
import functools
import logging
import os
import re
import sys
from collections.abc import Collection, Coroutine
from typing import Any

from orbax.checkpoint.checkpoint_managers import PreservationPolicy

LEAVING_SECONDS = 60.0  # after a read or write has failed: how long to wait for the others to end


class Kept(PreservationPolicy):
    """Which checkpoints are kept: the latest, the best, every so many steps, and given steps.

    As Orbax's LatestN, BestN and EveryNSteps together. But of equally good checkpoints, BestN keeps the last one; this
    keeps the first.
    """

    def __init__(
        self, best_steps, keep_latest: int, keep_best: int, keep_every_steps: int, keep_steps: Collection[int]
    ):
        self._best_steps = best_steps
        self._keep_latest = keep_latest
        self._keep_best = keep_best
        self._keep_every_steps = keep_every_steps
        self._keep_steps = keep_steps

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        del context
        steps = sorted(checkpoint.step for checkpoint in checkpoints)
        kept = {*steps[-self._keep_latest :], *self._best_steps(steps)[: self._keep_best], *self._keep_steps}
        if self._keep_every_steps:
            kept.update(step for step in steps if step % self._keep_every_steps == 0)
        return [checkpoint.step in kept for checkpoint in checkpoints]


def brief(error: BaseException) -> str:
    """The type of an error's original cause and the first line of its message, which may be pages long."""
    while error.__cause__:
        error = error.__cause__
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line[:500]}"


def write_failure(error: Exception) -> str:
    """Why a checkpoint could not be written, in the operating system's words if it was the cause."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))  # in TensorStore's long messages
    return os.strerror(int(code.group(1))) if code else brief(error)


def quieten_orbax() -> None:
    """Hides Orbax's log messages, and waits for its concurrent reads and writes when one of them fails.

    Orbax logs every stage of every save, with the logger that prints the run's own lines; failures are also raised.
    When one of several reads or writes fails, Orbax closes its event loop while the others are running, and each of
    them prints a traceback. The patch of `run_sync` waits for them; it does nothing if Orbax no longer has that
    function.
    """
    logger = logging.getLogger("absl")
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


def _is_ours(record: logging.LogRecord) -> bool:
    return f"{os.sep}orbax{os.sep}checkpoint{os.sep}" not in record.pathname
