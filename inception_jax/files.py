"""Atomic file writes, locks, and careful reading of JSON.

Every file that a command writes goes through `whole_file`, `whole_files` or `whole_folder`: after a kill or on a full
disk the previous content remains, and the next writer removes the partial files that a killed one left.
"""

import contextlib
import errno
import fcntl
import functools
import itertools
import json
import logging
import os
import re
import shutil
import socket
import stat
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from inception_jax.errors import UserError, WriteError
from inception_jax.text import printable

NESTED = 100  # deepest JSON that is read: far more than any real file has, far less than Python's recursion limit
logger = logging.getLogger(__name__)

LOCK = ".lock"  # in a folder that one process at a time may use, see `held`
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # errors of file systems without locks
PARTIAL = ".partial"  # suffix of a file while it is being written
STALE_SECONDS = 24 * 3600.0  # age at which a partial file counts as abandoned on file systems without locks


def expand(path: str | Path, what: str = "a path") -> Path:
    """Expands "~" in a path that the user gave: shells expand it only at the beginning of a word.

    Args:
      what: what the path is for, used in the error message.

    Raises:
      UserError: the path is empty, as from an unset shell variable; it does not mean the current folder.
    """
    if isinstance(path, str) and not path.strip():
        raise UserError(f"{what} is empty; is a shell variable unset? For the current folder, give .")
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which becomes `path` at the end; if the body raises, nothing changes.
    Its name does not end in `path`'s suffix, so libraries that infer the format from it must be told the format.

    Raises:
      WriteError: the file could not be written: the disk is full, or permission is missing.
    """
    with whole_files([path]) as (new,):
        yield new


@contextlib.contextmanager
def whole_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Like `whole_file`, for several files that belong together: none of them appears before all are written.

    Processes that write the same files at the same time take turns.
    """
    # Symbolic links are kept. Special files, such as /dev/null, cannot be replaced and are written to directly.
    paths = [path.resolve() if path.is_symlink() else path for path in paths]
    news = [path if _is_special(path) else _partial(path) for path in paths]
    path = paths[0]
    try:
        with contextlib.ExitStack() as exits:
            if len(paths) > 1:
                exits.enter_context(locked(path.with_name(f".{path.name}.lock")))
            for path, new in zip(paths, news, strict=True):
                if new == path:
                    continue
                for left in path.parent.glob(f".{_escaped(path.name)}.*{PARTIAL}"):
                    _remove_stale(left)
                if path.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
                _try_lock(exits.enter_context(new.open("wb")))  # tells other writers that this file is in use
            path = paths[0]
            yield news
            changed = [(path, new) for path, new in zip(paths, news, strict=True) if new != path]
            for _, new in changed:
                with new.open("rb") as file:
                    os.fsync(file.fileno())  # the name must not survive a power failure without its content
            for path, new in changed:
                os.replace(new, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        for path, new in zip(paths, news, strict=True):
            if new != path:
                with contextlib.suppress(OSError):
                    new.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}{PARTIAL}")


def _is_special(path: Path) -> bool:
    """Whether the path is a device, a pipe or a socket."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def cannot_write(path: Path | str, error: OSError) -> WriteError:
    """The error for a file or folder that could not be written."""
    return WriteError(f"cannot write {path}: {error.strerror or error}")


def no_room(error: BaseException) -> bool:
    """Whether the cause was a full (or failing) disk, rather than a location that cannot be written to.

    C++ libraries report it in the text of other error types, and TFDS in its own words.
    """
    numbers = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in numbers
    return any(words in str(error) for words in (*map(os.strerror, numbers), "Not enough disk space"))


def write_text(path: Path, text: str) -> None:
    """Writes a whole UTF-8 file. Raises WriteError."""
    with whole_file(path) as new:
        new.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file. Raises WriteError."""
    with whole_file(path) as new:
        new.write_bytes(content)


def write_json(path: Path, content: Any, *, indent: int | None = 2) -> None:
    """Writes a whole JSON file. Raises WriteError."""
    write_text(path, json.dumps(content, indent=indent) + "\n")


def set_aside(path: Path) -> Path:
    """Renames a damaged file or folder, so that it can be inspected, to NAME.damaged, or NAME.damaged2, ...

    Files set aside earlier are never overwritten. Raises OSError.
    """
    numbers = itertools.chain([""], itertools.count(2))
    new = next(name for number in numbers if not os.path.lexists(name := f"{path}.damaged{number}"))
    return path.rename(new)


