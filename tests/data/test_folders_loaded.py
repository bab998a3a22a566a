"""Pictures in a person's folder, from the files to splits: what is left out, held out, found twice, or changed."""

import logging
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from loading import load_data
from PIL import ExifTags, Image, ImageOps

from inception_jax import data
from inception_jax.data import sources
from inception_jax.errors import UserError


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three classes of 10, 10 and 20 pictures of 8x8 pixels, every fifth of them grayscale, each of one value."""
    root = tmp_path / "pictures"
    for number in range(40):
        place = root / ("apple pie", "brötchen", "cake", "cake")[number % 4]
        place.mkdir(parents=True, exist_ok=True)
        mode = "L" if number % 5 == 0 else "RGB"
        Image.new(mode, (8, 8), 6 * number if mode == "L" else (6 * number,) * 3).save(place / f"{number}.png")
    return root


@pytest.fixture
def load(folder, tmp_path):
    return partial(load_data, "image_folder", directory=tmp_path / "prepared", folder=folder)


def numbers(split) -> list[int]:
    """Which pictures a split has, by their values."""
    images, _ = split.gather(np.arange(len(split)))
    assert (images == images[:, :1, :1, :1]).all()
    return (images[:, 0, 0, 0] // 6).tolist()


def test_splits_are_stratified_and_depend_on_the_seed_alone(load, folder):
    dataset = load()
    assert dataset.class_names == ("apple pie", "brötchen", "cake")
    assert dataset.image_shape == (8, 8, 3)
    counts = {split: np.bincount(part.all_labels()).tolist() for split, part in dataset.splits.items()}
    assert counts["test"] == [1, 1, 2]
    assert [sum(counts[split]) for split in ("train", "validation")] == [32, 4]
    assert counts["validation"] == [1, 1, 2]
    everything = [number for split in dataset.splits.values() for number in numbers(split)]
    assert sorted(everything) == list(range(40))
    for part in dataset.splits.values():
        labels = np.array([0, 1, 2, 2])[np.array(numbers(part)) % 4]
        np.testing.assert_array_equal(part.all_labels(), labels)
        np.testing.assert_array_equal(part.grayscale(), np.array(numbers(part)) % 5 == 0)
    again, other = load(), load(split_seed=1)
    assert all(numbers(dataset.splits[split]) == numbers(again.splits[split]) for split in dataset.splits)
    assert numbers(dataset.splits["test"]) != numbers(other.splits["test"])
    moved = folder.rename(folder.with_name("elsewhere"))
    assert load(folder=moved).fingerprint == dataset.fingerprint


def test_hold_out(load):
    assert np.bincount(load(hold_out=4).splits["test"].all_labels()).tolist() == [4, 4, 4]
    assert "test" not in load(hold_out=0).splits
    with pytest.raises(UserError, match="apple pie"):
        load(hold_out=10)
    assert load(splits={"train": "train[:50%]"}, hold_out=0).splits.keys() == {"train"}


def test_what_is_left_of_small_classes_is_trained_on(load):
    """What is left is cut as if the held out pictures had never been there."""
    dataset = load(hold_out=9, splits={"train": "train[:80%]", "validation": "train[80%:]", "test": "test"})
    counts = {split: np.bincount(part.all_labels(), minlength=3).tolist() for split, part in dataset.splits.items()}
    assert counts == {"train": [1, 1, 8], "validation": [0, 0, 3], "test": [9, 9, 9]}


def test_names_of_files_that_are_not_utf8(load, folder, caplog):
    broken, whole = (folder / "cake" / os.fsdecode(name) for name in (b"\xff.png", b"\xfe.png"))
    try:
        broken.touch()
    except OSError:
        pytest.skip("this file system has UTF-8 names alone")
    whole.write_bytes((folder / "cake" / "2.png").read_bytes())
    with caplog.at_level(logging.WARNING):
        dataset = load(hold_out=0)
    assert sum(map(len, dataset.splits.values())) == 41
    report = Path(caplog.messages[0].rpartition(" ")[2])
    assert report.read_bytes() == rb"cake/\xff.png" + b"\tit is empty\n"


@pytest.mark.parametrize("pipeline", ["memory", "streaming"])
@pytest.mark.parametrize(("keep", "remainders"), [("color", {1, 2, 3, 4}), ("grayscale", {0})])
def test_grayscale_or_color_alone(keep, remainders, pipeline, load):
    dataset = load(keep=keep, pipeline=pipeline, image_size=8, hold_out=0)
    kept = [number for split in dataset.splits.values() for number in numbers(split)]
    assert sorted(kept) == [number for number in range(40) if number % 5 in remainders]
    whole = load(splits={"train": "train"}, hold_out=0)
    order = numbers(whole.splits["train"])
    assert kept == [number for number in order if number in kept]  # leaving out does not shuffle


@pytest.mark.parametrize("pipeline", ["memory", "streaming"])
def test_every_choice_of_pictures_is_cut_at_the_same_place(load, pipeline):
    """Else a network for grayscale pictures would be evaluated beside others on some that it was trained on."""
    splits = {"train": "train[:70%]", "validation": "train[70%:]", "test": "train[:5]+train[35:]"}
    whole, *others = (
        load(keep=keep, pipeline=pipeline, image_size=8, hold_out=0, splits=splits)
        for keep in ("all", "color", "grayscale")
    )
    for split, part in whole.splits.items():
        colors, grays = (numbers(other.splits[split]) for other in others)
        assert [number for number in numbers(part) if number % 5] == colors
        assert [number for number in numbers(part) if not number % 5] == grays


def test_a_split_with_nothing_to_keep(load):
    order = numbers(load(splits={"train": "train"}, hold_out=0).splits["train"])
    color = next(position for position, number in enumerate(order) if number % 5)
    splits = {"train": "train", "validation": f"train[{color}:{color + 1}]"}
    with pytest.raises(UserError, match="the validation split has no picture to keep: keep='grayscale'"):
        load(keep="grayscale", hold_out=0, splits=splits)


def test_keeping_nothing(load, folder):
    for path in folder.rglob("*.png"):
        Image.open(path).convert("RGB").save(path)
    with pytest.raises(UserError, match="keep='grayscale' leaves all of them out"):
        load(keep="grayscale")


@pytest.mark.parametrize("pipeline", ["memory", "streaming"])
def test_what_cannot_be_decoded_is_named_and_left_out_or_an_error(load, folder, pipeline, caplog):
    whole = folder / "cake" / "2.png"
    whole.write_bytes(whole.read_bytes()[:-30])
    (folder / "cake" / "empty.jpg").touch()
    (folder / "brötchen" / "not a picture.png").write_text("?")
    with caplog.at_level(logging.WARNING):
        dataset = load(pipeline=pipeline, image_size=8, hold_out=0)
    (message,) = caplog.messages
    assert "3 of the pictures in" in message
    assert "cake/empty.jpg (it is empty)" in message
    report = Path(message.rpartition(" ")[2]).read_text()
    assert [line.split("\t")[0] for line in report.splitlines()] == [
        "brötchen/not a picture.png", "cake/2.png", "cake/empty.jpg",
    ]  # fmt: skip
    kept = sorted(number for split in dataset.splits.values() for number in numbers(split))
    assert kept == [number for number in range(40) if number != 2]
    with pytest.raises(UserError, match=r"3 of the pictures in .* cannot be decoded"):
        load(on_error="error")


def test_pictures_that_a_table_lists_by_absolute_paths(load, folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    table = tmp_path / "elsewhere" / "pictures.csv"
    rows = [f'"{folder}/cake/{number}.png",{number % 4}' for number in range(40) if number % 4 > 1]
    table.write_text("\n".join(["path,label", *rows]))
    for pipeline in ("memory", "streaming"):
        part = load(folder=table, hold_out=0, splits={"train": "train"}, pipeline=pipeline).splits["train"]
        assert sorted(numbers(part)) == [number for number in range(40) if number % 4 > 1]


@pytest.mark.parametrize("pipeline", ["memory", "streaming"])
def test_pictures_as_they_come(pipeline, tmp_path, caplog):
    """One of each kind that real folders hold, beside one of each that cannot be decoded; the pixels are Pillow's."""
    generator = np.random.default_rng(0)
    color = Image.fromarray(generator.integers(0, 256, (5, 7, 3), np.uint8)).resize((60, 40))
    gray, wide = color.convert("L"), np.asarray(color.convert("L")).astype(np.uint16) * 257
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    root = tmp_path / "Crème brûlée & more"
    place = root / "寿司 to go"
    place.mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "one").mkdir()
    color.save(root / "one" / "alone.png")
    color.save(place / "plain.jpg")
    gray.save(place / "grayscale.jpg")
    color.quantize(16).save(place / "palette.png")
    color.quantize(16).save(place / "palette, transparent.png", transparency=0)
    color.convert("RGBA").save(place / "rgba.png")
    color.convert("CMYK").save(place / "cmyk.jpg")
    Image.fromarray(wide).save(place / "16 bits.png")
    color.save(place / "turned (ä).jpg", exif=turned)
    color.quantize(32).save(place / "animated.gif", save_all=True, append_images=[gray.quantize(8)])
    color.resize((1, 90)).save(place / "odd.png")
    color.resize((1, 1)).save(place / "pixel.webp", lossless=True)
    decodable = sorted(path for path in root.rglob("*.*"))
    jpeg, png = (place / "plain.jpg").read_bytes(), (place / "rgba.png").read_bytes()
    for name, content in {
        "empty.jpg": b"", "half.jpg": jpeg[: len(jpeg) // 2], "half.png": png[: len(png) // 2], "text.gif": b"text",
    }.items():  # fmt: skip
        (place / name).write_bytes(content)
    (place / "gone.jpg").symlink_to("nowhere.jpg")

    with caplog.at_level(logging.WARNING):
        dataset = load_data(
            "image_folder", directory=tmp_path / "prepared", folder=root, image_size=16, pipeline=pipeline,
            hold_out=0, splits={"train": "train"},
        )  # fmt: skip
    assert dataset.class_names == ("one", "寿司 to go")
    assert caplog.messages[:2] == [
        f"{root}: classes without pictures are left out: empty",
        f"{root}: classes with one picture, which is used for training only: one",
    ]
    assert "5 of the pictures in" in caplog.messages[2]
    report = Path(caplog.messages[2].rpartition(" all of them are in ")[2]).read_text(encoding="utf-8")
    assert [line.partition("\t")[0] for line in report.splitlines()] == [
        f"寿司 to go/{name}" for name in ("empty.jpg", "gone.jpg", "half.jpg", "half.png", "text.gif")
    ]
    part = dataset.splits["train"]
    images, labels = part.gather(np.arange(len(part)))
    assert np.bincount(labels).tolist() == [1, len(decodable) - 1]
    expected = []
    for path in decodable:
        with Image.open(path) as opened:
            shown = gray if path.stem == "16 bits" else ImageOps.exif_transpose(opened)
            shown = shown.convert("RGBA") if "transparency" in shown.info else shown
            shown = shown.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
        expected.append(np.asarray(shown).tobytes())
    assert sorted(image.tobytes() for image in images) == sorted(expected)
    grays = part.grayscale()
    assert grays is not None
    assert grays.sum() == 2


@pytest.mark.parametrize("pipeline", ["memory", "streaming"])
def test_a_train_folder_in_which_nothing_can_be_decoded(pipeline, load, folder):
    for split in ("train", "val"):
        for name in ("cake", "brötchen"):
            shutil.copytree(folder / name, folder.parent / "splits" / split / name)
    splits = folder.parent / "splits"
    assert load(folder=splits, pipeline=pipeline, image_size=8).splits.keys() == {"train", "validation"}
    for path in (splits / "train").rglob("*.png"):
        path.touch()
        path.write_text("no picture")
    with pytest.raises(UserError, match="has no picture for training: none of them can be decoded"):
        load(folder=splits, pipeline=pipeline, image_size=8)


def test_a_picture_that_is_lost_before_it_is_decoded_into_memory(load, folder, monkeypatch):
    load(image_size=8)
    read = sources.FileSource.read

    def forbid(source, row):
        if source.name(row) == "cake/3.png":
            raise PermissionError(13, "Permission denied")
        return read(source, row)

    monkeypatch.setattr(sources.FileSource, "read", forbid)
    with pytest.raises(UserError, match=r"^cake/3\.png could be decoded before, but not now: Permission denied$"):
        load(image_size=4)


def test_a_changed_folder_is_noticed_and_the_difference_named(load, folder, tmp_path, caplog):
    first = load()
    with caplog.at_level(logging.WARNING):
        assert load().fingerprint == first.fingerprint
        (folder / "cake" / "2.png").touch()  # the same content
        assert load().fingerprint == first.fingerprint
        assert caplog.messages == []
        Image.new("RGB", (8, 8), (13, 13, 13)).save(folder / "cake" / "2.png")
        (folder / "cake" / "3.png").unlink()
        Image.new("RGB", (8, 8), (14, 13, 13)).save(folder / "apple pie" / "new.png")
        second = load()
    (message,) = caplog.messages
    assert "has changed since it was last used" in message
    assert "1 added: apple pie/new.png; 1 removed: cake/3.png; 1 changed: cake/2.png" in message
    assert first.cache
    assert second.fingerprint
    assert message.endswith(data.changes(first.cache, first.fingerprint or "", second.fingerprint))
    assert [path.name for path in (first.cache / "decoded").iterdir()] == [second.fingerprint]  # the old one takes room
    assert data.changes(first.cache, "unknown", second.fingerprint) == "its earlier content is no longer known"


def test_the_same_picture_in_two_splits_is_reported(load, folder, caplog):
    for number in range(40):
        place = folder / ("apple pie", "brötchen", "cake", "cake")[number % 4]
        (place / f"copy of {number}.png").write_bytes((place / f"{number}.png").read_bytes())
    with caplog.at_level(logging.WARNING):
        dataset = load()
    shared = {
        split: set(numbers(part)) & set(numbers(dataset.splits["train"])) for split, part in dataset.splits.items()
    }
    for split in ("validation", "test"):
        assert any(
            f"pictures of the split {split} are the same as one of train" in message for message in caplog.messages
        )
        assert shared[split]
    assert any(" = " in message for message in caplog.messages)
    caplog.clear()
    halves = {"validation": "train[50%:]", "test": "test"}
    twins = load(hold_out=0.5, splits=halves).splits
    number = len(set(numbers(twins["validation"])) & set(numbers(twins["test"])))
    assert number > 0
    assert [message.partition(" = ")[0].rpartition(":")[0] for message in caplog.messages] == [
        f"{number} pictures of the split test are the same as one of validation: its results flatter the network"
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"folder": None}, r"is read in place: name its folder, by --folder or --config.data.folder"),
        ({"keep": "gray"}, "unknown keep 'gray'. Did you mean 'grayscale'"),
        ({"pipeline": "disk"}, "unknown pipeline 'disk'"),
        ({"splits": {"train": "train", "test": "tset"}}, "tset"),
    ],
)
def test_mistakes(options, message, load):
    with pytest.raises(UserError, match=message):
        load(**options)


def test_a_folder_is_for_sets_that_are_read_in_place(digits, folder):
    with pytest.raises(UserError, match="folder is for pictures that are read in place, not for data set 'digits'"):
        load_data("digits", directory=digits, folder=folder)


def test_a_half_written_decoding_is_removed_by_the_next(load, folder):
    dataset = load(image_size=16, splits={"train": "train"})
    assert dataset.cache
    decoded = dataset.cache / "decoded" / (dataset.fingerprint or "")
    left = decoded / ".12x12x3.0123456789abcdef"
    left.mkdir()
    (left / "train_images.npy").write_bytes(b"half")
    (decoded / f"{left.name}.lock").touch()
    load(image_size=12, splits={"train": "train"})
    assert sorted(path.name for path in decoded.iterdir()) == ["12x12x3", "16x16x3"]
