"""Splits by TFDS's notation, against what TFDS itself reads and against Python's slices."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from inception_jax.data import splits
from inception_jax.errors import UserError

SIZES = {"train": 1442, "test": 355}
# Two published splits whose images carry their own numbers.
BASES = {
    base: (np.arange(size, dtype=np.uint32).view(np.uint8).reshape(size, 1, 1, 4), np.arange(size, dtype=np.int32))
    for base, size in SIZES.items()
}

SPECS = [
    "train", "test", "train[:90%]", "train[90%:]", "train[:45]", "train[1000:]", "train[-100:]", "train[:-10%]",
    "train[33%:66%]", "train[33.3%:66.6%]",
    "train[10:20]+train[5:12]", "train[:10%] + test[:10%]", "all", "test[0%:1%]",
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_examples_are_those_that_tfds_reads(spec, digits):
    builder = tfds.builder_from_directory(digits / "digits" / "1.0.0")
    assert {base: info.num_examples for base, info in builder.info.splits.items()} == SIZES
    ranges = splits.resolve(spec, SIZES)
    assert sum(stop - start for _, start, stop in ranges) == builder.info.splits[spec].num_examples
    skip_image = {"image": tfds.decode.SkipDecoding()}
    labels = [example["label"] for example in builder.as_data_source(spec, decoders=skip_image)]
    whole = {
        base: np.array([example["label"] for example in builder.as_data_source(base, decoders=skip_image)])
        for base in SIZES
    }
    assert labels == np.concatenate([whole[base][start:stop] for base, start, stop in ranges]).tolist()


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("train[3:7]", [3, 4, 5, 6]),
        ("train[3:6]+train[1:4]", [3, 4, 5, 1, 2, 3]),
        ("test[:2]+train[-2:]", [0, 1, 1440, 1441]),
        ("train[1441:]", [1441]),
    ],
)
def test_cut_keeps_images_and_labels_together(spec, expected):
    split = splits.cut(splits.resolve(spec, SIZES), BASES)
    images, labels = split.gather(np.arange(len(split)))
    assert labels.tolist() == expected
    assert images.view(np.uint32).ravel().tolist() == expected


def test_a_range_of_one_published_split_is_no_copy():
    split = splits.cut(splits.resolve("train[10%:]", SIZES), BASES)
    assert split.images is BASES["train"][0]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("trian[:90%]", "unknown split 'trian'. Did you mean 'train'. Known: all, test, train"),
        ("train+validation", "unknown split 'validation'"),
        ("train[:90%", "split 'train[:90%' is not allowed: write e.g. .*train .1442 examples., test .355"),
        ("train[a:b]", "is not allowed"),
        ("train[5]", "is not allowed"),
        ("train[::2]", "is not allowed"),
        ("train[:2000]", "is not allowed"),
        ("train[:120%]", "is not allowed"),
        ("train[:50 %]", "is not allowed"),
        ("all[:10%]", "is not allowed"),
        ("train+", "is not allowed"),
        ("train[:0%]", "holds no example"),
        ("train[20:10]", "holds no example"),
        ("train+test[5:5]", "holds no example"),
    ],
)
def test_what_is_no_split_is_refused_in_one_line(spec, message):
    with pytest.raises(UserError, match=message.replace("[", r"\[")) as raised:
        splits.resolve(spec, SIZES)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("other", ["train", "train[5:15]", "test[10%:]"])
def test_shared_examples_are_counted(spec, other):
    def members(spec):
        return [(base, row) for base, start, stop in splits.resolve(spec, SIZES) for row in range(start, stop)]

    others = set(members(other))
    expected = sum(member in others for member in members(spec))
    assert splits.count_shared(splits.resolve(spec, SIZES), splits.resolve(other, SIZES)) == expected


AUTO = {"train": "auto", "validation": "auto", "test": "auto"}


@pytest.mark.parametrize("number", [*range(1, 31), 95, 99, 1000, 1442])
def test_the_validation_split_that_is_chosen_takes_one_example_at_least(number, caplog):
    ranges = splits.resolve_all(AUTO, {"train": number})
    (train,) = ranges["train"]
    if number == 1:
        assert ranges == {"train": [("train", 0, 1)]}
        assert caplog.messages == ["the training split has one example: there is no validation split"]
        return
    (validation,) = ranges["validation"]
    assert [train.start, train.stop, validation.stop] == [0, validation.start, number]
    assert 1 <= train.stop < number
    tenths = splits.resolve("train[:90%]", {"train": number})
    assert [train] == tenths or (number < 10 and train.stop == number - 1)  # as it was wherever it was something
    assert caplog.messages == []


def test_a_part_that_is_named_has_the_validation_split_that_is_chosen():
    ranges = splits.resolve_all({"train": "train[:50%]", "validation": "auto"}, {"train": 4, "test": 2})
    assert ranges == {"train": [("train", 0, 2)], "validation": [("train", 3, 4)]}
    ranges = splits.resolve_all(AUTO, {"train": 4, "validation": 1, "test": 2})
    assert ranges == {"train": [("train", 0, 4)], "validation": [("validation", 0, 1)], "test": [("test", 0, 2)]}


def test_an_error_says_of_which_split_it_is_and_whether_it_was_chosen():
    with pytest.raises(UserError, match=r"^data\.splits\.test: unknown split 'tset'"):
        splits.resolve_all(AUTO | {"test": "tset"}, SIZES)
    with pytest.raises(
        UserError, match=r"^data\.splits\.validation, chosen automatically \(--config\.data\.splits\.validation= leaves"
    ):
        splits.resolve_all(AUTO | {"train": "test"}, {"test": 20})
