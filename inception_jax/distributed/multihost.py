"""Several processes that train one network, on one machine or on many, over JAX's distributed runtime.

All of them run the same program with the same config, which is verified at the start. Each reads its share of every
batch; only the first writes logs and metrics. If a process ends early, the others end too and report which one it was.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import re
import socket
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from inception_jax import files
from inception_jax.distributed import agreement, jax_quirks, meeting, watch
from inception_jax.distributed.watch import waiting
from inception_jax.errors import UserError, WriteError
from inception_jax.process import INTERRUPTED, MISTAKE, NOT_SAVED, TERMINATED, Terminated, exit_code

ENVIRONMENT = "INCEPTION_JAX_"  # prefix of COORDINATOR, NUM_PROCESSES and PROCESS_ID, the flags' defaults
JOIN_SECONDS = 300  # for which processes wait for each other at the start
RUNTIME_SECONDS = 60  # for which JAX's runtime may then take to start
RUNTIME_SILENT_SECONDS = 50  # JAX's own limit: longer than ours, since JAX ends a process without naming the dead one
WAIT_SECONDS = 6 * 3600  # for which they wait for each other later, e.g. for data; a dead process is noticed sooner
PORTS = range(61440, 65536)  # for the coordinator if none is given; the same range as JAX under Slurm
LEAVE_SECONDS = 30  # for which a process waits for the others at the end
FOLDER_SECONDS = 10  # for a file that process 0 wrote to become visible to the others, despite NFS caches
PLACES = "inception_jax/places/"  # keys in the store of JAX's coordinator
TOLD_SECONDS = 5  # for all processes to read the message that ends them
TOKEN = ".processes-"  # prefix of a file in the run's folder while the processes meet there


@dataclasses.dataclass(frozen=True)
class Group:
    """Which process this is, and of how many; JAX takes values that are None from Slurm or Open MPI.

    Attributes:
      coordinator: "host:port" of the first process, where the others meet it.
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
            raise UserError(f"--coordinator={self.coordinator} is not HOST:PORT, e.g. 10.0.0.1:12345")
        if not 0 <= self.process_id < self.num_processes:
            raise UserError(
                f"--process_id={self.process_id} is not allowed: with --num_processes={self.num_processes} it must "
                f"be from 0 to {self.num_processes - 1}"
            )


@contextlib.contextmanager
def joined(group: Group | None) -> Iterator[None]:
    """Joins the other processes, and leaves them cleanly at the end; None: there are no others.

    In this context, if another process dies (exit code LOST), ends with an error (with its exit code), or is silent for
    watch.SILENT_SECONDS, this process ends with a line that names it. If it is asked to stop while it waits for the
    others, all end. An error raised here is reported to the others.

    Raises:
      UserError: the others cannot be found, or have different versions of the software.
    """
    signals = watch.Signals(group is not None)
    try:
        if group is None:
            yield
            return
        import jax

        # JAX's SIGTERM handler would replace ours.
        jax.config.update("jax_enable_preemption_service", False)
        _start_runtime(_found(group))
        peers = signals.peers = watch.Peers(_store(), index(), count())
        try:
            yield
            # A process that has left sends no more heartbeats, and another one may be busy with the report for long.
            wait_for_all("done")
        except BaseException as error:
            _leave_with(error, peers)
            raise
        peers.stop()
        with waiting("the other processes to leave"):
            jax.distributed.shutdown()
    finally:
        signals.stop()


def _found(group: Group) -> dict[str, Any]:
    """JAX's arguments for the group: as given, or from the launcher."""
    given: dict[str, Any] = {
        "coordinator_address": group.coordinator,
        "num_processes": group.num_processes,
        "process_id": group.process_id,
    }
    if not group.coordinator:
        try:
            found = _of_open_mpi_5() or jax_quirks.detect_processes(JOIN_SECONDS)
        except Exception as error:  # of many types, since it parses other programs' values
            raise _not_found(error) from error
        if None in [found[name] for name in given]:
            raise _not_found("no launcher known to JAX started this process")
        given = found
    return {**given, "cluster_detection_method": "deactivate"}


def _not_found(why: Any) -> UserError:
    return UserError(
        "cannot find the other processes of the run: give --coordinator, --num_processes and --process_id "
        f"({_first_line(why) if isinstance(why, Exception) else why})"
    )


def _start_runtime(found: dict[str, Any]) -> None:
    """Starts JAX's distributed runtime once all processes are there and compatible."""
    import jax

    address = found["coordinator_address"]
    host, _, port = address.rpartition(":")
    local = host in ("127.0.0.1", "localhost")
    with waiting("the other processes"):
        meeting.meet(
            (host.strip("[]"), int(port)),
            found["process_id"],
            found["num_processes"],
            agreement.versions(),
            seconds=JOIN_SECONDS,
            bind_host="127.0.0.1" if local else None,
        )
    try:
        with waiting("JAX's runtime to start"):
            jax.distributed.initialize(
                **found,
                coordinator_bind_address=f"{'127.0.0.1' if local else '[::]'}:{port}",
                initialization_timeout=RUNTIME_SECONDS,
                heartbeat_timeout_seconds=RUNTIME_SILENT_SECONDS,
                shutdown_timeout_seconds=LEAVE_SECONDS,
            )
            jax.process_index()  # the first use counts the devices of all processes, which waits for all of them
    except (ValueError, RuntimeError) as error:
        _left_with_error.append(MISTAKE)
        raise UserError(f"JAX's runtime did not start at {address} ({_first_line(error)})") from error


