"""A data set as training and evaluation see it: named splits with equal batches, in memory or streamed."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Generator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from inception_jax.data import digests, streaming
from inception_jax.data.resident import Arrays
from inception_jax.data.words import shown_names
from inception_jax.errors import UserError, WriteError

STATISTICS_BYTES = 2**26  # of images that are read at a time; it does not change the result
# With more examples than the first number, the second number of them, evenly spaced, represent all, as decoding a
# million takes too long. This holds in memory, too, since the pipeline must not change what is computed.
STATISTICS_OF_ALL, STATISTICS_EXAMPLES = 100_000, 20_000


class Split(Protocol):
    """Some of the examples of a data set: a `resident.ResidentSplit` or a `streaming.StreamingSplit`."""

    def __len__(self) -> int: ...

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        ...

    def all_labels(self) -> np.ndarray:
        """int32 `(len(self),)`."""
        ...

    def grayscale(self) -> np.ndarray | None:
        """bool `(len(self),)`: which examples were stored without colors; None: unknown."""
        ...

    def gather(self, positions: np.ndarray) -> Arrays:
        """Images uint8 `(b, h, w, c)` and labels int32 `(b,)` of the examples at `positions`, int `(b,)`."""
        ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Named splits of images of one shape.

    Attributes:
      name: of the data set.
      class_names: in the order of the labels.
      splits: by name.
      statistics_path: where `channel_statistics` are kept; None: they are not.
      fingerprint: for pictures in a user's folder: of their names, classes and contents; for arrays and builders from
        outside: of the images, labels and class names of each split; None for the package's builders.
      cache: the folder where what is known about pictures is kept; None for arrays.
      version: of a builder's data set, as the builder states it; versions may differ in examples, splits or order.
      words: what people are shown for each class if the folder has a classes.txt; it does not identify the class.
    """

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[str, Split]
    statistics_path: Path | None = None
    fingerprint: str | None = None
    cache: Path | None = None
    version: str | None = None
    words: tuple[str, ...] = ()

    @property
    def shown_names(self) -> tuple[str, ...]:
        """The name of each class for people, see `words.shown_names`."""
        return shown_names(self.class_names, self.words)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return next(iter(self.splits.values())).image_shape

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the training split's pixels, scaled to 0..1: float64 `(channels,)` each.

        The deviation is the population's, over all pixels of all images, or of `STATISTICS_EXAMPLES` images if there
        are more than `STATISTICS_OF_ALL`. Both are computed from exact integer sums.
        """
        check = partial(_as_statistics, channels=self.image_shape[-1])
        kept = digests.read_or_none(self.statistics_path, check) if self.statistics_path else None
        if kept:
            return kept
        mean, std = _channel_statistics(self.splits["train"])
        if self.statistics_path:
            # In a read-only folder they are merely computed again the next time.
            with contextlib.suppress(OSError, WriteError):
                self.statistics_path.parent.mkdir(parents=True, exist_ok=True)
                digests.write(self.statistics_path, [mean.tolist(), std.tolist()])
        return mean, std


def _as_statistics(content: Any, channels: int) -> tuple[np.ndarray, np.ndarray]:
    mean, std = (np.array(values, np.float64) for values in content)
    if mean.shape != (channels,) or std.shape != (channels,) or not np.isfinite([mean, std]).all():
        raise ValueError("not statistics of the channels")
    return mean, std


def _channel_statistics(split: Split) -> tuple[np.ndarray, np.ndarray]:
    positions = np.arange(len(split))
    if len(split) > STATISTICS_OF_ALL:
        positions = np.linspace(0, len(split) - 1, STATISTICS_EXAMPLES).astype(np.int64)
    channels = split.image_shape[-1]
    counts = np.zeros((channels, 256), np.int64)  # how often each value occurs
    chunk = max(1, STATISTICS_BYTES // math.prod(split.image_shape))
    for start in range(0, len(positions), chunk):
        images, _ = split.gather(positions[start : start + chunk])
        for channel in range(channels):
            counts[channel] += np.bincount(images[..., channel].ravel(), minlength=256)
    values = np.arange(256)
    mean, std = [], []
    for number, total, squares in zip(*(counts @ values**power for power in range(3)), strict=True):
        number, total, squares = int(number), int(total), int(squares)  # Python integers, which do not overflow
        mean.append(total / (255 * number))
        std.append(math.sqrt((number * squares - total**2) / (255 * number) ** 2))
    return np.array(mean), np.array(std)


def train_batches(
    split: Split,
    positions: Callable[[int], np.ndarray],
    first: int,
    last: int,
    *,
    num_workers: int = 0,
    crop: streaming.RandomCrop | None = None,
    steps_per_epoch: int = 1,
) -> Generator[Arrays, None, None]:
    """The images and labels of the steps from `first` up to, but not including, `last`; to be closed if not exhausted.

    Args:
      positions: step -> the positions of its examples in the split, e.g. `partial(order.batch_indices, seed, ...)`.
      num_workers, crop, steps_per_epoch: for a split that is streamed, see `streaming.batches`.

    Raises:
      UserError: a crop of images that are in memory at one size.
    """
    if isinstance(split, streaming.StreamingSplit):
        with contextlib.closing(
            streaming.batches(
                split, positions, first, last, num_workers=num_workers, crop=crop, steps_per_epoch=steps_per_epoch
            )
        ) as batches:
            yield from ((images, labels) for images, labels, _ in batches)
        return
    if crop:
        raise UserError("data.augment.crop_originals needs pictures that are decoded when they are read")
    yield from (split.gather(positions(step)) for step in range(first, last))


def eval_batches(
    split: Split, batch_size: int, rows: slice = slice(None)
) -> Generator[tuple[np.ndarray, np.ndarray, np.ndarray], None, None]:
    """All examples in order, each exactly once, in batches of one size.

    Args:
      split: what is evaluated.
      batch_size: examples per batch. The last batch is padded with copies of the last example.
      rows: the part of every batch that is wanted, e.g. by one of several processes.

    Yields:
      images uint8 `(b, h, w, c)`, labels int32 `(b,)` and mask bool `(b,)`, False for padding and for pictures that
      cannot be decoded any more.
    """
    number = -(-len(split) // batch_size)
    positions = partial(_eval_positions, batch_size=batch_size, rows=rows)
    inside = (positions(batch) < len(split) for batch in range(number))
    clipped = partial(_clipped, positions, len(split) - 1)
    if isinstance(split, streaming.StreamingSplit):
        with contextlib.closing(streaming.batches(split, clipped, 0, number)) as batches:
            for (images, labels, decoded), mask in zip(batches, inside, strict=True):
                yield images, labels, mask & decoded
        return
    for batch, mask in enumerate(inside):
        yield *split.gather(clipped(batch)), mask


def _eval_positions(batch: int, *, batch_size: int, rows: slice) -> np.ndarray:
    return np.arange(batch * batch_size, (batch + 1) * batch_size)[rows]


def _clipped(positions: Callable[[int], np.ndarray], last: int, batch: int) -> np.ndarray:
    return np.minimum(positions(batch), last)
