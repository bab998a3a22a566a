"""The data set of a run: the one that its config names, or one that is given in Python."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from inception_jax import data
from inception_jax.config import Config
from inception_jax.data.dataset import Dataset

Given = tuple[np.ndarray, np.ndarray] | data.Items  # (images, labels), or a data source
# Names of data sets that were given in Python, so that no command can load them again, and what they are.
GIVEN = {"arrays": "arrays in memory", "sources": "data sources in Python"}


def load_data(config: Config) -> Dataset:
    """Loads the data set that the config names, and prepares it first if necessary."""
    return data.load(config.data.name, *data_options(config))


def given_data(config: Config, splits: Mapping[str, Given], class_names: Sequence[str] | None = None) -> Dataset:
    """The data set of arrays or of data sources by split; for the latter, the config says how pictures are read.

    Raises:
      UserError: as `data.from_arrays` and `data.from_items`.
    """
    if not any(map(data.is_items, splits.values())):
        pairs: Any = splits
        return data.from_arrays(**pairs, class_names=class_names)
    sources: Any = splits
    return data.from_items(sources, class_names, *data_options(config))


def data_options(config: Config) -> tuple[data.Location, data.Selection, data.Decoding]:
    """The config's section `data` as the arguments of `data.load`."""
    section = config.data
    splits = {name: spec for name, spec in section.splits.items() if spec}
    pipeline = "streaming" if section.augment.crop_originals else section.pipeline
    return (
        data.Location(section.directory, section.archives, section.folder),
        data.Selection(section.classes, section.hold_out, section.split_seed, splits, section.keep, section.on_error),
        data.Decoding(
            image_size=section.image_size,
            channels=section.channels,
            resize=section.resize,
            fit=section.fit,
            crop_share=section.crop_share,
            pipeline=pipeline,
            memory_gib=section.memory_gib,
            pad=section.pad,
        ),
    )