def regular_file(path: Path) -> Path:
    """The path, if it can be read to its end: a pipe might block forever, and a device might have no end.

    Raises:
      UserError: it is a pipe, a socket or a device.
      OSError: it is missing, a folder, or inaccessible.
    """
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = "a named pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        raise UserError(f"{path} is {kind}, not a regular file")
    return path


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
      UserError: the file cannot be read, is not a regular file, is not JSON, is nested too deeply, or contains a lone
        surrogate, which could not be displayed.
    """
    try:
        return parse_json(regular_file(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def parse_json(content: bytes | str, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Like `read_json`, from bytes or text. Raises ValueError with a one-line message.

    Args:
      pairs: builds the value for a JSON object from its names and values; None: a dict.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        value = json.loads(text, object_pairs_hook=pairs)
        if _is_deeper(value, NESTED):
            raise RecursionError
        if re.search(r"\\u[dD][89a-fA-F]", text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeError as error:
        raise ValueError(f"it is not UTF-8 text ({error.reason})") from error  # pyright: ignore[reportAttributeAccessIssue]
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _is_deeper(value: Any, depth: int) -> bool:
    level = [value]
    for _ in range(depth):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill, which becomes `folder` at the end, unless another process created it in the meantime.

    A partly filled folder left by a killed process is removed by the next one.

    Raises:
      WriteError: it could not be written.
    """
    new = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with locked(new.with_name(f"{new.name}.lock")):
            for lock in folder.parent.glob(f".{_escaped(folder.name)}.*.lock"):
                with (
                    contextlib.suppress(BlockingIOError),
                    locked(lock, wait=False) as ours,
                ):  # otherwise another process is using it
                    if ours:
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
    except OSError as error:
        raise cannot_write(folder, error) from error


@contextlib.contextmanager
def held(folder: Path, what: str, work: str, *, wait: bool = False) -> Iterator[None]:
    """Creates a folder and holds it for this process; others that want to work there are told who holds it.

    Uses `locked` on `folder/.lock`; the text in that file is for people. If nothing was written, the folder and the
    parents created for it are removed again.

    Args:
      what: description of the folder, as in "cannot write the run's folder".
      work: a verb, as in "another process trains in runs/mine".
      wait: whether to wait for the other process to finish; otherwise an error is raised.

    Raises:
      UserError: another process holds the folder, or it cannot be created; a WriteError if the disk is full.
    """
    path = folder / LOCK
    with contextlib.ExitStack() as exits:
        try:
            waits = False
            # The other process may have been killed just after a fork: its child releases the lock immediately.
            soon = time.monotonic() + 2
            while True:
                exits.callback(_remove_empty, [above for above in (folder, *folder.parents) if not above.exists()])
                folder.mkdir(parents=True, exist_ok=True)
                try:
                    file = exits.enter_context(locked(path, wait=waits))
                    break
                except BlockingIOError:
                    if not wait and time.monotonic() < soon:
                        time.sleep(0.05)
                        continue
                    other = f"another process{_holder(path)} {work} in {folder}"
                    if not wait:
                        raise UserError(other) from None
                    logger.warning("%s: waiting for it to end", other)
                    waits = True
                except FileNotFoundError:  # the other process removed the folder, since it had written nothing there
                    continue
        except OSError as error:
            kind = WriteError if no_room(error) else UserError
            raise kind(f"cannot write {what} {folder}: {error.strerror or error}") from error
        if file:
            now = time.strftime("%Y-%m-%d %H:%M:%S %z")
            about = {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "command": sys.argv}
            with contextlib.suppress(OSError):  # disk full: the lock works without its text
                file.truncate(0)
                file.write(json.dumps(about) + "\n")
                file.flush()
        yield


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _holder(path: Path) -> str:
    """Who holds a lock, in parentheses; empty if its file does not say so (yet)."""
    try:
        with path.open("rb") as file:
            about = parse_json(file.read(10_000))
        found = [(name, str(about[name])) for name in ("pid", "host", "since")]
    except (OSError, ValueError, TypeError, LookupError):
        return ""
    return f" ({', '.join(f'{name} {printable(value)[:100]}' for name, value in found)})"


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[IO[str] | None]:
    """Holds a lock, which the system releases however the process ends; its file is removed afterwards.

    Yields:
      the open file; None if the file system has no locks, which is logged as a warning.
    Raises:
      BlockingIOError: another process holds the lock and `wait` is False.
    """
    while True:
        # Do not follow a link to another file, and do not wait for a pipe's reader.
        number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
        with os.fdopen(number, "r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                path.unlink(missing_ok=True)
                _warn_of_no_locks(path.parent, error.strerror)
                yield None
                return
            try:
                mine = os.path.samestat(os.fstat(number), path.stat())
            except FileNotFoundError:
                mine = False
            if not mine:  # the previous holder has removed the file
                continue
            _locks.add(number)
            try:
                yield file
            finally:
                if number in _locks:
                    _locks.remove(number)
                    path.unlink(missing_ok=True)
            return


@functools.cache
def _warn_of_no_locks(folder: Path, why: str) -> None:
    logger.warning("the file system of %s has no locks (%s): make sure that no other process writes there", folder, why)


_locks: set[int] = set()  # file descriptors of the locks held by this process


def _let_go() -> None:
    """Releases the locks in a forked process, which may outlive its parent and would keep holding them."""
    for number in _locks:
        with contextlib.suppress(OSError):
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number, inheritable=False)
            os.close(null)
    _locks.clear()


os.register_at_fork(after_in_child=_let_go)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _try_lock(file: Any) -> bool | None:
    """Whether the lock of an open file was free and is now ours; None if the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _remove_stale(path: Path) -> None:
    """Removes a partial file that nobody is writing any more."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        free = _try_lock(file)
        if free or (free is None and time.time() - path.stat().st_mtime > STALE_SECONDS):
            path.unlink(missing_ok=True)
