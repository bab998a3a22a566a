"""Which pictures a folder holds, of which class and in which split; nothing is decoded here."""

import logging
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inception_jax import synsets
from inception_jax.data import folders
from inception_jax.errors import UserError


def make(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def by_class(listing: folders.Listing, split: str = "train") -> dict[str, list[str]]:
    paths, labels = listing.splits[split]
    assert labels.dtype == np.int32
    assert list(paths) == sorted(paths)
    return {
        name: [path for path, other in zip(paths, labels, strict=True) if other == label]
        for label, name in enumerate(listing.class_names)
    }


def test_a_folder_for_each_class(tmp_path):
    root = make(
        tmp_path, "a cat/1.JPG", "a cat/2.png", "größe/x.webp", "größe/below/deep/y.tiff", "größe/.hidden.png",
        ".git/1.png", "__MACOSX/a.jpg", "@eaDir/b.jpg", "größe/.DS_Store", "größe/._x.webp",
    )  # fmt: skip
    listing = folders.image_folder(root)
    assert by_class(listing) == {
        "a cat": ["a cat/1.JPG", "a cat/2.png"],
        "größe": ["größe/below/deep/y.tiff", "größe/x.webp"],
    }
    assert listing.splits.keys() == {"train"}
    assert (listing.root, listing.hold_out) == (root, 0.1)


@pytest.mark.parametrize(
    ("names", "hold_out"),
    [
        ({"train": "train"}, 0.1),
        ({"train": "train", "val": "validation"}, 0),
        ({"train": "train", "dev": "validation"}, 0),
        ({"Training": "train", "TEST": "test"}, 0),
        ({"train": "train", "valid": "validation", "test": "test"}, 0),
    ],
)
def test_folders_for_the_splits(names, hold_out, tmp_path):
    for name in names:
        make(tmp_path, f"{name}/cat/{name}.png", f"{name}/dog/1.png")
    listing = folders.image_folder(tmp_path)
    assert listing.hold_out == hold_out
    assert listing.splits.keys() == set(names.values())
    for name, split in names.items():
        assert by_class(listing, split) == {"cat": [f"{name}/cat/{name}.png"], "dog": [f"{name}/dog/1.png"]}


def test_classes_may_be_called_like_splits(tmp_path):
    listing = folders.image_folder(make(tmp_path, "train/1.png", "car/1.png", "test/2.png"))
    assert listing.class_names == ("car", "test", "train")


@pytest.mark.parametrize("classes", [("dog", "cat"), ("ant",)])
def test_some_of_the_classes(classes, tmp_path):
    make(tmp_path, *(f"{split}/{name}/1.png" for split in ("train", "test") for name in ("ant", "cat", "dog")))
    listing = folders.image_folder(tmp_path, classes)
    assert listing.class_names == classes
    for split in ("train", "test"):
        assert by_class(listing, split) == {name: [f"{split}/{name}/1.png"] for name in classes}
    with pytest.raises(UserError, match=r"no pictures of cow to train on; its classes are ant, cat, dog"):
        folders.image_folder(tmp_path, ("cow",))


def test_numbers_are_in_their_order(tmp_path):
    assert folders.image_folder(make(tmp_path, "10/1.png", "2/1.png", "1/1.png")).class_names == ("1", "2", "10")


def test_links_are_followed_and_loops_are_not(tmp_path):
    make(tmp_path / "elsewhere", "1.png", "below/2.png")
    make(tmp_path / "root", "dog/1.png", "cat/1.png")
    (tmp_path / "root" / "cat" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "cat" / "loop").symlink_to(tmp_path / "root" / "cat")
    (tmp_path / "elsewhere" / "below" / "up").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root" / "fox").symlink_to(tmp_path / "elsewhere")
    assert by_class(folders.image_folder(tmp_path / "root")) == {
        "cat": ["cat/1.png", "cat/more/1.png", "cat/more/below/2.png"],
        "dog": ["dog/1.png"],
        "fox": ["fox/1.png", "fox/below/2.png"],
    }


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["cat/1.png", "dog/notes.txt"], "without a picture were left out: dog"),
        (
            ["cat/1.png", "dog/1.png", "dog/a.txt", "dog/b.txt", "cat/c.mp4", "cat/README"],
            "1 with .mp4, 2 with .txt, 1 with no ending",
        ),
        (["cat/1.png", "dog/1.png", "3.png"], "1 pictures in .* beside the folders are of no class: 3.png"),
        (["cat/1.png", "dog/1.png", "dog/2.png"], "classes of one picture are trained on and not tested: cat"),
        (["Cat/1.png", "cat/1.png", "cat/2.png", "Cat/2.png"], "nearly the same, .* 'Cat' and 'cat'"),
        (["cafe\u0301/1.png", "caf\u00e9/1.png", "cafe\u0301/2.png", "caf\u00e9/2.png"], "nearly the same"),
    ],
)
def test_what_is_odd_is_said(paths, message, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        folders.image_folder(make(tmp_path, *paths))
    assert any(re.search(message, text) for text in caplog.messages)


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ([], "holds no pictures: it needs a folder for each class"),
        (["1.png", "2.png"], r"holds pictures, such as 1.png, 2.png, but no folders"),
        (["cat/notes.txt"], "holds no pictures to train on"),
        (["train/cat/1.png", "val/cat/1.png", "val/dog/1.png"], "split validation .* nothing to train on of: dog"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(paths, message, tmp_path):
    with pytest.raises(UserError, match=message):
        folders.image_folder(make(tmp_path, *paths))


def test_no_folder(tmp_path):
    (tmp_path / "file").touch()
    for name, message in (("gone", "cannot read .*gone: No such file"), ("file", "file is no folder")):
        with pytest.raises(UserError, match=message):
            folders.image_folder(tmp_path / name)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    make(tmp_path, "cat/1.png")
    (tmp_path / "cat").chmod(0)
    with pytest.raises(UserError, match=r"cannot read .*cat: Permission denied"):
        folders.image_folder(tmp_path)


# --- CSV files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_file(delimiter, encoding, tmp_path):
    make(tmp_path, "a/1.png", "ü b/2.png", "3.png")
    rows = [
        ("Filename", "note", "Label"),
        ("a/1.png", "", "cat"),
        ("ü b/2.png", "x", "süß"),
        ("3.png", "", "cat"),
        ("",) * 3,
    ]
    (tmp_path / "list.csv").write_text("\n".join(map(delimiter.join, rows)), encoding=encoding)
    listing = folders.image_folder(tmp_path / "list.csv")
    assert by_class(listing) == {"cat": ["3.png", "a/1.png"], "süß": ["ü b/2.png"]}
    assert (listing.root, listing.hold_out) == (tmp_path, 0.1)


def test_a_csv_file_with_splits_and_numbers(tmp_path, caplog):
    make(tmp_path, "1.png", "2.png", "3.png", "4.png")
    text = "path,label,split\n1.png,10,train\n2.png,9,train\n3.png,9,Val\n4.png,10,test\n2.png,9,train\n"
    (tmp_path / "list.csv").write_text(text)
    listing = folders.image_folder(tmp_path / "list.csv")
    assert listing.class_names == ("9", "10")
    assert {split: by_class(listing, split) for split in listing.splits} == {
        "train": {"9": ["2.png"], "10": ["1.png"]},
        "validation": {"9": ["3.png"], "10": []},
        "test": {"9": [], "10": ["4.png"]},
    }
    assert caplog.messages == [f"{tmp_path / 'list.csv'} lists 1 pictures twice, which count once: 2.png"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column for the path: it has none"),
        ("path,kind\n1.png,cat", "no column for the label: it has path, kind; call it one of label, class"),
        ("path,label\n1.png", "line 2 of .* has 1 columns, not 2"),
        ("path,label\n1.png,", "line 2 of .* has no label"),
        ("path,label\n1.png,cat\n1.png,dog", "lists 1.png twice, as 'cat' of train and as 'dog' of train"),
        ("path,label,split\n1.png,cat,later", "line 2 of .* has the split 'later'"),
        ("path,label\n1.png,cat\n2.png,cat\n3.png,cat", "2 of the files that .* lists are not there: 2.png, 3.png"),
        ("path,label\n", "holds no pictures to train on"),
    ],
)
def test_csv_files_that_are_refused(text, message, tmp_path):
    make(tmp_path, "1.png")
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        folders.image_folder(tmp_path / "list.csv")


# --- ImageNet -----------------------------------------------------------------------------------------------------


def test_leaves_are_ilsvrcs():
    counts = {synsets.CIFAR10[parent]: len(leaves) for parent, leaves in synsets.leaves().items()}
    assert counts == {
        "airplane": 2, "automobile": 10, "bird": 59, "cat": 5, "deer": 3, "dog": 118, "frog": 1, "horse": 1, "ship": 6,
        "truck": 1,
    }  # fmt: skip
    leaves = [leaf for leaves in synsets.leaves().values() for leaf in leaves]
    assert len(set(leaves)) == len(leaves)
    assert set(leaves) <= synsets.names().keys()
    assert {"n01641577", "n04467665"} <= set(leaves)  # the bullfrog and the trailer truck are leaves themselves
    names = {parent: {synsets.names()[leaf] for leaf in leaves} for parent, leaves in synsets.leaves().items()}
    assert names["n02121808"] == {"tabby", "tiger cat", "Persian cat", "Siamese cat", "Egyptian cat"}
    assert names["n02419796"] == {"hartebeest", "impala", "gazelle"}
    assert {"cock", "flamingo", "albatross", "macaw"} <= names["n01503061"]
    assert {"Chihuahua", "Mexican hairless", "pug"} <= names["n02084071"]
    assert not {"dingo", "timber wolf", "African hunting dog"} & names["n02084071"]


@pytest.mark.parametrize("place", ["", "train/", "ILSVRC/Data/CLS-LOC/train/"])
def test_the_ten_synsets_from_their_own_folders_or_from_a_tree_of_leaves(place, tmp_path):
    own = [synset for synset in synsets.CIFAR10 if synset not in ("n02121808", "n02084071")]
    cats, dogs = synsets.leaves()["n02121808"], synsets.leaves()["n02084071"]
    make(tmp_path, *(f"{place}{synset}/1.JPEG" for synset in (*own, *cats, *dogs[:2], "n01440764")))
    listing = folders.imagenet_subset(tmp_path)
    assert listing.class_names == tuple(synsets.CIFAR10.values())
    assert listing.hold_out == 100
    counts = {name: len(paths) for name, paths in by_class(listing).items()}
    assert counts == dict.fromkeys(listing.class_names, 1) | {"cat": 5, "dog": 2}


def test_synsets_of_ones_own_choice(tmp_path):
    make(
        tmp_path,
        *(f"{split}/{synset}/1.JPEG" for split in ("train", "val") for synset in ("n02012849", "n03126707", "n99")),
    )
    listing = folders.imagenet_subset(tmp_path, ("n03126707", "n99"))
    assert listing.class_names == (synsets.names()["n03126707"], "n99")
    assert listing.hold_out == 0
    assert listing.splits.keys() == {"train", "test"}
    everything = folders.imagenet_subset(tmp_path, ("all",))
    assert len(set(everything.class_names)) == 3
    with pytest.raises(UserError, match=r"no pictures of n02691156, n02958343, n02121808, \.\.\.; it has n02012849"):
        folders.imagenet_subset(tmp_path)


@pytest.mark.parametrize("layout", ["folders", "kaggle"])
def test_the_whole_tree(layout, tmp_path, caplog):
    place = "ILSVRC/Data/CLS-LOC/" if layout == "kaggle" else ""
    make(
        tmp_path,
        *(f"{place}train/{synset}/{synset}_{i}.JPEG" for synset in ("n01443537", "n01440764") for i in range(2)),
    )
    if layout == "kaggle":
        make(tmp_path, f"{place}val/ILSVRC2012_val_00000001.JPEG", f"{place}val/ILSVRC2012_val_00000002.JPEG")
        with pytest.raises(UserError, match=r"there is no LOC_val_solution\.csv"):
            folders.imagenet2012(tmp_path)
        (tmp_path / "LOC_val_solution.csv").write_text(
            "ImageId,PredictionString\nILSVRC2012_val_00000002,n01443537 1 2 3 4 n01443537 5 6 7 8 \n"
            "ILSVRC2012_val_00000001,n01440764 1 2 3 4 \n"
        )
    else:
        make(tmp_path, "val/n01440764/1.JPEG", "val/n01443537/2.JPEG")
    listing = folders.imagenet2012(tmp_path)
    assert listing.class_names == ("tench", "goldfish")
    assert [name[-6:] for name in by_class(listing, "test")["goldfish"]] == ["2.JPEG"]
    assert listing.hold_out == 0
    assert len(listing.splits["train"][0]) == 4
    assert any("has 2 of the 1000 synsets" in message for message in caplog.messages)


def test_ten_real_synsets(originals):
    folder = originals / "imagenet10"
    if not folder.is_dir():
        pytest.skip("no folder imagenet10 among the originals")
    listing = folders.imagenet_subset(folder, ("all",))
    assert listing.class_names[:2] == ("tench", "English springer")
    assert {split: np.bincount(labels).tolist() for split, (_, labels) in listing.splits.items()} == {
        "train": [90] * 10, "test": [20] * 10,
    }  # fmt: skip


# --- order and hold-out -------------------------------------------------------------------------------------------

LABELS = st.lists(st.integers(0, 4), min_size=1, max_size=60)


def names_of(labels: list[int]) -> list[str]:
    return [f"{label}/{row}.png" for row, label in enumerate(labels)]


@given(LABELS, st.integers(0, 3))
def test_any_part_has_each_class_in_its_share(labels, seed):
    order = folders.stratified_order(names_of(labels), np.array(labels), seed)
    assert sorted(order.tolist()) == list(range(len(labels)))
    shuffled = np.array(labels)[order]
    for label in set(labels):
        share = labels.count(label) / len(labels)
        places = np.cumsum(shuffled == label) - share * np.arange(1, len(labels) + 1)
        assert np.abs(places).max() <= len(set(labels)) / 2 + 0.5


@given(LABELS, st.integers(0, 3))
def test_one_picture_more_moves_no_other_out_of_its_class_order(labels, seed):
    names = names_of(labels)
    before = folders.stratified_order(names, np.array(labels), seed)
    after = folders.stratified_order([*names, "0/new.png"], np.array([*labels, 0]), seed)
    for label in set(labels):
        mine = [row for row in before.tolist() if labels[row] == label]
        assert mine == [row for row in after.tolist() if row < len(labels) and labels[row] == label]


@given(LABELS, st.one_of(st.integers(1, 5), st.floats(0.01, 0.9)), st.integers(0, 3))
def test_what_is_held_out(labels, amount, seed):
    names, counts = names_of(labels), {label: labels.count(label) for label in labels}
    if amount >= 1 and min(counts.values()) <= amount:
        with pytest.raises(UserError, match="leave none to train on"):
            folders.held_out(names, np.array(labels), amount, seed)
        return
    chosen = folders.held_out(names, np.array(labels), amount, seed)
    for label, count in counts.items():
        number = int(chosen[np.array(labels) == label].sum())
        if amount >= 1:
            assert number == amount
        else:
            assert number == min(max(round(amount * count), 1), count - 1)


def test_another_seed_holds_out_others():
    labels = np.zeros(100, int)
    first, second = (folders.held_out(names_of(labels.tolist()), labels, 50, seed) for seed in (0, 1))
    assert 30 < (first != second).sum() < 70
