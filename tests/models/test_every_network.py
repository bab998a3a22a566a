"""What holds for every network, in tables with a row for a network and its options.

Against PyTorch's networks: `test_peers.py`. What is particular to a network: the file with its name.
"""

import inspect
from functools import partial

import jax
import pytest
from jax import numpy as jnp
from networks import (
    DEEPER,
    SHORTENED,
    OneBlock,
    assert_folding_changes_nothing,
    assert_smallest_image_is,
    assert_trains_and_evaluates,
    count,
    module_shapes,
    shapes,
)

from inception_jax.errors import UserError
from inception_jax.models import (
    MODELS,
    VGG,
    AlexNet,
    BNInception,
    GoogLeNet,
    InceptionResNetV2,
    InceptionV2,
    InceptionV3,
    InceptionV4,
    ResNet,
    SimpleCNN,
    SmallInception,
    TinyVGG,
    bn_inception,
    create_model,
    inception_resnet_v2,
    inception_v3,
    inception_v4,
    list_models,
    resnet,
)
from inception_jax.models.branches import BranchedModule
from inception_jax.models.googlenet import Inception, InceptionModule
from inception_jax.models.inception_resnet_v2 import ResidualModule
from inception_jax.models.tiny_vgg import Configuration

NAMES = sorted(MODELS)
VARIATIONS = {"googlenet_naive", "inception_v3"}  # of googlenet and inception_v2: the same wiring with other modules
slow = partial(pytest.param, marks=pytest.mark.slow)
# At 1000 classes and the network's own options, color images of its native size.
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
    "tiny_vgg_d_regularized": 21_038_856,
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
# At the same sizes, with other options. Inception v2 from v3: three modules have 3x3 in place of 5x5 kernels, a 7x7
# convolution stands in place of three, and the auxiliary head has a bias in place of a batch norm.
V2_LESS_THAN_V3 = 3 * 48 * 64 * 16 + (28_512 + 256 - 9_408 - 128)
A_TUTORIALS = {"kernel_3x3": 1, "kernel_5x5": 1, "pool_padding": "valid", "norm": "none", "aux_pool": "paper"}
VARIANTS = [
    # By batch norm, two numbers for every feature in place of the bias.
    ("alexnet", {"norm": "batch"}, 1000, 61_100_840 + 64 + 192 + 384 + 256 + 256),
    ("alexnet", {"stem": "small", "classifier": "mean"}, 10, 2_450_762),
    ("googlenet", {"norm": "lrn"}, 1000, 6_998_552),
    ("googlenet", {"norm": "none"}, 1000, 6_998_552),
    ("googlenet", {"norm": "stem"}, 1000, 6_998_552 + 2 * (64 + 192)),
    ("googlenet", {"norm": "lrn", "aux_heads": True}, 1000, 13_378_280),
    ("googlenet", {"kernel_5x5": 3}, 1000, 6_624_904),
    ("googlenet", {"kernel_5x5": 3, "aux_heads": True}, 1000, 13_004_888),
    ("googlenet", {"aux_heads": True, **A_TUTORIALS}, 10, 5_269_326),
    ("googlenet", A_TUTORIALS, 10, 2_754_106),
    ("inception_v2", {"aux_heads": True}, 1000, 27_161_264 - V2_LESS_THAN_V3 - 768),
    ("inception_v2", {"kernel_5x5": 5, "factorized_7x7": True, "aux_norm": "batch", "aux_heads": True}, 1000,
     27_161_264),
    ("inception_v3", {"aux_heads": True}, 1000, 27_161_264),
    ("simple_cnn", {}, 10, 1_174_826),
    ("simple_cnn", {"stem": "imagenet", "stage_convolutions": (2, 2, 3, 3)}, 10,
     1_174_826 + (7 * 7 - 3 * 3) * 3 * 32 + (9 * 128 * 128 + 128) + (9 * 256 * 256 + 256)),
    ("small_inception", {}, 10, 1_702_154),
]  # fmt: skip


