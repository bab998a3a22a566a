"""The sockets and the signals of a server."""

import signal
import socket
from types import FrameType
from typing import Any

import uvicorn

from inception_jax.errors import UserError
from inception_jax.trained.serving.app import Guarded
from inception_jax.trained.serving.connections import Connection

TICK_SECONDS = 0.1  # uvicorn's


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; clients that connect before the server is ready wait for it.

    Raises:
      UserError: the address is not available.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"port={port} is not allowed: it must be from 0 to 65535, where 0 picks a free one")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        why = error.strerror or error
        raise UserError(
            f"cannot listen on {host}, port {port}: {why}. Choose another --port (0 picks a free one)"
        ) from error


def is_loopback(listening: socket.socket) -> bool:
    """Whether only programs on this machine can reach it."""
    address = listening.getsockname()[0]
    return address.startswith("127.") or address == "::1"


def address_of(listening: socket.socket) -> str:
    """The URL for a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


class Server(uvicorn.Server):
    """When asked to stop, reports that it is not ready, answers pending requests and exits; if asked again, at once."""

    def __init__(self, config: uvicorn.Config, app: Guarded, patience_s: float):
        super().__init__(config)
        self._app, self._patience = app, patience_s

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._app.service.draining:
            super().handle_exit(sig, frame)
        self._app.service.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._app.service.draining:
            self._patience -= TICK_SECONDS
            self.should_exit = self.should_exit or not self._app.under_way or self._patience <= 0
        return await super().on_tick(counter)


def make_server(app: Guarded, timeout_s: float) -> Server:
    """Creates the server for `run(sockets=[...])`; on shutdown, it answers what it has accepted."""
    config = uvicorn.Config(
        app,
        http=Connection,
        log_level="error",  # its warnings are about what clients do
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=int(timeout_s) + 5,
    )
    return Server(config, app, timeout_s + 5)


def serve(app: Guarded, listening: socket.socket, timeout_s: float) -> None:
    """Serves until SIGTERM or SIGINT, then answers what it has accepted. For the main thread only."""
    server = make_server(app, timeout_s)

    def stop(*_: Any) -> None:
        server.should_exit = True

    # Uvicorn has its own handlers while it runs; at the end it re-raises received signals for the previous ones.
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
