"""The CIFAR-10 photographs."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.core.registered import skip_registration

from inception_jax.data import archives
from inception_jax.data.archives import Content
from inception_jax.data.builders import info

ARCHIVE = "cifar-10-binary.tar.gz"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
HOMEPAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
CITATION = """
@techreport{krizhevsky2009learning,
  author = {Krizhevsky, Alex},
  title = {Learning Multiple Layers of Features from Tiny Images},
  institution = {University of Toronto},
  year = {2009},
}
"""
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# 10,000 records each: a label byte, then 32x32 bytes of red, of green and of blue.
TRAIN_FILES = {
    f"data_batch_{number}.bin": Content(30_730_000, sha256)
    for number, sha256 in enumerate(
        (
            "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
            "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
            "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
            "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
            "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        ),
        start=1,
    )
}
TEST_FILES = {"test_batch.bin": Content(30_730_000, "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b")}
FILES = TRAIN_FILES | TEST_FILES


def read_files(
    dl_manager: tfds.download.DownloadManager, url: str, archive: str, files: dict[str, Content]
) -> dict[str, bytes]:
    """The content of `files`: from the archive, or from an unpacked copy if one of them exists."""
    folder = archives.given_folder(dl_manager)
    if folder is None:
        return archives.read_members(archives.download(dl_manager, {"archive": url})["archive"], files)
    if archives.find(folder, tuple(files)) is None:
        return archives.read_members(archives.require(folder, (archive, next(iter(files)))), files)
    return {name: archives.read_found(folder, (name,), content) for name, content in files.items()}


def records(batch: bytes, label_bytes: int) -> Iterator[tuple[list[int], Image.Image]]:
    """The labels and the image of each record: `label_bytes` bytes of labels, then the red, green and blue planes."""
    for record in np.frombuffer(batch, np.uint8).reshape(-1, label_bytes + 3 * 32 * 32):
        image = np.ascontiguousarray(record[label_bytes:].reshape(3, 32, 32).transpose(1, 2, 0))
        yield record[:label_bytes].tolist(), Image.fromarray(image)


with skip_registration():

    class Cifar10(tfds.core.GeneratorBasedBuilder):
        """60,000 photographs of 10 classes, 32x32x3, 50,000 of them for training (Krizhevsky 2009)."""

        name = "inception_jax_cifar10"
        EARLIER_NAME = "cifar10"
        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = f"{ARCHIVE}, or its six files *.bin."

        def _info(self) -> tfds.core.DatasetInfo:
            label = tfds.features.ClassLabel(names=CLASS_NAMES)
            return info.labelled_images(self, (32, 32, 3), label, homepage=HOMEPAGE, citation=CITATION)

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            files = read_files(dl_manager, URL, ARCHIVE, FILES)
            return {
                "train": self._generate_examples([files[name] for name in TRAIN_FILES]),
                "test": self._generate_examples([files[name] for name in TEST_FILES]),
            }

        def _generate_examples(self, batches: list[bytes]) -> Iterator[tuple[int, dict[str, Any]]]:
            pairs = (pair for batch in batches for pair in records(batch, label_bytes=1))
            for index, ((label,), image) in enumerate(pairs):
                yield index, {"image": image, "label": label}
