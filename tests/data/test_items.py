"""Data sources: the same batches as from the package's own builder, and what is said of items that are none."""

import logging
import re
import sys
from functools import partial
from pathlib import Path

import item_sources
import numpy as np
import pytest
from item_sources import Pairs, encoded
from PIL import Image
from runs import assert_same_run, final_state, rows, small_config, stop_after

import inception_jax
from inception_jax import data, train
from inception_jax.data import items, order
from inception_jax.data.dataset import eval_batches, train_batches
from inception_jax.data.options import Decoding, Location, Selection
from inception_jax.data.streaming import RandomCrop, StreamingSplit
from inception_jax.errors import UserError

NEEDS = {"pairs": "numpy", "grain": "grain", "torch": "torch", "huggingface": "datasets"}
IMAGES = np.random.default_rng(0).integers(0, 256, (12, 20, 30, 3), np.uint8)
LABELS = np.arange(12) % 3


@pytest.fixture
def place(digits, monkeypatch):
    """The default data directory is that of the digits."""
    monkeypatch.setenv("INCEPTION_JAX_DATA", str(digits))
    return digits


def load(kind, pipeline="streaming"):
    pytest.importorskip(NEEDS[kind])
    return data.load(f"item_sources:{kind}_digits", decoding=Decoding(pipeline=pipeline))


def given(tmp_path, **splits):
    """The data set of data sources, streamed."""
    return data.from_items(splits, None, Location(tmp_path), Selection(), Decoding(16, pipeline="streaming"))


def batches(split, first=0, last=25, **options):
    positions = partial(order.batch_indices, 5, num_examples=len(split), batch_size=min(60, len(split)))
    return list(train_batches(split, positions, first, last, **options))


def assert_batches_equal(first, second):
    for some, others in zip(first, second, strict=True):
        for array, other in zip(some, others, strict=True):
            np.testing.assert_array_equal(array, other)
            assert array.dtype == other.dtype


def assert_same_state(folder, expected):
    (step, leaves), (expected_step, expected_leaves) = final_state(folder), final_state(expected)
    assert step == expected_step
    for (_, leaf), (_, other) in zip(leaves, expected_leaves, strict=True):
        np.testing.assert_array_equal(leaf, other)


@pytest.mark.parametrize("pipeline", ["memory", "streaming"])
@pytest.mark.parametrize("kind", NEEDS)
def test_the_batches_are_those_of_the_builder(kind, pipeline, place):
    ours, theirs = data.load("digits"), load(kind, pipeline)
    assert theirs.class_names == ours.class_names
    assert theirs.image_shape == ours.image_shape == (8, 8, 1)
    assert isinstance(theirs.splits["train"], StreamingSplit) == (pipeline == "streaming")
    np.testing.assert_array_equal(theirs.channel_statistics(), ours.channel_statistics())
    for name, split in ours.splits.items():
        np.testing.assert_array_equal(theirs.splits[name].all_labels(), split.all_labels())
        assert_batches_equal(eval_batches(theirs.splits[name], 100), eval_batches(split, 100))
    expected = batches(ours.splits["train"])
    assert_batches_equal(batches(theirs.splits["train"]), expected)
    assert_batches_equal(batches(theirs.splits["train"], first=10), expected[10:])


@pytest.mark.parametrize("kind", ["pairs", *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(NEEDS)[1:])])
def test_the_batches_of_two_workers_are_those_of_the_builder(kind, place):
    expected = batches(data.load("digits").splits["train"], first=10)
    assert_batches_equal(batches(load(kind).splits["train"], first=10, num_workers=2), expected)


def test_arrays_files_and_pillow_images_are_cropped_and_converted_alike(tmp_path):
    crop = RandomCrop(3, (0.1, 1.0), (3 / 4, 4 / 3))
    expected = None
    for convert in (np.asarray, encoded, Image.fromarray):
        split = given(tmp_path, train=Pairs(list(map(convert, IMAGES)), LABELS)).splits["train"]
        found = batches(split, last=3, crop=crop), batches(split, last=3)
        expected = expected or found
        for some, others in zip(found, expected, strict=True):
            assert_batches_equal(some, others)


