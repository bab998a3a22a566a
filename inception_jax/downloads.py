"""Downloads with bounded size and time that are never redirected from an encrypted connection to an unencrypted one."""

import contextlib
import http.client
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import certifi
from tqdm import tqdm

from inception_jax.errors import UserError

CONNECT_SECONDS = 20  # without a response, until a server counts as unreachable
CHUNK = 2**20  # bytes read at a time
# Errors that the network or a misbehaving server can cause; see `reason`.
FAILURES = (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError, ssl.SSLError)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to https and, from http, to http. Other schemes, such as file:// and ftp://, are refused."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new not in ("https", old):
            raise urllib.error.URLError(f"the server redirects from {old} to {new or 'nothing'}, which is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except (OSError, ValueError):
            fp.close()
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _certificates() -> ssl.SSLContext:
    """The certificates of the system, and Mozilla's: some builds of Python have none."""
    context = ssl.create_default_context()
    context.load_verify_locations(certifi.where())
    return context


@contextlib.contextmanager
def open_url(url: str, *, method: str = "GET", seconds: float = CONNECT_SECONDS) -> Iterator[http.client.HTTPResponse]:
    """The server's response; `seconds` is the longest time without a byte from it.

    Raises:
      one of FAILURES.
    """
    opener = urllib.request.build_opener(_Redirects, urllib.request.HTTPSHandler(context=_certificates()))
    try:
        answer = opener.open(urllib.request.Request(url, method=method), timeout=seconds)
    except urllib.error.HTTPError as error:
        error.close()  # an error status is a response, too
        raise
    except ValueError as error:  # the server redirects to an invalid URL
        raise urllib.error.URLError(str(error)) from error
    with answer:
        yield answer


def download(url: str, path: Path, *, most_bytes: int, most_seconds: float) -> None:
    """Downloads a URL to a file, with a progress bar on a terminal.

    Raises:
      UserError: the download is larger or takes longer than allowed.
      one of FAILURES: the server is unreachable or closes the connection.
      OSError: the file cannot be written.
    """
    end = time.monotonic() + most_seconds
    with open_url(url) as answer:
        size = answer.length or 0
        received = 0
        with (
            path.open("wb") as file,
            tqdm(total=size or None, unit="B", unit_scale=True, disable=not sys.stderr.isatty()) as bar,
        ):
            while received <= most_bytes >= size and time.monotonic() < end:
                chunk = answer.read1(CHUNK)  # returns what has arrived, so that a slow server does not block
                if not chunk:
                    break
                file.write(chunk)
                bar.update(len(chunk))
                received += len(chunk)
    if max(received, size) > most_bytes:
        raise UserError(f"{url} is larger than {most_bytes} bytes, the most that is allowed")
    if time.monotonic() >= end:
        raise UserError(f"{url} took longer than {most_seconds:g} s, in which {received} bytes arrived")
    if received < size:
        raise ConnectionError(f"the server closed the connection after {received} of {size} bytes")


def reason(error: Exception) -> str:
    """Describes a failure on one line."""
    return " ".join(str(getattr(error, "reason", error)).split()) or type(error).__name__
