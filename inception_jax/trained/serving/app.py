"""A trained network behind HTTP: a page to try it on a picture, JSON for programs, metrics for whoever runs it."""

import asyncio
import base64
import contextlib
import ctypes
import dataclasses
import heapq
import io
import itertools
import os
import secrets
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import FrameType
from typing import Any

import jax
import jinja2
import numpy as np
import prometheus_client
import uvicorn
from PIL import Image, UnidentifiedImageError
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inception_jax.data import images
from inception_jax.data.images import FORMATS
from inception_jax.errors import UserError
from inception_jax.inspection import grad_cam, overlay
from inception_jax.runs.run import Run
from inception_jax.text import page_text
from inception_jax.trained.predict import Classifier
from inception_jax.trained.serving.connections import Access, Connection

MOST_MEGAPIXELS = 89  # that a server may be told to take: they are up to 1 GB while they are decoded
LARGE = 16_000_000  # pixels, times the scans of a JPEG, from which on a picture is decoded while no other such one is
BYTE_EFFORT = 2  # that a byte of a file is taken for, in pixels, until its head was read
MOST_THREADS = 8  # that decode, since each may hold a picture of nearly LARGE: 0.1 GB
BODIES = 8  # of the largest size, that are in memory at once
FILL = 0.75  # a batch is padded to the next size if it fills at least this share of it
PATHS = ("/", "/predict", "/health", "/live", "/ready", "/metrics")
OPEN_PATHS = ("/", "/health", "/live", "/ready")  # to those without a token, too
TICK_SECONDS = 0.1  # uvicorn's


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a server takes on.

    Attributes:
      max_batch: pictures that go through the network at once.
      max_wait_ms: milliseconds that a picture waits for others that are on their way.
      max_queue: requests that are accepted and not yet answered; more are told to come back.
      max_mb: megabytes (10^6) of a request's body.
      max_megapixels: million pixels of a picture.
      timeout_s: seconds from a request's head to its answer.

    Raises:
      UserError: a value that is not allowed.
    """

    max_batch: int = 16
    max_wait_ms: float = 5.0
    max_queue: int = 64
    max_mb: float = 16.0
    max_megapixels: float = 50.0
    timeout_s: float = 10.0

    def __post_init__(self):
        for name in ("max_batch", "max_queue"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)} is not allowed: it must be at least 1")
        for name in ("max_mb", "timeout_s"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"{name}={getattr(self, name)} is not allowed: it must be above 0, and finite")
        if not 0 <= self.max_wait_ms < float("inf"):
            raise UserError(f"max_wait_ms={self.max_wait_ms} is not allowed: it must be at least 0, and finite")
        if not 0 < self.max_megapixels <= MOST_MEGAPIXELS:
            raise UserError(
                f"max_megapixels={self.max_megapixels} is not allowed: it must be above 0 and at most {MOST_MEGAPIXELS}"
            )

    @property
    def max_pixels(self) -> int:
        """Of a picture."""
        return int(self.max_megapixels * 1e6)


def _attempt(function: Callable[[], Any]) -> Any:
    """The function's result; for what a stranger's picture makes it raise, the HTTPException that says so.

    Returned and without a cause: an exception that goes around keeps the frames that it came through, and what they
    hold of the picture, until the garbage collector finds it.
    """
    try:
        return function()
    except images.TooLargeError as error:
        return HTTPException(413, f"the picture is too large: {error}")
    except UnidentifiedImageError:
        return HTTPException(415, f"this is no picture of a known kind: {', '.join(FORMATS)}")
    except Exception as error:  # Pillow raises whatever a broken file makes it trip over
        return HTTPException(400, f"the picture cannot be decoded: {images.reason(error)}")


# Of glibc, which otherwise keeps what large pictures took: each decoding thread has a heap of its own.
_give_back_memory = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)


class Decoders:
    """Threads that decode pictures: those of the least effort first, and of large ones one at a time.

    So memory is bounded by the largest picture and small ones in the other threads, and whoever sends a small one does
    not wait for those who send large ones.
    """

    def __init__(self, threads: int):
        self._threads = max(2, min(threads, MOST_THREADS))
        self._pool = ThreadPoolExecutor(self._threads, "decode")
        self._waiting: list[tuple[int, int, Callable[[], Any], asyncio.Future]] = []
        self._numbers = itertools.count()
        self._running = self._large = 0

    async def run(self, effort: int, function: Callable[[], Any]) -> Any:
        """The function's result; it is not called if this is cancelled before its turn comes.

        Raises:
          HTTPException: the function raised something: the picture is refused.
        """
        result = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (effort, next(self._numbers), function, result))
        self._start()
        answer = await result
        if isinstance(answer, HTTPException):
            raise answer
        return answer

    def _start(self) -> None:
        while self._waiting and self._running < self._threads:
            effort, _, function, result = self._waiting[0]
            large = effort >= LARGE
            if not result.done() and large and self._large:
                return  # all that wait are large
            heapq.heappop(self._waiting)
            if result.done():  # given up
                continue
            self._running += 1
            self._large += large
            work = asyncio.get_running_loop().run_in_executor(self._pool, self._work, function, large)
            work.add_done_callback(partial(self._done, large, result))

    @staticmethod
    def _work(function: Callable[[], Any], large: bool) -> Any:
        answer = _attempt(function)
        if large:
            _give_back_memory(0)
        return answer

    def _done(self, large: bool, result: asyncio.Future, work: asyncio.Future) -> None:
        self._running -= 1
        self._large -= large
        if not result.done():
            result.set_result(work.result())
        self._start()

    def close(self) -> None:
        self._pool.shutdown()


class Bodies:
    """The bytes of requests that are in memory; when there are too many, the request with the most is given up.

    Requests are known by the timeouts that end them.
    """

    def __init__(self, most: int):
        self.most, self.total = most, 0
        self.given_up: set[asyncio.Timeout] = set()
        self._sizes: dict[asyncio.Timeout, int] = {}

    def add(self, timeout: asyncio.Timeout, number: int) -> None:
        """Counts bytes that have arrived."""
        self._sizes[timeout] = self._sizes.get(timeout, 0) + number
        self.total += number
        while self.total > self.most:
            largest = max(self._sizes, key=self._sizes.__getitem__)
            self.total -= self._sizes.pop(largest)
            self.given_up.add(largest)
            if not largest.expired():
                largest.reschedule(asyncio.get_running_loop().time())

    def remove(self, timeout: asyncio.Timeout) -> None:
        self.total -= self._sizes.pop(timeout, 0)
        self.given_up.discard(timeout)


class Batcher:
    """Pictures of concurrent requests go through the network together, in batches of sizes that are compiled before.

    Attributes:
      sizes: of the batches: the powers of two below the largest, and the largest.
    """

    def __init__(
        self, classifier: Classifier, limits: Limits, expected: Callable[[], int], observe: Callable[[int], None]
    ):
        """`expected` tells how many pictures may be under way, waiting ones included; `observe` gets batch sizes."""
        self.sizes = [*(2**n for n in range((limits.max_batch - 1).bit_length())), limits.max_batch]
        self._classifier = classifier
        self._max_wait = limits.max_wait_ms / 1000
        self._expected = expected
        self._observe = observe
        self._waiting: deque[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = deque()
        self._arrived = asyncio.Event()
        self._device = ThreadPoolExecutor(1, "device")  # one thing at a time has all the cores, or the accelerator

    def warm_up(self) -> None:
        """Compiles all that requests will need."""
        blank = images.convert(Image.new("RGB", (64, 64)), self._classifier.form)
        for size in self.sizes:
            self._classifier.logits(np.stack([blank] * size))

    async def logits(self, image: np.ndarray) -> np.ndarray:
        """Of one image (height, width, channels): (classes,)."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((image, future))
        self._arrived.set()
        return await future

    async def on_device(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's result, computed between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._device, function, *args)

    async def run(self) -> None:
        """Serves what arrives until it is cancelled."""
        while True:
            await self._gather()
            size, number = self._next_size(len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(number)]
            batch = [(image, future) for image, future in batch if not future.done()]  # some have waited too long
            if not batch:
                continue
            self._observe(len(batch))
            padded = [image for image, _ in batch] + [batch[0][0]] * (size - len(batch))
            try:
                logits = await self.on_device(lambda padded: self._classifier.logits(np.stack(padded)), padded)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), row in zip(batch, logits, strict=False):
                    if not future.done():
                        future.set_result(row)

    async def _gather(self) -> None:
        """Returns once a picture waits, and with it the others that were under way, or it has waited long enough."""
        if not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._max_wait):
                while len(self._waiting) < min(self.sizes[-1], self._expected()):
                    self._arrived.clear()
                    await self._arrived.wait()

    def _next_size(self, waiting: int) -> tuple[int, int]:
        """The next batch's size and how many of the waiting pictures are in it.

        Padding costs as much as pictures do: a batch that would be padded much is a smaller one, and the others follow.
        """
        below = max(size for size in self.sizes if size <= waiting)
        above = min((size for size in self.sizes if size > waiting), default=below)
        return (above, waiting) if waiting >= FILL * above and above > below else (below, below)

    def close(self) -> None:
        self._device.shutdown()


