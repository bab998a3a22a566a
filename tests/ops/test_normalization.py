"""Batch normalisation against Linen's, local response normalisation against PyTorch's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from inception_jax import ops
from inception_jax.errors import UserError


def linens_batch_norm(x, scale, bias, epsilon, relu):
    norm = nn.BatchNorm(use_running_average=False, momentum=0.0, epsilon=epsilon, dtype=x.dtype)
    statistics = {"mean": jnp.zeros_like(bias), "var": jnp.ones_like(scale)}
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": statistics}
    y, updated = norm.apply(variables, x, mutable=["batch_stats"])
    return nn.relu(y) if relu else y, updated["batch_stats"]["mean"], updated["batch_stats"]["var"]


def of_batch_norm(shape, dtype):
    random = np.random.default_rng(0)
    x, (scale, bias) = random.normal(0.5, 2, shape), random.normal(size=(2, shape[-1]))
    return jnp.asarray(x, dtype), jnp.asarray(scale), jnp.asarray(bias)


@pytest.mark.parametrize("implementation", ["auto", "lax"])
@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("shape", [(4, 3, 5, 7), (6, 2)])
def test_batch_norm_equals_linens_in_value_and_gradient(shape, relu, implementation):
    """The statistics have gradients, too: as where a loss reads them."""
    with jax.enable_x64(True):
        arguments = of_batch_norm(shape, jnp.float64)

        def results(norm, *arguments):
            found, pull_back = jax.vjp(norm, *arguments)
            back = jax.tree.map(lambda y: np.random.default_rng(1).normal(size=y.shape), found)
            return *found, *pull_back(back)

        ours = functools.partial(ops.batch_norm, epsilon=1e-3, relu=relu, implementation=implementation)
        theirs = functools.partial(linens_batch_norm, epsilon=1e-3, relu=relu)
        both = [jax.jit(functools.partial(results, norm))(*arguments) for norm in (ours, theirs)]
        for ours, theirs in zip(*both, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)  # Linen's statistics are float32


def test_batch_norm_differentiates_twice_and_vmaps():
    def gradient(implementation, x):
        norm = functools.partial(ops.batch_norm, relu=True, implementation=implementation)
        return jax.grad(lambda x: jnp.sum(jnp.sin(jax.checkpoint(norm)(x, jnp.ones(3), jnp.ones(3))[0])))(x)

    def twice(implementation, x):
        return jax.grad(lambda x: jnp.sum(gradient(implementation, x) * jnp.cos(x)))(x)

    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4, 3)))
        for function in (gradient, twice):
            found = jax.jit(jax.vmap(functools.partial(function, "auto")))(x)
            one_by_one = jax.jit(functools.partial(function, "lax"))
            wanted = jnp.stack([one_by_one(each) for each in x])
            np.testing.assert_allclose(found, wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_of_bfloat16_sums_in_float32(relu):
    """Of 40,000 numbers around 100, whose sum in bfloat16 would stop to grow."""
    random = np.random.default_rng(0)
    x = np.asarray(jnp.asarray(random.normal(100, 3, (4, 100, 100, 2)), jnp.bfloat16), np.float64)
    dy = np.asarray(jnp.asarray(random.normal(size=x.shape), jnp.bfloat16), np.float64)

    def run(dtype, wide):
        arguments = (jnp.asarray(x, dtype), jnp.asarray([1.5, -0.5], wide), jnp.asarray([0.3, -0.1], wide))
        found, pull_back = jax.vjp(jax.jit(lambda *a: ops.batch_norm(*a, 1e-3, relu=relu)), *arguments)
        return *found, *pull_back((jnp.asarray(dy, dtype), *(jnp.zeros_like(each) for each in found[1:])))

    found = run(jnp.bfloat16, jnp.float32)
    with jax.enable_x64(True):
        wanted = [np.asarray(each) for each in run(jnp.float64, jnp.float64)]
    assert found[0].dtype == jnp.bfloat16
    assert found[1].dtype == found[2].dtype == jnp.float32
    for ours, exact, bound in zip(found, wanted, (4e-3, 1e-5, 1e-2, 1e-2, 1e-2, 1e-2), strict=True):
        assert np.linalg.norm(np.asarray(ours, np.float64) - exact) < bound * np.linalg.norm(exact)


@pytest.mark.parametrize("implementation", ["auto", "lax"])
@pytest.mark.parametrize("options", [{}, {"size": 3, "alpha": 0.5, "beta": 0.5, "k": 2.0}, {"size": 4, "beta": 1.0}])
def test_local_response_norm_equals_torch(options, implementation):
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    x = np.random.default_rng(0).normal(0, 30, (2, 4, 5, 7))
    weights = np.random.default_rng(1).normal(size=x.shape)
    images = torch.tensor(x.transpose(0, 3, 1, 2), requires_grad=True)
    wanted = torch.nn.LocalResponseNorm(**{"size": 5, **options})(images)
    wanted.backward(torch.tensor(weights.transpose(0, 3, 1, 2)))

    @jax.jit
    def value_and_gradient(x, weights):
        got, pullback = jax.vjp(lambda x: ops.local_response_norm(x, **options, implementation=implementation), x)
        return got, *pullback(weights)

    with jax.enable_x64(True):
        got, gradient = value_and_gradient(x, weights)
    np.testing.assert_allclose(got, wanted.detach().numpy().transpose(0, 2, 3, 1), rtol=1e-12)
    np.testing.assert_allclose(gradient, images.grad.numpy().transpose(0, 2, 3, 1), rtol=1e-10, atol=1e-12)


def test_local_response_norm_of_bfloat16_is_computed_in_float32():
    x = jnp.asarray(np.random.default_rng(0).normal(0, 30, (2, 3, 3, 64)), jnp.bfloat16)
    wanted = ops.local_response_norm(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(ops.local_response_norm(x), wanted)


def test_local_response_norm_transformations():
    @jax.jit
    def gradient(x):
        return jax.grad(lambda x: jnp.sum(jnp.sin(jax.checkpoint(ops.local_response_norm)(x))))(x)

    @functools.partial(jax.jit, static_argnums=0)
    def twice(norm, x):
        inner = jax.grad(lambda x: jnp.sum(jnp.sin(norm(x, 4, 0.5))))
        return jax.grad(lambda x: jnp.sum(inner(x) * jnp.cos(x)))(x)

    @jax.jit
    def forwards(x):
        norm = functools.partial(ops.local_response_norm, size=4, alpha=0.5, implementation="lax")
        return jax.jvp(lambda x: jax.grad(lambda x: jnp.sum(jnp.sin(norm(x))))(x), (x,), (jnp.cos(x),))[1]

    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(0).normal(0, 30, (3, 2, 7)))
        np.testing.assert_allclose(
            jax.jit(jax.vmap(gradient))(x), jnp.stack([gradient(each) for each in x]), rtol=1e-12
        )
        by_lax = twice(functools.partial(ops.local_response_norm, implementation="lax"), x)
        np.testing.assert_allclose(twice(ops.local_response_norm, x), by_lax, rtol=1e-10, atol=1e-12)
        assert np.isfinite(forwards(x)).all()


def test_unknown_implementation():
    with pytest.raises(UserError, match="implementation 'fast'"):
        ops.local_response_norm(jnp.ones((1, 4)), implementation="fast")
    with pytest.raises(UserError, match="implementation 'fast'"):
        ops.batch_norm(jnp.ones((1, 4)), jnp.ones(4), jnp.ones(4), implementation="fast")
