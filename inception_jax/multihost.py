"""Several processes that train one network, on one machine or on many, over JAX's distributed runtime.

All of them run the same program with the same config. Each reads its share of every batch; the first alone writes logs
and metrics. A process that ends before its time ends the others, which say which one it was.
"""

import contextlib
import ctypes
import dataclasses
import itertools
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, NoReturn

from inception_jax.errors import UserError
from inception_jax.process import LOST

ENVIRONMENT = "INCEPTION_JAX_"  # with COORDINATOR, NUM_PROCESSES, PROCESS_ID: what the flags of those names say
JOIN_SECONDS = 300  # that the processes wait for each other at the start
BEAT_SECONDS = 2  # between two signs of life
SILENT_SECONDS = 20  # after which a process counts as dead
RUNTIME_SILENT_SECONDS = 50  # JAX's own limit: later than ours, since it ends a process without naming the other
WAIT_SECONDS = 24 * 3600  # that they wait for each other later; one that has died is noticed before
PORTS = range(61440, 65536)  # of the coordinator where none is given; JAX's own choice under Slurm
LEAVE_SECONDS = 30  # that a process waits at the end for the others
ALIVE, FAILED = "inception_jax/alive/", "inception_jax/failed/"  # keys in the store of JAX's coordinator


@dataclasses.dataclass(frozen=True)
class Group:
    """Which process this is, of how many; what is None, JAX finds out from Slurm or Open MPI.

    Attributes:
      coordinator: "host:port" of the first process, at which the others meet it.
    """

    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self) -> None:
        given = (self.coordinator, self.num_processes, self.process_id)
        if any(value is not None for value in given) and None in given:
            raise UserError("--coordinator, --num_processes and --process_id go together: give all three, or none")
        if self.coordinator is None or self.num_processes is None or self.process_id is None:
            return
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(f"--coordinator={self.coordinator} is no HOST:PORT, e.g. 10.0.0.1:12345")
        if not 0 <= self.process_id < self.num_processes:
            raise UserError(
                f"--process_id={self.process_id} is not allowed: with --num_processes={self.num_processes} it is from "
                f"0 to {self.num_processes - 1}"
            )


