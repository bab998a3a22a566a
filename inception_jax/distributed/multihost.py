"""Several processes that train one network, on one machine or on many, over JAX's distributed runtime.

All of them run the same program with the same config, which is made sure of at the start. Each reads its share of every
batch; the first alone writes logs and metrics. A process that ends before its time ends the others, which say which one
it was.
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
from inception_jax.distributed import agreement, meeting, watch
from inception_jax.distributed.watch import waiting
from inception_jax.errors import UserError, WriteError
from inception_jax.process import INTERRUPTED, MISTAKE, NOT_SAVED, TERMINATED, Terminated, exit_code

ENVIRONMENT = "INCEPTION_JAX_"  # with COORDINATOR, NUM_PROCESSES, PROCESS_ID: what the flags of those names say
JOIN_SECONDS = 300  # that the processes wait for each other at the start
RUNTIME_SECONDS = 60  # that JAX's runtime then takes at most to start
RUNTIME_SILENT_SECONDS = 50  # JAX's own limit: later than ours, since it ends a process without naming the other
WAIT_SECONDS = 6 * 3600  # that they wait for each other later, e.g. for data; one that has died is noticed before
PORTS = range(61440, 65536)  # of the coordinator where none is given; JAX's own choice under Slurm
LEAVE_SECONDS = 30  # that a process waits at the end for the others
FOLDER_SECONDS = 10  # in which a file that process 0 wrote is seen by all who share its folder, NFS's caches included
PLACES = "inception_jax/places/"  # keys in the store of JAX's coordinator
TOLD_SECONDS = 5  # in which all have read what ends all
TOKEN = ".processes-"  # beginning of a file's name in the run's folder, while the processes meet there


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

    While it lasts, this process ends with a line that names the other one if another dies (exit code LOST), ends with
    an error (with its code), or is not heard of for watch.SILENT_SECONDS. If it is asked to stop while it waits for the
    others, all end. An error here is told to the others.

    Raises:
      UserError: the others cannot be found, or have other versions of what computes.
    """
    signals = watch.Signals(group is not None)
    try:
        if group is None:
            yield
            return
        import jax

        # Its handler of SIGTERM would take the place of ours.
        jax.config.update("jax_enable_preemption_service", False)
        _start_runtime(_found(group))
        peers = signals.peers = watch.Peers(_store(), index(), count())
        try:
            yield
            # Who has left gives no more signs of life, and another one may still be at work for long, on the report.
            wait_for_all("done")
        except BaseException as error:
            _leave_with(error, peers)
            raise
        peers.stop()
        with waiting("the others to leave"):
            jax.distributed.shutdown()
    finally:
        signals.stop()


def _found(group: Group) -> dict[str, Any]:
    """JAX's arguments for the group: as it was given, or as the launcher says."""
    given: dict[str, Any] = {
        "coordinator_address": group.coordinator,
        "num_processes": group.num_processes,
        "process_id": group.process_id,
    }
    if not group.coordinator:
        from jax._src import clusters  # it has no public name

        names = (*given, "local_device_ids")
        try:
            found = _of_open_mpi_5()
            if not found:
                detect = clusters.ClusterEnv.auto_detect_unset_distributed_params
                found = dict(zip(names, detect(None, None, None, None, None, JOIN_SECONDS), strict=True))
        except Exception as error:  # of many types: what it reads is other programs'
            raise _not_found(error) from error
        if None in [found[name] for name in given]:
            raise _not_found("no launcher that JAX knows has started this process")
        given = found
    return {**given, "cluster_detection_method": "deactivate"}


def _not_found(why: Any) -> UserError:
    return UserError(
        "the processes of the run did not find each other: give --coordinator, --num_processes and --process_id "
        f"({_first_line(why) if isinstance(why, Exception) else why})"
    )


def _start_runtime(found: dict[str, Any]) -> None:
    """Starts JAX's distributed runtime once all processes are there, and fit together."""
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
            jax.process_index()  # the devices of all are counted at their first use, which waits for all
    except (ValueError, RuntimeError) as error:
        _left_with_error.append(MISTAKE)
        raise UserError(f"JAX's runtime did not start at {address} ({_first_line(error)})") from error


