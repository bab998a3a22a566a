"""Pooling of NHWC maps that is fast on CPUs too, and equal to `lax` and PyTorch in value and gradient.

XLA's CPU back end scatters the gradient of max pooling element by element. Here a pool is a maximum along the width and
then one along the height, each over shifted slices; each remembers where in its window the winner stood, and
the gradient sums shifted, masked copies. On other platforms `lax.reduce_window` stays in charge; the choice is made
when the program is lowered, so that one exported program serves them all.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from inception_jax.errors import UserError, unknown_name

Pair = tuple[int, int]
Padding = str | Sequence[tuple[int, int]]

# Wider windows would unroll into that many slices; none of the networks has any.
_WIDEST_SLICED_WINDOW = 8


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

    Args:
        x: maps, in any float type.
        window: (height, width) of the window, pixels.
        strides: (vertical, horizontal) distance between windows, pixels.
        padding: "SAME", "VALID" or ((top, bottom), (left, right)) in pixels.
        ceil_mode: let the last window reach past the end, as `torch.nn.MaxPool2d(ceil_mode=True)` does: it must start
            inside the input or the leading padding.
        implementation: "auto" picks by platform; "lax" is `lax.reduce_window` everywhere, which can also be
            differentiated forwards (`jax.jvp`).

    The gradient goes to the first maximum in the window, row by row, as that of `lax.reduce_window` does.
    Raises UserError for an unknown implementation or a padding that fits no window.
    """
    if implementation not in ("auto", "lax"):
        raise unknown_name("implementation", implementation, ("auto", "lax"))
    window, strides = _pair(window), _pair(strides)
    pads = _resolve_padding(x.shape[1:3], window, strides, padding, ceil_mode)
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
            Both as `torch.nn.AvgPool2d` has it.

    Raises UserError for a padding that fits no window.
    """
    window, strides = _pair(window), _pair(strides)
    pads = _resolve_padding(x.shape[1:3], window, strides, padding, ceil_mode=False)
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

    Cell i of n averages the pixels from floor(i size / n) to ceil((i + 1) size / n), as
    `torch.nn.AdaptiveAvgPool2d` has it: cells overlap where n does not divide the size.
    """
    means = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    for axis, cells in zip((2, 1), reversed(_pair(output_size)), strict=True):
        size = x.shape[axis]
        if size % cells == 0:
            shape = (*means.shape[:axis], cells, size // cells, *means.shape[axis + 1 :])
            means = means.reshape(shape).mean(axis + 1)
        else:
            bounds = [(i * size // cells, -(-(i + 1) * size // cells)) for i in range(cells)]
            parts = [lax.slice_in_dim(means, start, stop, axis=axis).mean(axis) for start, stop in bounds]
            means = jnp.stack(parts, axis)
    return means.astype(x.dtype)


def _pair(value: int | Sequence[int]) -> Pair:
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


def _resolve_padding(
    sizes: Sequence[int], window: Pair, strides: Pair, padding: Padding, ceil_mode: bool
) -> tuple[Pair, Pair]:
    """The padding as ((top, bottom), (left, right)), what `ceil_mode` adds included."""
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise unknown_name("padding", padding, ("SAME", "VALID"))
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


def _pad_axis(x: Array, axis: int, low: int, high: int, value: float) -> Array:
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (low, high, 0)
    return lax.pad(x, jnp.asarray(value, x.dtype), config)


def _window_slices(padded: Array, axis: int, size: int, stride: int) -> list[Array]:
    """For each position of the window along `axis`, the elements that the windows have there."""
    reach = (padded.shape[axis] - size) // stride * stride + 1
    return [lax.slice_in_dim(padded, i, i + reach, stride, axis) for i in range(size)]


def _reduce_window_max(x: Array, window: Pair, strides: Pair, pads: tuple[Pair, Pair]) -> Array:
    # A NumPy scalar as the initial value: JAX recognises the maximum, and so its gradient, by it.
    initial = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return lax.reduce_window(x, initial, lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x: Array, window: Pair, strides: Pair, pads: tuple[Pair, Pair]) -> Array:
    def sliced(x):
        for axis in (2, 1):
            # Without the barrier each slice would repeat the padding, one test of bounds per element.
            padded = lax.optimization_barrier(_pad_axis(x, axis, *pads[axis - 1], -math.inf))
            x = functools.reduce(jnp.maximum, _window_slices(padded, axis, window[axis - 1], strides[axis - 1]))
        return x

    default = functools.partial(_reduce_window_max, window=window, strides=strides, pads=pads)
    return lax.platform_dependent(x, cpu=sliced, default=default)


def _max_pool_forward(x, window, strides, pads):
    def sliced(x):
        rows, columns = _max_and_winner(x, 2, window[1], strides[1], pads[1])
        y, winning_rows = _max_and_winner(rows, 1, window[0], strides[0], pads[0])
        return y, winning_rows, columns

    def default(x):
        # Only the CPU's gradient reads the winners; every platform must return the same types.
        _, *winners = jax.eval_shape(sliced, x)
        return _reduce_window_max(x, window, strides, pads), *(jnp.zeros(w.shape, w.dtype) for w in winners)

    y, *winners = lax.platform_dependent(x, cpu=sliced, default=default)
    return y, (x, *winners)


def _max_pool_backward(window, strides, pads, residuals, dy):
    def sliced(x, winning_rows, columns, dy):
        d_rows = _scatter_to_winners(dy, winning_rows, 1, x.shape[1], window[0], strides[0], pads[0][0])
        return _scatter_to_winners(d_rows, columns, 2, x.shape[2], window[1], strides[1], pads[1][0])

    def default(x, winning_rows, columns, dy):
        _, pullback = jax.vjp(lambda x: _reduce_window_max(x, window, strides, pads), x)
        return pullback(dy)[0]

    return (lax.platform_dependent(*residuals, dy, cpu=sliced, default=default),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


def _max_and_winner(x: Array, axis: int, size: int, stride: int, pads: Pair) -> tuple[Array, Array]:
    """Windows' maxima along `axis`, and the position in the window of the first of them."""
    padded = lax.optimization_barrier(_pad_axis(x, axis, *pads, -math.inf))
    best, *candidates = _window_slices(padded, axis, size, stride)
    winner = jnp.zeros(best.shape, jnp.int8)
    for position, candidate in enumerate(candidates, start=1):
        winner = jnp.where(candidate > best, jnp.int8(position), winner)
        best = jnp.maximum(best, candidate)
    return best, winner


def _scatter_to_winners(
    dy: Array, winner: Array, axis: int, in_size: int, size: int, stride: int, pad_low: int
) -> Array:
    """The transpose of picking the winners: each window's `dy` goes to its winner, overlapping windows add up.

    Input pixel `stride * q + phase - pad_low` is position `phase + stride * m` of window `q - m`, so each phase is a
    sum over m of shifted, masked copies; the phases are interleaved at the end.
    """
    out_size = dy.shape[axis]
    reach = -(-size // stride)  # windows that overlap a pixel, at most
    length = max(-(-(in_size + pad_low) // stride), out_size)
    front, back = reach - 1, length - out_size
    dy = _pad_axis(dy, axis, front, back, 0)
    winner = _pad_axis(winner, axis, front, back, -1)
    phases = []
    for phase in range(stride):
        total = jnp.zeros((), dy.dtype)
        for m, position in enumerate(range(phase, size, stride)):
            start = front - m
            here = lax.slice_in_dim(winner, start, start + length, axis=axis) == position
            total = total + jnp.where(here, lax.slice_in_dim(dy, start, start + length, axis=axis), 0)
        phases.append(jnp.broadcast_to(total, (*dy.shape[:axis], length, *dy.shape[axis + 1 :])))
    interleaved = jnp.stack(phases, axis + 1).reshape(*dy.shape[:axis], length * stride, *dy.shape[axis + 1 :])
    return lax.slice_in_dim(interleaved, pad_low, pad_low + in_size, axis=axis)
