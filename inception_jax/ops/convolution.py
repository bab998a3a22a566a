"""2-D convolution, lowered on CPUs to whatever is fastest for its shape; equal to `lax` in value and gradient.

The choice by platform is made when the program is lowered, inside the forward and the backward rule, so that one
exported program serves CPUs and GPUs. What was slow and what helped is said beside each lowering.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from inception_jax.errors import unknown_name
from inception_jax.ops import onednn, winograd

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]
_NHWC = ("NHWC", "HWIO", "NHWC")
# A tile of AMX multiplies 32 numbers in bfloat16 at once: 512 maps of 31x31 pixels, 24 to 64 channels, take 152 ms in
# parts of 32 examples, 208 in parts of 16 and 231 in parts of 64.
_EXAMPLES_OF_A_TILE = 32


def conv_general_dilated(
    lhs: Array,
    rhs: Array,
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
    transformed: Array | None = None,
) -> Array:
    """`lax.conv_general_dilated`, for `flax.linen.Conv(conv_general_dilated=...)`, with the same arguments.

    Plain 2-D convolutions of NHWC maps with HWIO kernels go to `conv`; everything else (dilated, grouped, other
    layouts, another accumulation type) goes to `lax` as it is. `implementation="lax"` sends everything there: bind it
    with `functools.partial` where forward-mode differentiation (`jax.jvp`) is wanted. `transformed` is `conv`'s.
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
    transformed: Float[Array, "36 in_channels out_channels"] | None = None,
) -> Float[Array, "batch out_height out_width out_channels"]:
    """2-D convolution (cross-correlation, as everywhere in deep learning) of NHWC maps.

    Args:
        x: maps.
        kernel: weights, of the same float type.
        strides: (vertical, horizontal) distance between the kernel's places, pixels.
        padding: "SAME", "VALID" or ((top, bottom), (left, right)) in pixels.
        precision: of the products, see `jax.lax.Precision`.
        implementation: "auto" picks by platform and shape; "lax" is `lax.conv_general_dilated` everywhere, which can
            also be differentiated forwards (`jax.jvp`).
        transformed: what `transform_kernel` made of the kernel, where that is known before: for inference, where no
            gradient is asked for and the kernel stays the same.

    Raises UserError for an unknown implementation.
    """
    if implementation not in ("auto", "lax"):
        raise unknown_name("implementation", implementation, ("auto", "lax"))
    strides = (int(strides[0]), int(strides[1]))
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    pads = ((int(top), int(bottom)), (int(left), int(right)))
    if implementation == "lax" or x.size == 0 or min(_out_sizes(x.shape, kernel.shape, strides, pads)) <= 0:
        return _lax_conv(x, kernel, strides, pads, precision)
    if transformed is not None and _suits_winograd(x, kernel.shape, strides, precision):
        default = functools.partial(_lax_conv, strides=strides, pads=pads, precision=precision)
        return lax.platform_dependent(
            x,
            kernel,
            transformed,
            cpu=lambda x, kernel, transformed: winograd.conv(x, transformed, pads),
            default=lambda x, kernel, transformed: default(x, kernel),
        )
    kernel, pads = _trim(kernel, x.shape, strides, pads)
    return _conv(x, kernel, strides, pads, precision)


def transform_kernel(
    kernel: Float[Array, "kernel_height kernel_width in_channels out_channels"],
) -> Float[Array, "36 in_channels out_channels"] | None:
    """What `conv` computes from a kernel alone on CPUs, to be given to it as `transformed`; None where that is nothing.

    Four times as large as the kernel; a tenth of GoogLeNet's inference at 64 pixels.
    """
    return winograd.transform_kernel(kernel) if _has_winograd(kernel.shape, kernel.dtype) else None


def alone(x: Array) -> Array:
    """x itself. On a CPU nothing that reads it becomes one operation with what computes it, if it is bfloat16.

    JAX 0.12 hands whole subgraphs that end in a sum to YNNPACK; with several convolutions in bfloat16 in one of them,
    the result is NaN or any number (seen with 0.12.0; in float32, and where oneDNN takes the convolutions, never).
    """
    if x.dtype != jnp.bfloat16:
        return x
    return lax.platform_dependent(x, cpu=lax.optimization_barrier, default=lambda x: x)


