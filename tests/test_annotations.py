"""Annotated shapes and types are checked while tests run, see conftest.py."""

import jaxtyping
import pytest
from jax import numpy as jnp

from inception_jax import ops
from inception_jax.data import augment
from inception_jax.steps import losses


@pytest.mark.parametrize(
    "call",
    [
        lambda: ops.max_pool(jnp.zeros((4, 4))),
        lambda: losses.cross_entropy(jnp.zeros((2, 3)), jnp.zeros(4, jnp.int32)),
        lambda: augment.to_unit(jnp.zeros((1, 4, 4, 3)), "float32"),
    ],
)
def test_a_wrong_shape_or_type_is_an_error(call):
    with pytest.raises(jaxtyping.TypeCheckError):
        call()


def test_siblings_are_a_list():
    results = ops.sibling_convs(jnp.zeros((1, 2, 2, 3)), [jnp.zeros((1, 1, 3, 4)), jnp.zeros((1, 1, 3, 5))])
    assert [result.shape for result in results] == [(1, 2, 2, 4), (1, 2, 2, 5)]
    assert isinstance(results, list)
