"""Intel's oneDNN, which jaxlib contains: where it is fast, and how programs are compiled to use it.

Since jaxlib 0.12, two options of the compiler hand convolutions and matrix products to it. On processors with AVX-512,
those in bfloat16 then run at the speed of the processor's units for it; without the options they are slower than in
float32. The first option alone makes bfloat16 sixty times slower than both.
"""

import functools
import importlib.metadata
from pathlib import Path
from typing import Any

import jax
from jax import numpy as jnp

TILE = 16  # channels
_OPTIONS: dict[str, str | bool] = {"xla_cpu_use_onednn": True, "xla_cpu_experimental_onednn_custom_call": True}


@functools.cache
def processor_flags() -> frozenset[str]:
    """What the processor can do, by Linux's names; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def suits_cpu() -> bool:
    """Whether programs for this machine's CPU are compiled with oneDNN's operations."""
    version = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
    return version >= (0, 12) and "avx512f" in processor_flags()


def fast_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 on this machine's CPU."""
    return suits_cpu() and not processor_flags().isdisjoint({"avx512_bf16", "amx_bf16"})


def has_tiles() -> bool:
    """Whether the processor multiplies bfloat16 by tiles (AMX), which small matrices leave mostly empty."""
    return "amx_bf16" in processor_flags()


def is_wrong(in_channels: int, kernel_width: int) -> bool:
    """Whether oneDNN may compute a convolution in bfloat16 wrongly, which it does not with `TILE` channels or more.

    With AMX, a plain convolution of an even number of channels below `TILE`, if a row of its kernel has a multiple of
    32 weights for each output channel (8 channels and 4 columns, 2 and 16), is off by as much as its values are large:
    about half of those tried, and none of the others (oneDNN 3.12.3, jaxlib 0.12.0).
    """
    return has_tiles() and in_channels < TILE and in_channels % 2 == 0 and in_channels * kernel_width % 32 == 0


def compiler_options(dtype: Any) -> dict[str, str | bool]:
    """For `jax.jit(compiler_options=...)` of a network that computes in `dtype`: what makes bfloat16 fast on a CPU.

    Nothing in other types: XLA's own convolutions in float32 are as fast, and JAX's cache cannot keep programs with
    oneDNN's, which are compiled at every start. Nothing on accelerators either, nor where one CPU stands for several
    devices, which would wait for each other's threads.
    """
    if dtype is None or jnp.dtype(dtype) != jnp.bfloat16:
        return {}
    alone = jax.default_backend() == "cpu" and jax.local_device_count() == 1
    return _OPTIONS if alone and suits_cpu() else {}
