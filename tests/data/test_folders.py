"""Pictures in place: which layouts are read, what is said of odd ones, and how splits are cut from them."""

import logging
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inception_jax.data.folders import image_folder
from inception_jax.data.splits import held_out, stratified_order
from inception_jax.errors import UserError


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def write_table(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def found(listing):
    """{split: {class: paths}}, and that the arrays are as promised."""
    result = {}
    for split, (paths, labels) in listing.splits.items():
        assert labels.dtype == np.int32
        assert list(paths) == sorted(paths)
        assert len(paths) == len(labels) > 0
        result[split] = {}
        for path, label in zip(paths, labels, strict=True):
            result[split].setdefault(listing.class_names[label], []).append(path)
    return result


PETS = ("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg")


# Folders.


def test_a_folder_for_each_class(tmp_path, caplog):
    touch(tmp_path, *PETS, "cat/more/of/them/3.png", "README.txt", "labels.csv", "cat/.DS_Store", "cat/._1.jpg")
    touch(tmp_path, ".git/x.jpg", "__MACOSX/cat/1.jpg", "dog/@eaDir/1.jpg/thumb.jpg", "dog/Thumbs.db")
    listing = image_folder(tmp_path)
    assert (listing.root, listing.class_names, listing.hold_out) == (tmp_path, ("cat", "dog"), 0.1)
    assert found(listing) == {
        "train": {"cat": ["cat/1.jpg", "cat/2.jpg", "cat/more/of/them/3.png"], "dog": ["dog/1.jpg", "dog/2.jpg"]}
    }
    assert caplog.messages == []


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev", "Val"])
@pytest.mark.parametrize("test", ["test", "Testing", ""])
def test_folders_of_splits(validation, test, tmp_path):
    for split in filter(None, ("train", validation, test)):
        touch(tmp_path / split, *PETS)
    touch(tmp_path, "annotations/1.xml")  # no picture, so no class
    listing = image_folder(tmp_path)
    assert found(listing) == {
        split: {name: [f"{folder}/{name}/1.jpg", f"{folder}/{name}/2.jpg"] for name in ("cat", "dog")}
        for split, folder in (("train", "train"), ("validation", validation), ("test", test))
        if folder
    }
    assert listing.hold_out == 0


def test_train_alone_is_a_split(tmp_path):
    touch(tmp_path / "train", *PETS)
    listing = image_folder(tmp_path)
    assert listing.class_names == ("cat", "dog")
    assert (listing.splits.keys(), listing.hold_out) == ({"train"}, 0.1)


def test_a_class_may_be_called_train(tmp_path, caplog):
    touch(tmp_path, "train/1.jpg", "train/2.jpg", "bus/1.jpg", "bus/2.jpg")
    with caplog.at_level(logging.WARNING):
        assert image_folder(tmp_path).class_names == ("bus", "train")
    assert caplog.messages == [f"{tmp_path}: train is used as a class, since bus is one"]


@pytest.mark.parametrize(
    "ending", ["jpg", "JPEG", "jpe", "Png", "gif", "bmp", "webp", "TIF", "tiff", "ppm", "pgm", "pnm"]
)
def test_endings(ending, tmp_path):
    touch(tmp_path, f"a/1.{ending}", f"a/2.{ending}", "b/1.jpg", "b/2.jpg")
    assert len(image_folder(tmp_path).splits["train"][0]) == 4


def test_other_files_are_counted_in_one_warning(tmp_path, caplog):
    touch(tmp_path, *PETS, "cat/notes.txt", "dog/3.heic", "dog/deep/4.HEIC", "dog/LICENSE")
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    with caplog.at_level(logging.WARNING):
        image_folder(tmp_path)
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}: 5 files do not end like pictures and are left out: .heic (2), ")
    assert all(f"{ending} (1)" in message for ending in (".txt", "none", ".jpg"))


def test_links_are_followed_and_loops_end(tmp_path):
    root, away = tmp_path / "pictures", tmp_path / "away"
    touch(root, *PETS)
    touch(away, "3.jpg", "4.jpg")
    (root / "cat" / "elsewhere").symlink_to(away)
    (root / "cat" / "linked.jpg").symlink_to(away / "3.jpg")
    (root / "cat" / "gone.jpg").symlink_to(away / "5.jpg")  # later said to be undecodable, not passed over
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "here").symlink_to(".")
    (root / "cat" / "itself").symlink_to("itself")
    (away / "back").symlink_to(root / "cat")
    (root / "owl").symlink_to(away)
    names = ["1", "2", "elsewhere/3", "elsewhere/4", "gone", "linked"]
    assert found(image_folder(root))["train"] == {
        "cat": [f"cat/{name}.jpg" for name in names],
        "dog": ["dog/1.jpg", "dog/2.jpg"],
        "owl": ["owl/3.jpg", "owl/4.jpg", *(f"owl/back/{name}.jpg" for name in ("1", "2", "gone", "linked"))],
    }


