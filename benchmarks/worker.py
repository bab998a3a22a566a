"""A side of a benchmark: a separate process that executes requests, one line of JSON at a time.

Uses only the standard library, since the sides may run in environments that share nothing else.
"""

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY_STEPS = 3  # over which the peak is measured


class WorkerError(Exception):
    """A request raised an error in the worker, whose traceback is included, or the worker ended.

    `reason` is the same in one line.
    """

    def __init__(self, reason: str, traceback: str = ""):
        super().__init__(traceback or reason)
        self.reason = reason


class Worker:
    """The client: starts `python script arguments` and keeps it running until the block ends."""

    def __init__(self, python: str, script: Path, environment: dict[str, str], *arguments: str):
        self.started = time.perf_counter()
        self._name = f"{python} {script}"
        self._process = subprocess.Popen(
            [python, str(script), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, method: str, **arguments: Any) -> Any:
        """The return value of the side's method.

        Raises:
          WorkerError: it raised, or the process ended.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin  # both are pipes
        assert stdout
        with contextlib.suppress(BrokenPipeError):
            stdin.write(json.dumps([method, arguments]) + "\n")
            stdin.flush()
        line = stdout.readline()
        if not line:
            raise WorkerError(f"{self._name} ended with code {self._process.wait()}")
        reply = json.loads(line)
        if "error" in reply:
            raise WorkerError(*reply["error"])
        return reply["result"]

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *exception) -> None:
        self._process.communicate()  # closes its input, which ends it


def serve(side: "Side") -> None:
    """The server: calls the side's methods on request until the input ends."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keep output of libraries out of the replies
    for line in sys.stdin:
        method, arguments = json.loads(line)
        try:
            reply = {"result": getattr(side, method)(**arguments)}
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            reply = {"error": [reason, traceback.format_exc()]}
        print(json.dumps(reply), file=replies, flush=True)


class Side:
    """Measurements common to all sides; each library has a subclass.

    A subclass has `describe()`, `make(name, batch, side, mode, ...)`, which runs the first step and returns the number
    of parameters and the value of `memory_before()`, `steps(number)`, which waits for the last one, and
    `matrix_product(side, dtype)`. It uses the device that the library sees: the environment hides the others.
    """

    on_gpu = False
    _step_seconds = 0.0

    def steps(self, number: int) -> None:
        raise NotImplementedError

    def matrix_product(self, side: int, dtype: str) -> Callable[[], Any]:
        """A function that multiplies two square matrices of type "float32" or "bfloat16", and waits.

        The numbers are random: with equal ones a GPU draws less power and is faster.
        """
        raise NotImplementedError

    def matrix_flops(self, dtype: str) -> float:
        """The highest measured number of floating-point operations per second of a large matrix product."""
        side = 8192 if self.on_gpu else 3072
        multiply = self.matrix_product(side, dtype)
        multiply()
        return 2 * side**3 / min(seconds(multiply) for _ in range(8))

    def memory_before(self) -> int | None:
        """Bytes that the process occupies before creating a network; 0 on a GPU, whose own memory is measured."""
        return 0 if self.on_gpu else resident_bytes("VmRSS")

    def warm_up(self) -> dict[str, Any]:
        """Runs steps to estimate their duration; returns information on how they are run."""
        self.steps(2)
        self._step_seconds = seconds(lambda: self.steps(2)) / 2
        return {}

    def measure(self, duration: float) -> list[float]:
        """[steps, seconds] of about `duration` seconds of steps, at least two, after as many that do not count.

        While another side was running, a virtual machine may have taken this one's free memory: the first steps, which
        get it back, can take twice as long.
        """
        number = max(2, round(duration / self._step_seconds))
        self.steps(number)
        elapsed = seconds(lambda: self.steps(number))
        self._step_seconds = elapsed / number
        return [number, elapsed]

    def peak_memory(self) -> int | None:
        """Peak memory of the process during some steps, in bytes; None if Linux does not report it.

        Memory that compilation left in the allocator is freed before.
        """
        reset = Path("/proc/self/clear_refs")
        if not reset.exists():
            return None
        gc.collect()
        with contextlib.suppress(AttributeError):  # glibc only
            ctypes.CDLL(None).malloc_trim(0)
        reset.write_text("5")  # resets VmHWM
        self.steps(MEMORY_STEPS)
        return resident_bytes("VmHWM")


def seconds(call: Callable[[], Any]) -> float:
    """The duration of a call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def resident_bytes(field: str) -> int | None:
    """A field of this process's status, in bytes; None if it is missing."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
