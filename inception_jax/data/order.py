"""Which examples make up a batch: a pure function of (seed, step), independent of the number of devices."""

import functools
from typing import Any

import numpy as np

from inception_jax.errors import UserError

# Second words of Philox's key, the first being the seed: epochs count from 0, and these start far beyond.
ROUNDS_OF_EPOCH = 2**62
ORDERS_OF_CLASS = 2**63


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Whole batches in one pass over the split; the leftover examples are different in every epoch.

    Raises:
      UserError: if not even one batch can be filled.
    """
    if not 1 <= batch_size <= num_examples:
        raise UserError(
            f"batch_size={batch_size} is not allowed: the training split has {num_examples} examples, "
            f"so choose a size from 1 to {num_examples}"
        )
    return num_examples // batch_size


@functools.lru_cache(maxsize=2)  # for the current epoch, and the next one when reading ahead
def permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of an epoch's examples: int64 `(num_examples,)`, read-only.

    The stable argsort of the raw output of Philox (Salmon et al. 2011) with the key (seed, epoch). Philox is a
    published function and its raw output never changes, while `numpy.random.Generator.permutation` explicitly may
    (NumPy's compatibility policy, NEP 19).
    """
    order = np.argsort(_random_words(seed, epoch, 0, num_examples), kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def batch_indices(seed: int, step: int, *, num_examples: int, batch_size: int) -> np.ndarray:
    """Positions in the split of the examples of batch `step` (from 0): int64 `(batch_size,)`, read-only.

    Raises:
      UserError: if not even one batch can be filled.
    """
    epoch, batch = divmod(step, steps_per_epoch(num_examples, batch_size))
    return permutation(seed, epoch, num_examples)[batch * batch_size : (batch + 1) * batch_size]


def balanced_indices(seed: int, step: int, *, labels: np.ndarray, batch_size: int) -> np.ndarray:
    """Like `batch_indices`, but draws all classes equally often, however many examples they have.

    Over an epoch, and over any number of epochs from the first on, the draws of (non-empty) classes differ by at most
    one. A round takes one example of each class, in random order, so that batches are balanced, too. A class goes
    through its examples in an order of its own, then again in another, and so on across epochs: examples of small
    classes occur several times in an epoch, those of large classes once in several.

    Args:
      labels: integers (n,), of the whole split. Epochs are cached by the array's identity, so pass the same array at
        every step, and do not modify it.

    Raises:
      UserError: if not even one batch can be filled.
    """
    steps = steps_per_epoch(len(labels), batch_size)
    epoch, batch = divmod(step, steps)
    order = _balanced_order(seed, epoch, _Same(labels), steps * batch_size)
    return order[batch * batch_size : (batch + 1) * batch_size]


class _Same:
    """An array as a cache key, compared by identity: comparing millions of labels takes too long."""

    def __init__(self, array: np.ndarray):
        self.array = array  # kept alive, so that no other array can get its id

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Same) and self.array is other.array

    def __hash__(self) -> int:
        return id(self.array)


@functools.lru_cache(maxsize=2)
def _balanced_order(seed: int, epoch: int, labels: _Same, length: int) -> np.ndarray:
    """The examples of an epoch of `length` draws: int64 `(length,)`, read-only."""
    classes, positions = _positions_by_class(labels)
    rounds, extra = divmod(length, len(classes))
    # The last round is incomplete: the classes take turns in it, continuing where the previous epoch stopped, so that
    # their draws before this epoch are a sum in closed form.
    turns, first = divmod(epoch * extra, len(classes))
    numbers = np.arange(len(classes))
    starts = epoch * rounds + turns + (numbers < first)
    drawn = np.stack([
        _class_draws(seed, int(label), own, int(start), rounds + 1)
        for label, own, start in zip(classes, positions, starts, strict=True)
    ])  # fmt: skip
    words = _random_words(seed, ROUNDS_OF_EPOCH + epoch, 0, length)
    whole = np.argsort(words[: length - extra].reshape(rounds, len(classes)), axis=1, kind="stable")
    partial = (first + np.argsort(words[length - extra :], kind="stable")) % len(classes)
    order = drawn[np.concatenate([whole.ravel(), partial]), np.arange(length) // len(classes)]
    order.setflags(write=False)
    return order


@functools.lru_cache(maxsize=1)
def _positions_by_class(labels: _Same) -> tuple[np.ndarray, list[np.ndarray]]:
    """The non-empty classes, and the positions (int64) of each one's examples."""
    classes, counts = np.unique(labels.array, return_counts=True)
    return classes, np.split(np.argsort(labels.array, kind="stable").astype(np.int64), np.cumsum(counts)[:-1])


def _class_draws(seed: int, label: int, positions: np.ndarray, start: int, count: int) -> np.ndarray:
    """A class's draws `start` to `start + count - 1`, counted from the start of the run."""
    size = len(positions)
    first, last = start // size, (start + count - 1) // size  # passes over the class's examples
    words = _random_words(seed, ORDERS_OF_CLASS + label, first * size, (last + 1 - first) * size)
    orders = positions[np.argsort(words.reshape(-1, size), axis=1, kind="stable")]
    return orders.ravel()[start - first * size :][:count]


def _random_words(seed: int, number: int, start: int, count: int) -> np.ndarray:
    """Words `start` to `start + count - 1` of Philox's raw output with the key (seed, number): uint64 `(count,)`."""
    key = np.array([seed % 2**64, number], np.uint64)
    block, within = divmod(start, 4)  # words come in blocks of four
    return np.random.Philox(key=key, counter=block).random_raw(within + count)[within:]