def sibling_convs(
    x: Float[Array, "batch height width in_channels"],
    kernels: Sequence[Float[Array, "1 1 in_channels out_channels"]],
) -> list[Float[Array, "batch height width out_channels"]]:
    """1x1 convolutions of the same maps, a result for each kernel.

    One convolution with all kernels side by side, whose result is split; on CPUs one each, since there the splitting
    and joining take as long as is saved (0.93 to 1.17 times the time of separate ones, forwards and backwards, for the
    modules of GoogLeNet).
    """
    return _siblings(x, tuple(kernels))


def _separate_siblings(x: Array, kernels: tuple[Array, ...]) -> tuple[Array, ...]:
    return tuple(conv(x, kernel) for kernel in kernels)


def _joined_siblings(x: Array, kernels: tuple[Array, ...]) -> tuple[Array, ...]:
    y = conv(x, jnp.concatenate(kernels, -1))
    return tuple(jnp.split(y, np.cumsum([kernel.shape[-1] for kernel in kernels])[:-1], axis=-1))


@jax.custom_vjp
def _siblings(x: Array, kernels: tuple[Array, ...]) -> tuple[Array, ...]:
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
    return numbers == lax.conv_dimension_numbers(lhs_shape, rhs_shape, _NHWC)


def _out_sizes(x_shape, kernel_shape, strides: Pair, pads: Pads) -> list[int]:
    return [(x_shape[1 + i] + sum(pads[i]) - kernel_shape[i]) // strides[i] + 1 for i in range(2)]


def _lax_conv(x, kernel, strides: Pair, pads: Sequence[Pair], precision) -> Array:
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=_NHWC, precision=precision)


def _trim(kernel: Array, x_shape, strides: Pair, pads: Pads) -> tuple[Array, Pads]:
    """Cuts off the rows and columns of a kernel that only ever meet padding: of 5x5 on a 1x1 map one pixel is left."""
    trimmed = []
    for axis, out in enumerate(_out_sizes(x_shape, kernel.shape, strides, pads)):
        size, k, stride, (low, high) = x_shape[1 + axis], kernel.shape[axis], strides[axis], pads[axis]
        touching = [j for j in range(k) if any(0 <= o * stride + j - low < size for o in range(out))]
        first, last = (touching[0], touching[-1]) if touching else (0, k - 1)
        kernel = lax.slice_in_dim(kernel, first, last + 1, axis=axis)
        trimmed.append((low - first, high - (k - 1 - last)))
    return kernel, (trimmed[0], trimmed[1])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _conv(x: Array, kernel: Array, strides: Pair, pads: Pads, precision) -> Array:
    cpu = functools.partial(_cpu_forward, strides=strides, pads=pads, precision=precision)
    default = functools.partial(_lax_conv, strides=strides, pads=pads, precision=precision)
    return lax.platform_dependent(x, kernel, cpu=cpu, default=default)


def _conv_forward(x, kernel, strides, pads, precision):
    return _conv(x, kernel, strides, pads, precision), (x, kernel)


def _conv_backward(strides, pads, precision, residuals, dy):
    args = {"strides": strides, "pads": pads, "precision": precision}
    cpu = functools.partial(_cpu_gradients, **args)
    default = functools.partial(_lax_gradients, **args)
    return lax.platform_dependent(*residuals, dy, cpu=cpu, default=default)


_conv.defvjp(_conv_forward, _conv_backward)


def _lax_gradients(x, kernel, dy, **args) -> tuple[Array, Array]:
    return _lax_input_gradient(kernel, dy, x.shape, **args), _lax_kernel_gradient(x, dy, kernel.shape, **args)


def _lax_input_gradient(kernel, dy, x_shape, **args) -> Array:
    x = jax.ShapeDtypeStruct(x_shape, dy.dtype)
    return jax.linear_transpose(lambda x: _lax_conv(x, kernel, **args), x)(dy)[0]


def _lax_kernel_gradient(x, dy, kernel_shape, **args) -> Array:
    kernel = jax.ShapeDtypeStruct(kernel_shape, dy.dtype)
    return jax.linear_transpose(lambda kernel: _lax_conv(x, kernel, **args), kernel)(dy)[0]


# What follows runs on CPUs only.


