"""Trains the missing runs of a study, each in its own process, several at once on several devices."""

import contextlib
import logging
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from inception_jax.process import TERMINATED
from inception_jax.studies.plan import PlannedRun, start, state_of

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
# If a study is killed, Linux kills its runs, so that none goes on writing. prctl(PR_SET_PDEATHSIG, SIGKILL) stays in
# force after execv.
END_WITH_PARENT = """
import contextlib, ctypes, os, sys
with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])
"""


def train(
    runs: Sequence[PlannedRun], *, jobs: int = 1, seconds: float | None = None, gpus: Sequence[str] = ()
) -> dict[Path, str]:
    """Trains the runs that are not complete; interrupted runs are resumed.

    Args:
      jobs: number of runs at the same time.
      seconds: time after which current runs are stopped and saved, and no more are started.
      gpus: their numbers or names, assigned to the jobs in turn; (): all jobs see all devices.

    Returns:
      Failures, by the run's folder: the exit code and the last line that was printed.

    Raises:
      UserError: a folder holds a run with another config.
    """
    for planned in runs:
        start(planned)
    missing = [planned for planned in runs if state_of(planned) != "complete"]
    until = None if seconds is None else time.monotonic() + seconds
    failures: dict[Path, str] = {}
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for job in range(jobs):
        free.put(gpus[job % len(gpus)] if gpus else None)
    stop = threading.Event()

    def train_one(number: int, planned: PlannedRun) -> None:
        if stop.is_set() or (until and time.monotonic() > until):
            return
        gpu = free.get()
        try:
            logger.info("%d of %d: %s, seed %d", number, len(missing), planned.variation, planned.seed)
            failure = _train_one(planned, gpu, lambda: stop.is_set() or bool(until and time.monotonic() > until))
        finally:
            free.put(gpu)
        if failure:
            failures[planned.folder] = failure
            logger.warning("%s, seed %d: %s", planned.variation, planned.seed, failure)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(train_one, number, planned) for number, planned in enumerate(missing, 1)]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stop.set()  # the runs save their state
            raise
    return failures


def _train_one(planned: PlannedRun, gpu: str | None, ends: Callable[[], bool]) -> str:
    """Trains until the run is done, fails, or has to stop; returns the failure, or ""."""
    log = planned.folder.with_suffix(".log")
    with log.open("w") as output, _started(planned.command(), output, gpu) as process:
        asked = False
        while process.poll() is None:
            if ends() and not asked:
                process.send_signal(signal.SIGTERM)
                asked = True
            time.sleep(POLL_SECONDS)
    if process.returncode in (0, TERMINATED):
        return ""
    lines = log.read_text(errors="replace").strip().splitlines()
    return f"exit code {process.returncode}: {lines[-1] if lines else 'nothing was printed'}"


@contextlib.contextmanager
def _started(command: list[str], output, gpu: str | None = None) -> Iterator[subprocess.Popen]:
    environment = os.environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu is not None else {})
    # In a new session, so that Ctrl-C only reaches this program, which asks the runs to save.
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", END_WITH_PARENT, *command],
        stdout=output, stderr=output, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    except BaseException:
        process.terminate()
        raise
    finally:
        process.wait()


def measure(planned: PlannedRun, seconds: float = 900.0) -> tuple[float, Path]:
    """Starts a run in a temporary folder and stops it after its first measured steps.

    Returns:
      The seconds until the first step was done, and the folder, which the caller must delete.
    """
    folder = Path(tempfile.mkdtemp(prefix="inception_jax-measure-"), "run")
    log = folder.with_suffix(".log")
    started, first = time.monotonic(), 0.0
    try:
        with log.open("w") as output, _started(planned.command(folder), output) as process:
            while process.poll() is None and time.monotonic() - started < seconds:
                text = log.read_text(errors="replace")
                if not first and "first step: after" in text:
                    first = time.monotonic() - started
                if "estimate: " in text:
                    break
                time.sleep(POLL_SECONDS)
            process.terminate()
    except BaseException:
        shutil.rmtree(folder.parent)
        raise
    return first, folder
