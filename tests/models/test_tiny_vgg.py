"""The Tiny VGGs against Tables 1 and 2 of their source."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import linen as nn
from networks import count, module_shapes, quick_jit, random_variables, shapes

from inception_jax.models import TinyVGG, create_model
from inception_jax.models.tiny_vgg import D_REGULARIZED, TABLES, Configuration

# Kernel height x width x channels x filters, and as many biases as filters.
CONVOLUTIONS = (
    (2 * 2 * 3 * 32 + 32) + (2 * 1 * 32 * 32 + 32) + (1 * 2 * 32 * 32 + 32)
    + (2 * 2 * 32 * 48 + 48) + (2 * 2 * 48 * 48 + 48) + (2 * 2 * 48 * 48 + 48)
    + (2 * 2 * 48 * 80 + 80) + (2 * 2 * 80 * 80 + 80) + (2 * 2 * 80 * 80 + 80)
)  # fmt: skip
NORMS = 2 * 3 * (32 + 48 + 80)  # scale and bias of every filter
FLAT = 8 * 8 * 80  # what three pools leave of 64x64 pixels
# As the tables have it at 200 classes, on one line each: convolutions, batch norm, dense layers with it, classifier.
PARAMETERS = {
    "a": CONVOLUTIONS + (FLAT * 2048 + 2048) + (2048 * 200 + 200),
    "b": CONVOLUTIONS + NORMS + (FLAT * 2048 + 2048 + 2 * 2048) + (2048 * 200 + 200),
    "c": CONVOLUTIONS + (FLAT * 2048 + 2048) + (2048 * 200 + 200),
    "d": CONVOLUTIONS + NORMS + (FLAT * 2048 + 2048 + 2 * 2048) + (2048 * 200 + 200),
    "e": CONVOLUTIONS + NORMS + (FLAT * 4096 + 4096) + 2 * (4096 * 4096 + 4096) + 3 * 2 * 4096 + (4096 * 200 + 200),
    "f": CONVOLUTIONS + NORMS + (FLAT * 200 + 200),
}


def test_the_arithmetic_gives_the_numbers_of_the_docstring():
    assert CONVOLUTIONS == 96_096
    assert PARAMETERS == {
        "a": 10_993_704, "b": 10_998_760, "c": 10_993_704, "d": 10_998_760, "e": 55_479_272, "f": 1_121_256,
    }  # fmt: skip
    for number in PARAMETERS.values():
        assert f"{number:,}" in TinyVGG.__doc__


@pytest.mark.parametrize("letter", PARAMETERS)
def test_has_exactly_the_tables_parameters(letter):
    _, variables = shapes(f"tiny_vgg_{letter}", size=64, num_classes=200)
    assert count(variables) == PARAMETERS[letter]
    norms = {name for name in variables["params"] if name.endswith("_norm")}
    dense = {"a": 0, "b": 1, "c": 0, "d": 1, "e": 3, "f": 0}[letter]
    assert len(norms) == (0 if letter in "ac" else 9 + dense)
    assert set(variables.get("batch_stats", {})) == norms


def test_the_parameters_do_not_depend_on_the_size_of_the_images():
    assert shapes("tiny_vgg_b", size=64)[1] == shapes("tiny_vgg_b", size=8)[1] == shapes("tiny_vgg_b", size=101)[1]


def test_kernels_and_maps_are_those_of_the_tables():
    model = create_model("tiny_vgg_a", num_classes=200)
    assert model.native_image_size == 64
    _, state = module_shapes(model, (2, 64, 64, 3), capture_intermediates=True, mutable=True)
    kernels = {name: unit["conv"]["kernel"].shape for name, unit in state["params"].items() if "conv" in unit}
    assert [kernels[f"conv1_{index}"] for index in (1, 2, 3)] == [(2, 2, 3, 32), (2, 1, 32, 32), (1, 2, 32, 32)]
    maps = {name: calls["__call__"][0].shape[1:] for name, calls in state["intermediates"].items() if name in kernels}
    for stage, (side, features) in enumerate(((64, 32), (32, 48), (16, 80)), start=1):
        assert {maps[f"conv{stage}_{index}"] for index in (1, 2, 3)} == {(side, side, features)}
    assert state["intermediates"]["pool3"]["__call__"][0].shape == (2, 8, 8, 80)


def test_kernels_of_two_pixels_are_padded_at_the_end():
    """As SAME in Keras: the last pixel of the image reaches the last output alone, through the kernel's first entry."""
    model = create_model("tiny_vgg_a", num_classes=3)
    images = np.zeros((1, 8, 8, 1), np.float32)
    images[0, 7, 7] = 1
    variables = random_variables(module_shapes(model, images.shape)[1])
    variables["params"]["conv1_1"]["conv"]["bias"][:] = 0
    apply = partial(model.apply, train=False, capture_intermediates=True)
    _, state = quick_jit(apply)(variables, images)
    found = state["intermediates"]["conv1_1"]["conv"]["__call__"][0]
    kernel = variables["params"]["conv1_1"]["conv"]["kernel"]
    np.testing.assert_allclose(found[0, 7, 7], kernel[0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(found[0, 6, 6], kernel[1, 1, 0], rtol=1e-6)


def test_batch_norm_follows_the_relu():
    """After it, a batch's maps have mean 0 and variance 1, up to the epsilon; before it, none is below 0."""
    model = TinyVGG(Configuration("he_normal", True, (16,), 0.0), num_classes=3)
    images = np.random.default_rng(0).standard_normal((16, 16, 16, 3), np.float32)
    variables = random_variables(module_shapes(model, images.shape)[1])
    norms = {name: norm for name, norm in variables["params"].items() if name.endswith("_norm")}
    for norm in norms.values():
        norm["scale"][:], norm["bias"][:] = 1, 0
    apply = partial(model.apply, train=True, capture_intermediates=True, mutable=True)
    _, state = quick_jit(apply)(variables, images)
    calls = state["intermediates"]
    assert np.min(calls["conv2_3"]["__call__"][0]) == 0
    for name in ("conv1_1_norm", "conv2_3_norm", "fc1_norm"):
        y = np.asarray(calls[name]["__call__"][0]).reshape(-1, variables["params"][name]["bias"].size)
        np.testing.assert_allclose(y.mean(0), 0, atol=1e-4)
        assert np.median(y.var(0)) > 0.98


@pytest.mark.parametrize("letter", TABLES)
def test_initializers_are_the_tables(letter):
    model = TinyVGG(narrow(TABLES[letter]), num_classes=3)
    images = np.ones((1, 8, 8, 3), np.float32)
    kernel = np.asarray(
        quick_jit(lambda key: model.init(key, images, train=False)["params"]["conv3_3"]["conv"]["kernel"])(
            jax.random.key(0)
        )
    )
    if letter in "ABC":
        bound = np.sqrt(6 / (2 * 2 * 80 + 2 * 2 * 80))
        assert 0.98 * bound < np.abs(kernel).max() <= bound
    else:
        np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (2 * 2 * 80)), rtol=0.02)