def test_a_folder_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot read the folder .*missing: No such file"):
        image_folder(tmp_path / "missing")
    touch(tmp_path, *PETS)
    scandir = os.scandir

    def forbid(folder):
        if Path(folder).name == "dog":
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", forbid)
    with pytest.raises(UserError, match=r"cannot read the folder .*dog: Permission denied"):
        image_folder(tmp_path)


def test_an_empty_class_is_left_out(tmp_path, caplog):
    touch(tmp_path, *PETS)
    (tmp_path / "empty one").mkdir()
    with caplog.at_level(logging.WARNING):
        assert image_folder(tmp_path).class_names == ("cat", "dog")
    assert caplog.messages == [f"{tmp_path}: classes without pictures are left out: empty one"]
    with pytest.raises(UserError, match="has no pictures of empty one"):
        image_folder(tmp_path, ("cat", "empty one"))


def test_a_class_may_be_empty_outside_of_train(tmp_path, caplog):
    touch(tmp_path, *(f"train/{name}" for name in PETS), "val/cat/3.jpg")
    (tmp_path / "val" / "dog").mkdir()
    with caplog.at_level(logging.WARNING):
        assert found(image_folder(tmp_path))["validation"] == {"cat": ["val/cat/3.jpg"]}
    assert caplog.messages == []


@pytest.mark.parametrize("empty", [False, True])
def test_a_class_that_train_lacks(empty, tmp_path):
    touch(tmp_path, *(f"train/{name}" for name in PETS), "test/cat/3.jpg", "test/owl/1.jpg", "test/Dog/1.jpg")
    if empty:
        (tmp_path / "train" / "owl").mkdir()
    with pytest.raises(UserError, match=r"pictures for test of classes that have none for training: Dog, owl"):
        image_folder(tmp_path)
    assert image_folder(tmp_path, ("dog", "cat")).class_names == ("dog", "cat")


def test_a_class_with_one_picture(tmp_path, caplog):
    touch(tmp_path, *PETS, "owl/1.jpg")
    with caplog.at_level(logging.WARNING):
        assert image_folder(tmp_path).class_names == ("cat", "dog", "owl")
    assert caplog.messages == [f"{tmp_path}: classes with one picture, which is used for training only: owl"]


def test_one_class_alone(tmp_path, caplog):
    touch(tmp_path / "unpacked", *PETS)
    with caplog.at_level(logging.WARNING):
        assert image_folder(tmp_path).class_names == ("unpacked",)
    assert f"if the folders in it are the classes, name {tmp_path / 'unpacked'}" in caplog.text


def test_pictures_in_no_class(tmp_path, caplog):
    touch(tmp_path, "1.jpg", "2.PNG")
    with pytest.raises(UserError, match=r"has 2 pictures that are in no folder of a class: expected DIR/class/\*"):
        image_folder(tmp_path)
    touch(tmp_path, *PETS)
    with caplog.at_level(logging.WARNING):
        assert len(image_folder(tmp_path).splits["train"][0]) == 4
    assert caplog.messages == [
        f"{tmp_path} has 2 pictures that are in no folder of a class and are left out: 1.jpg, 2.PNG"
    ]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], "has no folders of classes: expected"),
        (["cat/notes.txt"], r"has no pictures \(.bmp, .*: expected"),
        (["test/cat/1.jpg", "val/cat/1.jpg"], "has test, val, but no train: expected"),
        (["train/cat/1.jpg", "val/cat/1.jpg", "valid/cat/1.jpg"], "has val and valid, which both mean validation"),
        (
            ["train/cat/1.jpg", "test/cat/1.jpg", "owl/1.jpg"],
            "has folders of splits, .*, and others with pictures: owl",
        ),
        (["train/1.jpg", "test/cat/1.jpg"], "train has 1 pictures that are in no folder of a class"),
    ],
)
def test_other_layouts(files, message, tmp_path):
    touch(tmp_path, *files)
    with pytest.raises(UserError, match=message):
        image_folder(tmp_path)


