"""Encoded pictures, in files or in ArrayRecord: where their bytes are, and what is known of each once it was checked.

`items` has a source for other libraries' data sets.

Nothing here needs JAX, so that worker processes start fast.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from inception_jax import files
from inception_jax.data import digests, images
from inception_jax.errors import UserError

logger = logging.getLogger(__name__)

T = TypeVar("T")

CHUNK = 64  # pictures that a thread checks before it returns its results
LOG_SECONDS = 10.0  # between log messages about a check that takes long


class Source(Protocol):
    """The pictures of one published split; it can be pickled, and is opened by the process that reads it."""

    def __len__(self) -> int: ...

    def read(self, row: int) -> bytes | Image.Image | np.ndarray:
        """The content of the file, or the picture. Raises OSError or ValueError if it cannot be read any more."""
        ...

    def name(self, row: int) -> str:
        """The name of the picture in messages."""
        ...


@dataclasses.dataclass(frozen=True)
class FileSource:
    """Files below a folder, read in place. `joined` holds their POSIX paths, separated by NUL."""

    root: Path
    joined: str  # a single string is pickled quickly even for a million paths

    @classmethod
    def of(cls, root: Path, paths: Iterable[str]) -> "FileSource":
        return cls(root, "\0".join(paths))

    @cached_property
    def paths(self) -> list[str]:
        return self.joined.split("\0") if self.joined else []

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, row: int) -> bytes:
        # Tables may list absolute paths, which stay as they are. pathlib would take as long as reading.
        return images.read_file(os.path.join(self.root, self.paths[row]))

    def name(self, row: int) -> str:
        # Printable, although a file's name need not be UTF-8.
        return os.fsencode(self.paths[row]).decode(errors="backslashreplace")

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "joined": self.joined}


def check_features(folder: Path) -> None:
    """Raises UserError if the files that TFDS wrote name classes that it would import to read the data set.

    TFDS's own classes, and those of modules that are imported already, such as a user's builder, are allowed.
    """
    for path in (folder / "features.json", folder / "dataset_info.json"):
        for name in _class_names(files.read_json(path)) if path.is_file() else ():
            module = name.rpartition(".")[0]
            if module.partition(".")[0] != "tensorflow_datasets" and module not in sys.modules:
                raise UserError(f"{path} names the class {name!r}, which is not imported: prepare the data set again")


def _class_names(content: Any) -> Iterator[str]:
    """The Python classes in TFDS's JSON, at any depth: in today's format and in that from before 2021."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key in ("pythonClassName", "python_class_name", "type") and isinstance(value, str) and "." in value:
                yield value
            yield from _class_names(value)
    elif isinstance(content, list):
        for value in content:
            yield from _class_names(value)


@dataclasses.dataclass(frozen=True)
class RecordSource:
    """A split that TFDS wrote as ArrayRecord files; `key` is the feature that is the picture."""

    folder: Path
    split: str
    key: str

    @cached_property
    def records(self) -> Any:
        builder = tfds.builder_from_directory(self.folder)
        # Decoded by `images` alone, so that the pixels do not depend on whether OpenCV is installed.
        return builder.as_data_source(self.split, decoders={self.key: tfds.decode.SkipDecoding()})  # pyright: ignore[reportCallIssue]

    def __len__(self) -> int:
        return len(self.records)

    def read(self, row: int) -> bytes:
        return self.records[row][self.key]

    def read_all(self, rows: Sequence[int]) -> list[bytes]:
        """As `read`, for several rows: an eighth of the time for small pictures."""
        return [record[self.key] for record in self.records.__getitems__(rows)]

    def name(self, row: int) -> str:
        name = None
        with contextlib.suppress(Exception):  # missing or damaged files make their reader raise anything
            name = self.records[row].get("file_name")
        return name.decode() if isinstance(name, bytes) else name or f"{self.split}[{row}]"

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "split": self.split, "key": self.key}


@dataclasses.dataclass(frozen=True)
class PictureFacts:
    """What is known of the pictures of a source; one entry per picture.

    Attributes:
      digests: of the files' content, 32 hexadecimal digits; equal for equal files.
      heights, widths: in pixels, as they are shown (EXIF).
      modes: Pillow's name of the pixel format: "L" is gray, "RGB" color.
      errors: why it cannot be decoded; "" if it can.
      stamps: path, size and modification time of the file, by which it is recognized; the row of a record.
    """

    digests: list[str]
    heights: list[int]
    widths: list[int]
    modes: list[str]
    errors: list[str]
    stamps: list[str]

    @cached_property
    def decodable(self) -> np.ndarray:
        """bool `(n,)`."""
        return np.array([not error for error in self.errors], bool)

    @cached_property
    def grayscale(self) -> np.ndarray:
        """bool `(n,)`: the picture is stored without colors. One in color whose pixels are all gray does not count."""
        return np.array([mode in images.GRAY_MODES for mode in self.modes], bool)


def decode(source: Source, row: int, form: images.Format, crop: images.Crop | None = None) -> np.ndarray:
    """One picture that `check` could decode: uint8 `(h, w, c)`, see `images.decode`.

    Raises:
      UserError: it cannot be decoded any more.
    """
    return _decode(source, row, lambda: source.read(row), form, crop)


