"""Pooling of NHWC maps that is also fast on CPUs, and equal to `lax` and PyTorch in value and gradient.

XLA's CPU backend scatters the gradient of max pooling element by element. Here a pool is the maximum of shifted slices
of the padded maps; if a gradient is needed, the forward pass stores the winner's position in its window, and the
gradient sums shifted, masked copies. Floats are compared as integers of the same width and order: a float maximum also
checks for NaN, and in bfloat16 it is computed in float32. 3x3 windows over 16 x 28 x 28 x 256 in bfloat16 take 0.6 ms
instead of 6.6 (two cores). Other platforms use `lax.reduce_window`; the choice is made at lowering time, so that one
exported program works on all of them.
"""

import contextlib
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Int8, Num

from inception_jax.errors import UserError, check_choice

Pair = tuple[int, int]
Maps = Float[Array, "batch height width channels"]
OutMaps = Float[Array, "batch out_height out_width channels"]
Padding = str | Sequence[tuple[int, int]]

# A window is unrolled into one slice per pixel; the networks use windows of at most 3x3.
_WIDEST_SLICED_WINDOW = 5


def max_pool(
    x: Float[Array, "batch height width channels"],
    window: Pair = (3, 3),
    strides: Pair = (1, 1),
    padding: Padding = "SAME",
    *,
    ceil_mode: bool = False,
    implementation: str = "auto",
) -> Float[Array, "batch out_height out_width channels"]:
    """The maximum of each window; padding never wins.

    The gradient goes to the first maximum in the window in row-major order, as in `lax.reduce_window`.

    Args:
      x: maps, in any float type.
      window: (height, width) of the window, pixels.
      strides: (vertical, horizontal) distance between windows, pixels.
      padding: "SAME", "VALID" or ((top, bottom), (left, right)) in pixels.
      ceil_mode: allow the last window to extend past the end, as in `torch.nn.MaxPool2d(ceil_mode=True)`: it must
        start inside the input or the leading padding.
      implementation: "auto" picks by platform; "lax" always uses `lax.reduce_window`, which also supports
        forward-mode differentiation (`jax.jvp`).

    Raises:
      UserError: an unknown implementation, or a padding that fits no window.
    """
    check_choice("implementation", implementation, ("auto", "lax"))
    window, strides = _pair(window), _pair(strides)
    pads = _resolve_padding(x.shape[1:3], window, strides, padding, ceil_mode)
    with _scope("max_pool", window, strides):
        if implementation == "lax" or max(window) > _WIDEST_SLICED_WINDOW:
            return _reduce_window_max(x, window, strides, pads)
        return _max_pool(x, window, strides, pads)


def avg_pool(
    x: Float[Array, "batch height width channels"],
    window: Pair = (3, 3),
    strides: Pair = (1, 1),
    padding: Padding = "VALID",
    *,
    count_include_pad: bool = True,
) -> Float[Array, "batch out_height out_width channels"]:
    """The mean of each window, summed in at least float32.

    Args:
      x: maps, in any float type.
      window: (height, width) of the window, pixels.
      strides: (vertical, horizontal) distance between windows, pixels.
      padding: "SAME", "VALID" or ((top, bottom), (left, right)) in pixels.
      count_include_pad: divide by the window's full size; otherwise by its number of pixels inside the input.
        Both as in `torch.nn.AvgPool2d`.

    Raises:
      UserError: a padding that fits no window.
    """
    window, strides = _pair(window), _pair(strides)
    pads = _resolve_padding(x.shape[1:3], window, strides, padding, ceil_mode=False)
    with _scope("avg_pool", window, strides):
        sums = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        for axis in (2, 1):
            size, stride, (low, high) = window[axis - 1], strides[axis - 1], pads[axis - 1]
            padded = _pad_axis(sums, axis, low, high, 0.0)
            sums = functools.reduce(jnp.add, _window_slices(padded, axis, size, stride))
            if count_include_pad:
                sums = sums / size
            else:
                ones = jnp.pad(jnp.ones(x.shape[axis], sums.dtype), (low, high))
                counts = functools.reduce(jnp.add, _window_slices(ones, 0, size, stride))
                sums = sums / jnp.expand_dims(counts, [a for a in range(4) if a != axis])
        return sums.astype(x.dtype)


