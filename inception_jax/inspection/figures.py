"""Matplotlib's figures as files."""

import io
import warnings
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from inception_jax.files import write_bytes


def write_figure(figure: Figure, file: Any, kind: str, **options: Any) -> None:
    """Draws a figure into an open file or a path: `kind` is png, pdf or svg; `options` are those of savefig."""
    with warnings.catch_warnings():
        # Names may have letters that Matplotlib's font lacks: they are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(file, format=kind, **options)


def save_figure(figure: Figure, path: Path, **options: Any) -> None:
    """Writes a whole file of the kind that its suffix says; `options` are those of savefig.

    Raises:
      ValueError: Matplotlib draws no such kind.
      WriteError: the file cannot be written.
    """
    picture = io.BytesIO()  # Matplotlib has errors of its own where a disk is full
    write_figure(figure, picture, path.suffix.lower()[1:], **options)
    write_bytes(path, picture.getvalue())
