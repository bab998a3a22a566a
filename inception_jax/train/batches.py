"""The sequence of training batches: a pure function of the seed and the step."""

import math
from collections.abc import Callable, Generator
from contextlib import closing
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from inception_jax.config import Config
from inception_jax.data import order, streaming
from inception_jax.data.dataset import Dataset, train_batches
from inception_jax.distributed import sharding
from inception_jax.experiment import Experiment

RESIDENT_BYTES = 4 * 2**30  # training splits up to this size are kept in every accelerator's memory


def training_batches(
    experiment: Experiment, dataset: Dataset, mesh: Mesh, first_step: int
) -> Generator[tuple[Any, Any], None, None]:
    """Yields (images, labels) for each step from `first_step` on, split over the mesh if it has several devices.

    On accelerators, a split that is in memory and small enough is copied to every device once and gathered there.
    """
    config, split, last_step = experiment.config, dataset.splits["train"], experiment.total_steps
    positions = _positions(config, split, mesh)
    on_accelerator = mesh.devices.flat[0].platform != "cpu"
    streamed = isinstance(split, streaming.StreamingSplit)
    if on_accelerator and not streamed and len(split) * math.prod(split.image_shape) <= RESIDENT_BYTES:
        # As arguments: a closure would embed them in the program.
        images, labels = sharding.replicate(split.gather(np.arange(len(split))), mesh)
        gather = jax.jit(lambda images, labels, positions: (images[positions], labels[positions]))
        for step in range(first_step, last_step):
            yield gather(images, labels, sharding.split_batch(positions(step), mesh))
        return
    augment, crop = config.data.augment, None
    if augment.crop_originals:
        crop = streaming.RandomCrop(config.seed, augment.random_resized_crop, augment.aspect_ratio)
    batches = train_batches(
        split,
        positions,
        first_step,
        last_step,
        num_workers=config.data.num_workers,
        crop=crop,
        steps_per_epoch=experiment.steps_per_epoch,
    )
    with closing(batches):
        for batch in batches:
            # On one CPU the jitted step accepts NumPy arrays directly, in a tenth of device_put's time.
            yield batch if not on_accelerator and mesh.size == 1 else sharding.split_batch(batch, mesh)


def _positions(config: Config, split: Any, mesh: Mesh) -> Callable[[int], np.ndarray]:
    """Step -> positions in the split of this process's part of the batch."""
    if config.data.balanced:
        batch = partial(order.balanced_indices, config.seed, labels=split.all_labels(), batch_size=config.batch_size)
    else:
        batch = partial(order.batch_indices, config.seed, num_examples=len(split), batch_size=config.batch_size)
    return partial(rows_of, batch, sharding.local_rows(mesh, config.batch_size))


def rows_of(positions: Callable[[int], np.ndarray], rows: slice, step: int) -> np.ndarray:
    return positions(step)[rows]
