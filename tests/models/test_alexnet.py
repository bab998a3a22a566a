"""AlexNet against the papers' tables and against torchvision."""

from functools import partial

import jax
import numpy as np
import pytest
from networks import (
    assert_gradients_equal,
    assert_logits_equal,
    assert_trains_and_evaluates,
    count,
    module_shapes,
    peer_variables,
    quick_jit,
    randomize,
    shapes,
)
from peers import import_torchvision

from inception_jax.errors import UserError
from inception_jax.models import AlexNet, create_model


def test_has_exactly_the_published_parameters():
    _, variables = shapes("alexnet")
    assert count(variables) == 61_100_840
    assert variables["params"].keys() == {"conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc"}
    # By batch norm, two numbers for every feature in place of the bias.
    assert count(shapes("alexnet", norm="batch")[1]) - 61_100_840 == 64 + 192 + 384 + 256 + 256


def test_the_small_stem_and_classifier_have_the_parameters_of_the_docstring():
    _, variables = shapes("alexnet", size=32, num_classes=10, stem="small", classifier="mean")
    assert count(variables) == 2_450_762
    assert variables["params"].keys() == {"conv1", "conv2", "conv3", "conv4", "conv5", "fc"}


@pytest.mark.parametrize(
    ("stem", "size", "sides"),
    [("imagenet", 224, (55, 27, 13, 6)), ("imagenet", 63, (15, 7, 3, 1)), ("small", 64, (64, 31, 15, 7)),
     ("small", 32, (32, 15, 7, 3)), ("small", 15, (15, 7, 3, 1))],
)  # fmt: skip
def test_maps_have_these_sizes(stem, size, sides):
    model = AlexNet(10, stem=stem)
    assert model.native_image_size == (224 if stem == "imagenet" else 32)
    assert model.min_image_size <= size
    _, state = module_shapes(model, (2, size, size, 3), capture_intermediates=True)
    names = ("conv1", "conv2", "conv3", "pool5")
    maps = [state["intermediates"][name]["__call__"][0].shape for name in names]
    assert maps == [(2, side, side, features) for side, features in zip(sides, (64, 192, 384, 256), strict=True)]


@pytest.mark.parametrize(("stem", "smallest"), [("imagenet", 63), ("small", 15)])
def test_images_that_the_pools_use_up_are_refused(stem, smallest):
    with pytest.raises(
        UserError, match=rf"images of {smallest}x{smallest - 1} pixels .* at least {smallest}x{smallest}"
    ):
        module_shapes(AlexNet(10, stem=stem), (2, smallest, smallest - 1, 3))


def test_trains_and_evaluates():
    assert_trains_and_evaluates(AlexNet(3, stem="small", norm="batch", classifier="mean"), (4, 15, 15, 3))


def test_dropout_stands_before_fc6_and_fc7():
    """With all that enters a layer dropped, only its bias is left; `fc` sees what `fc7` makes of that."""
    images = np.ones((2, 15, 15, 3), np.float32)
    model = AlexNet(3, stem="small", dropout_rate=1.0)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), module_shapes(model, images.shape)[1])
    apply = partial(model.apply, train=True, rngs={"dropout": jax.random.key(0)}, capture_intermediates=True)
    outputs, state = quick_jit(apply)(variables, images)
    for name in ("fc6", "fc7"):
        np.testing.assert_array_equal(state["intermediates"][name]["__call__"][0], 1)
    np.testing.assert_array_equal(outputs.logits, 4097)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "smal"}, "unknown stem 'smal'. Did you mean 'small'?"),
        ({"norm": "lrn"}, "unknown norm 'lrn'. Known: batch, none"),
        ({"classifier": "men"}, "unknown classifier 'men'. Did you mean 'mean'?"),
        ({"initializer": "he_norm"}, "unknown initializer 'he_norm'. Did you mean 'he_normal'?"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError) as error:
        shapes("alexnet", **options)
    assert message in str(error.value)


# Maps of 1x2, which are spread to 6x6; the papers' 6x6 are as they are.
@pytest.mark.parametrize("size", [(67, 99), (224, 224)])
def test_logits_equal_torchvisions(size):
    peer = import_torchvision().models.alexnet(num_classes=100)
    randomize(peer)
    model = create_model("alexnet", num_classes=100)
    assert_logits_equal(model, peer_variables(model, peer, "torchvision"), peer, (2, *size, 3))


@pytest.mark.slow
def test_gradients_equal_torchvisions():
    peer = import_torchvision().models.alexnet(num_classes=10)
    randomize(peer)
    model = create_model("alexnet", num_classes=10)
    convert = partial(peer_variables, model, format="torchvision")
    assert_gradients_equal(model, convert, peer, (2, 67, 99, 3))
