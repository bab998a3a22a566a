"""Data sets that fit in memory: uint8 images decoded once, memory-mapped from `.npy` files, cut into splits."""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from inception_jax.errors import UserError

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (n, h, w, c), labels int32 (n,)


@dataclasses.dataclass(frozen=True)
class Split:
    """Some of the examples of a set of images.

    Attributes:
      images: uint8 `(n, height, width, channels)`, possibly a read-only memory map.
      labels: int32 `(n,)`, one for each of `images`.
      rows: the examples that belong to the split, in its order: int64 indices into `images`, or a slice.
      gray: bool `(n,)`, one for each of `images`: whether its picture was stored without colours; None: not known.
    """

    images: np.ndarray
    labels: np.ndarray
    rows: np.ndarray | slice = dataclasses.field(default_factory=lambda: slice(None))
    gray: np.ndarray | None = None

    def __len__(self) -> int:
        if isinstance(self.rows, slice):
            return len(range(*self.rows.indices(len(self.images))))
        return len(self.rows)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    def all_labels(self) -> np.ndarray:
        """The labels of the split's examples in its order: int32 `(len(self),)`."""
        return self.labels[self.rows]

    def grayscale(self) -> np.ndarray | None:
        """bool `(len(self),)`: which examples were stored without colours; None where nobody knows."""
        return None if self.gray is None else self.gray[self.rows]

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


def open_arrays(folder: Path) -> tuple[tuple[str, ...], dict[str, Arrays]]:
    """The class names and the memory-mapped arrays per split that `write_arrays` wrote.

    Raises:
      UserError: a file is missing or damaged, or holds a pickle, which is never read.
    """
    with required(folder):
        index = json.loads((folder / "index.json").read_text())
        arrays = {}
        for split in index["splits"]:
            images = np.load(folder / f"{split}_images.npy", mmap_mode="r", allow_pickle=False)
            arrays[split] = images, np.load(folder / f"{split}_labels.npy", allow_pickle=False)
        return tuple(index["class_names"]), arrays


@contextlib.contextmanager
def required(path: Path) -> Iterator[None]:
    """Has a UserError say what to do where reading `path`, which is made again if it is not there, fails."""
    try:
        yield
    except (OSError, ValueError, EOFError, LookupError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}): remove it, and it is made again") from error


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
    """An empty folder to fill, which becomes `folder` at the end, unless another process's did in the meantime.

    What a process that was killed left half-filled is removed by the next one.
    """
    new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(new.with_name(f"{new.name}.lock")):
        for lock in folder.parent.glob(f".{folder.name}.*.lock"):
            with contextlib.suppress(BlockingIOError), locked(lock, wait=False):  # else somebody is at work there
                shutil.rmtree(lock.with_name(lock.name.removesuffix(".lock")), ignore_errors=True)
        new.mkdir()
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
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Holds a lock, which the system takes from a process that ends in any way; its file is removed behind it.

    Raises:
      BlockingIOError: another one holds it and `wait` is False.
    """
    while True:
        with path.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            try:
                mine = os.path.samestat(os.fstat(file.fileno()), path.stat())
            except FileNotFoundError:
                mine = False
            if not mine:  # who held it before has removed the file
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which becomes `path` at the end."""
    new = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield new
        with new.open("rb") as file:
            os.fsync(file.fileno())  # the name must not outlive the content when the power fails
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)
