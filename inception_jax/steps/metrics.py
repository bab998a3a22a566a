"""Metrics as sums over examples, which are added over batches and devices and divided once, at the end."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, ScalarLike, Shaped

from inception_jax.steps.losses import Labels, Outputs, cross_entropy


def metric_sums(
    outputs: Outputs, labels: Labels, mask: Bool[Array, " b"], *, label_smoothing: float = 0.0
) -> dict[str, Shaped[Array, ""]]:
    """Sums over the examples where `mask` is True; the others are padding and may hold any value.

    "loss" (the head's cross-entropy, in at least float32), "top1", "top5" and "count" (int32), and for each
    auxiliary head "NAME_loss" and "NAME_top1". With fewer than five classes, "top5" is the top k. If labels are
    probabilities, the most probable class is the label.
    """
    classes = labels if labels.ndim == 1 else labels.argmax(axis=-1)

    def total(values: Shaped[Array, " b"]) -> Shaped[Array, ""]:
        return jnp.where(mask, values, 0).sum(dtype=jnp.int32 if values.dtype == bool else None)

    ranks = label_ranks(outputs.logits, classes)
    sums = {
        "loss": total(cross_entropy(outputs.logits, labels, label_smoothing=label_smoothing)),
        "top1": total(ranks < 1),
        "top5": total(ranks < min(5, outputs.logits.shape[-1])),
        "count": mask.sum(dtype=jnp.int32),
    }
    for name, logits in outputs.aux.items():
        sums[f"{name}_loss"] = total(cross_entropy(logits, labels, label_smoothing=label_smoothing))
        sums[f"{name}_top1"] = total(label_ranks(logits, classes) < 1)
    return sums


def label_ranks(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Int[Array, " b"]:
    """The rank of the label among the logits in descending order, from 0 to k - 1; ties keep their order.

    Hence a network with constant logits is not always right. If a logit is NaN, the rank is k.
    """
    num_classes = logits.shape[-1]
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    ahead = (logits > own) | ((logits == own) & (jnp.arange(num_classes) < labels[:, None]))
    return jnp.where(jnp.isnan(logits).any(axis=-1), num_classes, ahead.sum(axis=-1, dtype=jnp.int32))


def add(sums: dict[str, Shaped[Array, ""]], more: dict[str, Shaped[Array, ""]]) -> dict[str, Shaped[Array, ""]]:
    """Adds two sets of sums."""
    return jax.tree.map(jnp.add, sums, more)


def summarize(sums: Mapping[str, ScalarLike]) -> dict[str, float]:
    """Means over the examples, as Python floats, under the same names, and their "count"; NaN if there were none."""
    totals = jax.device_get(sums)  # all in one transfer
    count = int(totals.pop("count"))
    means = {name: float(total) / count if count else float("nan") for name, total in totals.items()}
    return means | {"count": count}
