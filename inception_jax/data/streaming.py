"""Data sets that do not fit in memory: pictures are decoded when their batch is needed, by workers that read ahead.

A batch is a pure function of its step, so any number of workers, starting at any step, gives the same batches.
Nothing here needs JAX, so that worker processes start fast.
"""

import collections
import ctypes
import dataclasses
import hashlib
import logging
import math
import multiprocessing
import os
import signal
import struct
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from multiprocessing.context import SpawnContext
from typing import Any

import numpy as np

from inception_jax.data import sources
from inception_jax.data.images import Box, Format
from inception_jax.data.resident import Arrays
from inception_jax.data.sources import Source
from inception_jax.errors import LostError, UserError

logger = logging.getLogger(__name__)

CROP_ATTEMPTS = 10  # crops drawn before falling back to the central one (torchvision)
LOST_AT_ONCE = 3  # pictures; fewer may be missing by chance, even if they are all of a small batch
UNGUARDED = 78  # exit code of a worker whose parent's script, run again, asks for workers itself
CLOSE_SECONDS = 20.0  # that workers may take to finish when their results are not needed any more
DEATHS_IN_A_ROW = 3  # of worker processes without a batch in between, after which no new ones are started
PR_SET_PDEATHSIG = 1  # Linux's prctl: a signal for the child when its parent dies


