"""Residual networks against the paper's table and against torchvision."""

from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from networks import (
    assert_gradients_equal,
    assert_logits_equal,
    assert_trains_and_evaluates,
    count,
    module_shapes,
    peer_variables,
    random_variables,
    randomize,
    shapes,
)
from peers import import_torchvision

from inception_jax.errors import UserError
from inception_jax.models import ResNet, create_model
from inception_jax.models.resnet import STEMS, TABLE_1, ResidualBlock

DEPTHS = {18: 11_689_512, 34: 21_797_672, 50: 25_557_032, 101: 44_549_160, 152: 60_192_808}


@pytest.mark.parametrize("depth", DEPTHS)
def test_resnets_have_exactly_the_published_parameters_and_layers(depth):
    outputs, variables = shapes(f"resnet{depth}")
    assert count(variables) == DEPTHS[depth]
    assert outputs.logits.shape == (2, 1000)
    # The name counts the layers with weights, projections left out.
    kernels = [path for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]) if leaf.ndim > 1]
    assert sum("projection" not in jax.tree_util.keystr(path) for path in kernels) == depth


def test_submodules_have_the_names_of_the_docstring():
    _, variables = shapes("resnet50", size=32)
    params = variables["params"]
    blocks = {f"stage{stage}_block{i + 1}" for stage, size in enumerate(TABLE_1[50][1], start=1) for i in range(size)}
    assert params.keys() == {"conv1", "fc"} | blocks
    convolutions = {"conv1", "conv2", "conv3"}
    assert params["stage2_block1"].keys() == convolutions | {"projection"}
    assert params["stage2_block2"].keys() == convolutions


@pytest.mark.parametrize(("depth", "projections"), [(18, {2, 3, 4}), (50, {1, 2, 3, 4})])
def test_projections_stand_where_shapes_differ_alone(depth, projections):
    _, variables = shapes(f"resnet{depth}", size=32)
    having = {name for name, module in variables["params"].items() if "projection" in module}
    assert having == {f"stage{stage}_block1" for stage in projections}


@pytest.mark.parametrize(
    ("stem", "size", "sides"), [("imagenet", 224, (56, 28, 14, 7)), ("imagenet", 33, (9, 5, 3, 2)),
                                ("small", 32, (32, 16, 8, 4)), ("small", 1, (1, 1, 1, 1))],
)  # fmt: skip
def test_maps_have_the_sizes_of_table_1(stem, size, sides):
    assert stem in STEMS
    model = create_model("resnet18", num_classes=10, stem=stem)
    _, state = module_shapes(model, (2, size, size, 3), capture_intermediates=lambda m, _: isinstance(m, ResidualBlock))
    maps = [state["intermediates"][f"stage{stage}_block2"]["__call__"][0].shape for stage in (1, 2, 3, 4)]
    assert maps == [(2, side, side, features) for side, features in zip(sides, (64, 128, 256, 512), strict=True)]


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_relu_follows_the_sum_with_the_input(block):
    """With the last batch norm at zero, a block is the ReLU of its input."""
    features = 4 if block == "basic" else 1
    module = ResidualBlock(block, features)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 5, 4)), jnp.float32)
    variables = module.init(jax.random.key(0), x, False)
    last = "conv2" if block == "basic" else "conv3"
    scale = variables["params"][last]["norm"]["scale"]
    variables["params"][last]["norm"]["scale"] = jnp.zeros_like(scale)
    np.testing.assert_array_equal(module.apply(variables, x, False), np.maximum(x, 0))


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_blocks_may_start_as_their_shortcuts(block):
    """torchvision's zero_init_residual: the scales of every block's last batch norm, and no others."""
    model = ResNet(block, (2, 1), num_classes=3, stem="small", zero_init_residual=True)
    variables = jax.jit(partial(model.init, train=False))(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    zero = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        if path[-1].key == "scale" and not leaf.any()
    }
    last = "conv2" if block == "basic" else "conv3"
    assert zero == {f"{block}/{last}/norm/scale" for block in variables["params"] if block.startswith("stage")}


# A first stage with a block that changes no shape, a second one that halves the map; with each stem once.
@pytest.mark.parametrize(("block", "stem"), [("basic", "small"), ("bottleneck", "imagenet")])
def test_trains_and_evaluates(block, stem):
    assert_trains_and_evaluates(ResNet(block, (2, 1), num_classes=3, stem=stem), (4, 16, 16, 3))


def test_dropout_stands_before_the_classifier():
    """With all that enters it dropped, only its bias is left."""
    images = np.ones((2, 8, 8, 3), np.float32)
    model = ResNet("basic", (1,), num_classes=3, dropout_rate=1.0)
    variables = random_variables(module_shapes(model, images.shape)[1])
    rngs = {"dropout": jax.random.key(0)}
    outputs, _ = model.apply(variables, images, train=True, rngs=rngs, mutable=["batch_stats"])
    np.testing.assert_array_equal(outputs.logits, [variables["params"]["fc"]["bias"]] * 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "smal"}, "unknown stem 'smal'. Did you mean 'small'?"),
        ({"initializer": "he_norm"}, "unknown initializer 'he_norm'. Did you mean 'he_normal'?"),
        ({"stmes": "small"}, "unknown option of resnet18 'stmes'. Did you mean 'stem'?"),
        ({"block": "bottleneck"}, "unknown option of resnet18 'block'. Known: dropout_rate, dtype, initializer, "),
        ({"stage_sizes": (1,)}, "unknown option of resnet18 'stage_sizes'."),
    ],
)
def test_wrong_options_are_named_and_the_depth_is_fixed(options, message):
    with pytest.raises(UserError) as error:
        shapes("resnet18", size=32, **options)
    assert message in str(error.value)
    assert "num_classes" not in str(error.value)


def test_unknown_blocks_are_named():
    with pytest.raises(UserError, match=r"unknown block 'bottlneck'. Did you mean 'bottleneck'?"):
        module_shapes(ResNet("bottlneck", (1,), num_classes=3), (1, 8, 8, 3))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_logits_equal_torchvisions(name):
    peer = import_torchvision().models.get_model(name, num_classes=100)
    randomize(peer)
    # Odd maps and even ones: SAME would differ from PyTorch's padding on even ones alone.
    model = create_model(name, num_classes=100)
    assert_logits_equal(model, peer_variables(model, peer, "torchvision"), peer, (2, 67, 64, 3))


@pytest.mark.parametrize("name", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_gradients_equal_torchvisions(name):
    peer = import_torchvision().models.get_model(name, num_classes=10)
    randomize(peer)
    model = create_model(name, num_classes=10)
    convert = partial(peer_variables, model, format="torchvision")
    assert_gradients_equal(model, convert, peer, (2, 35, 32, 3))
