"""The limits of a server, and how the pictures of many requests share the processor and the network."""

import asyncio
import contextlib
import ctypes
import dataclasses
import heapq
import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from starlette.exceptions import HTTPException

from inception_jax.data import images
from inception_jax.data.images import FORMATS
from inception_jax.errors import UserError
from inception_jax.inference.predictor import Predictor

MOST_MEGAPIXELS = 89  # largest limit that may be set: such pictures take up to 1 GB while being decoded
LARGE = 16_000_000  # pixels, times the scans of a JPEG: from this size, pictures are decoded one at a time
MOST_THREADS = 8  # maximum for decoding, since each may hold a picture of nearly LARGE: 0.1 GB
FILL = 0.75  # a batch is padded to the next size if it fills at least this fraction of it


@dataclasses.dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
      max_batch: pictures per batch.
      max_wait_ms: milliseconds that a picture waits for others that are on the way.
      max_queue: requests that are accepted and not yet answered; more are told to try again.
      max_mb: megabytes (10^6) of a request's body.
      max_megapixels: millions of pixels of a picture.
      timeout_s: seconds from a request's head to its answer.

    Raises:
      UserError: a value is not allowed.
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
        """Maximum number of pixels of a picture."""
        return int(self.max_megapixels * 1e6)


def _attempt(function: Callable[[], Any]) -> Any:
    """The function's result, or an HTTPException that describes why a picture made it raise.

    Returned rather than raised, and without a cause: a raised exception keeps its frames, and what they hold of the
    picture, alive until it is garbage collected.
    """
    try:
        return function()
    except images.TooLargeError as error:
        return HTTPException(413, f"the picture is too large: {error}")
    except UnidentifiedImageError:
        return HTTPException(415, f"the picture is not in a supported format: {', '.join(FORMATS)}")
    except Exception as error:  # Pillow may raise anything for a broken file
        return HTTPException(400, f"the picture cannot be decoded: {images.reason(error)}")


# For glibc, which otherwise keeps the memory of large pictures: each decoding thread has its own heap.
_give_back_memory = getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: 0)


class Decoders:
    """Threads that decode pictures: those of the least effort first, and large ones one at a time.

    Memory is thus bounded by the largest picture and small ones in the other threads, and small pictures do not wait
    for large ones.
    """

    def __init__(self, threads: int):
        self._threads = max(2, min(threads, MOST_THREADS))
        self._pool = ThreadPoolExecutor(self._threads, "decode")
        self._waiting: list[tuple[int, int, Callable[[], Any], asyncio.Future]] = []
        self._numbers = itertools.count()
        self._running = self._large = 0

    async def run(self, effort: int, function: Callable[[], Any]) -> Any:
        """The function's result; it is not called if this is canceled before its turn.

        Raises:
          HTTPException: the function raised, so the picture is refused.
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
                return  # only large ones are waiting
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
    """Counts the bytes of requests in memory; if there are too many, the largest request is aborted.

    Requests are identified by the timeouts that end them.
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
    """Runs the pictures of concurrent requests through the network together, in batches of precompiled sizes.

    Attributes:
      sizes: batch sizes: the powers of two below the largest, and the largest.
    """

    def __init__(
        self, classifier: Predictor, limits: Limits, expected: Callable[[], int], observe: Callable[[int], None]
    ):
        """`expected` returns how many pictures may be in progress or waiting; `observe` gets batch sizes."""
        self.sizes = [*(2**n for n in range((limits.max_batch - 1).bit_length())), limits.max_batch]
        self._classifier = classifier
        self._max_wait = limits.max_wait_ms / 1000
        self._expected = expected
        self._observe = observe
        self._waiting: deque[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = deque()
        self._arrived = asyncio.Event()
        self._device = ThreadPoolExecutor(1, "device")  # one task at a time uses all cores, or the accelerator

    def warm_up(self) -> None:
        """Compiles everything that requests will need."""
        blank = images.convert(Image.new("RGB", (64, 64)), self._classifier.form)
        for size in self.sizes:
            self._classifier.compute(np.stack([blank] * size))

    async def logits(self, image: np.ndarray) -> np.ndarray:
        """Logits (classes,) of one image (height, width, channels)."""
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((image, future))
        self._arrived.set()
        return await future

    async def on_device(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's result, computed between two batches."""
        return await asyncio.get_running_loop().run_in_executor(self._device, function, *args)

    async def run(self) -> None:
        """Processes arriving pictures until canceled."""
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
                logits = await self.on_device(lambda padded: self._classifier.compute(np.stack(padded)), padded)
            except Exception as error:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
            else:
                for (_, future), row in zip(batch, logits, strict=False):
                    if not future.done():
                        future.set_result(row)

    async def _gather(self) -> None:
        """Returns once a picture and all others in progress are waiting, or it has waited long enough."""
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

        Padding costs as much as pictures do, so a batch that would need much padding is made smaller; the rest follows.
        """
        below = max(size for size in self.sizes if size <= waiting)
        above = min((size for size in self.sizes if size > waiting), default=below)
        return (above, waiting) if waiting >= FILL * above and above > below else (below, below)

    def close(self) -> None:
        self._device.shutdown()
