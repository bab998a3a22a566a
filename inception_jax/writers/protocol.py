"""What every writer can do."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

METHODS = ("write_scalars", "write_texts", "write_images", "write_hparams", "flush", "close")


class Writer(Protocol):
    """Records what a run reports, in a file or with a service. The method names are those of `clu.metric_writers`.

    A subclass needs to define only the methods that it uses; the others do nothing.
    """

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records numbers by name, after update `step`: a row of metrics.csv, or a point between two rows."""

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        """Records texts by name."""

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Records pictures by name, each uint8 of shape (number, height, width, 1 or 3)."""

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        """Records the fields of the config by their full names, such as "model.name"."""

    def flush(self) -> None:
        """Makes what was written permanent. Called after each row of metrics.csv."""

    def close(self) -> None:
        """Ends the writing. Called once."""


class RunWriter(Writer, Protocol):
    """A writer with two optional methods that `clu.metric_writers` does not have."""

    def resume(self, step: int, rows: Sequence[Mapping[str, float]]) -> None:
        """Prepares for a run that continues from `step`; later steps will be written again.

        Args:
          step: 0 for a new run.
          rows: the rows of metrics.csv up to then, each with its `step`.
        """

    def write_file(self, path: Path) -> None:
        """Keeps a copy of a file from the run's folder, such as its report."""
