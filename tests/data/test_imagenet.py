"""ImageNet's photographs in place: the layouts that are around, some synsets or all of ILSVRC2012."""

import logging

import numpy as np
import pytest
from loading import load_data

from inception_jax.data import scan, synsets
from inception_jax.data.imagenet import imagenet2012, imagenet_subset
from inception_jax.errors import UserError

TEN = tuple(synsets.CIFAR10)
KAGGLE = "ILSVRC/Data/CLS-LOC"
TENCH, SPRINGER, CHURCH = "n01440764", "n02102040", "n03028079"  # labels 0, 217 and 497
UNKNOWN = "n99999999"


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def photographs(folder, *chosen, number=2):
    return [f"{folder}{synset}/{synset}_{index}.JPEG" for synset in chosen for index in range(number)]


def counts(listing):
    return {
        split: dict(zip(*np.unique(labels, return_counts=True), strict=True))
        for split, (_, labels) in listing.splits.items()
    }


# Some synsets.


@pytest.mark.parametrize("train", ["", "train/", f"{KAGGLE}/train/"])
def test_the_ten_synsets_of_study_a(train, tmp_path):
    touch(tmp_path, *photographs(train, *TEN, UNKNOWN))
    listing = imagenet_subset(tmp_path)
    assert listing.class_names == tuple(synsets.CIFAR10.values())
    assert listing.hold_out == 100
    assert counts(listing) == {"train": dict.fromkeys(range(10), 2)}
    assert all((tmp_path / path).is_file() for path in listing.splits["train"][0])


@pytest.mark.parametrize(
    ("there", "split_of"),
    [
        ({"val"}, {"test": "val"}),
        ({"test"}, {"test": "test"}),
        ({"val", "test"}, {"validation": "val", "test": "test"}),
    ],
)
def test_evaluated_splits(there, split_of, tmp_path):
    for split in ("train", *there):
        touch(tmp_path / split, *photographs("", *TEN))
    listing = imagenet_subset(tmp_path)
    assert listing.hold_out == 0
    assert {split: paths[0].split("/")[0] for split, (paths, _) in listing.splits.items()} == {
        "train": "train", **split_of,
    }  # fmt: skip
    assert all(np.bincount(labels).tolist() == [2] * 10 for _, labels in listing.splits.values())


def test_parents_take_their_leaves_out_of_a_whole_tree(tmp_path):
    """As in ILSVRC2012, where two of the ten have folders, and the others' leaves have."""
    touch(tmp_path, *photographs("train/", *synsets.names(), number=1))
    touch(tmp_path, *photographs("val/", *synsets.names(), number=1))
    listing = imagenet_subset(tmp_path)
    expected = dict(enumerate([1, 10, 59, 5, 3, 118, 1, 1, 6, 1]))
    assert counts(listing) == {"train": expected, "test": expected}
    paths, labels = listing.splits["train"]
    assert f"train/{SPRINGER}/{SPRINGER}_0.JPEG" in [
        path for path, label in zip(paths, labels, strict=True) if label == 5
    ]
    # A parent's own folder counts, too, and a leaf that is a class of its own is no longer the parent's.
    dog, cat = "n02084071", "n02121808"
    touch(tmp_path, *photographs("train/", dog))
    listing = imagenet_subset(tmp_path, (SPRINGER, dog, cat))
    assert listing.class_names == ("English springer", "dog", "cat")
    assert counts(listing)["train"] == {0: 1, 1: 2 + len(synsets.leaves()[dog]) - 1, 2: 5}


def test_only_the_folders_of_wanted_synsets_are_looked_into(tmp_path, monkeypatch):
    touch(tmp_path, *photographs("", TENCH, SPRINGER, CHURCH))
    opened = []
    scandir = scan.os.scandir
    monkeypatch.setattr(scan.os, "scandir", lambda folder: opened.append(str(folder)) or scandir(folder))
    imagenet_subset(tmp_path, (TENCH, CHURCH))
    assert not any(SPRINGER in folder for folder in opened)


