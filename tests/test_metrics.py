"""Metrics against scikit-learn and NumPy's stable sort; padding, ties and NaN."""

import functools
import math
from types import SimpleNamespace

import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax import numpy as jnp
from sklearn.metrics import log_loss, top_k_accuracy_score

from inception_jax.steps import losses, metrics


@functools.partial(jax.jit, static_argnames="label_smoothing")
def metric_sums(logits, labels, mask, label_smoothing=0.0, **aux):
    outputs = SimpleNamespace(logits=logits, aux=aux)
    return metrics.metric_sums(outputs, labels, mask, label_smoothing=label_smoothing)


def random_batch(size=50, num_classes=10):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((size, num_classes)).astype(np.float32)
    return logits, rng.integers(0, num_classes, size, np.int32)


@pytest.mark.parametrize("num_classes", [3, 5, 10])
def test_means_equal_scikit_learns(num_classes):
    logits, labels = random_batch(num_classes=num_classes)
    means = metrics.summarize(metric_sums(logits, jnp.asarray(labels), jnp.ones(50, bool)))
    classes = range(num_classes)
    probabilities = np.asarray(jax.nn.softmax(logits), np.float64)
    probabilities /= probabilities.sum(axis=1, keepdims=True)  # scikit-learn warns of float32's rounding
    assert means["loss"] == pytest.approx(log_loss(labels, probabilities, labels=classes), rel=1e-5)
    assert means["top1"] == top_k_accuracy_score(labels, logits, k=1, labels=classes)
    expected = top_k_accuracy_score(labels, logits, k=5, labels=classes) if num_classes > 5 else 1.0
    assert means["top5"] == expected
    assert means["count"] == 50
    assert all(isinstance(value, float) for name, value in means.items() if name != "count")


def test_of_mixed_labels_the_largest_share_counts():
    logits, labels = random_batch()
    targets = 0.6 * np.eye(10, dtype=np.float32)[labels] + 0.4 * np.eye(10, dtype=np.float32)[labels[::-1]]
    mask = jnp.ones(50, bool)
    mixed = metric_sums(logits, jnp.asarray(targets), mask, aux1=logits)
    own, other = (metric_sums(logits, jnp.asarray(one), mask, aux1=logits) for one in (labels, labels[::-1].copy()))
    for name in own:
        weight = 0.6 if name.endswith("loss") else 1
        np.testing.assert_allclose(mixed[name], weight * own[name] + (1 - weight) * other[name], rtol=1e-5)


def test_padding_does_not_count_whatever_it_holds():
    logits, labels = random_batch()
    padded = np.concatenate([logits, np.full((14, 10), np.nan, np.float32)])
    padded_labels = np.concatenate([labels, np.full(14, 99, np.int32)])
    mask = jnp.arange(64) < 50
    with_padding = metric_sums(padded, jnp.asarray(padded_labels), mask, aux1=padded)
    without = metric_sums(logits, jnp.asarray(labels), jnp.ones(50, bool), aux1=logits)
    for name in without:
        np.testing.assert_allclose(with_padding[name], without[name], rtol=1e-6, err_msg=name)


def test_sums_of_batches_equal_the_whole():
    logits, labels = random_batch()
    whole = metric_sums(logits, jnp.asarray(labels), jnp.ones(50, bool))
    total = None
    for start in range(0, 50, 16):
        rows = slice(start, start + 16)
        size = len(labels[rows])
        sums = metric_sums(logits[rows], jnp.asarray(labels[rows]), jnp.ones(size, bool))
        total = metrics.add(total, sums) if total else sums
    assert total is not None
    for name in ("top1", "top5", "count"):
        assert total[name].dtype == jnp.int32
        assert total[name] == whole[name]
    np.testing.assert_allclose(total["loss"], whole["loss"], rtol=1e-6)