def decode_all(source: Source, rows: Sequence[int], form: images.Format) -> Iterator[np.ndarray]:
    """As `decode`, for several pictures in less time."""
    for row, read in zip(rows, _readers(source, rows), strict=True):
        yield _decode(source, row, read, form, None)


def _readers(source: Source, rows: Sequence[int]) -> list[Callable[[], Any]]:
    """A function per row that returns its content, or raises what `source.read` does."""
    if isinstance(source, RecordSource):
        with contextlib.suppress(Exception):  # one cannot be read; reading them one by one tells which
            return [partial(bytes, content) for content in source.read_all(rows)]
    return [partial(source.read, row) for row in rows]


def _decode(
    source: Source, row: int, read: Callable[[], Any], form: images.Format, crop: images.Crop | None
) -> np.ndarray:
    try:
        return images.convert_any(read(), form, crop)
    except Exception as error:  # Pillow raises anything on a broken file
        why = images.reason(error)
        raise UserError(f"{source.name(row)} could be decoded before, but not now: {why}") from error


def check(source: Source, path: Path) -> PictureFacts:
    """Reads every picture once, finds out whether it can be decoded, and keeps the result.

    Args:
      source: the pictures. Files that were checked before and still have the same size and modification time are not
        read again, unless reading them failed: its cause, such as permissions, may be gone.
      path: where the result is kept.
    """
    kept = digests.read_or_none(path, _as_rows) or []
    known = {row[-1]: row for row in kept if row[0] or row[-1].endswith("\0")}  # a missing file has no size
    if isinstance(source, FileSource):
        stamps = [_stamp(source, row) for row in range(len(source))]
    else:
        stamps = [str(row) for row in range(len(source))]
    new = [row for row, stamp in enumerate(stamps) if stamp not in known]
    if new:
        looks = in_chunks(new, lambda chunk: [look(read) for read in _readers(source, chunk)])
        for row, found in zip(new, looks, strict=True):
            known[stamps[row]] = [*found, stamps[row]]
        huge = [row for row in new if known[stamps[row]][1] * known[stamps[row]][2] > images.PILLOWS_PIXELS]
        if huge:
            logger.warning(
                "%d pictures have more than %.0f million pixels and take long to decode, such as %s",
                len(huge),
                images.PILLOWS_PIXELS / 1e6,
                source.name(huge[0]),
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        digests.write(path, [known[stamp] for stamp in stamps])
    rows = [known[stamp] for stamp in stamps]
    return PictureFacts(*([row[column] for row in rows] for column in range(6)))


def in_chunks(rows: Sequence[int], work: Callable[[Sequence[int]], Iterable[T]]) -> Iterator[T]:
    """What `work` returns for each of the rows, some of which it is given at a time, by several threads.

    What takes long is logged.
    """
    started = said = time.monotonic()
    # Decoding and hashing release the interpreter's lock.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        # Several per thread, since checking a small picture takes less time than handing it over.
        chunks = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
        for number, found in enumerate(itertools.chain.from_iterable(pool.map(work, chunks)), start=1):
            yield found
            if time.monotonic() - said > LOG_SECONDS:
                said = time.monotonic()
                left = (said - started) / number * (len(rows) - number)
                logger.info("checked %d of %d pictures, %.0f s left", number, len(rows), left)


def verify(source: FileSource, facts: PictureFacts) -> tuple[int, int]:
    """Reads every picture again and compares it with what `check` found.

    Returns:
      The number of files and of bytes.

    Raises:
      UserError: the content of one has changed, although its size and modification time have not.
    """

    def look(start: int) -> int:
        size = 0
        for row in range(start, min(start + CHUNK, len(source))):
            try:
                content = source.read(row)
            except OSError:  # `check` reports it
                continue
            size += len(content)
            if hashlib.blake2b(content, digest_size=16).hexdigest() != facts.digests[row]:
                raise UserError(
                    f"{source.name(row)} in {source.root} has changed, but its size and modification time have not: "
                    "restore it, or touch it to have it checked again"
                )
        return size

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return len(source), sum(pool.map(look, range(0, len(source), CHUNK)))


def _as_rows(content: Any) -> list[list[Any]]:
    for row in content:
        if list(map(type, row)) != [str, int, int, str, str, str]:
            raise ValueError("not facts of pictures")
    return content


def _stamp(source: FileSource, row: int) -> str:
    try:
        status = (source.root / source.paths[row]).stat()
        return f"{source.paths[row]}\0{status.st_size}\0{status.st_mtime_ns}"
    except OSError:
        return f"{source.paths[row]}\0"


def look(read: Callable[[], bytes]) -> tuple[str, int, int, str, str]:
    """The facts of a file: digest, height, width, mode and error, see `PictureFacts`."""
    digest = ""
    try:
        content = read()
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        if not content:
            raise ValueError("it is empty")
        return digest, *images.verify(content), ""
    except Exception as error:  # Pillow raises anything on a broken file
        return digest, 0, 0, "", images.reason(error)
