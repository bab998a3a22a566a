"""Inception-ResNet v2 against timm's."""

from functools import partial

import jax
import numpy as np
import pytest
from networks import (
    assert_folding_changes_nothing,
    assert_gradients_equal,
    assert_logits_equal,
    assert_smallest_image_is,
    assert_trains_and_evaluates,
    count,
    peer_variables,
    random_variables,
    randomize,
    shapes,
    sizes,
)
from peers import import_timm

from inception_jax.errors import UserError
from inception_jax.models import InceptionResNetV2, create_model
from inception_jax.models.branches import Conv
from inception_jax.models.inception_resnet_v2 import (
    BLOCK_8,
    ResidualModule,
)


def test_has_exactly_the_published_parameters():
    outputs, variables = shapes("inception_resnet_v2", size=75)
    assert count(variables) == 55_843_464
    assert outputs.logits.shape == (2, 1000)
    blocks = [f"block{side}_{i}" for side, times in ((35, 10), (17, 20), (8, 10)) for i in range(1, times + 1)]
    convolutions = {"conv_1a", "conv_2a", "conv_2b", "conv_3b", "conv_4a", "conv_7b"}
    assert variables["params"].keys() == convolutions | {"mixed_5b", "mixed_6a", "mixed_7a", "fc", *blocks}


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


@pytest.mark.parametrize(("stem", "smallest", "native"), [("imagenet", 75, 299), ("small", 1, 32)])
def test_knows_its_smallest_and_native_image_size(stem, smallest, native):
    model = InceptionResNetV2((1, 1, 1), 10, stem=stem)
    assert model.native_image_size == native
    assert_smallest_image_is(model, smallest)


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "smal"}, "unknown stem 'smal'. Did you mean 'small'?"),
        ({"norm": "lrn"}, "unknown norm 'lrn'. Known: batch, none"),
        ({"initializer": "he_norm"}, "unknown initializer 'he_norm'. Did you mean 'he_normal'?"),
        ({"repeats": (1, 1, 1)}, "unknown option of inception_resnet_v2 'repeats'."),
    ],
)
def test_wrong_options_are_named_and_the_depth_is_fixed(options, message):
    with pytest.raises(UserError) as error:
        shapes("inception_resnet_v2", size=75, **options)
    assert message in str(error.value)


def test_a_module_trains_and_evaluates():
    assert_trains_and_evaluates(ResidualModule(BLOCK_8, 0.2), (4, 4, 4, 8))


def test_folding_changes_nothing_in_a_module():
    assert_folding_changes_nothing(ResidualModule(BLOCK_8, 0.2), (2, 4, 4, 8))


@pytest.mark.slow
def test_folding_changes_nothing():
    assert_folding_changes_nothing(InceptionResNetV2((1, 1, 2), 3, stem="small"), (2, 8, 8, 3))


def timms(repeats, num_classes):
    """timm's Inception-ResNet v2 with so many modules of each kind."""
    peer = import_timm().create_model("inception_resnet_v2", num_classes=num_classes)
    kept = dict(zip(("repeat", "repeat_1", "repeat_2"), (repeats[0], repeats[1], repeats[2] - 1), strict=True))
    for name, times in kept.items():
        setattr(peer, name, getattr(peer, name)[:times])
    randomize(peer)
    return peer


@pytest.mark.parametrize("repeats", [pytest.param((10, 20, 10), marks=pytest.mark.slow), (1, 1, 2)])
def test_logits_equal_timms(repeats):
    peer, model = timms(repeats, 1000), InceptionResNetV2(repeats, 1000)
    assert model == create_model("inception_resnet_v2", num_classes=1000) or repeats == (1, 1, 2)
    size = 75 if repeats == (1, 1, 2) else 299
    assert_logits_equal(model, peer_variables(model, peer, "timm"), peer, (1, size, size, 3))


@pytest.mark.slow
def test_gradients_equal_timms():
    """At the fewest modules of each kind: more of them repeat its gradient."""
    model = InceptionResNetV2((1, 1, 2), 10)
    convert = partial(peer_variables, model, format="timm")
    assert_gradients_equal(model, convert, timms((1, 1, 2), 10), (1, 107, 107, 3))