class Metrics:
    """What happened, in Prometheus' terms; each server has its own."""

    def __init__(self, sizes: list[int], accepted: Callable[[], int]):
        self.registry = prometheus_client.CollectorRegistry()
        options: dict[str, Any] = {"namespace": "inception_jax", "registry": self.registry}
        self.requests = prometheus_client.Counter("requests", "Answered requests", ["path", "status"], **options)
        self.seconds = prometheus_client.Histogram(
            "predict_seconds", "From the head of a request to /predict to the end of its answer", **options
        )
        self.batches = prometheus_client.Histogram(
            "batch_size", "Pictures that went through the network together", buckets=sizes, **options
        )
        queue = prometheus_client.Gauge("queue_length", "Requests accepted and not yet answered", **options)
        queue.set_function(accepted)


class Service:
    """The endpoints, and what they share.

    Attributes:
      accepted: pictures that have arrived and are not answered.
      draining: the server is to end; it takes on nothing new.
    """

    def __init__(self, classifier: Classifier, name: str, limits: Limits, access: Access):
        self.classifier, self.name, self.limits, self.access = classifier, name, limits, access
        self.accepted = 0
        self.draining = False
        self.bodies = Bodies(int(BODIES * limits.max_mb * 1e6))
        self.batcher = Batcher(
            classifier, limits, lambda: self.accepted, lambda number: self.metrics.batches.observe(number)
        )
        self.metrics = Metrics(self.batcher.sizes, lambda: self.accepted)
        self.decoders = Decoders(os.cpu_count() or 1)
        self.heat: Callable[..., Any] | None = None
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("inception_jax"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
            finalize=page_text,
        )
        self.template = environment.get_template("serve.html")

    def warm_up(self) -> None:
        """Compiles all that requests will need."""
        self.batcher.warm_up()
        if isinstance(self.classifier, Run):
            run = self.classifier
            # Compiled as a whole: grad_cam by itself looks for the layer anew at every call.
            heat = jax.jit(lambda variables, images: grad_cam(run.model, variables, run.normalize(images)))
            self.heat = lambda image: np.asarray(heat(run.variables, image[None]))[0]
            try:
                self._overlay(images.convert(Image.new("RGB", (64, 64)), run.form))
            except UserError:  # a network without maps
                self.heat = None

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette):
        running = asyncio.create_task(self.batcher.run())
        try:
            yield
        finally:
            running.cancel()
            self.batcher.close()
            self.decoders.close()

    def _overlay(self, image: np.ndarray) -> bytes:
        assert self.heat is not None
        encoded = io.BytesIO()
        Image.fromarray(overlay(image, self.heat(image)).array).save(encoded, "PNG", compress_level=1)
        return encoded.getvalue()

    async def page(self, request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        page = self.template.render(
            name=self.name,
            class_names=self.classifier.class_names,
            form=self.classifier.form,
            grad_cam=self.heat is not None,
            token=self.access.token is not None,
            limits=self.limits,
            formats=FORMATS,
            address=str(request.base_url),
            nonce=nonce,
        )
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src blob: data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    async def health(self, request: Request) -> Response:
        about = {"name": self.name, "classes": len(self.classifier.class_names)}
        return JSONResponse({"status": "ready"} | (about if self.access.token is None else {}))

    async def live(self, request: Request) -> Response:
        return JSONResponse({"status": "live"})

    async def ready(self, request: Request) -> Response:
        if self.draining:
            return JSONResponse({"status": "ending"}, 503)
        return JSONResponse({"status": "ready"})

    async def show_metrics(self, request: Request) -> Response:
        content = prometheus_client.generate_latest(self.metrics.registry)
        return Response(content, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})

    async def predict(self, request: Request) -> Response:
        limits = self.limits
        top, with_heat = self._options(request)
        if self.draining:
            raise _come_back("the server is about to end")
        self._require_room()
        timeout = asyncio.timeout(limits.timeout_s)
        content = None
        try:
            async with timeout:
                content = await _read(request, int(limits.max_mb * 1e6), partial(self.bodies.add, timeout))
                self._require_room()
                self.accepted += 1
                try:
                    return JSONResponse(await self._answer(content, top, with_heat))
                finally:
                    self.accepted -= 1
        except TimeoutError:
            if timeout in self.bodies.given_up:
                raise _come_back("too many large requests are waiting") from None
            if content is None:
                raise HTTPException(408, f"the picture did not arrive within {limits.timeout_s:g} s") from None
            raise _come_back(f"there was no answer within {limits.timeout_s:g} s") from None
        except ClientDisconnect:
            return Response(status_code=400)  # for the metrics; nobody is there to read it
        finally:
            self.bodies.remove(timeout)

    def _require_room(self) -> None:
        """Raises HTTPException where the queue is full."""
        if self.accepted >= self.limits.max_queue:
            raise _come_back("too many requests are waiting")

    def _options(self, request: Request) -> tuple[int, bool]:
        """How many classes are asked for, and whether a heat map is."""
        classes = len(self.classifier.class_names)
        top, with_heat = request.query_params.get("top", "5"), request.query_params.get("grad_cam", "0")
        if not (top.isascii() and top.isdecimal() and len(top) < 10 and int(top) > 0):
            raise HTTPException(400, "top must be a whole number of at least 1")
        if with_heat not in ("0", "1"):
            raise HTTPException(400, "grad_cam must be 0 or 1")
        if with_heat == "1" and self.heat is None:
            raise HTTPException(400, "grad_cam=1 is not possible here: it needs a run whose network has maps")
        return min(int(top), classes), with_heat == "1"

    async def _answer(self, content: bytes, top: int, with_heat: bool) -> dict[str, Any]:
        form, max_pixels = self.classifier.form, self.limits.max_pixels
        looking = partial(images.effort, content, max_pixels=max_pixels)
        effort = await self.decoders.run(len(content) * BYTE_EFFORT, looking)
        decoding = partial(images.decode, content, form, max_pixels=max_pixels)
        image = await self.decoders.run(effort, decoding)
        logits = (await self.batcher.logits(image)).astype(np.float64)
        odds = np.exp(logits - logits.max())
        probabilities = odds / odds.sum()
        names = self.classifier.class_names
        best = np.argsort(-probabilities, kind="stable")[:top]
        answer: dict[str, Any] = {
            "classes": [{"name": names[index], "probability": float(probabilities[index])} for index in best]
        }
        if with_heat:
            encoded = await self.batcher.on_device(self._overlay, image)
            answer["grad_cam"] = f"data:image/png;base64,{base64.b64encode(encoded).decode()}"
        return answer


