"""Metrics as sums over examples, which are added over batches and devices and divided once, at the end.

They are `clu.metrics`: an `Average` per name in a `Collection`. The functions take and return the sums of the
collection as a dict of arrays with a single count, because that is what `TrainState` and its checkpoints hold. As a
pytree, a Collection would have a count per metric and a counter of merges, and earlier checkpoints would not fit.
"""

import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Average, Collection
from jaxtyping import Array, Bool, Float, Int, ScalarLike, Shaped

from inception_jax.steps.losses import Labels, OutputsLike, cross_entropy


@flax.struct.dataclass
class Mean(Average):
    """An Average that counts in int32, with 64-bit types too, as checkpoints do."""

    @classmethod
    def from_model_output(cls, values: Array, mask: Array | None = None, **_) -> Average:
        average = super().from_model_output(values, mask)
        return jax.tree.map(lambda x: x.astype(jnp.int32) if jnp.issubdtype(x.dtype, jnp.integer) else x, average)


def metric_sums(
    outputs: OutputsLike, labels: Labels, mask: Bool[Array, " b"], *, label_smoothing: float = 0.0
) -> dict[str, Shaped[Array, ""]]:
    """Sums over the examples where `mask` is True; the others are padding and may hold any value.

    "loss" (the head's cross-entropy, in at least float32), "top1", "top5" and "count" (int32), and for each
    auxiliary head "NAME_loss" and "NAME_top1". With fewer than five classes, "top5" is the top k. If labels are
    probabilities, the most probable class is the label.
    """
    classes = labels if labels.ndim == 1 else labels.argmax(axis=-1)
    ranks = label_ranks(outputs.logits, classes)
    values = {
        "loss": cross_entropy(outputs.logits, labels, label_smoothing=label_smoothing),
        "top1": ranks < 1,
        "top5": ranks < min(5, outputs.logits.shape[-1]),
    }
    for name, logits in outputs.aux.items():
        values[f"{name}_loss"] = cross_entropy(logits, labels, label_smoothing=label_smoothing)
        values[f"{name}_top1"] = label_ranks(logits, classes) < 1
    names = tuple(sorted(values))
    return _sums(names, _collection(names).single_from_model_output(**values, mask=mask))


def label_ranks(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Int[Array, " b"]:
    """The rank of the label among the logits in descending order, from 0 to k - 1; ties keep their order.

    Hence a network with constant logits is not always right. If a logit is NaN, the rank is k.
    """
    num_classes = logits.shape[-1]
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    ahead = (logits > own) | ((logits == own) & (jnp.arange(num_classes) < labels[:, None]))
    return jnp.where(jnp.isnan(logits).any(axis=-1), num_classes, ahead.sum(axis=-1, dtype=jnp.int32))


@jax.jit  # one dispatch for all of them, for callers that are not jitted
def add(sums: dict[str, Shaped[Array, ""]], more: dict[str, Shaped[Array, ""]]) -> dict[str, Shaped[Array, ""]]:
    """Adds two sets of sums of the same names."""
    return _sums(_names(sums), _restored(sums).merge(_restored(more)))


def summarize(sums: Mapping[str, ScalarLike]) -> dict[str, float]:
    """Means over the examples, as Python floats, under the same names, and their "count"; NaN if there were none."""
    totals = jax.device_get(sums)  # all in one transfer; NumPy divides in float64
    with np.errstate(invalid="ignore"):
        means = _restored(totals).compute()
    return {name: float(means[_field(name)]) for name in _names(totals)} | {"count": int(totals["count"])}


def _names(sums: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(name for name in sums if name != "count"))


def _field(name: str) -> str:
    """The name as an identifier, which the name of an auxiliary head need not be."""
    return "metric_" + name.encode().hex()


@functools.cache  # one class for the same names, since pytrees of different classes cannot be combined
def _collection(names: tuple[str, ...]) -> type[Collection]:
    return Collection.create(**{_field(name): Mean.from_output(name) for name in names})


def _sums(names: tuple[str, ...], collection: Collection) -> dict[str, Shaped[Array, ""]]:
    """The totals by name, and "count", which is the same for all."""
    averages = {name: vars(collection)[_field(name)] for name in names}
    return {name: each.total for name, each in averages.items()} | {"count": averages["loss"].count}


def _restored(sums: Mapping[str, Any]) -> Collection:
    """The collection with these sums, the inverse of `_sums`."""
    empty = _collection(_names(sums)).empty()
    averages = {_field(name): type(vars(empty)[_field(name)])(sums[name], sums["count"]) for name in _names(sums)}
    return empty.replace(**averages)  # pyright: ignore[reportAttributeAccessIssue]