def test_what_is_there_is_named_where_a_synset_is_missing(tmp_path):
    touch(tmp_path, *photographs("train/", TENCH, "n02084071", UNKNOWN))
    (tmp_path / "train" / "n02691156").mkdir()
    with pytest.raises(
        UserError,
        match=r"train has no pictures of n02691156, n02958343, .* It has n01440764 \(tench\), n02084071 \(dog\), "
        r"n02691156 \(airplane\), n99999999: choose by classes",
    ):
        imagenet_subset(tmp_path)
    with pytest.raises(UserError, match="has no folders of synsets, such as n02084071"):
        imagenet_subset(tmp_path / "train" / TENCH)


def test_all_synsets_that_are_there(tmp_path, caplog):
    frog = "n01641577"
    touch(tmp_path, *photographs("", UNKNOWN, SPRINGER, TENCH, frog))
    (tmp_path / CHURCH).mkdir()
    with caplog.at_level(logging.WARNING):
        listing = imagenet_subset(tmp_path, ("all",))
    # Among others, ILSVRC2012's names are the better ones.
    assert listing.class_names == ("tench", "bullfrog", "English springer", UNKNOWN)
    assert caplog.messages == [f"{tmp_path}: classes without pictures are left out: {CHURCH}"]


def test_folders_may_have_names_behind_the_synsets(tmp_path):
    touch(tmp_path, f"{SPRINGER}-English_springer/1.jpg", f"{SPRINGER}-English_springer/2.jpg")
    touch(tmp_path, *photographs("", TENCH), f"{TENCH}0/no.jpg")
    assert counts(imagenet_subset(tmp_path, ("all",))) == {"train": {0: 2, 1: 2}}


def test_a_synset_that_is_only_evaluated(tmp_path):
    touch(tmp_path, *photographs("train/", TENCH), *photographs("val/", TENCH, SPRINGER))
    for classes in (("all",), (TENCH, SPRINGER)):
        with pytest.raises(UserError, match=f"pictures for test of classes that have none for training: {SPRINGER}"):
            imagenet_subset(tmp_path, classes)
    assert counts(imagenet_subset(tmp_path, (TENCH,))) == {"train": {0: 2}, "test": {0: 2}}


def test_the_real_ten_synsets(originals, tmp_path):
    folder = originals / "imagenet10"
    if not folder.is_dir():
        pytest.skip("imagenet10 is not among the original archives")
    listing = imagenet_subset(folder, ("all",))
    assert listing.class_names == (
        "tench", "English springer", "cassette player", "chain saw", "church", "French horn", "garbage truck",
        "gas pump", "golf ball", "parachute",
    )  # fmt: skip
    assert counts(listing) == {"train": dict.fromkeys(range(10), 90), "test": dict.fromkeys(range(10), 20)}
    dataset = load_data(
        "imagenet_subset", directory=tmp_path, folder=folder, classes=(CHURCH, TENCH), image_size=16,
        splits={"train": "train[:80%]", "validation": "train[80%:]", "test": "test"},
    )  # fmt: skip
    assert dataset.class_names == ("church", "tench")
    assert {split: np.bincount(part.all_labels()).tolist() for split, part in dataset.splits.items()} == {
        "train": [72, 72], "validation": [18, 18], "test": [20, 20],
    }  # fmt: skip


# ILSVRC2012.


VALIDATION = {"ILSVRC2012_val_00000001": SPRINGER, "ILSVRC2012_val_00000002": TENCH, "ILSVRC2012_val_00000003": TENCH}


def write_validation(root, layout):
    """The validation pictures of VALIDATION; the folder that holds train and val."""
    place = root / KAGGLE if layout == "kaggle" else root
    if layout == "torchvision":
        touch(place, *(f"val/{synset}/{name}.JPEG" for name, synset in VALIDATION.items()))
    else:
        touch(place, *(f"val/{name}.JPEG" for name in VALIDATION))
    if layout == "kaggle":
        rows = [f"{name},{synset} 85 1 499 272 {synset} 1 1 2 2 " for name, synset in VALIDATION.items()]
        (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *rows]) + "\n")
    if layout.startswith("caffe"):
        numbers = list(synsets.names())
        table = place / ("val.txt" if layout == "caffe" else "val/val.txt")
        table.write_text("".join(f"{name}.JPEG {numbers.index(synset)}\n" for name, synset in VALIDATION.items()))
    if layout == "synsets":
        (place / "val.txt").write_text("".join(f"{name}.JPEG {synset}\n" for name, synset in VALIDATION.items()))
    return place


