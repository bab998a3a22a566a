"""Process-wide settings for programs, not for libraries: faster training, logging, signals."""

import contextlib
import gc
import logging
import os
import platform
import shlex
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

# Exit codes. 75 asks the caller to try again later (EX_TEMPFAIL in sysexits.h).
FINISHED, MISTAKE, NOT_FINITE, NOT_WRITTEN, LOST, NOT_SAVED, TERMINATED, INTERRUPTED = 0, 2, 3, 4, 5, 6, 75, 130
# glibc's allocator: huge pages (below), and as many arenas as cores. With its default of eight per core, free memory
# between used arrays grew from 51 to 90 MB in 8,500 small steps on two cores; with these settings it stays at 30 MB,
# after 4,000 and after 17,500 steps. The memory in use is the same.
MALLOC = f"glibc.malloc.hugetlb=1:glibc.malloc.arena_max={os.cpu_count() or 1}"
GC_THRESHOLD = 100_000  # allocations between two garbage collections; CPython's default is 700 to 2,000
LEAVE_SECONDS = 30.0
# How people start the package, by the last parts of the path in sys.argv.
PROGRAMS = {
    "inception-jax": "inception-jax",
    "inception_jax/__main__.py": "python -m inception_jax",
    "inception_jax/main.py": "python -m inception_jax.main",
}


def tune() -> None:
    """Call it before any slow import: it may restart the program."""
    use_huge_pages()
    # Imports and JAX's tracing create a million long-lived objects, which the collector scans repeatedly. With fewer
    # collections, GoogLeNet's first step came after 10.6 s instead of 12.2 (two CPU cores, compiled before).
    gc.set_threshold(GC_THRESHOLD)


def use_huge_pages() -> None:
    """Restarts this program with glibc's allocator asking for huge pages.

    XLA reallocates its temporary buffers in every step, and their page faults took a quarter of a training step's time
    on two CPU cores: 214 to 309 images/s (GoogLeNet, 128 images of 32 pixels). The setting is read only when a process
    starts, hence the restart. Does nothing if the setting is already made, or on systems without glibc.
    """
    if platform.libc_ver()[0] == "glibc" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = MALLOC
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def command() -> str | None:
    """The command of this package that started this process, as it is typed; None if another program imported it."""
    path = Path(sys.argv[0])
    program = PROGRAMS.get(path.name) or PROGRAMS.get("/".join(path.parts[-2:]))
    return f"{program} {shlex.join(sys.argv[1:])}".strip() if program else None


def use_compilation_cache() -> None:
    """Caches compiled programs on disk: later starts with the same network take seconds instead of minutes.

    The environment variables of JAX for the cache's folder and the shortest compilation to be kept take precedence.
    """
    import jax

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "inception_jax", "xla")
        jax.config.update("jax_compilation_cache_dir", str(cache))
    if not os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    # Programs with oneDNN's convolutions cannot be cached (JAX 0.12); they are compiled every time.
    warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry for .* std::bad_alloc")


def leave(exit_code: int) -> NoReturn:
    """Ends the program; a SIGTERM on the way out does not change its exit code.

    After a failed write it ends immediately, without clean-up: other libraries' threads would try to write again and
    print long tracebacks. Threads that hang, for example on a disk that does not respond, delay the exit by at most
    LEAVE_SECONDS.
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
    """Flushes what is printed in the block; a reader that stops early, such as head, is not an error.

    Raises:
      WriteError: the disk was full, for the output or for another file whose writer does not report it.
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
    """Prints a line to the user, if the stream is still open; returns the exit code."""
    with contextlib.suppress(OSError):
        complain(message)
    return exit_code


def _drop(stream: IO[str]) -> None:
    """Discards a stream's buffer: Python would try to write it again at exit and print a traceback."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def make_deterministic() -> None:
    """Makes two runs of a program on a GPU bitwise equal, at some cost in speed; on a CPU they always are.

    Call it before JAX first uses a device, which is when XLA reads its flags.
    """
    flag = "--xla_gpu_deterministic_ops=true"
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()


class OneLine(logging.Formatter):
    """Formats a message as one line, even if names of files or classes in it contain line breaks."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, the base class's name
        return printable(super().formatMessage(record))


@contextlib.contextmanager
def log_to(stream: IO[str], level: int = logging.INFO, prefix: str = "") -> Iterator[None]:
    """Shows the package's log messages once, even if other libraries add a handler to the root logger."""
    logger, handler = logging.getLogger("inception_jax"), logging.StreamHandler(stream)
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


def log_to_stderr(level: int = logging.INFO, prefix: str = "") -> contextlib.AbstractContextManager[None]:
    """`log_to` standard error."""
    return log_to(sys.stderr, level, prefix)


def in_notebook() -> bool:
    """Whether this program is a notebook's kernel, which shows pictures and can update what it has shown."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return getattr(shell, "kernel", None) is not None


def log_in_notebook() -> contextlib.AbstractContextManager[None]:
    """`log_to` the output of a notebook's cell, unless the notebook has set up logging; nothing elsewhere."""
    logger = logging.getLogger("inception_jax")
    if not in_notebook() or logger.handlers or logger.level:
        return contextlib.nullcontext()
    return log_to(sys.stdout)


class _LogFile(logging.FileHandler):
    """Appends to a file; what cannot be written is dropped, since a run does not need it."""

    def __init__(self, path: Path):
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)
        self.setFormatter(OneLine("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):  # from opening the file
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802, the base class's name
        pass


@contextlib.contextmanager
def log_to_file(path: Path, *names: str) -> Iterator[None]:
    """Also appends the messages of the loggers of these names to a file, with the time."""
    loggers, handler = [logging.getLogger(name) for name in names], _LogFile(path)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        with contextlib.suppress(OSError):
            handler.close()


class Terminated(BaseException):
    """SIGTERM was received before or after training, which has its own handler."""


def exit_code(error: BaseException) -> int:
    """The exit code of a program that ends with this error; 1 if it is a bug in the program."""
    if isinstance(error, KeyboardInterrupt):
        return NOT_SAVED if str(error) else INTERRUPTED  # training reports what was saved, see train.StoppedAtOnce
    kinds = {WriteError: NOT_WRITTEN, LostError: LOST, UserError: MISTAKE, Terminated: TERMINATED}
    return next((code for kind, code in kinds.items() if isinstance(error, kind)), 1)


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Makes SIGTERM raise Terminated outside of training, for the exit code that asks to try again later."""

    def terminate(number, frame) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # one is enough: the exit is not interrupted
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
