"""The data order against Philox written out in Python integers, and against values that must never change."""

import itertools

import numpy as np
import pytest

from inception_jax.data import order
from inception_jax.errors import UserError


def philox_4x64_10(key: tuple[int, int], count: int) -> list[int]:
    """The first `count` words of Philox4x64-10 (Salmon et al. 2011, section 3.3), its counter starting at 1."""
    words, counter = [], 0
    while len(words) < count:
        counter += 1
        block, (low, high) = [counter, 0, 0, 0], key
        for _ in range(10):
            first, second = block[0] * 0xD2E7470EE14C6C93, block[2] * 0xCA5A826395121157
            block = [
                (second >> 64) ^ block[1] ^ low,
                second % 2**64,
                (first >> 64) ^ block[3] ^ high,
                first % 2**64,
            ]
            low, high = (low + 0x9E3779B97F4A7C15) % 2**64, (high + 0xBB67AE8584CAA73B) % 2**64
        words += block
    return words[:count]


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (1, 0), (2**40, 7), (-1, 3)])
def test_permutation_sorts_the_words_of_philox(seed, epoch):
    words = philox_4x64_10((seed % 2**64, epoch), 101)
    expected = sorted(range(101), key=words.__getitem__)
    np.testing.assert_array_equal(order.permutation(seed, epoch, 101), expected)


def test_permutation_never_changes():
    # A change of these numbers changes the result of every run that anybody has made.
    assert order.permutation(0, 0, 10).tolist() == [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]
    assert order.permutation(3, 5, 10).tolist() == [0, 6, 2, 1, 3, 4, 7, 8, 5, 9]
    assert order.permutation(0, 0, 10).dtype == np.int64


@pytest.mark.parametrize("num_examples", [1, 2, 97, 1294])
def test_every_epoch_is_another_permutation(num_examples):
    orders = [order.permutation(11, epoch, num_examples) for epoch in range(4)]
    for permutation in orders:
        np.testing.assert_array_equal(np.sort(permutation), np.arange(num_examples))
    if num_examples > 10:
        assert len({permutation.tobytes() for permutation in orders}) == 4


def test_permutation_cannot_be_changed_by_its_users():
    with pytest.raises(ValueError, match="read-only"):
        order.permutation(0, 0, 10)[0] = 5


def test_batches_of_an_epoch_are_disjoint_and_leave_less_than_a_batch():
    steps = order.steps_per_epoch(103, 10)
    assert steps == 10
    for epoch in range(3):
        batches = [
            order.batch_indices(5, step, num_examples=103, batch_size=10)
            for step in range(epoch * steps, (epoch + 1) * steps)
        ]
        assert all(batch.shape == (10,) for batch in batches)
        assert len(set(np.concatenate(batches).tolist())) == 100
        np.testing.assert_array_equal(np.concatenate(batches), order.permutation(5, epoch, 103)[:100])


def test_batches_depend_on_seed_and_step_alone():
    forward = [order.batch_indices(7, step, num_examples=50, batch_size=8).copy() for step in range(20)]
    order.permutation.cache_clear()
    for step in reversed(range(20)):
        np.testing.assert_array_equal(order.batch_indices(7, step, num_examples=50, batch_size=8), forward[step])
    assert not np.array_equal(order.batch_indices(8, 0, num_examples=50, batch_size=8), forward[0])


def test_a_batch_of_the_whole_split_is_an_epoch():
    assert order.steps_per_epoch(32, 32) == 1
    batch = order.batch_indices(0, 4, num_examples=32, batch_size=32)
    np.testing.assert_array_equal(batch, order.permutation(0, 4, 32))


@pytest.mark.parametrize("batch_size", [0, -1, 33])
def test_a_batch_that_cannot_be_filled_is_refused(batch_size):
    with pytest.raises(UserError, match=f"batch_size={batch_size} .* 32 examples"):
        order.steps_per_epoch(32, batch_size)


# --- balanced classes -------------------------------------------------------------------------------------------

UNEVEN = np.array([5, 0, 0, 2, 0, 5, 0, 0, 2, 0, 0, 2, 0, 5, 5, 0, 7, 0, 0, 0, 5, 0, 0])  # 14, 3, 5 and 1 of a class


