"""Data sets that fit in memory: uint8 images decoded once, memory-mapped from `.npy` files, cut into splits."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (n, h, w, c), labels int32 (n,)

STATISTICS_CHUNK = 4096  # images read at a time; any number gives the same result


@dataclasses.dataclass(frozen=True)
class Split:
    """Some of the examples of a set of images.

    Attributes:
      images: uint8 `(n, height, width, channels)`, possibly a read-only memory map.
      labels: int32 `(n,)`, one for each of `images`.
      rows: the examples that belong to the split, in its order: int64 indices into `images`, or a slice.
    """

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray | slice = dataclasses.field(default_factory=lambda: slice(None))

    def __len__(self) -> int:
        if isinstance(self.rows, slice):
            return len(range(*self.rows.indices(len(self.images))))
        return len(self.rows)

    def gather(self, positions: np.ndarray) -> Arrays:
        """Copies the examples at `positions` (int, `(b,)`, each from 0 to `len(self) - 1`).

        Returns:
          images uint8 `(b, h, w, c)`, C-contiguous, and labels int32 `(b,)`; both new arrays at every call.
        """
        positions = np.asarray(positions)
        if positions.size and not 0 <= positions.min() <= positions.max() < len(self):
            raise IndexError(f"positions must be from 0 to {len(self) - 1}")
        if isinstance(self.rows, slice):
            start, _, stride = self.rows.indices(len(self.images))
            rows = start + stride * positions
        else:
            rows = self.rows[positions]
        return np.take(self.images, rows, axis=0), np.take(self.labels, rows)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Named splits of images of one shape. `statistics_path` is where `channel_statistics` are kept, if at all."""

    name: str
    class_names: tuple[str, ...]
    splits: dict[str, Split]
    statistics_path: Path | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = next(iter(self.splits.values())).images.shape[1:]
        return height, width, channels

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of the training split's pixels, scaled to 0..1: float64 `(channels,)` each.

        The deviation is the population's, over all pixels of all images. Both come from exact integer sums.
        """
        if self.statistics_path and self.statistics_path.is_file():
            mean, std = json.loads(self.statistics_path.read_text())
            return np.array(mean), np.array(std)
        mean, std = _channel_statistics(self.splits["train"])
        if self.statistics_path:
            # A folder that may only be read costs the sums again next time, and nothing else.
            with contextlib.suppress(OSError), whole_file(self.statistics_path) as path:
                path.write_text(json.dumps([mean.tolist(), std.tolist()]))
        return mean, std


def _channel_statistics(split: Split) -> tuple[np.ndarray, np.ndarray]:
    channels = split.images.shape[-1]
    counts = np.zeros((channels, 256), np.int64)  # how often each value occurs
    for start in range(0, len(split), STATISTICS_CHUNK):
        images, _ = split.gather(np.arange(start, min(start + STATISTICS_CHUNK, len(split))))
        for channel in range(channels):
            counts[channel] += np.bincount(images[..., channel].ravel(), minlength=256)
    values = np.arange(256)
    mean, std = [], []
    for number, total, squares in zip(*(counts @ values**power for power in range(3)), strict=True):
        number, total, squares = int(number), int(total), int(squares)  # of any size, so that nothing overflows
        mean.append(total / (255 * number))
        std.append(math.sqrt((number * squares - total**2) / (255 * number) ** 2))
    return np.array(mean), np.array(std)


def eval_batches(
    split: Split, batch_size: int, rows: slice = slice(None)
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """All examples in order, each exactly once, in batches of one size.

    Args:
      split: what is evaluated.
      batch_size: examples per batch. The last batch is filled up with copies of the last example.
      rows: the part of every batch that is wanted, e.g. of one process among several.

    Yields:
      images uint8 `(b, h, w, c)`, labels int32 `(b,)` and mask bool `(b,)`, False on what only fills up.
    """
    for start in range(0, len(split), batch_size):
        positions = np.arange(start, start + batch_size)[rows]
        images, labels = split.gather(np.minimum(positions, len(split) - 1))
        yield images, labels, positions < len(split)


def open_arrays(folder: Path) -> tuple[tuple[str, ...], dict[str, Arrays]]:
    """The class names and the memory-mapped arrays per split that `write_arrays` wrote."""
    index = json.loads((folder / "index.json").read_text())
    arrays = {}
    for split in index["splits"]:
        images = np.load(folder / f"{split}_images.npy", mmap_mode="r")
        arrays[split] = images, np.load(folder / f"{split}_labels.npy")
    return tuple(index["class_names"]), arrays


def write_arrays(folder: Path, class_names: tuple[str, ...], splits: Mapping[str, tuple[int, Iterator]]) -> None:
    """Writes a folder that `open_arrays` reads, which appears whole or not at all.

    Args:
      folder: where; its parent must exist. If another process writes the same one first, that one stays.
      class_names: by label.
      splits: by name, the number of examples and an iterator of as many (image uint8 `(h, w, c)`, label), whose
        images have one shape.
    """
    with whole_folder(folder) as new:
        for split, (num_examples, examples) in splits.items():
            labels = np.zeros(num_examples, np.int32)
            images = None
            for row, (image, label) in zip(range(num_examples), examples, strict=True):
                if images is None:
                    images = np.lib.format.open_memmap(
                        new / f"{split}_images.npy", "w+", np.uint8, (num_examples, *image.shape)
                    )
                images[row], labels[row] = image, label
            if images is not None:
                images.flush()
            np.save(new / f"{split}_labels.npy", labels)
        written = [split for split, (num_examples, _) in splits.items() if num_examples]  # .npy maps no empty array
        (new / "index.json").write_text(json.dumps({"class_names": class_names, "splits": written}))


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` at the end, unless another process's did in the meantime."""
    new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    new.mkdir(parents=True)
    try:
        yield new
        try:
            new.rename(folder)
        except OSError:  # a folder that is not empty cannot be replaced
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(new, ignore_errors=True)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which becomes `path` at the end."""
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield new
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
