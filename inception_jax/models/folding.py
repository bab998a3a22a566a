"""Folds batch norm into the convolutions before it, and precomputes what inference would repeat at every call."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from jax import lax
from jax import numpy as jnp
from jax.typing import ArrayLike

from inception_jax import ops
from inception_jax.models.layers import as_outputs


def fold_batch_norm(model: nn.Module, variables: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """A network and variables without batch norm that compute what these compute with `train=False`.

    The running variance and the scale are multiplied into the kernels; the running mean and the bias become the
    layers' biases. Networks without a field norm="batch" are returned unchanged with their variables. So are the Tiny
    VGGs and GoogLeNet with norm="stem", whose batch norm follows the ReLU.
    """
    return fold_model(model), fold_variables(model, variables)


def fold_model(model: nn.Module) -> nn.Module:
    """The network alone: the same with norm="none"."""
    return model.clone(norm="none") if _has_batch_norm(model) else model


def fold_variables(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The variables alone, for the network that `fold_model` returns; can be jitted."""
    if not _has_batch_norm(model):
        return dict(variables)
    params = _fold(variables["params"], variables["batch_stats"], model.norm_epsilon)
    rest = {name: value for name, value in variables.items() if name not in ("params", "batch_stats")}
    return {"params": params, **rest}


def inference_variables(model: nn.Module, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The result of `fold_variables`, prepared for many calls; can be jitted.

    If the network computes in bfloat16, the convolutions' parameters are converted to it. In float32 on CPUs, the
    collection "transformed" is added: the results of `ops.transform_kernel`, two to six times as large as the kernels.
    """
    folded = fold_variables(model, variables)
    if getattr(model, "dtype", None) == jnp.bfloat16:
        return folded | {"params": _narrow(folded["params"])}
    transformed = _transform(folded["params"]) if jax.default_backend() == "cpu" else {}
    return folded | {"transformed": transformed} if transformed else folded


def _narrow(params: Mapping[str, Any]) -> dict[str, Any]:
    if params.keys() == {"conv"}:
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), dict(params))
    return {name: _narrow(node) if isinstance(node, Mapping) else node for name, node in params.items()}


def _transform(params: Mapping[str, Any]) -> dict[str, Any]:
    """`ops.transform_kernel` of the kernel of every ConvUnit, in a tree of the same names."""
    if params.keys() == {"conv"} and "kernel" in params["conv"]:
        transformed = ops.transform_kernel(params["conv"]["kernel"])
        return {} if transformed is None else {"kernel": transformed}
    nodes = {name: _transform(node) for name, node in params.items() if isinstance(node, Mapping)}
    return {name: node for name, node in nodes.items() if node}


def logits(model: nn.Module, variables: Mapping[str, Any], inputs: ArrayLike) -> jax.Array:
    """A network's logits (batch, classes) for inputs (batch, height, width, channels), compiled once for a network."""
    return _compiled(getattr(model, "dtype", None))(variables, inputs, model)


@functools.cache
def _compiled(dtype):
    def apply(variables, inputs, model):
        return as_outputs(model.apply(variables, inputs, train=False)).logits

    return jax.jit(apply, static_argnames="model", compiler_options=ops.compiler_options(dtype))


def _has_batch_norm(model: nn.Module) -> bool:
    return getattr(model, "norm", None) == "batch" and hasattr(model, "norm_epsilon")


def _fold(params: Mapping[str, Any], statistics: Mapping[str, Any], epsilon: float) -> dict[str, Any]:
    if params.keys() in ({"conv", "norm"}, {"dense", "norm"}):  # a ConvUnit, or a dense layer before batch norm
        (layer,) = params.keys() - {"norm"}
        norm, running = params["norm"], statistics["norm"]
        scale = norm["scale"] * lax.rsqrt(running["var"] + epsilon)
        shift = params[layer].get("bias", 0) - running["mean"]
        return {layer: {"kernel": params[layer]["kernel"] * scale, "bias": shift * scale + norm["bias"]}}
    return {
        name: _fold(node, statistics.get(name, {}), epsilon) if isinstance(node, Mapping) else node
        for name, node in params.items()
    }
