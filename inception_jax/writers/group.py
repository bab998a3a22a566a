"""All writers of a run behind one interface."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from inception_jax.errors import WriteError, described
from inception_jax.writers.protocol import Writer

logger = logging.getLogger(__name__)


class Table(Writer, Protocol):
    """The writer of metrics.csv."""

    def resume(self, step: int) -> Sequence[Mapping[str, float]]:
        """Discards the rows after `step`, and returns the others."""
        ...


class Writers:
    """metrics.csv and the loggers of a run. A logger that fails is reported in a warning and no longer used.

    Args:
      table: metrics.csv; None in all processes but the first, which alone writes.
      loggers: (name, writer).
      pictures: whether loggers get pictures, which take time to make.

    Raises:
      WriteError: by every method, if a file of the run cannot be written.
    """

    def __init__(self, table: Table | None, loggers: Sequence[tuple[str, Writer]], *, pictures: bool = False):
        self._table = table
        self._loggers = list(loggers)
        self.pictures = pictures

    def resume(self, step: int) -> None:
        """Discards what was written of later steps, as far as the writers can."""
        if self._table is not None:
            self._each("resume", step, self._table.resume(step))

    def write_row(self, step: int, row: Mapping[str, float]) -> None:
        """Records an evaluation: a row of metrics.csv."""
        if self._table is not None:
            self._table.write_scalars(step, row)
        self._each("write_scalars", step, row)
        self._each("flush")

    def write_point(self, step: int, scalars: Mapping[str, float]) -> None:
        """Records numbers that are not in metrics.csv."""
        self._each("write_scalars", step, scalars)

    def write_texts(self, step: int, texts: Mapping[str, str]) -> None:
        self._each("write_texts", step, texts)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        self._each("write_images", step, images)

    def write_hparams(self, hparams: Mapping[str, Any]) -> None:
        self._each("write_hparams", hparams)

    def write_file(self, path: Path) -> None:
        self._each("write_file", path)

    def close(self) -> None:
        self._each("close")

    def __bool__(self) -> bool:
        """Whether there are loggers."""
        return bool(self._loggers)

    def _each(self, method: str, *arguments: Any) -> None:
        for name, writer in list(self._loggers):
            function = getattr(writer, method, None)
            if function is None:  # `resume` and `write_file` are optional
                continue
            try:
                function(*arguments)
            except WriteError:
                raise
            except Exception as error:
                self._loggers.remove((name, writer))
                logger.warning("writer %s: %s %s; training goes on without it", name, method, described(error))
