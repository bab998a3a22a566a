"""GoogLeNet against the paper's Table 1, and its options."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from networks import assert_smallest_image_is, count, module_shapes, quick_jit, random_variables, shapes, sizes

from inception_jax.errors import UserError
from inception_jax.inspection import layer_table
from inception_jax.models import create_model
from inception_jax.models.googlenet import TABLE_1, AuxHead, Inception, InceptionModule
from inception_jax.steps import initialization


def test_table_1_reads_like_the_paper():
    """The outputs of Table 1's column "output size", and the paper's own count of weights of a module."""
    outputs = {
        name: row.conv_1x1 + row.conv_3x3 + row.conv_5x5 + row.pool_proj
        for name, row in TABLE_1.items()
        if isinstance(row, Inception)
    }
    assert list(outputs.values()) == [256, 480, 512, 512, 512, 528, 832, 832, 1024]
    row = TABLE_1["inception_3a"]
    weights = 192 * (row.conv_1x1 + row.conv_3x3_reduce + row.conv_5x5_reduce + row.pool_proj)
    weights += 9 * row.conv_3x3_reduce * row.conv_3x3 + 25 * row.conv_5x5_reduce * row.conv_5x5
    _, variables = shapes("googlenet", norm="batch")
    kernels = [
        leaf.size
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]["inception_3a"])
        if path[-1].key == "kernel"
    ]
    assert sum(kernels) == weights == 163_328


def test_identity_residuals_stand_where_shapes_agree_and_projections_elsewhere():
    _, plain = shapes("googlenet")
    _, identity = shapes("googlenet", residual="identity")
    _, projected = shapes("googlenet", residual="projection")
    assert count(identity) == count(plain)
    with_projection = {name for name, module in projected["params"].items() if "projection" in module}
    modules = {name for name, row in TABLE_1.items() if isinstance(row, Inception)}
    assert modules - with_projection == {"inception_4b", "inception_4c", "inception_5a"}


def test_identity_residual_adds_the_input():
    row = Inception(2, 2, 2, 2, 2, 2)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 5, 8)), jnp.float32)
    plain, residual = (InceptionModule(row, residual=residual) for residual in ("none", "identity"))
    variables = random_variables(jax.eval_shape(lambda: plain.init(jax.random.key(0), x, False)))
    results = [quick_jit(module.apply, static_argnums=2)(variables, x, False) for module in (plain, residual)]
    difference = results[1] - results[0]
    np.testing.assert_allclose(difference, x, atol=1e-6)


@pytest.mark.parametrize(("stem", "map_size"), [("imagenet", 4), ("small", 32), ("small_pooled", 8)])
def test_stems_divide_the_map_as_they_say(stem, map_size):
    model = create_model("googlenet", num_classes=10, stem=stem)
    assert stem in model.image_sizes
    images = jnp.zeros((2, 32, 32, 3))
    _, state = jax.eval_shape(
        lambda: model.init_with_output(
            jax.random.key(0), images, train=False, capture_intermediates=lambda m, _: m.name == "inception_3a"
        )
    )
    (first,) = state["intermediates"]["inception_3a"]["__call__"]
    assert first.shape == (2, map_size, map_size, 256)


@pytest.mark.parametrize("size", [1, 8, 28, 33, 64])
def test_googlenet_takes_images_of_any_size(size):
    outputs, _ = shapes("googlenet", size=size, channels=1, num_classes=10, aux_heads=True)
    assert outputs.logits.shape == outputs.aux["aux1"].shape == (2, 10)


def test_the_papers_aux_pool_is_4x4_on_14x14_maps_and_refuses_small_ones():
    _, adaptive = shapes("googlenet", norm="lrn", aux_heads=True)
    _, paper = shapes("googlenet", norm="lrn", aux_heads=True, aux_pool="paper")
    assert count(paper) == count(adaptive)
    message = r"images of 32x32 pixels are too small .* at least 79x79, a stem .* less, or aux_pool='adaptive'"
    with pytest.raises(UserError, match=message):
        shapes("googlenet", size=32, aux_heads=True, aux_pool="paper")
    with pytest.raises(UserError, match="aux_pool='paper' averages 5x5 windows, but the map is 2x2"):
        module_shapes(AuxHead(3, pool="paper"), (1, 2, 2, 8))


@pytest.mark.parametrize(
    ("stem", "pool_padding", "smallest"),
    [("imagenet", "ceil", 79), ("imagenet", "valid", 93), ("small", "ceil", 10), ("small", "valid", 11),
     ("small_pooled", "ceil", 40), ("small_pooled", "valid", 47)],
)  # fmt: skip
def test_the_papers_aux_pool_has_a_smallest_image(stem, pool_padding, smallest):
    options = {"aux_heads": True, "aux_pool": "paper", "stem": stem, "pool_padding": pool_padding}
    model = create_model("googlenet", num_classes=3, **options)
    assert_smallest_image_is(model, smallest)
    assert min(sizes(model, smallest)["inception_4a"][:2]) == 5
    assert model.clone(aux_pool="adaptive").min_image_size == model.clone(aux_heads=False).min_image_size == 1


def test_batch_norm_in_the_stem_stands_where_the_papers_local_response_norms_do():
    """The slides' 512 non-trainable parameters at 256 pixels, and nothing else that is not in the paper's network."""
    _, paper = shapes("googlenet", size=256, norm="lrn", num_classes=21, aux_heads=True)
    _, found = shapes("googlenet", size=256, norm="stem", num_classes=21, aux_heads=True)
    statistics = {name: {leaf: x.shape for leaf, x in of.items()} for name, of in found["batch_stats"].items()}
    assert statistics == {"norm1": {"mean": (64,), "var": (64,)}, "norm2": {"mean": (192,), "var": (192,)}}
    assert sum(leaf.size for leaf in jax.tree.leaves(found["batch_stats"])) == 512
    kept = {name: of for name, of in found["params"].items() if name not in ("norm1", "norm2")}
    assert jax.tree.map(jnp.shape, kept) == jax.tree.map(jnp.shape, paper["params"])
    table = layer_table(create_model("googlenet", num_classes=21, norm="stem"), 256)
    assert [(row.name, row.output) for row in table.rows[:7]] == [
        ("conv1", (128, 128, 64)), ("pool_1", (64, 64, 64)), ("norm1", (64, 64, 64)), ("conv2", (64, 64, 64)),
        ("conv3", (64, 64, 192)), ("norm2", (64, 64, 192)), ("pool_2", (32, 32, 192)),
    ]  # fmt: skip


def test_initial_values_may_be_kerass():
    """Glorot's uniform kernels, within sqrt(6 / (fan in + fan out)), and biases of 0, in all layers."""
    model = create_model("googlenet", num_classes=10, norm="none", aux_heads=True, initializer="glorot_uniform")
    key = jax.random.key(0)
    begin = jax.jit(lambda key: model.init(key, jnp.zeros((1, 32, 32, 3)), train=False))
    for path, leaf in jax.tree_util.tree_leaves_with_path(initialization.evaluate(begin.trace(key), key)["params"]):
        if path[-1].key == "bias":
            np.testing.assert_array_equal(leaf, 0)
            continue
        *window, inputs, outputs = leaf.shape
        bound = np.sqrt(6 / (np.prod(window) * (inputs + outputs)))
        assert 0.99 * bound < np.abs(leaf).max() <= bound * (1 + 1e-6)
        assert abs(leaf.mean()) < 0.05 * bound