def test_a_test_split_without_classes_is_none(tmp_path, caplog):
    touch(tmp_path, *(f"train/{name}" for name in PETS), "test/1.jpg", "test/2.jpg")
    (tmp_path / "val").mkdir()
    with caplog.at_level(logging.WARNING):
        listing = image_folder(tmp_path)
    assert (listing.splits.keys(), listing.hold_out) == ({"train"}, 0.1)
    assert caplog.messages == [
        f"{tmp_path / 'test'} has 2 pictures that are in no folder of a class: there is no split test",
        f"{tmp_path / 'val'} has no folders of classes: there is no split validation",
    ]


# Names.


def test_names_with_spaces_and_other_letters(tmp_path):
    names = ["Crème brûlée", "apple pie", "寿司", "пирог", "a,b;c\t'd\""]
    touch(tmp_path, *(f"{name}/{picture} (ö).jpg" for name in names for picture in "12"))
    listing = image_folder(tmp_path)
    assert listing.class_names == tuple(sorted(names))
    assert found(listing)["train"]["寿司"] == ["寿司/1 (ö).jpg", "寿司/2 (ö).jpg"]
    assert all((tmp_path / path).is_file() for path in listing.splits["train"][0])


def test_accents_may_be_written_in_two_ways_in_two_splits_but_not_in_one(tmp_path):
    one, two = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    touch(
        tmp_path, f"train/{two}/1.jpg", f"train/{two}/2.jpg", "train/bar/1.jpg", "train/bar/2.jpg", f"val/{one}/3.jpg"
    )
    listing = image_folder(tmp_path)
    assert listing.class_names == ("bar", one)
    assert found(listing)["validation"] == {one: [f"val/{one}/3.jpg"]}
    assert image_folder(tmp_path, (two,)).class_names == (one,)
    touch(tmp_path, f"train/{one}/1.jpg")
    with pytest.raises(UserError, match=r"names that look the same, 'cafe\\u0301' and 'caf\\xe9'"):
        image_folder(tmp_path)


def test_classes_that_differ_in_case_are_probably_a_mistake(tmp_path, caplog):
    touch(tmp_path, *PETS, "Cat/1.jpg", "Cat/2.jpg")
    if len(os.listdir(tmp_path)) == 2:
        pytest.skip("this file system does not tell them apart")
    with caplog.at_level(logging.WARNING):
        assert image_folder(tmp_path).class_names == ("Cat", "cat", "dog")
    assert caplog.messages == [f"{tmp_path}: classes differ only in upper and lower case: Cat and cat"]


def test_names_that_are_not_utf8(tmp_path):
    try:
        touch(tmp_path, *PETS, os.fsdecode(b"cat/\xff.jpg"))
    except OSError:
        pytest.skip("this file system has UTF-8 names alone")
    paths, labels = image_folder(tmp_path).splits["train"]
    assert len(paths) == 5
    assert len(stratified_order(paths, labels, 0)) == 5
    touch(tmp_path, os.fsdecode(b"\xff/1.jpg"))
    with pytest.raises(UserError, match=r"name of the class b'\\xff' in .* is not UTF-8: rename it"):
        image_folder(tmp_path)


def test_numbers_are_sorted_as_numbers(tmp_path):
    touch(tmp_path, *(f"{name}/{picture}.jpg" for name in ("10", "2", "-1") for picture in "12"))
    assert image_folder(tmp_path).class_names == ("-1", "2", "10")
    touch(tmp_path, "b/1.jpg", "b/2.jpg")
    assert image_folder(tmp_path).class_names == ("-1", "10", "2", "b")


def test_chosen_classes(tmp_path):
    touch(tmp_path, *PETS, "owl/1.jpg", "owl/2.jpg")
    listing = image_folder(tmp_path, ("owl", "cat"))
    assert listing.class_names == ("owl", "cat")
    assert found(listing)["train"]["owl"] == ["owl/1.jpg", "owl/2.jpg"]
    with pytest.raises(UserError, match=r"unknown class 'owls'\. Did you mean 'owl'"):
        image_folder(tmp_path, ("owls", "cat"))
    with pytest.raises(UserError, match="classes names cat more than once"):
        image_folder(tmp_path, ("cat", "dog", "cat"))


# Tables.


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize(
    "header", [("path", "label"), ("File Name", "class_name"), ("image", "Category"), ("filename", "class")]
)
def test_a_table(header, delimiter, encoding, tmp_path):
    touch(tmp_path, "a b/ä.jpg", "1.jpg", "c.weird")
    rows = [header, ("a b/ä.jpg", "blå"), ("./1.jpg", "rød"), ("", ""), (str(tmp_path / "c.weird"), "rød")]
    text = "".join(f"x{delimiter}{delimiter.join(row)}\r\n" if row[0] else "\r\n" for row in rows)
    listing = image_folder(write_table(tmp_path / "labels.csv", text, encoding))
    assert (listing.root, listing.hold_out) == (tmp_path, 0.1)
    assert found(listing) == {"train": {"blå": ["a b/ä.jpg"], "rød": [str(tmp_path / "c.weird"), "1.jpg"]}}


