"""Pooling against `lax` and PyTorch: values, gradients, ties, transformations."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inception_jax import ops
from inception_jax.errors import UserError


def random(shape, dtype=np.float64, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def with_ties(shape, dtype=np.float64):
    return jnp.asarray(np.random.default_rng(0).integers(0, 4, shape), dtype)


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradient(pool, x):
    y, pullback = jax.vjp(pool, x)
    return y, pullback(random(y.shape, y.dtype, seed=1))[0]


@st.composite
def max_pools(draw):
    window = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    sizes = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    pads = []
    for k, size in zip(window, sizes, strict=True):
        low, high = draw(st.integers(0, k - 1)), draw(st.integers(0, k - 1))
        pads.append((low, max(high, k - size - low)))
    return sizes, {
        "window": window,
        "strides": draw(st.tuples(st.integers(1, 4), st.integers(1, 4))),
        "padding": draw(st.sampled_from(["SAME", tuple(pads)])),
        "ceil_mode": draw(st.booleans()),
    }


@settings(max_examples=20, deadline=None, derandomize=True)
@given(max_pools())
def test_max_pool_equals_lax_ties_included(case):
    sizes, options = case
    with jax.enable_x64(True):
        x = with_ties((2, *sizes, 3))
        got, wanted = (
            value_and_gradient(functools.partial(ops.max_pool, implementation=i, **options), x) for i in ("auto", "lax")
        )
        np.testing.assert_array_equal(got[0], wanted[0])
        np.testing.assert_allclose(got[1], wanted[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_max_pool_keeps_the_type(dtype):
    got, wanted = (
        value_and_gradient(
            functools.partial(ops.max_pool, strides=(2, 2), implementation=i), with_ties((2, 7, 7, 3), dtype)
        )
        for i in ("auto", "lax")
    )
    assert got[0].dtype == got[1].dtype == dtype
    np.testing.assert_array_equal(got[0], wanted[0])
    np.testing.assert_allclose(np.float32(got[1]), np.float32(wanted[1]), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    ("window", "stride", "pad"), [(3, 2, 0), (3, 2, 1), (2, 2, 0), (2, 3, 0), (3, 1, 1), (3, 3, 1)]
)
@pytest.mark.parametrize("size", [2, 3, 7, 8, 10])
def test_max_pool_in_ceil_mode_equals_torch(size, window, stride, pad):
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    x = np.array(with_ties((2, size, size + 1, 3), np.float32))
    images = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    wanted = torch.nn.MaxPool2d(window, stride, pad, ceil_mode=True)(images)
    pool = functools.partial(
        ops.max_pool, window=(window,) * 2, strides=(stride,) * 2, padding=((pad, pad),) * 2, ceil_mode=True
    )
    y, gradient = value_and_gradient(pool, jnp.asarray(x))
    wanted.backward(torch.tensor(np.array(random(y.shape, y.dtype, seed=1)).transpose(0, 3, 1, 2)))
    np.testing.assert_array_equal(y, wanted.detach().numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(gradient, images.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_max_pool_passes_on_what_is_not_a_number(dtype, sign):
    """A processor's own NaN, as of 0 / 0, has the sign bit."""
    nan = jnp.asarray(np.copysign(np.nan, sign), dtype)
    x = jnp.ones((1, 4, 4, 1), dtype).at[0, 1, 1, 0].set(nan)
    assert np.isnan(np.asarray(ops.max_pool(x), np.float32)).sum() == 9


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_max_pool_of_infinities_and_signed_zeros(dtype):
    """0 and -0 are equal: the first one wins, whatever its sign."""
    x = jnp.asarray([[[-0.0, 0.0, -jnp.inf, -jnp.inf, jnp.inf, -1e-3]]], dtype).swapaxes(1, 2).reshape(1, 1, 6, 1)
    pool = functools.partial(ops.max_pool, window=(1, 2), strides=(1, 2))
    y, gradient = value_and_gradient(pool, x)
    np.testing.assert_array_equal(np.asarray(y, np.float32).ravel(), [0, -np.inf, np.inf])
    by_lax = value_and_gradient(functools.partial(pool, implementation="lax"), x)[1]
    windows = np.asarray([gradient, by_lax], np.float32).reshape(2, 3, 2)  # of two -inf, either may win
    np.testing.assert_array_equal(*windows[:, [0, 2]])


def test_max_pool_transformations():
    def gradient(implementation, x):
        pool = functools.partial(ops.max_pool, window=(3, 3), strides=(2, 2), implementation=implementation)
        return jax.grad(lambda x: jnp.sum(jnp.sin(jax.checkpoint(pool)(x))))(x)

    def twice(implementation, x):
        return jax.grad(lambda x: jnp.sum(jnp.cos(gradient(implementation, x)) * x))(x)

    with jax.enable_x64(True):
        x = random((3, 2, 7, 7, 2))
        for function in (gradient, twice):
            got = jax.jit(jax.vmap(functools.partial(function, "auto")))(x)
            wanted = jnp.stack([jax.jit(functools.partial(function, "lax"))(each) for each in x])
            np.testing.assert_allclose(got, wanted, rtol=1e-12, atol=1e-12)


def test_wide_windows_and_forward_mode_go_to_lax():
    x = random((1, 12, 12, 2), np.float32)
    np.testing.assert_array_equal(ops.max_pool(x, (12, 12), (1, 1), "VALID")[:, 0, 0], x.max((1, 2)))
    _, tangent = jax.jvp(functools.partial(ops.max_pool, implementation="lax"), (x,), (x,))
    np.testing.assert_array_equal(tangent, ops.max_pool(x))


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize(("size", "window", "stride", "pad"), [(14, 5, 3, 0), (8, 3, 1, 1), (7, 3, 2, 1), (4, 2, 2, 0)])
def test_avg_pool_equals_torch(size, window, stride, pad, include):
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    x = np.array(random((2, size, size + 1, 3), np.float32))
    images = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    wanted = torch.nn.AvgPool2d(window, stride, pad, count_include_pad=include)(images)
    pool = functools.partial(
        ops.avg_pool,
        window=(window,) * 2,
        strides=(stride,) * 2,
        padding=((pad, pad),) * 2,
        count_include_pad=include,
    )
    y, gradient = value_and_gradient(pool, jnp.asarray(x))
    wanted.backward(torch.tensor(np.array(random(y.shape, y.dtype, seed=1)).transpose(0, 3, 1, 2)))
    np.testing.assert_allclose(y, wanted.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(gradient, images.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "cells"), [(1, 1, (4, 4)), (14, 14, (4, 4)), (8, 3, (4, 2)), (7, 9, (1, 1)), (7, 7, (7, 7))]
)
def test_adaptive_avg_pool_equals_torch(height, width, cells):
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    x = np.array(random((2, height, width, 3), np.float32))
    wanted = torch.nn.AdaptiveAvgPool2d(cells)(torch.tensor(x.transpose(0, 3, 1, 2)))
    got = ops.adaptive_avg_pool(jnp.asarray(x), cells)
    np.testing.assert_allclose(got, wanted.numpy().transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-6)


def test_wrong_arguments():
    x = jnp.ones((1, 4, 4, 1))
    with pytest.raises(UserError, match="padding 'CEIL'"):
        ops.max_pool(x, padding="CEIL")
    with pytest.raises(UserError, match="implementation 'fast'"):
        ops.max_pool(x, implementation="fast")
    with pytest.raises(UserError, match="window of 5 does not fit a map of 4"):
        ops.avg_pool(x, (5, 5))