def balanced(seed, labels, batch_size, epochs):
    """The examples that are drawn in each of the epochs: (epochs, examples)."""
    steps = order.steps_per_epoch(len(labels), batch_size)
    batches = [
        order.balanced_indices(seed, step, labels=labels, batch_size=batch_size) for step in range(epochs * steps)
    ]
    return np.reshape(batches, (epochs, steps * batch_size))


def test_balanced_epochs_are_what_philox_says():
    """One example after the other, with Philox in Python integers; the package computes each epoch on its own."""
    seed, batch_size, epochs = 3, 5, 6
    classes = np.unique(UNEVEN).tolist()

    def endless(label):
        own = np.flatnonzero(label == UNEVEN)
        words = philox_4x64_10((seed, 2**63 + label), 40 * len(own))
        for number in range(40):
            part = words[number * len(own) : (number + 1) * len(own)]
            yield from own[sorted(range(len(own)), key=part.__getitem__)].tolist()

    sources, turns, expected = {label: endless(label) for label in classes}, itertools.cycle(classes), []
    for epoch in range(epochs):
        words = philox_4x64_10((seed, 2**62 + epoch), 20)
        for start in range(0, 20, 4):
            part = words[start : start + 4]
            expected += [next(sources[classes[index]]) for index in sorted(range(4), key=part.__getitem__)]
    np.testing.assert_array_equal(balanced(seed, UNEVEN, batch_size, epochs).ravel(), expected)
    # Where an epoch ends within a round, the classes take turns.
    sources, expected = {label: endless(label) for label in classes}, []
    for epoch in range(epochs):
        words = philox_4x64_10((seed, 2**62 + epoch), 22)
        for start in (0, 4, 8, 12, 16, 20):
            part = words[start : start + 4]
            taking = [next(turns) for _ in range(2)] if start == 20 else classes
            expected += [next(sources[taking[index]]) for index in sorted(range(len(part)), key=part.__getitem__)]
    np.testing.assert_array_equal(balanced(seed, UNEVEN, 22, epochs).ravel(), expected)


@pytest.mark.parametrize("batch_size", [1, 5, 6, 23])
def test_balanced_classes_come_equally_often(batch_size):
    epochs = balanced(1, UNEVEN, batch_size, 9)
    classes = np.unique(UNEVEN)
    counts = np.array([[(UNEVEN[epoch] == label).sum() for label in classes] for epoch in epochs])
    assert (np.ptp(counts, axis=1) <= 1).all()
    assert (np.ptp(np.cumsum(counts, axis=0), axis=1) <= 1).all()
    for label in classes:  # each of a class's examples once, then each of them again, in another order
        draws = epochs.ravel()[UNEVEN[epochs.ravel()] == label]
        size = (label == UNEVEN).sum()
        passes = draws[: len(draws) // size * size].reshape(-1, size)
        np.testing.assert_array_equal(np.sort(passes, axis=1), [np.flatnonzero(label == UNEVEN)] * len(passes))
        if size > 2:
            assert len(np.unique(passes, axis=0)) > 1
    for batch in epochs.reshape(-1, batch_size):
        assert np.ptp([(UNEVEN[batch] == label).sum() for label in classes]) <= 2


def test_balanced_batches_depend_on_seed_and_step_alone():
    forward = [order.balanced_indices(7, step, labels=UNEVEN, batch_size=4).copy() for step in range(20)]
    for step in reversed(range(20)):
        again = order.balanced_indices(7, step, labels=UNEVEN.copy(), batch_size=4)
        np.testing.assert_array_equal(again, forward[step])
    assert not np.array_equal(order.balanced_indices(8, 0, labels=UNEVEN, batch_size=4), forward[0])
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 5


def test_balanced_epochs_of_balanced_classes_are_permutations():
    labels = np.arange(60, dtype=np.int32) % 4
    epochs = balanced(0, labels, 12, 3)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(60))
    assert not np.array_equal(epochs[0], epochs[1])


def test_a_balanced_batch_that_cannot_be_filled_is_refused():
    with pytest.raises(UserError, match=r"batch_size=24 .* 23 examples"):
        order.balanced_indices(0, 0, labels=UNEVEN, batch_size=24)


def test_the_longest_epochs_are_drawn_in_time():
    # As ImageNet's: were an epoch drawn at every step, or a class's examples searched among all, it took minutes.
    labels = np.random.default_rng(0).integers(0, 1000, 300_000).astype(np.int32)
    for step in range(600):
        order.balanced_indices(0, step, labels=labels, batch_size=256)
