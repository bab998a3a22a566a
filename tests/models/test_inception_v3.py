"""Inception v2 and v3 against the paper's tables and against torchvision."""

from functools import partial

import jax
import numpy as np
import pytest
from networks import (
    assert_folding_changes_nothing,
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
from inception_jax.models import InceptionV2, InceptionV3, create_model
from inception_jax.models.branches import BranchedModule
from inception_jax.models.inception_v3 import AuxHead, figure_6, figure_7, reduction_35


@pytest.mark.parametrize(
    ("name", "options", "parameters"),
    [
        ("inception_v3", {}, 23_834_568),
        ("inception_v3", {"aux_heads": True}, 27_161_264),
        # Three modules with 3x3 in place of 5x5 kernels; a 7x7 convolution in place of three; a bias for batch norm.
        ("inception_v2", {}, 23_834_568 - 3 * 48 * 64 * 16 - (28_512 + 256 - 9_408 - 128)),
        ("inception_v2", {"aux_heads": True}, 27_161_264 - 3 * 48 * 64 * 16 - (28_512 + 256 - 9_408 - 128) - 768),
        ("inception_v2", {"kernel_5x5": 5, "factorized_7x7": True, "aux_norm": "batch", "aux_heads": True}, 27_161_264),
    ],
)
def test_have_exactly_the_published_parameters(name, options, parameters):
    outputs, variables = shapes(name, size=299, **options)
    assert count(variables) == parameters
    assert outputs.logits.shape == (2, 1000)
    assert {name: logits.shape for name, logits in outputs.aux.items()} == (
        {"aux": (2, 1000)} if "aux_heads" in options else {}
    )
    assert f"{parameters:,}" in type(create_model(name, num_classes=1000, **options)).__doc__ + InceptionV3.__doc__


@pytest.mark.parametrize("model", [InceptionV3(1000), InceptionV2(1000), InceptionV3(1000, factorized_kernels=False)])
def test_maps_have_the_sizes_of_table_1(model):
    """On every rung, and with whole kernels."""
    found = sizes(model, 299)
    if model.factorized_7x7:
        assert (found.pop("conv_1a"), found.pop("conv_2a")) == ((149, 149, 32), (147, 147, 32))
        assert found.pop("conv_2b") == (147, 147, 64)
    else:
        assert found.pop("conv_1a") == (147, 147, 64)
    assert found == {
        "pool_3a": (73, 73, 64), "conv_3b": (73, 73, 80), "conv_4a": (71, 71, 192), "pool_5a": (35, 35, 192),
        "mixed_5b": (35, 35, 256), "mixed_5c": (35, 35, 288), "mixed_5d": (35, 35, 288), "mixed_6a": (17, 17, 768),
        "mixed_6b": (17, 17, 768), "mixed_6c": (17, 17, 768), "mixed_6d": (17, 17, 768), "mixed_6e": (17, 17, 768),
        "mixed_7a": (8, 8, 1280), "mixed_7b": (8, 8, 2048), "mixed_7c": (8, 8, 2048), "avg_pool": (2048,),
        "fc": (1000,),
    }  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"factorized_7x7": False}, {"factorized_kernels": False}])
def test_the_small_stem_keeps_the_map(options):
    found = sizes(InceptionV3(10, stem="small", **options), 32)
    assert (found["conv_4a"], found["mixed_5d"]) == ((32, 32, 192), (32, 32, 288))
    assert (found["mixed_6e"], found["mixed_7c"]) == ((16, 16, 768), (8, 8, 2048))


def test_factorizing_replaces_each_whole_kernel():
    params = {
        factorized: shapes("inception_v3", size=75, factorized_kernels=factorized)[1]["params"]
        for factorized in (False, True)
    }

    def kernels(module, factorized):
        return {name: unit["conv"]["kernel"].shape for name, unit in params[factorized][module].items()}

    for module, whole, factors in (
        ("mixed_5b", {"double_5x5": (5, 5, 64, 96)}, {"double_3x3_1": (3, 3, 64, 96), "double_3x3_2": (3, 3, 96, 96)}),
        ("mixed_6a", {"double_5x5": (5, 5, 64, 96)}, {"double_3x3_1": (3, 3, 64, 96), "double_3x3_2": (3, 3, 96, 96)}),
        (
            "mixed_6c",
            {"conv_7x7": (7, 7, 160, 192), "double_7x7_1": (7, 7, 160, 160), "double_7x7_2": (7, 7, 160, 192)},
            {
                "conv_1x7": (1, 7, 160, 160), "conv_7x1": (7, 1, 160, 192), "double_7x1_1": (7, 1, 160, 160),
                "double_1x7_1": (1, 7, 160, 160), "double_7x1_2": (7, 1, 160, 160), "double_1x7_2": (1, 7, 160, 192),
            },
        ),
        (
            "mixed_7a",
            {"double_7x7": (7, 7, 192, 192)},
            {"double_1x7": (1, 7, 192, 192), "double_7x1": (7, 1, 192, 192)},
        ),
        (
            "mixed_7b",
            {"conv_3x3": (3, 3, 384, 768), "double_3x3_2": (3, 3, 384, 768)},
            {
                "conv_1x3": (1, 3, 384, 384), "conv_3x1": (3, 1, 384, 384),
                "double_1x3": (1, 3, 384, 384), "double_3x1": (3, 1, 384, 384),
            },
        ),
    ):  # fmt: skip
        found, in_factors = kernels(module, False), kernels(module, True)
        assert dict(found.items() - in_factors.items()) == whole
        assert dict(in_factors.items() - found.items()) == factors