def _suits_onednn(dtype) -> bool:
    return dtype == jnp.bfloat16 and onednn.suits_cpu()


def _cpu_forward(x, kernel, strides: Pair, pads: Pads, precision) -> Array:
    if _suits_onednn(x.dtype):
        return _plain_conv(x, kernel, strides, pads, precision)
    if _is_pointwise(kernel.shape, pads):
        return _dot(x[:, :: strides[0], :: strides[1]], kernel[0, 0], precision)
    if _suits_winograd(x, kernel.shape, strides, precision):
        return winograd.conv(x, winograd.transform_kernel(kernel), pads)
    out_sizes = _out_sizes(x.shape, kernel.shape, strides, pads)
    if _is_tiny(x.shape, kernel.shape):
        y = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
        for i, j, rows, columns in _contacts(x.shape[1:3], out_sizes, kernel.shape, strides, pads):
            part = _dot(x[:, rows.inputs, columns.inputs], kernel[i, j], precision).astype(y.dtype)
            y = y + _place(part, (rows.outputs, columns.outputs), out_sizes)
        return y.astype(x.dtype)
    return _plain_conv(x, kernel, strides, pads, precision)


def _cpu_gradients(x, kernel, dy, strides: Pair, pads: Pads, precision) -> tuple[Array, Array]:
    if _suits_winograd(x, kernel.shape, strides, precision):
        return winograd.gradients(x, kernel, dy, pads)
    args = {"strides": strides, "pads": pads, "precision": precision}
    return _cpu_input_gradient(kernel, dy, x.shape, **args), _cpu_kernel_gradient(x, dy, kernel.shape, **args)


def _cpu_input_gradient(kernel, dy, x_shape, strides: Pair, pads: Pads, precision) -> Array:
    if _suits_onednn(dy.dtype):
        return _flipped_conv(kernel, dy, x_shape, strides, pads, precision)
    if _is_pointwise(kernel.shape, pads) or _is_tiny(x_shape, kernel.shape):
        dx = jnp.zeros((), jnp.promote_types(dy.dtype, jnp.float32))
        for i, j, rows, columns in _contacts(x_shape[1:3], dy.shape[1:3], kernel.shape, strides, pads):
            part = _dot(dy[:, rows.outputs, columns.outputs], kernel[i, j].T, precision).astype(dx.dtype)
            dx = dx + _place(part, (rows.inputs, columns.inputs), x_shape[1:3])
        return dx.astype(dy.dtype)
    if strides == (1, 1) and _over_the_cliff(dy.shape, kernel.shape):
        return _flipped_conv(kernel, dy, x_shape, strides, pads, precision)
    return _lax_input_gradient(kernel, dy, x_shape, strides=strides, pads=pads, precision=precision)


def _flipped_conv(kernel, dy, x_shape, strides: Pair, pads: Pads, precision) -> Array:
    """The gradient with respect to the input as a plain convolution: oneDNN does not take a transposed one."""
    if strides != (1, 1):
        config = ((0, 0, 0), *((0, 0, stride - 1) for stride in strides), (0, 0, 0))
        dy = lax.optimization_barrier(lax.pad(dy, jnp.zeros((), dy.dtype), config))
    back = [
        (k - 1 - low, size - got + low)
        for k, (low, _), size, got in zip(kernel.shape, pads, x_shape[1:3], dy.shape[1:3], strict=False)
    ]
    return _plain_conv(dy, kernel[::-1, ::-1].swapaxes(2, 3), (1, 1), (back[0], back[1]), precision)


def _plain_conv(x, kernel, strides: Pair, pads: Pads, precision) -> Array:
    """`lax`'s, such that XLA does not exchange the operands where the kernel is larger than the map."""
    if _over_the_cliff(x.shape, kernel.shape):
        x, pads = _pad(x, pads), ((0, 0), (0, 0))
    if _suits_onednn(x.dtype) and onednn.is_wrong(kernel.shape[2], kernel.shape[1]):
        x, kernel = _fill(x, onednn.TILE, axis=3), _fill(kernel, onednn.TILE, axis=2)
    return _lax_conv(x, kernel, strides, pads, precision)


