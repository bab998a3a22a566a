"""Convolution, pooling and normalization that are fast on every backend and equal to `lax` on all."""

from inception_jax.ops.convolution import alone, conv, conv_general_dilated, sibling_convs, transform_kernel
from inception_jax.ops.normalization import batch_norm, local_response_norm
from inception_jax.ops.onednn import compiler_options, fast_bfloat16
from inception_jax.ops.pooling import adaptive_avg_pool, avg_pool, max_pool

__all__ = [
    "adaptive_avg_pool",
    "alone",
    "avg_pool",
    "batch_norm",
    "compiler_options",
    "conv",
    "conv_general_dilated",
    "fast_bfloat16",
    "local_response_norm",
    "max_pool",
    "sibling_convs",
    "transform_kernel",
]
