"""Settings of the whole process that make training faster; for programs, not for libraries."""

import gc
import os
import platform
import signal
import sys
from pathlib import Path
from typing import NoReturn

# Exit codes. 75 is the one by which programs ask to be tried again later (sysexits.h).
FINISHED, MISTAKE, NOT_FINITE, NOT_WRITTEN, LOST, TERMINATED, INTERRUPTED = 0, 2, 3, 4, 5, 75, 130
# glibc's allocator: huge pages (below), and as many arenas as there are cores. With its own eight for each core, what
# lay free between arrays in use grew from 51 to 90 MB in 8,500 small steps on two cores; with these it stays at 30 MB,
# after 4,000 and after 17,500. What is in use is the same.
MALLOC = f"glibc.malloc.hugetlb=1:glibc.malloc.arena_max={os.cpu_count() or 1}"
GC_THRESHOLD = 100_000  # new objects between two garbage collections; CPython's own is 700 to 2,000


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


def leave(exit_code: int) -> NoReturn:
    """Ends the program, and lets no SIGTERM on the way out change its exit code.

    After a write that failed at once, without clean-up: threads of other libraries would try to write again, and say so
    with pages of tracebacks.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if exit_code == NOT_WRITTEN:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


def make_deterministic() -> None:
    """Makes two runs of a program on a GPU give the same bits, at some cost in speed; a CPU's do so anyway.

    To be called before JAX first uses a device: XLA reads its flags then.
    """
    flag = "--xla_gpu_deterministic_ops=true"
    flags = os.environ.get("XLA_FLAGS", "")
    if flag not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()