def _cpu_kernel_gradient(x, dy, kernel_shape, strides: Pair, pads: Pads, precision) -> Array:
    if _is_pointwise(kernel_shape, pads):
        return _outer(x[:, :: strides[0], :: strides[1]], dy, precision)[None, None]
    if _suits_onednn(x.dtype):
        args = {"kernel_shape": kernel_shape, "strides": strides, "pads": pads}
        size = _examples_at_once(dy.shape[1] * dy.shape[2])
        if onednn.has_tiles() and kernel_shape[2] >= 32 and kernel_shape[3] >= 96:
            return _in_parts(functools.partial(_kernel_gradient_by_rows, **args), x, dy, size)
        gradient = functools.partial(_onednn_kernel_gradient, precision=precision, **args)
        return _in_parts(gradient, x, dy, _EXAMPLES_OF_A_TILE if onednn.has_tiles() else size)
    largest = max(x.shape[1:3])
    # Matrix products of fewer channels are too thin to be worth one per offset, unless the map is tiny.
    if largest > 2 and min(kernel_shape[2:]) < 64:
        return _lax_kernel_gradient(x, dy, kernel_shape, strides=strides, pads=pads, precision=precision)
    if largest <= 4:
        contacts = _contacts(x.shape[1:3], dy.shape[1:3], kernel_shape, strides, pads)
        products = {
            (i, j): _outer(x[:, rows.inputs, columns.inputs], dy[:, rows.outputs, columns.outputs], precision)
            for i, j, rows, columns in contacts
        }
    else:
        padded = _pad(x, pads)
        height, width = ((n - 1) * stride + 1 for n, stride in zip(dy.shape[1:3], strides, strict=True))
        products = {
            (i, j): _outer(padded[:, i : i + height : strides[0], j : j + width : strides[1]], dy, precision)
            for i, j in np.ndindex(*kernel_shape[:2])
        }
    zeros = jnp.zeros(kernel_shape[2:], dy.dtype)
    return jnp.stack([products.get(offset, zeros) for offset in np.ndindex(*kernel_shape[:2])]).reshape(kernel_shape)


def _onednn_kernel_gradient(x, dy, kernel_shape, **args) -> Array:
    """`lax`'s, a convolution with dy as its kernel, whose channels are the examples."""
    if onednn.is_wrong(len(x), dy.shape[2]):
        x, dy = (_fill(each, onednn.TILE, axis=0) for each in (x, dy))
    return _lax_kernel_gradient(x, dy, kernel_shape, **args)


def _kernel_gradient_by_rows(x, dy, kernel_shape, strides: Pair, pads: Pads) -> Array:
    """As a matrix product for each row of the kernel: dy, and the map shifted to each of the row's columns.

    For AMX, whose tiles a convolution with an output as small as a kernel leaves mostly empty: 512 maps of 15x15,
    64 to 256 channels, 344 ms as a convolution and 155 as products. Of fewer channels the copies cost what is saved.
    """
    height, width = ((n - 1) * stride + 1 for n, stride in zip(dy.shape[1:3], strides, strict=True))
    padded = _pad(x, pads)
    columns = [padded[:, :, j : j + width : strides[1]] for j in range(kernel_shape[1])]
    columns = lax.optimization_barrier(jnp.concatenate(columns, -1))
    rows = [lax.optimization_barrier(columns[:, i : i + height : strides[0]]) for i in range(kernel_shape[0])]
    return jnp.stack([_outer(row, dy, None) for row in rows]).reshape(kernel_shape)


def _in_parts(gradient, x, dy, size: int) -> Array:
    """The sum, in float32, of the kernel's `gradient(x, dy)` of `size` examples after others.

    To oneDNN the examples are channels of one convolution, which is up to 3.5 times as slow with hundreds of them:
    512 maps of 15x15 pixels, 64 to 256 channels, 408 ms at once and 116 in parts.
    """
    if len(x) <= size:
        return gradient(x, dy)
    total = jnp.zeros((), jnp.float32)
    for start in range(0, len(x), size):  # in a loop of XLA's, convolutions do not go to oneDNN
        part = gradient(*lax.optimization_barrier((x[start : start + size], dy[start : start + size])))
        total = total + lax.optimization_barrier(part).astype(total.dtype)
    return total.astype(x.dtype)