def _leave_with(error: BaseException, peers: watch.Peers) -> None:
    """Tells the others that this process ends with an error; of several errors, only the first is told."""
    code = exit_code(error)
    _left_with_error.append(code)
    if isinstance(error, CommonError):  # all know it
        peers.leave(code)
        if is_first():  # the store goes with it
            time.sleep(2 * watch.BEAT_SECONDS)
    else:
        own = isinstance(error, UserError) and isinstance(error.__cause__, OSError | None)
        if isinstance(error, Exception) and not own:
            # Most often a connection that another process broke off when it died, which comes as errors of many types:
            # the watch knows more in a moment, and ends this process then.
            with contextlib.suppress(Terminated, KeyboardInterrupt):  # the others are told in any case
                time.sleep(watch.SILENT_SECONDS + 2 * watch.BEAT_SECONDS)
        stop = {TERMINATED: "stopped by SIGTERM", INTERRUPTED: "stopped by Ctrl-C", NOT_SAVED: "stopped by Ctrl-C"}
        peers.tell(stop.get(code) or _first_line(error), code)
    peers.stop()


class CommonError(UserError):
    """A mistake that all processes have heard of together, and end by."""


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


_left_with_error: list[int] = []  # its exit code


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
    """Returns once all processes have come to the place in the program that is called `what`.

    The coordinator tells them: the devices' own collectives wait half a minute for each other on a CPU, then fail. Then
    the devices meet, too, since a CPU's connect in their first collective, and fail where two run at once.

    Raises:
      UserError: some did not come within WAIT_SECONDS.
    """
    if count() > 1:
        from jax.experimental import multihost_utils

        _gather(what, "", lambda _: "")
        with waiting(f"the devices of all at {what!r}"):
            multihost_utils.sync_global_devices(f"inception_jax.{what}")


def require_equal(facts: Mapping[str, Any]) -> None:
    """Makes sure that what all processes have been given is the same.

    Args:
      facts: JSON values by what they are, such as "data.name".

    Raises:
      UserError: in all processes, with one line that says what differs, and which process has what.
    """
    if not _several():
        return

    def decide(told: dict[int, str]) -> str:
        content = {process: json.loads(text) for process, text in told.items()}
        hosts = {process: own["host"] for process, own in content.items()}
        found = agreement.differences({process: own["facts"] for process, own in content.items()}, hosts)
        if found:
            what = agreement.line(found)
            raise UserError(f"the processes do not fit together: {what}. Start all with the same arguments")
        return ""

    own = json.dumps({"host": socket.gethostname(), "facts": dict(facts)})
    _gather("compared", own, decide)


def require_same_start(fields: Callable[[], Mapping[str, Any]], folder: Path) -> None:
    """Makes sure that all processes have the same config, versions and folder, before anything else is done.

    Process 0 writes a file into the folder, for that long, which the others have to find there.

    Args:
      fields: returns the config's fields by name, where there are several processes.

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
            name = f"{folder.absolute()} (where what process 0 wrote is not found: another folder, or not shared)"
        require_equal({**fields(), **agreement.versions(), "the run's folder": name})


@contextlib.contextmanager
def _held(folder: Path, token: str) -> Iterator[None]:
    """The file in the folder; both are removed behind it, the folder if it was made for it and is empty."""
    made = list(itertools.takewhile(lambda place: not place.exists(), (folder, *folder.parents)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{TOKEN}*"):  # by a start that was killed
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
            for place in made:  # the run makes it anew, once the data is compared, too
                place.rmdir()


def _sees(path: Path, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > until:
            return False
        for parent in path.parents:  # to list a folder asks NFS's server anew
            with contextlib.suppress(OSError):
                os.listdir(parent)
        time.sleep(0.5)
    return True


def _gather(what: str, own: str, decide: Callable[[dict[int, str]], str], *, seconds: float = WAIT_SECONDS) -> str:
    """All hand in a text, and all get what `decide` makes of the texts, by process, in process 0, or its UserError.

    Through the store of JAX's coordinator, which is there where devices cannot talk, asked again and again, so that
    signals are answered.

    Raises:
      CommonError: in all, for what `decide` raised.
      UserError: some did not come in time.
    """
    store, place = _store(), f"{PLACES}{next(_places)}/"
    me, number = _state().process_id, _state().num_processes
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
                        with contextlib.suppress(UserError):  # the store goes with this process
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
                raise UserError(f"the processes did not all come to {what!r} within {seconds:g} s{missing}")
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
    """Whether there are several processes; unlike `count`, it does not start JAX's devices."""
    return _store() is not None and _state().num_processes > 1


def _store() -> Any:
    return _state().client


def _state() -> Any:
    from jax._src import distributed  # it has no public name

    return distributed.global_state


@contextlib.contextmanager
def first_goes_first(what: str) -> Iterator[None]:
    """The first process comes here first, the others once it is through: it makes what they find."""
    if not is_first():
        wait_for_all(what)
    yield
    if is_first():
        wait_for_all(what)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
