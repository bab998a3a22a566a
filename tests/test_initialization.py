"""Initial weights that are drawn without a program for them are the compiled program's, bit for bit."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp
from networks import DEEPER, SHORTENED

from inception_jax.models import MODELS, create_model, initializers
from inception_jax.steps import initialization
from inception_jax.steps.optimizers import OPTIMIZERS, make_optimizer
from inception_jax.steps.state import create_state

KEY = jax.random.key(7)


def trace(model, optimizer="sgd", shape=(16, 16, 3), key=KEY, **options):
    create = partial(create_state, model=model, optimizer=make_optimizer(optimizer, 0.1), image_shape=shape, **options)
    return jax.jit(create).trace(key)


def compiled(traced, key=KEY):
    return traced.lower().compile(initializers.COMPILER_OPTIONS)(key)


def assert_same_bits(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for mine, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        mine, other = np.asarray(mine), np.asarray(other)
        assert (mine.shape, mine.dtype, mine.tobytes()) == (other.shape, other.dtype, other.tobytes())


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", initializers.INITIALIZERS)
def test_draws_are_those_of_a_program_for_the_shape(name, x64):
    with jax.enable_x64(x64):
        key, dtype = jax.random.key(3), np.dtype("float64" if x64 else "float32")
        shapes = ((3, 3, 5, 7), (4100, 2))
        program = jax.jit(
            lambda key: [initializers.INITIALIZERS[name](key, shape, dtype) for shape in shapes],
            compiler_options=initializers.COMPILER_OPTIONS,
        )
        drawn = [initializers.draw(initializers.PREFIX + name, key, shape, dtype) for shape in shapes]
        assert_same_bits(drawn, program(key))


@pytest.mark.parametrize("name", ["he_normal", "normal"])
@pytest.mark.parametrize("shape", [(3, 3, 5, 7), (3, 3, 7, 5), (1, 1, 4, 4)])
def test_kernels_that_begin_as_the_identity_are_drawn_too(name, shape):
    draw, dtype = initializers.identity_first(name), np.dtype("float32")
    program = jax.jit(partial(draw, shape=shape, dtype=dtype), compiler_options=initializers.COMPILER_OPTIONS)
    drawn = initializers.draw(f"{initializers.PREFIX}identity_first_{name}", KEY, shape, dtype)
    assert_same_bits(drawn, program(KEY))
    number = min(shape[2:])
    rest = jax.jit(partial(initializers.INITIALIZERS[name], shape=shape, dtype=dtype))(KEY)[..., number:]
    np.testing.assert_allclose(drawn[..., number:], rest, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("he_normal", nn.initializers.he_normal()), ("glorot_uniform", nn.initializers.glorot_uniform())],
)
def test_initialisers_are_linens(name, theirs):
    options = initializers.COMPILER_OPTIONS
    draws = [
        jax.jit(partial(draw, shape=(3, 3, 4, 6)), compiler_options=options)(KEY)
        for draw in (initializers.INITIALIZERS[name], theirs)
    ]
    assert_same_bits(*draws)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_states_are_those_of_the_compiled_program(optimizer):
    model = create_model("simple_cnn", num_classes=5, stage_features=(4,), norm="batch")
    traced = trace(model, optimizer, with_average=optimizer == "adam", plateau_mode="max")
    state = initialization.evaluate(traced, KEY)
    assert {type(leaf) for leaf in jax.tree.leaves(state.params)} == {np.ndarray}  # nothing was compiled
    assert_same_bits(state, compiled(traced))


@pytest.mark.parametrize("name", sorted(set(MODELS) - DEEPER))
def test_no_network_needs_a_program(name, monkeypatch):
    def nothing(name, key, shape, dtype):
        assert jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        return np.broadcast_to(np.zeros((), dtype), shape)  # which takes no memory

    monkeypatch.setattr(initializers, "draw", nothing)
    model = create_model(name, num_classes=10).clone(**SHORTENED.get(name, {}))
    size = model.native_image_size
    state = initialization.evaluate(trace(model, shape=(size, size, 3)), KEY)
    assert {type(leaf) for leaf in jax.tree.leaves(state.variables)} == {np.ndarray}


class Foreign(nn.Module):
    """A network from outside the package: it has Linen's own initialisers."""

    @nn.compact
    def __call__(self, images, *, train):
        offset = self.param("offset", lambda key: jnp.arange(3.0) * 2)
        return nn.Dense(4)(images.mean((1, 2)) + offset)


def test_other_networks_are_compiled():
    traced = trace(Foreign())
    state = initialization.evaluate(traced, KEY)
    assert isinstance(state.params["Dense_0"]["kernel"], jax.Array)
    assert_same_bits(state, compiled(traced))


@pytest.mark.parametrize("other", ["implementation", "not partitionable"])
def test_other_generators_are_compiled(other):
    """Their arrays are no beginnings of longer ones."""
    with jax.threefry_partitionable(other == "implementation"):
        key = jax.random.key(1, impl="rbg" if other == "implementation" else "threefry2x32")
        traced = trace(create_model("simple_cnn", num_classes=2, stage_features=(4,)), key=key)
        assert_same_bits(initialization.evaluate(traced, key), compiled(traced, key))
