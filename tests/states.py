"""States to save, for tests of checkpoints: `from states import make_state`."""

import jax
import jax.numpy as jnp
import numpy as np

from inception_jax.steps.optimizers import make_optimizer
from inception_jax.steps.schedules import init_plateau


def make_state(seed=0, step=0):
    """A state with all that a train state has: nested, empty and named containers, scalars, both kinds of keys."""
    generator = np.random.default_rng(seed)
    params = {
        "conv": {"kernel": jnp.asarray(generator.standard_normal((64, 65))), "bias": jnp.zeros(65)},
        "empty": {},
    }
    return {
        "step": jnp.asarray(step),
        "params": params,
        "half": jnp.asarray(generator.standard_normal(5), jnp.bfloat16),
        "mask": jnp.asarray([True, False]),
        "opt_state": make_optimizer("adam", 0.1).init(params),
        "plateau": init_plateau("max"),
        "key": jax.random.key(seed),
        "raw_key": jax.random.PRNGKey(seed),
        "average": None,
    }


def assert_equal(state, expected):
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == wanted.dtype
        assert leaf.sharding == wanted.sharding
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf, wanted = jax.random.key_data(leaf), jax.random.key_data(wanted)
        assert np.asarray(leaf).tobytes() == np.asarray(wanted).tobytes()
