"""The training loop: what `main` runs for a config, and `fit` for arrays in hand."""

import collections
import copy
import dataclasses
import importlib.metadata
import itertools
import logging
import math
import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inception_jax import data, metrics, multihost, process, run, schedules, sharding, steps
from inception_jax.checkpoints import Checkpoints
from inception_jax.config import Config, validate
from inception_jax.data import order, streaming
from inception_jax.data.dataset import Dataset, eval_batches, train_batches
from inception_jax.errors import UserError
from inception_jax.models.folding import fold_model, inference_variables
from inception_jax.profiling import Profiler
from inception_jax.state import INIT_COMPILER_OPTIONS, TrainState, count_parameters
from inception_jax.writers import MetricWriter, Progress, format_seconds

logger = logging.getLogger(__name__)

RESIDENT_BYTES = 4 * 2**30  # a training split up to this size is kept in every accelerator's memory
STEPS_IN_FLIGHT = 2  # how far the host may run ahead of the devices
STEPS_TO_ESTIMATE = 12  # after which the time that the run will take is estimated


class Interrupted(Exception):  # noqa: N818 (nothing went wrong)
    """The run was asked to stop, has saved, and says how to go on.

    Attributes:
      signal: by which it was asked, signal.SIGINT or signal.SIGTERM.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


class NonFiniteLoss(Exception):  # noqa: N818
    """The loss or a weight became infinite or NaN; the last checkpoint is from before."""


class _EvaluationStopped(Exception):  # noqa: N818
    """A request to stop came while a split was evaluated."""


def train_and_evaluate(config: Config, workdir: str | Path, *, clear_caches: bool = False) -> dict[str, Any]:
    """Trains as the config says, or goes on where the run in `workdir` stopped; returns what summary.json holds.

    Args:
      clear_caches: let JAX forget all that it has traced once the step is compiled (about 130 MB of memory for
        GoogLeNet): for a process that does nothing else.

    Raises:
      UserError: the config, the data or the folder is not usable; nothing was changed.
      Interrupted: SIGINT or SIGTERM came; the state was saved.
      NonFiniteLoss: the loss is no number any more, oftener than config.nonfinite.retries.
      WriteError: a checkpoint or another file of the run could not be written.
    """
    config = run.with_network_of_weights(config, Path(workdir))
    validate(config)
    if config.deterministic:
        process.make_deterministic()
    return _train(config, Path(workdir), run.load_data(config), clear_caches)


def fit(
    config: Config,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    class_names: tuple[str, ...] | None = None,
    workdir: str | Path = "runs/fit",
) -> run.Run:
    """Trains on arrays in hand, exactly as the command does, and returns the trained network.

    Args:
      config: as for the command; of its `data` section only normalisation and augmentation matter.
        `deterministic` has an effect only where JAX has not used a device before.
      train, validation, test: (images uint8 (n, height, width, channels), labels integer (n,)); without a validation
        split nothing is evaluated during training, and the last weights count as the best.
      class_names: in the order of the labels; by default their numbers.
      workdir: the run's folder; a run that is there already goes on.
    """
    dataset = data.from_arrays(train=train, validation=validation, test=test, class_names=class_names)
    config = copy.deepcopy(config)
    config.data.name = "arrays"
    for split in config.data.splits:
        config.data.splits[split] = "all" if split in dataset.splits else ""
    evaluate = config.evaluate
    evaluate.splits = tuple(split for split in evaluate.splits if split in dataset.splits)
    evaluate.final_splits = tuple(split for split in evaluate.final_splits if split in dataset.splits)
    config = run.with_network_of_weights(config, Path(workdir))
    validate(config)
    if config.deterministic:
        process.make_deterministic()
    _train(config, Path(workdir), dataset)
    return run.load_run(workdir)


@dataclasses.dataclass
class Record:
    """What a run remembers beside its TrainState, as JSON in every checkpoint."""

    inputs: dict[str, Any]
    steps_per_epoch: int
    elapsed_seconds: float = 0.0  # of all sessions, evaluation included
    training_seconds: float = 0.0  # of steps alone, each session's first one (compilation) left out
    training_images: int = 0  # that training_seconds were spent on
    evaluation_seconds: float = 0.0  # of evaluations while training, each session's first batch (compilation) left out
    evaluated_step: int = 0
    best_value: float | None = None  # of the watched metric
    evaluations_since_best: int = 0
    fingerprint: str | None = None  # of the pictures in a person's folder
    data_version: str | None = None  # of a published data set; None also where none was kept yet
    retries: int = 0  # how often the run went back to a checkpoint because the loss was not finite

    @classmethod
    def from_json(cls, kept: dict[str, Any]) -> "Record":
        """The record of a checkpoint; a UserError if another version of the package wrote it, with more in it."""
        unknown = sorted(kept.keys() - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise UserError(
                f"the run's checkpoint was written by another version of inception_jax: it holds {', '.join(unknown)}. "
                "Install that version, or use another folder"
            )
        return cls(**kept)


def _with_splits_there(config: Config, dataset: Dataset) -> Config:
    """The config without the evaluation of splits that are chosen by themselves and are not published."""
    config = copy.deepcopy(config)
    for field in ("splits", "final_splits"):
        config.evaluate[field] = tuple(split for split in config.evaluate[field] if split in dataset.splits)
    return config


def _train(config: Config, folder: Path, dataset: Dataset, clear_caches: bool = False) -> dict[str, Any]:
    started = time.monotonic()
    config = _with_splits_there(config, dataset)
    dtype, image_dtype = run.dtypes(config.compute_dtype)
    mesh = sharding.make_mesh(config.num_devices)
    sharding.check_divides(mesh, config.batch_size // config.accumulation_steps, "batch_size / accumulation_steps")
    steps_per_epoch = order.steps_per_epoch(len(dataset.splits["train"]), config.batch_size)
    total_steps = config.num_epochs * steps_per_epoch

    config = run.with_options_of_weights(config, len(dataset.class_names))
    model = run.build_model(config, len(dataset.class_names))
    initial_key = jax.random.key(config.seed)
    mean, std, initial = config.data.mean, config.data.std, None
    if config.init_from:
        known = run.kept_inputs(folder)  # the weights may be gone once the run has begun
        if known is None:
            known = initial = run.load_initial(config.init_from, model, dataset.image_shape, initial_key)
        mean, std = mean or known.mean, std or known.std
    if not mean or not std:
        computed_mean, computed_std = dataset.channel_statistics()
        mean, std = mean or computed_mean.tolist(), std or computed_std.tolist()
    for field, values in (("mean", mean), ("std", std)):
        channels = dataset.image_shape[-1]
        if len(values) != channels:
            raise UserError(f"data.{field} has {len(values)} numbers, but the images have {channels} channel(s)")
    inputs = run.Inputs(dataset.class_names, dataset.image_shape, tuple(mean), tuple(std))
    optimizer, schedule = run.build_optimizer(config, steps_per_epoch)

    def initial_state(key):
        return run.new_state(config, model, optimizer, dataset.image_shape, key)

    # Shapes first: an option that does not fit the images is answered before anything is written.
    prepare = inputs.augmenter(dict(config.data.augment), config.data.normalization, image_dtype)
    jax.eval_shape(prepare, initial_key, jax.ShapeDtypeStruct((1, *dataset.image_shape), np.uint8))
    everywhere = NamedSharding(mesh, PartitionSpec())
    initialization = jax.jit(initial_state, out_shardings=everywhere).trace(initial_key)
    with multihost.first_goes_first("folder"):
        run.prepare_folder(folder, config)

    record = Record(
        dataclasses.asdict(inputs), steps_per_epoch, fingerprint=dataset.fingerprint, data_version=dataset.version
    )
    with ExitStack() as exits:
        checkpoints = exits.enter_context(run.open_checkpoints(folder, config))
        stop_requested = exits.enter_context(_stop_requests())
        template = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), initialization.out_info
        )
        restored: TrainState | None = None
        if checkpoints.latest_step() is not None:
            restored, kept = checkpoints.restore(None, template)
            record = Record.from_json(kept)
            if record.fingerprint != dataset.fingerprint and dataset.cache:
                differences = data.changes(dataset.cache, record.fingerprint or "", dataset.fingerprint or "")
                raise UserError(
                    f"{folder} holds a run on other pictures than are there now: {differences}. "
                    "Choose another --workdir, or bring the pictures back to what they were"
                )
            if record.data_version and record.data_version != dataset.version:
                raise UserError(
                    f"{folder} holds a run on version {record.data_version} of {dataset.name}, but its version is "
                    f"{dataset.version} now. Choose another --workdir"
                )
            if run.Inputs.from_json(record.inputs) != inputs or record.steps_per_epoch != steps_per_epoch:
                raise UserError(
                    f"{folder} holds a run on other data: its classes, image shape, pixel statistics or number of "
                    "images differ. Choose another --workdir, or bring the data back to what it was"
                )
        first_step = 0 if restored is None else int(restored.step)
        _log_start(folder, dataset, mesh, dtype, template, first_step, total_steps)
        step_fn = partial(
            steps.train_step,
            model=model,
            optimizer=optimizer,
            prepare=prepare,
            mix=inputs.mixer(dict(config.data.augment)),
            label_smoothing=config.loss.label_smoothing,
            aux_weight=config.loss.aux_weight,
            accumulation_steps=config.accumulation_steps,
            average_decay=config.average_decay,
        )
        votes = Votes(mesh, stop_requested)
        train_step = jax.jit(votes.counted(step_fn), donate_argnames="state", out_shardings=everywhere)
        first_writes = multihost.is_first()
        batches = source = exits.enter_context(closing(_batches(config, dataset, mesh, first_step, total_steps)))
        key = jax.random.key(config.seed + 1)
        if restored is not None and first_step == total_steps:
            state = restored
        else:
            # The programs are compiled, or read from the cache, side by side.
            with ThreadPoolExecutor(1) as pool:
                fresh = pool.submit(
                    lambda: restored or initialization.lower().compile(INIT_COMPILER_OPTIONS)(initial_key)
                )
                example = next(batches)
                batches = itertools.chain([example], batches)
                train_step = train_step.lower(template, *example, key, *votes.cast()).compile()
            state = fresh.result()
            # One process may have compiled for minutes, and another one found its program in the cache.
            multihost.wait_for_all("compiled")
        if restored is None:
            if initial:
                state = state.start_from(initial.variables)
                new = f", new: {', '.join(initial.left_out)}" if initial.left_out else ""
                logger.info("weights: %s%s", config.init_from, new)
            state = sharding.replicate(state, mesh)
            if clear_caches:
                jax.clear_caches()
        evaluator = Evaluator(
            dataset,
            mesh,
            config.evaluate.batch_size or config.batch_size,
            model=model,
            prepare=inputs.normalizer(config.data.normalization, image_dtype),
            stop_requested=stop_requested,
        )
        while True:
            seconds_before = record.elapsed_seconds
            first_step = int(state.step)
            writer = MetricWriter(
                folder, resume_step=first_step, tensorboard=config.log.tensorboard, active=first_writes
            )
            progress = Progress(
                total_steps,
                steps_per_epoch,
                batch_size=config.batch_size,
                first_step=first_step,
                mode=config.log.progress,
                every_seconds=config.log.every_seconds,
                active=first_writes,
            )
            profiler = Profiler(folder if config.profile and first_writes else None, first_step)
            try:
                with writer, progress, profiler:
                    state, stopped = _loop(
                        config,
                        state,
                        record,
                        train_step,
                        evaluator,
                        checkpoints,
                        writer,
                        progress,
                        profiler,
                        votes,
                        schedule=schedule,
                        batches=batches,
                        key=key,
                        total_steps=total_steps,
                        started=started,
                    )
                break
            except NonFiniteLoss as error:
                if not config.nonfinite.retries:
                    raise
                state, record = _go_back(config, error, checkpoints, template)
                # The time that was lost counts, too.
                now = time.monotonic()
                record.elapsed_seconds, started = seconds_before + now - started, now
                step = int(state.step)
                checkpoints.save(step, state, dataclasses.asdict(record), checkpoints.metrics(step))
                source.close()
                batches = source = exits.enter_context(closing(_batches(config, dataset, mesh, step, total_steps)))
        try:
            summary = _summarize(config, folder, state, record, evaluator, checkpoints, stopped)
        except _EvaluationStopped:
            raise Interrupted(
                "stopped after the last step, which is saved: the same command evaluates the network", stop_requested()
            ) from None
    if first_writes:
        from inception_jax import report  # only now, since Matplotlib would delay the first step

        logger.info("report: %s", report.write_report(folder))
    return summary


def _go_back(
    config: Config, error: NonFiniteLoss, checkpoints: Checkpoints, template: TrainState
) -> tuple[TrainState, Record]:
    """The last checkpoint's state, with a smaller rate from there on, and its record, which counts the retry.

    Raises:
      NonFiniteLoss: the retries are used up.
    """
    state, kept = checkpoints.restore(None, template)
    record = Record.from_json(kept)
    retries = config.nonfinite.retries
    if record.retries >= retries:
        raise NonFiniteLoss(f"{error}. It went back to a checkpoint {retries} time(s) already") from error
    record.retries += 1
    factor = config.nonfinite.factor
    logger.warning(
        "%s. Going back to step %d, with %g times the rate (%d of %d)",
        error, int(state.step), factor, record.retries, retries,
    )  # fmt: skip
    scale = state.plateau.scale
    return state.replace(plateau=state.plateau.replace(scale=scale * np.asarray(factor, scale.dtype))), record


def _loop(
    config: Config,
    state: TrainState,
    record: Record,
    train_step: Callable[..., tuple[TrainState, jax.Array]],
    evaluator: "Evaluator",
    checkpoints: Checkpoints,
    writer: MetricWriter,
    progress: Progress,
    profiler: Profiler,
    votes: "Votes",
    *,
    schedule: Callable[[int], Any],
    batches: Iterator[tuple[Any, Any]],
    key: jax.Array,
    total_steps: int,
    started: float,
) -> tuple[TrainState, str]:
    """Trains until the end, early stopping or a request to stop; at an epoch's end it evaluates, then saves.

    Returns the state and why training ended: "completed", "early" or "target".
    """
    evaluate_every = config.evaluate.every_epochs * record.steps_per_epoch
    evaluate_from = config.evaluate.first_epoch * record.steps_per_epoch
    save_at = config.checkpoint.every_steps, config.checkpoint.keep_every_steps
    patience = config.evaluate.early_stopping_patience
    clock = Clock(record, config.batch_size, started)
    in_flight: collections.deque[tuple[int, Any]] = collections.deque()
    first_step = step = int(state.step)

    def finish_steps(number_left: int = 0) -> None:
        while len(in_flight) > number_left:
            finished, result = in_flight.popleft()
            loss = votes.read(finished, result)
            if not math.isfinite(loss):
                raise _not_finite(f"the loss of step {finished} is {loss}", checkpoints)

    def save(watched: dict[str, float] | None = None) -> None:
        # A finite loss can leave weights that are not: they would be gone back to in vain.
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.batch_stats))):
            raise _not_finite(f"the weights after step {step} are not finite", checkpoints)
        clock.pause(step)  # what was timed belongs to the checkpoint
        record.elapsed_seconds = clock.elapsed()
        checkpoints.save(step, state, dataclasses.asdict(record), watched)

    def stop() -> NoReturn:
        finish_steps()
        save()
        checkpoints.wait()
        raise Interrupted(
            f"stopped after step {step} of {total_steps} and saved: the same command goes on from there",
            votes.outcome(step),
        )

    if config.nonfinite.retries and checkpoints.latest_step() is None:
        save()  # to go back to
    while True:
        due = step % evaluate_every == 0 and step >= evaluate_from
        if step > record.evaluated_step and (due or step == total_steps):
            finish_steps()
            rate = clock.pause(step)
            try:
                state, row = _end_epoch(config, state, record, evaluator, schedule, step)
            except _EvaluationStopped:
                stop()
            writer.write(step, row | {"images_per_second": rate, "seconds": clock.elapsed()})
            progress.epoch(step, row)
            save({name: row[name] for name in (config.evaluate.watch,) if name in row})
        if patience and record.evaluations_since_best >= patience:
            return state, "early"
        if _reached(config.evaluate.stop_at, record.best_value, config.evaluate.watch_mode):
            return state, "target"
        if step >= total_steps:
            return state, "completed"
        if votes.outcome(step):
            stop()
        checkpoints.check()
        if step > max(first_step, record.evaluated_step) and any(every and step % every == 0 for every in save_at):
            finish_steps()
            save()

        if profiler.starts_with(step + 1):
            finish_steps()
            clock.pause(step)
            profiler.start()
        with profiler.step(step + 1):
            clock.resume(step)
            state, result = train_step(state, *next(batches), key, *votes.cast())
            step += 1
            in_flight.append((step, result))
            # Of the first step nothing may stay in flight: it compiles, and the clock starts behind it.
            finish_steps(STEPS_IN_FLIGHT if step > first_step + 1 else 0)
        if step == first_step + 1:
            logger.info("first step: after %.1f s, compilation included", clock.session())
            clock.restart(step)
        if profiler.ends_with(step):
            finish_steps()
            profiler.stop()
            clock.restart(step)  # steps under the profiler are slower
        if step == first_step + STEPS_TO_ESTIMATE:
            finish_steps()
            rate = clock.rate(step)
            left = format_seconds((total_steps - step) * config.batch_size / rate)
            logger.info("estimate: %s for the %d steps left, at %.0f images/s", left, total_steps - step, rate)
        if progress.due(step):
            row = _running_metrics(state, schedule, step)
            progress.update(step, row)
            writer.scalars(step, row)


def _not_finite(what: str, checkpoints: Checkpoints) -> NonFiniteLoss:
    kept = checkpoints.latest_step()
    where = "no checkpoint was saved before" if kept is None else f"the checkpoint of step {kept} is kept"
    return NonFiniteLoss(
        f"{what}; {where}. A smaller schedule.learning_rate, schedule.warmup_epochs, optimizer.clip_norm or "
        "nonfinite.retries may help"
    )


def _reached(target: float, value: float | None, mode: str) -> bool:
    """Whether a metric's best value is as good as the target; there is none if it is 0."""
    if not target or value is None:
        return False
    return value >= target if mode == "max" else value <= target


