"""Downloads from a server on this machine that means harm, and from one that breaks off."""

import http.server
import threading
import time
import urllib.error
import urllib.request

import pytest

from inception_jax.data import archives
from inception_jax.downloads import FAILURES, _Redirects, download, open_url, reason
from inception_jax.errors import UserError, WriteError
from inception_jax.weights import Preprocessing, published
from inception_jax.weights.published import PublishedWeights, fetch

CONTENT = b"weights " * 1000


class Handler(http.server.BaseHTTPRequestHandler):
    """What is sent depends on the path: /to/ADDRESS leads on to an address."""

    def log_message(self, format, *args):
        pass

    def do_GET(self):
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        self.send_response(200)
        length = {"/cut": 10**6, "/huge": 10**15, "/strange": "many"}.get(self.path, len(CONTENT))
        if self.path not in ("/endless", "/trickle"):
            self.send_header("Content-Length", str(length))
        self.end_headers()
        try:
            if self.path == "/endless":
                while True:
                    self.wfile.write(bytes(2**16))
            if self.path == "/trickle":
                while not self.server.stopped.wait(0.02):
                    self.wfile.write(b"a")
            self.wfile.write(CONTENT)
        except OSError:  # it does not want more
            pass

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.stopped = threading.Event()
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.stopped.set()
        server.shutdown()
        thread.join()


def bounded(url, path):
    download(url, path, most_bytes=10**6, most_seconds=60)


def test_what_is_there_is_written(server, tmp_path):
    for address in ("file", "strange", f"to/{server}/file", "to//file"):
        bounded(f"{server}/{address}", tmp_path / "file")
        assert (tmp_path / "file").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("old", "new", "allowed"),
    [
        ("https", "https", True),
        ("https", "http", False),
        ("HTTPS", "http", False),
        ("http", "https", True),
        ("http", "http", True),
        ("https", "ftp", False),
        ("http", "ftp", False),
        ("https", "file", False),
        ("http", "file", False),
        ("http", "data", False),
    ],
)
def test_redirects_never_leave_https(old, new, allowed):
    request, headers = urllib.request.Request(f"{old}://a.example/x"), {}
    if allowed:
        followed = _Redirects().redirect_request(request, None, 302, "Found", headers, f"{new}://b.example/y")
        assert followed.full_url == f"{new}://b.example/y"
    else:
        with pytest.raises(
            urllib.error.URLError, match=f"redirects from {old.lower()} to {new}, which is not followed"
        ):
            _Redirects().redirect_request(request, None, 302, "Found", headers, f"{new}://b.example/y")


@pytest.mark.parametrize("to", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "http://[::1", "gopher://a/b"])
def test_where_a_server_may_not_lead_is_not_followed(server, tmp_path, to):
    with pytest.raises(FAILURES) as error:
        bounded(f"{server}/to/{to}", tmp_path / "file")
    assert reason(error.value).isprintable()
    assert not (tmp_path / "file").exists()
    with pytest.raises(UserError, match=r"cannot download .*; without network access, give a folder") as refused:
        archives.download(None, {"archive": f"{server}/to/{to}"})  # pyright: ignore
    assert str(refused.value).isprintable()


def test_a_circle_of_redirects_ends(server):
    with pytest.raises(FAILURES), open_url(f"{server}/to/{server}/to/to/to"):
        pass


def test_size_and_time_are_bounded(server, tmp_path):
    for address in ("huge", "endless"):
        with pytest.raises(UserError, match=rf"/{address} is larger than 1000000 bytes, the most that is allowed"):
            bounded(f"{server}/{address}", tmp_path / "file")
        assert (tmp_path / "file").stat().st_size < 3 * 10**6
    begin = time.monotonic()
    with pytest.raises(UserError, match=r"/trickle took longer than 0\.5 s, in which \d+ bytes arrived"):
        download(f"{server}/trickle", tmp_path / "file", most_bytes=10**6, most_seconds=0.5)
    assert time.monotonic() - begin < 30  # not the hours that a million bytes would take
    with pytest.raises(
        ConnectionError, match=f"the server closed the connection after {len(CONTENT)} of 1000000 bytes"
    ):
        bounded(f"{server}/cut", tmp_path / "file")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("huge", "larger than"),
        ("endless", "larger than"),
        ("trickle", "took longer"),
        ("cut", r"cannot download .*closed the connection after 8000 of 1000000 bytes.*: without network access"),
        ("to/file:///etc/passwd", r"cannot download .*file:///etc/passwd' is not allowed\): without network access"),
    ],
)
def test_nothing_is_left_of_weights_that_did_not_come(server, tmp_path, monkeypatch, address, message):
    monkeypatch.setenv("INCEPTION_JAX_DATA", str(tmp_path))
    monkeypatch.setattr(published, "MOST_BYTES", 10**5)
    monkeypatch.setattr(published, "MOST_SECONDS", 1.0)
    if address == "cut":
        monkeypatch.setattr(published, "MOST_BYTES", 10**7)
    preprocessing = Preprocessing(36, 32, (0.4, 0.4, 0.4), (0.2, 0.2, 0.2))
    weights = PublishedWeights("torchvision", "resnet18", f"{server}/{address}", "0" * 8, preprocessing, "a licence")
    with pytest.raises(UserError, match=message) as error:
        fetch(weights)
    assert str(error.value).isprintable()
    assert not isinstance(error.value, WriteError)
    assert list((tmp_path / "weights").iterdir()) == []
