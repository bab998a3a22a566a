"""Implementations of a convolution and its gradients: `lax`'s, and the fastest ones on a CPU by shape and type.

Each form documents what was slow and what helped.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from inception_jax.ops import onednn, winograd

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]
Maps = Float[Array, "batch height width in_channels"]
Kernel = Float[Array, "kernel_height kernel_width in_channels out_channels"]
OutMaps = Float[Array, "batch out_height out_width out_channels"]
NHWC = ("NHWC", "HWIO", "NHWC")
# The kernels for which minimal filtering was measured to be faster.
_FILTERED = ((3, 3), (2, 2), (2, 1), (1, 2))
# An AMX tile multiplies 32 bfloat16 numbers at once: 512 maps of 31x31 pixels, 24 to 64 channels, take 152 ms in
# parts of 32 examples, 208 in parts of 16 and 231 in parts of 64.
_EXAMPLES_OF_A_TILE = 32


def out_sizes(x_shape, kernel_shape, strides: Pair, pads: Pads) -> list[int]:
    return [(x_shape[1 + i] + sum(pads[i]) - kernel_shape[i]) // strides[i] + 1 for i in range(2)]


def lax_conv(x: Maps, kernel: Kernel, strides: Pair, pads: Sequence[Pair], precision) -> OutMaps:
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=NHWC, precision=precision)


def lax_gradients(x: Maps, kernel: Kernel, dy: OutMaps, **args) -> tuple[Maps, Kernel]:
    return _lax_input_gradient(kernel, dy, x.shape, **args), _lax_kernel_gradient(x, dy, kernel.shape, **args)


def _lax_input_gradient(kernel: Kernel, dy: OutMaps, x_shape, **args) -> Maps:
    x = jax.ShapeDtypeStruct(x_shape, dy.dtype)
    return jax.linear_transpose(lambda x: lax_conv(x, kernel, **args), x)(dy)[0]


def _lax_kernel_gradient(x: Maps, dy: OutMaps, kernel_shape, **args) -> Kernel:
    kernel = jax.ShapeDtypeStruct(kernel_shape, dy.dtype)
    return jax.linear_transpose(lambda kernel: lax_conv(x, kernel, **args), kernel)(dy)[0]


def _suits_onednn(dtype) -> bool:
    return dtype == jnp.bfloat16 and onednn.suits_cpu()


def cpu_forward(x: Maps, kernel: Kernel, strides: Pair, pads: Pads, precision) -> OutMaps:
    if _suits_onednn(x.dtype):
        return _plain_conv(x, kernel, strides, pads, precision)
    if _is_pointwise(kernel.shape, pads):
        return _dot(x[:, :: strides[0], :: strides[1]], kernel[0, 0], precision)
    if suits_winograd(x, kernel.shape, strides, pads, precision):
        return winograd.conv(x, winograd.transform_kernel(kernel), pads, kernel.shape)
    sizes = out_sizes(x.shape, kernel.shape, strides, pads)
    if _is_tiny(x.shape, kernel.shape):
        y = jnp.zeros((), jnp.promote_types(x.dtype, jnp.float32))
        for i, j, rows, columns in _contacts(x.shape[1:3], sizes, kernel.shape, strides, pads):
            part = _dot(x[:, rows.inputs, columns.inputs], kernel[i, j], precision).astype(y.dtype)
            y = y + _place(part, (rows.outputs, columns.outputs), sizes)
        return y.astype(x.dtype)
    return _plain_conv(x, kernel, strides, pads, precision)


def cpu_gradients(x: Maps, kernel: Kernel, dy: OutMaps, strides: Pair, pads: Pads, precision) -> tuple[Maps, Kernel]:
    if suits_winograd(x, kernel.shape, strides, pads, precision):
        return winograd.gradients(x, kernel, dy, pads)
    args = {"strides": strides, "pads": pads, "precision": precision}
    return _cpu_input_gradient(kernel, dy, x.shape, **args), _cpu_kernel_gradient(x, dy, kernel.shape, **args)


def _cpu_input_gradient(kernel: Kernel, dy: OutMaps, x_shape, strides: Pair, pads: Pads, precision) -> Maps:
    if _suits_onednn(dy.dtype):
        return _flipped_conv(kernel, dy, x_shape, strides, pads, precision)
    if _is_pointwise(kernel.shape, pads) or _is_tiny(x_shape, kernel.shape):
        dx = jnp.zeros((), jnp.promote_types(dy.dtype, jnp.float32))
        for i, j, rows, columns in _contacts(x_shape[1:3], dy.shape[1:3], kernel.shape, strides, pads):
            part = _dot(dy[:, rows.outputs, columns.outputs], kernel[i, j].T, precision).astype(dx.dtype)
            dx = dx + _place(part, (rows.inputs, columns.inputs), x_shape[1:3])
        return dx.astype(dy.dtype)
    if strides == (1, 1) and (_is_small(kernel.shape) or _over_the_cliff(dy.shape, kernel.shape)):
        return _flipped_conv(kernel, dy, x_shape, strides, pads, precision)
    return _lax_input_gradient(kernel, dy, x_shape, strides=strides, pads=pads, precision=precision)


def _flipped_conv(kernel: Kernel, dy: OutMaps, x_shape, strides: Pair, pads: Pads, precision) -> Maps:
    """The gradient with respect to the input as a plain convolution.

    oneDNN does not support transposed ones, and XLA's of kernels of 2 pixels take several times as long.
    """
    if strides != (1, 1):
        config = ((0, 0, 0), *((0, 0, stride - 1) for stride in strides), (0, 0, 0))
        dy = lax.optimization_barrier(lax.pad(dy, jnp.zeros((), dy.dtype), config))
    back = [
        (k - 1 - low, size - got + low)
        for k, (low, _), size, got in zip(kernel.shape, pads, x_shape[1:3], dy.shape[1:3], strict=False)
    ]
    return _plain_conv(dy, kernel[::-1, ::-1].swapaxes(2, 3), (1, 1), (back[0], back[1]), precision)


def _plain_conv(x: Maps, kernel: Kernel, strides: Pair, pads: Pads, precision) -> OutMaps:
    """`lax`'s, set up so that XLA does not swap the operands if the kernel is larger than the map."""
    if _over_the_cliff(x.shape, kernel.shape):
        x, pads = _pad(x, pads), ((0, 0), (0, 0))
    if _suits_onednn(x.dtype) and onednn.is_wrong(kernel.shape[2], kernel.shape[1]):
        x, kernel = _fill(x, onednn.TILE, axis=3), _fill(kernel, onednn.TILE, axis=2)
    return lax_conv(x, kernel, strides, pads, precision)