def _leave_with(error: BaseException, peers: watch.Peers) -> None:
    """Tells the others that this process ends with an error; only the first of several errors is reported."""
    code = exit_code(error)
    _left_with_error.append(code)
    if isinstance(error, CommonError):  # all processes know it
        peers.leave(code)
        if is_first():  # the store ends with it
            time.sleep(2 * watch.BEAT_SECONDS)
    else:
        own = isinstance(error, UserError) and isinstance(error.__cause__, OSError | None)
        if isinstance(error, Exception) and not own:
            # Usually a connection that another process broke by dying, which raises errors of many types: the watch
            # soon knows the cause, and then ends this process.
            with contextlib.suppress(Terminated, KeyboardInterrupt):  # the others are told in any case
                time.sleep(watch.SILENT_SECONDS + 2 * watch.BEAT_SECONDS)
        stop = {TERMINATED: "stopped by SIGTERM", INTERRUPTED: "stopped by Ctrl-C", NOT_SAVED: "stopped by Ctrl-C"}
        peers.tell(stop.get(code) or _first_line(error), code)
    peers.stop()


class CommonError(UserError):
    """An error that all processes learned of together and end with."""


def _of_open_mpi_5() -> dict[str, Any]:
    """Open MPI 5's description of this process, for which JAX needs mpi4py; empty if Open MPI 5 did not start it.

    As in JAX for earlier versions: the coordinator is the host of mpirun, and each process has one GPU.
    """
    launcher = re.fullmatch(r"prte(?:run)?-(.+)-(\d+)@\d+", os.environ.get("PMIX_NAMESPACE", ""))
    if not launcher or "OMPI_COMM_WORLD_RANK" not in os.environ:
        return {}
    size, rank, local_size, local_rank = (
        int(os.environ[f"OMPI_COMM_WORLD_{name}"]) for name in ("SIZE", "RANK", "LOCAL_SIZE", "LOCAL_RANK")
    )
    host = "127.0.0.1" if size == local_size else launcher[1]
    port = PORTS[0] + int(launcher[2]) % len(PORTS)  # from the launcher's number, so that two jobs on a host differ
    return {
        "coordinator_address": f"{host}:{port}",
        "num_processes": size,
        "process_id": rank,
        "local_device_ids": [local_rank],
        "cluster_detection_method": "deactivate",
    }


@contextlib.contextmanager
def ended_after_failure() -> Iterator[None]:
    """Ends the process if it left the others with an error: JAX's clean-up at exit would wait for them in vain."""
    try:
        yield
    except BaseException:
        if _left_with_error:
            traceback.print_exc()
            end_after_failure(_left_with_error[0])
        raise


def end_after_failure(exit_code: int) -> None:
    """Ends the process if it left the others with an error: JAX's clean-up at exit would wait for them in vain."""
    if _left_with_error:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)


_left_with_error: list[int] = []  # the exit code


def index() -> int:
    """This process's number; 0 if there is only one."""
    import jax

    return jax.process_index()


def count() -> int:
    """The number of processes that train together."""
    import jax

    return jax.process_count()


def is_first() -> bool:
    """Whether this is the process that writes output for the user."""
    return index() == 0


def wait_for_all(what: str) -> None:
    """A barrier: returns once all processes have reached the point in the program called `what`.

    It uses the coordinator, since device collectives on a CPU fail after waiting half a minute. Then the devices
    synchronize, too: on a CPU they connect in their first collective, which fails if two run at once.

    Raises:
      UserError: some processes did not arrive within WAIT_SECONDS.
    """
    if count() > 1:
        from jax.experimental import multihost_utils

        _gather(what, "", lambda _: "")
        with waiting(f"the devices of all processes at {what!r}"):
            multihost_utils.sync_global_devices(f"inception_jax.{what}")


def require_equal(facts: Mapping[str, Any]) -> None:
    """Checks that all processes were given the same values.

    Args:
      facts: JSON values by name, such as "data.name".

    Raises:
      UserError: in all processes, with one line stating what differs, and which process has which value.
    """
    if not _several():
        return

    def decide(told: dict[int, str]) -> str:
        content = {process: json.loads(text) for process, text in told.items()}
        hosts = {process: own["host"] for process, own in content.items()}
        found = agreement.differences({process: own["facts"] for process, own in content.items()}, hosts)
        if found:
            what = agreement.line(found)
            raise UserError(f"the processes do not agree: {what}. Start all with the same arguments")
        return ""

    own = json.dumps({"host": socket.gethostname(), "facts": dict(facts)})
    _gather("compared", own, decide)


