"""scikit-learn's handwritten digits: a data set that needs no download."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.registered import skip_registration

from inception_jax.data.builders import info, mnist

HOMEPAGE = "https://archive.ics.uci.edu/dataset/80/optical+recognition+of+handwritten+digits"
CITATION = """
@misc{alpaydin1998optical,
  author = {Alpaydin, E. and Kaynak, C.},
  title = {Optical Recognition of Handwritten Digits},
  howpublished = {UCI Machine Learning Repository},
  doi = {10.24432/C50P49},
  year = {1998},
}
"""

with skip_registration():

    class Digits(tfds.core.GeneratorBasedBuilder):
        """1,797 handwritten digits, 8x8x1, embedded in scikit-learn (`sklearn.datasets.load_digits`).

        They are the test part of the UCI data set "Optical Recognition of Handwritten Digits" (Alpaydin and
        Kaynak 1998), by 13 writers. Values 0 to 16 become round(value * 255 / 16), half to even:
        8 becomes 128. Every fifth image of each class is the test split, 355 images, and the other 1,442 are the
        training split, so every writer is in both: the test is on new images, not on new writers.
        """

        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> tfds.core.DatasetInfo:
            label = tfds.features.ClassLabel(num_classes=10)
            return info.labelled_images(self, (8, 8, 1), label, homepage=HOMEPAGE, citation=CITATION)

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            from sklearn.datasets import load_digits  # slow to import, and needed once

            values, labels = map(np.asarray, load_digits(return_X_y=True))
            images = np.rint(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
            # Within each class, since the digits are in order from 0 to 9 in parts of the set.
            held_out = np.zeros(len(labels), bool)
            for label in range(10):
                held_out[np.flatnonzero(labels == label)[4::5]] = True
            return {
                "train": self._generate_examples(images[~held_out], labels[~held_out]),
                "test": self._generate_examples(images[held_out], labels[held_out]),
            }

        def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
            return mnist.examples(images, labels)