def _examples_at_once(pixels: int) -> int:
    """A power of two from 16 to 128; between them such that the maps of so many examples have 16,000 pixels at most."""
    return 1 << min(max((16_000 // pixels).bit_length() - 1, 4), 7)


def _is_pointwise(kernel_shape, pads: Pads) -> bool:
    return kernel_shape[0] == kernel_shape[1] == 1 and pads == ((0, 0), (0, 0))


def _suits_winograd(x, kernel_shape, strides: Pair, precision) -> bool:
    # Of 2x2 maps a tile of 4x4 would be mostly padding, and who asks for a precision wants all digits.
    return _has_winograd(kernel_shape, x.dtype) and strides == (1, 1) and max(x.shape[1:3]) > 2 and precision is None


def _has_winograd(kernel_shape, dtype) -> bool:
    # Of fewer channels the transforms cost more than they save. The rounding is for float32: bfloat16 has too few
    # digits, and who asks for float64 wants them all.
    return tuple(kernel_shape[:2]) == (3, 3) and min(kernel_shape[2:]) >= 32 and dtype == jnp.float32


def _is_tiny(map_shape, kernel_shape) -> bool:
    return max(map_shape[1:3]) <= (4 if max(kernel_shape[:2]) <= 3 else 2)


def _over_the_cliff(map_shape, kernel_shape) -> bool:
    return kernel_shape[0] > map_shape[1] or kernel_shape[1] > map_shape[2]


class _Contact(NamedTuple):
    """Along one axis, the outputs that one offset of the kernel connects with inputs, and these inputs."""

    outputs: slice
    inputs: slice


def _contacts(
    in_sizes, out_sizes, kernel_shape, strides: Pair, pads: Pads
) -> Iterator[tuple[int, int, _Contact, _Contact]]:
    """The offsets (i, j) of a kernel that touch the map at all, with the rows and columns that they connect."""
    per_axis: list[dict[int, _Contact]] = [{}, {}]
    for axis, contacts in enumerate(per_axis):
        size, stride, low = in_sizes[axis], strides[axis], pads[axis][0]
        for offset in range(kernel_shape[axis]):
            outputs = [o for o in range(out_sizes[axis]) if 0 <= o * stride + offset - low < size]
            if outputs:
                inputs = [o * stride + offset - low for o in (outputs[0], outputs[-1])]
                contacts[offset] = _Contact(
                    slice(outputs[0], outputs[-1] + 1), slice(inputs[0], inputs[-1] + 1, stride)
                )
    for (i, rows), (j, columns) in itertools.product(per_axis[0].items(), per_axis[1].items()):
        yield i, j, rows, columns


def _place(part: Array, slices: tuple[slice, slice], sizes: Sequence[int]) -> Array:
    """Zeros of the given height and width with `part` at `slices`: the transpose of slicing."""
    config = [(s.start, size - s.stop, (s.step or 1) - 1) for s, size in zip(slices, sizes, strict=True)]
    return lax.pad(part, jnp.zeros((), part.dtype), ((0, 0, 0), *config, (0, 0, 0)))


def _dot(x: Array, kernel: Array, precision) -> Array:
    return lax.dot_general(x, kernel, (((3,), (0,)), ((), ())), precision=precision)


def _outer(x: Array, dy: Array, precision) -> Array:
    """Sum over examples and pixels of the products of channels, (in_channels, out_channels)."""
    if _suits_onednn(x.dtype):  # which needs no transposed x, but only takes two dimensions
        return lax.dot_general(x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1]), (((0,), (0,)), ((), ())))
    # XLA transposes x for this product; the barrier keeps what computes x out of that loop, whose stride is long.
    return lax.dot_general(lax.optimization_barrier(x), dy, (((0, 1, 2), (0, 1, 2)), ((), ())), precision=precision)


def _fill(x: Array, size: int, axis: int) -> Array:
    """x with zeros at the end of an axis, up to a size."""
    config = [(0, size - x.shape[axis] if each == axis else 0, 0) for each in range(x.ndim)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _pad(x: Array, pads: Pads) -> Array:
    # XLA would fold the padding back into the convolution if it were not for the barrier.
    config = ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0))
    return lax.optimization_barrier(lax.pad(x, jnp.zeros((), x.dtype), config))
