"""The UC Merced land use images, in two divisions into training and test pictures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds
from tensorflow_datasets.core.registered import skip_registration

from inception_jax.data import archives, images
from inception_jax.data.archives import Content
from inception_jax.data.builders import info, picture_files
from inception_jax.data.builders.picture_files import Files
from inception_jax.errors import UserError

ARCHIVE = "UCMerced_LandUse.zip"
URL = f"http://weegee.vision.ucmerced.edu/datasets/{ARCHIVE}"
HOMEPAGE = "http://weegee.vision.ucmerced.edu/datasets/landuse.html"
CITATION = """
@inproceedings{yang2010bag,
  author = {Yang, Yi and Newsam, Shawn},
  title = {Bag-of-Visual-Words and Spatial Extensions for Land-Use Classification},
  booktitle = {ACM SIGSPATIAL International Conference on Advances in Geographic Information Systems},
  year = {2010},
}
"""
ROOT = "UCMerced_LandUse/Images/"
PACKED = Content(332_468_434, "06c539ef28703a58fb07bd2837991ac7c48b813b00bb12ac197efd813a18daeb")
CLASS_NAMES = (
    "agricultural",
    "airplane",
    "baseballdiamond",
    "beach",
    "buildings",
    "chaparral",
    "denseresidential",
    "forest",
    "freeway",
    "golfcourse",
    "harbor",
    "intersection",
    "mediumresidential",
    "mobilehomepark",
    "overpass",
    "parkinglot",
    "river",
    "runway",
    "sparseresidential",
    "storagetanks",
    "tenniscourt",
)
PER_CLASS = 100
STRIDE = 31  # coprime to the 80 training images of a class, and close to their golden section
SUFFIXES = (".tif", ".png", ".jpg")  # the first that exists; copies as PNG or JPEG are in circulation

with skip_registration():

    class UcMerced(tfds.core.GeneratorBasedBuilder):
        """2,100 aerial pictures of 21 kinds of land use, 100 of each, 256x256x3 except for 44 of other sizes.

        By Yang and Newsam, "Bag-Of-Visual-Words and Spatial Extensions for Land-Use Classification" (ACM GIS 2010), to
        be cited; cut from pictures of the USGS National Map, which are in the public domain.

        They are published without splits. Here every fifth picture of each class by name (04, 09, ..., 99) is the test
        split, 420 pictures, and the other 1,680 are the training split. Both cycle through the classes, one picture
        of each at a time, the training split in strides through each class, so that any slice covers the whole class.
        TIFF files are kept as PNG, pixel for pixel; PNG and JPEG files byte for byte.

        Pictures with close numbers show the same places. Test pictures between training pictures, as here or in the
        usual random splits, are easier than those of unseen places; `UcMercedApart` has the latter.
        """

        name = "inception_jax_uc_merced"
        EARLIER_NAME = "uc_merced"
        VERSION = tfds.core.Version("2.0.0")
        RELEASE_NOTES: ClassVar = {
            "1.0.0": "The training split in the order of the names.",
            "2.0.0": "The training split in strides: its last 10 % are as close to the others as the test split is.",
        }
        MANUAL_DOWNLOAD_INSTRUCTIONS = f"{ARCHIVE}, or the 21 folders of pictures from it."

        def _info(self) -> tfds.core.DatasetInfo:
            label, file_name = tfds.features.ClassLabel(names=CLASS_NAMES), tfds.features.Text()
            return info.labelled_images(
                self, (None, None, 3), label, homepage=HOMEPAGE, citation=CITATION, file_name=file_name
            )

        def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
            files = _open(dl_manager)
            named = [
                [_with_suffix(files, f"{name}/{name}{number:02}") for number in range(PER_CLASS)]
                for name in CLASS_NAMES
            ]
            files.require(name for names in named for name in names)
            train, test = zip(*map(self._divided, named), strict=True)
            return {
                "train": self._generate_examples(files, picture_files.in_rounds(train)),
                "test": self._generate_examples(files, picture_files.in_rounds(test)),
            }

        def _divided(self, names: list[str]) -> tuple[list[str], list[str]]:
            """The training and the test pictures of a class, in the order of their splits, from all sorted by name."""
            train = [name for number, name in enumerate(names) if number % 5 != 4]
            return [train[number * STRIDE % len(train)] for number in range(len(train))], names[4::5]

        def _generate_examples(
            self, files: Files, labelled: list[tuple[str, int]]
        ) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, (name, label) in enumerate(labelled):
                content, _ = files.read_picture(name)
                image: Any = content  # TFDS stores bytes unchanged, and an image as PNG
                if name.endswith(".tif"):
                    image = images.open_picture(content)
                yield index, {"image": image, "label": label, "file_name": name}

    class UcMercedApart(UcMerced):
        """The 2,100 pictures of `UcMerced`, divided so that test pictures have no neighbors among the training ones.

        The last 20 pictures of each class by name (80 to 99) are the test split, 420 pictures, and 00 to 79 are the
        training split, 1,680, in the order of the names, one picture of each class at a time. If a validation split is
        cut off its end, such as the last 10 % (72 to 79), it lies between what is trained on and what is tested.

        Which pictures are of the same place is not published, but close numbers are: by color histograms (8 levels a
        channel, Bhattacharyya coefficient), the most similar picture of its class is one number away for 47 % of the
        pictures, where chance is 2 %, and at most 10 away for 85 % (19 %); the similarity falls until the numbers are
        about 30 apart. The most similar of the first 90 % of the training split has the right class for 79.8 % of the
        test pictures of `UcMerced`, for 78.1 to 80.5 % in five random splits, and here for 27.6 %.
        """

        name = "uc_merced_apart"
        EARLIER_NAME = None
        VERSION = tfds.core.Version("1.0.0")
        RELEASE_NOTES: ClassVar = {}

        def _divided(self, names: list[str]) -> tuple[list[str], list[str]]:
            at = len(names) - len(names) // 5
            return names[:at], names[at:]


def _open(dl_manager: tfds.download.DownloadManager) -> Files:
    folder = archives.given_folder(dl_manager)
    if folder is None:
        return picture_files.in_zip(archives.download(dl_manager, {"archive": URL})["archive"], PACKED, ROOT)
    root = _class_folders(folder)
    if root is not None:
        return picture_files.in_folder(root)
    path = archives.find(folder, (ARCHIVE,))
    if path is None:
        raise UserError(
            f"no {ARCHIVE} in {folder} or its folders, and no folder {CLASS_NAMES[0]} up to two levels below: "
            f"{archives.USE_ARCHIVES}"
        )
    return picture_files.in_zip(path, PACKED, ROOT)


def _class_folders(folder: Path) -> Path | None:
    """The folder with the classes' folders: this one or one up to two levels below."""
    found = (path for below in ("", "*/", "*/*/") for path in sorted(folder.glob(below + CLASS_NAMES[0])))
    return next((path.parent for path in found if path.is_dir()), None)


def _with_suffix(files: Files, stem: str) -> str:
    """The name of the image's file; the published name if there is none."""
    return next((stem + suffix for suffix in SUFFIXES if stem + suffix in files.names), stem + SUFFIXES[0])
