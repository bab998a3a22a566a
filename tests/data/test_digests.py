"""Prepared data that was damaged: it is what it was, or one line names the file; never wrong pixels in silence."""

import gzip
import json
import os
import re
import shutil
import sys

import numpy as np
import pytest
from loading import load_data
from PIL import Image

from inception_jax import commands, data
from inception_jax.data import digests
from inception_jax.errors import UserError


def flip(share):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[int(share * (len(content) - 1))] ^= 4
        status = path.stat()
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # a disk's error shows in neither

    return damage


def directory(path):
    path.unlink()
    path.mkdir()


DAMAGE = {
    "first byte": flip(0),
    "early byte": flip(0.1),
    "byte in the middle": flip(0.5),
    "last byte": flip(1),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "one byte less": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "noise": lambda path: path.write_bytes(np.random.default_rng(0).bytes(path.stat().st_size)),
    "other JSON": lambda path: path.write_text('{"content": [[1, 2], null]}'),
    "a list": lambda path: path.write_text("[]"),
    "deep JSON": lambda path: path.write_text("[" * 100_000),
    "gone": lambda path: path.unlink(),
    "directory": directory,
}


QUICK = {name: DAMAGE[name] for name in ("first byte", "byte in the middle", "cut", "noise", "directory", "gone")}


def everything(dataset):
    statistics = [values.tolist() for values in dataset.channel_statistics()]
    content = {split: part.gather(np.arange(len(part))) for split, part in dataset.splits.items()}
    return dataset.class_names, statistics, content


def same(got, expected):
    if got[:2] != expected[:2] or got[2].keys() != expected[2].keys():
        return False
    return all(map(np.array_equal, sum(got[2].values(), ()), sum(expected[2].values(), ())))


def outcome(load, place):
    """What is loaded, or what the error says."""
    try:
        return everything(load(place)), ""
    except UserError as error:
        return None, str(error)


def kept(place):
    return sorted(path for path in place.rglob("*") if path.is_file())


def try_all(place, copies, load, damages):
    """Each file below `place`, damaged in each way in a copy of it; what `load(copy)` makes of it."""
    expected = everything(load(place))
    names = [path.relative_to(place) for path in kept(place)]
    for number, (name, damage) in enumerate((name, damage) for name in names for damage in damages):
        copy = copies / str(number)
        shutil.copytree(place, copy)
        damages[damage](copy / name)
        got, message = outcome(load, copy)
        case = f"{name}, {damage}: {message}"
        if got is not None:
            assert same(got, expected), case
        else:
            assert "\n" not in message, case
            assert name.name in message, case
            assert "remove it, and it is made again" in message, case
            command = re.search(r"made again: rm -r (\S+); inception-jax data \S+ .*--data-dir \S+$", message)
            assert command is None or (copy / name).is_relative_to(command[1]), case
        shutil.rmtree(copy)
    return names


MODULE = """
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

class Tiny(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(shape=(4, 4, 3)), "label": tfds.features.ClassLabel(names=["a", "b"])}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features),
                                     supervised_keys=("image", "label"), disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 20), "test": self._generate_examples(20, 26)}

    def _generate_examples(self, first, last):
        for number in range(first, last):
            image = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
            yield number, {"image": Image.fromarray(image), "label": number % 2}
"""


@pytest.fixture
def module(tmp_path_factory, monkeypatch):
    """An importable module with a small builder."""
    folder = tmp_path_factory.mktemp("module")
    (folder / "tiny_mine.py").write_text(MODULE)
    monkeypatch.syspath_prepend(folder)
    yield
    sys.modules.pop("tiny_mine", None)


@pytest.fixture
def prepared(module, tmp_path):
    """A small data set, with all that is kept of it."""
    everything(load(tmp_path / "prepared"))
    return tmp_path / "prepared"


def load(place):
    return load_data("tiny_mine:Tiny", directory=place)


