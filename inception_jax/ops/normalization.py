"""Batch and local response normalization, with gradients that take few passes over the maps."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from inception_jax.errors import check_choice

Maps = Float[Array, "*batch channels"]
PerChannel = Float[Array, " channels"]


def batch_norm(
    x: Float[Array, "*batch channels"],
    scale: Float[Array, " channels"],
    bias: Float[Array, " channels"],
    epsilon: float = 1e-3,
    *,
    relu: bool = False,
    implementation: str = "auto",
) -> tuple[Float[Array, "*batch channels"], Float[Array, " channels"], Float[Array, " channels"]]:
    """Batch normalization in training (Ioffe & Szegedy 2015, Algorithm 1), with the statistics of the batch.

    Args:
      x: maps or features, in any float type.
      scale: gamma in the paper, one per channel.
      bias: beta in the paper, one per channel.
      epsilon: added to the variance.
      relu: whether to apply a ReLU afterwards, at no extra cost.
      implementation: "auto" uses a custom gradient; "lax" uses JAX's, which also supports forward-mode
        differentiation (`jax.jvp`).

    Returns:
      The normalized maps in x's type, and the mean and the (biased, as in `flax.linen.BatchNorm`) variance of each
      channel in at least float32, the type of all sums.

    Raises:
      UserError: an unknown implementation.
    """
    check_choice("implementation", implementation, ("auto", "lax"))
    if implementation == "lax":
        return _normalize(x, scale, bias, epsilon, relu)
    return _batch_norm(x, scale, bias, epsilon, relu)


def _apart(*arrays: Float[Array, "..."]) -> tuple[Float[Array, "..."], ...]:
    """The same arrays; XLA's CPU backend cannot share their conversion to float32 with an earlier one.

    Shared conversions and products are materialized as whole maps in float32 and read again; one with a single reader
    is fused into it. Sums over 16 x 112 x 112 x 64 in bfloat16: 0.8 ms instead of 12.
    """
    return lax.optimization_barrier(arrays)


def _together(*arrays: Float[Array, "..."]) -> tuple[Float[Array, "..."], ...]:
    return arrays


def _normalize(
    x: Maps, scale: PerChannel, bias: PerChannel, epsilon: float, relu: bool, apart: Callable = _together
) -> tuple[Maps, PerChannel, PerChannel]:
    wide, axes = jnp.promote_types(x.dtype, jnp.float32), tuple(range(x.ndim - 1))
    mean = jnp.mean(x.astype(wide), axes)
    (again,) = apart(x)
    variance = jnp.maximum(jnp.mean(jnp.square(again.astype(wide)), axes) - jnp.square(mean), 0)
    slope = lax.rsqrt(variance + epsilon) * scale
    last, slope, offset = apart(x, slope, bias - mean * slope)
    y = last.astype(wide) * slope + offset
    return (jnp.maximum(y, 0) if relu else y).astype(x.dtype), mean, variance


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _batch_norm(
    x: Maps, scale: PerChannel, bias: PerChannel, epsilon: float, relu: bool
) -> tuple[Maps, PerChannel, PerChannel]:
    normalize = functools.partial(_normalize, epsilon=epsilon, relu=relu)
    return lax.platform_dependent(x, scale, bias, cpu=functools.partial(normalize, apart=_apart), default=normalize)


def _batch_norm_forward(x, scale, bias, epsilon, relu):
    results: Any = _batch_norm(x, scale, bias, epsilon, relu)
    y, mean, variance = results
    return (y, mean, variance), (x, scale, bias, mean, variance)


def _batch_norm_backward(epsilon, relu, residuals, gradients):
    pull_back = functools.partial(_pull_back, epsilon=epsilon, relu=relu)
    cpu = functools.partial(pull_back, apart=_apart)
    return lax.platform_dependent(*residuals, *gradients, cpu=cpu, default=pull_back)


_batch_norm.defvjp(_batch_norm_forward, _batch_norm_backward)


def _pull_back(
    x: Maps,
    scale: PerChannel,
    bias: PerChannel,
    mean: PerChannel,
    variance: PerChannel,
    dy: Maps,
    d_mean: PerChannel,
    d_variance: PerChannel,
    *,
    epsilon: float,
    relu: bool,
    apart: Callable = _together,
) -> tuple[Maps, PerChannel, PerChannel]:
    """The gradients with respect to x, scale and bias: two sums over the maps, then a weighted sum of dy and x."""
    wide, axes, count = mean.dtype, tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    deviation = lax.rsqrt(variance + epsilon)
    slope = deviation * scale
    x, dy = apart(x, dy)
    if relu:
        before = x.astype(wide) * slope + (bias - mean * slope)
        dy = jnp.where(before > 0, dy, 0)
        x, dy = apart(x, dy)
    d_bias = dy.astype(wide).sum(axes)
    first, second = apart(x, dy)
    products = (first.astype(wide) * second.astype(wide)).sum(axes)
    d_scale = (products - mean * d_bias) * deviation
    of_x = (2 * d_variance - slope * deviation * d_scale) / count
    constant = (d_mean - slope * d_bias) / count - mean * of_x
    first, second, slope, of_x, constant = apart(x, dy, slope, of_x, constant)
    dx = second.astype(wide) * slope + first.astype(wide) * of_x + constant
    return dx.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


def local_response_norm(
    x: Float[Array, "*batch channels"],
    size: int = 5,
    alpha: float = 1e-4,
    beta: float = 0.75,
    k: float = 1.0,
    *,
    implementation: str = "auto",
) -> Float[Array, "*batch channels"]:
    """x / (k + alpha / size * sum of squares over `size` neighboring channels) ** beta.

    Krizhevsky et al. 2012, section 3.3, with alpha divided by the size, as in Caffe and `torch.nn.LocalResponseNorm`.
    The window is centered; with an even size it has one more channel before than after. Computed in at least float32.
    `implementation="lax"` uses JAX's gradient: slower, but it also supports forward-mode differentiation (`jax.jvp`).

    Raises:
      UserError: an unknown implementation.
    """
    check_choice("implementation", implementation, ("auto", "lax"))
    window_sum = _window_sum if implementation == "auto" else _sum_of_slices
    with jax.named_scope("local_response_norm"):
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        scale = k + alpha / size * window_sum(jnp.square(wide), size // 2, (size - 1) // 2)
        if beta == 0.75:  # the usual value; two roots are six times as fast as a power on CPUs
            root = lax.rsqrt(scale)
            return (wide * (root * jnp.sqrt(root))).astype(x.dtype)
        return (wide * scale**-beta).astype(x.dtype)


def _sum_of_slices(x: Maps, before: int, after: int) -> Maps:
    """For each channel, the sum of it, the `before` ones before it and the `after` ones after it."""
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(before, after)])
    slices = [lax.slice_in_dim(padded, i, i + x.shape[-1], axis=x.ndim - 1) for i in range(before + after + 1)]
    return functools.reduce(jnp.add, slices)


# The transpose of the sum is the mirrored sum. JAX's own would pad each slice, ten times slower on CPUs.
_window_sum = jax.custom_vjp(_sum_of_slices, nondiff_argnums=(1, 2))
_window_sum.defvjp(
    lambda x, before, after: (_window_sum(x, before, after), None),
    lambda before, after, _, dy: (_window_sum(dy, after, before),),
)