def adaptive_avg_pool(
    x: Float[Array, "batch height width channels"], output_size: int | Pair
) -> Float[Array, "batch out_height out_width channels"]:
    """Averages maps of any size down (or up) to `output_size` (a side, or height and width, in pixels).

    Cell i of n averages the pixels from floor(i size / n) to ceil((i + 1) size / n), as in
    `torch.nn.AdaptiveAvgPool2d`: cells overlap if n does not divide the size.
    """
    output = _pair(output_size)
    with _scope("adaptive_avg_pool", output):
        means = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        for axis, cells in zip((2, 1), reversed(output), strict=True):
            size = x.shape[axis]
            if size % cells == 0:
                shape = (*means.shape[:axis], cells, size // cells, *means.shape[axis + 1 :])
                means = means.reshape(shape).mean(axis + 1)
            else:
                bounds = [(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]
                parts = [lax.slice_in_dim(means, start, stop, axis=axis).mean(axis) for start, stop in bounds]
                means = jnp.stack(parts, axis)
        return means.astype(x.dtype)


def _scope(name: str, *sides: Pair) -> contextlib.AbstractContextManager[Any]:
    """Names the operations in profiles and drawings: max_pool_3x3_1x1 has windows of 3x3 and strides of 1x1."""
    return jax.named_scope("_".join([name, *(f"{height}x{width}" for height, width in sides)]))


def _pair(value: int | Sequence[int]) -> Pair:
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


def _resolve_padding(
    sizes: Sequence[int], window: Pair, strides: Pair, padding: Padding, ceil_mode: bool
) -> tuple[Pair, Pair]:
    """The padding as ((top, bottom), (left, right)), including what `ceil_mode` adds."""
    if isinstance(padding, str):
        check_choice("padding", padding, ("SAME", "VALID"))
        pads = lax.padtype_to_pads(sizes, window, strides, padding)
    else:
        pads = padding
    resolved = []
    for size, k, stride, (low, high) in zip(sizes, window, strides, pads, strict=True):
        if ceil_mode:
            out = -(-(size + low + high - k) // stride) + 1
            if (out - 1) * stride >= size + low:
                out -= 1
            if out > 0:
                high = max(high, (out - 1) * stride + k - size - low)
        if size + low + high < k:
            raise UserError(f"a window of {k} does not fit a map of {size} with padding {(low, high)}: pad more")
        resolved.append((int(low), int(high)))
    return resolved[0], resolved[1]


def _pad_axis(x: Maps, axis: int, low: int, high: int, value: float) -> OutMaps:
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (low, high, 0)
    return lax.pad(x, jnp.asarray(value, x.dtype), config)


def _window_slices(padded: Num[Array, "..."], axis: int, size: int, stride: int) -> list[Num[Array, "..."]]:
    """For each window position along `axis`, the elements at that position of all windows."""
    reach = (padded.shape[axis] - size) // stride * stride + 1
    return [lax.slice_in_dim(padded, i, i + reach, stride, axis) for i in range(size)]


def _reduce_window_max(x: Maps, window: Pair, strides: Pair, pads: tuple[Pair, Pair]) -> OutMaps:
    # The initial value is a NumPy scalar, by which JAX recognizes the maximum, and so its gradient.
    initial = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return lax.reduce_window(x, initial, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: Maps, window: Pair, strides: Pair, pads: tuple[Pair, Pair]) -> OutMaps:
    def sliced(x):
        return _from_ordered(functools.reduce(jnp.maximum, _window_pixels(x, window, strides, pads)), x.dtype)

    default = functools.partial(_reduce_window_max, window=window, strides=strides, pads=pads)
    return lax.platform_dependent(x, cpu=sliced, default=default)


def _max_pool_forward(x, window, strides, pads):
    y: Any = _max_pool(x, window, strides, pads)  # supports higher-order differentiation

    def winners(x):
        best, *others = _window_pixels(x, window, strides, pads)
        winner = jnp.zeros(best.shape, jnp.int8)
        for position, candidate in enumerate(others, start=1):
            winner = jnp.where(candidate > best, jnp.int8(position), winner)
            best = jnp.maximum(best, candidate)
        return winner

    # Only the CPU's gradient uses the winners; every platform must return the same types.
    winner = lax.platform_dependent(x, cpu=winners, default=lambda x: jnp.zeros(y.shape, jnp.int8))
    return y, (x, winner)


def _max_pool_backward(window, strides, pads, residuals, dy):
    def sliced(x, winner, dy):
        return _give_to_winners(dy, winner, x.shape[1:3], window, strides, pads)

    def default(x, winner, dy):
        _, pullback = jax.vjp(lambda x: _reduce_window_max(x, window, strides, pads), x)
        return pullback(dy)[0]

    return (lax.platform_dependent(*residuals, dy, cpu=sliced, default=default),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _to_ordered(x: Float[Array, "*shape"]) -> Int[Array, "*shape"]:
    """Floats as integers of the same width and order; NaN is above all others, and 0 and -0 are equal."""
    kind = np.dtype(f"int{x.dtype.itemsize * 8}").type
    bits = lax.bitcast_convert_type(x, kind)
    sign = bits >> (8 * x.dtype.itemsize - 1)  # 0 or -1
    magnitude = bits & np.iinfo(kind).max
    infinity = np.array(np.inf, x.dtype).view(kind)
    return jnp.where(magnitude > infinity, magnitude, (magnitude ^ sign) - sign)


def _from_ordered(ordered: Int[Array, "*shape"], dtype) -> Float[Array, "*shape"]:
    kind = ordered.dtype.type
    sign = ordered >> (8 * ordered.dtype.itemsize - 1)
    return lax.bitcast_convert_type(((ordered ^ sign) - sign) | (sign & np.iinfo(kind).min), dtype)


def _window_pixels(
    x: Maps, window: Pair, strides: Pair, pads: tuple[Pair, Pair]
) -> list[Int[Array, "batch out_height out_width channels"]]:
    """For each pixel of the window in row-major order, its values in all windows, as ordered integers."""
    padded = _to_ordered(x)
    if pads != ((0, 0), (0, 0)) or any(size > stride for size, stride in zip(window, strides, strict=True)):
        lowest = _to_ordered(jnp.array(-jnp.inf, x.dtype))
        # Without the barrier each slice would repeat the padding, with a bounds check per element, and the conversion.
        padded = lax.optimization_barrier(lax.pad(padded, lowest, _padding_config(pads)))
    rows = _window_slices(padded, 1, window[0], strides[0])
    return [pixel for row in rows for pixel in _window_slices(row, 2, window[1], strides[1])]


def _padding_config(pads: tuple[Pair, Pair]) -> list[tuple[int, int, int]]:
    return [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]


def _give_to_winners(
    dy: OutMaps,
    winner: Int8[Array, "batch out_height out_width channels"],
    sizes: tuple[int, int],
    window: Pair,
    strides: Pair,
    pads: tuple[Pair, Pair],
) -> Maps:
    """The transpose of selecting the winners: each window's `dy` goes to its winner; overlapping windows are summed.

    Along an axis, pixel `stride * q + phase - pad_low` is position `phase + stride * m` of window `q - m`, so a pixel's
    gradient is a sum over m, on both axes, of shifted copies of `dy`, masked by whether the winner has that position.
    """
    lows = [low for low, _ in pads]
    lengths = [-(-(size + low) // stride) for size, low, stride in zip(sizes, lows, strides, strict=True)]
    # The maximum number of windows over a pixel.
    reaches = [-(-size // stride) for size, stride in zip(window, strides, strict=True)]
    around = [
        (reach - 1, max(length - out, 0)) for reach, length, out in zip(reaches, lengths, dy.shape[1:3], strict=True)
    ]
    config = _padding_config((around[0], around[1]))
    dy, winner = lax.optimization_barrier(
        (lax.pad(dy, jnp.zeros((), dy.dtype), config), lax.pad(winner, jnp.int8(-1), config))
    )

    def windows_over(
        x: Num[Array, "batch _ _ channels"], shifts: Pair
    ) -> Num[Array, "batch _ _ channels"]:  # for every pixel, the window `shifts` back
        for axis in (0, 1):
            start, stride = reaches[axis] - 1 - shifts[axis], strides[axis]
            x = lax.slice_in_dim(x, start, start + lengths[axis], axis=axis + 1)
            if stride > 1:
                x = jnp.repeat(x, stride, axis + 1)
            x = lax.slice_in_dim(x, lows[axis], lows[axis] + sizes[axis], axis=axis + 1)
        return x

    total = jnp.zeros((), jnp.promote_types(dy.dtype, jnp.float32))
    for shifts in np.ndindex(*reaches):
        rows, columns = (
            (np.arange(size) + low) % stride + stride * m
            for size, low, stride, m in zip(sizes, lows, strides, shifts, strict=True)
        )
        inside = (rows[:, None] < window[0]) & (columns < window[1])
        positions = np.where(inside, rows[:, None] * window[1] + columns, -2).astype(np.int8)[:, :, None]
        mine = windows_over(winner, shifts) == (positions[0, 0, 0] if strides == (1, 1) else positions)
        total = total + jnp.where(mine, windows_over(dy, shifts), 0).astype(total.dtype)
    return total.astype(dy.dtype)
