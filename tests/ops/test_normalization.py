"""Local response normalisation against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inception_jax import ops


@pytest.mark.parametrize("options", [{}, {"size": 3, "alpha": 0.5, "beta": 0.5, "k": 2.0}, {"size": 4, "beta": 1.0}])
def test_local_response_norm_equals_torch(options):
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    x = np.random.default_rng(0).normal(0, 30, (2, 4, 5, 7))
    weights = np.random.default_rng(1).normal(size=x.shape)
    images = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    wanted = torch.nn.LocalResponseNorm(**{"size": 5, **options})(images)
    wanted.backward(torch.tensor(weights.transpose(0, 3, 1, 2)))
    with jax.enable_x64(True):
        got, pullback = jax.vjp(lambda x: ops.local_response_norm(x, **options), jnp.asarray(x))
        (gradient,) = pullback(jnp.asarray(weights))
    np.testing.assert_allclose(got, wanted.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-12)
    np.testing.assert_allclose(gradient, images.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-10, atol=1e-12)


def test_local_response_norm_of_bfloat16_is_computed_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(0, 30, (2, 3, 3, 64)), jnp.bfloat16)
    wanted = ops.local_response_norm(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(ops.local_response_norm(x), wanted)
