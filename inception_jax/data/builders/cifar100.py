"""The CIFAR-100 photographs."""

from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.registered import skip_registration

from inception_jax.data.archives import Content
from inception_jax.data.builders import cifar10, info

ARCHIVE = "cifar-100-binary.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"

# As in fine_label_names.txt and coarse_label_names.txt in the archive.
CLASS_NAMES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
)  # fmt: skip
COARSE_NAMES = (
    "aquatic_mammals", "fish", "flowers", "food_containers", "fruit_and_vegetables", "household_electrical_devices",
    "household_furniture", "insects", "large_carnivores", "large_man-made_outdoor_things",
    "large_natural_outdoor_scenes", "large_omnivores_and_herbivores", "medium_mammals", "non-insect_invertebrates",
    "people", "reptiles", "small_mammals", "trees", "vehicles_1", "vehicles_2",
)  # fmt: skip

# Each record has a byte for the coarse label, one for the fine label, then 32x32 bytes of red, of green and of blue.
# Only MD5 digests of the unpacked files are known.
FILES = {
    "train.bin": Content(153_700_000, "6172c7755cfe09b2fe270c85cebc1b15"),
    "test.bin": Content(30_740_000, "4499cfba6c016c1be1438163640a0898"),
}

with skip_registration():

    class Cifar100(tfds.core.GeneratorBasedBuilder):
        """60,000 photographs of 100 classes, 32x32x3, 500 of each for training and 100 for the test (Krizhevsky 2009).

        The feature "coarse_label" is one of 20 coarse classes of five classes each. Cite A. Krizhevsky, "Learning
        Multiple Layers of Features from Tiny Images" (2009), if you use it.
        """

        name = "inception_jax_cifar100"
        EARLIER_NAME = "cifar100"
        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = f"{ARCHIVE}, or its files train.bin and test.bin."

        def _info(self) -> tfds.core.DatasetInfo:
            return info.labelled_images(
                self,
                (32, 32, 3),
                tfds.features.ClassLabel(names=CLASS_NAMES),
                homepage=cifar10.HOMEPAGE,
                citation=cifar10.CITATION,
                coarse_label=tfds.features.ClassLabel(names=COARSE_NAMES),
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            files = cifar10.read_files(dl_manager, URL, ARCHIVE, FILES)
            return {split: self._generate_examples(files[f"{split}.bin"]) for split in ("train", "test")}

        def _generate_examples(self, batch: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, ((coarse_label, label), image) in enumerate(cifar10.records(batch, label_bytes=2)):
                yield index, {"image": image, "label": label, "coarse_label": coarse_label}