@pytest.mark.parametrize("layout", ["torchvision", "kaggle", "caffe", "caffe inside", "synsets"])
def test_layouts_of_ilsvrc2012(layout, tmp_path, caplog):
    place = write_validation(tmp_path, layout)
    touch(place, *photographs("train/", *synsets.names(), number=1), "test/ILSVRC2012_test_00000001.JPEG")
    with caplog.at_level(logging.WARNING):
        listing = imagenet2012(tmp_path)
    assert listing.class_names == tuple(synsets.names().values())
    assert listing.hold_out == 0
    assert counts(listing) == {"train": dict.fromkeys(range(1000), 1), "test": {0: 2, 217: 1}}
    assert listing.splits["train"][1].tolist() == list(range(1000))
    assert all((tmp_path / path).is_file() for paths, _ in listing.splits.values() for path in paths)
    unexpected = [message for message in caplog.messages if "of the 1000 classes" not in message]
    # The table that lies among the pictures is no picture.
    assert len(unexpected) == (layout == "caffe inside")
    subset = imagenet_subset(tmp_path)
    assert counts(subset)["test"] == {5: 1}


def test_a_part_of_ilsvrc2012_keeps_its_labels(tmp_path, caplog):
    touch(tmp_path, *photographs("train/", TENCH, SPRINGER, UNKNOWN))
    with caplog.at_level(logging.WARNING):
        listing = imagenet2012(tmp_path)
    assert counts(listing) == {"train": {0: 2, 217: 2}}
    assert caplog.messages == [
        f"{tmp_path / 'train'}: synsets that are not of ILSVRC2012 are left out: {UNKNOWN}",
        f"{tmp_path / 'train'} has pictures of 2 of the 1000 classes",
        f"{tmp_path} has no folder val",
    ]
    listing = imagenet2012(tmp_path, (SPRINGER, TENCH))
    assert (listing.class_names, counts(listing)) == (("English springer", "tench"), {"train": {0: 2, 1: 2}})
    with pytest.raises(UserError, match="'n99999999' is not one of the 1000 synsets of ILSVRC2012"):
        imagenet2012(tmp_path, (UNKNOWN,))


def test_the_validation_pictures_alone_can_be_evaluated_on(tmp_path):
    write_validation(tmp_path, "torchvision")
    listing = imagenet2012(tmp_path)
    assert counts(listing) == {"test": {0: 2, 217: 1}}


def test_a_flat_val_that_is_not_as_its_table_says(tmp_path, caplog):
    write_validation(tmp_path, "caffe")
    touch(tmp_path, "val/strange.JPEG", *photographs("train/", TENCH, SPRINGER))
    (tmp_path / "val" / "ILSVRC2012_val_00000003.JPEG").unlink()
    with caplog.at_level(logging.WARNING):
        assert counts(imagenet2012(tmp_path))["test"] == {0: 1, 217: 1}
    table = tmp_path / "val.txt"
    assert f"{tmp_path / 'val'}: 1 pictures that are not in {table} are left out" in caplog.messages
    assert f"{tmp_path / 'val'} lacks 1 of the pictures in {table}" in caplog.messages
    for line in ("1.JPEG 1000", "1.JPEG", "1.JPEG -1", "1.JPEG tench"):
        table.write_text(f"0.JPEG 0\n\n{line}\n")
        with pytest.raises(UserError, match=rf"val.txt has a line '{line}': expected a file's name and its label"):
            imagenet2012(tmp_path)
    table.unlink()
    with pytest.raises(
        UserError, match=r"has 3 pictures whose classes are not known: put LOC_val_solution.csv or val.t"
    ):
        imagenet2012(tmp_path)
    (tmp_path / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n1,tench\n")
    with pytest.raises(UserError, match="is not Kaggle's: it has a line '1,tench'"):
        imagenet2012(tmp_path)


def test_no_ilsvrc2012(tmp_path):
    with pytest.raises(UserError, match=r"has no pictures of ILSVRC2012: expected DIR/train/<synset>/\*\.JPEG and"):
        imagenet2012(tmp_path)
    with pytest.raises(UserError, match="cannot read the folder"):
        imagenet2012(tmp_path / "missing")
