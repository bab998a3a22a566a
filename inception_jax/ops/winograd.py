"""3x3 convolutions with stride 1 on CPUs by minimal filtering (Winograd 1980; Lavin & Gray 2016), and their gradients.

F(4x4, 3x3): 6x6 windows of the input, which overlap by 2, and the kernel are evaluated at 6x6 points. There the
convolution is one product per point, 36 for 16 outputs instead of 144, and the 4x4 outputs are interpolated from the
products. All products at one point are one matrix product over the channels. Both gradients are the transposes of these
steps, and share the transform of the incoming gradient.

The points are 0, +-3/4, +-3/2 and infinity. With the usual 0, +-1, +-2 and infinity, rounding errors are three times as
large: 8e-6 against 2e-6 of the largest output in float32 (16 maps of 28x28, 128 to 192 channels).
"""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Real

Pads = tuple[tuple[int, int], tuple[int, int]]

_TILE = 4  # outputs per side
_WINDOW = 6  # inputs per side, and number of points


def _transforms(a: float, b: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Along one axis, for the points 0, +-a, +-b and infinity: inputs (6, 6), kernels (6, 3), outputs (4, 6).

    By Toom and Cook: row p of the first has the coefficients of the polynomial whose roots are all other points, row p
    of the second the powers of p over the product of its distances to the others, column p of the third its powers.
    """
    inputs = [
        [a**2 * b**2, 0, -(a**2 + b**2), 0, 1, 0],
        [0, -a * b**2, -(b**2), a, 1, 0],
        [0, a * b**2, -(b**2), -a, 1, 0],
        [0, -b * a**2, -(a**2), b, 1, 0],
        [0, b * a**2, -(a**2), -b, 1, 0],
        [0, a**2 * b**2, 0, -(a**2 + b**2), 0, 1],
    ]
    points = np.array([0, a, -a, b, -b])
    distances = np.array([a**2 * b**2, *[2 * a**2 * (a**2 - b**2)] * 2, *[2 * b**2 * (b**2 - a**2)] * 2])
    kernels = np.vstack([np.vander(points, 3, increasing=True) / distances[:, None], [0, 0, 1]])
    outputs = np.vstack([np.vander(points, 4, increasing=True), [0, 0, 0, 1]]).T
    return np.array(inputs), kernels, outputs


_INPUTS, _KERNELS, _OUTPUTS = _transforms(0.75, 1.5)


def conv(
    x: Float[Array, "batch height width in_channels"],
    transformed: Float[Array, "36 in_channels out_channels"],
    pads: Pads,
) -> Float[Array, "batch out_height out_width out_channels"]:
    """The convolution with stride 1 of maps padded by `pads`, ((top, bottom), (left, right)) pixels.

    `transformed` is the kernel at the points, from `transform_kernel`.
    """
    products = _dot(_transform_inputs(x, pads), transformed, 2, 1)
    return _transform_products(products, x.shape[0], _out_sizes(x.shape, pads))


def gradients(
    x: Float[Array, "batch height width in_channels"],
    kernel: Float[Array, "3 3 in_channels out_channels"],
    dy: Float[Array, "batch out_height out_width out_channels"],
    pads: Pads,
) -> tuple[Float[Array, "batch height width in_channels"], Float[Array, "3 3 in_channels out_channels"]]:
    """The gradients of `conv` with respect to x and the kernel, for the gradient `dy` of its result."""
    d_products = _transpose_products(dy)
    dx = _transpose_inputs(_dot(d_products, transform_kernel(kernel), 2, 2), x.shape, pads, dy.shape[1:3])
    return dx, _transpose_kernel(_dot(_transform_inputs(x, pads), d_products, 1, 1))


def _out_sizes(x_shape, pads: Pads) -> tuple[int, int]:
    (top, bottom), (left, right) = pads
    return x_shape[1] + top + bottom - 2, x_shape[2] + left + right - 2


def _tiles(sizes) -> list[int]:
    return [-(-size // _TILE) for size in sizes]


def _dot(
    lhs: Float[Array, "36 _ _"], rhs: Float[Array, "36 _ _"], lhs_axis: int, rhs_axis: int
) -> Float[Array, "36 _ _"]:
    """Products summed over one axis of each, for every point."""
    return lax.dot_general(lhs, rhs, (((lhs_axis,), (rhs_axis,)), ((0,), (0,))))


def _combine(weights: Real[np.ndarray, " parts"], parts: list[Float[Array, "*shape"]]) -> Float[Array, "*shape"]:
    """The weighted sum of the parts; weights of zero and one cost nothing."""
    terms = [part if w == 1 else float(w) * part for w, part in zip(weights, parts, strict=True) if w]
    return functools.reduce(jnp.add, terms)


def _mix(matrix: Real[np.ndarray, "rows parts"], parts: list[Float[Array, "*shape"]], axis: int) -> Float[Array, "..."]:
    """Combines the parts by each row of the matrix, and stacks the results along `axis`."""
    return jnp.stack([_combine(row, parts) for row in matrix], axis)


def _every_fourth(x: Float[Array, "*shape"], count: int, length: int) -> list[Float[Array, "..."]]:
    """For each of the first `count` positions on axis 2: `length` elements at a stride of 4 from there."""
    return [lax.slice_in_dim(x, k, k + (length - 1) * _TILE + 1, _TILE, axis=2) for k in range(count)]


def _pad(
    x: Float[Array, "batch height width channels"], lows: tuple[int, int], sizes: list[int]
) -> Float[Array, "batch padded_height padded_width channels"]:
    """Zero-pads maps, with `lows` before them, to `sizes`."""
    config = [(low, size - low - old, 0) for low, size, old in zip(lows, sizes, x.shape[1:3], strict=True)]
    # Without the barrier every reader of the maps would repeat the padding, with a bounds check per element.
    return lax.optimization_barrier(lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *config, (0, 0, 0))))


def transform_kernel(
    kernel: Float[Array, "3 3 in_channels out_channels"],
) -> Float[Array, "36 in_channels out_channels"]:
    """The kernel at the 36 points."""
    by_row = _mix(_KERNELS, list(kernel), 0)
    return _mix(_KERNELS, list(by_row.swapaxes(0, 1)), 1).reshape(_WINDOW**2, *kernel.shape[2:])


def _transpose_kernel(values: Float[Array, "36 *channels"]) -> Float[Array, "3 3 *channels"]:
    by_row = _mix(_KERNELS.T, list(values.reshape(_WINDOW, _WINDOW, *values.shape[1:])), 0)
    return _mix(_KERNELS.T, list(by_row.swapaxes(0, 1)), 1)


def _transform_inputs(x: Float[Array, "batch height width channels"], pads: Pads) -> Float[Array, "36 tiles channels"]:
    """Maps to the values of their windows at the points."""
    rows, columns = _tiles(_out_sizes(x.shape, pads))
    x = _pad(x, (pads[0][0], pads[1][0]), [rows * _TILE + 2, columns * _TILE + 2])
    by_column = _mix(_INPUTS, _every_fourth(x, _WINDOW, columns), 0)  # (6, batch, height, columns, channels)
    values = _mix(_INPUTS, _every_fourth(by_column, _WINDOW, rows), 0)  # (6, 6, batch, rows, columns, channels)
    return values.reshape(_WINDOW**2, -1, x.shape[-1])


def _transpose_inputs(
    values: Float[Array, "36 tiles channels"], x_shape, pads: Pads, out_sizes
) -> Float[Array, "batch height width channels"]:
    batch, height, width, channels = x_shape
    (top, _), (left, _) = pads
    y = values.reshape(_WINDOW, _WINDOW, batch, *_tiles(out_sizes), channels)
    y = lax.slice_in_dim(_overlap(list(y)), top, top + height, axis=2)  # (6, batch, height, columns, channels)
    return lax.slice_in_dim(_overlap(list(y)), left, left + width, axis=2)


def _overlap(values: list[Float[Array, "*shape"]]) -> Float[Array, "..."]:
    """Sums windows, given by their values along one axis, at a stride of 4 on axis 2."""
    pixels = [_combine(row, values) for row in _INPUTS.T]

    def shifted(
        pixel: Float[Array, "..."], by: int
    ) -> Float[Array, "..."]:  # by so many tiles, on an axis with room for one more
        config = [(0, 0, 0)] * pixel.ndim
        config[2] = (by, 1 - by, 0)
        return lax.pad(pixel, jnp.zeros((), pixel.dtype), config)

    own, next_tile = [shifted(pixel, 0) for pixel in pixels[:_TILE]], [shifted(pixel, 1) for pixel in pixels[_TILE:]]
    y = jnp.stack([own[0] + next_tile[0], own[1] + next_tile[1], *own[2:]], 3)
    return y.reshape(*y.shape[:2], -1, *y.shape[4:])


def _transform_products(
    products: Float[Array, "36 tiles channels"], batch: Any, out_sizes: tuple[int, int]
) -> Float[Array, "batch out_height out_width channels"]:
    """Values at the points to maps."""
    (height, width), (rows, columns) = out_sizes, _tiles(out_sizes)
    y = products.reshape(_WINDOW, _WINDOW, batch, rows, columns, -1)
    y = _mix(_OUTPUTS, list(y), 3)  # (6, batch, rows, 4, columns, channels)
    y = _mix(_OUTPUTS, list(y), 4)  # (batch, rows, 4, columns, 4, channels)
    return y.reshape(batch, rows * _TILE, columns * _TILE, -1)[:, :height, :width]


def _transpose_products(dy: Float[Array, "batch out_height out_width channels"]) -> Float[Array, "36 tiles channels"]:
    rows, columns = _tiles(dy.shape[1:3])
    dy = _pad(dy, (0, 0), [rows * _TILE, columns * _TILE])
    by_column = _mix(_OUTPUTS.T, _every_fourth(dy, _TILE, columns), 0)
    values = _mix(_OUTPUTS.T, _every_fourth(by_column, _TILE, rows), 0)
    return values.reshape(_WINDOW**2, -1, dy.shape[-1])
