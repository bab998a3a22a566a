"""Saves Matplotlib figures to files."""

import io
import warnings
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from inception_jax.files import write_bytes


def write_figure(figure: Figure, file: Any, kind: str, **options: Any) -> None:
    """Saves a figure to an open file or a path; `kind` is png, pdf or svg, and `options` are those of savefig."""
    with warnings.catch_warnings():
        # Names may have characters that are missing in Matplotlib's font and are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(file, format=kind, **options)


def save_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Saves a figure atomically in the format of the suffix; `options` are those of savefig.

    Raises:
      ValueError: Matplotlib does not support the format.
      WriteError: the file cannot be written.
    """
    picture = io.BytesIO()  # Matplotlib raises errors of its own if the disk is full
    write_figure(figure, picture, path.suffix.lower()[1:], **options)
    write_bytes(path, picture.getvalue())
