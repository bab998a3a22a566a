"""How processes find each other before JAX's runtime starts, which would end a process without a message on failure.

Process 0 listens at the coordinator's address until all processes, itself included, have connected and identified
themselves. Then all get the same answer: to start JAX's runtime, whose coordinator listens at that address from then
on, or one line stating what is wrong. Messages are lines of JSON.
"""

import contextlib
import dataclasses
import json
import os
import selectors
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any

from inception_jax.distributed import agreement
from inception_jax.errors import UserError
from inception_jax.process import INTERRUPTED, MISTAKE, TERMINATED, Terminated
from inception_jax.text import printable

TELL_SECONDS = 10.0  # after which a process reports which ones it waits for
# How long the port may still belong to an earlier start that is about to end: it notices the death of one of its
# processes only after multihost.SILENT_SECONDS.
BUSY_SECONDS = 24.0
RETRY_SECONDS = 0.3  # between two attempts to reach process 0
WELCOME_SECONDS = 8.0  # for process 0 to welcome a connection; other programs may send nothing
LATE_SECONDS = 5.0  # by which process 0's answer may arrive after the time limit
LINGER_SECONDS = 10.0  # during which process 0 tells late processes what is wrong
LONGEST_LINE = 2**16  # bytes
NAME = "inception_jax"  # in every message, so that other programs are not mistaken for ours


def meet(
    address: tuple[str, int],
    number: int,
    count: int,
    facts: Mapping[str, Any],
    *,
    seconds: float,
    bind_host: str | None = None,
) -> None:
    """Returns once all `count` processes have connected to the address, each with its own number and with equal facts.

    Args:
      address: host and port of process 0.
      facts: JSON values by name, which must be the same in all processes.
      seconds: how long to wait for the others.
      bind_host: where process 0 listens; by default on all of the machine's addresses.

    Raises:
      UserError: some processes did not come; a number was given twice; facts differ; the port is in use, or belongs to
        another program.
      Terminated, KeyboardInterrupt: this process, or another one, was asked to end.
    """
    host, port = address
    facts = {"--num_processes": count, **facts}
    reception = _Reception(port, bind_host, count, seconds) if number == 0 else None
    hello = {"name": NAME, "process": number, "host": socket.gethostname(), "pid": os.getpid(), "facts": facts}
    started, told, busy_since, why = time.monotonic(), False, 0.0, ""
    try:
        while True:
            try:
                with socket.create_connection((host, port), timeout=5) as connection:
                    if connection.getsockname() == connection.getpeername():  # TCP can connect to itself
                        raise ConnectionRefusedError("nothing is listening")
                    answer = _ask(connection, hello, started + seconds + LATE_SECONDS, told)
                if answer is not None:
                    return _obey(answer)
                busy_since = busy_since or time.monotonic()
                why = "what answers there is not process 0 of a starting run"
                if time.monotonic() - busy_since > BUSY_SECONDS:
                    raise UserError(
                        f"{why}: at {host}:{port} a run of {count} processes has already started (was "
                        f"--process_id={number} given twice?), or another program is listening. Choose another port "
                        "in --coordinator, or another --process_id"
                    )
            except OSError as error:
                busy_since, why = 0.0, error.strerror or str(error) or type(error).__name__
            waited = time.monotonic() - started
            if waited > seconds:
                raise UserError(
                    f"process {number} did not reach process 0 at {host}:{port} within {seconds:g} s ({why}): "
                    + ("does --coordinator name its host?" if reception else "was it started, and at that address?")
                )
            if waited > TELL_SECONDS and not told:
                told = _tell(f"process {number} is trying to reach process 0 at {host}:{port} ({why})")
            time.sleep(RETRY_SECONDS)
    finally:
        if reception:
            reception.close()


def _ask(connection: socket.socket, hello: dict[str, Any], until: float, told: bool) -> dict[str, Any] | None:
    """The answer to our message; None if another program answered, or the connection was closed."""
    connection.settimeout(0.5)
    started, received, welcome = time.monotonic(), b"", False
    try:
        connection.sendall(_line(hello))
        while time.monotonic() < until:
            waited = time.monotonic() - started
            if not welcome and waited > WELCOME_SECONDS:
                return None
            if not told and waited > TELL_SECONDS:
                told = _tell(f"process {hello['process']} is waiting for the other processes")
            try:
                part = connection.recv(LONGEST_LINE)
            except TimeoutError:
                continue
            *lines, received = (received + part).split(b"\n")
            for text in lines:
                message = _message(text)
                if message is None or {"start", "end"} & message.keys():
                    return message
                welcome = welcome or "welcome" in message
            if not part or len(received) > LONGEST_LINE or not _may_be_ours(received):
                return None
        return None
    except ConnectionError:  # the peer closed the connection
        return None
    except (Terminated, KeyboardInterrupt) as error:
        code, what = (TERMINATED, "SIGTERM") if isinstance(error, Terminated) else (INTERRUPTED, "Ctrl-C")
        message = f"process {hello['process']} on {hello['host']} was stopped by {what}"
        with contextlib.suppress(OSError):
            connection.sendall(_line({"name": NAME, "end": message, "code": code}))
            time.sleep(0.5)  # until process 0's own reception passes it on
        raise


def _obey(answer: dict[str, Any]) -> None:
    code, message = answer.get("code"), printable(str(answer.get("end", "")))
    if code is None:
        return
    if code == MISTAKE:
        raise UserError(message)
    _tell(message)
    raise KeyboardInterrupt if code == INTERRUPTED else Terminated


def _tell(message: str) -> bool:
    print(message, file=sys.stderr, flush=True)
    return True


