"""Batch norm against Linen's, with the same variables, results and statistics; units convolved together."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp
from networks import quick_jit, random_variables

from inception_jax.models.layers import BatchNorm, ConvUnit, apply_siblings


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("relu", [False, True])
def test_batch_norm_is_linens(relu, dtype):
    random = np.random.default_rng(0)
    x = jnp.asarray(random.normal(0.5, 2, (4, 6, 5, 3)), dtype or jnp.float32)
    ours = BatchNorm(1e-3, relu=relu, zero_init=True, dtype=dtype)
    theirs = nn.BatchNorm(momentum=0.9, epsilon=1e-3, scale_init=nn.initializers.zeros, dtype=dtype)
    variables = ours.init(jax.random.key(0), x, False)
    wanted = theirs.init(jax.random.key(0), x, use_running_average=True)
    assert jax.tree.structure(variables) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, variables, wanted)
    variables = jax.tree.map(lambda leaf: jnp.asarray(random.uniform(0.5, 1.5, leaf.shape), leaf.dtype), variables)

    def expected(use_running_average):
        y, updated = theirs.apply(variables, x, use_running_average=use_running_average, mutable=["batch_stats"])
        return nn.relu(y) if relu else y, updated

    rtol = 1e-5 if dtype is None else 1e-2
    for train in (False, True):
        (y, updated), (linens, linens_updated) = (
            ours.apply(variables, x, train, mutable=["batch_stats"]),
            expected(not train),
        )
        assert y.dtype == linens.dtype
        np.testing.assert_allclose(np.asarray(y, np.float32), np.asarray(linens, np.float32), rtol=rtol, atol=rtol)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), updated, linens_updated)


def test_siblings_convolved_together_compute_what_each_computes_alone():
    """In training and at inference, in value, statistics and gradient; biases are each unit's own."""

    class Siblings(nn.Module):
        together: bool
        norm: str

        @nn.compact
        def __call__(self, x, *, train):
            units = [ConvUnit(width, norm=self.norm, name=f"unit{width}") for width in (3, 5)]
            ys = apply_siblings(units, x, train) if self.together else [unit(x, train) for unit in units]
            return jnp.concatenate(ys, -1)

    x = np.random.default_rng(0).standard_normal((4, 3, 3, 6), np.float32)
    for norm in ("batch", "none"):
        together, alone = Siblings(True, norm), Siblings(False, norm)
        shape = jax.eval_shape(lambda model=together: model.init(jax.random.key(0), x, train=False))
        assert shape == jax.eval_shape(lambda model=alone: model.init(jax.random.key(0), x, train=False))
        variables = random_variables(shape)
        for train in (True, False):
            options = {"train": train, "mutable": ["batch_stats"] if train else False}

            def loss(params, x, model, variables=variables, options=options):
                y = model.apply({**variables, "params": params}, x, **options)
                return jnp.square(y[0] if options["train"] else y).sum(), y

            got, wanted = (
                quick_jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=2)(
                    variables["params"], x, model
                )
                for model in (together, alone)
            )
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, wanted)
