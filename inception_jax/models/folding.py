"""Batch norm as part of the convolutions before it, for inference."""

from collections.abc import Mapping
from typing import Any

from flax import linen as nn
from jax import lax


def fold_batch_norm(model: nn.Module, variables: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """A network and variables without batch norm that compute the same as these do with `train=False`.

    The running variance and the scale become part of the kernels, the running mean and the bias the convolutions'
    biases. A network that has no field norm="batch", and its variables, are returned as they are.
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


def _has_batch_norm(model: nn.Module) -> bool:
    return getattr(model, "norm", None) == "batch" and hasattr(model, "norm_epsilon")


def _fold(params: Mapping[str, Any], statistics: Mapping[str, Any], epsilon: float) -> dict[str, Any]:
    if params.keys() == {"conv", "norm"}:  # a ConvUnit
        norm, running = params["norm"], statistics["norm"]
        scale = norm["scale"] * lax.rsqrt(running["var"] + epsilon)
        kernel, bias = params["conv"]["kernel"] * scale, norm["bias"] - running["mean"] * scale
        return {"conv": {"kernel": kernel, "bias": bias}}
    return {
        name: _fold(node, statistics.get(name, {}), epsilon) if isinstance(node, Mapping) else node
        for name, node in params.items()
    }