def _line(message: dict[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


def _may_be_ours(received: bytes) -> bool:
    return received[:1] in (b"", b"{")


def _message(text: bytes) -> dict[str, Any] | None:
    """The message in a line; None if it is not one of ours."""
    with contextlib.suppress(ValueError, RecursionError):
        message = json.loads(text)
        if isinstance(message, dict) and message.get("name") == NAME:
            return message
    return None


@dataclasses.dataclass(frozen=True)
class _Guest:
    """A process that has connected."""

    process: int
    host: str
    pid: int
    facts: dict[str, Any]

    def __post_init__(self) -> None:
        kinds = (self.process, int), (self.host, str), (self.pid, int), (self.facts, dict)
        if not all(isinstance(value, kind) for value, kind in kinds) or self.process < 0:
            raise TypeError("not a process's message")


class _Reception:
    """Process 0's listening thread, which runs until all have come or something is wrong, and then tells all."""

    def __init__(self, port: int, host: str | None, count: int, seconds: float):
        self._count = count
        self._until = time.monotonic() + seconds
        self._seconds = seconds
        self._guests: dict[socket.socket, _Guest] = {}
        self._received: dict[socket.socket, bytes] = {}
        self._closing = threading.Event()
        try:
            if host is None and socket.has_dualstack_ipv6():
                self._listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
            else:
                self._listener = socket.create_server((host or "", port))
        except OSError as error:
            why = os.strerror(error.errno) if error.errno else str(error)  # Python's own text includes the address
            raise UserError(
                f"process 0 cannot listen on port {port} ({why}): another program, an earlier start of the run or "
                "another process 0 may use it. Choose another port in --coordinator"
            ) from error
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="reception", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening; processes still waiting for an answer are disconnected."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            answer = None
            while answer is None and not self._closing.is_set():
                answer = self._serve()
            if answer:
                for connection in self._received:
                    with contextlib.suppress(OSError):
                        connection.sendall(_line({"name": NAME, **answer}))
                if answer.get("code") == MISTAKE:
                    self._tell_late_ones(answer)
        finally:
            for connection in self._received:
                connection.close()
            self._selector.close()
            self._listener.close()

    def _tell_late_ones(self, answer: dict[str, Any]) -> None:
        """Answers late processes, which would otherwise wait in vain for process 0."""
        until = time.monotonic() + LINGER_SECONDS
        while len(self._received) < self._count and time.monotonic() < until:
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                self._received[connection] = b""
                connection.settimeout(2)
                connection.recv(LONGEST_LINE)  # unread input would reset the connection before the answer arrives
                connection.sendall(_line({"name": NAME, **answer}))
            time.sleep(0.1)

    def _serve(self) -> dict[str, Any] | None:
        """Handles whatever can be read; returns the answer to all once there is one."""
        ready = [key.fileobj for key, _ in self._selector.select(0.2)]
        for connection in ready:
            if isinstance(connection, socket.socket) and connection is not self._listener:
                with contextlib.suppress(TimeoutError, BlockingIOError):
                    if said := self._hear(connection):
                        return said
        if self._listener in ready:  # last, so that a process that left is known to have left before it reconnects
            with contextlib.suppress(OSError):
                connection, _ = self._listener.accept()
                connection.setblocking(False)
                self._received[connection] = b""
                connection.sendall(_line({"name": NAME, "welcome": True}))
                self._selector.register(connection, selectors.EVENT_READ)
        if time.monotonic() > self._until:
            missing = sorted(set(range(self._count)) - {guest.process for guest in self._guests.values()})
            names = f"process{'es' if len(missing) > 1 else ''} {', '.join(map(str, missing[:16]))}"
            return _end(
                f"{names} of {self._count} did not connect within {self._seconds:g} s: start all of them, with the "
                "same --coordinator and --num_processes"
            )
        return None

    def _hear(self, connection: socket.socket) -> dict[str, Any] | None:
        try:
            part = connection.recv(LONGEST_LINE)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            part = b""
        received = self._received[connection] + part
        if not part or len(received) > LONGEST_LINE or not _may_be_ours(received):
            self._forget(connection)  # it has ended, or is not one of ours
            return None
        *lines, self._received[connection] = received.split(b"\n")
        for text in lines:
            message = _message(text)
            if message is None:
                self._forget(connection)
                return None
            if "end" in message:
                return {"end": message["end"], "code": message.get("code")}
            try:
                guest = _Guest(*(message[key] for key in ("process", "host", "pid", "facts")))
            except (KeyError, TypeError):
                self._forget(connection)
                return None
            if answer := self._welcome(connection, guest):
                return answer
        return None

    def _welcome(self, connection: socket.socket, guest: _Guest) -> dict[str, Any] | None:
        for other in self._guests.values():
            if other.process == guest.process:
                both = " and ".join(f"by PID {one.pid} on {one.host}" for one in (other, guest))
                return _end(f"--process_id={guest.process} was given twice: {both}. Each process needs its own")
        self._guests[connection] = guest
        facts = {one.process: one.facts for one in self._guests.values()}
        hosts = {one.process: one.host for one in self._guests.values()}
        if phrases := agreement.differences(facts, hosts):
            return _end(f"the processes do not agree: {agreement.line(phrases)}")
        return {"start": True} if len(self._guests) == self._count else None

    def _forget(self, connection: socket.socket) -> None:
        self._selector.unregister(connection)
        connection.close()
        self._received.pop(connection, None)
        self._guests.pop(connection, None)


def _end(message: str) -> dict[str, Any]:
    return {"end": message, "code": MISTAKE}
