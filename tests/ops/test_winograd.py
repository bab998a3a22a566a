"""Minimal filtering against `lax`."""

import functools

import jax
import numpy as np
import pytest
from convolutions import assert_equals_lax, lax_conv, random
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax import numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from inception_jax import ops
from inception_jax.ops import winograd


@st.composite
def shapes(draw):
    """Maps of less than a tile to several, kernels of 1 to 3 pixels, paddings of zero to more than the kernel."""
    sizes = draw(st.tuples(st.integers(1, 13), st.integers(1, 13)))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    pads = [draw(st.tuples(st.integers(0, 3), st.integers(0, 3))) for _ in sizes]
    pads = [(low, max(high, k - size - low)) for size, k, (low, high) in zip(sizes, kernel, pads, strict=True)]
    batch, in_channels, out_channels = draw(st.tuples(*[st.integers(1, 3)] * 3))
    return (batch, *sizes, in_channels), (*kernel, in_channels, out_channels), tuple(pads)


@settings(max_examples=20, deadline=None)
@given(shapes())
def test_equals_lax_to_the_last_digits_of_float64(shapes):
    """The algebra; the rounding of float32 is the next test's."""
    x_shape, kernel_shape, pads = shapes
    with jax.enable_x64(True):
        x, kernel = random(x_shape), random(kernel_shape, seed=1)
        conv = functools.partial(lax_conv, strides=(1, 1), padding=pads)
        dy = random(jax.eval_shape(conv, x, kernel).shape, seed=2)

        @jax.jit
        def both(x, kernel, dy):
            wanted, pullback = jax.vjp(conv, x, kernel)
            y = winograd.conv(x, winograd.transform_kernel(kernel), pads, kernel_shape)
            return (y, *winograd.gradients(x, kernel, dy, pads)), (wanted, *pullback(dy))

        for ours, theirs in zip(*both(x, kernel, dy), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("size", "kernel", "channels"),
    [
        ((4, 4), (3, 3), (32, 48)),
        ((3, 7), (3, 3), (48, 32)),
        ((14, 14), (3, 3), (160, 320)),
        ((16, 16), (3, 3), (64, 192)),
        ((16, 16), (2, 2), (48, 80)),
        ((6, 3), (2, 2), (80, 80)),
        ((9, 8), (2, 1), (32, 32)),
        ((8, 9), (1, 2), (32, 32)),
    ],
)
def test_is_what_float32_convolutions_use_and_within_1e_5_of_lax(size, kernel, channels):
    """The 2x2, 2x1 and 1x2 kernels with the channels that the small VGGs have."""
    shapes = (4, *size, channels[0]), (*kernel, *channels)
    assert_equals_lax(*shapes, (1, 1), "SAME", np.float32, rtol=1e-5)
    x, kernel = (jax.ShapeDtypeStruct(shape, np.float32) for shape in shapes)
    hlo = jax.jit(ops.conv).lower(x, kernel).as_text()
    assert "convolution" not in hlo
    assert "batching_dims = [0] x [0]" in hlo


@pytest.mark.parametrize("options", [{"precision": lax.Precision.HIGHEST}, {"implementation": "lax"}])
def test_is_left_where_all_digits_are_asked_for(options):
    x, kernel = jax.ShapeDtypeStruct((4, 8, 8, 64), np.float32), jax.ShapeDtypeStruct((3, 3, 64, 64), np.float32)
    assert "convolution" in jax.jit(functools.partial(ops.conv, **options)).lower(x, kernel).as_text()
    x, kernel = (jax.ShapeDtypeStruct(array.shape, jnp.bfloat16) for array in (x, kernel))
    assert "convolution" in jax.jit(ops.conv).lower(x, kernel).as_text()


@pytest.mark.parametrize("kernel_size", [(3, 3), (2, 2), (1, 2)])
def test_differentiates_twice(kernel_size):
    x = random((3, 3, 3, 32), np.float32)
    kernel, direction = (random((*kernel_size, 32, 32), np.float32, seed) for seed in (1, 2))

    def hessian_product(implementation, kernel):
        def loss(kernel):
            return jnp.sum(jnp.tanh(0.1 * ops.conv(x, kernel, implementation=implementation)))

        return jax.grad(lambda kernel: jnp.vdot(jax.grad(loss)(kernel), direction))(kernel)

    got, wanted = (jax.jit(functools.partial(hessian_product, name))(kernel) for name in ("auto", "lax"))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


@pytest.mark.parametrize("kernel_size", [(3, 3), (2, 2), (2, 1)])
def test_stays_sharded(kernel_size):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    x, kernel = random((16, 6, 6, 32), np.float32), random((*kernel_size, 32, 32), np.float32, seed=1)
    gradient = jax.jit(jax.value_and_grad(lambda x, kernel: jnp.square(ops.conv(x, kernel)).mean(), (0, 1)))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    value, gradients = gradient(jax.device_put(x, rows), jax.device_put(kernel, NamedSharding(mesh, PartitionSpec())))
    assert gradients[0].sharding.is_equivalent_to(rows, 4)
    for got, wanted in zip(jax.tree.leaves((value, gradients)), jax.tree.leaves(gradient(x, kernel)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