@dataclasses.dataclass(frozen=True)
class StreamingSplit:
    """Some of the pictures of one or several sources, decoded on request.

    Attributes:
      sources: where the encoded pictures are.
      source_of: int `(n,)`: the index of each example's source.
      rows: int64 `(n,)`: each example's row in its source.
      labels: int32 `(n,)`.
      gray: bool `(n,)`: whether an example is stored without colors.
      form: what pictures are converted to; its `image_size` is not None.
      leave_out: whether a picture that cannot be decoded any more is left out with a warning, instead of an error.
    """

    sources: tuple[Source, ...]
    source_of: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    gray: np.ndarray
    form: Format
    leave_out: bool = True

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        assert self.form.image_size is not None
        return self.form.image_size, self.form.image_size, self.form.channels

    def all_labels(self) -> np.ndarray:
        """The labels of the split's examples in its order: int32 `(len(self),)`."""
        return self.labels

    def grayscale(self) -> np.ndarray:
        """bool `(len(self),)`: which examples are stored without colors."""
        return self.gray

    def gather(self, positions: np.ndarray) -> Arrays:
        """The examples at `positions` (int, `(b,)`, each from 0 to `len(self) - 1`), decoded by several threads.

        Returns:
          images uint8 `(b, h, w, c)` and labels int32 `(b,)`.

        Raises:
          UserError: a picture cannot be decoded any more.
        """
        positions = np.asarray(positions)
        if positions.size and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"positions must be from 0 to {len(self) - 1}")
        images = np.empty((len(positions), *self.image_shape), np.uint8)

        def fill(row: int) -> None:
            images[row] = self.decode(positions[row])

        for _ in _threads().map(fill, range(len(positions))):
            pass
        return images, self.labels[positions]

    def decode(self, position: int, crop: Callable[[int, int], Box] | None = None) -> np.ndarray:
        """One picture: uint8 `(h, w, c)`.

        Args:
          crop: (height, width) of the picture -> what is cut out of it; None: as the split's form says.
        """
        return sources.decode(self.sources[self.source_of[position]], int(self.rows[position]), self.form, crop)

    def whole(self, position: int) -> np.ndarray:
        """One picture at its own size, with the form's channels and padding: uint8 `(height, width, channels)`."""
        form = dataclasses.replace(self.form, image_size=None)
        return sources.decode(self.sources[self.source_of[position]], int(self.rows[position]), form)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Random resized crop of pictures at full size, a function of (seed, epoch, position in the split).

    Attributes:
      scale: smallest and largest share of the picture's area.
      ratio: smallest and largest width / height.
    """

    seed: int
    scale: tuple[float, float]
    ratio: tuple[float, float]

    def draw(self, epoch: int, position: int, height: int, width: int) -> Box:
        """A box (left, top, right, bottom) in whole pixels, distributed as torchvision's RandomResizedCrop has them.

        The share of the area is uniform in `scale` and width / height is log-uniform in `ratio`. The first of ten such
        boxes that fits is placed uniformly; if none fits, the largest central box within `ratio` is used.
        """
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(CROP_ATTEMPTS):
            # A hash is a random function of all this, and many times faster than setting up a generator.
            numbers = struct.pack("<4Q", self.seed % 2**64, epoch, position, attempt)
            words = struct.unpack("<4Q", hashlib.blake2b(numbers, digest_size=32).digest())
            share, shape, down, right = (2.0**-53 * (word >> 11) for word in words)
            area = height * width * (self.scale[0] + share * (self.scale[1] - self.scale[0]))
            aspect = math.exp(low + shape * (high - low))
            box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
            if 0 < box_height <= height and 0 < box_width <= width:
                top = math.floor(down * (height - box_height + 1))
                left = math.floor(right * (width - box_width + 1))
                return left, top, left + box_width, top + box_height
        box_height = min(height, max(1, round(width / self.ratio[0])))
        box_width = min(width, max(1, round(height * self.ratio[1])))
        top, left = (height - box_height) // 2, (width - box_width) // 2
        return left, top, left + box_width, top + box_height


@dataclasses.dataclass(frozen=True)
class _LoadBatch:
    """step -> (images, labels, at each row -1, or the position of an example that could not be read)."""

    split: StreamingSplit
    positions: Callable[[int], np.ndarray]
    crop: RandomCrop | None
    steps_per_epoch: int

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        positions = self.positions(step)
        images = np.empty((len(positions), *self.split.image_shape), np.uint8)
        labels = self.split.labels[positions]
        failed = np.full(len(positions), -1)
        for row, position in enumerate(positions):
            try:
                images[row] = self._decode(step, position)
            except UserError as error:
                if not self.split.leave_out:
                    raise
                failed[row] = position
                self._require_few(positions, failed, error)
        for row in np.flatnonzero(failed >= 0):
            # The next example that can be read replaces one that cannot, the same in every process.
            for candidate in range(positions[row] + 1, positions[row] + 1 + len(self.split)):
                candidate %= len(self.split)
                try:
                    images[row], labels[row] = self._decode(step, candidate), self.split.labels[candidate]
                    break
                except UserError as error:
                    last = error
            else:
                raise _lost("all pictures of the split", last)
        return images, labels, failed

    @staticmethod
    def _require_few(positions: np.ndarray, failed: np.ndarray, error: UserError) -> None:
        """Raises if a batch lacks more than a picture here and there: then a folder is gone."""
        lost, wanted = len(np.unique(failed[failed >= 0])), len(np.unique(positions))
        if lost >= LOST_AT_ONCE and 2 * lost > wanted:
            raise _lost(f"more than half of the {wanted} pictures of a batch", error)

    def _decode(self, step: int, position: int) -> np.ndarray:
        return self.split.decode(position, self._crop(step, position))

    def _crop(self, step: int, position: int) -> Callable[[int, int], Box] | None:
        if self.crop is None:
            return None
        crop, epoch = self.crop, step // self.steps_per_epoch
        return lambda height, width: crop.draw(epoch, position, height, width)


def _lost(what: str, error: UserError) -> UserError:
    return UserError(f"{what} are lost: {error}. Restore them; the same command then continues")


class _Context(SpawnContext):
    """Starts processes and knows their exit codes. Spawned: forking a process that runs JAX may hang."""

    def __init__(self) -> None:
        super().__init__()
        self._started: list[Any] = []

    # The executor calls it; typeshed has it as a class.
    def Process(self, *args: Any, **options: Any) -> Any:  # noqa: N802  # pyright: ignore
        process = SpawnContext.Process(*args, **options)
        self._started.append(process)
        return process

    def exit_codes(self) -> set[int | None]:
        return {process.exitcode for process in self._started}


def batches(
    split: StreamingSplit,
    positions: Callable[[int], np.ndarray],
    first: int,
    last: int,
    *,
    num_workers: int = 0,
    crop: RandomCrop | None = None,
    steps_per_epoch: int = 1,
) -> Generator[tuple[np.ndarray, np.ndarray, np.ndarray], None, None]:
    """The batches of the steps from `first` up to, but not including, `last`, read ahead.

    Args:
      split: the examples.
      positions: step -> the positions of its examples in the split, int `(b,)`; it can be pickled.
      first, last: steps.
      num_workers: number of processes that decode; 0: threads of this process.
      crop: what is cut out of each picture before it is resized; None: as the split's form says.
      steps_per_epoch: of the crops, which are drawn for each epoch.

    Yields:
      images uint8 `(b, h, w, c)`, labels int32 `(b,)`, both new arrays, and mask bool `(b,)`: False if the picture
      could not be decoded any more and the next one of the split replaces it.

    Raises:
      UserError: a picture cannot be decoded any more and the split does not leave such pictures out; or more than half
        of a batch (and at least three pictures) cannot, so that a folder is gone; or workers cannot start because this
        is a script without `if __name__ == "__main__":`.
      LostError: workers die repeatedly.
    """
    if num_workers:
        end_unguarded_worker()
    load = _LoadBatch(split, positions, crop, steps_per_epoch)
    run, ahead = (_run_in_worker, 2 * num_workers) if num_workers else (load, _cpus() + 1)
    context, told = _Context(), set()
    due: collections.deque[Future] = collections.deque()
    pool, deaths, step = _start_pool(load, num_workers, context), 0, first
    try:
        while step < last:
            try:
                while len(due) <= ahead and step + len(due) < last:
                    due.append(pool.submit(run, step + len(due)))
                images, labels, failed = due[0].result()
            except BrokenExecutor as error:
                deaths += 1
                pool.shutdown(wait=True, cancel_futures=True)
                _report_death(deaths, num_workers, context, error)
                due.clear()
                pool = _start_pool(load, num_workers, context)
                continue
            due.popleft()
            deaths, step = 0, step + 1
            for position in set(failed[failed >= 0].tolist()) - told:
                told.add(position)
                name = split.sources[split.source_of[position]].name(int(split.rows[position]))
                logger.warning("%s can no longer be decoded: left out", name)
            yield images, labels, failed < 0
    finally:
        # A worker that waits for an unresponsive disk must not keep a failed process alive.
        close = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True}, daemon=True)
        close.start()
        close.join(CLOSE_SECONDS)


def _cpus() -> int:
    return os.cpu_count() or 1


def _start_pool(load: _LoadBatch, num_workers: int, context: _Context) -> Executor:
    """Threads of this process, or as many processes as there are workers."""
    if not num_workers:
        return ThreadPoolExecutor(_cpus(), thread_name_prefix="batch")
    return ProcessPoolExecutor(num_workers, mp_context=context, initializer=_start_worker, initargs=(load, os.getpid()))


def _report_death(deaths: int, num_workers: int, context: _Context, error: BrokenExecutor) -> None:
    """Warns that a worker died.

    Raises:
      UserError: it could not start, see `batches`.
      LostError: it died for the last time in a row that is tolerated.
    """
    usual = "too little memory or a small /dev/shm is the usual cause"
    if UNGUARDED in context.exit_codes():
        raise UserError(
            f"data.num_workers={num_workers} starts processes, which begin by running this script again: "
            'wrap what it does in `if __name__ == "__main__":`, or set data.num_workers=0'
        ) from None
    if deaths == DEATHS_IN_A_ROW:
        raise LostError(
            f"processes that decode pictures died {deaths} times without a batch: {usual}. "
            "Choose a smaller data.num_workers, or 0"
        ) from error
    logger.warning("a process that decodes pictures died: %s. New ones take over", usual)


def end_unguarded_worker() -> None:
    """Ends a process that is starting up, by running its parent's script, and is about to start processes itself.

    Python does not allow this and prints a traceback in each of them; the parent reports it in one line.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(UNGUARDED)


_load: _LoadBatch  # of a worker; sent once, not with every step


def _start_worker(load: _LoadBatch, parent: int) -> None:
    """Leaves Ctrl-C to the parent, and makes sure that the worker does not outlive it."""
    global _load
    _load = load
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # the parent died before
            os._exit(1)


def _run_in_worker(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _load(step)
