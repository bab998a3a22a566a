"""Inception-ResNet v2: the sizes of its maps, and its residual module."""

import jax
import numpy as np
import pytest
from networks import random_variables, sizes

from inception_jax.models import InceptionResNetV2
from inception_jax.models.branches import Conv
from inception_jax.models.inception_resnet_v2 import ResidualModule


@pytest.mark.parametrize(
    ("stem", "size", "sides"), [("imagenet", 299, (35, 17, 8)), ("small", 32, (32, 16, 8)), ("small", 9, (9, 5, 3))]
)
def test_maps_have_the_sizes_of_the_modules_names(stem, size, sides):
    found = sizes(InceptionResNetV2((1, 1, 1), 1000, stem=stem), size)
    first, second, third = ((side, side) for side in sides)
    names = ("mixed_5b", "block35_1", "mixed_6a", "block17_1", "mixed_7a", "block8_1", "conv_7b")
    assert {name: found[name] for name in names} == {
        "mixed_5b": (*first, 320), "block35_1": (*first, 320), "mixed_6a": (*second, 1088),
        "block17_1": (*second, 1088), "mixed_7a": (*third, 2080), "block8_1": (*third, 2080), "conv_7b": (*third, 1536),
    }  # fmt: skip


def test_adds_a_scaled_projection_to_the_input():
    branches = ((Conv("conv_1x1", 4),),)
    x = np.random.default_rng(0).standard_normal((1, 5, 5, 6)).astype(np.float32)

    def output(scale, activate):
        module = ResidualModule(branches, scale, activate)
        variables = random_variables(jax.eval_shape(lambda: module.init(jax.random.key(0), x, False)))
        assert variables["params"]["projection"]["conv"].keys() == {"kernel", "bias"}
        return module.apply(variables, x, False)

    added = output(1.0, False) - x
    assert np.abs(added).min() > 0
    np.testing.assert_allclose(output(0.25, False), x + 0.25 * added, atol=1e-6)
    np.testing.assert_allclose(output(0.25, True), np.maximum(x + 0.25 * added, 0), atol=1e-6)
