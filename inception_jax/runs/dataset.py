"""The data set that a run's config names."""

from inception_jax import data
from inception_jax.config import Config
from inception_jax.data.dataset import Dataset


def load_data(config: Config) -> Dataset:
    """Loads the data set that the config names, and prepares it first if necessary."""
    return data.load(config.data.name, *data_options(config))


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
