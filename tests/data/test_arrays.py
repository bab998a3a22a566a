"""What arrays must be, what is said of those that are not, and that their content is known again."""

import logging

import numpy as np
import pytest

from inception_jax import data
from inception_jax.data import digests
from inception_jax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 6, 5, 3), np.uint8)
LABELS = np.arange(12) % 3


def labels_of(labels, **options):
    return data.from_arrays(train=(IMAGES, labels), **options).splits["train"].all_labels()


@pytest.mark.parametrize(
    "labels",
    [
        LABELS[:, None],
        LABELS[:, None].astype(np.uint8),
        LABELS.tolist(),
        LABELS.astype(np.uint64),
        np.ma.masked_array(LABELS, mask=False),
    ],
)
def test_labels_that_are_taken(labels):
    got = labels_of(labels)
    np.testing.assert_array_equal(got, LABELS)
    assert got.dtype == np.int32


def test_labels_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is in the extra 'peers'")
    np.testing.assert_array_equal(labels_of(torch.from_numpy(LABELS)), LABELS)
    with pytest.raises(UserError, match=r"labels.* cannot be made into one array"):
        labels_of(torch.zeros(12, requires_grad=True))


@pytest.mark.parametrize(
    ("labels", "advice"),
    [
        (np.eye(3)[LABELS], r"labels\.argmax\(axis=1\)$"),
        (np.eye(3, dtype=bool)[LABELS], r"labels\.argmax\(axis=1\)$"),
        (np.eye(3)[LABELS] / 2 + 1 / 6, "one number for each image"),  # probabilities
        (np.stack([LABELS, LABELS], axis=1), "one number for each image"),
        (LABELS[None], "one number for each image"),
        (LABELS[:, None, None], "one number for each image"),
        (np.int64(1), "one number for each image"),
        (LABELS == 1, r"labels\.astype\('int32'\)$"),
        (LABELS.astype(np.float32), r"labels\.astype\('int32'\)$"),
        (LABELS.astype(np.float32)[:, None], r"labels\.astype\('int32'\)$"),
        (LABELS.astype(object), r"labels\.astype\('int32'\)$"),
        (LABELS + 0.5, "whole numbers from 0 on"),
        (np.where(LABELS == 2, np.nan, LABELS), "whole numbers from 0 on"),
        (np.array(["a", "b", "c"])[LABELS], r"np\.unique\(labels, return_inverse=True\)"),
        (np.array(["a", "b", "c"], object)[LABELS], r"np\.unique\(labels, return_inverse=True\)"),
        (np.where(LABELS == 2, 2**32, LABELS), r"one is 4294967296.*np\.unique"),
        (np.where(LABELS == 2, 2**64 - 1, LABELS.astype(np.uint64)), "one is 18446744073709551615"),
        (np.where(LABELS == 2, 2**31 - 1, LABELS), "one is 2147483647"),
        (np.where(LABELS == 2, -1, LABELS), "labels from -1"),
        (np.ma.masked_array(LABELS, mask=LABELS == 2), "masked entries"),
        ([], "one number for each image"),
        ([[0], [1, 2]], "cannot be made into one array"),
        ({"a": 1}, "must be an array, not dict"),
        ("labels", "must be an array, not str"),
        (None, "None is given"),
    ],
)
def test_labels_that_are_not_say_what_to_do(labels, advice):
    with pytest.raises(UserError, match=advice) as raised:
        labels_of(labels)
    assert "labels" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert ("argmax" in str(raised.value)) == ("argmax" in advice)  # advised for one-hot rows alone


@pytest.mark.parametrize(
    ("images", "advice"),
    [
        (IMAGES.transpose(0, 3, 1, 2), r"images\.transpose\(0, 2, 3, 1\)$"),
        (IMAGES[..., :1].transpose(0, 3, 1, 2), r"images\.transpose\(0, 2, 3, 1\)$"),
        (IMAGES.astype(np.int32), r"images\.astype\('uint8'\)$"),
        (IMAGES > 9, r"255 \* images\.astype\('uint8'\)$"),
        (IMAGES.astype(np.int32) - 1, "from -1 to 254"),
        (IMAGES / np.float32(255), r"\(255 \* images\)\.round"),
        (IMAGES.astype(complex), "not complex128"),
        (IMAGES.astype(object), "images are objects"),
        ([IMAGES[0], IMAGES[1, :4]], r"cannot be made into one array.*all of one height"),
        ([IMAGES[0], None], "images"),
        (["a.png", "b.png"], r"shape \(2,\)"),
        ("pictures", "must be an array, not str"),
        ({"image": IMAGES}, "must be an array, not dict"),
        (np.ma.masked_array(IMAGES, mask=IMAGES > 250), "masked entries"),
        (IMAGES[0], "images"),
        (IMAGES[None], "not of shape"),
        (IMAGES[:, :0], "not of shape"),
        (None, "None is given"),
    ],
)
def test_images_that_are_not_say_what_to_do(images, advice):
    with pytest.raises(UserError, match=advice) as raised:
        data.from_arrays(train=(IMAGES, LABELS), test=(images, LABELS))
    assert "'test'" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_gray_and_narrow_images_are_not_taken_for_others():
    """What is as high as colours are many, but has its channels last."""
    assert data.from_arrays(train=(IMAGES[:, :3], LABELS)).image_shape == (3, 5, 3)
    assert data.from_arrays(train=(IMAGES[:, :3, :, 0], LABELS)).image_shape == (3, 5, 1)
    assert data.from_arrays(train=(IMAGES[:, :1, :, :1], LABELS)).image_shape == (1, 5, 1)


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (("x", "x", "y"), "labels 0, 1 are all 'x'"),
        (("x", "x ", "y"), "must be different"),
        (("caf\u00e9", "cafe\u0301", "y"), "must be different"),
        ({0: "cat", 1: "dog", 2: "eel"}, "not a mapping"),
        ({"cat", "dog", "eel"}, "not set"),
        ("abc", "not str"),
        ((1, 2, 3), r"list\(map\(str, class_names\)\)"),
        (("cat", None, "eel"), "that of label 1 is None"),
        (("cat", "", "eel"), "that of label 1 is ''"),
        (("cat", "\ud800", "eel"), "not UTF-8"),
        (7, "not int"),
        (("cat", "dog"), "2 class names, but the label 2"),
    ],
)
def test_class_names_are_different_texts(names, advice):
    with pytest.raises(UserError, match=advice) as raised:
        labels_of(LABELS, class_names=names)
    assert str(raised.value).isprintable()


