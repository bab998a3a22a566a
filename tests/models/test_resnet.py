"""Residual networks against the paper's Table 1, and their blocks."""

from functools import partial

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from networks import module_shapes, quick_jit, random_variables, shapes

from inception_jax.errors import UserError
from inception_jax.models import ResNet, create_model
from inception_jax.models.resnet import TABLE_1, ResidualBlock


@pytest.mark.parametrize("depth", TABLE_1)
def test_the_name_counts_the_layers_with_weights_but_for_projections(depth):
    _, variables = shapes(f"resnet{depth}", size=32)
    kernels = [path for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]) if leaf.ndim > 1]
    assert sum("projection" not in jax.tree_util.keystr(path) for path in kernels) == depth


def test_blocks_have_the_names_of_the_docstring():
    _, variables = shapes("resnet50", size=32)
    params = variables["params"]
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
    model = create_model("resnet18", num_classes=10, stem=stem)
    assert stem in model.image_sizes
    _, state = module_shapes(model, (2, size, size, 3), capture_intermediates=lambda m, _: isinstance(m, ResidualBlock))
    maps = [state["intermediates"][f"stage{stage}_block2"]["__call__"][0].shape for stage in (1, 2, 3, 4)]
    assert maps == [(2, side, side, features) for side, features in zip(sides, (64, 128, 256, 512), strict=True)]


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_relu_follows_the_sum_with_the_input(block):
    """With the last batch norm at zero, a block is the ReLU of its input."""
    features = 4 if block == "basic" else 1
    module = ResidualBlock(block, features)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 5, 4)), jnp.float32)
    variables = quick_jit(module.init, static_argnums=2)(jax.random.key(0), x, False)
    last = "conv2" if block == "basic" else "conv3"
    scale = variables["params"][last]["norm"]["scale"]
    variables["params"][last]["norm"]["scale"] = jnp.zeros_like(scale)
    apply = quick_jit(module.apply, static_argnums=2)
    np.testing.assert_array_equal(apply(variables, x, False), np.maximum(x, 0))


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_blocks_may_start_as_their_shortcuts(block):
    """torchvision's zero_init_residual: the scales of every block's last batch norm, and no others."""
    model = ResNet(block, (2, 1), num_classes=3, stem="small", zero_init_residual=True)

    @quick_jit
    def initial_scales(key):
        params = model.init(key, jnp.zeros((1, 8, 8, 3)), train=False)["params"]
        leaves = jax.tree_util.tree_leaves_with_path(params)
        return {
            jax.tree_util.keystr(path, simple=True, separator="/"): leaf
            for path, leaf in leaves
            if path[-1].key == "scale"
        }

    scales = initial_scales(jax.random.key(0))
    zero = {name for name, scale in scales.items() if not scale.any()}
    last = "conv2" if block == "basic" else "conv3"
    blocks = {name.partition("/")[0] for name in scales if name.startswith("stage")}
    assert len(blocks) == 3
    assert zero == {f"{block}/{last}/norm/scale" for block in blocks}


def test_dropout_stands_before_the_classifier():
    """With all that enters it dropped, only its bias is left."""
    images = np.ones((2, 8, 8, 3), np.float32)
    model = ResNet("basic", (1,), num_classes=3, dropout_rate=1.0)
    variables = random_variables(module_shapes(model, images.shape)[1])
    rngs = {"dropout": jax.random.key(0)}
    apply = partial(model.apply, train=True, rngs=rngs, mutable=["batch_stats"])
    outputs, _ = quick_jit(apply)(variables, images)
    np.testing.assert_array_equal(outputs.logits, [variables["params"]["fc"]["bias"]] * 2)


def test_unknown_blocks_are_named():
    with pytest.raises(UserError, match=r"unknown block 'bottlneck'. Did you mean 'bottleneck'?"):
        module_shapes(ResNet("bottlneck", (1,), num_classes=3), (1, 8, 8, 3))
