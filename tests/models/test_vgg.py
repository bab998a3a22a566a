"""VGG against the paper's Tables 1 and 2, initial weights, and the places of dropout."""

from functools import partial

import jax
import numpy as np
import pytest
from networks import count, module_shapes, quick_jit, shapes

from inception_jax.errors import UserError
from inception_jax.models import VGG, create_model

DEPTHS = {11: 132_863_336, 13: 133_047_848, 16: 138_357_544, 19: 143_667_240}
WITH_BATCH_NORM = {11: 132_868_840, 13: 133_053_736, 16: 138_365_992, 19: 143_678_248}
TABLE_2 = {11: 133, 13: 133, 16: 138, 19: 144}  # of the paper, millions of parameters


@pytest.mark.parametrize("depth", DEPTHS)
def test_vggs_have_the_rounded_parameters_of_table_2_and_as_many_layers_as_their_names_say(depth):
    _, variables = shapes(f"vgg{depth}")
    assert count(variables) == DEPTHS[depth]
    assert round(count(variables) / 1e6) == TABLE_2[depth]
    assert len(variables["params"]) == depth


@pytest.mark.parametrize("depth", DEPTHS)
def test_batch_norm_adds_a_scale_and_a_bias_for_every_feature_of_the_convolutions(depth):
    _, variables = shapes(f"vgg{depth}_bn", size=32)
    assert count(variables) == WITH_BATCH_NORM[depth]
    features = sum(unit["conv"]["bias"].size for unit in variables["params"].values() if "conv" in unit)
    assert WITH_BATCH_NORM[depth] - DEPTHS[depth] == 2 * features
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, shapes(f"vgg{depth}", 32, norm="batch")[1])


def test_the_classifier_decides_what_images_the_network_is_made_for():
    paper, mean = (create_model("vgg16", num_classes=10, classifier=classifier) for classifier in ("paper", "mean"))
    assert (paper.native_image_size, mean.native_image_size) == (224, 32)
    assert paper.min_image_size == mean.min_image_size == 32


def test_with_the_mean_there_is_one_dense_layer():
    _, variables = shapes("vgg16", size=32, classifier="mean", num_classes=10)
    convolutions = [f"conv{stage}_{i + 1}" for stage, size in enumerate((2, 2, 3, 3, 3), start=1) for i in range(size)]
    assert variables["params"].keys() == {*convolutions, "fc"}
    assert variables["params"]["fc"]["kernel"].shape == (512, 10)


@pytest.mark.parametrize(("size", "sides"), [(224, (224, 112, 56, 28, 14)), (32, (32, 16, 8, 4, 2))])
def test_a_pool_halves_the_map_after_each_stage(size, sides):
    model = create_model("vgg11", num_classes=10)
    _, state = module_shapes(model, (2, size, size, 3), capture_intermediates=lambda m, _: "_1" in (m.name or ""))
    maps = [state["intermediates"][f"conv{stage}_1"]["__call__"][0].shape for stage in range(1, 6)]
    assert maps == [(2, side, side, features) for side, features in zip(sides, (64, 128, 256, 512, 512), strict=True)]


@pytest.mark.parametrize("classifier", ["paper", "mean"])
@pytest.mark.parametrize("shape", [(28, 28), (31, 64), (64, 1)])
def test_images_that_the_pools_use_up_are_refused(classifier, shape):
    model = create_model("vgg19", num_classes=10, classifier=classifier)
    with pytest.raises(UserError) as error:
        module_shapes(model, (2, *shape, 3))
    assert str(error.value) == (
        f"images of {shape[0]}x{shape[1]} pixels are too small for this network: use at least 32x32"
    )


@pytest.mark.parametrize(
    ("options", "convolution", "dense"),
    [
        ({}, (2 / 27) ** 0.5, 0.01),  # the latter as torchvision's
        ({"initializer": "paper"}, 0.01, 0.01),
        ({"initializer": "glorot_uniform"}, (2 / (27 + 576)) ** 0.5, (2 / (512 + 512)) ** 0.5),
        ({"classifier": "mean"}, (2 / 27) ** 0.5, (2 / 64) ** 0.5),
    ],
)
def test_initial_deviations(options, convolution, dense):
    model = VGG((1,), num_classes=512, hidden_features=512, **options)
    variables = quick_jit(partial(model.init, train=False))(jax.random.key(0), np.ones((1, 8, 8, 3), np.float32))
    deviations = {name: np.std(unit.get("conv", unit)["kernel"]) for name, unit in variables["params"].items()}
    np.testing.assert_allclose(deviations["conv1_1"], convolution, rtol=0.05)
    assert ("fc7" in deviations) == (model.classifier == "paper")
    np.testing.assert_allclose([deviations[name] for name in ("fc7", "fc") if name in deviations], dense, rtol=0.02)


def test_dropout_stands_before_fc7_and_fc():
    """With all that enters a layer dropped, only its bias is left."""
    images = np.ones((2, 4, 4, 3), np.float32)
    model = VGG((1,), num_classes=3, dropout_rate=1.0)
    variables = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), module_shapes(model, images.shape)[1])
    rngs = {"dropout": jax.random.key(0)}
    apply = partial(model.apply, train=True, rngs=rngs, capture_intermediates=True)
    outputs, state = quick_jit(apply)(variables, images)
    fc6, fc7 = (state["intermediates"][name]["__call__"][0] for name in ("fc6", "fc7"))
    assert (fc6 > 1).all()
    np.testing.assert_array_equal(fc7, 1)
    np.testing.assert_array_equal(outputs.logits, 1)
