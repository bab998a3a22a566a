"""Gradient norms of the loss by layer."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
from flax import linen as nn
from jax import numpy as jnp

from inception_jax.inspection.features import fitting, network_inputs
from inception_jax.models.layers import as_outputs
from inception_jax.steps import losses


def gradient_norms(
    model: nn.Module, variables: Mapping[str, Any], images: Any, labels: Any, *, aux_weight: float = 0.3
) -> dict[str, float]:
    """The Euclidean norm of the training loss's gradient for each submodule of the network, in the order of the layers.

    Dropout is off, so the same images give the same norms. Batch norm uses batch statistics, as in training.

    Args:
      images: the network's inputs (batch, height, width, channels), normalized: `run.normalize(images)`.
      labels: int (batch,).
      aux_weight: weight of each auxiliary head's loss (Szegedy et al. 2015, section 5: 0.3).

    Raises:
      UserError: the images are not inputs of the network.
    """
    variables, images = dict(variables), network_inputs(images)
    with fitting(images):
        norms = _norms(variables, images, jnp.asarray(labels), model=model, aux_weight=aux_weight)
    called = {name: float(norms[name]) for name in _calls(model, variables, images) if name in norms}
    return called | {name: float(norm) for name, norm in norms.items() if name not in called}


def _calls(model: nn.Module, variables: dict[str, Any], images: jax.Array) -> list[str]:
    """The names of the submodules in the order in which training calls them; JAX sorts dicts by key."""
    names = []

    def watch(next_fun, args, kwargs, context):
        names.extend(context.module.path[:1])
        return next_fun(*args, **kwargs)

    apply = partial(model.apply, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)})
    with nn.intercept_methods(watch):
        jax.eval_shape(apply, variables, images)
    return names


@partial(jax.jit, static_argnames=("model", "aux_weight"))
def _norms(
    variables: dict[str, Any], images: jax.Array, labels: jax.Array, *, model: nn.Module, aux_weight: float
) -> dict[str, jax.Array]:
    def loss(params):
        def without_dropout(next_fun, args, kwargs, context):
            if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
                return args[0]
            return next_fun(*args, **kwargs)

        with nn.intercept_methods(without_dropout):
            outputs, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return losses.total_loss(as_outputs(outputs), labels, label_smoothing=0.0, aux_weight=aux_weight).mean()

    gradients = jax.grad(loss)(variables["params"])
    return {
        name: jnp.sqrt(sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(part)))
        for name, part in gradients.items()
    }