def require_same_start(fields: Callable[[], Mapping[str, Any]], folder: Path) -> None:
    """Checks that all processes have the same config, versions and folder, before anything else is done.

    Process 0 temporarily writes a file into the folder, which the others must find there.

    Args:
      fields: returns the config's fields by name; called only if there are several processes.

    Raises:
      UserError: see `require_equal`.
      WriteError: the folder cannot be written.
    """
    if not _several():
        return
    token, host = f"{TOKEN}{uuid.uuid4().hex}", socket.gethostname()
    with contextlib.ExitStack() as exits:

        def write(_: dict[int, str]) -> str:
            exits.enter_context(_held(folder, token))
            return json.dumps([str(folder.absolute()), token, host])

        name, token, first_host = json.loads(_gather("folder", "", write))
        if not is_first() and not _sees(folder / token, 1 if host == first_host else FOLDER_SECONDS):
            name = f"{folder.absolute()} (without the file that process 0 wrote: another folder, or not shared)"
        require_equal({**fields(), **agreement.versions(), "the run's folder": name})


@contextlib.contextmanager
def _held(folder: Path, token: str) -> Iterator[None]:
    """The file in the folder; it is removed afterwards, and so is the folder if it was created for it and is empty."""
    made = list(itertools.takewhile(lambda place: not place.exists(), (folder, *folder.parents)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{TOKEN}*"):  # left by a killed start
            if time.time() - left.stat().st_mtime > files.STALE_SECONDS:
                left.unlink(missing_ok=True)
        (folder / token).touch()
    except OSError as error:
        if files.no_room(error):
            raise files.cannot_write(folder, error) from error
        raise UserError(f"cannot write the run's folder {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / token).unlink(missing_ok=True)
            for place in made:  # the run creates it again, after the data has been compared
                place.rmdir()


def _sees(path: Path, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > until:
            return False
        for parent in path.parents:  # listing a folder makes NFS ask the server again
            with contextlib.suppress(OSError):
                os.listdir(parent)
        time.sleep(0.5)
    return True


def _gather(what: str, own: str, decide: Callable[[dict[int, str]], str], *, seconds: float = WAIT_SECONDS) -> str:
    """Gathers a text from every process; all get `decide(texts by process)`, computed in process 0, or its UserError.

    It polls the store of JAX's coordinator, which also works if devices cannot communicate, and lets signals be
    handled in between.

    Raises:
      CommonError: in all processes, if `decide` raised a UserError.
      UserError: some processes did not arrive in time.
    """
    store, place = _store(), f"{PLACES}{next(_places)}/"
    me, number = jax_quirks.runtime().process_id, jax_quirks.runtime().num_processes
    store.key_value_set(f"{place}in/{me}", own)
    until, pause = time.monotonic() + seconds, 0.01
    with waiting(f"all at {what!r}"):
        while True:
            if me == 0:
                told = {int(key.rpartition("/")[2]): text for key, text in store.key_value_dir_get(f"{place}in/")}
                if len(told) == number:
                    try:
                        result = decide(told)
                    except WriteError:
                        raise
                    except UserError as error:
                        store.key_value_set(f"{place}out", f"!{error}")
                        with contextlib.suppress(UserError):  # the store ends with this process
                            _gather("told", "", lambda _: "", seconds=TOLD_SECONDS)
                        raise CommonError(str(error)) from error.__cause__
                    store.key_value_set(f"{place}out", f"={result}")
                    return result
            elif (answer := _try_get(store, f"{place}out")) is not None:
                if answer.startswith("!"):
                    with contextlib.suppress(UserError):
                        _gather("told", "", lambda _: "", seconds=TOLD_SECONDS)
                    raise CommonError(answer[1:])
                return answer[1:]
            if time.monotonic() > until:
                missing = ""
                if me == 0:
                    missing = f": process {', '.join(str(i) for i in range(number) if i not in told)} is missing"
                raise UserError(f"the processes did not all reach {what!r} within {seconds:g} s{missing}")
            time.sleep(pause)
            pause = min(1.5 * pause, 0.5)


_places = itertools.count()


def _try_get(store: Any, key: str) -> str | None:
    try:
        return store.key_value_try_get(key)
    except Exception as error:
        if "NOT_FOUND" in str(error):
            return None
        raise


def _several() -> bool:
    """Whether there are several processes; unlike `count`, this does not initialize JAX's devices."""
    return _store() is not None and jax_quirks.runtime().num_processes > 1


def _store() -> Any:
    return jax_quirks.runtime().client


@contextlib.contextmanager
def first_goes_first(what: str) -> Iterator[None]:
    """The first process runs the block first, the others afterwards: they use what it creates."""
    if not is_first():
        wait_for_all(what)
    yield
    if is_first():
        wait_for_all(what)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
