"""The builders of pictures in files: Tiny ImageNet and UC Merced, from folders and from archives, whole and damaged."""

import collections
import hashlib
import io
import shutil
import stat
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from loading import load_data
from PIL import Image

from inception_jax import data
from inception_jax.data.archives import Content
from inception_jax.data.builders import tiny_imagenet, uc_merced
from inception_jax.errors import UserError


def read_split(folder, split):
    """(encoded image, label, file name) of each example that TFDS itself reads from a prepared folder."""
    builder = tfds.builder_from_directory(folder)
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return [(example["image"], int(example["label"]), example["file_name"].decode()) for example in source]


def encoded(seed, size, form, mode="RGB"):
    """A picture file: smooth noise, so that a JPEG of it keeps something."""
    noise = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8))
    buffer = io.BytesIO()
    noise.resize(size, Image.Resampling.BICUBIC).convert(mode).save(buffer, form)
    return buffer.getvalue()


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def pack(files, path, module, monkeypatch):
    """Writes a zip archive, and has the builder take it for the published one."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    content = path.read_bytes()
    monkeypatch.setattr(module, "PACKED", Content(len(content), hashlib.sha256(content).hexdigest()))


@pytest.fixture
def tiny():
    """The files of a Tiny ImageNet of three classes, 4 pictures of each for training and 2 labelled others."""
    synsets = ["n03", "n01", "n02"]
    files = {
        "wnids.txt": "".join(f"{synset}\n" for synset in synsets).encode(),
        "words.txt": b"n00\tentity\nn01\tcrane, wading bird\nn02\tcrane\nn03\tcrane\n",
        "test/images/test_0.JPEG": b"",
    }
    annotations = []
    for seed, synset in enumerate(synsets):
        names = [f"{synset}_{number}.JPEG" for number in (0, 1, 2, 10)]
        files[f"train/{synset}/{synset}_boxes.txt"] = "".join(f"{name}\t0\t0\t63\t63\n" for name in names).encode()
        for number, name in enumerate(names):
            mode = "L" if number == 1 else "RGB"
            files[f"train/{synset}/images/{name}"] = encoded(10 * seed + number, (64, 64), "JPEG", mode)
        for number in (2 - seed, 5 - seed):
            files[f"val/images/val_{number}.JPEG"] = encoded(100 + number, (64, 64), "JPEG")
            annotations.append(f"val_{number}.JPEG\t{synset}\t0\t32\t44\t62\n")
    files["val/val_annotations.txt"] = "".join(annotations).encode()
    return files


TINY_TRAIN = [
    f"train/{synset}/images/{synset}_{number}.JPEG" for number in (0, 1, 2, 10) for synset in ("n01", "n02", "n03")
]


@pytest.mark.parametrize("layout", ["the folder", "a folder with it", "the archive"])
def test_tiny_imagenet_is_read_in_any_layout(layout, tiny, tmp_path, monkeypatch):
    given = tmp_path / "given"
    given.mkdir()
    if layout == "the archive":
        inside = {f"tiny-imagenet-200/{name}": content for name, content in tiny.items()}
        outside = {"../../outside.txt": b"", f"{tmp_path}/outside.txt": b""}
        pack({**outside, **inside}, given / "tiny-imagenet-200.zip", tiny_imagenet, monkeypatch)
    else:
        write(given / "tiny-imagenet-200", tiny)
    archives = given / "tiny-imagenet-200" if layout == "the folder" else given
    before = sorted(tmp_path.rglob("*"))
    folder = data.prepare("tiny_imagenet", directory=tmp_path / "data", archives=archives)
    assert [path for path in sorted(tmp_path.rglob("*")) if tmp_path / "data" not in (path, *path.parents)] == before
    assert not list(tmp_path.parent.parent.glob("outside.txt"))

    features = tfds.builder_from_directory(folder).info.features
    names = ["crane, wading bird", "crane (n02)", "crane (n03)"]
    assert features["label"].names == names
    assert features["image"].shape == (64, 64, 3)
    train = read_split(folder, "train")
    assert [name for _, _, name in train] == TINY_TRAIN
    assert [label for _, label, _ in train] == [0, 1, 2] * 4
    test = read_split(folder, "test")
    assert [(label, name) for _, label, name in test] == [
        (label, f"val/images/val_{number}.JPEG") for label, number in ((2, 2), (2, 5), (0, 1), (0, 4), (1, 0), (1, 3))
    ]
    assert all(image == tiny[name] for image, _, name in train + test)  # grayscale files among them

    dataset = load_data("tiny_imagenet", directory=tmp_path / "data", splits={"train": "train"})
    assert dataset.class_names == tuple(names)
    images, _ = dataset.splits["train"].gather(np.arange(12))
    for image, name in zip(images, TINY_TRAIN, strict=True):
        np.testing.assert_array_equal(image, Image.open(io.BytesIO(tiny[name])).convert("RGB"))


def test_tiny_imagenet_of_a_part_of_the_classes(tiny, tmp_path, caplog):
    write(tmp_path / "given", {name: content for name, content in tiny.items() if "train/n01" not in name})
    folder = data.prepare("tiny_imagenet", directory=tmp_path / "data", archives=tmp_path / "given")
    assert "contains 2 of the 3 classes" in caplog.text
    assert tfds.builder_from_directory(folder).info.features["label"].names == ["crane (n02)", "crane (n03)"]
    assert [label for _, label, _ in read_split(folder, "test")] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train/n02/images/n02_2.JPEG", None, "lacks 1 of the published files: train/n02/images/n02_2.JPEG"),
        ("val/images/val_4.JPEG", None, "lacks 1 of the published files: val/images/val_4.JPEG"),
        ("train/n02/n02_boxes.txt", None, "lacks 1 of the published files: train/n02/n02_boxes.txt"),
        ("train/n02/images/n02_2.JPEG", b"", "n02_2.JPEG in .*given cannot be decoded .it is empty.: get it again"),
        ("train/n02/images/n02_2.JPEG", b"<html>", "n02_2.JPEG in .*given cannot be decoded .it is not a picture"),
        ("train/n02/images/n02_2.JPEG", -100, "n02_2.JPEG in .*given cannot be decoded .*truncated"),
        ("val/images/val_4.JPEG", encoded(0, (64, 48), "JPEG"), "val_4.JPEG in .* has 64x48 pixels, not 64x64"),
        ("val/val_annotations.txt", b"val_1.JPEG\n", "val_annotations.txt in .* is not the published file"),
        ("wnids.txt", b"n99\n", "has no folder train/ with photographs"),
        ("wnids.txt", None, "no wnids.txt or tiny-imagenet-200.zip in .*given or in a folder of it: .*--archives"),
    ],
)
def test_a_tiny_imagenet_that_is_not_whole(name, content, message, tiny, tmp_path):
    tiny[name] = tiny[name][:content] if isinstance(content, int) else content
    write(tmp_path / "given", {name: content for name, content in tiny.items() if content is not None})
    with pytest.raises(UserError, match=message) as raised:
        data.prepare("tiny_imagenet", directory=tmp_path / "data", archives=tmp_path / "given")
    assert "\n" not in str(raised.value)
    assert not list((tmp_path / "data" / "tiny_imagenet").glob("1.0.0"))


def test_an_archive_of_pictures_that_is_not_the_published_one(tiny, tmp_path, monkeypatch):
    path = tmp_path / "given" / "tiny-imagenet-200.zip"
    path.parent.mkdir()
    pack({f"tiny-imagenet-200/{name}": content for name, content in tiny.items()}, path, tiny_imagenet, monkeypatch)
    whole = path.read_bytes()

    def refused(match):
        with pytest.raises(UserError, match=match):
            data.prepare("tiny_imagenet", directory=tmp_path / "data", archives=path.parent)

    path.write_bytes(whole[:-100])
    refused(f"its size is {len(whole) - 100}, expected {len(whole)}: remove tiny-imagenet-200.zip and get it again")
    place = whole.index(tiny["val/images/val_4.JPEG"]) + 300
    flipped = whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :]
    path.write_bytes(flipped)
    refused("its SHA-256 is .*, expected .*, or unpack it")
    # Even if the digest were right, the archive's own check would tell.
    monkeypatch.setattr(tiny_imagenet, "PACKED", Content(len(flipped), hashlib.sha256(flipped).hexdigest()))
    refused("val_4.JPEG in .*tiny-imagenet-200.zip cannot be read .Bad CRC-32")


def test_a_link_in_an_archive_of_pictures_is_not_followed(tiny, tmp_path, monkeypatch):
    path, outside = tmp_path / "given" / "tiny-imagenet-200.zip", tmp_path / "outside.JPEG"
    path.parent.mkdir()
    outside.write_bytes(tiny["val/images/val_4.JPEG"])
    files = {f"tiny-imagenet-200/{name}": content for name, content in tiny.items()}
    link = zipfile.ZipInfo("tiny-imagenet-200/val/images/val_4.JPEG")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    del files[link.filename]
    pack({**files, link: str(outside)}, path, tiny_imagenet, monkeypatch)
    with pytest.raises(UserError, match=r"val_4\.JPEG in .*zip cannot be decoded .it is not a picture"):
        data.prepare("tiny_imagenet", directory=tmp_path / "data", archives=path.parent)


@pytest.fixture
def merced(monkeypatch):
    """The files of a UC Merced of three classes with ten pictures each, as TIFF, PNG or JPEG."""
    monkeypatch.setattr(uc_merced, "CLASS_NAMES", ("agricultural", "beach", "river"))
    monkeypatch.setattr(uc_merced, "PER_CLASS", 10)

    def files(suffix):
        form = {".tif": "TIFF", ".png": "PNG", ".jpg": "JPEG"}[suffix]
        return {
            f"{name}/{name}{number:02}{suffix}": encoded(number, (16, 15 if number == 3 else 16), form)
            for name in uc_merced.CLASS_NAMES
            for number in range(10)
        }

    return files


@pytest.mark.parametrize(
    ("suffix", "where"),
    [
        (".tif", "zip"),
        (".tif", "UCMerced_LandUse/Images"),
        (".png", "Images"),
        (".jpg", "."),
        (".jpg", "UCMerced/Images"),
    ],
)
def test_uc_merced_is_read_in_any_layout(suffix, where, merced, tmp_path, monkeypatch):
    files, given = merced(suffix), tmp_path / "given"
    given.mkdir()
    if where == "zip":
        inside = {f"UCMerced_LandUse/Images/{name}": content for name, content in files.items()}
        pack({"UCMerced_LandUse/readme.txt": b"", **inside}, given / "UCMerced_LandUse.zip", uc_merced, monkeypatch)
    else:
        write(given / where, files)
    folder = data.published("uc_merced", data.Location(tmp_path / "data", given)).folder
    train, test = read_split(folder, "train"), read_split(folder, "test")
    for examples, numbers in ((train, (0, 8, 7, 6, 5, 3, 2, 1)), (test, (4, 9))):
        expected = [(label, number) for number in numbers for label in range(3)]
        assert [label for _, label, _ in examples] == [label for label, _ in expected]
        assert [name.partition("/")[2] for *_, name in examples] == [
            f"{uc_merced.CLASS_NAMES[label]}{number:02}{suffix}" for label, number in expected
        ]
    for image, _, name in train + test:
        if suffix == ".tif":
            opened = Image.open(io.BytesIO(image))
            assert (opened.format, opened.mode) == ("PNG", "RGB")
            np.testing.assert_array_equal(opened, Image.open(io.BytesIO(files[name])))
        else:
            assert image == files[name]


def numbers_of(examples):
    """(label, number in the file's name) of each example."""
    return [(label, int(name.partition(".")[0][-2:])) for _, label, name in examples]


def test_uc_merced_apart_cuts_each_class_once_in_the_order_of_its_names(merced, tmp_path):
    write(tmp_path / "given", merced(".png"))
    folders = [
        data.published("uc_merced_apart", data.Location(tmp_path / name, tmp_path / "given")).folder
        for name in ("data", "again")
    ]
    train, test = read_split(folders[0], "train"), read_split(folders[0], "test")
    assert numbers_of(train) == [(label, number) for number in range(8) for label in range(3)]
    assert numbers_of(test) == [(label, number) for number in (8, 9) for label in range(3)]
    assert [read_split(folders[1], split) for split in ("train", "test")] == [train, test]
    assert data.published("uc_merced", data.Location(tmp_path / "data", tmp_path / "given")).folder != folders[0]


def test_a_uc_merced_that_is_not_whole(merced, tmp_path):
    def refused(match):
        with pytest.raises(UserError, match=match):
            data.published("uc_merced", data.Location(tmp_path / "data", tmp_path / "given"))

    write(tmp_path / "given", {"readme.txt": b""})
    refused("no UCMerced_LandUse.zip in .*given or its folders, and no folder agricultural")
    write(tmp_path / "given", merced(".tif"))
    river = tmp_path / "given" / "river"
    (river / "river07.tif").write_bytes((river / "river07.tif").read_bytes()[:500])
    refused("river/river07.tif in .*given cannot be decoded")
    (river / "river07.tif").unlink()
    refused("lacks 1 of the published files: river/river07.tif: get it again")
    shutil.rmtree(river)
    refused("lacks 10 of the published files: river/river00.tif, river/river01.tif, river/river02.tif, ...: get it")


@pytest.mark.slow
def test_tiny_imagenet_equals_its_files(originals, prepared):
    root = originals / "tiny-imagenet-200"
    if not root.is_dir():
        pytest.skip("there is no tiny-imagenet-200")
    folder = data.prepare("tiny_imagenet", archives=root)
    words = dict(line.split("\t") for line in (root / "words.txt").read_text().splitlines())
    synsets = sorted(path.name for path in (root / "train").iterdir())
    assert tfds.builder_from_directory(folder).info.features["label"].names == [
        words[synset].split(",")[0] for synset in synsets
    ]
    train, test = read_split(folder, "train"), read_split(folder, "test")
    for examples, count in ((train, 500), (test, 50)):
        assert collections.Counter(label for _, label, _ in examples) == dict.fromkeys(range(len(synsets)), count)
        assert len({name for *_, name in examples}) == len(examples)
        assert all((root / name).read_bytes() == image for image, _, name in examples)
    assert all(name.split("/")[1] == synsets[label] for _, label, name in train)
    of_file = dict(line.split("\t")[:2] for line in (root / "val" / "val_annotations.txt").read_text().splitlines())
    assert all(of_file[name.split("/")[-1]] == synsets[label] for _, label, name in test)
    last = load_data("tiny_imagenet", splits={"train": "train[90%:]"}).splits["train"]
    _, labels = last.gather(np.arange(len(last)))
    assert np.bincount(labels).tolist() == [50] * len(synsets)


def test_uc_merced_equals_its_files(originals, tmp_path):
    root = originals / "ucmerced"
    if not root.is_dir():
        pytest.skip("there is no ucmerced")
    folder = data.published("uc_merced", data.Location(tmp_path, root)).folder
    classes = sorted(path.name for path in root.iterdir())
    assert tfds.builder_from_directory(folder).info.features["label"].names == classes
    train, test = read_split(folder, "train"), read_split(folder, "test")
    for examples, count in ((train, 80), (test, 20)):
        assert collections.Counter(label for _, label, _ in examples) == dict.fromkeys(range(21), count)
        assert all(name.split("/")[0] == classes[label] for _, label, name in examples)
        assert all((root / name).read_bytes() == image for image, _, name in examples)
    assert len({name for *_, name in train + test}) == 2100
    # Pictures with close numbers are of the same places: a tenth of the training split is to be as close to the rest
    # of it as the test split is.
    for start in range(0, 1680, 168):
        numbers = sorted(int(name[-6:-4]) for _, label, name in train[start : start + 168] if label == 0)
        assert len(numbers) == 8
        assert max(np.diff([0, *numbers, 99])) < 25


def color_histogram(content):
    """Shares of the 512 colors of a picture whose channels have 8 levels: `(512,)`."""
    pixels = np.asarray(Image.open(io.BytesIO(content)).convert("RGB").reduce(4)) // 32
    return np.bincount((pixels @ [64, 8, 1]).ravel(), minlength=512) / pixels[..., 0].size


@pytest.mark.slow
def test_uc_merced_apart_has_no_neighbors_of_test_pictures_to_train_on(originals, tmp_path):
    root = originals / "ucmerced"
    if not root.is_dir():
        pytest.skip("there is no ucmerced")
    folder = data.published("uc_merced_apart", data.Location(tmp_path, root)).folder
    splits = load_data("uc_merced_apart", directory=tmp_path, image_size=8).splits
    sizes = {split: len(part) for split, part in splits.items()}
    assert sizes == {"train": 1512, "validation": 168, "test": 420}  # as of uc_merced
    assert all((np.bincount(part.all_labels()) == len(part) // 21).all() for part in splits.values())

    every = read_split(folder, "train") + read_split(folder, "test")
    numbers = np.array([number for _, number in numbers_of(every)])
    parts = np.split(numbers, [1512, 1680])
    assert [{*part} for part in parts] == [{*range(72)}, {*range(72, 80)}, {*range(80, 100)}]

    # An independent view: how often the most similar training picture, by its colors, is of the same class.
    labels = np.array([label for _, label, _ in every])
    roots = np.sqrt([color_histogram(content) for content, *_ in every])

    def right(train, test):
        nearest = (roots[test] @ roots[train].T).argmax(axis=1)
        return (labels[train][nearest] == labels[test]).mean()

    between = numbers % 5 == 4  # the test split of uc_merced, whose neighbors are trained on
    assert right(~between, between) > 0.75
    assert right(numbers < 72, numbers >= 80) < 0.35
