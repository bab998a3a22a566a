"""Loading: formats, data sets from outside the package, arrays in hand, and what is said when something is wrong."""

import io
import linecache
import logging
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from loading import load_data
from PIL import Image

from inception_jax import data
from inception_jax.data import images as image_formats
from inception_jax.data.images import Format
from inception_jax.errors import UserError

SPLITS = {"train": "train[:90%]", "validation": "train[90%:]", "test": "test"}
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), np.uint8)
LABELS = np.arange(12) % 3

MODULE = """
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

NOT_ARRAYS = 5
ARRAYS = {
    "train": (np.arange(4 * 6 * 6, dtype=np.uint8).reshape(4, 6, 6), np.array([0, 1, 1, 0])),
    "held_out": (np.full((2, 6, 6), 7, np.uint8), np.array([1, 1])),
    "class_names": ["cat", "dog"],
}

def arrays():
    return {"train": ARRAYS["train"]}

class Mnist(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    BRIGHTNESS = 40
    SIDES = (4, 4, 4)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "picture": tfds.features.Image(shape=(None, None, 3)),
                    "kind": tfds.features.ClassLabel(names=["a", "b", "c"]),
                    "note": tfds.features.Text(),
                }
            ),
            supervised_keys=("picture", "kind"),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(), "test": self._generate_examples()}

    def _generate_examples(self):
        for kind, side in enumerate(self.SIDES):
            picture = Image.fromarray(np.full((side, 4, 3), self.BRIGHTNESS + kind, np.uint8))
            yield kind, {"picture": picture, "kind": kind, "note": ""}

class Unlabelled(Mnist):
    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"image": tfds.features.Image()})
        )

    def _generate_examples(self):
        yield 0, {"image": Image.new("RGB", (4, 4))}
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A folder with a module `mine` in which the process runs."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.py").write_text(MODULE)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield folder / "mine.py"
    sys.modules.pop("mine", None)


def everything(split):
    return split.gather(np.arange(len(split)))


def test_digits_as_configured_by_default(digits):
    dataset = load_data("digits", directory=digits, splits=SPLITS)
    assert {split: len(examples) for split, examples in dataset.splits.items()} == {
        "train": 1298, "validation": 144, "test": 355,
    }  # fmt: skip
    assert dataset.image_shape == (8, 8, 1)
    assert dataset.num_classes == 10
    assert isinstance(dataset.splits["train"].images, np.memmap)
    np.testing.assert_allclose(
        dataset.channel_statistics()[0], everything(dataset.splits["train"])[0].mean() / 255, rtol=1e-12
    )
    other = load_data("digits", directory=digits, splits={"train": "train[90%:]"})
    np.testing.assert_allclose(
        other.channel_statistics()[0], everything(dataset.splits["validation"])[0].mean() / 255, rtol=1e-12
    )


def test_a_split_may_be_absent(digits):
    dataset = load_data("digits", directory=digits, splits={"train": "train", "validation": "", "test": "test"})
    assert list(dataset.splits) == ["train", "test"]


@pytest.mark.parametrize(("image_size", "channels"), [(8, 1), (None, 3), (16, None), (5, 3), (1, 1)])
def test_images_are_converted_once(image_size, channels, digits):
    plain, _ = everything(load_data("digits", directory=digits, splits={"test": "test"}).splits["test"])
    dataset = load_data("digits", directory=digits, splits={"test": "test"}, image_size=image_size, channels=channels)
    size = (image_size or 8,) * 2
    assert dataset.image_shape == (*size, channels or 1)
    expected = [np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)) for image in plain[..., 0]]
    images, _ = everything(dataset.splits["test"])
    for channel in range(channels or 1):
        np.testing.assert_array_equal(images[..., channel], expected)
    decoded = digits / "digits" / "1.0.0" / "decoded" / f"{size[0]}x{size[0]}x{channels or 1}"
    before = decoded.stat().st_mtime_ns
    load_data("digits", directory=digits, splits={"test": "test"}, image_size=image_size, channels=channels)
    assert decoded.stat().st_mtime_ns == before


@pytest.mark.parametrize("image_size", [None, 24])
def test_images_are_padded_before_they_are_resized(image_size, digits):
    splits = {"train": "train[:5]", "test": "test"}
    plain, _ = everything(load_data("digits", directory=digits, splits=splits).splits["test"])
    padded = np.pad(plain, ((0, 0), (2, 2), (2, 2), (0, 0)))
    dataset = load_data("digits", directory=digits, splits=splits, image_size=image_size, pad=2)
    side = image_size or 12
    expected = [np.asarray(Image.fromarray(image[..., 0]).resize((side, side), 2)) for image in padded]
    assert dataset.image_shape == (side, side, 1)
    np.testing.assert_array_equal(everything(dataset.splits["test"])[0][..., 0], expected)
    assert dataset.channel_statistics()[0] < plain.mean() / 255
    streamed = load_data("digits", directory=digits, splits=splits, image_size=image_size, pad=2, pipeline="streaming")
    np.testing.assert_array_equal(everything(streamed.splits["test"])[0][..., 0], expected)
    # The same size without padding is another format.
    other = load_data("digits", directory=digits, splits=splits, image_size=side)
    assert other.statistics_path != dataset.statistics_path
    assert np.any(everything(other.splits["test"])[0][..., 0] != expected)


def test_arrays_are_padded_too():
    found = image_formats.convert_arrays(IMAGES, Format(None, pad=1))
    np.testing.assert_array_equal(found, np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0))))


def test_reduction_is_antialiased_and_gray_is_luma():
    stripes = np.zeros((8, 8, 3), np.uint8)
    stripes[:, ::2] = (255, 0, 0)
    gray = image_formats.convert(Image.fromarray(stripes), Format(2, 1))
    assert gray.shape == (2, 2, 1)
    # Red has 0.299 of the luma, and every second column is red.
    np.testing.assert_allclose(gray, 0.299 * 255 / 2, atol=6)
    encoded = io.BytesIO()
    Image.fromarray(stripes).convert("RGBA").save(encoded, "PNG")
    np.testing.assert_array_equal(image_formats.decode(encoded.getvalue(), Format()), stripes)


@pytest.mark.parametrize(
    ("options", "message"), [({"image_size": 0}, "image_size=0 is not"), ({"channels": 2}, "channels=2 is not")]
)
def test_formats_that_no_image_has(options, message, digits):
    with pytest.raises(UserError, match=message):
        load_data("digits", directory=digits, splits=SPLITS, **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", "unknown data set 'mnits'. Did you mean 'mnist'"),
        ("nowhere:Name", "nowhere"),
        ("mine:Mnits", "Did you mean 'Mnist'"),
        ("mine:NOT_ARRAYS", "must be a TFDS builder or give .* not int"),
    ],
)
def test_a_data_set_that_is_none(name, message, module):
    with pytest.raises(UserError, match=message):
        load_data(name, splits=SPLITS)


def test_a_folder_that_cannot_be_written(tmp_path, digits):
    (tmp_path / "file").touch()
    for directory in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match=r"cannot write the data set to .*file.*--config.data.directory"):
            load_data("digits", directory=directory, splits=SPLITS)


def test_default_directory(tmp_path, monkeypatch):
    monkeypatch.setenv("INCEPTION_JAX_DATA", str(tmp_path / "named"))
    assert data.prepare("digits") == tmp_path / "named" / "digits" / "1.0.0"
    monkeypatch.delenv("INCEPTION_JAX_DATA")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert data.prepare("digits") == tmp_path / "home" / ".cache" / "inception_jax" / "digits" / "1.0.0"


def test_preparation_prints_nothing(tmp_path, capfd):
    data.prepare("digits", directory=tmp_path)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("splits", "number"),
    [
        ({"train": "train", "validation": "train[90%:]"}, 144),
        ({"train": "all", "test": "test"}, 355),
        ({"train": "train[:50%]", "validation": "train[50%:]"}, 0),
        ({"train": "train[:50%]", "validation": "test", "test": "test"}, 0),
    ],
)
def test_shared_examples_are_warned_of(splits, number, digits, caplog):
    with caplog.at_level(logging.WARNING):
        load_data("digits", directory=digits, splits=splits)
    assert len(caplog.messages) == (number > 0)
    assert all(f"share {number} examples" in message for message in caplog.messages)


def test_a_builder_from_outside(module, tmp_path):
    dataset = load_data("mine:Mnist", directory=tmp_path, splits={"train": "train[1:]", "test": "test"})
    assert dataset.class_names == ("a", "b", "c")
    images, labels = everything(dataset.splits["train"])
    assert labels.tolist() == [1, 2]
    np.testing.assert_array_equal(images, np.broadcast_to([[[[41]]], [[[42]]]], (2, 4, 4, 3)))
    assert not (tmp_path / "mnist").exists()  # ours stays apart
    folder = data.prepare("mine:Mnist", directory=tmp_path)
    assert tfds.builder_from_directory(folder).info.splits["test"].num_examples == 3


def test_a_builder_that_was_changed_is_prepared_again(module, tmp_path):
    data.prepare("mine:Mnist", directory=tmp_path)
    module.write_text(module.read_text().replace("BRIGHTNESS = 40", "BRIGHTNESS = 90 "))
    del sys.modules["mine"]
    linecache.clearcache()
    dataset = load_data("mine:Mnist", directory=tmp_path, splits={"train": "train"})
    assert everything(dataset.splits["train"])[0].min() == 90


def test_images_of_several_sizes_need_one(module, tmp_path):
    module.write_text(module.read_text().replace("SIDES = (4, 4, 4)", "SIDES = (4, 5, 6)"))
    data.prepare("mine:Mnist", directory=tmp_path)
    with pytest.raises(UserError, match=r"several sizes, \(4, 4\) and \(5, 4\).*--config.data.image_size"):
        load_data("mine:Mnist", directory=tmp_path, splits={"train": "train"})
    assert not list(tmp_path.rglob("*_images.npy"))
    dataset = load_data("mine:Mnist", directory=tmp_path, splits={"train": "train"}, image_size=7)
    assert dataset.image_shape == (7, 7, 3)


def test_a_builder_without_labels(module, tmp_path):
    with pytest.raises(UserError, match="'unlabelled' has no image and class label"):
        load_data("mine:Unlabelled", directory=tmp_path, splits={"train": "train"})


@pytest.mark.parametrize("name", ["mine:ARRAYS", "mine:arrays"])
def test_arrays_from_outside(name, module):
    dataset = load_data(name, splits={"train": "train[:3]"})
    images, labels = everything(dataset.splits["train"])
    np.testing.assert_array_equal(images.ravel(), np.arange(108))
    assert labels.tolist() == [0, 1, 1]
    assert dataset.image_shape == (6, 6, 1)
    assert dataset.class_names == (("cat", "dog") if name == "mine:ARRAYS" else ("0", "1"))
    with pytest.raises(UserError, match="need no preparation"):
        data.prepare(name)


def test_arrays_from_outside_are_converted(module):
    dataset = load_data("mine:ARRAYS", splits={"train": "train", "test": "held_out"}, image_size=3, channels=3)
    assert dataset.image_shape == (3, 3, 3)
    assert (everything(dataset.splits["test"])[0] == 7).all()


def test_arrays_in_hand():
    dataset = data.from_arrays(train=(IMAGES, LABELS), test=(IMAGES[:2], LABELS[:2].tolist()))
    assert list(dataset.splits) == ["train", "test"]
    assert dataset.class_names == ("0", "1", "2")
    images, labels = everything(dataset.splits["train"])
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
    assert labels.dtype == np.int32
    np.testing.assert_allclose(dataset.channel_statistics()[1], (IMAGES / 255).std(axis=(0, 1, 2)), rtol=1e-12)
    gray = data.from_arrays(train=(IMAGES[..., 0], LABELS), class_names=["x", "y", "z", "unused"])
    assert gray.image_shape == (6, 5, 1)
    assert gray.num_classes == 4


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ((IMAGES / 255, LABELS), r"uint8 from 0 to 255, not float64 from 0 to 1; convert.*astype\('uint8'\)"),
        ((IMAGES.astype(np.int64), LABELS), "not int64 from 0 to 255"),
        ((IMAGES[0, 0], LABELS), r"not of shape \(5, 3\)"),
        ((IMAGES[:0], LABELS[:0]), r"not of shape \(0, 6, 5, 3\)"),
        ((IMAGES, LABELS[:-1]), "12 images and 11 labels"),
        ((IMAGES, np.eye(3)[LABELS]), r"float64 \(12, 3\); for one-hot rows use labels.argmax"),
        ((IMAGES, LABELS / 2), "labels must be integers"),
        ((IMAGES, LABELS - 1), "labels from -1"),
        (IMAGES, "expected a pair"),
    ],
)
def test_arrays_that_are_no_images_and_labels(train, message):
    with pytest.raises(UserError, match=message) as raised:
        data.from_arrays(train=train)
    assert "train" in str(raised.value)


def test_arrays_that_do_not_belong_together():
    with pytest.raises(UserError, match=r"one shape, but there are \[\(6, 5, 1\), \(6, 5, 3\)\]"):
        data.from_arrays(train=(IMAGES, LABELS), test=(IMAGES[..., :1], LABELS))
    with pytest.raises(UserError, match="2 class names, but the label 2"):
        data.from_arrays(train=(IMAGES, LABELS), class_names=("a", "b"))
    with pytest.raises(UserError, match="1 or 3 channels, not 2"):
        image_formats.convert_arrays(IMAGES[..., :2], Format(4))
