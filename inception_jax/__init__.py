"""inception_jax at the REPL: networks by name, training on arrays in hand, and finished runs."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inception_jax.config import default_config
    from inception_jax.errors import UserError
    from inception_jax.models import fold_batch_norm, list_models
    from inception_jax.run import load_run
    from inception_jax.train import fit, train_and_evaluate
    from inception_jax.weights import Preprocessing, create_model

__all__ = [
    "Preprocessing",
    "UserError",
    "create_model",
    "default_config",
    "fit",
    "fold_batch_norm",
    "list_models",
    "load_run",
    "train_and_evaluate",
]

_MODULES = {
    "Preprocessing": "weights",
    "UserError": "errors",
    "create_model": "weights",
    "default_config": "config",
    "fit": "train",
    "fold_batch_norm": "models",
    "list_models": "models",
    "load_run": "run",
    "train_and_evaluate": "train",
}


def __getattr__(name: str) -> Any:
    """Imports on first use, so that the shell answers help and mistakes without waiting for JAX."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
