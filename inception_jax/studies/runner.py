"""Trains the missing runs of a study, each in its own process, several at once on several devices."""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from inception_jax.errors import LostError
from inception_jax.process import TERMINATED, log_to_stderr
from inception_jax.studies.plan import PlannedRun, start, state_of

logger = logging.getLogger(__name__)

POLL_SECONDS = 0.2
TICK_SECONDS = 15.0  # between two calls of `tick`
Tick = Callable[[Sequence[PlannedRun], Mapping[Path, str]], None]
EXIT_SECONDS = 30.0  # to wait for a process that gave no result
PR_SET_PDEATHSIG = 1  # of Linux's prctl
# If a study is killed, Linux kills its runs, so that none continues to write. prctl(PR_SET_PDEATHSIG, SIGKILL)
# stays in force after execv.
END_WITH_PARENT = """
import contextlib, ctypes, os, sys
with contextlib.suppress(OSError, AttributeError):
    ctypes.CDLL(None).prctl(1, 9)
os.execv(sys.argv[1], sys.argv[1:])
"""


def train(
    runs: Sequence[PlannedRun],
    *,
    jobs: int = 1,
    seconds: float | None = None,
    gpus: Sequence[str] = (),
    tick: Tick = lambda running, failures: None,
) -> dict[Path, str]:
    """Trains the runs that are not complete; interrupted runs are resumed.

    Args:
      jobs: number of runs at the same time.
      seconds: time after which current runs are stopped and saved, and no more are started.
      gpus: their numbers or names, assigned to the jobs in turn; (): all jobs see all devices.
      tick: called from time to time, and after each run, with the runs in progress and the failures so far.

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
    running: dict[Path, PlannedRun] = {}
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for job in range(jobs):
        free.put(gpus[job % len(gpus)] if gpus else None)
    stop = threading.Event()

    def train_one(number: int, planned: PlannedRun) -> None:
        if stop.is_set() or (until and time.monotonic() > until):
            return
        gpu = free.get()
        running[planned.folder] = planned
        try:
            logger.info("%d of %d: %s, seed %d", number, len(missing), planned.variation, planned.seed)
            failure = _train_one(planned, gpu, lambda: stop.is_set() or bool(until and time.monotonic() > until))
        finally:
            running.pop(planned.folder)
            free.put(gpu)
        if failure:
            failures[planned.folder] = failure
            logger.warning("%s, seed %d: %s", planned.variation, planned.seed, failure)

    with ThreadPoolExecutor(jobs) as pool:
        pending = {pool.submit(train_one, number, planned) for number, planned in enumerate(missing, 1)}
        try:
            done: set[Any] = set(pending)
            while pending:
                # After a run has ended, the next one starts at once: it is shown, too.
                done, pending = wait(pending, POLL_SECONDS if done else TICK_SECONDS, FIRST_COMPLETED)
                for future in done:
                    future.result()
                tick([*running.copy().values()], failures.copy())
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


def apart(function: Callable[..., Any], *arguments: Any, tick: Callable[[], None]) -> Any:
    """Calls a function in another process, so that nothing that it allocates, such as GPU memory, remains.

    Args:
      function: of a module, which the other process imports.
      arguments: they and the result must be picklable.
      tick: called from time to time.

    Raises:
      LostError: the process died, or the function raised an exception, which was printed.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()  # so that the end of the other process is noticed
    try:
        while not ours.poll(TICK_SECONDS):
            tick()
        return ours.recv()
    except EOFError:
        process.join(EXIT_SECONDS)
        raise LostError(f"{function.__name__} ended with exit code {process.exitcode}, without a result") from None
    finally:
        process.terminate()
        process.join()


def _answer(pipe: Connection, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, too, which ends this process
    with log_to_stderr():
        pipe.send(function(*arguments))