def _cpu_kernel_gradient(x: Maps, dy: OutMaps, kernel_shape, strides: Pair, pads: Pads, precision) -> Kernel:
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
    # Matrix products with fewer channels are too thin for one per offset, unless the kernel or the map is tiny.
    if largest > 2 and min(kernel_shape[2:]) < 64 and not (_is_small(kernel_shape) and strides == (1, 1)):
        return _lax_kernel_gradient(x, dy, kernel_shape, strides=strides, pads=pads, precision=precision)
    if largest <= 4:
        contacts = _contacts(x.shape[1:3], dy.shape[1:3], kernel_shape, strides, pads)
        products = {
            (i, j): _outer(x[:, rows.inputs, columns.inputs], dy[:, rows.outputs, columns.outputs], precision)
            for i, j, rows, columns in contacts
        }
    elif strides == (1, 1):
        products = {
            offset: _outer(_shifted(x, offset, pads, dy.shape[1:3]), dy, precision)
            for offset in np.ndindex(*kernel_shape[:2])
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


def _onednn_kernel_gradient(x: Maps, dy: OutMaps, kernel_shape, **args) -> Kernel:
    """`lax`'s, a convolution with dy as its kernel and the examples as its channels."""
    if onednn.is_wrong(len(x), dy.shape[2]):
        x, dy = (_fill(each, onednn.TILE, axis=0) for each in (x, dy))
    return _lax_kernel_gradient(x, dy, kernel_shape, **args)


def _kernel_gradient_by_rows(x: Maps, dy: OutMaps, kernel_shape, strides: Pair, pads: Pads) -> Kernel:
    """One matrix product per kernel row: dy, and the map shifted to each of the row's columns.

    For AMX, whose tiles a convolution with a kernel-sized output leaves mostly empty: 512 maps of 15x15, 64 to 256
    channels, take 344 ms as a convolution and 155 as products. With fewer channels the copies cost what is saved.
    """
    height, width = ((n - 1) * stride + 1 for n, stride in zip(dy.shape[1:3], strides, strict=True))
    padded = _pad(x, pads)
    columns = [padded[:, :, j : j + width : strides[1]] for j in range(kernel_shape[1])]
    columns = lax.optimization_barrier(jnp.concatenate(columns, -1))
    rows = [lax.optimization_barrier(columns[:, i : i + height : strides[0]]) for i in range(kernel_shape[0])]
    return jnp.stack([_outer(row, dy, None) for row in rows]).reshape(kernel_shape)


def _in_parts(gradient: Callable[[Maps, OutMaps], Kernel], x: Maps, dy: OutMaps, size: int) -> Kernel:
    """The sum, in float32, of the kernel's `gradient(x, dy)` over parts of `size` examples.

    For oneDNN the examples are the channels of one convolution, which is up to 3.5 times slower with hundreds of them:
    512 maps of 15x15 pixels, 64 to 256 channels, 408 ms at once and 116 in parts.
    """
    if len(x) <= size:
        return gradient(x, dy)
    total = jnp.zeros((), jnp.float32)
    for start in range(0, len(x), size):  # inside an XLA loop, convolutions do not use oneDNN
        part = gradient(*lax.optimization_barrier((x[start : start + size], dy[start : start + size])))
        total = total + lax.optimization_barrier(part).astype(total.dtype)
    return total.astype(x.dtype)


def _examples_at_once(pixels: int) -> int:
    """A power of two from 16 to 128; in between, the largest for which that many maps have at most 16,000 pixels."""
    return 1 << min(max((16_000 // pixels).bit_length() - 1, 4), 7)


def _is_pointwise(kernel_shape, pads: Pads) -> bool:
    return kernel_shape[0] == kernel_shape[1] == 1 and pads == ((0, 0), (0, 0))


def suits_winograd(x: Maps, kernel_shape, strides: Pair, pads: Pads, precision) -> bool:
    # On 2x2 maps a 4x4 tile would be mostly padding, and an explicit precision asks for all digits.
    plain = strides == (1, 1) and min(map(min, pads)) >= 0 and precision is None
    return plain and has_winograd(kernel_shape, x.dtype) and max(x.shape[1:3]) > 2


def has_winograd(kernel_shape, dtype) -> bool:
    # With fewer channels the transforms cost more than they save. The rounding error is acceptable for float32 only:
    # bfloat16 has too few digits, and float64 is used when all digits matter.
    return tuple(kernel_shape[:2]) in _FILTERED and min(kernel_shape[2:]) >= 32 and dtype == jnp.float32


def _is_tiny(map_shape, kernel_shape) -> bool:
    return max(map_shape[1:3]) <= (4 if max(kernel_shape[:2]) <= 3 else 2)


def _is_small(kernel_shape) -> bool:
    """Whether the gradients are faster as a flipped convolution and as one matrix product per offset.

    For kernels with too few channels for minimal filtering, such as the first of a network: a training step of a small
    VGG takes a tenth less than with XLA's gradients.
    """
    return max(kernel_shape[:2]) <= 2


def _over_the_cliff(map_shape, kernel_shape) -> bool:
    return kernel_shape[0] > map_shape[1] or kernel_shape[1] > map_shape[2]


class _Contact(NamedTuple):
    """Along one axis, the outputs that one kernel offset connects with inputs, and those inputs."""

    outputs: slice
    inputs: slice


def _contacts(
    in_sizes, out_sizes, kernel_shape, strides: Pair, pads: Pads
) -> Iterator[tuple[int, int, _Contact, _Contact]]:
    """The kernel offsets (i, j) that touch the map, with the rows and columns that they connect."""
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


def _shifted(
    x: Maps, offset: Pair, pads: Pads, sizes: Sequence[int]
) -> Float[Array, "batch out_height out_width in_channels"]:
    """The inputs, zero outside the map, that the outputs of a convolution with stride 1 see at a kernel offset."""
    config = [
        (low - by, size + by - low - old, 0)
        for by, (low, _), size, old in zip(offset, pads, sizes, x.shape[1:3], strict=True)
    ]
    return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *config, (0, 0, 0)))


def _place(
    part: Float[Array, "batch rows columns channels"], slices: tuple[slice, slice], sizes: Sequence[int]
) -> Float[Array, "batch height width channels"]:
    """Zeros of the given height and width with `part` at `slices`: the transpose of slicing."""
    config = [(s.start, size - s.stop, (s.step or 1) - 1) for s, size in zip(slices, sizes, strict=True)]
    return lax.pad(part, jnp.zeros((), part.dtype), ((0, 0, 0), *config, (0, 0, 0)))


def _dot(
    x: Maps, kernel: Float[Array, "in_channels out_channels"], precision
) -> Float[Array, "batch height width out_channels"]:
    return lax.dot_general(x, kernel, (((3,), (0,)), ((), ())), precision=precision)


def _outer(
    x: Maps, dy: Float[Array, "batch height width out_channels"], precision
) -> Float[Array, "in_channels out_channels"]:
    """Sum over examples and pixels of the products of channels.

    In two dimensions: with more, XLA transposes x first, and the product takes up to twice as long (JAX 0.10: 16 maps
    of 28x28 pixels, 192 to 96 channels, 22 ms instead of 11). oneDNN supports no others.
    """
    if not _suits_onednn(x.dtype):
        x = lax.optimization_barrier(x)  # keeps the computation of x out of the product's loops
    rows, columns = (each.reshape(-1, each.shape[-1]) for each in (x, dy))
    return lax.dot_general(rows, columns, (((0,), (0,)), ((), ())), precision=precision)


def _fill(x: Float[Array, "..."], size: int, axis: int) -> Float[Array, "..."]:
    """x zero-padded at the end of an axis, up to a size."""
    config = [(0, size - x.shape[axis] if each == axis else 0, 0) for each in range(x.ndim)]
    return lax.pad(x, jnp.zeros((), x.dtype), config)


def _pad(x: Maps, pads: Pads) -> Float[Array, "batch padded_height padded_width in_channels"]:
    # Without the barrier XLA would fold the padding back into the convolution.
    config = ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0))
    return lax.optimization_barrier(lax.pad(x, jnp.zeros((), x.dtype), config))
