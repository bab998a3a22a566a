"""GoogLeNet against the paper's Table 1, and its options."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp
from networks import assert_smallest_image_is, count, module_shapes, quick_jit, random_variables, shapes, sizes

from inception_jax.errors import UserError
from inception_jax.models import create_model
from inception_jax.models.googlenet import TABLE_1, AuxHead, InceptionModule, Table1Row


def test_table_1_reads_like_the_paper():
    """The outputs of Table 1's column "output size", and the paper's own count of weights of a module."""
    outputs = {
        name: row.conv_1x1 + row.conv_3x3 + row.conv_5x5 + row.pool_proj
        for name, row in TABLE_1.items()
        if isinstance(row, Table1Row)
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
    modules = {name for name, row in TABLE_1.items() if isinstance(row, Table1Row)}
    assert modules - with_projection == {"inception_4b", "inception_4c", "inception_5a"}


def test_identity_residual_adds_the_input():
    row = Table1Row(2, 2, 2, 2, 2, 2)
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