def _running_metrics(state: TrainState, schedule: Callable[[int], Any], step: int) -> dict[str, float]:
    """The means over the epoch so far, and the rate of the last update."""
    means = metrics.summarize(jax.device_get(state.metrics))
    rate = float(schedule(step - 1)) * float(state.plateau.scale)
    return {"learning_rate": rate} | {f"train_{name}": value for name, value in means.items() if name != "count"}


def _end_epoch(
    config: Config,
    state: TrainState,
    record: Record,
    evaluator: "Evaluator",
    schedule: Callable[[int], Any],
    step: int,
) -> tuple[TrainState, dict[str, float]]:
    """Evaluates, lets the plateau schedule look, updates the record; the new state and the row for metrics.csv."""
    row = {"epoch": step / record.steps_per_epoch} | _running_metrics(state, schedule, step)
    seconds_before = evaluator.seconds
    for split in config.evaluate.splits:
        means = evaluator(state.variables, split)
        row |= {f"{split}_{name}": value for name, value in means.items() if name != "count"}
    record.evaluation_seconds += evaluator.seconds - seconds_before
    plateau = state.plateau
    if config.schedule.name == "plateau":
        rate = config.schedule.learning_rate
        fields = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "learning_rate")
        plateau = schedules.plateau_update(
            plateau,
            row[config.schedule.metric],
            min_scale=config.schedule.min_rate / rate if rate else 0.0,
            **{field: config.schedule[field] for field in fields},
        )
    if config.evaluate.splits:
        value = row[config.evaluate.watch]
        sign = 1 if config.evaluate.watch_mode == "max" else -1
        better = math.isfinite(value) and (record.best_value is None or sign * value > sign * record.best_value)
        if better:
            record.best_value = value
        record.evaluations_since_best = 0 if better else record.evaluations_since_best + 1
    record.evaluated_step = step
    fresh = sharding.replicate(
        (jax.device_get(plateau), jax.tree.map(np.zeros_like, jax.device_get(state.metrics))), evaluator.mesh
    )
    return state.replace(plateau=fresh[0], metrics=fresh[1]), row


