"""Metrics as sums over examples, which are added over batches and devices and divided once, at the end.

They are `clu.metrics`: an `Average` per name in a `Collection`. The functions take and return the sums of the
collection as a dict of arrays with a single count, because that is what `TrainState` and its checkpoints hold. As a
pytree, a Collection would have a count per metric and a counter of merges, and earlier checkpoints would not fit.

Metrics from outside the package are any clu.metrics.Metric. Their sums are the dict's entry "own": Metric objects by
name. Without such metrics it has no such entry.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu.metrics import Average, Collection, Metric
from jaxtyping import Array, Bool, Float, Int

from inception_jax.errors import UserError
from inception_jax.steps.losses import Labels, OutputsLike, cross_entropy

Sums: TypeAlias = dict[str, Any]  # scalar arrays by name, and "own"
OWN = "own"
NAMES = ("loss", "top1", "top5", "count")


@flax.struct.dataclass
class Mean(Average):
    """An Average that counts in int32, with 64-bit types too, as checkpoints do."""

    @classmethod
    def from_model_output(cls, values: Array, mask: Array | None = None, **_) -> Average:
        average = super().from_model_output(values, mask)
        return jax.tree.map(lambda x: x.astype(jnp.int32) if jnp.issubdtype(x.dtype, jnp.integer) else x, average)


def metric_sums(
    outputs: OutputsLike,
    labels: Labels,
    mask: Bool[Array, " b"],
    *,
    label_smoothing: float = 0.0,
    loss: Callable[..., Array] = cross_entropy,
    own: Mapping[str, type[Metric]] | None = None,
) -> Sums:
    """Sums over the examples where `mask` is True; the others are padding and may hold any value.

    "loss" (the head's cross-entropy, in at least float32), "top1", "top5" and "count" (int32), and for each
    auxiliary head "NAME_loss" and "NAME_top1". With fewer than five classes, "top5" is the top k. If labels are
    probabilities, the most probable class is the label.

    Args:
      loss: in place of the cross-entropy, and called like it.
      own: classes of other metrics by name. Their `from_model_output` gets logits (in at least float32), labels (class
        indices), loss (of each example) and mask.
    """
    classes = labels if labels.ndim == 1 else labels.argmax(axis=-1)
    ranks = label_ranks(outputs.logits, classes)
    values = {
        "loss": loss(outputs.logits, labels, label_smoothing=label_smoothing),
        "top1": ranks < 1,
        "top5": ranks < min(5, outputs.logits.shape[-1]),
    }
    for name, logits in outputs.aux.items():
        values[f"{name}_loss"] = loss(logits, labels, label_smoothing=label_smoothing)
        values[f"{name}_top1"] = label_ranks(logits, classes) < 1
    names = tuple(sorted(values))
    sums = _sums(names, _collection(names).single_from_model_output(**values, mask=mask))
    if own:
        logits = outputs.logits.astype(jnp.promote_types(outputs.logits.dtype, jnp.float32))
        given = {"logits": logits, "labels": classes, "loss": values["loss"], "mask": mask}
        sums[OWN] = {name: metric.from_model_output(**given) for name, metric in own.items()}
    return sums


def label_ranks(logits: Float[Array, "b k"], labels: Int[Array, " b"]) -> Int[Array, " b"]:
    """The rank of the label among the logits in descending order, from 0 to k - 1; ties keep their order.

    Hence a network with constant logits is not always right. If a logit is NaN, the rank is k.
    """
    num_classes = logits.shape[-1]
    own = jnp.take_along_axis(logits, labels[:, None], axis=-1)
    ahead = (logits > own) | ((logits == own) & (jnp.arange(num_classes) < labels[:, None]))
    return jnp.where(jnp.isnan(logits).any(axis=-1), num_classes, ahead.sum(axis=-1, dtype=jnp.int32))


@jax.jit  # one dispatch for all of them, for callers that are not jitted
def add(sums: Sums, more: Sums) -> Sums:
    """Adds two sets of sums of the same names."""
    total = _sums(_names(sums), _restored(sums).merge(_restored(more)))
    if OWN in sums:
        total[OWN] = {name: _cast(metric.merge(more[OWN][name]), metric) for name, metric in sums[OWN].items()}
    return total


def reset(sums: Sums) -> Sums:
    """The sums of no examples, of the same names, shapes and types; `sums` may be abstract (`jax.eval_shape`)."""
    zeros: Sums = {name: jnp.zeros(leaf.shape, leaf.dtype) for name, leaf in sums.items() if name != OWN}
    if OWN in sums:
        zeros[OWN] = {name: _cast(type(metric).empty(), metric) for name, metric in sums[OWN].items()}
    return zeros


def _cast(metric: Metric, like: Metric) -> Metric:
    """The metric with the types of another: with 64-bit types its own may depend on how often it was merged."""
    return jax.tree.map(lambda leaf, other: jnp.asarray(leaf, other.dtype), metric, like)


def summarize(sums: Mapping[str, Any]) -> dict[str, float]:
    """Means over the examples, as Python floats, under the same names, and their "count"; NaN if there were none.

    Raises:
      UserError: a metric from outside the package raises an exception.
    """
    totals = jax.device_get(sums)  # all in one transfer; NumPy divides in float64
    with np.errstate(invalid="ignore"):
        means = _restored(totals).compute()
    own = {name: _computed(name, metric) for name, metric in totals.get(OWN, {}).items()}
    return {name: float(means[_field(name)]) for name in _names(totals)} | own | {"count": int(totals["count"])}


def _computed(name: str, metric: Metric) -> float:
    try:
        return float(metric.compute())
    except Exception as error:
        raise UserError(f"metric {name!r} raises {type(error).__name__}: {error}") from error


def _names(sums: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(name for name in sums if name not in ("count", OWN)))


def _field(name: str) -> str:
    """The name as an identifier, which the name of an auxiliary head need not be."""
    return "metric_" + name.encode().hex()


@functools.cache  # one class for the same names, since pytrees of different classes cannot be combined
def _collection(names: tuple[str, ...]) -> type[Collection]:
    return Collection.create(**{_field(name): Mean.from_output(name) for name in names})


def _sums(names: tuple[str, ...], collection: Collection) -> Sums:
    """The totals by name, and "count", which is the same for all."""
    averages = {name: vars(collection)[_field(name)] for name in names}
    return {name: each.total for name, each in averages.items()} | {"count": averages["loss"].count}


def _restored(sums: Mapping[str, Any]) -> Collection:
    """The collection with these sums, the inverse of `_sums`."""
    empty = _collection(_names(sums)).empty()
    averages = {_field(name): type(vars(empty)[_field(name)])(sums[name], sums["count"]) for name in _names(sums)}
    return empty.replace(**averages)  # pyright: ignore[reportAttributeAccessIssue]
