"""Initializers, which draw the same numbers inside a traced program and, faster, outside of it.

A program that draws all arrays of a network takes many seconds to compile, since it has a loop for every shape. But
JAX's generator (threefry, partitionable) draws numbers by their index, so an array of any shape is the beginning of a
longer, flat one. `draw` therefore needs only a few short programs, the same for every network.
"""

import functools
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from flax import linen as nn
from jax import numpy as jnp

# For jax.jit: a draw runs once, and compiles faster with few of LLVM's optimizations. In all tests, level 1 gave the
# same bits as the default; level 0 did not.
COMPILER_OPTIONS: dict[str, str | bool] = {"xla_backend_optimization_level": "1"}
PREFIX = "draw_"  # of the names of the initializers' functions, by which a traced program's draws are found
_SMALLEST, _LARGEST = 2**12, 2**22  # how many numbers a program draws; larger arrays have a program each

Draw = Callable[..., jax.Array]  # (key, shape, dtype)
Finish = Callable[[np.ndarray], np.ndarray]  # (draws of the array's shape and dtype) -> the array

_draws: dict[str, tuple[Draw, Finish | None]] = {}


def _random_uniform(key, shape, dtype):
    """Uniform in -0.05 to 0.05, Keras's RandomUniform."""
    return jax.random.uniform(key, shape, dtype, -0.05, 0.05)


def _truncated_normal(key, shape, dtype):
    return jax.random.truncated_normal(key, -2, 2, shape, dtype)


def _uniform(key, shape, dtype):
    return jax.random.uniform(key, shape, dtype, -1)


def _he_deviation(values):
    # The divisor is the standard deviation of a standard normal distribution truncated to -2 to 2.
    variance = np.asarray(2 / math.prod(values.shape[:-1]), values.dtype)
    return values * (np.sqrt(variance) / np.asarray(0.87962566103423978, values.dtype))


def _glorot_deviation(values):
    pixels = math.prod(values.shape[:-2])
    variance = np.asarray(2 / (pixels * values.shape[-2] + pixels * values.shape[-1]), values.dtype)
    return values * np.sqrt(np.asarray(3, values.dtype) * variance)


def initializer(name: str, whole: Draw, standard: Draw | None = None, finish: Finish | None = None) -> Draw:
    """An initializer, (key, shape, dtype) -> array, that `draw` knows by its name.

    Args:
      whole: the same as a plain function. Without `standard`, its numbers must not depend on the shape.
      standard: draws whose numbers do not depend on the shape, and from which `finish` computes the array.
    """
    _draws[name] = (standard or whole, finish)

    def function(key, shape, dtype=jnp.float32):
        return whole(key, shape, dtype)

    function.__name__ = PREFIX + name
    return jax.jit(function, static_argnames=("shape", "dtype"))


INITIALIZERS: Mapping[str, Draw] = MappingProxyType(
    {
        # He et al. 2015
        "he_normal": initializer("he_normal", nn.initializers.he_normal(), _truncated_normal, _he_deviation),
        # Glorot & Bengio 2010
        "glorot_uniform": initializer("glorot_uniform", nn.initializers.glorot_uniform(), _uniform, _glorot_deviation),
        # Krizhevsky et al. 2012; Simonyan & Zisserman 2015
        "normal": initializer("normal", nn.initializers.normal(0.01)),
        # torchvision's GoogLeNet
        "truncated_normal": initializer("truncated_normal", nn.initializers.truncated_normal(0.01)),
        # Inception v3 as released
        "truncated_normal_0.1": initializer("truncated_normal_0.1", nn.initializers.truncated_normal(0.1)),
        "random_uniform": initializer("random_uniform", _random_uniform),
    }
)


@functools.cache
def identity_first(name: str) -> Draw:
    """An initializer for convolution kernels whose first filters each copy one channel of the input.

    Each of these filters is 1 in the middle for its channel and 0 elsewhere. If there are more filters than input
    channels, the initializer of that name draws the others.
    """
    others, (standard, finish) = INITIALIZERS[name], _draws[name]

    def whole(key, shape, dtype):
        identity = _identity(shape)
        return others(key, shape, dtype).at[..., : identity.shape[-1]].set(jnp.asarray(identity, dtype))

    def finish_all(values):
        identity, values = _identity(values.shape), finish(values) if finish else values.copy()
        values[..., : identity.shape[-1]] = identity
        return values

    return initializer(f"identity_first_{name}", whole, standard, finish_all)


def _identity(shape: tuple[int, ...]) -> np.ndarray:
    height, width, in_features, out_features = shape
    number = min(in_features, out_features)
    identity = np.zeros((height, width, in_features, number), np.float32)
    identity[height // 2, width // 2, range(number), range(number)] = 1
    return identity


def is_drawn(function_name: str) -> bool:
    """Whether a traced function of this name is an initializer that `draw` knows."""
    return function_name.startswith(PREFIX) and function_name.removeprefix(PREFIX) in _draws


def draw(function_name: str, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """What the initializer's function of this name draws, bit for bit, without compiling a program for the shape."""
    name = function_name.removeprefix(PREFIX)
    count, finish = math.prod(shape), _draws[name][1]
    values = np.asarray(_program(name, _padded(count), np.dtype(dtype))(key))[:count].reshape(shape)
    return finish(values) if finish else values.copy()  # a copy, which does not keep the surplus draws in memory


def _padded(count: int) -> int:
    if count > _LARGEST:
        return count
    size = _SMALLEST
    while size < count:
        size *= 4
    return size


@functools.cache
def _program(name: str, size: int, dtype: np.dtype) -> Callable[[jax.Array], jax.Array]:
    def function(key):
        return _draws[name][0](key, (size,), dtype)

    function.__name__ = f"{PREFIX}{name}_{size}"
    return jax.jit(function, compiler_options=COMPILER_OPTIONS)
