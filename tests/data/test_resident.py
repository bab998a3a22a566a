"""Splits, evaluation batches, statistics and the folder of decoded arrays, against plain NumPy."""

import multiprocessing
import pickle

import numpy as np
import pytest

from inception_jax.data import dataset, resident
from inception_jax.data.dataset import Dataset, eval_batches
from inception_jax.data.resident import ResidentSplit
from inception_jax.errors import UserError

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 4, 5, 3), np.uint8)
LABELS = np.arange(23, dtype=np.int32) % 7

ROWS = [slice(None), slice(3, 20), slice(20, 3, -2), np.array([5, 0, 22, 5])]


@pytest.mark.parametrize("rows", ROWS, ids=str)
def test_split_is_the_rows_of_its_images(rows):
    split = ResidentSplit(IMAGES, LABELS, rows)
    assert len(split) == len(IMAGES[rows])
    positions = np.array([len(split) - 1, 0, 1, 1])
    images, labels = split.gather(positions)
    np.testing.assert_array_equal(images, IMAGES[rows][positions])
    np.testing.assert_array_equal(labels, LABELS[rows][positions])
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    assert images.flags.c_contiguous


@pytest.mark.parametrize("position", [-1, 17])
def test_positions_beyond_the_split_are_no_rows_of_its_neighbour(position):
    with pytest.raises(IndexError, match="from 0 to 16"):
        ResidentSplit(IMAGES, LABELS, slice(3, 20)).gather(np.array([0, position]))


def test_gathered_arrays_are_new_ones():
    split = ResidentSplit(IMAGES, LABELS)
    images, labels = split.gather(np.arange(3))
    images[:], labels[:] = 0, 0
    assert IMAGES[:3].any()
    assert LABELS[:3].any()


@pytest.mark.parametrize("batch_size", [1, 4, 17, 20, 100])
@pytest.mark.parametrize("rows", [slice(3, 20), np.array([5, 0, 22])], ids=str)
def test_eval_batches_hold_every_example_once(rows, batch_size):
    split = ResidentSplit(IMAGES, LABELS, rows)
    batches = list(eval_batches(split, batch_size))
    assert all(len(images) == len(labels) == len(mask) == batch_size for images, labels, mask in batches)
    assert all(mask.dtype == bool for _, _, mask in batches)
    np.testing.assert_array_equal(np.concatenate([images[mask] for images, _, mask in batches]), IMAGES[rows])
    np.testing.assert_array_equal(np.concatenate([labels[mask] for _, labels, mask in batches]), LABELS[rows])


def test_eval_batches_of_parts_make_up_the_whole():
    split = ResidentSplit(IMAGES, LABELS)
    whole = eval_batches(split, 6)
    halves = zip(eval_batches(split, 6, slice(0, 3)), eval_batches(split, 6, slice(3, 6)), strict=True)
    for batch, (first, second) in zip(whole, halves, strict=True):
        for expected, parts in zip(batch, zip(first, second, strict=True), strict=True):
            np.testing.assert_array_equal(np.concatenate(parts), expected)


@pytest.mark.parametrize("chunk", [1, 5, 4096])
def test_channel_statistics_are_those_of_the_training_split(chunk, monkeypatch):
    monkeypatch.setattr(dataset, "STATISTICS_BYTES", chunk * 60)
    splits = {
        "train": ResidentSplit(IMAGES, LABELS, slice(2, 15)),
        "test": ResidentSplit(IMAGES, LABELS, slice(15, 23)),
    }
    mean, std = Dataset("random", tuple("abcdefg"), splits).channel_statistics()
    pixels = IMAGES[2:15].reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-13)
    assert mean.dtype == std.dtype == np.float64


def test_channel_statistics_of_very_many_are_those_of_some(monkeypatch):
    monkeypatch.setattr(dataset, "STATISTICS_OF_ALL", 10)
    monkeypatch.setattr(dataset, "STATISTICS_EXAMPLES", 4)
    mean, std = Dataset(
        "random", tuple("abcdefg"), {"train": ResidentSplit(IMAGES, LABELS, slice(2, 15))}
    ).channel_statistics()
    pixels = IMAGES[[2, 6, 10, 14]].reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(axis=0), rtol=1e-14)
    np.testing.assert_allclose(std, pixels.std(axis=0), rtol=1e-13)


def test_channel_statistics_are_kept(tmp_path):
    path = tmp_path / "statistics.json"
    first = Dataset("random", tuple("abcdefg"), {"train": ResidentSplit(IMAGES, LABELS)}, path).channel_statistics()
    kept = Dataset(
        "random", tuple("abcdefg"), {"train": ResidentSplit(IMAGES[:1], LABELS[:1])}, path
    ).channel_statistics()
    np.testing.assert_array_equal(first, kept)
    assert [file.name for file in tmp_path.iterdir()] == ["statistics.json"]


def test_channel_statistics_need_no_folder_that_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "statistics.json"
    mean, _ = Dataset("random", tuple("abcdefg"), {"train": ResidentSplit(IMAGES, LABELS)}, path).channel_statistics()
    np.testing.assert_allclose(mean, IMAGES.reshape(-1, 3).mean(axis=0) / 255)


def _write(folder, value, barrier=None):
    def examples():
        yield from zip(np.full_like(IMAGES, value), LABELS, strict=True)
        if barrier:
            barrier.wait(timeout=60)  # all are about to rename

    resident.write_arrays(folder, tuple("abcdefg"), {"train": (23, examples())})


def test_arrays_are_read_as_they_were_written(tmp_path):
    splits = {"train": (23, zip(IMAGES, LABELS, strict=True))}
    resident.write_arrays(tmp_path / "arrays", tuple("abcdefg"), splits)
    class_names, arrays = resident.open_arrays(tmp_path / "arrays")
    assert class_names == tuple("abcdefg")
    images, labels = arrays["train"]
    np.testing.assert_array_equal(images, IMAGES)
    np.testing.assert_array_equal(labels, LABELS)
    assert isinstance(images, np.memmap)
    assert labels.dtype == np.int32


def test_a_folder_that_is_cut_off_in_the_middle_does_not_appear(tmp_path):
    def examples():
        yield IMAGES[0], 0
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        resident.write_arrays(tmp_path / "arrays", ("a",), {"train": (2, examples())})
    assert not list(tmp_path.iterdir())


def test_two_processes_may_write_the_same_folder(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    processes = [context.Process(target=_write, args=(tmp_path / "arrays", value, barrier)) for value in (1, 2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert [path.name for path in tmp_path.iterdir()] == ["arrays"]
    images, _ = resident.open_arrays(tmp_path / "arrays")[1]["train"]
    assert len(np.unique(images)) == 1


class Attack:
    """What it unpickles to writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_arrays_that_are_damaged_are_named_and_pickles_never_read(tmp_path):
    for name, damage in {
        "images": lambda path: path.write_bytes(path.read_bytes()[:500]),
        "labels": lambda path: path.write_bytes(b""),
        "pickled images": lambda path: np.save(path, np.array([Attack(tmp_path / "attacked")] * 23)),
        "pickled labels": lambda path: path.write_bytes(pickle.dumps(Attack(tmp_path / "attacked"))),
    }.items():
        folder = tmp_path / name
        _write(folder, 1)
        damage(folder / f"train_{name.split()[-1]}.npy")
        with pytest.raises(UserError, match=rf"{name} is damaged \(.*\): remove it, and it is made again"):
            resident.open_arrays(folder)
    assert not (tmp_path / "attacked").exists()
