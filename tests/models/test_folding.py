"""Batch norm folded into the kernels computes the same."""

from functools import partial
from typing import Any

import jax
import numpy as np
import pytest
from flax import linen as nn
from jax import numpy as jnp
from networks import module_shapes, random_variables

from inception_jax import fold_batch_norm
from inception_jax.models import ResNet, create_model
from inception_jax.models.folding import fold_model, fold_variables, inference_variables
from inception_jax.models.googlenet import Inception, InceptionModule
from inception_jax.models.layers import ConvUnit


class BatchNormAfterDense(nn.Module):
    norm: str
    norm_epsilon: float

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(7, name="dense")(x)
        return nn.BatchNorm(not train, epsilon=self.norm_epsilon, name="norm")(x) if self.norm == "batch" else x


class OneModule(nn.Module):
    """Modules inside a module, with the epsilon away from every default; the second convolution keeps its bias."""

    norm: str = "batch"
    norm_epsilon: float = 0.1
    dtype: Any = None

    @nn.compact
    def __call__(self, images, *, train):
        options = {"norm": self.norm, "norm_epsilon": self.norm_epsilon}
        conv = partial(ConvUnit, dtype=self.dtype, **options)
        x = conv(8, (3, 3), (2, 2), name="conv1")(images, train)
        x = conv(8, use_bias=True, name="conv2")(x, train)
        x = InceptionModule(Inception(4, 4, 8, 4, 4, 4), residual="projection", conv=conv, name="inception")(x, train)
        x = nn.relu(BatchNormAfterDense(name="fc1", **options)(x.mean((1, 2)), train))
        return nn.Dense(5, name="fc")(x)


@pytest.mark.parametrize(
    "model",
    [
        OneModule(),
        ResNet("bottleneck", (1, 2), num_classes=5),
        pytest.param(create_model("vgg11_bn", num_classes=5, classifier="mean"), marks=pytest.mark.slow),
        create_model("alexnet", num_classes=5, norm="batch", stem="small", classifier="mean"),
        create_model("simple_cnn", num_classes=5, norm="batch", norm_epsilon=0.2, stage_features=(8, 16)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_computes_the_same_without_statistics(model):
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
    variables = random_variables(module_shapes(model, images.shape)[1])
    folded_model, folded = fold_batch_norm(model, variables)
    assert set(folded) == {"params"}
    assert jax.tree.map(np.shape, folded) == jax.tree.map(np.shape, module_shapes(folded_model, images.shape)[1])
    prepared = inference_variables(model, variables)
    jax.tree.map(np.testing.assert_array_equal, prepared["params"], folded["params"])
    wanted, *results = (
        jax.tree.leaves(jax.jit(partial(m.apply, train=False))(v, images))
        for m, v in ((model, variables), (folded_model, folded), (folded_model, prepared))
    )
    for got in results:
        np.testing.assert_allclose(got[0], wanted[0], rtol=0, atol=1e-5 * np.abs(wanted[0]).max())


def test_kernels_transformed_before_are_what_inference_uses():
    model = create_model("vgg11", num_classes=5, norm="batch", classifier="mean")
    images = np.random.default_rng(0).standard_normal((1, 32, 32, 3), np.float32)
    prepared = inference_variables(model, random_variables(module_shapes(model, images.shape)[1]))
    transformed = prepared["transformed"]
    # Neither the first convolution, of three channels, nor a network without such kernels has any.
    assert set(transformed) == {"conv2_1", "conv3_1", "conv3_2", "conv4_1", "conv4_2", "conv5_1", "conv5_2"}
    assert "transformed" not in inference_variables(nn.Dense(3), {"params": {"kernel": np.ones((2, 3))}})
    apply = jax.jit(partial(fold_model(model).apply, train=False))
    others = {**prepared, "transformed": jax.tree.map(np.zeros_like, transformed)}
    assert not np.allclose(apply(others, images).logits, apply(prepared, images).logits)


def test_in_bfloat16_the_convolutions_are_that_already_and_the_logits_the_same():
    model = OneModule(dtype=jnp.bfloat16)
    images = np.random.default_rng(0).standard_normal((1, 32, 32, 3), np.float32)
    variables = random_variables(module_shapes(model, images.shape)[1])
    prepared = inference_variables(model, variables)
    assert prepared["params"]["inception"]["conv_3x3"]["conv"]["kernel"].dtype == jnp.bfloat16
    assert prepared["params"]["fc"]["kernel"].dtype == jnp.float32
    apply = jax.jit(partial(fold_model(model).apply, train=False))
    np.testing.assert_array_equal(apply(prepared, images), apply(fold_variables(model, variables), images))


def test_leaves_networks_without_batch_norm_as_they_are():
    """And the Tiny VGGs, whose ReLU stands between a kernel and the batch norm."""
    networks = (create_model("googlenet", num_classes=3, norm="lrn"), create_model("tiny_vgg_b", num_classes=3))
    for model in (nn.Dense(3), *networks):
        variables = {"params": {"kernel": np.ones((2, 3))}}
        assert fold_batch_norm(model, variables) == (model, variables)