def test_auxiliary_heads_have_their_own():
    logits, labels = random_batch()
    perfect = 100 * np.eye(10, dtype=np.float32)[labels]
    sums = metric_sums(logits, jnp.asarray(labels), jnp.ones(50, bool), aux1=perfect, aux2=-perfect)
    means = metrics.summarize(sums)
    assert set(means) == {"loss", "top1", "top5", "aux1_loss", "aux1_top1", "aux2_loss", "aux2_top1", "count"}
    assert (means["aux1_top1"], means["aux2_top1"]) == (1.0, 0.0)
    assert means["aux1_loss"] == pytest.approx(0, abs=1e-6)
    assert means["aux2_loss"] == pytest.approx(100 + math.log(9), rel=1e-6)


def test_the_name_of_a_head_need_not_be_an_identifier():
    logits, labels = random_batch()
    sums = metric_sums(logits, jnp.asarray(labels), jnp.ones(50, bool), **{"side head/1": logits})
    sums = metrics.add(sums, sums)
    means = metrics.summarize(sums)
    assert (means["side head/1_loss"], means["side head/1_top1"]) == (means["loss"], means["top1"])
    assert means["count"] == 100


def test_label_smoothing_is_in_the_loss():
    logits, labels = random_batch()
    sums = metric_sums(logits, jnp.asarray(labels), jnp.ones(50, bool), label_smoothing=0.1, aux1=logits)
    expected = losses.cross_entropy(jnp.asarray(logits), jnp.asarray(labels), label_smoothing=0.1).sum()
    np.testing.assert_allclose([sums["loss"], sums["aux1_loss"]], expected, rtol=1e-6)


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(hnp.arrays(np.float32, (4, 6), elements=st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0])), st.data())
def test_ranks_equal_a_stable_sort(logits, data):
    labels = np.array(data.draw(st.lists(st.integers(0, 5), min_size=4, max_size=4)))
    order = np.argsort(-logits, axis=1, kind="stable")
    expected = np.argmax(order == labels[:, None], axis=1)
    np.testing.assert_array_equal(metrics.label_ranks(jnp.asarray(logits), jnp.asarray(labels)), expected)


def test_equal_logits_are_right_no_more_often_than_one_guess():
    logits = jnp.zeros((10, 10))
    means = metrics.summarize(metric_sums(logits, jnp.arange(10), jnp.ones(10, bool)))
    assert (means["top1"], means["top5"]) == (0.1, 0.5)


@pytest.mark.parametrize("where", [0, 1])  # the label's own logit, another's
@pytest.mark.parametrize("num_classes", [3, 10])
def test_nan_logits_are_wrong(where, num_classes):
    logits = np.zeros((1, num_classes), np.float32)
    logits[0, 0], logits[0, where] = 1, np.nan
    sums = metric_sums(logits, jnp.zeros(1, jnp.int32), jnp.ones(1, bool))
    assert (sums["top1"], sums["top5"], sums["count"]) == (0, 0, 1)
    assert jnp.isnan(sums["loss"])


@pytest.mark.parametrize(("dtype", "expected"), [("bfloat16", "float32"), ("float32", "float32"), ("float64",) * 2])
def test_loss_is_summed_in_at_least_float32(dtype, expected):
    with jax.enable_x64(dtype == "float64"):
        logits = jnp.zeros((1000, 4), dtype)
        sums = metric_sums(logits, jnp.zeros(1000, jnp.int32), jnp.ones(1000, bool))
        assert sums["loss"].dtype == expected
        assert sums["top1"].dtype == sums["top5"].dtype == sums["count"].dtype == jnp.int32
        assert float(sums["loss"]) == pytest.approx(1000 * math.log(4), rel=1e-5)


def test_the_mean_of_nothing():
    logits, labels = random_batch(size=4)
    means = metrics.summarize(metric_sums(logits, jnp.asarray(labels), jnp.zeros(4, bool)))
    assert means["count"] == 0
    assert all(math.isnan(value) for name, value in means.items() if name != "count")
