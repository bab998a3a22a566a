"""Convolutions of 2 and 3 pixels with stride 1 on CPUs by minimal filtering (Winograd 1980; Lavin & Gray 2016).

F(4x4, 3x3): 6x6 windows of the input, which overlap by 2, and the kernel are evaluated at 6x6 points. There the
convolution is one product per point, 36 for 16 outputs instead of 144, and the 4x4 outputs are interpolated from the
products. All products at one point are one matrix product over the channels. Both gradients are the transposes of these
steps, and share the transform of the incoming gradient. Along an axis on which the kernel has 2 pixels, 5 points do
(2x2: 25 products instead of 64, 2x1: 20 instead of 32); along one on which it has 1 pixel, nothing is to be done.

For 3 pixels the points are 0, +-3/4, +-3/2 and infinity. With the usual 0, +-1, +-2 and infinity, rounding errors are
three times as large: 8e-6 against 2e-6 of the largest output in float32 (16 maps of 28x28, 128 to 192 channels). For 2
pixels they are +-1/2, +-5/4 and infinity, with a third of the error of 0, +-1, 2 and infinity.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Real

Pair = tuple[int, int]
Pads = tuple[Pair, Pair]


class _Filter(NamedTuple):
    """Along one axis, `tile` outputs from `window` inputs: the matrices of the three transforms.

    Attributes:
      inputs: (window, window).
      kernels: (window, kernel_size).
      outputs: (tile, window).
    """

    inputs: np.ndarray
    kernels: np.ndarray
    outputs: np.ndarray

    @property
    def tile(self) -> int:
        return len(self.outputs)

    @property
    def window(self) -> int:
        return len(self.inputs)


def _make_filter(points: Sequence[float], kernel_size: int) -> _Filter:
    """By Toom and Cook, for some points and infinity.

    Row p of the inputs' matrix has the coefficients of the polynomial whose roots are all other points, row p of the
    kernels' the powers of p over the product of its distances to the others, column p of the outputs' its powers.
    """
    count, tile = len(points), len(points) + 2 - kernel_size
    others = [[q for q in points if q != p] for p in points]
    inputs = np.zeros((count + 1, count + 1))
    for row, roots in enumerate([*others, points]):
        inputs[row, : len(roots) + 1] = np.poly(roots)[::-1]
    distances = np.array([np.prod([p - q for q in rest]) for p, rest in zip(points, others, strict=True)])
    kernels = np.vander(points, kernel_size, increasing=True) / distances[:, None]
    outputs = np.vander(points, tile, increasing=True)
    infinity = np.eye(kernel_size)[-1:], np.eye(tile)[-1:]
    return _Filter(inputs, np.vstack([kernels, infinity[0]]), np.vstack([outputs, infinity[1]]).T)


_FILTERS = {
    1: _Filter(*np.ones((3, 1, 1))),
    2: _make_filter((0.5, -0.5, 1.25, -1.25), 2),
    3: _make_filter((0, 0.75, -0.75, 1.5, -1.5), 3),
}
SIZES = tuple(_FILTERS)  # of kernels, along each axis


def conv(
    x: Float[Array, "batch height width in_channels"],
    transformed: Float[Array, "points in_channels out_channels"],
    pads: Pads,
    kernel_shape: Sequence[int],
) -> Float[Array, "batch out_height out_width out_channels"]:
    """The convolution with stride 1 of maps padded by `pads`, ((top, bottom), (left, right)) pixels.

    `transformed` is the kernel at the points, from `transform_kernel`.
    """
    products = _dot(_transform_inputs(x, pads, kernel_shape), transformed, 2, 1)
    return _transform_products(products, x.shape[0], _out_sizes(x.shape, pads, kernel_shape), kernel_shape)


def gradients(
    x: Float[Array, "batch height width in_channels"],
    kernel: Float[Array, "kernel_height kernel_width in_channels out_channels"],
    dy: Float[Array, "batch out_height out_width out_channels"],
    pads: Pads,
) -> tuple[
    Float[Array, "batch height width in_channels"],
    Float[Array, "kernel_height kernel_width in_channels out_channels"],
]:
    """The gradients of `conv` with respect to x and the kernel, for the gradient `dy` of its result."""
    d_products = _transpose_products(dy, kernel.shape)
    dx = _transpose_inputs(_dot(d_products, transform_kernel(kernel), 2, 2), x.shape, pads, kernel.shape)
    return dx, _transpose_kernel(_dot(_transform_inputs(x, pads, kernel.shape), d_products, 1, 1), kernel.shape)


def _filters(kernel_shape: Sequence[int]) -> tuple[_Filter, _Filter]:
    """Of the rows and of the columns."""
    return _FILTERS[kernel_shape[0]], _FILTERS[kernel_shape[1]]


def _out_sizes(x_shape, pads: Pads, kernel_shape: Sequence[int]) -> Pair:
    height, width = (x_shape[1 + axis] + sum(pads[axis]) - kernel_shape[axis] + 1 for axis in range(2))
    return height, width


def _tiles(sizes: Pair, kernel_shape: Sequence[int]) -> Pair:
    rows, columns = (-(-size // each.tile) for size, each in zip(sizes, _filters(kernel_shape), strict=True))
    return rows, columns


def _dot(
    lhs: Float[Array, "points _ _"], rhs: Float[Array, "points _ _"], lhs_axis: int, rhs_axis: int
) -> Float[Array, "points _ _"]:
    """Products summed over one axis of each, for every point."""
    return lax.dot_general(lhs, rhs, (((lhs_axis,), (rhs_axis,)), ((0,), (0,))))


def _combine(weights: Real[np.ndarray, " parts"], parts: list[Float[Array, "*shape"]]) -> Float[Array, "*shape"]:
    """The weighted sum of the parts; weights of zero and one cost nothing."""
    terms = [part if w == 1 else float(w) * part for w, part in zip(weights, parts, strict=True) if w]
    return functools.reduce(jnp.add, terms)


def _mix(matrix: Real[np.ndarray, "rows parts"], parts: list[Float[Array, "*shape"]], axis: int) -> Float[Array, "..."]:
    """Combines the parts by each row of the matrix, and stacks the results along `axis`."""
    return jnp.stack([_combine(row, parts) for row in matrix], axis)


def _pad(
    x: Float[Array, "batch height width channels"], lows: Pair, sizes: list[int]
) -> Float[Array, "batch padded_height padded_width channels"]:
    """Zero-pads maps, with `lows` before them, to `sizes`."""
    config = [(low, size - low - old, 0) for low, size, old in zip(lows, sizes, x.shape[1:3], strict=True)]
    # Without the barrier every reader of the maps would repeat the padding, with a bounds check per element.
    return lax.optimization_barrier(lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *config, (0, 0, 0))))


def _pads_first(kernel_shape: Sequence[int]) -> bool:
    """Whether the maps are padded before windows are taken from them; if not, the windows that reach past their ends.

    Not to pad the maps saves a copy of them: a training step of a small VGG takes 5 % less. With kernels of 3 pixels,
    for which two positions in a window reach past the ends instead of one, a convolution and its gradients take 2 to
    6 % more.
    """
    return max(kernel_shape[:2]) > 2


def _windows(x: Float[Array, "*shape"], low: int, along: _Filter, size: int, count: int) -> list[Float[Array, "..."]]:
    """For each of the first `size` positions in a window: the elements there of `count` windows along axis 2.

    The windows begin at -low and are a tile apart; x is zero outside.
    """
    windows = []
    for first in range(-low, size - low):
        skipped = min(max(0, -(first // along.tile)), count)  # windows in which this position is before x
        start = min(first + skipped * along.tile, x.shape[2])
        taken = min(count - skipped, -(-(x.shape[2] - start) // along.tile))
        part = lax.slice_in_dim(x, start, start + max((taken - 1) * along.tile + 1, 0), along.tile, axis=2)
        config = [(0, 0, 0)] * x.ndim
        config[2] = (skipped, count - skipped - taken, 0)
        windows.append(part if taken == count else lax.pad(part, jnp.zeros((), x.dtype), config))
    return windows


def transform_kernel(
    kernel: Float[Array, "kernel_height kernel_width in_channels out_channels"],
) -> Float[Array, "points in_channels out_channels"]:
    """The kernel at the points, 36 of a 3x3 one."""
    rows, columns = _filters(kernel.shape)
    by_row = _mix(rows.kernels, list(kernel), 0)
    return _mix(columns.kernels, list(by_row.swapaxes(0, 1)), 1).reshape(-1, *kernel.shape[2:])


def _transpose_kernel(
    values: Float[Array, "points *channels"], kernel_shape: Sequence[int]
) -> Float[Array, "kernel_height kernel_width *channels"]:
    rows, columns = _filters(kernel_shape)
    by_row = _mix(rows.kernels.T, list(values.reshape(rows.window, columns.window, *values.shape[1:])), 0)
    return _mix(columns.kernels.T, list(by_row.swapaxes(0, 1)), 1)


def _transform_inputs(
    x: Float[Array, "batch height width channels"], pads: Pads, kernel_shape: Sequence[int]
) -> Float[Array, "points tiles channels"]:
    """Maps to the values of their windows at the points."""
    rows, columns = _filters(kernel_shape)
    height, width = _tiles(_out_sizes(x.shape, pads, kernel_shape), kernel_shape)
    top, left = pads[0][0], pads[1][0]
    if _pads_first(kernel_shape):
        sizes = [(count - 1) * each.tile + each.window for count, each in ((height, rows), (width, columns))]
        x, top, left = _pad(x, (top, left), sizes), 0, 0
    by_column = _mix(columns.inputs, _windows(x, left, columns, columns.window, width), 0)
    # by_column: (points, batch, height, columns, channels); values: (points, points, batch, rows, columns, channels)
    values = _mix(rows.inputs, _windows(by_column, top, rows, rows.window, height), 0)
    return values.reshape(rows.window * columns.window, -1, x.shape[-1])


def _transpose_inputs(
    values: Float[Array, "points tiles channels"], x_shape, pads: Pads, kernel_shape: Sequence[int]
) -> Float[Array, "batch height width channels"]:
    batch, height, width, channels = x_shape
    (top, _), (left, _) = pads
    rows, columns = _filters(kernel_shape)
    counts = _tiles(_out_sizes(x_shape, pads, kernel_shape), kernel_shape)
    y = values.reshape(rows.window, columns.window, batch, *counts, channels)
    y = lax.slice_in_dim(_overlap(list(y), rows), top, top + height, axis=2)  # (points, batch, height, columns, ...)
    return lax.slice_in_dim(_overlap(list(y), columns), left, left + width, axis=2)


def _overlap(values: list[Float[Array, "*shape"]], along: _Filter) -> Float[Array, "..."]:
    """Sums windows, given by their values along one axis, at a stride of a tile on axis 2."""
    pixels = [_combine(row, values) for row in along.inputs.T]
    own, following = pixels[: along.tile], pixels[along.tile :]
    room = min(len(following), 1)  # tiles

    def shifted(
        pixel: Float[Array, "..."], by: int
    ) -> Float[Array, "..."]:  # by so many tiles, on an axis with room for one more
        config = [(0, 0, 0)] * pixel.ndim
        config[2] = (by, room - by, 0)
        return lax.pad(pixel, jnp.zeros((), pixel.dtype), config)

    own, following = [shifted(pixel, 0) for pixel in own], [shifted(pixel, 1) for pixel in following]
    both = [here + before for here, before in zip(own, following, strict=False)]
    y = jnp.stack([*both, *own[len(both) :]], 3)
    return y.reshape(*y.shape[:2], -1, *y.shape[4:])


def _transform_products(
    products: Float[Array, "points tiles channels"], batch: Any, out_sizes: Pair, kernel_shape: Sequence[int]
) -> Float[Array, "batch out_height out_width channels"]:
    """Values at the points to maps."""
    (height, width), counts = out_sizes, _tiles(out_sizes, kernel_shape)
    rows, columns = _filters(kernel_shape)
    y = products.reshape(rows.window, columns.window, batch, *counts, -1)
    y = _mix(rows.outputs, list(y), 3)  # (points, batch, rows, tile, columns, channels)
    y = _mix(columns.outputs, list(y), 4)  # (batch, rows, tile, columns, tile, channels)
    return y.reshape(batch, counts[0] * rows.tile, counts[1] * columns.tile, -1)[:, :height, :width]


def _transpose_products(
    dy: Float[Array, "batch out_height out_width channels"], kernel_shape: Sequence[int]
) -> Float[Array, "points tiles channels"]:
    (rows, columns), (height, width) = _filters(kernel_shape), _tiles((dy.shape[1], dy.shape[2]), kernel_shape)
    if _pads_first(kernel_shape):
        dy = _pad(dy, (0, 0), [height * rows.tile, width * columns.tile])
    by_column = _mix(columns.outputs.T, _windows(dy, 0, columns, columns.tile, width), 0)
    values = _mix(rows.outputs.T, _windows(by_column, 0, rows, rows.tile, height), 0)
    return values.reshape(rows.window * columns.window, -1, dy.shape[-1])