def test_a_run_is_that_of_the_builder_and_resumes_in_the_middle_of_an_epoch(place, tmp_path, monkeypatch):
    config = small_config(place)
    train.train_and_evaluate(config, tmp_path / "whole")
    config.data.pipeline = "streaming"
    splits = {name: Pairs(*split.gather(np.arange(len(split)))) for name, split in data.load("digits").splits.items()}
    stop_after(monkeypatch, 10)
    with pytest.raises(train.Interrupted):
        inception_jax.fit(config, **splits, workdir=tmp_path / "stopped")
    changed = Pairs(splits["test"].images, np.roll(splits["test"].labels, 1))
    with pytest.raises(UserError, match=r"has a run on different pictures: these differ: test labels \(355 before"):
        inception_jax.fit(config, **splits | {"test": changed}, workdir=tmp_path / "stopped")
    run = inception_jax.fit(config, **splits, workdir=tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    assert_same_state(tmp_path / "stopped", tmp_path / "whole")
    assert run.evaluate().count == 355
    with pytest.raises(UserError, match="was trained on data sources in Python: give a data set with --data"):
        inception_jax.load(tmp_path / "stopped").evaluate()


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """A run on the package's own digits."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train.train_and_evaluate(small_config(digits), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(NEEDS)[1:])
def test_a_streamed_run_resumes_in_the_middle_of_an_epoch(kind, whole, place, tmp_path, monkeypatch):
    pytest.importorskip(NEEDS[kind])
    config = small_config(place)
    config.data.name, config.data.pipeline = f"item_sources:{kind}_digits", "streaming"
    stop_after(monkeypatch, 10)
    with pytest.raises(train.Interrupted):
        train.train_and_evaluate(config, tmp_path / "run")
    train.train_and_evaluate(config, tmp_path / "run")
    assert rows(tmp_path / "run") == rows(whole)
    assert_same_state(tmp_path / "run", whole)


@pytest.fixture
def example(tmp_path, monkeypatch, place):
    """The config of a short run on the example of the page."""
    page = Path(__file__).parents[2] / "docs" / "extending.md"
    (code,) = re.findall(r"^## Data sources\n.*?^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "source_of_the_docs.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    config = small_config(place)
    config.num_epochs = 1
    config.data.name, config.data.pipeline = "source_of_the_docs:digits", "streaming"
    return config


def test_the_example_of_the_page_resumes_in_the_middle_of_an_epoch(example, tmp_path, monkeypatch):
    summary = train.train_and_evaluate(example, tmp_path / "whole")
    assert (summary["steps"], summary["test"]["count"]) == (22, 297)
    stop_after(monkeypatch, 10)
    with pytest.raises(train.Interrupted):
        train.train_and_evaluate(example, tmp_path / "stopped")
    train.train_and_evaluate(example, tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_the_example_of_the_page_on_two_devices(example, tmp_path):
    example.compute_dtype = "float64"
    for number in (1, 2):
        example.num_devices = number
        train.train_and_evaluate(example, tmp_path / str(number))
    (_, one), (_, two) = (final_state(tmp_path / str(number)) for number in (1, 2))
    for (_, leaf), (_, other) in zip(one, two, strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-9, atol=1e-12)


class Raising(Pairs):
    def __getitem__(self, index):
        return self.images[index], 1 // (3 - index)


class Random(Pairs):
    def __getitem__(self, index):
        return np.random.default_rng().permutation(self.images[index]), 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([None] * 2, r"train\[0\] is None: of a filtered source, select the examples instead"),
        ([(IMAGES[0], 0, 0)], r"train\[0\] is tuple of 3: expected \(image, label\)"),
        (
            [{"img": IMAGES[0], "fine_label": 3}],
            r"train\[0\] has 'img', 'fine_label': it needs 'image' \(or 'img'\) and",
        ),
        ([(IMAGES[0], 0), (IMAGES[1] / 255, 0)], r"train\[1\] has an image of float64 .* as they are stored, 0 to 255"),
        ([(IMAGES[0].transpose(2, 0, 1), 0)], r"an image of uint8 \(3, 20, 30\): .*; move the channels last"),
        ([("picture.png", 0)], r"has an image that is str: expected a uint8 array"),
        ([(IMAGES[0], "cat")], r"train\[0\] has the label 'cat', which is not a whole number"),
        ([(IMAGES[0], -1)], r"train\[0\] has the label -1, which is not a class"),
        ([], r"sources, 'train': it has no examples"),
    ],
)
def test_items_that_are_none_are_named(source, message, tmp_path):
    class Items(Pairs):
        def __getitem__(self, index):
            return source[index]

    with pytest.raises(UserError, match=message):
        given(tmp_path, train=Items(source, None))


def test_sources_that_cannot_be_trained_on_are_named(tmp_path):
    with pytest.raises(UserError, match=r"train\[3\] cannot be read: ZeroDivisionError: "):
        given(tmp_path, train=Raising(IMAGES, None))
    with pytest.raises(UserError, match=r"train\[0\] is another one when it is read again, .* config\.data\.augment"):
        given(tmp_path, train=Random(IMAGES, LABELS))
    with pytest.raises(UserError, match=r"'test': expected a data source with __len__ and __getitem__, .* got tuple"):
        given(tmp_path, train=Pairs(IMAGES, LABELS), test=(IMAGES, LABELS))
    with pytest.raises(UserError, match="has 2 class names, but the label 2"):
        data.from_items({"train": Pairs(IMAGES, LABELS)}, ["a", "b"], Location(tmp_path), Selection(), Decoding(16))


def test_a_grain_source_without_an_end_or_with_gaps(tmp_path):
    pytest.importorskip("grain")
    source = item_sources.grain(IMAGES, LABELS)
    with pytest.raises(UserError, match="'train': it has no end: leave out repeat"):
        given(tmp_path, train=source.repeat())
    with pytest.raises(UserError, match=r"train\[1\] is None: of a filtered source"):
        given(tmp_path, train=source.filter(lambda item: item["label"] != 1))
    with pytest.raises(UserError, match="a data source with __len__ and __getitem__, got "):
        data.from_arrays(train=source.to_iter_dataset())


def test_what_other_processes_cannot_read_is_said_before_they_start(tmp_path, monkeypatch):
    source = Pairs(IMAGES, LABELS)
    source.function = lambda: None
    split = given(tmp_path, train=source).splits["train"]
    with pytest.raises(UserError, match=r"'train' cannot be sent to other processes .*, or set data\.num_workers=0"):
        batches(split, num_workers=2)
    main = sys.modules["__main__"]
    monkeypatch.setattr(main, "Mine", type("Mine", (Pairs,), {"__module__": "__main__"}), raising=False)
    monkeypatch.delattr(main, "__file__", raising=False)
    split = given(tmp_path, train=main.Mine(IMAGES, LABELS)).splits["train"]
    with pytest.raises(UserError, match="'train' was defined interactively"):
        batches(split, num_workers=2)


def test_pictures_that_cannot_be_decoded_are_left_out_or_an_error(tmp_path, caplog):
    source = Pairs([*map(encoded, IMAGES[:3]), b"no picture"], [0, 1, 0, 1])
    assert len(given(tmp_path, train=source).splits["train"]) == 3
    assert "1 of the pictures in sources cannot be decoded: train[3] (it is not a picture" in caplog.text
    options = Location(tmp_path), Selection(on_error="error"), Decoding(16)
    with pytest.raises(UserError, match=r"1 of the pictures in sources cannot be decoded: train\[3\]"):
        data.from_items({"train": source}, None, *options)


def test_of_very_many_pictures_some_are_looked_at_and_all_labels(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(items, "STATISTICS_OF_ALL", 5)
    monkeypatch.setattr(items, "STATISTICS_EXAMPLES", 3)  # 0, 5 and 11

    def fingerprint(images=IMAGES, labels=LABELS):
        return given(tmp_path, train=Pairs(images, labels), test=Pairs(images[1:2], labels[1:2])).fingerprint

    caplog.set_level(logging.WARNING)
    before = fingerprint()
    for row, noticed in ((5, True), (6, False)):
        changed = IMAGES.copy()
        changed[row] = 0
        assert (fingerprint(changed) != before) == noticed
        assert fingerprint(labels=np.where(np.arange(12) == row, 1 - LABELS % 2, LABELS)) != before
    assert "are the same as" not in caplog.text
