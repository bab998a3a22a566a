"""Digests of data: of arrays in memory and of prepared files, and JSON files that include their own digest.

SHA-256, which CPUs support in hardware, over chunks that several threads hash: a GB takes 0.8 s of core time on an AMD
EPYC, and 0.9 s when read from a file. Nothing here needs JAX, so that worker processes start fast.
"""

import contextlib
import hashlib
import json
import logging
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from inception_jax import files
from inception_jax.errors import UserError, WriteError

NAME = "digests.json"  # in a folder, for its files
CHUNK_BYTES = 2**24  # hashed at a time by one thread; changing it changes the digests
ALWAYS_BYTES = 2**31  # total size of a folder's files up to which they are read at every opening, in less than a second
PART = ": "  # separator between name and number in a fingerprint's parts
DIGITS = 32  # hexadecimal digits that are kept: 128 bits

T = TypeVar("T")

logger = logging.getLogger(__name__)


class DamagedError(UserError):
    """A file's content is not what was written."""


def of_texts(texts: Iterable[str]) -> str:
    """Digest of texts in their order: 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{len(text)} {text}\n".encode(errors="surrogatepass"))
    return digest.hexdigest()[:DIGITS]


def of_rows(read: Callable[[slice], np.ndarray], number: int, row_bytes: int) -> str:
    """Digest of an array's content in C order, whatever its memory layout: 32 hexadecimal digits.

    Args:
      read: returns a slice of its rows.
      number: of rows.
      row_bytes: size of a row.
    """
    rows = max(1, CHUNK_BYTES // max(1, row_bytes))

    def chunk(start: int) -> bytes:
        part = np.ascontiguousarray(read(slice(start, min(start + rows, number))))
        return hashlib.sha256(part.data).digest() if part.size else b""  # an empty view has no format

    return _joined(chunk, range(0, number, rows))


def of_file(path: Path) -> str:
    """Digest of a file's content: 32 hexadecimal digits. Raises OSError."""
    with path.open("rb", buffering=0) as file:

        def chunk(start: int) -> bytes:
            digest, end = hashlib.sha256(), start + CHUNK_BYTES
            while start < end and (part := os.pread(file.fileno(), min(2**20, end - start), start)):
                digest.update(part)
                start += len(part)
            return digest.digest()

        return _joined(chunk, range(0, os.fstat(file.fileno()).st_size, CHUNK_BYTES))


def _joined(chunk: Callable[[int], bytes], starts: Sequence[int]) -> str:
    if len(starts) <= 1:
        parts = [chunk(start) for start in starts]
    else:
        with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing releases the GIL
            parts = list(pool.map(chunk, starts))
    return hashlib.sha256(b"".join(parts)).hexdigest()[:DIGITS]


def part(what: str, number: int, digest: str) -> str:
    """A part of a fingerprint: what it covers, the number of examples or names, and their digest."""
    return f"{what}{PART}{number} {digest}"


def together(parts: Iterable[str]) -> str:
    """A fingerprint from its parts, each returned by `part`."""
    return "; ".join(parts)


def in_both(before: str, now: str) -> tuple[str, str]:
    """Two fingerprints, without the parts that only one of them has."""
    entries = [fingerprint.split("; ") for fingerprint in (before, now)]
    old, new = ({entry.rpartition(PART)[0] for entry in some} for some in entries)
    before, now = (together(entry for entry in some if entry.rpartition(PART)[0] in old & new) for some in entries)
    return before, now


def differences(before: str, now: str) -> str:
    """The parts in which two fingerprints differ, in words: with their numbers before and now."""
    old, new = (dict(entry.rsplit(PART, 1) for entry in fingerprint.split("; ")) for fingerprint in (before, now))
    phrases = []
    for what in old | new:
        if old.get(what) != new.get(what):
            numbers = [known[what].partition(" ")[0] if what in known else "none" for known in (old, new)]
            phrases.append(f"{what} ({numbers[0]} before, {numbers[1]} now)")
    return f"these differ: {', '.join(phrases)}"


def is_file(path: Path) -> bool:
    """Whether a file is there. Raises UserError if something else is in its place, which cannot be replaced."""
    try:
        regular = stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not regular:
        raise UserError(f"{path} is damaged (it is not a file): remove it, and it is made again")
    return True


