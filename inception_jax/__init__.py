"""Interactive use of inception_jax: networks by name, training on arrays in memory, and finished runs."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inception_jax import ops, steps, weights
    from inception_jax.config import default_config
    from inception_jax.errors import UserError
    from inception_jax.inspection import (
        activations,
        feature_grid,
        filters,
        grad_cam,
        layer_table,
        network_diagram,
        overlay,
    )
    from inception_jax.models import fold_batch_norm, list_models
    from inception_jax.runs.records import list_runs
    from inception_jax.train import fit, train_and_evaluate
    from inception_jax.train.find_lr import find_learning_rate
    from inception_jax.trained.compare import compare_runs
    from inception_jax.trained.trained_run import load
    from inception_jax.weights import Preprocessing, create_model

    __version__: str

__all__ = [
    "Preprocessing",
    "UserError",
    "__version__",
    "activations",
    "compare_runs",
    "create_model",
    "default_config",
    "feature_grid",
    "filters",
    "find_learning_rate",
    "fit",
    "fold_batch_norm",
    "grad_cam",
    "layer_table",
    "list_models",
    "list_runs",
    "load",
    "network_diagram",
    "ops",
    "overlay",
    "steps",
    "train_and_evaluate",
    "weights",
]

_MODULES = ("ops", "steps", "weights")

_PLACES = {
    "Preprocessing": "weights.Preprocessing",
    "UserError": "errors.UserError",
    "activations": "inspection.activations",
    "compare_runs": "trained.compare.compare_runs",
    "create_model": "weights.create_model",
    "default_config": "config.default_config",
    "feature_grid": "inspection.feature_grid",
    "filters": "inspection.filters",
    "find_learning_rate": "train.find_lr.find_learning_rate",
    "fit": "train.fit",
    "fold_batch_norm": "models.fold_batch_norm",
    "grad_cam": "inspection.grad_cam",
    "layer_table": "inspection.layer_table",
    "list_models": "models.list_models",
    "list_runs": "runs.records.list_runs",
    "load": "trained.trained_run.load",
    "network_diagram": "inspection.network_diagram",
    "overlay": "inspection.overlay",
    "train_and_evaluate": "train.train_and_evaluate",
}


def __getattr__(name: str) -> Any:
    """Imports names on first use, so that the command line shows help and error messages without waiting for JAX."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name == "__version__":
        return importlib.import_module("importlib.metadata").version("inception-jax")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _PLACES[name].rpartition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