@contextlib.contextmanager
def joined(group: Group | None) -> Iterator[None]:
    """Joins the other processes, and leaves them in order; None: there are none.

    While it lasts, this process ends with exit code LOST and a line that names the other one if another dies, ends with
    an error, or is not heard of for SILENT_SECONDS. An error here is told to the others.

    Raises:
      UserError: the others cannot be found.
    """
    if group is None:
        yield
        return
    import jax

    # Its handler of SIGTERM would take the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    explicit: dict[str, Any] = {}
    if group.coordinator:
        port = group.coordinator.rpartition(":")[2]
        host = "127.0.0.1" if group.coordinator.startswith(("127.0.0.1:", "localhost:")) else "[::]"
        explicit = {
            "coordinator_address": group.coordinator,
            "num_processes": group.num_processes,
            "process_id": group.process_id,
            "coordinator_bind_address": f"{host}:{port}",
            "cluster_detection_method": "deactivate",
        }
    else:
        explicit = _of_open_mpi_5()
    try:
        jax.distributed.initialize(
            **explicit,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=RUNTIME_SILENT_SECONDS,
            shutdown_timeout_seconds=LEAVE_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        hint = "" if explicit else ": give --coordinator, --num_processes and --process_id"
        raise UserError(f"the processes of the run did not find each other{hint} ({_first_line(error)})") from error
    watch = _Watch()
    try:
        yield
        # Who has left gives no more signs of life, and another one may still be at work for long, on the report.
        wait_for_all("done")
    except BaseException as error:
        watch.fail(error)
        raise
    watch.stop()
    jax.distributed.shutdown()


def _of_open_mpi_5() -> dict[str, Any]:
    """What Open MPI 5 says of this process, which JAX asks for by mpi4py alone; nothing where it has not started it.

    As JAX has it for earlier versions: the coordinator is where mpirun was started, each process has one GPU.
    """
    launcher = re.fullmatch(r"prte(?:run)?-(.+)-(\d+)@\d+", os.environ.get("PMIX_NAMESPACE", ""))
    if not launcher or "OMPI_COMM_WORLD_RANK" not in os.environ:
        return {}
    size, rank, local_size, local_rank = (
        int(os.environ[f"OMPI_COMM_WORLD_{name}"]) for name in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK")
    )
    host = "127.0.0.1" if size == local_size else launcher[1]
    port = PORTS[0] + int(launcher[2]) % len(PORTS)  # by the launcher's number: two jobs on a host have two
    return {
        "coordinator_address": f"{host}:{port}",
        "num_processes": size,
        "process_id": rank,
        "local_device_ids": [local_rank],
        "cluster_detection_method": "deactivate",
    }


def end_after_failure(exit_code: int) -> None:
    """Ends the process if it left the others with an error: JAX's clean-up at exit would wait for them in vain."""
    if _left_with_error.is_set():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


_left_with_error = threading.Event()


def index() -> int:
    """This process's number; 0 where there is only one."""
    import jax

    return jax.process_index()


def count() -> int:
    """How many processes train together."""
    import jax

    return jax.process_count()


def is_first() -> bool:
    """Whether this process is the one that writes what is shown to people."""
    return index() == 0


def wait_for_all(what: str) -> None:
    """Returns once all processes have come to the place in the program that is called `what`, however long that takes.

    The coordinator tells them: the devices' own collectives wait half a minute for each other on a CPU, then fail. Then
    the devices meet, too, since a CPU's connect in their first collective, and fail where two run at once.
    """
    if count() > 1:
        from jax.experimental import multihost_utils

        _store().wait_at_barrier(f"inception_jax/{what}/{next(_waits)}", timeout_in_ms=WAIT_SECONDS * 1000)
        multihost_utils.sync_global_devices(f"inception_jax.{what}")


_waits = itertools.count()


def _store() -> Any:
    from jax._src import distributed  # it has no public name

    return distributed.global_state.client


@contextlib.contextmanager
def first_goes_first(what: str) -> Iterator[None]:
    """The first process comes here first, the others once it is through: it makes what they find."""
    if not is_first():
        wait_for_all(what)
    yield
    if is_first():
        wait_for_all(what)


class _Watch:
    """Gives signs of life, and ends this process when another one gives none any more.

    The store of JAX's coordinator is the way: it is there, and reaches wherever the processes reach each other. JAX's
    own supervision ends a process by SIGABRT, without a word on who is missing, which is why it comes second.
    """

    def __init__(self) -> None:
        import jax

        self._client = _store()
        self._me, self._count = jax.process_index(), jax.process_count()
        self._hosts = {self._me: socket.gethostname()}
        self._stopping = threading.Event()
        self._failing = threading.Event()
        # Called from JAX's threads, so Python's own handlers, which run in the main thread, would never be.
        self._on_abort = ctypes.CFUNCTYPE(None, ctypes.c_int)(self._aborted)
        ctypes.CDLL(None).signal(signal.SIGABRT, self._on_abort)
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """From now on the others may leave."""
        self._stopping.set()
        self._thread.join()

    def fail(self, error: BaseException) -> None:
        """Tells the others that this process ends with an error; of several errors, only the first is told."""
        own = isinstance(error, UserError) and isinstance(error.__cause__, OSError | None)
        if isinstance(error, Exception) and not own:
            # Most often a connection that another process broke off when it died, which comes as errors of many types:
            # the watch knows more in a moment, and ends this process then.
            time.sleep(SILENT_SECONDS + 2 * BEAT_SECONDS)
        self._failing.set()
        _left_with_error.set()
        with contextlib.suppress(Exception):
            self._client.key_value_set(f"{FAILED}{self._me}", f"{self._hosts[self._me]}|{_first_line(error)}")
            if self._me == 0:  # the store goes with it
                time.sleep(3 * BEAT_SECONDS)
        self.stop()

    def _run(self) -> None:
        counts: dict[int, str] = {}
        heard = dict.fromkeys(range(self._count), time.monotonic())
        beat = 0
        while not self._stopping.wait(BEAT_SECONDS):
            beat += 1
            try:
                self._client.key_value_set(
                    f"{ALIVE}{self._me}", f"{self._hosts[self._me]}|{beat}", allow_overwrite=True
                )
                alive = self._client.key_value_dir_get(ALIVE)
                failed = self._client.key_value_dir_get(FAILED)
            except Exception:  # a coordinator that cannot be reached is JAX's to find out
                continue
            now = time.monotonic()
            for key, value in alive:
                process = int(key.rpartition("/")[2])
                self._hosts[process], _, count = value.rpartition("|")
                if counts.get(process) != count:
                    counts[process], heard[process] = count, now
            if self._failing.is_set():
                continue
            for key, value in failed:
                process, (host, _, message) = int(key.rpartition("/")[2]), value.partition("|")
                self._end(f"process {process} on {host} ended: {message}")
            for process, last in heard.items():
                if process != self._me and now - last > SILENT_SECONDS:
                    self._end(f"nothing was heard of {self._name(process)} for {SILENT_SECONDS} s: it has died")

    def _name(self, process: int) -> str:
        return f"process {process}" + (f" on {self._hosts[process]}" if process in self._hosts else "")

    def _aborted(self, number: int) -> None:
        coordinator = "" if self._me == 0 else f"; most likely {self._name(0)}, which coordinates the others, has died"
        self._end(f"JAX's distributed runtime gave up{coordinator}")

    def _end(self, what: str) -> NoReturn:
        """Without clean-up, in which a process would wait for the others."""
        sys.stdout.flush()
        os.write(2, f"error: process {self._me} of {self._count} ends: {what}. Start all again to go on\n".encode())
        os._exit(LOST)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
