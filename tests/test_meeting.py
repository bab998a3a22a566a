"""Processes meet before JAX starts: without JAX, in threads, each of which has a process's part."""

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from inception_jax.distributed import agreement, meeting
from inception_jax.errors import UserError

SECONDS = 20.0


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def meet(port, *parts, seconds=SECONDS):
    """What each (number, count, facts) comes to: None, or the error."""
    ends = [None] * len(parts)

    def take(place, number, count, facts):
        try:
            meeting.meet(("127.0.0.1", port), number, count, facts, seconds=seconds, bind_host="127.0.0.1")
        except UserError as error:
            ends[place] = str(error)

    threads = [threading.Thread(target=take, args=(place, *part)) for place, part in enumerate(parts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def test_all_meet_whoever_comes_first(port):
    facts = {"the version of jax": "0.10.2"}
    assert meet(port, *((number, 3, facts) for number in (2, 0, 1))) == [None] * 3
    # The port is free again, for JAX.
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_what_differs_is_told_to_all_with_who_has_what(port):
    parts = [(number, 3, {"the version of jax": f"0.1{number // 2}.0"}) for number in range(3)]
    first, *others = meet(port, *parts)
    assert "the version of jax is " in first
    assert "0.10.0 in process" in first
    assert "0.11.0 in process 2 on" in first
    assert others == [first, first]


def test_numbers_of_processes_that_differ_are_named(port):
    first, second = meet(port, (0, 2, {}), (1, 3, {}))
    assert first == second
    assert "--num_processes is 2 in process 0 on" in first
    assert "3 in process 1 on" in first


def test_a_number_given_twice_is_named_by_all(port):
    ends = meet(port, (0, 3, {}), (1, 3, {}), (1, 3, {}))
    assert len(set(ends)) == 1
    assert "--process_id=1 was given twice: by PID" in ends[0]


def test_who_does_not_come_is_named(port, monkeypatch):
    monkeypatch.setattr(meeting, "LINGER_SECONDS", 0.2)
    first, third = meet(port, (0, 4, {}), (2, 4, {}), seconds=1.0)
    assert first == third
    assert "processes 1, 3 of 4 did not connect within 1 s" in first


def test_a_process_0_that_never_comes_is_missed(port):
    (end,) = meet(port, (1, 2, {}), seconds=0.5)
    assert f"did not reach process 0 at 127.0.0.1:{port} within 0.5 s (Connection refused): was it started" in end
    with pytest.raises(UserError, match=r"did not reach process 0 at nowhere\.invalid:1 within 0.5 s"):
        meeting.meet(("nowhere.invalid", 1), 1, 2, {}, seconds=0.5)


def test_a_port_in_use_is_named(port):
    with socket.create_server(("127.0.0.1", port)):
        (end,) = meet(port, (0, 2, {}))
    assert f"cannot listen on port {port} (Address already in use): another program," in end


def test_another_program_at_the_address_is_not_taken_for_process_0(port, monkeypatch):
    """One that hangs up, one that says something else, one that says nothing."""
    monkeypatch.setattr(meeting, "BUSY_SECONDS", 0.5)
    exits = contextlib.ExitStack()
    monkeypatch.setattr(meeting, "WELCOME_SECONDS", 0.5)
    with exits:
        for greeting in (None, b"", b"SSH-2.0-OpenSSH_9.2\r\n", b'{"name": "somebody"}\n', b"[" * 100):
            with socket.create_server(("127.0.0.1", 0)) as server:

                def serve(server=server, greeting=greeting):
                    while True:
                        try:
                            connection, _ = server.accept()
                        except OSError:
                            return
                        if greeting is None:
                            exits.enter_context(connection)
                            continue
                        with connection:
                            connection.sendall(greeting)

                threading.Thread(target=serve, daemon=True).start()
                (end,) = meet(server.getsockname()[1], (1, 2, {}))
                server.shutdown(socket.SHUT_RDWR)
            assert "what answers there is not process 0 of a starting run" in end


def test_strangers_at_the_port_disturb_nobody(port):
    strangers = []

    def knock():
        words = (b"GET / HTTP/1.1\r\n\r\n", b"{" * 70000, b'{"name": "inception_jax", "process": "x"}\n', b"")
        hello = {"name": "inception_jax", "process": 1, "host": "h", "pid": 1, "facts": []}
        for word in (*words, json.dumps(hello).encode() + b"\n", b'{"name": "inception_jax"}\n'):
            for _ in range(100):
                try:
                    strangers.append(socket.create_connection(("127.0.0.1", port), timeout=1))
                    strangers[-1].sendall(word)
                    break
                except OSError:
                    time.sleep(0.05)

    first = threading.Thread(target=meet, args=(port, (0, 2, {})))
    first.start()
    knock()
    assert meet(port, (1, 2, {})) == [None]
    first.join()
    for stranger in strangers:
        stranger.close()


def test_who_comes_again_replaces_who_has_left(port):
    """A launcher starts a process again that has died while the others were waited for."""
    ends = []
    first = threading.Thread(target=lambda: ends.extend(meet(port, (0, 3, {}))))
    first.start()
    hello = {"name": "inception_jax", "process": 1, "host": "h", "pid": 1, "facts": {"--num_processes": 3}}
    for _ in range(100):
        try:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(json.dumps(hello).encode() + b"\n")
                time.sleep(0.5)
            break
        except OSError:
            time.sleep(0.05)
    assert meet(port, (1, 3, {}), (2, 3, {})) == [None, None]
    first.join()
    assert ends == [None]


WAIT = """
import signal, sys
from inception_jax import process
from inception_jax.distributed import meeting
with process.terminable():
    print("ready", flush=True)
    try:
        meeting.meet(("127.0.0.1", int(sys.argv[1])), int(sys.argv[2]), 3, {}, seconds=60, bind_host="127.0.0.1")
    except process.Terminated:
        sys.exit(75)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
@pytest.mark.parametrize("asked", [0, 1])
def test_a_request_to_stop_ends_all_who_wait(port, number, code, asked):
    command = [sys.executable, "-c", WAIT, str(port)]
    running = [
        subprocess.Popen([*command, str(index)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for index in range(2)  # of three
    ]
    try:
        for process in running:
            assert process.stdout.readline() == "ready\n"
        time.sleep(1)  # until both are connected
        running[asked].send_signal(number)
        outputs = [process.communicate(timeout=30) for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [code, code], outputs
    name = "SIGTERM" if number == signal.SIGTERM else "Ctrl-C"
    assert f"process {asked} on {socket.gethostname()} was stopped by {name}" in outputs[1 - asked][1]


def test_differences_say_which_process_has_what():
    hosts = {0: "a", 1: "b", 2: "b"}
    facts = {process: {"same": 1, "rate": 0.1, "list": [1, 2]} for process in range(3)}
    assert agreement.differences(facts, hosts) == []
    facts[1]["rate"] = 0.2
    facts[2]["list"] = [1]
    facts[0]["more"] = "text\x1b[2J"
    assert agreement.differences(facts, hosts) == [
        "rate is 0.1 in processes 0, 2 on a, b, 0.2 in process 1 on b",
        "list is [1, 2] in processes 0, 1 on a, b, [1] in process 2 on b",
        "more is text\\x1b[2J in process 0 on a, missing in processes 1, 2 on b",
    ]
    assert agreement.line([str(number) for number in range(6)]) == "0; 1; 2; 3; and 2 more"
    assert agreement.differences({0: {"x": 1}, 1: {"x": 1.5}, 2: {"x": None}}, {}) == [
        "x is 1 in process 0 on an unknown host, 1.5 in process 1 on an unknown host, "
        "null in process 2 on an unknown host"
    ]


def test_the_source_of_the_package_is_part_of_its_version():
    found = agreement.versions()
    assert {"the version of jax", "the version of Python", "the version of inception_jax"} <= found.keys()
    assert "(source " in found["the version of inception_jax"]