@pytest.mark.parametrize(
    ("letter", "given", "rate"),
    [("A", None, 0.0), ("B", None, 0.0), ("C", None, 0.3), ("D", None, 0.3), ("E", None, 0.0), ("F", None, 0.0),
     ("A", 0.5, 0.5), ("D", 0.0, 0.0)],
)  # fmt: skip
def test_dropout_is_the_tables_unless_it_is_given(letter, given, rate):
    assert dropout_rates(TinyVGG(TABLES[letter], num_classes=3, dropout_rate=given)) == [rate]


@pytest.mark.parametrize(("given", "rate"), [(None, 0.7), (0.2, 0.2)])
def test_the_experiment_between_d_and_e_is_d_with_three_dense_layers_and_dropout_after_each(given, rate):
    assert dropout_rates(TinyVGG(D_REGULARIZED, num_classes=3, dropout_rate=given)) == [rate] * 3
    _, variables = shapes("tiny_vgg_d_regularized", size=64, num_classes=200)
    more = 2 * (2048 * 2048 + 2048 + 2 * 2048)
    assert count(variables) == PARAMETERS["d"] + more == 19_399_656
    assert f"{PARAMETERS['d'] + more:,}" in TinyVGG.__doc__
    _, d = shapes("tiny_vgg_d", size=64, num_classes=200)
    assert variables["params"].keys() - d["params"].keys() == {"fc2", "fc2_norm", "fc3", "fc3_norm"}


def dropout_rates(model):
    rates = []

    def note(call, arguments, options, context):
        if isinstance(context.module, nn.Dropout):
            rates.append(context.module.rate)
        return call(*arguments, **options)

    with nn.intercept_methods(note):
        module_shapes(model, (2, 8, 8, 3))
    return rates


def narrow(table: Configuration) -> Configuration:
    return table._replace(dense=(16,) * len(table.dense))
