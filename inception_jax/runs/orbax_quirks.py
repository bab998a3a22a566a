"""What Orbax does otherwise than a run needs, and how it is brought to it."""

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

LEAVING_SECONDS = 60.0  # how long reads and writes that go on when one of them has failed are waited for


class Kept(PreservationPolicy):
    """Orbax's LatestN, BestN and EveryNSteps together, save that BestN prefers the last of equals; and some steps."""

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
    """The first line of the message, which may run to pages, of an error or of what it came from."""
    while error.__cause__:
        error = error.__cause__
    line = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {line[:500]}"


def write_failure(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    code = re.search(r"os_error_code='(\d+)'", str(error))  # in TensorStore's long messages
    return os.strerror(int(code.group(1))) if code else brief(error)


def quieten_orbax() -> None:
    """Orbax logs every stage of every save, through the logger of our own lines. What fails, it also raises.

    And where one of many reads or writes fails, it forgets the others: each then ends in a traceback of its own, on
    standard error, as its event loop is closed. They are waited for, if this version of Orbax runs them as we know.
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
