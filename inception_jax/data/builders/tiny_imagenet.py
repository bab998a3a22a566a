"""The Tiny ImageNet photographs."""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.registered import skip_registration

from inception_jax.data import archives
from inception_jax.data.archives import Content
from inception_jax.data.builders import info, picture_files
from inception_jax.data.builders.picture_files import Files
from inception_jax.errors import UserError

ARCHIVE = "tiny-imagenet-200.zip"
URL = f"http://cs231n.stanford.edu/{ARCHIVE}"
HOMEPAGE = "http://cs231n.stanford.edu/"
CITATION = """
@techreport{le2015tiny,
  author = {Le, Ya and Yang, Xuan},
  title = {Tiny {ImageNet} Visual Recognition Challenge},
  institution = {Stanford University, CS 231N},
  year = {2015},
}
"""
ROOT = "tiny-imagenet-200/"
PACKED = Content(248_100_043, "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821")
SIDE = 64  # pixels

logger = logging.getLogger(__name__)

with skip_registration():

    class TinyImagenet(tfds.core.GeneratorBasedBuilder):
        """110,000 photographs of 200 classes, 64x64x3: 500 of each class for training and 50 for testing.

        Made for Stanford's course CS231n (2015) from ImageNet's ILSVRC photographs (Russakovsky et al. 2015), under
        the same terms: non-commercial research and education. The test split is the published validation set; the
        published test set has no labels and is not used. 1.8 % of the files are stored as grayscale; all are kept
        byte for byte.

        Labels are in the order of the sorted synsets ("n01443537" first). The training split cycles through the
        classes, one photograph of each at a time. If a folder has only some of the classes, the data set has these.
        """

        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = f"{ARCHIVE}, or the folder {ROOT} from it."

        def _info(self) -> tfds.core.DatasetInfo:
            return info.labelled_images(
                self,
                (SIDE, SIDE, 3),
                # Set when the files are known: a folder may hold only some of the classes. TFDS stores the names next
                # to the examples.
                tfds.features.ClassLabel(),
                homepage=HOMEPAGE,
                citation=CITATION,
                encoding="jpeg",
                file_name=tfds.features.Text(),
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            files = _open(dl_manager)
            synsets = _synsets(files)
            features: Any = self.info.features
            features["label"].names = _class_names(files, synsets)
            train = picture_files.in_rounds(
                [
                    [
                        f"train/{synset}/images/{row[0]}"
                        for row in files.read_rows(f"train/{synset}/{synset}_boxes.txt", 1)
                    ]
                    for synset in synsets
                ]
            )
            labels = {synset: label for label, synset in enumerate(synsets)}
            annotations = files.read_rows("val/val_annotations.txt", 2)
            test = [(f"val/images/{name}", labels[synset]) for name, synset, *_ in annotations if synset in labels]
            files.require(name for name, _ in train + test)
            return {"train": self._generate_examples(files, train), "test": self._generate_examples(files, test)}

        def _generate_examples(
            self, files: Files, labelled: list[tuple[str, int]]
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, (name, label) in enumerate(labelled):
                content, size = files.read_picture(name)
                if size != (SIDE, SIDE):
                    raise UserError(
                        f"{name} in {files.where} is not the published file: it has {size[1]}x{size[0]} pixels, not "
                        f"{SIDE}x{SIDE}: get it again"
                    )
                yield index, {"image": content, "label": label, "file_name": name}  # TFDS stores bytes unchanged


def _open(dl_manager: tfds.download.DownloadManager) -> Files:
    folder = archives.given_folder(dl_manager)
    if folder is None:
        path = archives.download(dl_manager, {"archive": URL})["archive"]
    else:
        path = archives.require(folder, ("wnids.txt", ARCHIVE))
        if path.name == "wnids.txt":
            return picture_files.in_folder(path.parent)
    return picture_files.in_zip(path, PACKED, ROOT)


def _synsets(files: Files) -> list[str]:
    """The classes with photographs, sorted."""
    published = sorted({row[0].strip() for row in files.read_rows("wnids.txt", 1)})
    there = {name.split("/")[1] for name in files.names if name.startswith("train/")}
    synsets = [synset for synset in published if synset in there]
    if not synsets:
        raise UserError(
            f"{files.where} has no folder train/ with photographs of the synsets in wnids.txt: get it again"
        )
    if len(synsets) < len(published):
        logger.warning("%s contains %d of the %d classes of its wnids.txt", files.where, len(synsets), len(published))
    return synsets


def _class_names(files: Files, synsets: list[str]) -> list[str]:
    """The first synonym of each synset; if synsets share it, all synonyms; if these are equal, too, the synset is
    appended.
    """
    words = {row[0]: row[1].strip() for row in files.read_rows("words.txt", 2)}
    synonyms = [words.get(synset, synset) for synset in synsets]
    names = [text.split(",")[0] for text in synonyms]
    for longer in (synonyms, [f"{text} ({synset})" for text, synset in zip(synonyms, synsets, strict=True)]):
        counts = Counter(names)
        names = [more if counts[name] > 1 else name for name, more in zip(names, longer, strict=True)]
    return names
