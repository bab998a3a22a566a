"""Files that appear whole or not at all, locks, and JSON that is read with care.

Every file that a command writes goes through `whole_file`, `whole_files` or `whole_folder`: a kill or a full disk
leaves what was there before, and what a killed writer left half done is removed by the next one.
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

NESTED = 100  # deepest JSON that is read: far beyond what anybody writes, and far below what Python can walk
logger = logging.getLogger(__name__)

LOCK = ".lock"  # in a folder that one process at a time works in, see `held`
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # what file systems without locks say
PARTIAL = ".partial"  # what a file's name ends in while it is written
STALE_SECONDS = 24 * 3600.0  # after which a partial file is left over, where the file system has no locks


def expand(path: str | Path, what: str = "a path") -> Path:
    """The path that a person has given, "~" being their home: shells expand it only where it begins a word.

    Args:
      what: it is of, for the message.

    Raises:
      UserError: it is empty, as a variable of the shell that is not set is: it does not mean the current folder.
    """
    if isinstance(path, str) and not path.strip():
        raise UserError(f"{what} is empty; is a variable of the shell unset? The current folder is called .")
    return Path(os.path.expanduser(path))


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file to write, which becomes `path` at the end; if the body raises, nothing changes.

    Its name does not end in `path`'s suffix, so a library that goes by that has to be told the format.

    Raises:
      WriteError: it could not be written: there is no room left, or no permission.
    """
    with whole_files([path]) as (new,):
        yield new


@contextlib.contextmanager
def whole_files(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """As `whole_file`, of several that belong together: none of them appears before all are written.

    Processes that write the same files at the same time do so one after the other.
    """
    # A link stays one. What is no file, such as /dev/null, cannot be replaced: it is written to.
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
                _try_lock(exits.enter_context(new.open("wb")))  # so that another writer knows that somebody is at work
            path = paths[0]
            yield news
            changed = [(path, new) for path, new in zip(paths, news, strict=True) if new != path]
            for _, new in changed:
                with new.open("rb") as file:
                    os.fsync(file.fileno())  # the name must not outlive the content when the power fails
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
    """Whether there is a device, a pipe or a socket."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def cannot_write(path: Path | str, error: OSError) -> WriteError:
    """The error for a file or folder that could not be written."""
    return WriteError(f"cannot write {path}: {error.strerror or error}")


def no_room(error: BaseException) -> bool:
    """Whether it was the disk that had no room left (or failed), rather than the place that cannot be written to.

    Libraries in C++ say so in the text of errors of other types, and TFDS in words of its own.
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
    """Renames a file or folder that is damaged, for its owner to look at, to NAME.damaged, or NAME.damaged2, ...

    Nothing that was set aside before is overwritten. Raises OSError.
    """
    numbers = itertools.chain([""], itertools.count(2))
    new = next(name for number in numbers if not os.path.lexists(name := f"{path}.damaged{number}"))
    return path.rename(new)


def regular_file(path: Path) -> Path:
    """The path, if it is a file that is read to its end: a pipe would wait for ever, a device might have no end.

    Raises:
      UserError: it is a pipe, a socket or a device.
      OSError: it is missing, a folder, or out of reach.
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
      UserError: it cannot be read, is not a regular file, or is not JSON; nests beyond what can be
        read; or holds half a character (a lone surrogate), which could not be shown.
    """
    try:
        return parse_json(regular_file(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}") from error


def parse_json(content: bytes | str, *, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """As `read_json`, of its bytes. Raises ValueError with a message of one line.

    Args:
      pairs: makes what stands for an object from its names and values; None: a dict.
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
        raise ValueError("it nests too deeply") from error


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
    """An empty folder to fill, which becomes `folder` at the end, unless another process's did in the meantime.

    What a process that was killed left half-filled is removed by the next one.

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
                ):  # else somebody works there
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
    """Makes a folder and holds it for this process: who else wants to do the same work there is told who does it.

    The lock is that of `locked`, on `folder/.lock`; the text in the file is for people. If nothing was written, what
    was made of the folder and those above it is removed again.

    Args:
      what: the folder is, as in "cannot write the run's folder".
      work: a verb, as in "another process trains in runs/mine".
      wait: for the other one to end; else there is an error.

    Raises:
      UserError: another process holds it, or the folder cannot be made; a WriteError if there is no room for it.
    """
    path = folder / LOCK
    with contextlib.ExitStack() as exits:
        try:
            waits = False
            # Where the other one was killed just after it forked: its child lets go at its first instruction.
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
                except FileNotFoundError:  # the other one has removed the folder, since it wrote nothing there
                    continue
        except OSError as error:
            kind = WriteError if no_room(error) else UserError
            raise kind(f"cannot write {what} {folder}: {error.strerror or error}") from error
        if file:
            now = time.strftime("%Y-%m-%d %H:%M:%S %z")
            about = {"pid": os.getpid(), "host": socket.gethostname(), "since": now, "command": sys.argv}
            with contextlib.suppress(OSError):  # no room: the lock holds without its text
                file.truncate(0)
                file.write(json.dumps(about) + "\n")
                file.flush()
        yield


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _holder(path: Path) -> str:
    """Who holds a lock, in brackets; nothing where its file does not say that (yet)."""
    try:
        with path.open("rb") as file:
            about = parse_json(file.read(10_000))
        found = [(name, str(about[name])) for name in ("pid", "host", "since")]
    except (OSError, ValueError, TypeError, LookupError):
        return ""
    return f" ({', '.join(f'{name} {printable(value)[:100]}' for name, value in found)})"


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[IO[str] | None]:
    """Holds a lock, which the system takes from a process that ends in any way; its file is removed behind it.

    Yields:
      the open file; None where the file system has no locks, which is said in a warning.

    Raises:
      BlockingIOError: another one holds it and `wait` is False.
    """
    while True:
        # Not through a link to somebody's file, and without waiting for a pipe's reader.
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
            if not mine:  # who held it before has removed the file
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
    logger.warning("the file system of %s has no locks (%s): see to it that no other process writes there", folder, why)


_locks: set[int] = set()  # descriptors of the locks that this process holds


def _let_go() -> None:
    """In a process that was forked off: it may outlive the one that holds the locks, and would hold them on."""
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
    """Whether the lock of an open file was free and is ours now; None where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    except OSError:
        return None


def _remove_stale(path: Path) -> None:
    """Removes a partial file that nobody writes any more."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        free = _try_lock(file)
        if free or (free is None and time.time() - path.stat().st_mtime > STALE_SECONDS):
            path.unlink(missing_ok=True)
