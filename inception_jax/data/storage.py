"""The directory of prepared data, and what is said if it cannot be written."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inception_jax import files
from inception_jax.errors import UserError, WriteError


def root(directory: str | Path | None) -> Path:
    """Where prepared data is kept: `directory`, else $INCEPTION_JAX_DATA, else ~/.cache/inception_jax."""
    return files.expand(directory or os.environ.get("INCEPTION_JAX_DATA") or "~/.cache/inception_jax")


@contextlib.contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Turns an OSError or WriteError while writing to `folder` into an error that says how to choose another one.

    Raises:
      WriteError: there is no space left.
      UserError: anything else.
    """
    try:
        yield
    except (OSError, WriteError) as error:
        cause: Any = error.__cause__ if isinstance(error, WriteError) else error
        kind = WriteError if files.no_room(cause) else UserError
        raise kind(
            f"cannot write the data set to {folder}: {cause.strerror or cause}; choose another directory by "
            "--data-dir, --config.data.directory (training) or $INCEPTION_JAX_DATA"
        ) from error
