"""Inception v2 and v3 against the paper's Table 1; factorized kernels; the auxiliary head."""

from functools import partial

import jax
import numpy as np
import pytest
from flax import linen as nn
from networks import assert_folding_changes_nothing, module_shapes, quick_jit, random_variables, shapes, sizes

from inception_jax.models import InceptionV2, InceptionV3
from inception_jax.models.inception_v3 import aux_head
from inception_jax.models.layers import make_units


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


class Head(InceptionV3):
    """The auxiliary head alone, with the network's fields."""

    stem: str = "small"

    @nn.compact
    def __call__(self, x, *, train):
        return aux_head(self, *make_units(self, x, paper="truncated_normal_0.1"))(x, train)


@pytest.mark.parametrize(
    ("norm", "aux_norm", "parts"),
    [("batch", "batch", {"conv", "norm"}), ("batch", "none", {"conv"}), ("none", "batch", {"conv"})],
)
def test_the_aux_head_has_batch_norm_in_its_fully_connected_layer_or_not(norm, aux_norm, parts):
    aux = module_shapes(Head(3, norm=norm, aux_norm=aux_norm), (2, 4, 4, 8))[1]["params"]["aux"]
    assert aux["conv1"].keys() == ({"conv"} if norm == "none" else {"conv", "norm"})
    assert aux["conv2"].keys() == parts


@pytest.mark.parametrize(("aux_norm", "side"), [("batch", 1), ("none", 16), ("batch", 18)])
def test_every_parameter_of_the_aux_head_has_a_gradient_on_maps_of_any_size(aux_norm, side):
    head = Head(3, aux_norm=aux_norm)
    maps = np.random.default_rng(0).standard_normal((4, side, side, 6), np.float32)
    variables = random_variables(module_shapes(head, maps.shape)[1])

    def loss(params):
        logits, _ = head.apply({**variables, "params": params}, maps, train=True, mutable=["batch_stats"])
        return (logits**2).sum()

    gradients = quick_jit(jax.grad(loss))(variables["params"])
    assert min(np.abs(gradient).max() for gradient in jax.tree.leaves(gradients)) > 0
    assert all(np.abs(gradients["aux"]["conv2"]["conv"]["kernel"]).max((2, 3)).ravel() > 0)


def test_the_papers_initializer_is_the_released_one():
    """Its deviations, but for the truncation at two of them: by 0.88."""
    head = Head(10, initializer="paper")
    init = jax.jit(partial(head.init, train=False))
    params = init(jax.random.key(0), np.ones((1, 17, 17, 64), np.float32))["params"]["aux"]
    deviations = [np.std(params[name]["conv"]["kernel"]) for name in ("conv1", "conv2")] + [
        params["fc"]["kernel"].std()
    ]
    np.testing.assert_allclose(deviations, 0.88 * np.array([0.1, 0.01, 0.001]), rtol=0.03)


@pytest.mark.parametrize("aux_norm", ["batch", "none"])
def test_folding_changes_nothing_in_the_aux_head(aux_norm):
    assert_folding_changes_nothing(Head(3, aux_norm=aux_norm), (2, 4, 4, 8))
