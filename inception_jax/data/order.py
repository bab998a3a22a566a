"""Which examples make up a batch: a pure function of (seed, step), and so the same on any number of devices."""

import functools

import numpy as np

from inception_jax.errors import UserError


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
    """Whole batches in one pass over the split; the examples that are left over are other ones in every epoch.

    Raises:
      UserError: if not even one batch can be filled.
    """
    if not 1 <= batch_size <= num_examples:
        raise UserError(
            f"batch_size={batch_size} is not allowed: the training split has {num_examples} examples, "
            f"so choose a size from 1 to {num_examples}"
        )
    return num_examples // batch_size


@functools.lru_cache(maxsize=2)  # the epoch's own, and the next one's for who reads ahead
def permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    """The order of an epoch's examples: int64 `(num_examples,)`, read-only.

    The stable argsort of the raw output of Philox (Salmon et al. 2011) with the key (seed, epoch). Philox is a
    published function and its raw output is fixed for good, which `numpy.random.Generator.permutation`
    explicitly is not (NumPy's compatibility policy, NEP 19).
    """
    key = np.array([seed % 2**64, epoch], np.uint64)
    order = np.argsort(np.random.Philox(key=key).random_raw(num_examples), kind="stable").astype(np.int64)
    order.setflags(write=False)
    return order


def batch_indices(seed: int, step: int, *, num_examples: int, batch_size: int) -> np.ndarray:
    """Positions in the split of the examples of batch `step` (counted from 0): int64 `(batch_size,)`, read-only.

    Raises:
      UserError: if not even one batch can be filled.
    """
    epoch, batch = divmod(step, steps_per_epoch(num_examples, batch_size))
    return permutation(seed, epoch, num_examples)[batch * batch_size : (batch + 1) * batch_size]