def the_folder(prepared):
    """Where it is: beside it lies what TFDS keeps of all."""
    (info,) = prepared.rglob("dataset_info.json")
    return info.parent


@pytest.mark.parametrize("damages", [QUICK, pytest.param(DAMAGE, marks=pytest.mark.slow)], ids=["quick", "all"])
def test_a_published_set(prepared, tmp_path, damages):
    names = try_all(prepared, tmp_path / "copies", load, damages)
    assert {name.name for name in names} >= {
        "dataset_info.json", "features.json", "digests.json", "index.json", "train.json", "train_labels.json",
        "train_images.npy", "train_labels.npy", "tiny-train.array_record-00000-of-00001", "label.labels.txt",
    }  # fmt: skip


@pytest.mark.parametrize("damages", [QUICK, pytest.param(DAMAGE, marks=pytest.mark.slow)], ids=["quick", "all"])
def test_a_folder_of_pictures(tmp_path, damages):
    generator = np.random.default_rng(0)
    for number in range(24):
        (tmp_path / "pictures" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8))
        image.save(tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png")

    def load_pictures(place):
        return load_data("image_folder", folder=tmp_path / "pictures", directory=place)

    everything(load_pictures(tmp_path / "prepared"))
    names = try_all(tmp_path / "prepared", tmp_path / "copies", load_pictures, damages)
    assert {name.name for name in names} >= {"train.json", "last_listing.txt", "index.json", "train_images.npy"}
    assert any(name.name.endswith(".json.gz") for name in names)


def without_digests(place):
    """A cache as versions without digests wrote it."""
    for path in kept(place):
        if path.name == digests.NAME:
            path.unlink()
        elif path.suffix == ".json" and path.read_bytes().startswith(b'{"sha256"'):
            content = json.loads(path.read_text())["content"]
            if path.name.endswith("_labels.json"):
                path.unlink()
                np.save(path.with_suffix(".npy"), np.array(content, np.int32))
            else:
                path.write_text(json.dumps(content))


def test_a_cache_without_digests_is_taken_as_it_is_and_gets_them(prepared, caplog):
    expected = everything(load(prepared))
    names = kept(prepared)
    without_digests(prepared)
    assert kept(prepared) != names
    assert same(everything(load(prepared)), expected)
    assert "has no digests yet: what is in it is taken as it is, and verified from now on" in caplog.text
    assert set(names) <= set(kept(prepared))
    caplog.clear()
    assert same(everything(load(prepared)), expected)
    assert caplog.messages == []
    flip(0.5)(the_folder(prepared) / "decoded" / "4x4x3" / "train_images.npy")
    with pytest.raises(UserError, match=r"the content of train_images\.npy is not what was written"):
        load(prepared)


def test_a_damaged_cache_without_digests_is_no_traceback(prepared, tmp_path):
    without_digests(prepared)
    damages = {name: DAMAGE[name] for name in ("cut", "noise", "other JSON")}
    for number, (path, damage) in enumerate((path, damage) for path in kept(prepared) for damage in damages):
        copy = tmp_path / str(number)
        shutil.copytree(prepared, copy)
        damages[damage](copy / path.relative_to(prepared))
        got, message = outcome(load, copy)
        assert got or ("\n" not in message and str(copy) in message), f"{path}, {damage}: {message}"
        shutil.rmtree(copy)


def test_a_folder_that_may_only_be_read_is_verified_and_left_as_it_is(prepared, monkeypatch):
    expected = everything(load(prepared))

    def forbid(path, *args, **options):
        raise UserError(f"{path} is written")

    monkeypatch.setattr(digests, "write", forbid)
    assert same(everything(load(prepared)), expected)


def test_large_files_are_read_again_only_if_their_stamp_changed(prepared, monkeypatch):
    read = []
    of_file = digests.of_file
    monkeypatch.setattr(digests, "of_file", lambda path: read.append(path.name) or of_file(path))
    load(prepared)
    assert {"train_images.npy", "tiny-train.array_record-00000-of-00001"} < set(read)
    read.clear()
    monkeypatch.setattr(digests, "ALWAYS_BYTES", 0)
    load(prepared)
    assert read == []
    images = the_folder(prepared) / "decoded" / "4x4x3" / "train_images.npy"
    os.utime(images)
    load(prepared)
    load(prepared)
    assert read == ["train_images.npy"]  # once, and then its stamp is known
    content = bytearray(images.read_bytes())
    content[300] ^= 1
    images.write_bytes(content)
    with pytest.raises(UserError, match=r"the content of train_images\.npy"):
        load(prepared)


def test_verify(prepared, capsys, monkeypatch):
    arguments = ["data", "tiny_mine:Tiny", "--data-dir", str(prepared), "--verify"]
    assert commands.main(arguments) == 0
    assert re.search(r"verified +\d+ files, 0\.00 GiB: all digests match", capsys.readouterr().out)
    monkeypatch.setattr(digests, "ALWAYS_BYTES", 0)  # as of a large set
    images = the_folder(prepared) / "decoded" / "4x4x3" / "train_images.npy"
    before = images.stat()
    flip(0.5)(images)
    assert [images.stat().st_mtime_ns, images.stat().st_ino] == [before.st_mtime_ns, before.st_ino]
    assert commands.main(arguments[:-1]) == 0
    assert commands.main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the content of train_images.npy is not what was written" in line
    shutil.rmtree(re.search(r"made again: rm -r (\S+); inception-jax data tiny_mine:Tiny --data-dir \S+$", line)[1])  # pyright: ignore[reportOptionalSubscript]
    assert commands.main(arguments) == 0


def test_verify_reads_pictures_in_place(tmp_path, capsys):
    for number in range(8):
        (tmp_path / "pictures" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png")
    folder, prepared = str(tmp_path / "pictures"), str(tmp_path / "prepared")
    arguments = ["data", "image_folder", "--folder", folder, "--data-dir", prepared, "--verify"]
    assert commands.main(arguments) == 0
    assert "verified" in capsys.readouterr().out
    flip(0.7)(tmp_path / "pictures" / "a" / "4.png")
    assert commands.main(arguments) == 2
    assert "a/4.png in" in capsys.readouterr().err


def test_what_it_held_then_is_damaged(tmp_path):
    for number in range(2):
        (tmp_path / "listings").mkdir(exist_ok=True)
        content = gzip.compress(json.dumps({"train": {f"{number}.png": "a"}}).encode())
        (tmp_path / "listings" / f"{number}.json.gz").write_bytes(content)
    assert data.changes(tmp_path, "0", "1") == "1 added: 1.png; 1 removed: 0.png"
    for damage in ("first byte", "byte in the middle", "last byte", "cut", "empty", "noise", "directory"):
        path = tmp_path / "listings" / "0.json.gz"
        content = path.read_bytes()
        DAMAGE[damage](path)
        assert data.changes(tmp_path, "0", "1").endswith(f"{path} is damaged")
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        path.write_bytes(content)


def test_the_digest_of_a_file_is_that_of_its_chunks(tmp_path, monkeypatch):
    content = np.random.default_rng(0).bytes(10_000)
    (tmp_path / "file").write_bytes(content)
    rows = np.frombuffer(content, np.uint8)
    for chunk in (10_000, 3_333, 100):
        monkeypatch.setattr(digests, "CHUNK_BYTES", chunk)
        assert digests.of_file(tmp_path / "file") == digests.of_rows(rows.__getitem__, len(rows), 1)


def test_fingerprints_are_compared_in_what_both_of_them_have():
    before = digests.together([digests.part("train pictures", 8, "aa"), digests.part("test pictures", 2, "bb")])
    now = digests.together([digests.part("test pictures", 3, "cc"), digests.part("class names", 2, "dd")])
    assert digests.in_both(before, now) == ("test pictures: 2 bb", "test pictures: 3 cc")
    assert digests.in_both("0123", "4567") == ("0123", "4567")  # of a folder, as a whole
