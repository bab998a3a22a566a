"""What convolutions are compared with: `lax`, in value and gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from inception_jax import ops

NHWC = ("NHWC", "HWIO", "NHWC")


def random(shape, dtype=np.float64, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def lax_conv(x, kernel, strides, padding):
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=NHWC)


def value_and_gradients(conv, x, kernel, weights):
    def loss(x, kernel):
        y = conv(x, kernel)
        return jnp.sum(y * weights), y

    (_, y), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(x, kernel)
    return y, *gradients


def assert_equals_lax(x_shape, kernel_shape, strides, padding, dtype, rtol):
    x, kernel = random(x_shape, dtype), random(kernel_shape, dtype, seed=1)
    reference = functools.partial(lax_conv, strides=strides, padding=padding)
    weights = random(jax.eval_shape(reference, x, kernel).shape, dtype, seed=2)
    ours = functools.partial(ops.conv, strides=strides, padding=padding)
    for got, wanted in zip(
        jax.jit(functools.partial(value_and_gradients, ours))(x, kernel, weights),
        jax.jit(functools.partial(value_and_gradients, reference))(x, kernel, weights),
        strict=True,
    ):
        assert got.dtype == wanted.dtype == dtype
        got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
        np.testing.assert_allclose(got, wanted, rtol=0, atol=rtol * max(1.0, np.abs(wanted).max()))