def numbered(prefix, times):
    return {f"{prefix}{i}" for i in range(1, times + 1)}


def in_stages(pattern, sizes):
    """`pattern` for every stage and every index in it: "conv{}_{}" with (1, 2) is conv1_1, conv2_1 and conv2_2."""
    return {pattern.format(stage, i + 1) for stage, size in enumerate(sizes, start=1) for i in range(size)}


# The submodules with parameters, as the docstrings list them.
SUBMODULES = {
    "alexnet": numbered("conv", 5) | {"fc6", "fc7", "fc"},
    "bn_inception": numbered("conv", 3) | {"fc", *bn_inception.FIGURE_5},
    "inception_resnet_v2": {"conv_1a", "conv_2a", "conv_2b", "conv_3b", "conv_4a", "conv_7b"}
    | numbered("block35_", 10) | numbered("block17_", 20) | numbered("block8_", 10)
    | {"mixed_5b", "mixed_6a", "mixed_7a", "fc"},
    "inception_v4": {"conv_1a", "conv_2a", "conv_2b", "mixed_3a", "mixed_4a", "mixed_5a"}
    | numbered("inception_a", 4) | numbered("inception_b", 7) | numbered("inception_c", 3)
    | {"reduction_a", "reduction_b", "fc"},
    "resnet50": {"conv1", "fc"} | in_stages("stage{}_block{}", resnet.TABLE_1[50][1]),
    "vgg16": {"fc6", "fc7", "fc"} | in_stages("conv{}_{}", (2, 2, 3, 3, 3)),
}  # fmt: skip


def dtypes(*trees) -> set[str]:
    return {leaf.dtype.name for leaf in jax.tree.leaves(trees)}


def test_the_table_of_parameters_is_complete():
    assert set(PARAMETERS) == set(MODELS)
    assert PARAMETERS["inception_v2"] == PARAMETERS["inception_v3"] - V2_LESS_THAN_V3


@pytest.mark.parametrize("name", NAMES)
def test_has_exactly_these_parameters_in_float32(name):
    outputs, variables = shapes(name, create_model(name, num_classes=1000).native_image_size)
    assert count(variables) == PARAMETERS[name]
    assert outputs.logits.shape == (2, 1000)
    assert outputs.aux == {}
    assert dtypes(outputs, variables) == {"float32"}
    if name in SUBMODULES:
        assert variables["params"].keys() == SUBMODULES[name]


@pytest.mark.parametrize(("name", "options", "num_classes", "parameters"), VARIANTS)
def test_options_give_exactly_these_parameters(name, options, num_classes, parameters):
    size = create_model(name, num_classes=num_classes, **options).native_image_size
    outputs, variables = shapes(name, size, num_classes=num_classes, **options)
    assert count(variables) == parameters
    heads = ({"aux1", "aux2"} if name == "googlenet" else {"aux"}) if options.get("aux_heads") else set()
    assert outputs.logits.shape == (2, num_classes)
    assert {name: logits.shape for name, logits in outputs.aux.items()} == dict.fromkeys(heads, (2, num_classes))
    if options.get("classifier") == "mean":
        assert variables["params"].keys() == SUBMODULES[name] - {"fc6", "fc7"}


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (InceptionV3, PARAMETERS["inception_v3"]),
        (InceptionV3, 27_161_264),
        (InceptionV2, PARAMETERS["inception_v2"]),
        (InceptionV2, 27_161_264 - V2_LESS_THAN_V3 - 768),
        (SimpleCNN, 1_174_826),
        (SimpleCNN, 1_916_330),
        (SmallInception, 1_702_154),
    ],
)
def test_the_docstring_has_these_parameters(network, parameters):
    assert f"{parameters:,}" in network.__doc__


