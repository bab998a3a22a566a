"""Networks against the papers' arithmetic and against torchvision."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp
from networks import (
    assert_gradients_equal,
    assert_smallest_image_is,
    assert_trains_and_evaluates,
    count,
    module_shapes,
    peer_variables,
    quick_jit,
    random_variables,
    randomize,
    shapes,
    sizes,
)
from peers import import_torchvision

from inception_jax.errors import UserError
from inception_jax.models import MODELS, Outputs, create_model, list_models
from inception_jax.models.googlenet import STEMS, TABLE_1, AuxHead, Inception
from inception_jax.models.layers import ConvUnit, apply_siblings


@pytest.mark.parametrize(
    ("parameters", "options"),
    [
        (6_998_552, {"norm": "lrn"}),
        (6_998_552, {"norm": "none"}),
        (13_378_280, {"norm": "lrn", "aux_heads": True}),
        (7_005_832, {"norm": "batch"}),
        (6_624_904, {"norm": "batch", "kernel_5x5": 3}),
        (13_004_888, {"norm": "batch", "kernel_5x5": 3, "aux_heads": True}),
    ],
)
def test_googlenet_has_exactly_the_published_parameters(parameters, options):
    outputs, variables = shapes("googlenet", **options)
    assert count(variables) == parameters
    assert outputs.logits.shape == (2, 1000)
    assert set(outputs.aux) == ({"aux1", "aux2"} if options.get("aux_heads") else set())


@pytest.mark.parametrize(("aux_heads", "parameters"), [(True, 5_269_326), (False, 2_754_106)])
def test_a_tutorials_1x1_kernels_and_unpadded_pools_have_its_parameters(aux_heads, parameters):
    options = {"kernel_3x3": 1, "kernel_5x5": 1, "pool_padding": "valid", "norm": "none", "aux_pool": "paper"}
    _, variables = shapes("googlenet", num_classes=10, aux_heads=aux_heads, **options)
    assert count(variables) == parameters


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
    from inception_jax.models.googlenet import InceptionModule

    row = Inception(2, 2, 2, 2, 2, 2)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 5, 5, 8)), jnp.float32)
    plain, residual = (InceptionModule(row, residual=residual) for residual in ("none", "identity"))
    variables = plain.init(jax.random.key(0), x, False)
    difference = residual.apply(variables, x, False) - plain.apply(variables, x, False)
    np.testing.assert_allclose(difference, x, atol=1e-6)


@pytest.mark.parametrize(("stem", "map_size"), [("imagenet", 4), ("small", 32), ("small_pooled", 8)])
def test_stems_divide_the_map_as_they_say(stem, map_size):
    assert stem in STEMS
    model = create_model("googlenet", num_classes=10, stem=stem)
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


def test_a_simple_cnn_trains_and_evaluates():
    model = create_model("simple_cnn", num_classes=3, norm="batch", stage_features=(4, 8))
    assert_trains_and_evaluates(model, (4, 16, 16, 3))


def test_simple_cnn_has_the_parameters_of_its_docstring():
    _, variables = shapes("simple_cnn", size=32, num_classes=10)
    assert count(variables) == 1_174_826


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "bach"}, "unknown norm 'bach'. Did you mean 'batch'?"),
        ({"kernel_5x5": 7}, "kernel_5x5=7 is not allowed: choose one of"),
        ({"kernel_3x3": 5}, "kernel_3x3=5 is not allowed: choose one of 1, 3"),
        ({"stem": "tiny"}, "unknown stem 'tiny'"),
        ({"residual": "identiti"}, "Did you mean 'identity'?"),
        ({"nrom": "batch"}, "unknown option of googlenet 'nrom'. Did you mean 'norm'?"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError) as error:
        shapes("googlenet", size=32, **options)
    assert message in str(error.value)


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


@pytest.mark.parametrize("aux_heads", [False, True])
def test_logits_equal_torchvisions(aux_heads):
    torchvision = import_torchvision()
    import torch

    peer = torchvision.models.googlenet(aux_logits=aux_heads, init_weights=False, transform_input=False)
    randomize(peer)
    model = create_model("googlenet", num_classes=1000, kernel_5x5=3, aux_heads=aux_heads)
    variables = peer_variables(model, peer, "torchvision")

    images = np.random.default_rng(0).standard_normal((2, 224, 224, 3)).astype(np.float32)
    peer.eval()
    peer.training = aux_heads  # the flag of the outermost module alone: it then returns its heads' logits, too
    with torch.no_grad():
        expected = peer(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    outputs = quick_jit(lambda v, x: model.apply(v, x, train=False))(variables, images)

    def assert_close(actual, expected):
        np.testing.assert_allclose(actual, expected.numpy(), atol=1e-4 * float(expected.abs().max()))

    if aux_heads:
        assert_close(outputs.logits, expected.logits)
        assert_close(outputs.aux["aux1"], expected.aux_logits1)
        assert_close(outputs.aux["aux2"], expected.aux_logits2)
    else:
        assert_close(outputs.logits, expected)
    assert isinstance(outputs, Outputs)


@pytest.mark.slow
def test_gradients_equal_torchvisions():
    torchvision = import_torchvision()
    peer = torchvision.models.googlenet(num_classes=10, aux_logits=True, init_weights=False, transform_input=False)
    randomize(peer)
    model = create_model("googlenet", num_classes=10, kernel_5x5=3, aux_heads=True)
    convert = partial(peer_variables, model, format="torchvision")
    assert_gradients_equal(model, convert, peer, (2, 67, 64, 3))


def test_siblings_convolved_together_compute_what_each_computes_alone():
    """In training and at inference, in value, statistics and gradient; biases are each unit's own."""

    class Siblings(nn.Module):
        together: bool
        norm: str

        @nn.compact
        def __call__(self, x, *, train):
            units = [ConvUnit(width, norm=self.norm, name=f"unit{width}") for width in (3, 5)]
            ys = apply_siblings(units, x, train) if self.together else [unit(x, train) for unit in units]
            return jnp.concatenate(ys, -1)

    x = np.random.default_rng(0).standard_normal((4, 3, 3, 6), np.float32)
    for norm in ("batch", "none"):
        together, alone = Siblings(True, norm), Siblings(False, norm)
        shape = jax.eval_shape(lambda model=together: model.init(jax.random.key(0), x, train=False))
        assert shape == jax.eval_shape(lambda model=alone: model.init(jax.random.key(0), x, train=False))
        variables = random_variables(shape)
        for train in (True, False):
            options = {"train": train, "mutable": ["batch_stats"] if train else False}

            def loss(params, x, model, variables=variables, options=options):
                y = model.apply({**variables, "params": params}, x, **options)
                return jnp.square(y[0] if options["train"] else y).sum(), y

            got, wanted = (
                jax.value_and_grad(loss, (0, 1), has_aux=True)(variables["params"], x, model)
                for model in (together, alone)
            )
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), got, wanted)
