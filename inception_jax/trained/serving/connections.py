"""Checks before a request is answered: access, host names, amount of data and time."""

import contextlib
import dataclasses
import hmac
import ipaddress
import json
import re
import resource
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from inception_jax.errors import UserError

MAX_HEAD = 32_768  # bytes of a request's head, and of data between requests
HEADER_BYTES = 32  # counted per header in addition to its text, for its memory overhead
HEAD_SECONDS = 5.0  # from the connection, or the previous answer, to the end of a head
LINGER_SECONDS = 1.0  # for a refused client to read the reason
# Open ones; beyond, those that have waited longest for the rest of a request are closed. Half of the file limit.
MAX_CONNECTIONS = min(256, max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))


class Connection(HttpToolsProtocol):
    """A uvicorn connection with limits on incomplete requests.

    A head must be complete within HEAD_SECONDS and MAX_HEAD bytes, or it is refused with 408 or 431. Beyond
    MAX_CONNECTIONS, the connection that has waited longest is closed: for a head, or else for the rest of a body.
    """

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.head_bytes = self.silent_bytes = 0  # silent: not yet parsed as a header or a body
        self.begun = self.refused = False
        self.timer = None
        self._await_head()
        if len(self.connections) > MAX_CONNECTIONS:
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.refused:
            return
        self.silent_bytes += len(data)
        super().data_received(data)
        if max(self.head_bytes, self.silent_bytes) > MAX_HEAD:
            self._refuse(431, f"the request headers must have at most {MAX_HEAD} bytes")

    def on_message_begin(self) -> None:
        self.begun, self.head_bytes, self.silent_bytes = True, 0, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self.head_bytes += len(url)
        self.silent_bytes = 0
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:  # also those after a chunked body
        self.head_bytes += len(name) + len(value) + HEADER_BYTES
        self.silent_bytes = 0
        if self.head_bytes <= MAX_HEAD:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self.silent_bytes = 0
        if self.head_bytes > MAX_HEAD:
            self._refuse(431, f"the request headers must have at most {MAX_HEAD} bytes")
        elif not self.refused:
            self._stop_timer()
            self.since = self.loop.time()
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self.silent_bytes = 0
        if not self.refused:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self.begun, self.silent_bytes = False, 0
        if not self.refused:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None or self.transport.is_closing():  # no other request is waiting
            self._await_head()

    def _await_head(self) -> None:
        self._stop_timer()
        self.since = self.loop.time()
        self.timer = self.loop.call_later(HEAD_SECONDS, self._be_late)

    def _stop_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None

    def _be_late(self) -> None:
        if self.begun and not self.transport.is_closing():
            self._refuse(408, f"the request headers must arrive within {HEAD_SECONDS:g} s")
        else:
            self.transport.abort()  # even if an unread answer is pending

    def _make_room(self) -> None:
        heads = [other for other in self.connections if other is not self and other.timer is not None]  # pyright: ignore[reportAttributeAccessIssue]
        bodies = [other for other in self.connections if other is not self and other.cycle and other.cycle.more_body]  # pyright: ignore[reportAttributeAccessIssue]
        if heads or bodies:
            min(heads or bodies, key=lambda other: other.since).transport.abort()  # pyright: ignore[reportAttributeAccessIssue]
        else:
            self._refuse(503, "too many requests are waiting: try again")

    def _refuse(self, status: int, why: str) -> None:
        """Sends the reason and closes later: if closed at once, a client could lose an unread answer."""
        if self.refused or self.transport.is_closing():
            return
        self.refused = True
        if self.cycle is not None and not self.cycle.response_complete:  # in the middle of another answer
            self.transport.abort()
            return
        body = json.dumps({"error": why}).encode()
        head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: application/json\r\n"
        self.transport.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        self._stop_timer()
        self.timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)
        self.since = self.loop.time()
        if self.transport.can_write_eof():
            self.transport.write_eof()


@dataclasses.dataclass(frozen=True)
class Access:
    """Which requests are answered.

    Attributes:
      names: lowercase names of this machine that requests may be addressed to, besides loopback names and the address
        they arrived at. Any other name belongs to a foreign page whose owner has pointed it here (DNS rebinding).
      token: the token that requests must carry; None: none.
    """

    names: frozenset[str] = frozenset()
    token: str | None = None

    def refusal(
        self, headers: Iterable[tuple[bytes, bytes]], local: str, *, secret: bool, version: str = "1.1"
    ) -> tuple[int, str] | None:
        """The status and the reason for refusing a request; None if it is answered.

        Args:
          local: the address that it arrived at.
          secret: whether the answer requires the token.
          version: of HTTP. A request of 1.0 needs no Host header (RFC 9112, section 3.2); browsers, which foreign pages
            could lead here, send later ones.
        """
        hosts = [value for name, value in headers if name == b"host"]
        if hosts or version != "1.0":
            if len(hosts) != 1 or (name := host_name(hosts[0].decode("latin-1"))) is None:
                return 400, "a request must have exactly one Host header, with a name or an address"
            if name not in self.names and not _is_here(name, local):
                return 421, f"the host {name} is not allowed: add it with --allowed-host"
        if self.token is None or not secret:
            return None
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if scheme.lower() == b"bearer" and hmac.compare_digest(token.strip(), self.token.encode()):
            return None
        return 401, "a token is required: send the header Authorization: Bearer TOKEN"


def host_name(value: str) -> str | None:
    """The name or address in a Host header, in lower case and without its port; None if there is none."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{0,5})?", value.strip())
    return found[1].lower().strip("[]").removesuffix(".") or None if found else None


def allowed_names(given: Iterable[str], bound: str) -> frozenset[str]:
    """The names that requests may be addressed to.

    Args:
      given: names given by the user who starts the server.
      bound: the host that it listens on.

    Raises:
      UserError: one is not a name or an address.
    """
    names = set()
    for name in (*given, bound):
        with contextlib.suppress(ValueError):
            name = f"[{ipaddress.IPv6Address(name)}]"
        found = host_name(name)
        if found is None or (":" in name and name[0] != "["):
            raise UserError(f"the host {name!r} is not allowed: give a name or an address, without a port")
        names.add(found)
    return frozenset(names)


def _is_here(name: str, local: str) -> bool:
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name)
        return address.is_loopback or address == ipaddress.ip_address(local.partition("%")[0])
    except ValueError:
        return False