@pytest.mark.parametrize("name", [slow(name) if name in DEEPER else name for name in NAMES])
def test_computes_in_bfloat16_on_images_of_its_smallest_size_and_refuses_smaller_ones(name):
    model = create_model(name, num_classes=7, dtype=jnp.bfloat16)
    smallest = model.min_image_size
    outputs, variables = module_shapes(model, (2, smallest, smallest, 3))
    assert outputs.logits.shape == (2, 7)
    assert dtypes(outputs, variables) == {"float32"}
    if smallest > 1:
        with pytest.raises(UserError, match=f"too small for this network: use at least {smallest}x{smallest}"):
            module_shapes(model, (2, smallest, smallest - 1, 3))


@pytest.mark.parametrize(
    ("network", "stem", "smallest", "native"),
    [
        (AlexNet, "imagenet", 63, 224),
        (AlexNet, "small", 15, 32),
        (BNInception, "imagenet", 7, 224),
        (BNInception, "small", 1, 32),
        (InceptionResNetV2, "imagenet", 75, 299),
        (InceptionResNetV2, "small", 1, 32),
        (InceptionV2, "imagenet", 75, 299),
        (InceptionV2, "small", 1, 32),
        (InceptionV3, "imagenet", 75, 299),
        (InceptionV3, "small", 1, 32),
        (InceptionV4, "imagenet", 75, 299),
        (InceptionV4, "small", 1, 32),
    ],
)
def test_knows_its_smallest_and_native_image_size(network, stem, smallest, native):
    fields = {"repeats": (1, 1, 1)} if network in (InceptionV4, InceptionResNetV2) else {}
    fields |= {"aux_heads": True} if issubclass(network, InceptionV3) else {}
    model = network(num_classes=10, stem=stem, **fields)
    assert model.native_image_size == native
    assert_smallest_image_is(model, smallest)


@pytest.mark.parametrize("name", NAMES)
def test_a_misspelled_name_suggests_it(name):
    with pytest.raises(UserError, match=rf"unknown model '{name}x'. Did you mean '{name}'\?"):
        create_model(f"{name}x", num_classes=10)


def test_unknown_networks_are_named():
    with pytest.raises(UserError, match=r"unknown model 'googelnet'. Did you mean 'googlenet'?"):
        create_model("googelnet", num_classes=10)
    with pytest.raises(UserError, match="cannot import 'no_such_module'"):
        create_model("no_such_module:Net", num_classes=10)
    with pytest.raises(UserError, match=r"unknown model in flax.linen 'Dens'"):
        create_model("flax.linen:Dens", num_classes=10)


def test_list_models_takes_a_pattern():
    assert list_models() == sorted(MODELS)
    assert list_models("google*") == ["googlenet", "googlenet_naive"]


@pytest.mark.parametrize("name", MODELS)
def test_a_network_infers_unless_told_to_train(name):
    call = type(create_model(name, num_classes=2)).__call__
    assert inspect.signature(call).parameters["train"].default is False


