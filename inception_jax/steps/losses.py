"""Losses: one number per example, so that callers can mask, weight and sum them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from inception_jax.config.rules import BALANCED
from inception_jax.errors import UserError

Labels: TypeAlias = Int[Array, " b"] | Float[Array, "b k"]  # class indices, or class probabilities


@runtime_checkable
class OutputsLike(Protocol):
    """A network's output: the logits of its head, and those of its auxiliary heads by name."""

    @property
    def logits(self) -> Float[Array, "b k"]: ...
    @property
    def aux(self) -> Mapping[str, Float[Array, "b k"]]: ...


def cross_entropy(
    logits: Float[Array, "b k"],
    labels: Labels,
    *,
    label_smoothing: float = 0.0,
    class_weights: Float[Array, " k"] | None = None,
) -> Float[Array, " b"]:
    """Softmax cross-entropy for class indices (b,) or class probabilities (b, k), computed in at least float32.

    With label smoothing (Szegedy et al. 2016, section 7) a target is 1 - label_smoothing at the label plus
    label_smoothing / k everywhere. Equals torch's `cross_entropy(reduction="none")`, also with `class_weights`, which
    multiply the log-probability of each class; a label of k or more gives NaN.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
    if class_weights is not None:
        log_probabilities = log_probabilities * class_weights.astype(log_probabilities.dtype)
    if labels.ndim == 2:
        loss = -(labels * log_probabilities).sum(axis=-1)
    else:
        loss = -jnp.take_along_axis(log_probabilities, labels[:, None], axis=-1, mode="fill")[:, 0]
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_probabilities.mean(axis=-1)
    return loss


def total_loss(
    outputs: OutputsLike,
    labels: Labels,
    *,
    label_smoothing: float = 0.0,
    aux_weight: float = 0.0,
    loss: Callable[..., Array] = cross_entropy,
) -> Float[Array, " b"]:
    """The training loss: the head's, plus `aux_weight` times that of each auxiliary head.

    Args:
      loss: in place of the cross-entropy, and called like it.
    """
    total = loss(outputs.logits, labels, label_smoothing=label_smoothing)
    for logits in outputs.aux.values():
        total = total + aux_weight * loss(logits, labels, label_smoothing=label_smoothing)
    return total


def class_weights(given: Sequence[Any], class_names: Sequence[str], counts: Sequence[int]) -> np.ndarray | None:
    """The weights of the classes for `cross_entropy`, float64 (classes,); None if none are given.

    "balanced" gives every class the same share of an epoch's loss, and the training images weights with the mean 1, as
    scikit-learn's `compute_class_weight` does.

    Args:
      given: a number for each class, ("balanced",), or ().
      class_names: in the order of the labels.
      counts: for "balanced": the number of training images of each class.

    Raises:
      UserError: there is not a number for each class; or a class to be balanced has no training images.
    """
    if not given:
        return None
    if tuple(given) == BALANCED:
        numbers = np.array(counts)
        if not numbers.all():
            missing = next(name for name, count in zip(class_names, counts, strict=True) if not count)
            raise UserError(f"loss.class_weights=balanced needs training images of all classes; {missing} has none")
        return numbers.sum() / (len(numbers) * numbers)
    if len(given) != len(class_names):
        raise UserError(f"loss.class_weights has {len(given)} numbers, but the data has {len(class_names)} classes")
    return np.array(given, float)
