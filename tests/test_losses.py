"""Losses against torch.nn.functional.cross_entropy."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from inception_jax.steps import losses


def batch(dtype="float64", num_classes=7, scale=3.0):
    rng = np.random.default_rng(0)
    return (scale * rng.standard_normal((6, num_classes))).astype(dtype), rng.integers(0, num_classes, 6, np.int32)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float64", 1e-13)])
@pytest.mark.parametrize("scale", [3.0, 1e4])
@pytest.mark.parametrize("probabilities", [False, True])
def test_value_and_gradient_equal_torch(dtype, tolerance, scale, label_smoothing, probabilities):
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    logits, labels = batch(dtype, scale=scale)
    if probabilities:
        labels = np.random.default_rng(1).dirichlet(np.ones(7), 6).astype(dtype)
    theirs_in = torch.tensor(logits, requires_grad=True)
    theirs_labels = torch.tensor(labels) if probabilities else torch.tensor(labels).long()
    theirs = torch.nn.functional.cross_entropy(
        theirs_in, theirs_labels, label_smoothing=label_smoothing, reduction="none"
    )
    theirs.sum().backward()
    with jax.enable_x64(dtype == "float64"):

        def total(logits):
            loss = losses.cross_entropy(logits, jnp.asarray(labels), label_smoothing=label_smoothing)
            return loss.sum(), loss

        (_, ours), gradient = jax.value_and_grad(total, has_aux=True)(jnp.asarray(logits))
    assert ours.shape == (6,)
    assert ours.dtype == dtype
    np.testing.assert_allclose(ours, theirs.detach(), rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(gradient, theirs_in.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_certain_probabilities_are_labels(label_smoothing):
    logits, labels = map(jnp.asarray, batch("float32"))
    certain = losses.cross_entropy(logits, jax.nn.one_hot(labels, 7), label_smoothing=label_smoothing)
    np.testing.assert_allclose(
        certain, losses.cross_entropy(logits, labels, label_smoothing=label_smoothing), rtol=1e-6
    )


def test_half_precision_is_summed_in_float32():
    logits, labels = batch("float32")
    rounded = jnp.asarray(logits, jnp.bfloat16)
    loss = losses.cross_entropy(rounded, jnp.asarray(labels))
    assert loss.dtype == jnp.float32
    np.testing.assert_array_equal(loss, losses.cross_entropy(rounded.astype(jnp.float32), jnp.asarray(labels)))


def test_a_label_beyond_the_classes_is_not_overlooked():
    logits, _ = batch("float32")
    assert jnp.isnan(losses.cross_entropy(jnp.asarray(logits), jnp.full(6, 7))).all()


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_total_loss_weighs_every_auxiliary_head(label_smoothing, probabilities):
    logits, labels = batch("float32")
    if probabilities:
        labels = np.random.default_rng(1).dirichlet(np.ones(7), 6).astype(np.float32)
    heads = [jnp.asarray(logits), jnp.asarray(logits[::-1]), jnp.asarray(2 * logits)]
    outputs = SimpleNamespace(logits=heads[0], aux={"aux1": heads[1], "aux2": heads[2]})
    labels = jnp.asarray(labels)
    main, aux1, aux2 = (losses.cross_entropy(head, labels, label_smoothing=label_smoothing) for head in heads)
    total = losses.total_loss(outputs, labels, label_smoothing=label_smoothing, aux_weight=0.3)
    np.testing.assert_allclose(total, main + 0.3 * (aux1 + aux2), rtol=1e-6)
    alone = SimpleNamespace(logits=heads[0], aux={})
    np.testing.assert_array_equal(losses.total_loss(alone, labels, label_smoothing=label_smoothing), main)
