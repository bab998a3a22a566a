"""What holds for every network of the registry."""

import jax
import pytest
from jax import numpy as jnp
from networks import DEEPER, SHORTENED, assert_trains_and_evaluates, count, module_shapes, shapes

from inception_jax.errors import UserError
from inception_jax.models import MODELS, create_model

# At 1000 classes and the network's own options, colour images of its native size.
PARAMETERS = {
    "alexnet": 61_100_840,
    "bn_inception": 11_285_224,
    "googlenet": 7_005_832,
    "googlenet_naive": 25_311_752,
    "inception_resnet_v2": 55_843_464,
    "inception_v2": 23_667_880,
    "inception_v3": 23_834_568,
    "inception_v4": 42_679_816,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "simple_cnn": 1_429_256,
    "small_inception": 1_956_584,
    "tiny_vgg_a": 12_632_904,
    "tiny_vgg_b": 12_637_960,
    "tiny_vgg_c": 12_632_904,
    "tiny_vgg_d": 12_637_960,
    "tiny_vgg_e": 58_756_872,
    "tiny_vgg_f": 5_218_056,
    "vgg11": 132_863_336,
    "vgg11_bn": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13_bn": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
}
NAMES = sorted(MODELS)


def test_the_table_of_parameters_is_complete():
    assert set(PARAMETERS) == set(MODELS)


@pytest.mark.parametrize("name", NAMES)
def test_has_exactly_these_parameters_in_float32(name):
    outputs, variables = shapes(name, create_model(name, num_classes=1000).native_image_size)
    assert count(variables) == PARAMETERS[name]
    assert outputs.logits.shape == (2, 1000)
    assert dtypes(outputs, variables) == {"float32"}


@pytest.mark.parametrize("name", NAMES)
def test_computes_in_bfloat16_on_images_of_its_smallest_size_and_refuses_smaller_ones(name):
    model = create_model(name, num_classes=7, dtype=jnp.bfloat16)
    smallest = model.min_image_size
    outputs, variables = module_shapes(model, (2, smallest, smallest, 3))
    assert outputs.logits.shape == (2, 7)
    assert dtypes(outputs, variables) == {"float32"}
    if smallest > 1:
        with pytest.raises(UserError, match=f"too small for this network: use at least {smallest}x{smallest}"):
            module_shapes(model, (2, smallest, smallest - 1, 3))


def dtypes(*trees) -> set[str]:
    return {leaf.dtype.name for leaf in jax.tree.leaves(trees)}


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelt_name_suggests_it(name):
    with pytest.raises(UserError, match=rf"unknown model '{name}x'. Did you mean '{name}'\?"):
        create_model(f"{name}x", num_classes=10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"),
    [(name, "smallest") for name in NAMES if name not in DEEPER]
    + [("alexnet", "native"), ("googlenet", "native"), ("vgg11_bn", "native")],
)
def test_trains_and_evaluates(name, size):
    heads = {"aux_heads": True} if hasattr(create_model(name, num_classes=10), "aux_heads") else {}
    model = create_model(name, num_classes=10, **heads).clone(**SHORTENED.get(name, {}))
    batch, side = (4, model.min_image_size) if size == "smallest" else (2, model.native_image_size)
    assert_trains_and_evaluates(model, (batch, side, side, 3))
