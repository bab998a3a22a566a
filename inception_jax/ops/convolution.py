"""2-D convolution, lowered on CPUs to the fastest form for its shape; equal to `lax` in value and gradient.

The platform is chosen at lowering time, inside the forward and the backward rule, so that one exported program works
on CPUs and GPUs. The forms themselves are in `convolution_forms`.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Num, Shaped

from inception_jax.errors import check_choice
from inception_jax.ops import winograd
from inception_jax.ops.convolution_forms import (
    NHWC,
    Kernel,
    Maps,
    OutMaps,
    Pads,
    Pair,
    cpu_forward,
    cpu_gradients,
    has_winograd,
    lax_conv,
    lax_gradients,
    out_sizes,
    suits_winograd,
)

_Pointwise = tuple[Float[Array, "1 1 in_channels _"], ...]
_Siblings = tuple[Float[Array, "batch height width _"], ...]


def conv_general_dilated(
    lhs: Num[Array, "..."],
    rhs: Num[Array, "..."],
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision=None,
    preferred_element_type=None,
    *,
    implementation: str = "auto",
    transformed: Float[Array, "points in_channels out_channels"] | None = None,
) -> Num[Array, "..."]:
    """`lax.conv_general_dilated`, for `flax.linen.Conv(conv_general_dilated=...)`, with the same arguments.

    Plain 2-D convolutions of NHWC maps with HWIO kernels use `conv`; all others (dilated, grouped, other layouts,
    another accumulation type) use `lax`. `implementation="lax"` always uses `lax`: bind it with `functools.partial` if
    you need forward-mode differentiation (`jax.jvp`). `transformed` is passed to `conv`.
    """
    plain = (
        implementation != "lax"
        and lhs.ndim == 4
        and _is_nhwc(lhs.shape, rhs.shape, dimension_numbers)
        and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
        and feature_group_count == batch_group_count == 1
        and preferred_element_type in (None, lhs.dtype)
        and lhs.dtype == rhs.dtype
        and jnp.issubdtype(lhs.dtype, jnp.floating)
    )
    if plain:
        return conv(
            lhs,
            rhs,
            window_strides,
            padding,
            precision=precision,
            implementation=implementation,
            transformed=transformed,
        )
    return lax.conv_general_dilated(
        lhs,
        rhs,
        window_strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        precision,
        preferred_element_type,
    )


def conv(
    x: Float[Array, "batch height width in_channels"],
    kernel: Float[Array, "kernel_height kernel_width in_channels out_channels"],
    strides: Sequence[int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
    *,
    precision=None,
    implementation: str = "auto",
    transformed: Float[Array, "points in_channels out_channels"] | None = None,
) -> Float[Array, "batch out_height out_width out_channels"]:
    """2-D convolution (cross-correlation, as is usual in deep learning) of NHWC maps.

    Args:
      x: maps.
      kernel: weights, of the same float type.
      strides: (vertical, horizontal) strides, pixels.
      padding: "SAME", "VALID" or ((top, bottom), (left, right)) in pixels.
      precision: of the products, see `jax.lax.Precision`.
      implementation: "auto" picks by platform and shape; "lax" always uses `lax.conv_general_dilated`, which also
        supports forward-mode differentiation (`jax.jvp`).
      transformed: the kernel's `transform_kernel`, if it was computed before: for inference, where no gradient is
        needed and the kernel is constant.

    Raises:
      UserError: an unknown implementation.
    """
    check_choice("implementation", implementation, ("auto", "lax"))
    strides = (int(strides[0]), int(strides[1]))
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    pads = ((int(top), int(bottom)), (int(left), int(right)))
    if implementation == "lax" or x.size == 0 or min(out_sizes(x.shape, kernel.shape, strides, pads)) <= 0:
        return lax_conv(x, kernel, strides, pads, precision)
    if transformed is not None and suits_winograd(x, kernel.shape, strides, pads, precision):
        default = functools.partial(lax_conv, strides=strides, pads=pads, precision=precision)
        return lax.platform_dependent(
            x,
            kernel,
            transformed,
            cpu=lambda x, kernel, transformed: winograd.conv(x, transformed, pads, kernel.shape),
            default=lambda x, kernel, transformed: default(x, kernel),
        )
    kernel, pads = _trim(kernel, x.shape, strides, pads)
    return _conv(x, kernel, strides, pads, precision)


def transform_kernel(
    kernel: Float[Array, "kernel_height kernel_width in_channels out_channels"],
) -> Float[Array, "points in_channels out_channels"] | None:
    """What `conv` computes from the kernel alone on CPUs, for its argument `transformed`; None if that is nothing.

    Four times as large as a 3x3 kernel, six times as large as one of 2x2. Computing it takes a tenth of GoogLeNet's
    inference at 64 pixels.
    """
    return winograd.transform_kernel(kernel) if has_winograd(kernel.shape, kernel.dtype) else None


def alone(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """Returns x. If it is bfloat16 on a CPU, operations that read it are not fused with the one that computes it.

    JAX 0.12 passes whole subgraphs that end in a sum to YNNPACK; if one contains several bfloat16 convolutions, the
    result is NaN or arbitrary (seen with 0.12.0; never in float32, or if oneDNN runs the convolutions).
    """
    if x.dtype != jnp.bfloat16:
        return x
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)


def sibling_convs(
    x: Float[Array, "batch height width in_channels"],
    kernels: Sequence[Float[Array, "1 1 in_channels _"]],
) -> list[Float[Array, "batch height width _"]]:
    """1x1 convolutions of the same maps, with one result per kernel.

    One convolution with all kernels concatenated, whose result is split; on CPUs one convolution each, since splitting
    and concatenating cost as much as they save (0.93 to 1.17 times the time of separate ones, forward and backward, for
    the modules of GoogLeNet).
    """
    return list(_siblings(x, tuple(kernels)))


def _separate_siblings(x: Maps, kernels: _Pointwise) -> _Siblings:
    return tuple(conv(x, kernel) for kernel in kernels)


def _joined_siblings(x: Maps, kernels: _Pointwise) -> _Siblings:
    y = conv(x, jnp.concatenate(kernels, -1))
    return tuple(jnp.split(y, np.cumsum([kernel.shape[-1] for kernel in kernels])[:-1], axis=-1))


@jax.custom_vjp
def _siblings(x: Maps, kernels: _Pointwise) -> _Siblings:
    return lax.platform_dependent(x, kernels, cpu=_separate_siblings, default=_joined_siblings)


def _siblings_forward(x, kernels):
    return _siblings(x, kernels), (x, kernels)


def _siblings_backward(residuals, dys):
    def pull_back(siblings):
        return lambda x, kernels, dys: jax.vjp(siblings, x, kernels)[1](dys)

    return lax.platform_dependent(
        *residuals, dys, cpu=pull_back(_separate_siblings), default=pull_back(_joined_siblings)
    )


_siblings.defvjp(_siblings_forward, _siblings_backward)


def _is_nhwc(lhs_shape, rhs_shape, dimension_numbers) -> bool:
    numbers = lax.conv_dimension_numbers(lhs_shape, rhs_shape, dimension_numbers)
    return numbers == lax.conv_dimension_numbers(lhs_shape, rhs_shape, NHWC)


def _trim(
    kernel: Kernel, x_shape, strides: Pair, pads: Pads
) -> tuple[Float[Array, "_ _ in_channels out_channels"], Pads]:
    """Crops rows and columns of a kernel that only ever see padding: 5x5 on a 1x1 map becomes one pixel."""
    trimmed = []
    for axis, out in enumerate(out_sizes(x_shape, kernel.shape, strides, pads)):
        size, k, stride, (low, high) = x_shape[1 + axis], kernel.shape[axis], strides[axis], pads[axis]
        touching = [j for j in range(k) if any(0 <= o * stride + j - low < size for o in range(out))]
        first, last = (touching[0], touching[-1]) if touching else (0, k - 1)
        kernel = lax.slice_in_dim(kernel, first, last + 1, axis=axis)
        trimmed.append((low - first, high - (k - 1 - last)))
    return kernel, (trimmed[0], trimmed[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x: Maps, kernel: Kernel, strides: Pair, pads: Pads, precision) -> OutMaps:
    cpu = functools.partial(cpu_forward, strides=strides, pads=pads, precision=precision)
    default = functools.partial(lax_conv, strides=strides, pads=pads, precision=precision)
    return lax.platform_dependent(x, kernel, cpu=cpu, default=default)


def _conv_forward(x, kernel, strides, pads, precision):
    return _conv(x, kernel, strides, pads, precision), (x, kernel)


def _conv_backward(strides, pads, precision, residuals, dy):
    args = {"strides": strides, "pads": pads, "precision": precision}
    cpu = functools.partial(cpu_gradients, **args)
    default = functools.partial(lax_gradients, **args)
    return lax.platform_dependent(*residuals, dy, cpu=cpu, default=default)


_conv.defvjp(_conv_forward, _conv_backward)