# (name, options, message)
STEM = ({"stem": "smal"}, "unknown stem 'smal'. Did you mean 'small'?")
NORM = ({"norm": "lrn"}, "unknown norm 'lrn'. Known: batch, none")
MISSPELLED_NORM = ({"norm": "bach"}, "unknown norm 'bach'. Did you mean 'batch'?")
INITIALIZER = ({"initializer": "he_norm"}, "unknown initializer 'he_norm'. Did you mean 'he_normal'?")
CLASSIFIER = ({"classifier": "men"}, "unknown classifier 'men'. Did you mean 'mean'?")
WRONG_OPTIONS = {
    "alexnet": [STEM, NORM, CLASSIFIER, INITIALIZER],
    "bn_inception": [STEM, NORM, INITIALIZER],
    "googlenet": [
        MISSPELLED_NORM,
        ({"kernel_5x5": 7}, "kernel_5x5=7 is not allowed: choose one of"),
        ({"kernel_3x3": 5}, "kernel_3x3=5 is not allowed: choose one of 1, 3"),
        ({"stem": "tiny"}, "unknown stem 'tiny'"),
        ({"norm": "stem", "stem": "small"}, "norm='stem' needs the two norms of stem='imagenet' or 'small_pooled'"),
        ({"stem": "tiny", "aux_heads": True, "aux_pool": "paper"}, "unknown stem 'tiny'"),
        ({"residual": "identiti"}, "Did you mean 'identity'?"),
        ({"nrom": "batch"}, "unknown option of googlenet 'nrom'. Did you mean 'norm'?"),
        INITIALIZER,
    ],
    "inception_resnet_v2": [
        STEM, NORM, INITIALIZER, ({"repeats": (1, 1, 1)}, "unknown option of inception_resnet_v2 'repeats'."),
    ],
    "inception_v2": [
        STEM, NORM, INITIALIZER,
        ({"aux_norm": "bach"}, "unknown aux_norm 'bach'. Did you mean 'batch'?"),
        ({"kernel_5x5": 7}, "kernel_5x5=7 is not allowed: choose one of 3, 5"),
        ({"factorised_7x7": True}, "unknown option of inception_v2 'factorised_7x7'. Did you mean 'factorized_7x7'?"),
    ],
    "inception_v4": [STEM, NORM, INITIALIZER, ({"repeats": (1, 1, 1)}, "unknown option of inception_v4 'repeats'.")],
    "resnet18": [
        STEM, NORM, INITIALIZER,
        ({"stmes": "small"}, "unknown option of resnet18 'stmes'. Did you mean 'stem'?"),
        ({"block": "bottleneck"}, "unknown option of resnet18 'block'. Known: dropout_rate, dtype, initializer, "),
        ({"stage_sizes": (1,)}, "unknown option of resnet18 'stage_sizes'."),
    ],
    "simple_cnn": [
        STEM, MISSPELLED_NORM, INITIALIZER,
        ({"stage_convolutions": (2, 2)}, "stage_convolutions=(2, 2) is not allowed: it must be a positive number for"),
        ({"stage_convolutions": (2, 2, 0, 2)}, "stage_convolutions=(2, 2, 0, 2) is not allowed"),
    ],
    "small_inception": [
        INITIALIZER, ({"stage_features": (64, 6)}, "stage_features=(64, 6) is not allowed: it must be multiples of 4"),
    ],
    "tiny_vgg_a": [INITIALIZER],
    "vgg11": [
        MISSPELLED_NORM, NORM, CLASSIFIER, INITIALIZER,
        ({"clasifier": "mean"}, "unknown option of vgg11 'clasifier'. Did you mean 'classifier'?"),
        ({"stage_sizes": (1,)}, "unknown option of vgg11 'stage_sizes'. Known: classifier, dropout_rate, dtype, "),
    ],
    "vgg11_bn": [({"norm": "none"}, "unknown option of vgg11_bn 'norm'")],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "message"), [(name, *row) for name, rows in WRONG_OPTIONS.items() for row in rows]
)
def test_wrong_options_are_named_and_the_depth_is_fixed(name, options, message):
    with pytest.raises(UserError) as error:
        shapes(name, size=96, **options)
    assert message in str(error.value)
    assert "num_classes" not in str(error.value)


# Of the deep networks, blocks that take all kinds of branches, and the side of their maps; the whole networks are slow.
BLOCKS = {
    "bn_inception_3c": (partial(BranchedModule, bn_inception.module(bn_inception.FIGURE_5["inception_3c"])), 4),
    "inception_resnet_v2_block_8": (partial(ResidualModule, inception_resnet_v2.BLOCK_8, 0.2), 4),
    "inception_v3_reduction_35": (partial(BranchedModule, inception_v3.reduction_35(False)), 5),
    "inception_v3_figure_7": (partial(BranchedModule, inception_v3.figure_7(True)), 5),
    "inception_v4_c": (partial(BranchedModule, inception_v4.INCEPTION_C), 4),
}
MORE_BLOCKS = {
    "googlenet_naive": (partial(InceptionModule, Inception(4, 4, 8, 4, 4, 4), reductions=False), 4),
    "inception_v3_whole_figure_6": (partial(BranchedModule, inception_v3.figure_6(128, False)), 5),
    "inception_v3_whole_figure_7": (partial(BranchedModule, inception_v3.figure_7(False)), 5),
}


