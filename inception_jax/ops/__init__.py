"""Convolution, pooling and normalisation that are fast on every backend and equal to `lax` on all."""

from inception_jax.ops.convolution import conv, conv_general_dilated, sibling_convs, transform_kernel
from inception_jax.ops.normalization import local_response_norm
from inception_jax.ops.pooling import adaptive_avg_pool, avg_pool, max_pool

__all__ = [
    "adaptive_avg_pool",
    "avg_pool",
    "conv",
    "conv_general_dilated",
    "local_response_norm",
    "max_pool",
    "sibling_convs",
    "transform_kernel",
]