def test_a_table_with_splits_and_numbers(tmp_path):
    touch(tmp_path, *(f"{number}.jpg" for number in range(6)))
    text = "label,path,split\n10,0.jpg,train\n2,1.jpg,Train\n10,2.jpg,valid\n2,3.jpg,test\n2,4.jpg,test\n10,5.jpg,dev\n"
    listing = image_folder(write_table(tmp_path / "t.csv", text))
    assert listing.class_names == ("2", "10")
    assert found(listing) == {
        "train": {"10": ["0.jpg"], "2": ["1.jpg"]},
        "validation": {"10": ["2.jpg", "5.jpg"]},
        "test": {"2": ["3.jpg", "4.jpg"]},
    }
    assert listing.hold_out == 0
    assert image_folder(tmp_path / "t.csv", ("10",)).splits.keys() == {"train", "validation"}


def test_paths_of_other_systems(tmp_path):
    touch(tmp_path, "cat/1.jpg", unicodedata.normalize("NFD", "cat/ö.jpg"))
    table = write_table(tmp_path / "t.csv", 'path,label\ncat\\1.jpg,x\n"cat/ö.jpg",x\n')
    assert len(image_folder(table).splits["train"][0]) == 2


def test_files_that_are_not_there(tmp_path):
    touch(tmp_path, "0.jpg")
    text = "path,label\n" + "".join(f"{number}.jpg,{number % 2}\n" for number in range(5))
    with pytest.raises(UserError, match=r"4 of the files .* are not there: 1.jpg, 2.jpg, 3.jpg, \.\.\. \(4 in all\)"):
        image_folder(write_table(tmp_path / "t.csv", text))


def test_a_file_listed_twice(tmp_path, caplog):
    touch(tmp_path, "0.jpg", "1.jpg", "2.jpg")
    text = "path,label,split\n0.jpg,a,train\n1.jpg,b,train\n2.jpg,b,train\n"
    with caplog.at_level(logging.WARNING):
        listing = image_folder(write_table(tmp_path / "t.csv", text + "./0.jpg,a,train\n"))
    assert listing.splits["train"][0] == ("0.jpg", "1.jpg", "2.jpg")
    assert "lists 1 files more than once; they count once: ./0.jpg" in caplog.messages[0]
    for row in ("0.jpg,b,train", "0.jpg,a,test"):
        with pytest.raises(UserError, match=r"lists 0.jpg twice: as a for train and as"):
            image_folder(write_table(tmp_path / "t.csv", f"{text}{row}\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not name columns path and label .*: it is ''"),
        ("0.jpg,cat\n", "does not name columns path and label .*: it is '0.jpg,cat'"),
        ("path,label\n0.jpg,\n,a\n", "each line of .* needs a path and a label: line 2, line 3"),
        ("path,label,split\n0.jpg,a,tset\n", "needs a path and a label, and a split out of train, .*, val, .*: line 2"),
        ("path,label,split\n0.jpg,a,test\n", "pictures for test of classes that have none for training: a"),
        ("path,label\n", "has no pictures"),
        ('path,label\n"0.jpg,' + "a" * 200_000, "cannot be read as CSV: line 2: field larger"),
    ],
)
def test_tables_that_cannot_be_read(text, message, tmp_path):
    touch(tmp_path, "0.jpg")
    with pytest.raises(UserError, match=message):
        image_folder(write_table(tmp_path / "t.csv", text))


def test_files_that_are_no_tables(tmp_path):
    with pytest.raises(UserError, match=r"is not in UTF-8 .*: save it as CSV UTF-8"):
        image_folder(write_table(tmp_path / "t.csv", "path,label\n", "utf-16"))
    touch(tmp_path, "cat.jpg")
    with pytest.raises(UserError, match=r"is neither a directory nor a table that ends in \.csv or .tsv"):
        image_folder(tmp_path / "cat.jpg")


# What is held out, and the order in which splits are cut.


@st.composite
def labelled_paths(draw):
    sizes = draw(st.lists(st.integers(1, 30), min_size=1, max_size=6))
    labels = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
    permutation = np.array(draw(st.permutations(range(len(labels)))), int)
    return [f"{label}/ü{number}.jpg" for number, label in enumerate(labels[permutation])], labels[permutation]


