"""Local response normalisation."""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def local_response_norm(
    x: Float[Array, "*batch channels"], size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Float[Array, "*batch channels"]:
    """x / (k + alpha / size * sum of squares over `size` neighbouring channels) ** beta.

    Krizhevsky et al. 2012, section 3.3, with alpha divided by the size, as Caffe and `torch.nn.LocalResponseNorm` have
    it. The window is centred; of an even size one channel more lies before than after. Computed in at least float32.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    before, after = size // 2, (size - 1) // 2
    padded = jnp.pad(jnp.square(wide), [(0, 0)] * (x.ndim - 1) + [(before, after)])
    channels = x.shape[-1]
    sums = functools.reduce(jnp.add, [lax.slice_in_dim(padded, i, i + channels, axis=x.ndim - 1) for i in range(size)])
    return (wide * (k + alpha / size * sums) ** -beta).astype(x.dtype)