def test_class_names_may_be_any_list_of_texts(caplog):
    for names in (["a", "b", "c"], np.array(["a", "b", "c"]), ("1", "2", "3")):
        assert data.from_arrays(train=(IMAGES, LABELS), class_names=names).class_names == tuple(names)
    assert caplog.messages == []
    labels_of(LABELS, class_names=("a", "A", "b"))
    assert "differ only in upper and lower case: A and a" in caplog.text


@pytest.mark.parametrize(
    ("labels", "names", "missing"),
    [
        (LABELS + 1, None, ": 0;"),
        (np.where(LABELS == 2, 255, LABELS), None, ": 2, 3, 4"),
        (LABELS, ("a", "b", "c", "d"), ": d;"),
        (LABELS, None, None),
    ],
)
def test_classes_without_examples_are_named(labels, names, missing, caplog):
    with caplog.at_level(logging.WARNING):
        labels_of(labels, class_names=names)
    assert len(caplog.messages) == (missing is not None)
    assert all("classes without examples" in message and missing in message for message in caplog.messages)


def test_splits_that_are_no_pairs():
    for pair in (None, IMAGES, (IMAGES,), (IMAGES, LABELS, LABELS), {"images": IMAGES}, "train"):
        with pytest.raises(UserError, match="'train': expected a pair"):
            data.from_arrays(train=pair)  # pyright: ignore[reportArgumentType]


def fingerprint(images, labels, **options):
    return data.from_arrays(train=(images, labels), **options).fingerprint


def test_the_content_is_known_again_whatever_its_layout(monkeypatch):
    first = fingerprint(IMAGES, LABELS)
    assert first == fingerprint(np.asfortranarray(IMAGES), LABELS.astype(np.uint8)[:, None])
    assert first == fingerprint(np.repeat(IMAGES, 2, axis=0)[::2], LABELS.tolist())
    monkeypatch.setattr(digests, "CHUNK_BYTES", 200)  # more chunks than threads
    second = fingerprint(IMAGES, LABELS)
    assert second == fingerprint(IMAGES[::-1][::-1], LABELS)
    for row in range(12):
        other = IMAGES.copy()
        other[row, -1, -1, -1] ^= 1
        assert fingerprint(other, LABELS) != second


@pytest.mark.parametrize(
    ("images", "labels", "names", "said"),
    [
        (IMAGES[::-1], LABELS, None, "train images of 6x5x3 (12 before, 12 now)"),
        (IMAGES, LABELS[::-1], None, "train labels (12 before, 12 now)"),
        (IMAGES[:11], LABELS[:11], None, "train images of 6x5x3 (12 before, 11 now), train labels (12 before, 11 now)"),
        (IMAGES, LABELS, ("x", "y", "z"), "class names (3 before, 3 now)"),
        (
            IMAGES.transpose(0, 2, 1, 3),
            LABELS,
            None,
            "train images of 6x5x3 (12 before, none now), train images of 5x6x3 (none before, 12 now)",
        ),
    ],
)
def test_what_differs_is_said(images, labels, names, said):
    before, now = fingerprint(IMAGES, LABELS), fingerprint(images, labels, class_names=names)
    assert data.changes(None, before, now) == f"these differ: {said}"


def test_every_split_counts_and_its_place(tmp_path):
    plain = fingerprint(IMAGES, LABELS)
    tested = fingerprint(IMAGES, LABELS, test=(IMAGES[:4], LABELS[:4]))
    validated = fingerprint(IMAGES, LABELS, validation=(IMAGES[:4], LABELS[:4]))
    assert len({plain, tested, validated}) == 3
    assert "test images of 6x5x3 (4 before, none now)" in data.changes(None, tested, plain)
