"""Decisions before the first step: the data type, statistics, initial weights, and the folder."""

import copy
import dataclasses
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inception_jax.config import Config
from inception_jax.config.rules import BALANCED
from inception_jax.data import order, streaming
from inception_jax.data.dataset import Dataset
from inception_jax.distributed import agreement, multihost, sharding
from inception_jax.errors import UserError
from inception_jax.experiment import Experiment, Inputs, build_model, initial_key
from inception_jax.runs.checkpoint_folders import saved_steps
from inception_jax.runs.folder import common_fields, kept_inputs, prepare_folder, write_config
from inception_jax.steps.state import TrainState, count_parameters
from inception_jax.text import format_seconds
from inception_jax.train.initial import Initial, load_initial, with_options_of_weights
from inception_jax.train.precision import choose_compute_dtype, equations
from inception_jax.train.summary import describe_devices

logger = logging.getLogger(__name__)

# After which compilation is announced: a program from the cache is ready sooner.
SECONDS_TO_READ = 3.0
SECONDS_TO_COMPILE = 0.0015  # per operation in the step's program, on one core of an AMD EPYC; two are used


@dataclasses.dataclass(frozen=True)
class Start:
    """A run that is about to begin or to continue.

    Attributes:
      experiment: with the compute_dtype decided.
      mesh: of the devices.
      beginning: `experiment.initial_state`, traced, on the mesh.
      why: the reason for the compute_dtype, "" if the config specifies it.
      epochs_before: the number of epochs of the run that this one extends; None if it extends none.
    """

    experiment: Experiment
    mesh: Mesh
    beginning: Any
    why: str
    epochs_before: int | None = None

    @property
    def template(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), self.beginning.out_info
        )


