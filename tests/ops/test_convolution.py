"""Convolution against `lax`: values, gradients, transformations, devices."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from convolutions import assert_equals_lax, lax_conv, random
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from inception_jax import ops
from inception_jax.errors import UserError
from inception_jax.ops import convolution


@st.composite
def shapes(draw):
    """Maps down to one pixel, kernels up to larger than the map, paddings with and without symmetry."""
    kernel = draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    sizes = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    pads = []
    for k, size in zip(kernel, sizes, strict=True):
        low, high = draw(st.integers(0, k)), draw(st.integers(0, k))
        pads.append((low, high + max(0, k - size - low - high)))
    padding = draw(st.sampled_from(["SAME", tuple(pads)]))
    strides = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    channels = draw(st.sampled_from([(1, 2), (3, 5), (64, 64)]))
    return (2, *sizes, channels[0]), (*kernel, *channels), strides, padding


@settings(max_examples=20, deadline=None, derandomize=True)
@given(shapes())
def test_equals_lax_in_value_and_gradient(case):
    with jax.enable_x64(True):
        assert_equals_lax(*case, jnp.float64, 1e-12)


@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (2, 1), (1, 3), (3, 3), (5, 5), (7, 7)])
@pytest.mark.parametrize("padding", [((-1, 1), (0, -2)), ((2, -1), (-1, -1))])
def test_negative_padding_cuts_the_map(kernel, padding):
    assert_equals_lax((2, 12, 12, 32), (*kernel, 32, 32), (1, 1), padding, jnp.float32, 1e-4)


@pytest.mark.parametrize(("dtype", "rtol"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "channels"),
    [
        (8, 1, 1, (48, 64)),
        (7, 1, 2, (16, 32)),
        (1, 5, 1, (16, 32)),
        (2, 3, 1, (16, 32)),
        (4, 3, 1, (16, 32)),
        (4, 3, 2, (16, 32)),
        (4, 5, 1, (16, 32)),
        (3, 5, 2, (16, 32)),
        (8, 3, 1, (64, 96)),
        (8, 5, 1, (16, 32)),
        (16, 7, 2, (3, 64)),
    ],
)
def test_every_lowering_in_lower_precision(size, kernel, stride, channels, dtype, rtol):
    shapes = ((2, size, size, channels[0]), (kernel, kernel, *channels))
    assert_equals_lax(*shapes, (stride, stride), ((kernel // 2,) * 2,) * 2, dtype, rtol)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(4, 1, 2), (2, 3, 1), (4, 5, 1), (6, 3, 1)])
def test_reverse_over_reverse(size, kernel, stride):
    def hessian_product(implementation, x, kernel, direction):
        def loss(kernel):
            y = ops.conv(x, kernel, (stride, stride), implementation=implementation)
            return jnp.sum(jnp.tanh(y))

        return jax.grad(lambda kernel: jnp.vdot(jax.grad(loss)(kernel), direction))(kernel)

    with jax.enable_x64(True):
        x = random((2, size, size, 3))
        arguments = (x, random((kernel, kernel, 3, 4), seed=1), random((kernel, kernel, 3, 4), seed=2))
        got = jax.jit(functools.partial(hessian_product, "auto"))(*arguments)
        wanted = jax.jit(functools.partial(hessian_product, "lax"))(*arguments)
        np.testing.assert_allclose(got, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("size", "kernel"), [(3, 1), (2, 3), (4, 5), (6, 3)])
def test_vmap_and_remat(size, kernel):
    with jax.enable_x64(True):
        x, kernels = random((3, 2, size, size, 3)), random((3, kernel, kernel, 3, 4), seed=1)

        def gradients(x, kernel):
            return jax.grad(lambda *args: jnp.sum(jnp.sin(jax.checkpoint(ops.conv)(*args))), (0, 1))(x, kernel)

        got = jax.jit(jax.vmap(gradients))(x, kernels)
        one_by_one = [jax.jit(gradients)(*args) for args in zip(x, kernels, strict=True)]
        for got_i, wanted in zip(got, zip(*one_by_one, strict=True), strict=True):
            np.testing.assert_allclose(got_i, jnp.stack(wanted), rtol=1e-12, atol=1e-12)


def test_forward_mode_by_the_lax_implementation():
    x, kernel = random((1, 4, 4, 2), np.float32), random((3, 3, 2, 2), np.float32)
    conv = functools.partial(ops.conv, implementation="lax")
    _, tangent = jax.jvp(lambda x: conv(x, kernel), (x,), (x,))
    np.testing.assert_allclose(tangent, conv(x, kernel), rtol=1e-5)


def test_unknown_implementation():
    with pytest.raises(UserError, match="implementation 'fast'"):
        ops.conv(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2)), implementation="fast")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strides": 2},
        {"strides": 2, "padding": "VALID"},
        {"kernel_dilation": 2},
        {"feature_group_count": 2},
        {"input_dilation": 2, "padding": 1},
        {"padding": "CIRCULAR"},
    ],
)
def test_as_the_convolution_of_linen(options):
    x = random((2, 6, 6, 4), np.float32)
    plain = nn.Conv(8, (3, 3), **options)
    variables = plain.init(jax.random.key(0), x)
    ours = nn.Conv(8, (3, 3), conv_general_dilated=ops.conv_general_dilated, **options)
    np.testing.assert_allclose(ours.apply(variables, x), plain.apply(variables, x), rtol=1e-5, atol=1e-5)


def test_other_ranks_and_layouts_go_to_lax():
    signal, taps = random((2, 9, 3), np.float32), random((3, 3, 4), np.float32)
    numbers = ("NHC", "HIO", "NHC")
    got = ops.conv_general_dilated(signal, taps, (1,), "SAME", dimension_numbers=numbers)
    np.testing.assert_array_equal(got, lax.conv_general_dilated(signal, taps, (1,), "SAME", dimension_numbers=numbers))
    x, kernel = random((2, 3, 6, 6), np.float32), random((4, 3, 3, 3), np.float32)
    got = ops.conv_general_dilated(x, kernel, (1, 1), "SAME")
    np.testing.assert_array_equal(got, lax.conv_general_dilated(x, kernel, (1, 1), "SAME"))


def test_sibling_convolutions_equal_separate_ones_on_every_platform():
    """The CPU's lowering, and the one of other platforms, run here."""
    with jax.enable_x64(True):
        x, dys = random((2, 5, 4, 6)), [random((2, 5, 4, width), seed=width) for width in (3, 1, 8)]
        kernels = tuple(random((1, 1, 6, dy.shape[-1]), seed=10) for dy in dys)

        @functools.partial(jax.jit, static_argnums=0)
        def results(siblings):
            ys, pullback = jax.vjp(lambda x, kernels: list(siblings(x, kernels)), x, kernels)
            return jax.tree.leaves((ys, pullback(dys)))

        wanted = results(lambda x, kernels: [lax_conv(x, kernel, (1, 1), "VALID") for kernel in kernels])
        for siblings in (ops.sibling_convs, convolution._joined_siblings):
            for got, expected in zip(results(siblings), wanted, strict=True):
                np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def test_sibling_convolutions_are_one_on_gpus_and_separate_on_cpus():
    x = jax.ShapeDtypeStruct((2, 8, 8, 16), np.float32)
    kernels = [jax.ShapeDtypeStruct((1, 1, 16, width), np.float32) for width in (8, 24)]
    lowered = {
        platform: jax.jit(ops.sibling_convs).trace(x, kernels).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda")
    }
    assert lowered["cpu"].count("dot_general") == 2
    assert lowered["cuda"].count("stablehlo.convolution") == 1


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (1, 3))])
def test_a_kernel_transformed_before_gives_the_same(padding):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((2, 7, 9, 32), np.float32)
    kernel = generator.standard_normal((3, 3, 32, 40), np.float32)
    transformed = ops.transform_kernel(kernel)
    got = ops.conv(x, kernel, (1, 1), padding, transformed=transformed)
    np.testing.assert_array_equal(got, ops.conv(x, kernel, (1, 1), padding))
    # Where it does not apply, it is not used.
    strided = ops.conv(x, kernel, (2, 2), padding, transformed=transformed)
    np.testing.assert_array_equal(strided, ops.conv(x, kernel, (2, 2), padding))
    assert ops.transform_kernel(kernel[:1, :1]) is None
    assert ops.transform_kernel(kernel[..., :8]) is None
    assert ops.transform_kernel(kernel.astype(jnp.bfloat16)) is None
