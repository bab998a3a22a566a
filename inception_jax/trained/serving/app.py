"""Serves a trained network over HTTP: a page to try it on a picture, JSON for programs, metrics for operators."""

import asyncio
import base64
import contextlib
import io
import os
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import prometheus_client
from PIL import Image
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from inception_jax.data import images
from inception_jax.data.images import FORMATS
from inception_jax.errors import UserError
from inception_jax.inference.classify import top_classes
from inception_jax.inference.predictor import Predictor
from inception_jax.inspection import grad_cam, overlay
from inception_jax.runs.run import Run
from inception_jax.trained import pages
from inception_jax.trained.serving import openapi
from inception_jax.trained.serving.connections import Access
from inception_jax.trained.serving.examples import Offered
from inception_jax.trained.serving.work import Batcher, Bodies, Decoders, Limits

BYTE_EFFORT = 2  # pixels assumed per byte of a file until its head has been read
BODIES = 8  # maximum number of bodies of the largest size in memory at once
PATHS = ("/", "/predict", "/health", "/live", "/ready", "/metrics", "/openapi.json")
OPEN_PATHS = ("/", "/health", "/live", "/ready", "/openapi.json")  # accessible without a token


class Metrics:
    """Prometheus metrics; each server has its own."""

    def __init__(self, sizes: list[int], accepted: Callable[[], int]):
        self.registry = prometheus_client.CollectorRegistry()
        options: dict[str, Any] = {"namespace": "inception_jax", "registry": self.registry}
        self.requests = prometheus_client.Counter("requests", "Answered requests", ["path", "status"], **options)
        self.seconds = prometheus_client.Histogram(
            "predict_seconds", "Seconds from the request headers to the end of the response, for /predict", **options
        )
        self.batches = prometheus_client.Histogram("batch_size", "Pictures per batch", buckets=sizes, **options)
        queue = prometheus_client.Gauge("queue_length", "Requests accepted and not yet answered", **options)
        queue.set_function(accepted)


class Service:
    """The endpoints, and their shared state.

    Attributes:
      accepted: number of pictures that have arrived and are not answered yet.
      draining: whether the server is shutting down and accepts nothing new.
    """

    def __init__(
        self, classifier: Predictor, name: str, limits: Limits, access: Access, examples: Sequence[Offered] = ()
    ):
        self.classifier, self.name, self.limits, self.access, self.examples = classifier, name, limits, access, examples
        self.accepted = 0
        self.draining = False
        self.bodies = Bodies(int(BODIES * limits.max_mb * 1e6))
        self.batcher = Batcher(
            classifier, limits, lambda: self.accepted, lambda number: self.metrics.batches.observe(number)
        )
        self.metrics = Metrics(self.batcher.sizes, lambda: self.accepted)
        self.decoders = Decoders(os.cpu_count() or 1)
        self.heat: Callable[..., Any] | None = None
        self.template = pages.environment().get_template("serve.html")

    def warm_up(self) -> None:
        """Compiles everything that requests will need."""
        self.batcher.warm_up()
        if isinstance(self.classifier, Run):
            run = self.classifier
            # Compiled as a whole, since grad_cam itself searches for the layer at every call.
            heat = jax.jit(
                lambda variables, images, label: grad_cam(run.model, variables, run.normalize(images), classes=label)
            )
            self.heat = lambda image, label: np.asarray(heat(run.variables, image[None], label))[0]
            try:
                self._overlay(images.convert(Image.new("RGB", (64, 64)), run.form), 0)
            except UserError:  # a network without feature maps
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

    def _overlay(self, image: np.ndarray, label: int) -> bytes:
        """The image with the evidence for a class, as PNG."""
        assert self.heat is not None
        encoded = io.BytesIO()
        Image.fromarray(overlay(image, self.heat(image, label)).array).save(encoded, "PNG", compress_level=1)
        return encoded.getvalue()

    async def page(self, request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)
        page = self.template.render(
            name=self.name,
            class_names=self.classifier.class_names,
            form=self.classifier.form,
            grad_cam=self.heat is not None,
            token=self.access.token is not None,
            examples=[example.label for example in self.examples],
            limits=self.limits,
            formats=FORMATS,
            address=str(request.base_url),
            nonce=nonce,
        )
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' blob: data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        return HTMLResponse(page, headers={"Content-Security-Policy": policy})

    async def example(self, request: Request) -> Response:
        files = {str(number): example.png for number, example in enumerate(self.examples)}
        if (number := request.path_params["number"]) not in files:
            raise HTTPException(404, f"there are {len(files)} examples, numbered from 0")
        return Response(files[number], media_type="image/png")

    async def describe(self, request: Request) -> Response:
        return JSONResponse(openapi.description(self.name, self.limits, token=self.access.token is not None))

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
        top, heat_of = self._options(request)
        if self.draining:
            raise _come_back("the server is shutting down")
        self._require_room()
        timeout = asyncio.timeout(limits.timeout_s)
        content = None
        try:
            async with timeout:
                content = await _read(request, int(limits.max_mb * 1e6), partial(self.bodies.add, timeout))
                self._require_room()
                self.accepted += 1
                try:
                    started = time.perf_counter()
                    answer = await self._answer(content, top, heat_of)
                    spent = f"predict;dur={1000 * (time.perf_counter() - started):.1f}"
                    return JSONResponse(answer, headers={"Server-Timing": spent})
                finally:
                    self.accepted -= 1
        except TimeoutError:
            if timeout in self.bodies.given_up:
                raise _come_back("too many large requests are waiting") from None
            if content is None:
                raise HTTPException(408, f"the picture did not arrive within {limits.timeout_s:g} s") from None
            raise _come_back(f"no response within {limits.timeout_s:g} s") from None
        except ClientDisconnect:
            return Response(status_code=400)  # for the metrics only; the client is gone
        finally:
            self.bodies.remove(timeout)

    def _require_room(self) -> None:
        """Raises HTTPException if the queue is full."""
        if self.accepted >= self.limits.max_queue:
            raise _come_back("too many requests are waiting")

    def _options(self, request: Request) -> tuple[int, str | None]:
        """The number of requested classes, and the class of the requested heat map: "" for the most probable one."""
        names = self.classifier.class_names
        top, with_heat = request.query_params.get("top", "5"), request.query_params.get("grad_cam", "0")
        if not (top.isascii() and top.isdecimal() and len(top) < 10 and int(top) > 0):
            raise HTTPException(400, "top must be a whole number of at least 1")
        if with_heat not in ("0", "1"):
            raise HTTPException(400, "grad_cam must be 0 or 1")
        if with_heat == "1" and self.heat is None:
            raise HTTPException(400, "grad_cam=1 needs a run whose network has feature maps")
        heat_of = request.query_params.get("class", "")
        if heat_of and (with_heat == "0" or heat_of not in names):
            raise HTTPException(400, "class must be the name of one of the classes, and needs grad_cam=1")
        return min(int(top), len(names)), heat_of if with_heat == "1" else None

    async def _answer(self, content: bytes, top: int, heat_of: str | None) -> dict[str, Any]:
        form, max_pixels = self.classifier.form, self.limits.max_pixels
        looking = partial(images.effort, content, max_pixels=max_pixels)
        effort = await self.decoders.run(len(content) * BYTE_EFFORT, looking)
        decoding = partial(images.decode, content, form, max_pixels=max_pixels)
        image = await self.decoders.run(effort, decoding)
        logits = await self.batcher.logits(image)
        ((names, probabilities),) = top_classes(logits[None], self.classifier.class_names, top)
        answer: dict[str, Any] = {
            "classes": [
                {"name": name, "probability": probability}
                for name, probability in zip(names, probabilities, strict=True)
            ]
        }
        if heat_of is not None:
            label = self.classifier.class_names.index(heat_of) if heat_of else int(logits.argmax())
            encoded = await self.batcher.on_device(self._overlay, image, label)
            answer["grad_cam"] = f"data:image/png;base64,{base64.b64encode(encoded).decode()}"
        return answer


