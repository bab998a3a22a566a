"""The norms of gradients, against differences of the loss, and in the order of the layers."""

import jax
import numpy as np
from flax import linen as nn
from jax import numpy as jnp

from inception_jax.inspection import gradient_norms
from inception_jax.models.layers import Outputs


class Net(nn.Module):
    """Its layers' names are not in alphabetical order; dropout, and a head that training alone calls."""

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.Conv(2, (3, 3), param_dtype=images.dtype, name="stem")(images)
        x = jnp.tanh(x).mean((1, 2))
        head = nn.Dense(3, param_dtype=images.dtype, name="head")
        aux = {"head": head(x)} if train or self.is_initializing() else {}
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return Outputs(nn.Dense(3, param_dtype=images.dtype, name="classifier")(x), aux)


def test_norms_are_those_of_differences_of_the_loss():
    with jax.enable_x64(True):
        generator = np.random.default_rng(0)
        images, labels = generator.normal(size=(5, 4, 4, 1)), generator.integers(0, 3, 5)
        params = Net().init(jax.random.key(0), images, train=False)["params"]

        def loss(params):
            x = np.zeros((5, 4, 4, 2))
            padded = np.pad(images[..., 0], ((0, 0), (1, 1), (1, 1)))
            for row, column in np.ndindex(3, 3):
                window = padded[:, row : row + 4, column : column + 4, None]
                x += window * params["stem"]["kernel"][row, column, 0]
            x = np.tanh(x + params["stem"]["bias"]).mean(axis=(1, 2))
            total = 0.0
            for name, weight in (("classifier", 1.0), ("head", 0.3)):
                logits = x @ params[name]["kernel"] + params[name]["bias"]
                own = logits[np.arange(5), labels]
                total += weight * (np.log(np.exp(logits).sum(axis=1)) - own).mean()
            return total

        params = jax.tree.map(lambda leaf: np.array(leaf), params)
        expected = {}
        for name, part in params.items():
            squares = 0.0
            for leaf in part.values():
                for place in np.ndindex(leaf.shape):
                    value, step = leaf[place], 1e-5
                    leaf[place] = value + step
                    above = loss(params)
                    leaf[place] = value - step
                    squares += ((above - loss(params)) / (2 * step)) ** 2
                    leaf[place] = value
            expected[name] = np.sqrt(squares)
        found = gradient_norms(Net(), {"params": params}, images, labels)
    assert list(found) == ["stem", "head", "classifier"]
    for name, norm in found.items():
        np.testing.assert_allclose(norm, expected[name], rtol=1e-6)