def write(path: Path, content: Any) -> None:
    """Writes a JSON file atomically, beginning with the digest of the rest. Raises WriteError."""
    files.write_bytes(path, _sealed(json.dumps(content).encode() + b"}\n"))


def _sealed(body: bytes) -> bytes:
    return f'{{"sha256": "{hashlib.sha256(body).hexdigest()}", "content":\n'.encode() + body


def read(path: Path, check: Callable[[Any], T]) -> T:
    """The content of a file written by `write`, as returned by `check`.

    A file without a digest, from an earlier version, is accepted if `check` accepts it, and a digest is added.

    Args:
      check: raises ValueError, TypeError, LookupError or AttributeError on invalid content.

    Raises:
      FileNotFoundError: it is not there.
      DamagedError: it is damaged. UserError if it is not a file, and so cannot be replaced.
    """
    if not is_file(path):
        raise FileNotFoundError(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    sealed = _sealed(content.partition(b"\n")[2]) == content
    try:
        value = files.parse_json(content)
        checked = check(value["content"] if sealed else value)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise DamagedError(f"{path} is damaged: its content is not what was written") from error
    if not sealed:
        logger.info("%s has no digest yet: it is taken as it is, and gets one", path)
        with contextlib.suppress(WriteError):  # the folder may be read-only
            write(path, value)
    return checked


def read_or_none(path: Path, check: Callable[[Any], T]) -> T | None:
    """Like `read`, but None if the file is missing, or (with a warning) damaged, and has to be made again."""
    try:
        return read(path, check)
    except FileNotFoundError:
        return None
    except DamagedError as damage:
        logger.warning("%s: it is made again", damage)
        return None


def seal(folder: Path, names: Iterable[str]) -> None:
    """Writes the digests of a folder's files, which `verify` compares. Raises OSError, WriteError."""
    write(folder / NAME, {name: [of_file(folder / name), *_stamp((folder / name).stat())] for name in names})


def verify(folder: Path, names: Callable[[], Iterable[str]], *, fully: bool = False) -> tuple[int, int]:
    """Compares the files of a folder with their digests; returns the number of files and of bytes.

    A folder without digests, from an earlier version, is accepted as it is (which is logged), and digests are added.
    If the files have more than `ALWAYS_BYTES` together, they are read only if the size, modification time or inode of
    one differs from the last verification, or if `fully` is True.

    Args:
      names: returns the files for which digests are added to a folder without them.

    Raises:
      DamagedError: a file is not what was written; the short message says which.
    """
    path = folder / NAME
    if not os.path.lexists(path):
        logger.warning("%s has no digests yet: what is in it is taken as it is, and verified from now on", folder)
        with contextlib.suppress(WriteError):  # the folder may be read-only
            seal(folder, names())
    try:
        kept = read(path, _as_digests)
    except FileNotFoundError:  # it could not be written
        return 0, 0
    except UserError as error:
        raise DamagedError(f"{NAME} is not what was written") from error
    always = fully or sum(size for _, size, _, _ in kept.values()) <= ALWAYS_BYTES
    now = {}
    for name, (digest, *stamp) in kept.items():
        try:
            status = (folder / name).stat()
            if not stat.S_ISREG(status.st_mode):
                raise DamagedError(f"{name} is not a file")
            if status.st_size != stamp[0]:
                raise DamagedError(f"{name} has {status.st_size:,} bytes and had {stamp[0]:,}")
            if (always or _stamp(status) != stamp) and of_file(folder / name) != digest:
                raise DamagedError(f"the content of {name} is not what was written")
        except OSError as error:
            raise DamagedError(f"{name}: {error.strerror or error}") from error
        now[name] = [digest, *_stamp(status)]
    if now != kept:
        with contextlib.suppress(WriteError):
            write(path, now)
    return len(now), sum(size for _, size, _, _ in now.values())


def _as_digests(content: Any) -> dict[str, list[Any]]:
    for digest, *stamp in content.values():
        if not isinstance(digest, str) or list(map(type, stamp)) != [int] * 3:
            raise ValueError("no digests of files")
    return content


def _stamp(status: os.stat_result) -> list[int]:
    return [status.st_size, status.st_mtime_ns, status.st_ino]
