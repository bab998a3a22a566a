"""The MNIST handwritten digits."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.registered import skip_registration

from inception_jax.data import archives
from inception_jax.data.archives import Content
from inception_jax.data.builders import info

URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"
HOMEPAGE = "http://yann.lecun.com/exdb/mnist/"
CITATION = """
@misc{lecun1998mnist,
  author = {LeCun, Yann and Cortes, Corinna and Burges, Christopher J. C.},
  title = {The {MNIST} Database of Handwritten Digits},
  url = {http://yann.lecun.com/exdb/mnist/},
  year = {1998},
}
"""

# The four IDX files: a header of 16 (images) or 8 (labels) bytes, then one byte per pixel or label.
FILES = {
    "train-images-idx3-ubyte": Content(47_040_016, "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
    "train-labels-idx1-ubyte": Content(60_008, "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    "t10k-images-idx3-ubyte": Content(7_840_016, "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
    "t10k-labels-idx1-ubyte": Content(10_008, "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
}


def read_idx(
    dl_manager: tfds.download.DownloadManager, url: str, files: dict[str, Content]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images uint8 `(n, 28, 28)` and labels uint8 `(n,)` of "train" and "test", from four files in MNIST's format.

    Args:
      dl_manager: provides the folder with the files, gzipped or not, if one is given.
      url: base URL of the downloads; `.gz` is appended to each name.
      files: name -> expected content.
    """
    folder = archives.given_folder(dl_manager)
    if folder is None:
        paths = archives.download(dl_manager, {name: f"{url}{name}.gz" for name in files})
        bytes_of = {name: archives.read(path, files[name]) for name, path in paths.items()}
    else:
        # Some unpacked copies have a dot before the "idx" in their names.
        bytes_of = {
            name: archives.read_found(folder, (f"{name}.gz", name, name.replace("-idx", ".idx")), content)
            for name, content in files.items()
        }
    return {
        split: (
            np.frombuffer(bytes_of[f"{prefix}-images-idx3-ubyte"], np.uint8, offset=16).reshape(-1, 28, 28),
            np.frombuffer(bytes_of[f"{prefix}-labels-idx1-ubyte"], np.uint8, offset=8),
        )
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }


def examples(images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
    """The examples in the form that a builder yields."""
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield index, {"image": Image.fromarray(image), "label": int(label)}


with skip_registration():

    class Mnist(tfds.core.GeneratorBasedBuilder):
        """70,000 handwritten digits, 28x28x1, 60,000 of them for training (LeCun, Cortes and Burges 1998)."""

        name = "inception_jax_mnist"
        EARLIER_NAME = "mnist"
        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = "The four files *-ubyte.gz as published, or unpacked."

        def _info(self) -> tfds.core.DatasetInfo:
            label = tfds.features.ClassLabel(num_classes=10)
            return info.labelled_images(self, (28, 28, 1), label, homepage=HOMEPAGE, citation=CITATION)

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            arrays = read_idx(dl_manager, URL, FILES)
            return {split: self._generate_examples(*pair) for split, pair in arrays.items()}

        def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
            return examples(images, labels)
