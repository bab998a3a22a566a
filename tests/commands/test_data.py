"""The sub-command that prepares a data set and shows it."""

import json

import numpy as np
import pytest
from PIL import Image

from inception_jax import commands, data
from inception_jax.commands import data as command


@pytest.fixture
def folder(tmp_path):
    """Three classes, pictures of several sizes and modes, a file that is none."""
    generator = np.random.default_rng(0)
    for number in range(30):
        place = tmp_path / "pictures" / ("apple pie", "brötchen", "cake")[number % 3]
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(generator.integers(0, 256, (20 + number % 4, 24, 3), np.uint8))
        image.convert("L" if number % 5 == 0 else "RGB").save(place / f"{number}.png")
    (tmp_path / "pictures" / "cake" / "no.png").write_text("no picture")
    return tmp_path / "pictures"


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.setenv("INCEPTION_JAX_DATA", str(tmp_path / "prepared"))


def call(capsys, *arguments):
    code = commands.main(["data", *map(str, arguments)])
    answer = capsys.readouterr()
    return code, answer.out, answer.err


def test_a_published_set(capsys, digits):
    code, out, _ = call(capsys, "digits", "--data-dir", digits)
    assert code == 0
    assert out.splitlines()[:4] == [
        f"digits: 10 classes, in {digits}/digits/1.0.0",
        "  train            1,298  126 to 132 of each class",
        "  validation         144  13 to 16 of each class",
        "  test               355  34 to 36 of each class",
    ]
    assert "images       8x8x1, 0.00 GiB, decoded once, memory-mapped" in out
    assert "modes        1,797 L; 100.0% grayscale" in out


def test_a_folder(capsys, folder):
    code, out, err = call(capsys, "image_folder", "--folder", folder)
    assert code == 0
    assert "of several sizes: give --image-size to choose one" in out
    assert "20x24 to 23x24, median 21x24 (height x width), 4 different" in out
    assert "24 RGB, 6 L; 20.0% grayscale" in out
    assert "undecodable  1: cake/no.png (it is not a picture of a known format)" in out
    assert "1 of the pictures in" in err
    assert "  train               27  9 of each class\n  test                 3  1 of each class\n" in out
    assert out.endswith(
        "training examples per class\n  apple pie         9\n  brötchen          9\n  cake              9\n"
    )
    code, out, err = call(capsys, "image_folder", "--folder", folder, "--image-size", 16, "--json")
    assert code == 0
    assert "1 of the pictures in" in err
    page = json.loads(out)
    assert page["class_names"] == ["apple pie", "brötchen", "cake"]
    assert page["splits"] == {"train": 24, "validation": 3, "test": 3}
    assert np.sum(list(page["per_class"].values()), axis=0).tolist() == [10, 10, 10]
    assert page["images"]["shape"] == [16, 16, 3]
    assert page["images"]["streamed"] is False


@pytest.mark.parametrize("size", [[], ["--image-size", 16]])
def test_a_folder_in_which_nothing_can_be_decoded(size, capsys, folder):
    for path in folder.rglob("*.png"):
        path.write_text("no picture")
    code, out, err = call(capsys, "image_folder", "--folder", folder, *size)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "error: 31 of the pictures in" in err
    assert "none is left; all of them are in" in err


@pytest.mark.parametrize("fields", [[], ["--config.data.augment.crop_originals=true"], ["--config.data.channels=1"]])
def test_a_sheet(fields, capsys, folder, tmp_path):
    path = tmp_path / "sheet.png"
    code, out, _ = call(
        capsys, "image_folder", "--folder", folder, "--image-size", 16, "--sheet", path,
        "--config.data.augment.random_resized_crop=(0.2,0.5)", *fields,
    )  # fmt: skip
    assert code == 0
    assert str(path) in out
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (24 + 8 * 100, 150 + 6 * 100, 3)
    tiles = sheet[24:, 150:].reshape(8, 100, 6, 100, 3)[:, :96, :, :96]
    for draw in range(1, 6):
        assert (tiles[:, :, 0] != tiles[:, :, draw]).mean(axis=(1, 2, 3)).min() > 0.1


def test_a_sheet_without_augmentation_shows_more_pictures(capsys, folder, tmp_path):
    path = tmp_path / "sheet.png"
    code, _, _ = call(capsys, "image_folder", "--folder", folder, "--image-size", 16, "--sheet", path)
    assert code == 0
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (24 + 8 * 100, 150 + 6 * 100, 3)
    tiles = sheet[24:, 150:].reshape(8, 100, 6, 100, 3)[:, :96, :, :96].swapaxes(1, 2).reshape(48, -1)
    shown = [tile.tobytes() for tile in tiles if tile.min() < 255]
    assert 24 >= len(shown) == len(set(shown)) > 16  # of the training split's, each once


def test_a_config_and_its_fields(capsys, digits):
    code, out, _ = call(
        capsys, "--config=googlenet_digits", "--data-dir", digits, "--config.data.splits.train=train[:50%]"
    )
    assert code == 0
    assert "train              721" in out


def test_the_list(capsys):
    code, out, _ = call(capsys)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == list(data.DATASETS)


def test_of_many_classes_some_are_shown():
    names, counts = [f"class {label}" for label in range(20)], list(range(20))
    lines = command._classes(names, counts)
    assert len(lines) == 2 + 13
    assert lines[2].split() == ["class", "19", "19"]
    assert lines[-1].split() == ["class", "0", "0"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digitz"], "unknown data set 'digitz'. Did you mean 'digits'"),
        (["image_folder"], "name its folder, by --folder"),
        (["image_folder", "--folder", "nowhere"], "cannot read the folder nowhere: No such file"),
        (["cifar10", "--archives", "nowhere"], "archives='nowhere' is not a directory with files"),
        (["digits", "--config.data.image_size=0"], "image_size=0 is not allowed"),
        (["digits", "--config.data.imagesize=8"], "imagesize"),
        (["digits", "--frobnicate"], "frobnicate"),
        (["--folder", "nowhere"], "give a data set, or a config with --config"),
        (["digits", "--sheet", "/nowhere/sheet.png"], "cannot write /nowhere/sheet.png"),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments, message, capsys):
    code, out, err = call(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
