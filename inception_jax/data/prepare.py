"""Preparing a data set ahead of its use."""

from pathlib import Path

from inception_jax.data.decoded import decoded_folder
from inception_jax.data.images import Format
from inception_jax.data.options import Location
from inception_jax.data.published import published


def prepare(name: str, *, directory: str | Path | None = None, archives: str | Path | None = None) -> Path:
    """Downloads or reads the archives, writes ArrayRecord files and decodes them; steps that are done are skipped.

    Args:
      name: as for `load`.
      directory, archives: see `Location`.

    Returns:
      The data set's folder, which `tfds.builder_from_directory` opens.

    Raises:
      UserError: as `published`.
    """
    found = published(name, Location(directory, archives))
    if len(found.sizes()) == 1:  # otherwise an image size has to be chosen first
        decoded_folder(found, Format(channels=found.channels))
    return found.cache