class Evaluator:
    """Metrics of a whole split, every example counted once, at any batch size and by any number of processes.

    Attributes:
      seconds: that evaluations took, without the first batch, which compiles.
    """

    def __init__(
        self,
        dataset: Dataset,
        mesh: Mesh,
        batch_size: int,
        *,
        model: Any,
        prepare: Callable,
        stop_requested: Callable[[], int] = lambda: 0,
    ):
        self.dataset = dataset
        self.mesh = mesh
        batch_size = min(batch_size, max(map(len, dataset.splits.values())))  # more would be padding
        self._batch_size = -(-batch_size // mesh.size) * mesh.size  # padding makes up what does not divide
        self._rows = sharding.local_rows(mesh, self._batch_size)
        # Several processes would have to agree first; they finish what they evaluate.
        self._stop_requested = stop_requested if multihost.count() == 1 else lambda: 0
        self._inference_variables = jax.jit(partial(inference_variables, model))
        self._eval_step = jax.jit(partial(steps.eval_step, model=fold_model(model), prepare=prepare))
        self._compiled = False
        self.seconds = 0.0

    def __call__(self, variables: dict[str, Any], split: str) -> dict[str, float]:
        """The means over the split: loss, top1, top5, count."""
        total, started = None, time.monotonic()
        variables = self._inference_variables(variables)
        for batch in eval_batches(self.dataset.splits[split], self._batch_size, self._rows):
            if self._stop_requested():
                raise _EvaluationStopped
            sums = self._eval_step(variables, *sharding.split_batch(batch, self.mesh))
            total = sums if total is None else metrics.add(total, sums)
            if not self._compiled:
                jax.block_until_ready(sums)
                self._compiled, started = True, time.monotonic()
        total = jax.device_get(total)
        self.seconds += time.monotonic() - started
        return metrics.summarize(total)


def _batches(
    config: Config, dataset: Dataset, mesh: Mesh, first_step: int, total_steps: int
) -> Generator[tuple[Any, Any], None, None]:
    """Images and labels for each step to come, on several devices split over the mesh.

    On accelerators a split that is in memory and fits is copied to every device once and gathered there.
    """
    split, augment = dataset.splits["train"], config.data.augment
    steps_per_epoch = order.steps_per_epoch(len(split), config.batch_size)
    positions = partial(order.batch_indices, config.seed, num_examples=len(split), batch_size=config.batch_size)
    if config.data.balanced:
        positions = partial(
            order.balanced_indices, config.seed, labels=split.all_labels(), batch_size=config.batch_size
        )
    positions = partial(_rows_of, positions, sharding.local_rows(mesh, config.batch_size))
    on_accelerator = mesh.devices.flat[0].platform != "cpu"
    streamed = isinstance(split, streaming.Split)
    if on_accelerator and not streamed and len(split) * math.prod(split.image_shape) <= RESIDENT_BYTES:
        # Arguments, not a closure, which would embed them in the program.
        images, labels = sharding.replicate(split.gather(np.arange(len(split))), mesh)
        gather = jax.jit(lambda images, labels, positions: (images[positions], labels[positions]))
        for step in range(first_step, total_steps):
            yield gather(images, labels, sharding.split_batch(positions(step), mesh))
        return
    crop = None
    if augment.crop_originals:
        crop = streaming.RandomCrop(config.seed, augment.random_resized_crop, augment.aspect_ratio)
    batches = train_batches(
        split,
        positions,
        first_step,
        total_steps,
        num_workers=config.data.num_workers,
        crop=crop,
        steps_per_epoch=steps_per_epoch,
    )
    with closing(batches):
        for batch in batches:
            # On one CPU the jitted step takes NumPy's arrays as they are, for a tenth of device_put's time.
            yield batch if not on_accelerator and mesh.size == 1 else sharding.split_batch(batch, mesh)


def _rows_of(positions: Callable[[int], np.ndarray], rows: slice, step: int) -> np.ndarray:
    return positions(step)[rows]


class Votes:
    """Requests to stop, on which several processes have to agree, since each step needs all of them.

    Every process hands its own request to each step, which returns the largest of all. Whether a step's outcome is
    known already depends on how far a process has waited for its devices, so that it counts a fixed number of steps
    later, when it is known everywhere. A single process needs none of this, and answers at once.
    """

    def __init__(self, mesh: Mesh, stop_requested: Callable[[], int]):
        self._mesh = mesh
        self._stop_requested = stop_requested
        self._several = multihost.count() > 1
        self._outcomes: dict[int, int] = {}  # signals, by the step that returned them

    def counted(self, train_step: Callable) -> Callable:
        """The step, which takes what `cast` gives and whose second result `read` understands."""
        if not self._several:
            return train_step

        def step_with_votes(state, images, labels, key, requests):
            state, loss = train_step(state, images, labels, key)
            return state, (loss, requests.max())

        return step_with_votes

    def cast(self) -> tuple[jax.Array, ...]:
        """What the step takes besides its other arguments."""
        if not self._several:
            return ()
        own = np.full(len(self._mesh.local_devices), self._stop_requested(), np.int32)
        return (sharding.split_batch(own, self._mesh),)

    def read(self, step: int, result: Any) -> float:
        """The loss of a step."""
        if not self._several:
            return float(result)
        loss, outcome = result
        if int(outcome):
            self._outcomes[step] = int(outcome)
        return float(loss)

    def outcome(self, step: int) -> int:
        """The signal by which the run is asked to stop after `step`; 0: it is not."""
        if not self._several:
            return self._stop_requested()
        return max((signal for at, signal in self._outcomes.items() if at <= step - STEPS_IN_FLIGHT), default=0)


class Clock:
    """Seconds that the run has taken, over all its sessions, and the speed of its training steps."""

    def __init__(self, record: Record, batch_size: int, started: float):
        self._record = record
        self._batch_size = batch_size
        self._before = record.elapsed_seconds
        self._started = started
        self._mark: tuple[float, int] | None = None  # when, and after which step, the steps being timed began

    def elapsed(self) -> float:
        return self._before + self.session()

    def session(self) -> float:
        return time.monotonic() - self._started

    def resume(self, step: int) -> None:
        if self._mark is None:
            self.restart(step)

    def restart(self, step: int) -> None:
        self._mark = (time.monotonic(), step)

    def rate(self, step: int) -> float:
        """Images per second since the clock was resumed; 0 before the first step that counts."""
        if self._mark is None or step == self._mark[1]:
            return 0.0
        return (step - self._mark[1]) * self._batch_size / (time.monotonic() - self._mark[0])

    def pause(self, step: int) -> float:
        """Adds what was timed to the record and returns its rate."""
        rate = self.rate(step)
        if self._mark is not None:
            self._record.training_seconds += time.monotonic() - self._mark[0]
            self._record.training_images += (step - self._mark[1]) * self._batch_size
        self._mark = None
        return rate


@contextmanager
def _stop_requests() -> Iterator[Callable[[], int]]:
    """Notes SIGINT and SIGTERM, to be answered between two steps (0: none came); a second SIGINT ends at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers in that one alone
        yield lambda: 0
        return

    def note(number, frame):
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: max(received, default=0)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _describe_devices(mesh: Mesh) -> str:
    """How many there are of what; of CPUs the model, where the system says it, and the number of cores."""
    device = mesh.devices.flat[0]
    kind = device.device_kind
    if device.platform == "cpu":
        kind = platform.machine()
        with suppress(OSError):
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            kind = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), kind)
        kind += f", {os.cpu_count()} cores"
    return f"{mesh.size} x {device.platform} ({kind})"


def _log_start(
    folder: Path,
    dataset: Dataset,
    mesh: Mesh,
    dtype: Any,
    state: TrainState,
    first_step: int,
    total_steps: int,
) -> None:
    device = mesh.devices.flat[0]
    processes = f", {multihost.count()} processes" if multihost.count() > 1 else ""
    logger.info("device: %s, %s%s", _describe_devices(mesh), np.dtype(dtype).name, processes)
    if device.platform == "cpu" and (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists()):
        logger.warning("a GPU is there and unused: this JAX has no CUDA; pip install 'inception-jax[cuda]'")
    height, width, channels = dataset.image_shape
    counts = ", ".join(f"{len(split):,} {name}" for name, split in dataset.splits.items())
    classes = len(dataset.class_names)
    how = "streamed" if isinstance(dataset.splits["train"], streaming.Split) else "in memory"
    logger.info(
        "data: %s, %s images of %dx%dx%d, %d classes, %s", dataset.name, counts, height, width, channels, classes, how
    )
    logger.info("parameters: %s", f"{count_parameters(state.params):,}")
    if first_step:
        logger.info("run: %s goes on after step %d of %d", folder, first_step, total_steps)
    else:
        logger.info("run: %s, %d steps", folder, total_steps)


def _summarize(
    config: Config,
    folder: Path,
    state: TrainState,
    record: Record,
    evaluator: Evaluator,
    checkpoints: Checkpoints,
    stopped: str,
) -> dict[str, Any]:
    """Evaluates the last and the best weights on the final splits and writes summary.json."""
    step = int(state.step)
    final = {split: evaluator(state.variables, split) for split in config.evaluate.final_splits}
    best_step = checkpoints.best_step()
    if best_step is None or best_step == step:
        best_step, best = step, final
    else:
        try:
            variables = checkpoints.restore(best_step, state)[0].variables
        except UserError as damage:
            logger.warning("%s. The last weights stand for the best", damage)
            best_step, best = step, final
        else:
            best = {split: evaluator(variables, split) for split in config.evaluate.final_splits}
    watched = config.evaluate.watch if config.evaluate.splits else None
    packages = ("inception-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    summary = {
        "name": folder.name,
        "steps": step,
        "epochs": step / record.steps_per_epoch,
        **final,
        "best": {
            "step": best_step,
            "epoch": best_step / record.steps_per_epoch,
            "metric": watched if record.best_value is not None else None,
            "value": record.best_value,
            **best,
        },
        "watched": watched,
        "stopped": stopped,
        "images_per_second": record.training_images / record.training_seconds if record.training_seconds else None,
        "seconds": record.elapsed_seconds,
        "training_seconds": record.training_seconds,
        "evaluation_seconds": record.evaluation_seconds,
        "parameters": count_parameters(state.params),
        "device": _describe_devices(evaluator.mesh),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in packages},
    }
    if multihost.is_first():
        run.write_json(folder / "summary.json", summary)
    return summary
