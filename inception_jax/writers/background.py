"""A writer in a thread of its own, so that a slow or failing service does not hold up training."""

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax.writers.protocol import RunWriter

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 20.0  # that the end of a run waits for the service; whoever sends SIGTERM often allows 30


class Background(RunWriter):
    """Passes every call on to a writer in another thread, in the same order, and returns at once.

    When a call fails, a warning says so, and nothing more is passed on.

    Args:
      name: for the warning.
      make: creates the writer; called in the thread.
    """

    def __init__(self, name: str, make: Callable[[], RunWriter]):
        self._name = name
        self._calls: queue.SimpleQueue[tuple[str, tuple[Any, ...]]] = queue.SimpleQueue()
        # A daemon: a service that does not answer does not keep the process alive.
        self._thread = threading.Thread(target=self._work, args=(make,), name=name, daemon=True)
        self._thread.start()

    def _work(self, make: Callable[[], RunWriter]) -> None:
        method = "start"
        try:
            writer = make()
            while method != "close":
                method, arguments = self._calls.get()
                getattr(writer, method)(*arguments)
        except Exception as error:
            logger.warning(
                "%s: %s failed (%s: %s); training goes on without it. The same command adds the missing rows later",
                self._name, method, type(error).__name__, " ".join(str(error).split()),
            )  # fmt: skip

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        self._calls.put(("write_scalars", (step, dict(scalars))))

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        self._calls.put(("write_texts", (step, texts)))

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self._calls.put(("write_images", (step, images)))

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._calls.put(("write_hparams", (hparams,)))

    def write_file(self, path: Path) -> None:
        self._calls.put(("write_file", (path,)))

    def resume(self, step: int, rows: Sequence[Mapping[str, float]]) -> None:
        self._calls.put(("resume", (step, rows)))

    def flush(self) -> None:
        self._calls.put(("flush", ()))

    def close(self) -> None:
        """Waits until everything has been written, at most for CLOSE_SECONDS."""
        self._calls.put(("close", ()))
        end = time.monotonic() + CLOSE_SECONDS
        while self._thread.is_alive() and time.monotonic() < end:
            self._thread.join(0.5)  # a longer wait would be deaf to Ctrl-C on some systems
        if self._thread.is_alive():
            logger.warning("%s did not take everything within %.0f s", self._name, CLOSE_SECONDS)