def _come_back(why: str) -> HTTPException:
    return HTTPException(503, f"{why}: try again", headers={"Retry-After": "1"})


async def _read(request: Request, most: int, arrived_bytes: Callable[[int], None]) -> bytes:
    """The picture in a request: its body, or the first file of a form.

    Args:
      arrived_bytes: is told of every part of the body how many bytes it has.

    Raises:
      HTTPException: there is none, or the body has more than so many bytes.
    """
    arrived = 0

    async def receive() -> Message:
        nonlocal arrived
        message = await request.receive()
        arrived += len(message.get("body", b""))
        if arrived > most:
            raise OverflowError
        arrived_bytes(len(message.get("body", b"")))
        return message

    length = request.headers.get("content-length", "0")
    limited = Request(request.scope, receive)
    try:
        if length.isdecimal() and int(length) > most:
            raise OverflowError
        if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            async with limited.form(max_files=1, max_fields=10) as form:
                files = [value for value in form.values() if isinstance(value, UploadFile)]
                content = await files[0].read() if files else b""
        else:
            content = await limited.body()
    except OverflowError:
        # A client that reads only after it has sent would find the connection gone: it may send, to nowhere. One that
        # asks first is told at once.
        if "expect" not in request.headers:
            while (message := await request.receive()).get("more_body") and message["type"] != "http.disconnect":
                pass
        raise HTTPException(413, f"the request is too large; at most {most / 1e6:g} MB are allowed") from None
    if not content:
        raise HTTPException(400, "there is no picture in the request: send one as its body, or as a form's file")
    return content


