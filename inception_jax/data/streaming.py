"""Data sets that do not fit in memory: pictures are decoded when their batch is due, by workers that read ahead.

A batch is a pure function of its step, so that any number of workers, from any step on, gives the same batches.
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

CROP_ATTEMPTS = 10  # crops that are drawn before the central one is taken (torchvision)
LOST_AT_ONCE = 3  # pictures: fewer, even if they are all of a small batch, may be lost by themselves
UNGUARDED = 78  # exit code of a worker that runs its parent's script, which asks for workers in its turn
CLOSE_SECONDS = 20.0  # in which workers may finish what they are at when nobody wants it any more
DEATHS_IN_A_ROW = 3  # of worker processes, without a batch in between, after which no new ones are started
PR_SET_PDEATHSIG = 1  # Linux's prctl: a signal for the child when its parent dies


@dataclasses.dataclass(frozen=True)
class Split:
    """Some of the pictures of one or several sources, decoded when they are asked for.

    Attributes:
      sources: where the encoded pictures are.
      source_of: int `(n,)`: each example's source, an index.
      rows: int64 `(n,)`: each example's row there.
      labels: int32 `(n,)`.
      gray: bool `(n,)`: whether an example is stored without colours.
      form: what pictures are converted to; its `image_size` is set.
      leave_out: a picture that cannot be decoded any more is left out with a warning, instead of being an error.
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
        """bool `(len(self),)`: which examples are stored without colours."""
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


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Random resized crop of pictures at full size, keyed by (seed, epoch, position in the split).

    Attributes:
      scale: smallest and largest share of the picture's area.
      ratio: smallest and largest width / height.
    """

    seed: int
    scale: tuple[float, float]
    ratio: tuple[float, float]

    def draw(self, epoch: int, position: int, height: int, width: int) -> Box:
        """A box (left, top, right, bottom) in whole pixels, distributed as torchvision's RandomResizedCrop has them.

        The share of the area is uniform in `scale`, width / height log-uniform in `ratio`. Of ten such boxes the first
        that fits is taken, at a place drawn uniformly; where none does, the largest central one within `ratio`.
        """
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        for attempt in range(CROP_ATTEMPTS):
            # A hash is a random function of all this, and many times as fast as to set up a generator.
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
    """step -> (images, labels, position of what was to be read at each row, or -1 where it could be)."""

    split: Split
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
            # In place of one that cannot be read the next one is taken, whichever process meets it.
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
        """Nothing stands in for a folder that is gone: a batch then lacks more than a picture here and there."""
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
    return UserError(f"{what} are lost: {error}. Bring them back; the same command then goes on")


def batches(
    split: Split,
    positions: Callable[[int], np.ndarray],
    first: int,
    last: int,
    *,
    num_workers: int = 0,
    crop: RandomCrop | None = None,
    steps_per_epoch: int = 1,
) -> Generator[tuple[np.ndarray, np.ndarray, np.ndarray], None, None]:
    """The batches of the steps from `first` up to, but without, `last`, read ahead.

    Args:
      positions: step -> the positions of its examples in the split, int `(b,)`; it can be pickled.
      num_workers: processes that decode; 0: threads of this one.
      crop: what is cut out of each picture, before it is resized; None: what the split's form says.

    Yields:
      images uint8 `(b, h, w, c)`, labels int32 `(b,)`, both new arrays, and mask bool `(b,)`: False where the picture
      could not be decoded any more and the next one of the split stands in its place.

    Raises:
      UserError: that happened and the split does not leave such pictures out; or it happened to more than half of a
        batch (and to three pictures at least), so that a folder is gone; or workers cannot start, since this is a
        script without `if __name__ == "__main__":`.
      LostError: workers die again and again.
    """
    if num_workers:
        end_unguarded_worker()
    load = _LoadBatch(split, positions, crop, steps_per_epoch)
    threads = os.cpu_count() or 1
    run, ahead = (_run_in_worker, 2 * num_workers) if num_workers else (load, threads + 1)

    context = _Context()

    def start() -> Executor:
        if not num_workers:
            return ThreadPoolExecutor(threads, thread_name_prefix="batch")
        return ProcessPoolExecutor(
            num_workers,
            mp_context=context,
            initializer=_start_worker,
            initargs=(load, os.getpid()),
        )

    told = set()
    due: collections.deque[Future] = collections.deque()
    pool, deaths, step = start(), 0, first
    try:
        while step < last:
            try:
                while len(due) <= ahead and step + len(due) < last:
                    due.append(pool.submit(run, step + len(due)))
                images, labels, failed = due[0].result()
            except BrokenExecutor as error:
                deaths += 1
                usual = "too little memory or a small /dev/shm is the usual cause"
                pool.shutdown(wait=True, cancel_futures=True)
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
                logger.warning("a process that decodes pictures died: %s. New ones go on", usual)
                due.clear()
                pool = start()
                continue
            due.popleft()
            deaths, step = 0, step + 1
            for position in set(failed[failed >= 0].tolist()) - told:
                told.add(position)
                name = split.sources[split.source_of[position]].name(int(split.rows[position]))
                logger.warning("%s cannot be decoded any more: left out", name)
            yield images, labels, failed < 0
    finally:
        # A worker at a disk that does not answer must not keep a process alive that has failed.
        close = threading.Thread(target=pool.shutdown, kwargs={"cancel_futures": True}, daemon=True)
        close.start()
        close.join(CLOSE_SECONDS)


class _Context(SpawnContext):
    """Starts processes, and knows by what they ended. Spawned: a fork of one in which JAX runs threads may hang."""

    def __init__(self) -> None:
        super().__init__()
        self._started: list[Any] = []

    def Process(self, *args: Any, **options: Any) -> Any:  # noqa: N802 (the executor calls it)
        process = SpawnContext.Process(*args, **options)
        self._started.append(process)
        return process

    def exit_codes(self) -> set[int | None]:
        return {process.exitcode for process in self._started}


def end_unguarded_worker() -> None:
    """Ends a process that is starting, runs its parent's script to do so, and is about to start processes itself.

    Python does not allow that, and says so with a traceback from each of them; the parent says it in one line.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(UNGUARDED)


_load: _LoadBatch  # a worker's own, sent once and not with every step


def _start_worker(load: _LoadBatch, parent: int) -> None:
    """Ctrl-C is for the parent to answer, and no worker outlives it."""
    global _load
    _load = load
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was faster
            os._exit(1)


def _run_in_worker(step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return _load(step)