def _come_back(why: str) -> HTTPException:
    return HTTPException(503, f"{why}: try again", headers={"Retry-After": "1"})


async def _read(request: Request, most: int, arrived_bytes: Callable[[int], None]) -> bytes:
    """Reads the picture in a request: its body, or the first file of a form.

    Args:
      arrived_bytes: called with the number of bytes of every part of the body.

    Raises:
      HTTPException: there is none, or the body has more than `most` bytes.
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
        # A client that reads only after sending would find the connection closed, so the rest is received and dropped.
        # One that asks first is told at once.
        if "expect" not in request.headers:
            while (message := await request.receive()).get("more_body") and message["type"] != "http.disconnect":
                pass
        raise HTTPException(413, f"the request is too large: at most {most / 1e6:g} MB are allowed") from None
    if not content:
        raise HTTPException(400, "the request has no picture: send it as the body or as a form file")
    return content


class Guarded:
    """An ASGI application with access control and metrics.

    Attributes:
      service: the service behind it.
      routes: its endpoints.
      under_way: number of requests that are not answered yet.
    """

    def __init__(self, app: Starlette, service: Service):
        self._app, self.service, self.under_way = app, service, 0
        self.routes = app.routes

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
            secret, version = path not in OPEN_PATHS, scope["http_version"]
            refusal = service.access.refusal(scope["headers"], local, secret=secret, version=version)
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


def create_app(
    classifier: Predictor,
    name: str,
    limits: Limits,
    access: Access | None = None,
    examples: Sequence[Offered] = (),
) -> Guarded:
    """Creates the ASGI application. Everything is compiled when this returns.

    Args:
      name: the network's name, for its page.
      access: which requests are answered; None: those addressed to a loopback name or to the address they arrived at.
      examples: pictures that the page offers to try the network on.
    """
    service = Service(classifier, name, limits, access or Access(), examples)
    service.warm_up()

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    def failed(request: Request, error: Exception) -> Response:
        return JSONResponse({"error": "internal server error: see the server's log"}, 500)

    app = Starlette(
        routes=[
            Route("/", service.page),
            Route("/predict", service.predict, methods=["POST"]),
            Route("/examples/{number}", service.example),
            Route("/health", service.health),
            Route("/live", service.live),
            Route("/ready", service.ready),
            Route("/metrics", service.show_metrics),
            Route("/openapi.json", service.describe),
        ],
        exception_handlers={HTTPException: refused, Exception: failed},
        lifespan=service.lifespan,
    )
    app.router.redirect_slashes = False
    return Guarded(app, service)
