"""The pictures that loggers show of a run."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from inception_jax.config import Config
from inception_jax.data.dataset import Dataset
from inception_jax.errors import described
from inception_jax.runs.run import load_run

logger = logging.getLogger(__name__)

Images = dict[str, np.ndarray]  # by name, uint8 (1, height, width, 3)


def of_data(dataset: Dataset, config: Config) -> Images:
    """Training images, each as it is stored and with samples of the augmentation."""
    from inception_jax.trained.contact_sheet import contact_sheet

    return _or_none(lambda: {"augmented": contact_sheet(dataset, config).array[None]})


def of_network(folder: Path, dataset: Dataset, config: Config) -> Images:
    """The most confident mistakes on the test split, else on the validation split, and Grad-CAM, as in the report."""
    split = next((name for name in ("test", "validation") if name in dataset.splits), None)
    return {} if split is None else _or_none(lambda: _examined(folder, dataset, split, config))


def _examined(folder: Path, dataset: Dataset, split: str, config: Config) -> Images:
    from inception_jax.trained.contact_sheet import sheet  # not earlier, since Matplotlib would delay the first step
    from inception_jax.trained.report.findings import Example, examine_on

    found = examine_on(load_run(folder, own=config), dataset, split)

    def drawn(examples: Sequence[Example], **columns: np.ndarray) -> np.ndarray:
        captions = [f"{each.label}, predicted {each.predicted} ({100 * each.probability:.0f} %)" for each in examples]
        images = np.stack([each.image for each in examples])
        return sheet(captions, {"image": images, **columns}).array[None]

    pictures = {}
    if found.mistakes:
        pictures["mistakes"] = drawn(found.mistakes)
    heats = [example.heat for example in found.sample if example.heat is not None]
    if heats:
        pictures["grad_cam"] = drawn(found.sample, **{"Grad-CAM": np.stack(heats)})
    return pictures


def _or_none(make: Callable[[], Images]) -> Images:
    try:
        return make()
    except Exception as error:  # whatever it is, the run does not need them
        logger.warning("pictures for the loggers are left out: making them %s", described(error))
        return {}
