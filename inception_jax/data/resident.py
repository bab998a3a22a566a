"""Data sets that fit in memory: uint8 images decoded once, memory-mapped from `.npy` files, cut into splits."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from inception_jax.data import digests
from inception_jax.errors import UserError
from inception_jax.files import whole_folder

Arrays = tuple[np.ndarray, np.ndarray]  # images uint8 (n, h, w, c), labels int32 (n,)


@dataclasses.dataclass(frozen=True)
class ResidentSplit:
    """Some of the examples of a set of images.

    Attributes:
      images: uint8 `(n, height, width, channels)`, possibly a read-only memory map.
      labels: int32 `(n,)`, one for each of `images`.
      rows: the examples that belong to the split, in its order: int64 indices into `images`, or a slice.
      gray: bool `(n,)`, one for each of `images`: whether its picture was stored without colors; None: unknown.
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
        """bool `(len(self),)`: which examples were stored without colors; None: unknown."""
        return None if self.gray is None else self.gray[self.rows]

    def gather(self, positions: np.ndarray) -> Arrays:
        """Copies the examples at `positions` (int, `(b,)`, each from 0 to `len(self) - 1`).

        Returns:
          images uint8 `(b, h, w, c)`, C-contiguous, and labels int32 `(b,)`; new arrays at every call.
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


def open_arrays(folder: Path, again: str = "") -> tuple[tuple[str, ...], dict[str, Arrays]]:
    """The class names and the memory-mapped arrays per split that `write_arrays` wrote, verified by their digests.

    Args:
      folder: which `write_arrays` wrote.
      again: what else the error says about making the folder again, such as a command.

    Raises:
      UserError: a file is missing or damaged, or holds a pickle, which is never read.
    """
    verify(folder, again)
    with required(folder, again):
        index = json.loads((folder / "index.json").read_text())
        class_names, arrays = tuple(index["class_names"]), {}
        for split in index["splits"]:
            images = np.load(folder / f"{split}_images.npy", mmap_mode="r", allow_pickle=False)
            labels = np.load(folder / f"{split}_labels.npy", allow_pickle=False)
            if images.ndim != 4 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
                raise ValueError(f"{split}_images.npy and {split}_labels.npy do not belong together")
            if labels.dtype != np.int32 or not 0 <= labels.min() <= labels.max() < len(class_names):
                raise ValueError(f"{split}_labels.npy holds labels of no class")
            arrays[split] = images, labels
        return class_names, arrays


def verify(folder: Path, again: str = "", *, fully: bool = False) -> tuple[int, int]:
    """`digests.verify` for what `write_arrays` wrote. Raises UserError, see `open_arrays`."""
    with required(folder, again):
        return digests.verify(folder, lambda: sorted(path.name for path in folder.iterdir()), fully=fully)


@contextlib.contextmanager
def required(path: Path, again: str = "") -> Iterator[None]:
    """Turns any error while reading `path` into a UserError that says to remove it, as it is made again if missing.

    Args:
      path: a file or a folder.
      again: what else the error says about making it again, such as a command.
    """
    try:
        yield
    except Exception as error:  # TFDS and the readers of its files may raise anything
        if isinstance(error, UserError) and not isinstance(error, digests.DamagedError):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{path} is damaged ({reason}): remove it, and it is made again{again and ': '}{again}"
        ) from error


def write_arrays(folder: Path, class_names: tuple[str, ...], splits: Mapping[str, tuple[int, Iterator]]) -> None:
    """Writes a folder that `open_arrays` reads, atomically: it appears whole or not at all.

    Args:
      folder: to be written; its parent must exist. If another process writes the same one first, that one stays.
      class_names: by label.
      splits: by name, the number of examples and an iterator of as many pairs (image uint8 `(h, w, c)`, label), whose
        images have the same shape.
    """
    with whole_folder(folder) as new:
        for split, (num_examples, examples) in splits.items():
            labels = np.zeros(num_examples, np.int32)
            # Written, not memory-mapped: the process would be killed if a map found no space on the disk.
            with (new / f"{split}_images.npy").open("wb") as images:
                for row, (image, label) in zip(range(num_examples), examples, strict=True):
                    if row == 0:
                        shape = image.shape
                        header = {"descr": "|u1", "fortran_order": False, "shape": (num_examples, *shape)}
                        np.lib.format.write_array_header_1_0(images, header)
                    if image.shape != shape or image.dtype != np.uint8:
                        raise ValueError(f"an image is {image.dtype} {image.shape}, the first one uint8 {shape}")
                    images.write(np.ascontiguousarray(image).data)
                    labels[row] = label
            np.save(new / f"{split}_labels.npy", labels)
        written = [split for split, (num_examples, _) in splits.items() if num_examples]  # empty ones cannot be mapped
        (new / "index.json").write_text(json.dumps({"class_names": class_names, "splits": written}))
        digests.seal(new, sorted(path.name for path in new.iterdir()))