class Guarded:
    """An ASGI application behind who may ask; it counts what happens.

    Attributes:
      service: what is behind it.
      under_way: requests that are not answered.
    """

    def __init__(self, app: ASGIApp, service: Service):
        self._app, self.service, self.under_way = app, service, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, status = time.perf_counter(), 500
        service, path = self.service, scope["path"] if scope["path"] in PATHS else "other"

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        self.under_way += 1
        try:
            local, _ = scope["server"]
            refusal = service.access.refusal(scope["headers"], local, secret=path not in OPEN_PATHS)
            if refusal:
                status, why = refusal
                headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
                answer = JSONResponse({"error": why}, status, headers=headers)
                await answer(scope, receive, send_with_headers)
            else:
                await self._app(scope, receive, send_with_headers)
        finally:
            self.under_way -= 1
            service.metrics.requests.labels(path, status).inc()
            if path == "/predict":
                service.metrics.seconds.observe(time.perf_counter() - started)


def create_app(classifier: Classifier, name: str, limits: Limits, access: Access | None = None) -> Guarded:
    """The ASGI application. Everything is compiled when this returns.

    Args:
      name: of the network, for its page.
      access: who is answered; None: whoever addresses this machine by a name of loopback, or the address it came to.
    """
    service = Service(classifier, name, limits, access or Access())
    service.warm_up()

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "the server made a mistake, and has logged it"}, 500)

    app = Starlette(
        routes=[
            Route("/", service.page),
            Route("/predict", service.predict, methods=["POST"]),
            Route("/health", service.health),
            Route("/live", service.live),
            Route("/ready", service.ready),
            Route("/metrics", service.show_metrics),
        ],
        exception_handlers={HTTPException: refused, Exception: failed},
        lifespan=service.lifespan,
    )
    app.router.redirect_slashes = False
    return Guarded(app, service)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; clients that connect before the server is ready wait for it.

    Raises:
      UserError: the address is not to be had.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"port={port} is not allowed: it must be from 0 to 65535, where 0 is any free one")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except OSError as error:
        why = error.strerror or error
        raise UserError(
            f"cannot listen on {host}, port {port}: {why}. Choose another --port (0: any free one)"
        ) from error


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this machine's programs reach it."""
    address = listening.getsockname()[0]
    return address.startswith("127.") or address == "::1"


def address_of(listening: socket.socket) -> str:
    """For a browser."""
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


class Server(uvicorn.Server):
    """When it is asked to end, it says that it is not ready, answers what has been sent to it, and ends; at once when
    it is asked again."""

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
    """The server for `run(sockets=[...])`; when it is to end, it answers what it has accepted."""
    config = uvicorn.Config(
        app,
        http=Connection,
        log_level="error",  # what it warns of is what clients do
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=int(timeout_s) + 5,
    )
    return Server(config, app, timeout_s + 5)


def serve(app: Guarded, listening: socket.socket, timeout_s: float) -> None:
    """Serves until SIGTERM or SIGINT, and then answers what it has accepted. For the main thread alone."""
    server = make_server(app, timeout_s)

    def stop(*_: Any) -> None:
        server.should_exit = True

    # Uvicorn has handlers of its own while it runs; at its end it sends what it got to those that were there before.
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
