"""The Fashion-MNIST images of clothes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.registered import skip_registration

from inception_jax.data.archives import Content
from inception_jax.data.builders import info, mnist

URL = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
HOMEPAGE = "https://github.com/zalandoresearch/fashion-mnist"
CITATION = """
@misc{xiao2017fashion,
  author = {Xiao, Han and Rasul, Kashif and Vollgraf, Roland},
  title = {Fashion-{MNIST}: a Novel Image Dataset for Benchmarking Machine Learning Algorithms},
  eprint = {1708.07747},
  archiveprefix = {arXiv},
  year = {2017},
}
"""
CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)

# Same format and file names as MNIST. Only MD5 digests of the unpacked files are known (TFDS knows the SHA-256 of the
# packed ones, and checks it after the download).
FILES = {
    "train-images-idx3-ubyte": Content(47_040_016, "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
    "train-labels-idx1-ubyte": Content(60_008, "9018921c3c673c538a1fc5bad174d6f9"),
    "t10k-images-idx3-ubyte": Content(7_840_016, "8181f5470baa50b63fa0f6fddb340f0a"),
    "t10k-labels-idx1-ubyte": Content(10_008, "15d484375f8d13e6eb1aabb0c3f46965"),
}

with skip_registration():

    class FashionMnist(tfds.core.GeneratorBasedBuilder):
        """70,000 pictures of clothes in 10 classes, 28x28x1, 60,000 of them for training.

        By Xiao, Rasul and Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
        Algorithms" (2017), under the MIT license.
        """

        name = "inception_jax_fashion_mnist"
        EARLIER_NAME = "fashion_mnist"
        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = "The four files *-ubyte.gz as published, or unpacked."

        def _info(self) -> tfds.core.DatasetInfo:
            label = tfds.features.ClassLabel(names=CLASS_NAMES)
            return info.labelled_images(self, (28, 28, 1), label, homepage=HOMEPAGE, citation=CITATION)

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            arrays = mnist.read_idx(dl_manager, URL, FILES)
            return {split: self._generate_examples(*pair) for split, pair in arrays.items()}

        def _generate_examples(self, images: np.ndarray, labels: np.ndarray) -> Iterator[tuple[int, dict[str, Any]]]:
            return mnist.examples(images, labels)
