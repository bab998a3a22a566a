"""Local response normalisation against PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax import ops
from inception_jax.errors import UserError


@pytest.mark.parametrize("implementation", ["auto", "lax"])
@pytest.mark.parametrize("options", [{}, {"size": 3, "alpha": 0.5, "beta": 0.5, "k": 2.0}, {"size": 4, "beta": 1.0}])
def test_local_response_norm_equals_torch(options, implementation):
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    x = np.random.default_rng(0).normal(0, 30, (2, 4, 5, 7))
    weights = np.random.default_rng(1).normal(size=x.shape)
    images = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    wanted = torch.nn.LocalResponseNorm(**{"size": 5, **options})(images)
    wanted.backward(torch.tensor(weights.transpose(0, 3, 1, 2)))
    with jax.enable_x64(True):
        got, pullback = jax.vjp(
            lambda x: ops.local_response_norm(x, **options, implementation=implementation), jnp.asarray(x)
        )
        (gradient,) = pullback(jnp.asarray(weights))
    np.testing.assert_allclose(got, wanted.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-12)
    np.testing.assert_allclose(gradient, images.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-10, atol=1e-12)


def test_local_response_norm_of_bfloat16_is_computed_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(0, 30, (2, 3, 3, 64)), jnp.bfloat16)
    wanted = ops.local_response_norm(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(ops.local_response_norm(x), wanted)


def test_local_response_norm_transformations():
    def gradient(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(jax.checkpoint(ops.local_response_norm)(x))))(x)

    def twice(norm, x):
        inner = jax.grad(lambda x: jnp.sum(jnp.sin(norm(x, 4, 0.5))))
        return jax.grad(lambda x: jnp.sum(inner(x) * jnp.cos(x)))(x)

    def forwards(x):
        norm = functools.partial(ops.local_response_norm, size=4, alpha=0.5, implementation="lax")
        return jax.jvp(lambda x: jax.grad(lambda x: jnp.sum(jnp.sin(norm(x))))(x), (x,), (jnp.cos(x),))[1]

    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(0, 30, (3, 2, 7)))
        np.testing.assert_allclose(jax.vmap(gradient)(x), jnp.stack([gradient(each) for each in x]), rtol=1e-12)
        by_lax = twice(functools.partial(ops.local_response_norm, implementation="lax"), x)
        np.testing.assert_allclose(twice(ops.local_response_norm, x), by_lax, rtol=1e-10, atol=1e-12)
        assert np.isfinite(forwards(x)).all()


def test_unknown_implementation():
    with pytest.raises(UserError, match="implementation 'fast'"):
        ops.local_response_norm(jnp.ones((1, 4)), implementation="fast")
