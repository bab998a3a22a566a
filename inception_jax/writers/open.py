"""Finding a run's writers by name, and creating them."""

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inception_jax.errors import UserError, described
from inception_jax.writers.background import Background
from inception_jax.writers.protocol import METHODS, Writer


def _tensorboard(folder: Path) -> Writer:
    from inception_jax.writers.tensorboard import TensorBoardWriter

    return TensorBoardWriter(folder)


def _mlflow(folder: Path) -> Writer:
    from inception_jax.writers.mlflow import MlflowWriter

    return Background("MLflow", lambda: MlflowWriter(folder))


def _wandb(folder: Path) -> Writer:
    from inception_jax.writers.wandb import WandbWriter, require_login

    require_login()
    return Background("W&B", lambda: WandbWriter(folder))


# Each is called with the run's folder. Their libraries are imported only then.
WRITERS: Mapping[str, Callable[[Path], Writer]] = {"mlflow": _mlflow, "tensorboard": _tensorboard, "wandb": _wandb}
EXTRAS = ("mlflow", "wandb")  # writers that need the extra, and the package, of the same name


def require_package(name: str) -> None:
    """Raises UserError if the package that a writer needs is not installed."""
    if name not in EXTRAS:
        return
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:  # without an origin it is any folder of that name, such as W&B's own
        raise UserError(f"log.to={name} needs a package: pip install 'inception-jax[{name}]'")


def open_writer(name: str, writer: Any, folder: Path) -> Writer:
    """The writer itself, or what it returns for the run's folder if it is a class or a function.

    Raises:
      UserError: it raises, or has not all methods of a writer.
    """
    if isinstance(writer, type) or not hasattr(writer, "write_scalars"):
        if not callable(writer):
            raise UserError(f"writer {name}: it is neither a writer nor a class or function that returns one")
        try:
            writer = writer(folder)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"writer {name}: for the run's folder it {described(error)}") from error
    missing = [method for method in METHODS if not callable(getattr(writer, method, None))]
    if missing:
        raise UserError(
            f"writer {name}: it has no {', '.join(missing)}; a class that inherits from inception_jax.writers.Writer "
            "has all methods"
        )
    return writer