@given(labelled_paths(), st.floats(0, 0.999), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_a_share_is_held_out_of_each_class(pictures, share, seed):
    paths, labels = pictures
    out = held_out(paths, labels, share, seed)
    assert out.dtype == bool
    for label, size in enumerate(np.bincount(labels)):
        count = int(out[labels == label].sum())
        assert count < size
        if share == 0:
            assert count == 0
        elif size > 1:
            assert count >= 1
            assert abs(count - share * size) <= 0.5 or count in (1, size - 1)


@given(labelled_paths(), st.integers(1, 5), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_a_number_is_held_out_of_each_class(pictures, number, seed):
    paths, labels = pictures
    sizes = np.bincount(labels)
    if sizes.min() > number:
        assert np.bincount(labels[held_out(paths, labels, number, seed)]).tolist() == [number] * len(sizes)
    else:
        few = int((sizes <= number).sum())
        with pytest.raises(UserError, match=f"hold_out={number} of each class leaves nothing to train on of {few} "):
            held_out(paths, labels, number, seed)


@given(labelled_paths(), st.sampled_from([0.1, 0.25, 0.5]), st.integers(0, 3), st.data())
@settings(max_examples=50, deadline=None)
def test_one_more_picture_moves_at_most_one_other(pictures, share, seed, data):
    paths, labels = pictures
    out = held_out(paths, labels, share, seed)
    new = data.draw(st.integers(0, int(labels.max()) + 1))
    more = held_out([*paths, "new.jpg"], np.append(labels, new), share, seed)
    assert (more[:-1] != out).sum() <= 1
    shuffled = np.array(data.draw(st.permutations(range(len(paths)))), int)  # the order of the files does not matter
    np.testing.assert_array_equal(
        held_out([paths[row] for row in shuffled], labels[shuffled], share, seed), out[shuffled]
    )


@pytest.mark.parametrize("amount", [-0.1, 1.5, float("nan"), float("inf")])
def test_amounts_that_mean_nothing(amount):
    with pytest.raises(UserError, match=r"hold_out=.* is not allowed: it is a number of pictures of each class, or a"):
        held_out(["a"], np.zeros(1, np.int32), amount, 0)


@given(labelled_paths(), st.integers(0, 3))
@settings(max_examples=100, deadline=None)
def test_every_part_of_the_order_holds_the_classes_in_their_shares(pictures, seed):
    paths, labels = pictures
    order = stratified_order(paths, labels, seed)
    assert order.dtype == np.int64
    assert sorted(order) == list(range(len(paths)))
    sizes = np.bincount(labels)
    shares = sizes / len(labels)
    counts = np.cumsum(labels[order][:, None] == np.arange(len(sizes)), axis=0)
    expected = np.arange(1, len(labels) + 1)[:, None] * shares
    assert (np.abs(counts - expected) <= (1 + len(sizes) * shares) / 2 + 1e-9).all()


@given(labelled_paths(), st.integers(0, 3))
@settings(max_examples=50, deadline=None)
def test_the_order_depends_on_paths_and_seed_alone(pictures, seed):
    paths, labels = pictures
    order = [paths[row] for row in stratified_order(paths, labels, seed)]
    turned = [paths[::-1][row] for row in stratified_order(paths[::-1], labels[::-1], seed)]
    assert order == turned


def test_another_seed_gives_another_order_and_other_held_out_pictures():
    paths, labels = [f"{number}.jpg" for number in range(100)], np.repeat(np.arange(2), 50)
    orders = {tuple(stratified_order(paths, labels, seed)) for seed in range(5)}
    chosen = {tuple(held_out(paths, labels, 10, seed)) for seed in range(5)}
    assert len(orders) == len(chosen) == 5
    # Kept for all time: who trains on a folder again gets the same splits.
    assert stratified_order(paths[:6], labels[:6], 0).tolist() == [4, 0, 3, 1, 2, 5]


def test_one_picture_of_a_class_is_trained_on():
    labels = np.repeat(np.arange(12), [1] * 10 + [100, 50]).astype(np.int32)
    order = stratified_order([f"{number}.jpg" for number in range(160)], labels, 0)
    assert set(range(10)) <= set(labels[order][:128])
    assert np.bincount(labels[order][128:], minlength=12)[10:].tolist() == [21, 11]


def test_nothing():
    empty = np.zeros(0, np.int32)
    assert held_out([], empty, 0.1, 0).shape == stratified_order([], empty, 0).shape == (0,)
