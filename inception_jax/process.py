"""Settings of the whole process, for programs, not for libraries: what makes training faster, logging, signals."""

import contextlib
import gc
import logging
import os
import platform
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn

from inception_jax.errors import LostError, UserError, WriteError
from inception_jax.files import no_room
from inception_jax.text import complain, printable

# Exit codes. 75 is the one by which programs ask to be tried again later (sysexits.h).
FINISHED, MISTAKE, NOT_FINITE, NOT_WRITTEN, LOST, NOT_SAVED, TERMINATED, INTERRUPTED = 0, 2, 3, 4, 5, 6, 75, 130
# glibc's allocator: huge pages (below), and as many arenas as there are cores. With its own eight for each core, what
# lay free between arrays in use grew from 51 to 90 MB in 8,500 small steps on two cores; with these it stays at 30 MB,
# after 4,000 and after 17,500. What is in use is the same.
MALLOC = f"glibc.malloc.hugetlb=1:glibc.malloc.arena_max={os.cpu_count() or 1}"
GC_THRESHOLD = 100_000  # new objects between two garbage collections; CPython's own is 700 to 2,000
LEAVE_SECONDS = 30.0


def tune() -> None:
    """Call it before anything is imported that takes time: it may start the program again."""
    use_huge_pages()
    # Imports and JAX's tracing make a million objects that stay, and the collector walks them again and again: without
    # that, the first step of GoogLeNet came after 10.6 s instead of 12.2 (two CPU cores, compiled before).
    gc.set_threshold(GC_THRESHOLD)


def use_huge_pages() -> None:
    """Starts this program again with glibc's allocator asking for huge pages.

    XLA allocates its temporary buffers anew in every step, and their page faults were a quarter of a training step's
    time on two CPU cores: 214 to 309 images/s (GoogLeNet, 128 images of 32 pixels). The setting is read when a process
    starts, so there is no other way than a new start. Nothing happens where the setting is made already, and on
    systems without glibc.
    """
    if platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = MALLOC
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs: a second start of the same network takes seconds instead of minutes."""
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "inception_jax", "xla")
        jax.config.update("jax_compilation_cache_dir", str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # Programs with oneDNN's convolutions cannot be kept (JAX 0.12); they are compiled anew each time.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry for .* std::bad_alloc")


def leave(exit_code: int) -> NoReturn:
    """Ends the program, and lets no SIGTERM on the way out change its exit code.

    After a write that failed at once, without clean-up: threads of other libraries would try to write again, and say so
    with pages of tracebacks. And threads that do not end, at a disk that does not answer, hold up no program for more
    than LEAVE_SECONDS.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream:
                stream.flush()
        except OSError:
            _drop(stream)
    if exit_code == NOT_WRITTEN:
        os._exit(exit_code)
    late = threading.Timer(LEAVE_SECONDS, os._exit, (exit_code,))
    late.daemon = True
    late.start()
    sys.exit(exit_code)


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """What is printed here has been written at the end; a reader that has had enough of it, such as head, is no error.

    Raises:
      WriteError: there was no room for it, or for another file whose writer does not say so by itself.
    """
    try:
        try:
            yield
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except BrokenPipeError:
        _drop(sys.stdout)
    except UserError:
        raise
    except Exception as error:
        if not no_room(error):
            raise
        _drop(sys.stdout)
        what = getattr(error, "filename", None) or "the output"
        why = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise WriteError(f"cannot write {what}: {why}") from error


def say(message: str, exit_code: int) -> int:
    """Prints a line for people, if there is still somebody who can read it; returns the exit code."""
    with contextlib.suppress(OSError):
        complain(message)
    return exit_code


def _drop(stream: IO[str]) -> None:
    """What is in a stream's buffer goes nowhere: Python would try once more at the end, and say so with a traceback."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def make_deterministic() -> None:
    """Makes two runs of a program on a GPU give the same bits, at some cost in speed; a CPU's do so anyway.

    To be called before JAX first uses a device: XLA reads its flags then.
    """
    flag = "--xla_gpu_deterministic_ops=true"
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


class OneLine(logging.Formatter):
    """A message on one line, whatever the names of files and classes in it hold."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, the base class's name
        return printable(super().formatMessage(record))


@contextlib.contextmanager
def log_to_stderr(level: int = logging.INFO, prefix: str = "") -> Iterator[None]:
    """Shows what the package logs, once: libraries give the root logger a handler, too."""
    logger, handler = logging.getLogger("inception_jax"), logging.StreamHandler()
    handler.setFormatter(OneLine(f"{prefix}%(message)s"))
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = True
        logger.setLevel(before)
        logger.removeHandler(handler)


class Terminated(BaseException):
    """SIGTERM came, and training does not handle it: it was before, or after it."""


def exit_code(error: BaseException) -> int:
    """That of a program that ends with this error; 1 where the program itself is at fault."""
    if isinstance(error, KeyboardInterrupt):
        return NOT_SAVED if str(error) else INTERRUPTED  # training says what is there, see train.StoppedAtOnce
    kinds = {WriteError: NOT_WRITTEN, LostError: LOST, UserError: MISTAKE, Terminated: TERMINATED}
    return next((code for kind, code in kinds.items() if isinstance(error, kind)), 1)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Where training does not handle SIGTERM, it raises Terminated, for the exit code that asks for a new start."""

    def terminate(number, frame) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough: the way out is not interrupted
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, terminate)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
