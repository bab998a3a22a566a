"""A trace of some of a run's steps, for TensorBoard's profiler and for Perfetto."""

import contextlib
import logging
from contextlib import AbstractContextManager
from pathlib import Path

import jax

logger = logging.getLogger(__name__)

# The traced steps of a session. The first ones compile and allocate; five show the repeating pattern, and their trace
# takes only a few megabytes.
FIRST_STEP = 6
LAST_STEP = 10


class Profiler:
    """Traces the steps FIRST_STEP to LAST_STEP of a session into `<folder>/profile`; does nothing if folder is None.

    TensorBoard's profiler opens that folder and shows single steps; Perfetto opens the `perfetto_trace.json.gz` in it.
    As a context manager it also ends the trace if the run ends early, for whatever reason.
    """

    def __init__(self, folder: Path | None, first_step: int = 0):
        self._folder = folder and folder / "profile"
        self._first_step = first_step  # where this session starts
        self._traced: list[int] = []
        self._running = False

    def starts_with(self, step: int) -> bool:
        """Whether the trace begins with update `step`, counted from 1."""
        return self._folder is not None and step - self._first_step == FIRST_STEP

    def ends_with(self, step: int) -> bool:
        """Whether update `step` is the last of the trace."""
        return self._running and step - self._first_step >= LAST_STEP

    def start(self) -> None:
        """Begins the trace. The caller must have waited for the devices, so that it contains nothing older."""
        jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
        self._running = True

    def step(self, step: int) -> AbstractContextManager:
        """Marks the operations of update `step`, which TensorBoard uses to divide the trace."""
        if not self._running:
            return contextlib.nullcontext()
        self._traced.append(step)
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def stop(self) -> None:
        """Writes the trace, if one is running, and logs how to view it. The caller must have waited for the devices."""
        if not self._running:
            return
        self._running = False
        jax.profiler.stop_trace()
        logger.info(
            "profile: steps %d to %d in %s. Open it with tensorboard --logdir %s (pip install tensorboard xprof), "
            "or the perfetto_trace.json.gz below it at https://ui.perfetto.dev",
            self._traced[0],
            self._traced[-1],
            self._folder,
            self._folder,
        )

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *exception) -> None:
        self.stop()
        if self._folder and not self._traced:
            logger.warning("profile: nothing was traced, since tracing starts with step %d of a session", FIRST_STEP)
