"""Threads that detect what a waiting main thread cannot: a signal, the death of another process, a lack of progress.

They end the process immediately, without clean-up, which would wait for the others.
"""

import contextlib
import ctypes
import faulthandler
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from inception_jax.process import INTERRUPTED, LOST, NOT_SAVED, TERMINATED
from inception_jax.text import printable

BEAT_SECONDS = 2  # between two heartbeats
SILENT_SECONDS = 20  # after which a process counts as dead
# How long a process that was asked to stop may wait for the others: before the first step, when there is nothing to
# save, and later, when the others may be in a long step, after which all save together.
STARTING_SECONDS, STOP_SECONDS = 3.0, 60.0
ALIVE, FAILED = "inception_jax/alive/", "inception_jax/failed/"  # keys in the store of JAX's coordinator


class _MainThread:
    """The main thread's activity, as seen by the watching threads."""

    moves = 0  # a counter
    several = False  # whether there are other processes to wait for
    wait: tuple[str, float, float | None] | None = None  # for what, since when, for how long once asked to stop


_main = _MainThread()


def moved() -> None:
    """Records progress: a step is done, or a batch is evaluated."""
    _main.moves += 1


@contextlib.contextmanager
def waiting(what: str, seconds: float | None = None, *, alone: bool = False) -> Iterator[None]:
    """While the main thread waits for the other processes, a request to stop ends this process, and so all of them.

    Args:
      what: what has not happened yet, as in "waited for ...".
      seconds: how long it continues to wait after a request to stop; by default STARTING_SECONDS before the first step,
        and STOP_SECONDS later.
      alone: whether this also applies if there are no other processes.
    """
    if not (alone or _main.several):
        yield
        return
    outer = _main.wait
    _main.wait = outer or (what, time.monotonic(), seconds)
    try:
        yield
    finally:
        _main.wait = outer


