"""The server and clients that mean harm: what they may send, how long they may take, and who is answered at all."""

import asyncio
import contextlib
import gc
import io
import json
import re
import signal
import socket
import threading
import time
import weakref
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette")

from starlette.exceptions import HTTPException
from test_serving import Counting, ask, picture

from inception_jax import commands
from inception_jax.data import images
from inception_jax.errors import UserError
from inception_jax.trained import serving
from inception_jax.trained.serving import connections
from inception_jax.trained.serving.connections import Access, allowed_names, host_name
from inception_jax.trained.serving.work import LARGE, Decoders

START = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"


@contextlib.contextmanager
def started(classifier=None, access=None, **limits):
    """A server in a thread of this process, and its address."""
    limits = serving.Limits(**limits)
    app = serving.create_app(classifier or Counting(), "a network", limits, access)
    server = serving.make_server(app, limits.timeout_s)
    with serving.listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield server, serving.address_of(listening)
        finally:
            server.should_exit = True
            thread.join()


def connect(address):
    return socket.create_connection(urlsplit(address).netloc.split(":"), timeout=20)


def answer_to(client):
    """All that comes until the connection is closed; nothing where it was cut off."""
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := client.recv(65_536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize(
    "beginning", [b"", b"POST /pre", START + b"X-A: b", START + b"Content-Length: 9999\r\n\r\nabc"], ids=repr
)
def test_half_open_connections_keep_nobody_out(beginning, monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 20)
    with started(max_queue=4) as (server, address), contextlib.ExitStack() as clients:
        for _ in range(60):
            client = clients.enter_context(connect(address))
            with contextlib.suppress(ConnectionError):
                client.sendall(beginning)
        assert ask(address, "/predict", picture())[0] == 200
        assert ask(address, "/health")[0] == 200
        assert len(server.server_state.connections) <= 21


def is_cut_off(client, part):
    """Whether the other side has enough at some time of a part that is sent again and again."""
    begun = time.monotonic()
    try:
        while time.monotonic() - begun < 10:
            client.sendall(part)
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize(
    ("beginning", "part"),
    [
        (b"GET /", b"a" * 1000),
        (START + b"X: ", b"a" * 1000),
        (START, b"a: b\r\n" * 200),
        (START, b"X-Long-Name: " + b"a" * 1000 + b"\r\n"),
        (b"", b"\r\n" * 500),
        (START + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 200),
        (START + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * 1000),
        (START + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 1000),
    ],
    ids=["url", "header", "headers", "long headers", "empty lines", "trailers", "trailer", "chunk's extension"],
)
def test_a_head_is_bounded(beginning, part, monkeypatch):
    monkeypatch.setattr(connections, "LINGER_SECONDS", 0.2)
    with started() as (_, address):
        with connect(address) as client:
            client.sendall(beginning)
            assert is_cut_off(client, part)
        with connect(address) as client:
            client.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\nCookie: " + b"a" * 40_000 + b"\r\n\r\n")
            assert answer_to(client).startswith(b"HTTP/1.1 431")
        with connect(address) as client:
            client.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nCookie: " + b"a" * 20_000)
            client.sendall(b"\r\n\r\n")
            assert answer_to(client).startswith(b"HTTP/1.1 200")


def test_a_head_must_arrive_in_time(monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.3)
    with started() as (_, address):
        with connect(address) as slow, connect(address) as idle, connect(address) as again:
            slow.sendall(b"GET /live HTTP/1.1\r\nHo")
            again.sendall(b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert answer_to(slow).startswith(b"HTTP/1.1 408")
            assert answer_to(idle) == b""
            assert answer_to(again).startswith(b"HTTP/1.1 200")  # and is closed when no second request comes
        with connect(address) as dripping:
            begun = time.monotonic()
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - begun < 10:
                    dripping.sendall(b"\r\n")
                    time.sleep(0.05)
            assert time.monotonic() - begun < 10
        with connect(address) as refused:  # whose body has no end
            refused.sendall(b"POST /live HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
            begun = time.monotonic()
            with contextlib.suppress(ConnectionError):
                while time.monotonic() - begun < 10:
                    refused.sendall(b"1\r\na\r\n")
                    time.sleep(0.05)
            assert time.monotonic() - begun < 10


def test_requests_in_a_row_are_all_answered():
    with started() as (_, address), connect(address) as client:
        content = picture()
        one = START + b"Content-Length: %d\r\n\r\n" % len(content) + content
        client.sendall(one * 3 + b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert answer_to(client).count(b"HTTP/1.1 200") == 4


def test_bodies_in_memory_are_bounded(monkeypatch):
    monkeypatch.setattr("inception_jax.trained.serving.app.BODIES", 2)
    with started(max_mb=0.2, timeout_s=15) as (server, address), contextlib.ExitStack() as clients:
        large = [clients.enter_context(connect(address)) for _ in range(12)]
        for client in large:
            client.sendall(START + b"Content-Length: 199999\r\n\r\n" + bytes(100_000))
        assert ask(address, "/predict", picture())[0] == 200
        deadline = time.monotonic() + 10
        bodies = server.config.app.service.bodies
        while bodies.total > bodies.most and time.monotonic() < deadline:
            time.sleep(0.01)
        assert bodies.total <= bodies.most == 400_000


def send_host(address, *hosts, version="1.1"):
    lines = b"".join(b"Host: " + host.encode("latin-1") + b"\r\n" for host in hosts)
    with connect(address) as client:
        client.sendall(f"GET /health HTTP/{version}\r\n".encode() + lines + b"Connection: close\r\n\r\n")
        return int(answer_to(client).split()[1])


def test_only_requests_to_this_machine_are_answered():
    with started(access=Access(allowed_names(["Pictures.Example.org", "fd00::1"], "127.0.0.1"))) as (_, address):
        port = urlsplit(address).port
        for host in (
            "localhost", "LOCALHOST:1", "127.0.0.1", f"127.0.0.1:{port}", "127.9.9.9", "[::1]:80", "localhost.",
            "pictures.example.org", "PICTURES.example.org:8000", "[fd00::1]",
        ):  # fmt: skip
            assert send_host(address, host) == 200, host
        for host in ("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "10.0.0.1", "[fd00::2]"):
            assert send_host(address, host) == 421, host
        for hosts in ((), ("localhost", "evil.example"), ("localhost@evil",), ("",), ("a b",), ("\xe9",)):
            assert send_host(address, *hosts) == 400, hosts
        assert send_host(address, version="1.0") == 200  # none is needed there
        assert send_host(address, "evil.example", version="1.0") == 421
    assert Access().refusal([(b"host", b"10.1.2.3:80")], "10.1.2.3", secret=False) is None  # the address it came to
    assert host_name("[::1]:80") == "::1"
    for wrong in ("http://a", "a:80", "a/b", "", "a b"):
        with pytest.raises(UserError, match="give a name or an address, without a port"):
            allowed_names([wrong], "127.0.0.1")


def test_a_token_is_asked_for():
    with started(access=Access(token="open-sesame")) as (_, address):
        for path in ("/predict", "/metrics", "/nothing"):
            content = picture() if path == "/predict" else None
            for wrong in ({}, {"Authorization": "Bearer open"}, {"Authorization": "Basic open-sesame"}):
                status, headers, answer = ask(address, path, content, headers=wrong)
                assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
                assert "Authorization: Bearer TOKEN" in answer["error"]
            right = {"Authorization": "bearer open-sesame"}
            assert ask(address, path, content, headers=right)[0] == (404 if path == "/nothing" else 200)
        assert ask(address, "/health")[2] == {"status": "ready"}
        assert ask(address, "/live")[0] == ask(address, "/ready")[0] == 200
        page = ask(address, "/")[2].decode()
        assert 'type="password"' in page
        assert 'element("token").value' in page
        assert "dark" not in page.partition("<body>")[2]  # the classes are for those who know it
        assert "open-sesame" not in page
    with started() as (_, address):
        assert "password" not in ask(address, "/")[2].decode()


def test_it_drains():
    """What is under way is answered; nothing new is taken on, /ready says so, and the end comes by itself."""
    classifier = Counting(seconds=1.0)
    with started(classifier, max_batch=1) as (server, address):
        answers = []
        thread = threading.Thread(target=lambda: answers.append(ask(address, "/predict", picture())))
        with connect(address) as half_open:
            half_open.sendall(b"GET / HT")
            assert ask(address, "/ready")[0] == 200
            thread.start()
            while not server.config.app.service.accepted:
                time.sleep(0.01)
            server.handle_exit(signal.SIGTERM, None)
            assert ask(address, "/ready")[0] == 503
            assert ask(address, "/live")[0] == ask(address, "/health")[0] == 200
            status, headers, answer = ask(address, "/predict", picture())
            assert (status, headers["Retry-After"]) == (503, "1")
            assert "shutting down" in answer["error"]
            thread.join()
        assert answers[0][0] == 200
        deadline = time.monotonic() + 20
        while not server.should_exit and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.should_exit


def test_large_pictures_are_decoded_one_at_a_time_and_small_ones_first():
    seen, running, blocked = [], [], threading.Event()

    def decode(effort):
        seen.append(effort)
        running.append(effort >= LARGE)
        time.sleep(0.02)
        assert running.count(True) <= 1
        running.remove(effort >= LARGE)
        return effort

    async def all_of(efforts):
        decoders = Decoders(2)
        blocking = [asyncio.create_task(decoders.run(1, blocked.wait)) for _ in range(2)]
        tasks = [asyncio.create_task(decoders.run(effort, lambda effort=effort: decode(effort))) for effort in efforts]
        given_up = asyncio.create_task(decoders.run(5, lambda: seen.append("given up")))
        await asyncio.sleep(0)
        given_up.cancel()
        blocked.set()
        assert await asyncio.gather(*tasks) == efforts
        with pytest.raises(HTTPException, match="cannot be decoded: division by zero"):
            await decoders.run(1, lambda: 1 / 0)
        assert await asyncio.gather(*blocking) == [True, True]
        decoders.close()

    asyncio.run(all_of([LARGE * 5, LARGE, LARGE * 2, 400, 300, 200, 100]))
    assert set(seen[:2]) == {100, 200}
    assert seen[-3:] == [LARGE, LARGE * 2, LARGE * 5]


def test_a_refused_picture_does_not_stay_in_memory():
    held = []

    def decode():
        pixels = np.zeros((1000, 1000), np.uint8)
        held.append(weakref.ref(pixels))
        raise OSError("image file is truncated")

    async def refused():
        decoders = Decoders(2)
        with pytest.raises(HTTPException):
            await decoders.run(1, decode)
        decoders.close()

    gc.disable()  # it would find them after a while
    try:
        asyncio.run(refused())
        assert held[0]() is None
    finally:
        gc.enable()


def test_hostile_pictures_do_not_keep_a_good_one_waiting():
    file = io.BytesIO()
    Image.new("L", (5000, 4000)).save(file, "PNG", compress_level=1)
    hostile = [file.getvalue(), picture()[:-200], b"%!PS-Adobe-3.0 EPSF-3.0\n", picture(kind="JPEG")[:300]] * 4
    with started(max_batch=4, timeout_s=60) as (_, address):
        statuses = []
        threads = [
            threading.Thread(target=lambda content=content: statuses.append(ask(address, "/predict", content)[0]))
            for content in hostile
        ]
        for thread in threads:
            thread.start()
        assert ask(address, "/predict", picture())[0] == 200
        for thread in threads:
            thread.join()
    assert sorted(set(statuses)) == [200, 400, 415]


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_other_machines_need_a_token(host, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("INCEPTION_JAX_TOKEN", raising=False)
    arguments = ["serve", str(tmp_path / "no run"), "--port=0", f"--host={host}"]
    assert commands.main(arguments) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    for way in ("--token-file", "INCEPTION_JAX_TOKEN", "--no-token"):
        assert way in said
    (tmp_path / "token").write_text("open-sesame\n")
    monkeypatch.setenv("INCEPTION_JAX_TOKEN", "from the environment")
    for more, message in (
        (["--no-token"], "no run"),
        (["--token-file", str(tmp_path / "token")], "no run"),
        ([], "INCEPTION_JAX_TOKEN must be one word"),
        (["--token-file", str(tmp_path / "missing")], "cannot read .*missing: No such file"),
        (["--token-file", "/dev/zero"], "a pipe or a device"),
        (["--token-file", str(tmp_path / "token"), "--no-token"], "not allowed with"),
        (["--no-token", "--allowed-host", "http://a"], "without a port"),
    ):
        assert commands.main([*arguments, *more]) == 2
        assert re.search(message, capsys.readouterr().err)


def test_the_limits_of_pictures_are_the_servers_own():
    assert serving.Limits().max_pixels < images.MAX_PIXELS
    with started(max_megapixels=0.001) as (_, address):
        status, _, answer = ask(address, "/predict", picture(size=(40, 30)))
        assert status == 413
        assert answer["error"] == "the picture is too large: it has 40x30 pixels; at most 0.001 million are allowed"
        assert np.isfinite(json.loads(json.dumps(ask(address, "/predict", picture())[2]))["classes"][0]["probability"])
