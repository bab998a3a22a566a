"""What a server takes on, and how the pictures of many requests share the processor and the network."""

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
from inception_jax.trained.predict import Classifier

MOST_MEGAPIXELS = 89  # that a server may be told to take: they are up to 1 GB while they are decoded
LARGE = 16_000_000  # pixels, times the scans of a JPEG, from which on a picture is decoded while no other such one is
MOST_THREADS = 8  # that decode, since each may hold a picture of nearly LARGE: 0.1 GB
FILL = 0.75  # a batch is padded to the next size if it fills at least this share of it


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