@contextlib.contextmanager
def progress(minutes: float) -> Iterator[None]:
    """Ends the process, with the stacks of all its threads, after so many minutes without progress; 0: never.

    The time before the first step does not count, nor does time during which the whole process was suspended.
    """
    if not minutes:
        yield
        return
    done = threading.Event()

    def run() -> None:
        beat = min(BEAT_SECONDS, 10 * minutes)
        seen, idle, last = _main.moves, 0.0, time.monotonic()
        first = seen
        while not done.wait(beat):
            now = time.monotonic()
            idle, last = idle + min(now - last, 3 * beat), now
            if seen != _main.moves or seen == first:
                seen, idle = _main.moves, 0.0
            elif idle > 60 * minutes:
                faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
                awaited = _main.wait
                where = f" while waiting for {awaited[0]}" if awaited else ""
                _end(
                    f"error: no step completed and no batch evaluated for {minutes:g} minutes{where}; the stacks of "
                    "all threads are above. The last checkpoint is kept: start again to continue; "
                    "log.watchdog_minutes=0 waits forever",
                    LOST,
                    # Let the others print their stacks first: they hang as well, and process 0's end ends them.
                    wait=3 * BEAT_SECONDS if _main.several else 0,
                )

    thread = threading.Thread(target=run, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()


class Signals:
    """Handles SIGTERM and SIGINT while the main thread waits for other processes in non-Python code.

    Python's own handlers run in the main thread, once it returns; if it does so in time, only they act.

    Args:
      several: whether there are other processes.
    """

    def __init__(self, several: bool) -> None:
        _main.several = several
        self.peers: Peers | None = None  # to be notified
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._before: int | None = None
        with contextlib.suppress(ValueError):  # not in the main thread, the only one that gets signals
            self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="signals", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leaves signals to Python's own handlers."""
        self._stopping.set()
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
        os.write(self._write, b"\0")  # wakes the thread
        self._thread.join()
        _main.several = False
        os.close(self._read)
        os.close(self._write)

    def _run(self) -> None:
        asked: tuple[int, float] | None = None
        while not self._stopping.is_set():
            if select.select([self._read], [], [], 0.3 if asked else None)[0]:
                for number in os.read(self._read, 64):
                    if number in (signal.SIGTERM, signal.SIGINT):
                        asked = asked or (number, time.monotonic())
            wait = _main.wait
            if asked is None or wait is None:
                continue
            what, since, seconds = wait
            limit = (seconds or STOP_SECONDS) if _main.moves else STARTING_SECONDS
            waited = time.monotonic() - max(asked[1], since)
            if waited > limit:
                self._stop(asked[0], f"waiting for {what} for {waited:.0f} s")

    def _stop(self, number: int, how: str) -> NoReturn:
        code, name = (TERMINATED, "SIGTERM") if number == signal.SIGTERM else (INTERRUPTED, "Ctrl-C")
        if _main.moves and number == signal.SIGINT:
            code = NOT_SAVED
        kept = "the last checkpoint is kept" if _main.moves else "training had not started, there was nothing to save"
        if self.peers:
            self.peers.tell(f"stopped by {name}", code)
        _end(f"stopped by {name} after {how}; {kept}", code)


class Peers:
    """Sends heartbeats, and ends this process when another one stops sending them or reports that it ends.

    They go through the store of JAX's coordinator, which works wherever the processes reach each other. JAX's own
    monitoring ends a process by SIGABRT without naming the missing one, so it has the longer time limit.

    Args:
      client: of JAX's coordinator.
    """

    def __init__(self, client: Any, me: int, count: int) -> None:
        self._client = client
        self._me, self._count = me, count
        self.hosts = {me: socket.gethostname()}
        self._stopping = threading.Event()
        self._leaving: int | None = None  # the exit code
        # Called from JAX's threads: Python's own handlers, which run in the main thread, would never be called.
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        ctypes.CDLL(None).signal(signal.SIGABRT, self._on_abort)
        self._thread = threading.Thread(target=self._run, name="peers", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """From now on the others may leave."""
        self._stopping.set()
        self._thread.join()

    def leave(self, exit_code: int) -> None:
        """From now on this process ends by itself with that code, whatever happens to the others."""
        self._leaving = exit_code

    def tell(self, message: str, exit_code: int) -> None:
        """Tells the others that this process ends, and how, before the store ends with process 0."""
        self.leave(exit_code)
        told = threading.Thread(target=self._tell, args=(message, exit_code), daemon=True)
        told.start()
        told.join(3 * BEAT_SECONDS)  # the store may be gone
        if self._me == 0:
            time.sleep(3 * BEAT_SECONDS)

    def _tell(self, message: str, exit_code: int) -> None:
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{FAILED}{self._me}", f"{self.hosts[self._me]}|{exit_code}|{message}")

    def _run(self) -> None:
        counts: dict[int, str] = {}
        heard = dict.fromkeys(range(self._count), time.monotonic())
        beat = 0
        while not self._stopping.wait(BEAT_SECONDS):
            beat += 1
            try:
                self._client.key_value_set(f"{ALIVE}{self._me}", f"{self.hosts[self._me]}|{beat}", allow_overwrite=True)
                alive = self._client.key_value_dir_get(ALIVE)
                failed = self._client.key_value_dir_get(FAILED)
            except Exception:  # an unreachable coordinator is left to JAX to detect
                continue
            now = time.monotonic()
            for key, value in alive:
                process = int(key.rpartition("/")[2])
                self.hosts[process], _, count = value.rpartition("|")
                if counts.get(process) != count:
                    counts[process], heard[process] = count, now
            if self._leaving is not None:
                continue
            for key, value in failed:
                process, (host, code, message) = int(key.rpartition("/")[2]), value.split("|", 2)
                # Use the same code, which tells a launcher whether to restart, except for an unknown error.
                self._end(f"process {process} on {host} ended: {message}", LOST if code == "1" else int(code))
            for process, last in heard.items():
                if process != self._me and now - last > SILENT_SECONDS:
                    self._end(f"no heartbeat from {self._name(process)} for {SILENT_SECONDS} s: it has died", LOST)

    def _name(self, process: int) -> str:
        return f"process {process}" + (f" on {self.hosts[process]}" if process in self.hosts else "")

    def _aborted(self, number: int) -> None:
        if self._leaving is not None:
            os._exit(self._leaving)
        coordinator = "" if self._me == 0 else f"; most likely {self._name(0)}, which coordinates the others, has died"
        self._end(f"JAX's distributed runtime failed{coordinator}", LOST)

    def _end(self, what: str, code: int) -> NoReturn:
        again = ". Start all processes again to continue" if code in (LOST, NOT_SAVED, TERMINATED, INTERRUPTED) else ""
        _end(f"error: process {self._me} of {self._count} ends: {what}{again}", code)


def _end(line: str, code: int, *, wait: float = 0) -> NoReturn:
    """Exits `wait` seconds after writing the line, without clean-up, which would wait for the others."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os.write(2, f"{printable(line)}\n".encode(errors="backslashreplace"))
    time.sleep(wait)
    os._exit(code)
