"""Intel's oneDNN, which is part of jaxlib: where it is fast, and how programs are compiled to use it.

Since jaxlib 0.12, two compiler options pass convolutions and matrix products to it. On processors with AVX-512, those
in bfloat16 then use the processor's bfloat16 units; without the options they are slower than in float32. The first
option alone makes bfloat16 sixty times slower than both.
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
    """The processor's feature flags as Linux names them; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def suits_cpu() -> bool:
    """Whether programs for this machine's CPU are compiled to use oneDNN."""
    version = tuple(int(part) for part in importlib.metadata.version("jaxlib").split(".")[:2])
    return version >= (0, 12) and "avx512f" in processor_flags()


def fast_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 on this machine's CPU."""
    return suits_cpu() and not processor_flags().isdisjoint({"avx512_bf16", "amx_bf16"})


def has_tiles() -> bool:
    """Whether the processor has bfloat16 tiles (AMX), which small matrices leave mostly empty."""
    return "amx_bf16" in processor_flags()


def is_wrong(in_channels: int, kernel_width: int) -> bool:
    """Whether oneDNN may compute a bfloat16 convolution wrongly; with `TILE` or more channels it does not.

    With AMX, a plain convolution with an even number of channels below `TILE`, if a row of its kernel has a multiple of
    32 weights for each output channel (8 channels and 4 columns, 2 and 16), has errors as large as its values: about
    half of those tested, and none of the others (oneDNN 3.12.3, jaxlib 0.12.0).
    """
    return has_tiles() and in_channels < TILE and in_channels % 2 == 0 and in_channels * kernel_width % 32 == 0


def compiler_options(dtype: Any) -> dict[str, str | bool]:
    """Options for `jax.jit(compiler_options=...)` that make bfloat16 fast on a CPU, for a network computing in `dtype`.

    Empty for other types: XLA's own float32 convolutions are as fast, and JAX cannot cache programs that use oneDNN,
    which would be compiled at every start. Also empty on accelerators, and if one CPU emulates several devices, which
    would wait for each other's threads.
    """
    if dtype is None or jnp.dtype(dtype) != jnp.bfloat16:
        return {}
    alone = jax.default_backend() == "cpu" and jax.local_device_count() == 1
    return _OPTIONS if alone and suits_cpu() else {}