def prepare(
    config: Config, folder: Path, dataset: Dataset, trust_code: bool, given: Mapping[str, Any] | None = None
) -> tuple[Start, Initial | None]:
    """Decides what the config leaves open, validates everything, and creates the run's folder.

    Args:
      given: see `Experiment.of`.

    Returns the start, and the weights of config.init_from: None if there are none, or if the run has already begun.

    Raises:
      UserError: the options are inconsistent with each other, the data or the folder; nothing was written.
    """
    config = _with_available_splits(config, dataset)
    mesh = sharding.make_mesh(config.num_devices)
    sharding.check_divides(mesh, config.batch_size // config.accumulation_steps, "batch_size / accumulation_steps")
    steps_per_epoch = order.steps_per_epoch(len(dataset.splits["train"]), config.batch_size)
    config = with_options_of_weights(config, len(dataset.class_names))
    config, why = choose_compute_dtype(config, folder, len(dataset.class_names), dataset.image_shape)
    inputs, initial = _inputs(config, folder, dataset, trust_code)
    experiment = Experiment.of(config, inputs, steps_per_epoch, given)
    # Shapes first: an option that does not fit the images is reported before anything is written.
    key = initial_key(config)
    jax.eval_shape(experiment.prepare, key, jax.ShapeDtypeStruct((1, *dataset.image_shape), np.uint8))
    everywhere = NamedSharding(mesh, PartitionSpec())
    beginning = jax.jit(experiment.initial_state, out_shardings=everywhere).trace(key)
    experiment.check(beginning.out_info)
    multihost.require_equal(_facts(experiment, folder, dataset, initial))
    with multihost.first_goes_first("folder"):
        epochs = prepare_folder(folder, config)
    return Start(experiment, mesh, beginning, why, epochs), initial


def extend(start: Start, folder: Path) -> None:
    """Writes the config of a run that extends the one in the folder, whose data was found to be the same.

    Raises:
      UserError, WriteError: the file cannot be written.
    """
    config, epochs = start.experiment.config, start.epochs_before
    if epochs is None:
        return
    with multihost.first_goes_first("config"):
        write_config(folder, config)
    rate = float(start.experiment.schedule(epochs * start.experiment.steps_per_epoch))
    at = "with the rate that it has reached" if config.schedule.name == "plateau" else f"with a rate of {rate:.4g}"
    logger.info(
        "run: extended from %d to %d epochs; the schedule %s continues %s",
        epochs, config.num_epochs, config.schedule.name, at,
    )  # fmt: skip


def _with_available_splits(config: Config, dataset: Dataset) -> Config:
    """The config without the evaluation of splits that the data set does not have.

    Raises:
      UserError: the config watches a metric of a missing split.
    """
    config = copy.deepcopy(config)
    for field in ("splits", "final_splits"):
        config.evaluate[field] = tuple(split for split in config.evaluate[field] if split in dataset.splits)
    needed = {"evaluate.watch": config.evaluate.watch} if config.evaluate.splits else {}
    if config.schedule.name == "plateau":
        needed["schedule.metric"] = config.schedule.metric
    for field, metric in needed.items():
        split = metric.partition("_")[0]
        if split not in ("train", *config.evaluate.splits):
            raise UserError(
                f"{field}={metric!r} needs the split {split}, which the data does not have: choose another metric"
            )
    return config


def _inputs(config: Config, folder: Path, dataset: Dataset, trust_code: bool) -> tuple[Inputs, Initial | None]:
    """How images become inputs, and the weights of config.init_from.

    The mean and the standard deviation come from the config, else from the weights, else from the training data.
    """
    mean, std, initial = config.data.mean, config.data.std, None
    if config.init_from:
        known = kept_inputs(folder)  # the weights may have been removed after the run began
        if known is None:
            model = build_model(config, len(dataset.class_names))
            known = initial = load_initial(
                config.init_from, model, dataset.image_shape, initial_key(config), trust_code=trust_code, own=config
            )
        mean, std = mean or known.mean, std or known.std
    if not mean or not std:
        computed_mean, computed_std = dataset.channel_statistics()
        mean, std = mean or computed_mean.tolist(), std or computed_std.tolist()
    for field, values in (("mean", mean), ("std", std)):
        channels = dataset.image_shape[-1]
        if len(values) != channels:
            raise UserError(f"data.{field} has {len(values)} numbers, but the images have {channels} channel(s)")
    counts: tuple[int, ...] = ()
    if config.loss.class_weights == BALANCED:
        labels = dataset.splits["train"].all_labels()
        counts = tuple(np.bincount(labels, minlength=len(dataset.class_names)).tolist())
    return Inputs(dataset.class_names, dataset.image_shape, tuple(mean), tuple(std), dataset.words, counts), initial


def _facts(experiment: Experiment, folder: Path, dataset: Dataset, initial: Initial | None) -> dict[str, Any]:
    """Values by name that must be equal in all processes of a run."""
    if multihost.count() == 1:
        return {}
    fingerprint, inputs = agreement.fingerprint, experiment.inputs
    names, variables = inputs.class_names, initial.variables if initial else {}
    return common_fields(experiment.config) | {
        "the data's fingerprint": dataset.fingerprint,
        "the data's version": dataset.version,
        "the data's splits": {name: len(split) for name, split in dataset.splits.items()},
        "the data's labels": {
            name: fingerprint(split.all_labels().tobytes()) for name, split in dataset.splits.items()
        },
        "the data's classes": f"{len(names)}: {', '.join(names[:3])}, ... ({fingerprint(repr(names).encode())})",
        "the images' shape": list(inputs.image_shape),
        "the pixels' mean": list(inputs.mean),
        "the pixels' standard deviation": list(inputs.std),
        "the number of steps an epoch": experiment.steps_per_epoch,
        "the weights of init_from": [fingerprint(np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(variables)],
        "the list of checkpoints": saved_steps(folder / "checkpoints"),
    }


def log_start(start: Start, folder: Path, dataset: Dataset, first_step: int) -> None:
    """Logs what is trained, on which data and devices, and where."""
    log_what(start, dataset)
    total = start.experiment.total_steps
    if first_step:
        logger.info("run: %s continues after step %d of %d", folder, first_step, total)
    else:
        logger.info("run: %s, %d steps", folder, total)


def log_what(start: Start, dataset: Dataset) -> None:
    """Logs what is trained, on which data and devices."""
    experiment, device = start.experiment, start.mesh.devices.flat[0]
    dtype = np.dtype(experiment.compute_dtype).name + (start.why and f" ({start.why})")
    processes = f", {multihost.count()} processes" if multihost.count() > 1 else ""
    logger.info("device: %s, %s%s", describe_devices(start.mesh), dtype, processes)
    if device.platform == "cpu" and (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists()):
        logger.warning("a GPU is present but unused: this JAX has no CUDA support; pip install 'inception-jax[cuda]'")
    height, width, channels = dataset.image_shape
    counts = ", ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
    classes = len(dataset.class_names)
    how = "streamed" if isinstance(dataset.splits["train"], streaming.StreamingSplit) else "in memory"
    logger.info(
        "data: %s, %s images of %dx%dx%d, %d classes, %s", dataset.name, counts, height, width, channels, classes, how
    )
    logger.info("parameters: %s", f"{count_parameters(start.template.params):,}")


@contextmanager
def saying_that_it_compiles(traced: Any) -> Iterator[None]:
    """Logs that the step's program is being compiled, with the expected time on a CPU, unless it is ready soon."""

    def say() -> None:
        about = ""
        if jax.default_backend() == "cpu":
            operations = sum(1 for _ in equations(traced.jaxpr.jaxpr))
            seconds = operations * SECONDS_TO_COMPILE / min(2, os.cpu_count() or 1)
            about = f"about {format_seconds(max(seconds, 1))} "
        logger.info("compiling (%sthe first time)", about)

    late = threading.Timer(SECONDS_TO_READ, say)
    late.daemon = True
    late.start()
    try:
        yield
    finally:
        late.cancel()
        late.join()
