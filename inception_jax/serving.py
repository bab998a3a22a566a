"""A trained network behind HTTP: a page to try it on a picture, JSON for programs, metrics for whoever runs it."""

import asyncio
import base64
import contextlib
import dataclasses
import io
import os
import secrets
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
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
from inception_jax.data.pictures import reason
from inception_jax.errors import UserError
from inception_jax.inspection import grad_cam, overlay
from inception_jax.predict import Classifier
from inception_jax.run import Run

# Pillow's names. Among its others are some for which it starts programs, such as Ghostscript. Not every build has
# AVIF.
Image.init()
FORMATS = tuple(name for name in ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP") if name in Image.OPEN)
PILLOWS_MEGAPIXELS = 89  # above, Pillow itself warns of a decompression bomb
MOST_SCANS = (
    100  # of a JPEG: encoders write about ten. Thousands fit into few bytes, and each takes a pass over all pixels
)
FILL = 0.75  # a batch is padded to the next size if it fills at least this share of it
PATHS = ("/", "/predict", "/health", "/metrics")


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
        if not 0 < self.max_megapixels <= PILLOWS_MEGAPIXELS:
            raise UserError(
                f"max_megapixels={self.max_megapixels} is not allowed: it must be above 0 and at most "
                f"{PILLOWS_MEGAPIXELS}"
            )


def decode(content: bytes, form: images.Format, max_megapixels: float) -> np.ndarray:
    """A picture that a stranger has sent, as the network's image.

    Raises:
      HTTPException: with the status and the reason, where it is no picture, is damaged or has too many pixels.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:  # reads the head alone
            width, height = image.size
        if width * height > max_megapixels * 1e6:
            raise HTTPException(
                413, f"the picture has {width}x{height} pixels; at most {max_megapixels:g} million are allowed"
            )
        if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > MOST_SCANS:
            raise HTTPException(400, f"the JPEG has more than {MOST_SCANS} scans")
        return images.decode(content, form)
    except HTTPException:
        raise
    except UnidentifiedImageError as error:
        raise HTTPException(415, f"this is no picture of a known kind: {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise HTTPException(
            413, f"the picture has too many pixels; at most {max_megapixels:g} million are allowed"
        ) from error
    except Exception as error:  # Pillow raises whatever a broken file makes it trip over
        raise HTTPException(400, f"the picture cannot be decoded: {reason(error)}") from error


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
    """The endpoints, and what they share."""

    def __init__(self, classifier: Classifier, name: str, limits: Limits):
        self.classifier, self.name, self.limits = classifier, name, limits
        self.accepted = 0
        self.batcher = Batcher(
            classifier, limits, lambda: self.accepted, lambda number: self.metrics.batches.observe(number)
        )
        self.metrics = Metrics(self.batcher.sizes, lambda: self.accepted)
        self.decoders = ThreadPoolExecutor(os.cpu_count(), "decode")
        self.heat: Callable[..., Any] | None = None
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("inception_jax"),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
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
            self.decoders.shutdown()

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
        return JSONResponse({"status": "ready", "name": self.name, "classes": len(self.classifier.class_names)})

    async def show_metrics(self, request: Request) -> Response:
        content = prometheus_client.generate_latest(self.metrics.registry)
        return Response(content, headers={"Content-Type": prometheus_client.CONTENT_TYPE_LATEST})

    async def predict(self, request: Request) -> Response:
        limits = self.limits
        top, with_heat = self._options(request)
        if self.accepted >= limits.max_queue:
            raise _come_back("too many requests are waiting")
        self.accepted += 1
        deadline = asyncio.get_running_loop().time() + limits.timeout_s
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    content = await _read(request, int(limits.max_mb * 1e6))
            except TimeoutError:
                raise HTTPException(408, f"the picture did not arrive within {limits.timeout_s:g} s") from None
            try:
                async with asyncio.timeout_at(deadline):
                    return JSONResponse(await self._answer(content, top, with_heat))
            except TimeoutError:
                raise _come_back(f"there was no answer within {limits.timeout_s:g} s") from None
        except ClientDisconnect:
            return Response(status_code=400)  # for the metrics; nobody is there to read it
        finally:
            self.accepted -= 1

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
        loop, limits = asyncio.get_running_loop(), self.limits
        form = self.classifier.form
        image = await loop.run_in_executor(self.decoders, decode, content, form, limits.max_megapixels)
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


async def _read(request: Request, most: int) -> bytes:
    """The picture in a request: its body, or the first file of a form.

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


def create_app(classifier: Classifier, name: str, limits: Limits) -> ASGIApp:
    """The ASGI application. Everything is compiled when this returns.

    Args:
      name: of the network, for its page.
    """
    service = Service(classifier, name, limits)
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
            Route("/metrics", service.show_metrics),
        ],
        exception_handlers={HTTPException: refused, Exception: failed},
        lifespan=service.lifespan,
    )
    app.router.redirect_slashes = False

    async def observed(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await app(scope, receive, send)
        started, status = time.perf_counter(), 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            await app(scope, receive, send_with_headers)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            service.metrics.requests.labels(path, status).inc()
            if path == "/predict":
                service.metrics.seconds.observe(time.perf_counter() - started)

    return observed


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


def make_server(app: ASGIApp, timeout_s: float) -> uvicorn.Server:
    """The server for `run(sockets=[...])`; when it is to end, it answers what it has accepted."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=int(timeout_s) + 5,
        )
    )


def serve(app: ASGIApp, listening: socket.socket, timeout_s: float) -> None:
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
