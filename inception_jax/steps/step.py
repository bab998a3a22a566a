"""The pure steps: (state, batch) -> state, and those of evaluation and prediction. Nothing here is jitted."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import optax
from clu.metrics import Metric
from flax import linen as nn
from jax import numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Shaped

from inception_jax.models.layers import as_outputs
from inception_jax.steps import losses, metrics
from inception_jax.steps.optimizers import moving_average
from inception_jax.steps.state import TrainState

Stored = Shaped[Array, "batch height width channels"]
Prepared = Float[Array, "batch height width channels"]  # possibly of another size than the stored images
Prepare = Callable[[PRNGKeyArray, Stored], Prepared]
Mix = Callable[[PRNGKeyArray, Prepared, Int[Array, " batch"]], tuple[Prepared, Float[Array, "batch classes"]]]


def train_step(
    state: TrainState,
    images: Stored,
    labels: Int[Array, " batch"],
    key: PRNGKeyArray,
    *,
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    prepare: Prepare,
    mix: Mix | None = None,
    label_smoothing: float = 0.0,
    aux_weight: float = 0.3,
    class_weights: Float[Array, " classes"] | None = None,
    accumulation_steps: int = 1,
    average_decay: float = 0.0,
    loss: Callable[..., Array] = losses.cross_entropy,
    own_metrics: Mapping[str, type[Metric]] | None = None,
    frozen: Callable[[Any], Any] | None = None,
) -> tuple[TrainState, Float[Array, ""]]:
    """One update; returns the new state and the loss that was minimized, a scalar.

    Args:
      state: before the update.
      images: as stored (uint8); `prepare` augments and normalizes them.
      labels: class indices.
      key: the run's; `state.step` is folded in for the step's own, so that a resumed run draws the same numbers.
      prepare: (key, images) -> inputs (batch, height, width, channels).
      mix: (key, inputs, labels) -> mixed inputs, and their targets, class probabilities (batch, classes). With
        accumulation it gets one micro-batch at a time. The training top1 and top5 then use the most probable class
        as the label.
      aux_weight: weight of each auxiliary head's loss (Szegedy et al. 2015, section 5: 0.3).
      class_weights: weights of the classes in the loss, whose mean over the batch is divided by the mean of the labels'
        weights, except with `mix`: torch's `CrossEntropyLoss(weight)`. The metrics are not weighted.
      accumulation_steps: number of equal micro-batches, processed one after the other, for one update; batch norm
        then uses the statistics of micro-batches.
      average_decay: of the moving average of params and batch_stats, updated after every step, smaller in the first
        steps; 0: none.
      loss: of each head, (logits, labels, *, label_smoothing) -> (batch,).
      own_metrics: see `metrics.metric_sums`.
      frozen: parameters -> a tree of the same structure, True for those whose gradient is not computed and counts as
        0. Batch norm's statistics are updated everywhere.
    """
    step_key = jax.random.fold_in(key, state.step)
    mean_weight = None  # of the whole batch, not of a micro-batch
    if class_weights is not None and not mix:
        mean_weight = class_weights[labels].mean()
    loss_fn = partial(
        _loss_and_sums,
        model=model,
        prepare=prepare,
        mix=mix,
        loss=loss,
        label_smoothing=label_smoothing,
        aux_weight=aux_weight,
        class_weights=class_weights,
        mean_weight=mean_weight,
        own_metrics=own_metrics,
        frozen=frozen,
    )
    gradient_fn = jax.value_and_grad(loss_fn, has_aux=True)
    if accumulation_steps == 1:
        (total, (batch_stats, sums)), gradients = gradient_fn(state.params, state.batch_stats, images, labels, step_key)
    else:
        total, batch_stats, sums, gradients = _accumulate(
            accumulation_steps, gradient_fn, state, images, labels, step_key
        )

    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    updates = jax.tree.map(lambda x: x * state.plateau.scale.astype(x.dtype), updates)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average:
        average = moving_average(average, {"params": params, "batch_stats": batch_stats}, average_decay, state.step)
    state = state.replace(
        step=state.step + 1,
        params=params,
        batch_stats=batch_stats,
        opt_state=opt_state,
        average=average,
        metrics=metrics.add(state.metrics, sums),
    )
    return state, total


def _loss_and_sums(
    params: Any,
    batch_stats: Any,
    images: Stored,
    labels: Int[Array, " batch"],
    key: PRNGKeyArray,
    *,
    model: nn.Module,
    prepare: Prepare,
    mix: Mix | None,
    loss: Callable[..., Array],
    label_smoothing: float,
    aux_weight: float,
    class_weights: Float[Array, " classes"] | None,
    mean_weight: Float[Array, ""] | None,
    own_metrics: Mapping[str, type[Metric]] | None,
    frozen: Callable[[Any], Any] | None,
) -> tuple[Float[Array, ""], tuple[Any, metrics.Sums]]:
    """The loss that `train_step` minimizes, and the new batch statistics with the metric sums.

    Args:
      mean_weight: the mean over the whole batch of its labels' class weights, by which the loss is divided.
    """
    if frozen:
        params = jax.tree.map(lambda x, kept: jax.lax.stop_gradient(x) if kept else x, params, frozen(params))
    prepare_key, dropout_key = jax.random.split(key)
    inputs, targets = prepare(prepare_key, images), labels
    if mix:
        inputs, targets = mix(jax.random.fold_in(key, 2), inputs, labels)
    outputs, updated = model.apply(
        {"params": params, "batch_stats": batch_stats},
        inputs,
        train=True,
        rngs={"dropout": dropout_key},
        mutable=["batch_stats"],
    )
    outputs = as_outputs(outputs)
    options = {"label_smoothing": label_smoothing}
    weighted = loss if class_weights is None else partial(loss, class_weights=class_weights)
    total = losses.total_loss(outputs, targets, aux_weight=aux_weight, loss=weighted, **options).mean()
    if mean_weight is not None:
        total = total / mean_weight
    ones = jnp.ones(labels.shape, bool)
    sums = metrics.metric_sums(outputs, targets, ones, loss=loss, own=own_metrics, **options)
    return total, (updated.get("batch_stats", {}), sums)


def _accumulate(
    number: int,
    gradient_fn: Callable[..., Any],
    state: TrainState,
    images: Stored,
    labels: Int[Array, " batch"],
    key: PRNGKeyArray,
) -> tuple[Float[Array, ""], Any, metrics.Sums, Any]:
    """The mean loss, the batch statistics, the metric sums and the mean gradients over `number` micro-batches.

    Args:
      gradient_fn: (params, batch_stats, images, labels, key) -> ((loss, (batch_stats, sums)), gradients).
    """

    def micro_step(carry, batch):
        so_far, sums_so_far, batch_stats = carry
        index, images, labels = batch
        micro_key = jax.random.fold_in(key, index)
        (total, (batch_stats, sums)), gradients = gradient_fn(state.params, batch_stats, images, labels, micro_key)
        so_far = jax.tree.map(jnp.add, so_far, (total, gradients))
        return (so_far, metrics.add(sums_so_far, sums), batch_stats), None

    def split(x):  # every micro-batch takes rows from all devices, so that no data moves between them
        return x.reshape(-1, number, *x.shape[1:]).swapaxes(0, 1)

    batches = (jnp.arange(number), split(images), split(labels))
    (total, (_, sums)), gradients = jax.eval_shape(
        gradient_fn, state.params, state.batch_stats, *jax.tree.map(lambda x: x[0], batches[1:]), key
    )
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (total, gradients))
    start = (zeros, metrics.reset(sums), state.batch_stats)
    ((total, gradients), sums, batch_stats), _ = jax.lax.scan(micro_step, start, batches)
    total, gradients = jax.tree.map(lambda x: x / number, (total, gradients))
    return total, batch_stats, sums, gradients


def eval_step(
    variables: dict[str, Any],
    images: Stored,
    labels: Int[Array, " batch"],
    mask: Bool[Array, " batch"],
    *,
    model: nn.Module,
    prepare: Callable[[Stored], Prepared],
    own_metrics: Mapping[str, type[Metric]] | None = None,
) -> metrics.Sums:
    """The metric sums over a batch.

    The loss is the plain cross-entropy, without the label smoothing of training.

    Args:
      variables: the network's, {"params", "batch_stats"}.
      images: as stored (uint8).
      mask: rows where it is False are padding and do not count.
      prepare: images -> inputs (batch, height, width, channels).
      own_metrics: see `metrics.metric_sums`.
    """
    outputs = as_outputs(model.apply(variables, prepare(images), train=False))
    return metrics.metric_sums(outputs, labels, mask, own=own_metrics)


def predict_step(
    variables: dict[str, Any],
    images: Stored,
    *,
    model: nn.Module,
    prepare: Callable[[Stored], Prepared],
) -> Float[Array, "batch classes"]:
    """The class probabilities.

    Args:
      variables: the network's, {"params", "batch_stats"}.
      images: as stored (uint8).
      prepare: images -> inputs (batch, height, width, channels).
    """
    outputs = as_outputs(model.apply(variables, prepare(images), train=False))
    return jax.nn.softmax(outputs.logits)