@pytest.mark.parametrize(("stem", "smallest", "native"), [("imagenet", 75, 299), ("small", 1, 32)])
@pytest.mark.parametrize("network", [InceptionV3, InceptionV2])
def test_know_their_smallest_and_native_image_size(network, stem, smallest, native):
    model = network(10, stem=stem, aux_heads=True)
    assert model.native_image_size == native
    assert_smallest_image_is(model, smallest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem": "smal"}, "unknown stem 'smal'. Did you mean 'small'?"),
        ({"norm": "lrn"}, "unknown norm 'lrn'. Known: batch, none"),
        ({"aux_norm": "bach"}, "unknown aux_norm 'bach'. Did you mean 'batch'?"),
        ({"kernel_5x5": 7}, "kernel_5x5=7 is not allowed: choose one of 3, 5"),
        ({"initializer": "he_norm"}, "unknown initializer 'he_norm'. Did you mean 'he_normal'?"),
        ({"factorised_7x7": True}, "unknown option of inception_v2 'factorised_7x7'. Did you mean 'factorized_7x7'?"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError) as error:
        shapes("inception_v2", size=75, **options)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("norm", "aux_norm", "parts"),
    [("batch", "batch", {"conv", "norm"}), ("batch", "none", {"conv"}), ("none", "batch", {"conv"})],
)
def test_the_aux_head_has_batch_norm_in_its_fully_connected_layer_or_not(norm, aux_norm, parts):
    aux = module_shapes(AuxHead(3, norm, norm_fc=aux_norm), (2, 4, 4, 8))[1]["params"]
    assert aux["conv1"].keys() == ({"conv"} if norm == "none" else {"conv", "norm"})
    assert aux["conv2"].keys() == parts


@pytest.mark.parametrize(("aux_norm", "side"), [("batch", 1), ("none", 16), ("batch", 18)])
def test_every_parameter_of_the_aux_head_has_a_gradient_on_maps_of_any_size(aux_norm, side):
    head = AuxHead(3, norm_fc=aux_norm)
    maps = np.random.default_rng(0).standard_normal((4, side, side, 6), np.float32)
    variables = random_variables(jax.eval_shape(lambda: head.init(jax.random.key(0), maps, False)))

    def loss(params):
        logits, _ = head.apply({**variables, "params": params}, maps, True, mutable=["batch_stats"])
        return (logits**2).sum()

    gradients = quick_jit(jax.grad(loss))(variables["params"])
    assert min(np.abs(gradient).max() for gradient in jax.tree.leaves(gradients)) > 0
    assert all(np.abs(gradients["conv2"]["conv"]["kernel"]).max((2, 3)).ravel() > 0)


def test_the_papers_initialiser_is_the_released_one():
    """Its deviations, but for the truncation at two of them: by 0.88."""
    head = AuxHead(10, initializer="paper")
    params = jax.jit(lambda: head.init(jax.random.key(0), np.ones((1, 17, 17, 64), np.float32), False))()["params"]
    deviations = [np.std(params[name]["conv"]["kernel"]) for name in ("conv1", "conv2")] + [
        params["fc"]["kernel"].std()
    ]
    np.testing.assert_allclose(deviations, 0.88 * np.array([0.1, 0.01, 0.001]), rtol=0.03)


@pytest.mark.parametrize("branches", [reduction_35(False), figure_6(16, False), figure_7(True)])
def test_a_module_trains_and_evaluates(branches):
    assert_trains_and_evaluates(BranchedModule(branches), (4, 5, 5, 8))


@pytest.mark.slow
def test_trains_and_evaluates_without_factorized_kernels():
    model = InceptionV2(3, factorized_kernels=False, aux_heads=True, aux_norm="none", stem="small")
    assert_trains_and_evaluates(model, (4, 16, 16, 3))


@pytest.mark.parametrize("aux_norm", ["batch", "none"])
def test_folding_changes_nothing_in_the_aux_head(aux_norm):
    assert_folding_changes_nothing(AuxHead(3, norm_fc=aux_norm), (2, 4, 4, 8))


@pytest.mark.slow
def test_folding_changes_nothing():
    assert_folding_changes_nothing(InceptionV2(3, aux_heads=True, stem="small"), (2, 16, 16, 3))


def torchvisions(num_classes=1000, aux_logits=True):
    peer = import_torchvision().models.inception_v3(
        num_classes=num_classes, aux_logits=aux_logits, init_weights=False, transform_input=False
    )
    randomize(peer)
    return peer


def test_logits_equal_torchvisions():
    """The auxiliary head's, too: at 299 pixels, since torchvision's needs 17x17 maps."""
    import_torchvision()
    import torch

    peer = torchvisions().eval()
    peer.training = True  # the flag of the outermost module alone: it then returns its head's logits, too
    model = create_model("inception_v3", num_classes=1000, aux_heads=True)
    variables = peer_variables(model, peer, "torchvision")
    images = np.random.default_rng(0).standard_normal((1, 299, 299, 3), np.float32)
    with torch.no_grad():
        expected = peer(torch.from_numpy(images.transpose(0, 3, 1, 2)))
    outputs = quick_jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    for got, wanted in ((outputs.logits, expected.logits), (outputs.aux["aux"], expected.aux_logits)):
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.slow
def test_gradients_equal_torchvisions():
    model = InceptionV3(10, aux_heads=True)
    convert = partial(peer_variables, model, format="torchvision")
    assert_gradients_equal(model, convert, torchvisions(10, aux_logits=True), (1, 299, 299, 3))