@pytest.mark.parametrize("name", [*BLOCKS, *map(slow, MORE_BLOCKS)])
def test_a_block_trains_and_evaluates(name):
    block, side = (BLOCKS | MORE_BLOCKS)[name]
    assert_trains_and_evaluates(OneBlock(block), (4, side, side, 8))


@pytest.mark.parametrize("name", ["bn_inception_3c", "inception_resnet_v2_block_8", "inception_v4_c"])
def test_folding_changes_nothing_in_a_block(name):
    block, side = BLOCKS[name]
    assert_folding_changes_nothing(OneBlock(block), (2, side, side, 8))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "side"),
    # One with kernels that no batch norm follows, one with an auxiliary head. Of the others, the blocks above and, with
    # PyTorch's logits to compare, the published networks in weights/test_preprocessing.py are folded.
    [
        (InceptionResNetV2((1, 1, 2), 3, stem="small"), 8),
        (InceptionV2(3, aux_heads=True, stem="small"), 16),
    ],
)
def test_folding_changes_nothing(model, side):
    assert_folding_changes_nothing(model, (2, side, side, 3))


@pytest.mark.parametrize(
    ("model", "image_shape"),
    [
        (AlexNet(3, stem="small", norm="batch", classifier="mean"), (4, 15, 15, 3)),
        # A first stage with a block that changes no shape, a second one that halves the map; each stem once.
        (ResNet("basic", (1, 1), num_classes=3, stem="small"), (4, 16, 16, 3)),
        (ResNet("bottleneck", (2, 1), num_classes=3, stem="imagenet"), (4, 16, 16, 3)),
        (SimpleCNN(3, norm="batch", stage_features=(4, 8)), (4, 16, 16, 3)),
        (SimpleCNN(3, stem="imagenet", stage_features=(4, 8), stage_convolutions=(1, 3)), (4, 16, 16, 3)),
        slow(SmallInception(3, stage_features=(8, 12)), (4, 16, 16, 1)),
        (SmallInception(3, stage_features=(8, 12)), (4, 16, 16, 3)),
        slow(TinyVGG(Configuration("he_normal", False, (16,), 0.3), num_classes=3), (4, 16, 16, 3)),
        (TinyVGG(Configuration("he_normal", True, (16,), 0.3), num_classes=3), (4, 16, 16, 3)),
        (VGG((2, 1), num_classes=3, norm="batch", classifier="mean"), (4, 8, 8, 3)),
        slow(VGG((1,), num_classes=3), (4, 8, 8, 3)),
        slow(GoogLeNet(3, norm="stem", stem="small_pooled"), (4, 8, 8, 3)),
    ],
)
def test_trains_and_evaluates_at_a_small_size(model, image_shape):
    assert_trains_and_evaluates(model, image_shape)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    # Of networks of one class, whose tables differ, one; the others' kinds of layers and modules are above.
    [name for name in NAMES if name not in {*DEEPER, *VARIATIONS} and name[:-1] != "tiny_vgg_"] + ["tiny_vgg_b"],
)
def test_trains_and_evaluates_at_its_smallest_size(name):
    heads = {"aux_heads": True} if hasattr(create_model(name, num_classes=10), "aux_heads") else {}
    model = create_model(name, num_classes=10, **heads).clone(**SHORTENED.get(name, {}))
    assert_trains_and_evaluates(model, (4, model.min_image_size, model.min_image_size, 3))
