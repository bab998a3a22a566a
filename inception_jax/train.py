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
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inception_jax import (
    data,
    files,
    initialization,
    metrics,
    multihost,
    ops,
    process,
    run,
    schedules,
    sharding,
    steps,
)
from inception_jax.checkpoints import Checkpoints, saved_steps
from inception_jax.config import Config, validate
from inception_jax.data import order, streaming
from inception_jax.data.dataset import Dataset, eval_batches, train_batches
from inception_jax.distributed import agreement
from inception_jax.distributed.watch import moved, waiting
from inception_jax.errors import UserError
from inception_jax.models.folding import fold_model, inference_variables
from inception_jax.precision import choose_compute_dtype, equations
from inception_jax.profiling import Profiler
from inception_jax.state import TrainState, count_parameters
from inception_jax.text import printable
from inception_jax.writers import MetricWriter, Progress, format_seconds

logger = logging.getLogger(__name__)

RESIDENT_BYTES = 4 * 2**30  # a training split up to this size is kept in every accelerator's memory
STEPS_IN_FLIGHT = 2  # how far the host may run ahead of the devices
RUNS = Path("runs")  # where `fit` makes folders
SECONDS_OF_PRESSING = 1.0  # many people press Ctrl-C twice, and mean once
# After which a program that is not there yet is said to be compiled: one from the cache comes sooner.
SECONDS_TO_READ = 3.0
SECONDS_TO_COMPILE = 0.0015  # an operation of the step's program, on one core of an AMD EPYC; two are used
STEPS_TO_ESTIMATE = 12  # after which the time that the run will take is estimated


class Interrupted(Exception):  # noqa: N818 (nothing went wrong)
    """The run was asked to stop, has saved, and says how to go on.

    Attributes:
      signal: by which it was asked, signal.SIGINT or signal.SIGTERM.
    """

    def __init__(self, message: str, signal: int):
        super().__init__(message)
        self.signal = signal


class StoppedAtOnce(KeyboardInterrupt):
    """A second Ctrl-C came before the run had saved; the message says what is there."""


class NonFiniteLoss(Exception):  # noqa: N818
    """The loss or a weight became infinite or NaN; the last checkpoint is from before."""


class _EvaluationStopped(Exception):  # noqa: N818
    """A request to stop came while a split was evaluated."""


def train_and_evaluate(
    config: Config, workdir: str | Path, *, clear_caches: bool = False, wait: bool = False, trust_code: bool = False
) -> dict[str, Any]:
    """Trains as the config says, or goes on where the run in `workdir` stopped; returns what summary.json holds.

    Args:
      clear_caches: let JAX forget all that it has traced once the step is compiled (about 130 MB of memory for
        GoogLeNet): for a process that does nothing else.
      wait: for another process that trains in `workdir`; else that is a UserError.
      trust_code: whether a run that the weights come from may name a network outside the package, see `run.load_run`;
        what `config` names itself is trusted.

    Raises:
      UserError: the config, the data or the folder is not usable; nothing was changed.
      Interrupted: SIGINT or SIGTERM came; the state was saved.
      StoppedAtOnce: a second SIGINT came before that.
      NonFiniteLoss: the loss is no number any more, oftener than config.nonfinite.retries.
      WriteError: a checkpoint or another file of the run could not be written.
    """
    if config.data.num_workers:
        streaming.end_unguarded_worker()  # before it takes time
    folder = files.expand(workdir, "workdir")
    multihost.require_same_start(partial(run.common_fields, config), folder)
    config = run.with_network_of_weights(config, folder, trust_code=trust_code)
    validate(config)
    if config.deterministic:
        process.make_deterministic()
    with _held(folder, wait):
        return _train(config, folder, run.load_data(config), clear_caches, trust_code)


def fit(
    config: Config,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    class_names: tuple[str, ...] | None = None,
    workdir: str | Path | None = None,
    trust_code: bool = False,
) -> run.Run:
    """Trains on arrays in hand, exactly as the command does, and returns the trained network.

    Args:
      config: as for the command; of its `data` section only normalisation and augmentation matter.
        `deterministic` has an effect only where JAX has not used a device before.
      train, validation, test: (images uint8 (n, height, width, channels), labels integer (n,)); without a validation
        split nothing is evaluated during training, and the last weights count as the best.
      class_names: in the order of the labels; by default their numbers.
      workdir: the run's folder; a run on the same arrays that is there already goes on, or, if it is complete, is
        loaded. None: a new folder, runs/fit-1, runs/fit-2, ..., which the result's `folder` names.
      trust_code: as for `train_and_evaluate`.

    Raises:
      UserError: as `train_and_evaluate`; the arrays are no images and labels; the folder holds a run on other arrays.
    """
    dataset = data.from_arrays(train=train, validation=validation, test=test, class_names=class_names)
    config = copy.deepcopy(config)
    config.data.name = "arrays"
    for split in config.data.splits:
        config.data.splits[split] = "all" if split in dataset.splits else ""
    evaluate = config.evaluate
    evaluate.splits = tuple(split for split in evaluate.splits if split in dataset.splits)
    evaluate.final_splits = tuple(split for split in evaluate.final_splits if split in dataset.splits)
    with _folder_of_fit(workdir) as folder:
        multihost.require_same_start(partial(run.common_fields, config), folder)
        config = run.with_network_of_weights(config, folder, trust_code=trust_code)
        validate(config)
        if config.deterministic:
            process.make_deterministic()
        with _held(folder):
            _train(config, folder, dataset, trust_code=trust_code)
    return run.load_run(folder, own=config)


@contextmanager
def _folder_of_fit(workdir: str | Path | None) -> Iterator[Path]:
    """The folder that was given, or a new one, which goes again where nothing came into it."""
    if workdir is not None:
        yield files.expand(workdir, "workdir")
        return
    if multihost.count() > 1:
        raise UserError("several processes train in one folder: give fit(..., workdir=FOLDER), the same to all of them")
    for number in itertools.count(1):
        folder = RUNS / f"fit-{number}"
        try:
            folder.mkdir(parents=True)  # by one of several programs at once
            break
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(f"cannot write the run's folder {folder}: {error.strerror or error}") from error
    try:
        yield folder
    finally:
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def _held(folder: Path, wait: bool = False) -> AbstractContextManager[None]:
    """The run's folder, in which one process writes, and no other program."""
    return files.held(folder, "the run's folder", "trains", wait=wait) if multihost.is_first() else nullcontext()


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
    best_value: float | None = None  # of the watched metric, whether or not its checkpoint is still there
    evaluations_since_best: int = 0
    fingerprint: str | None = None  # of pictures in a person's folder, of arrays and of builders from outside
    data_version: str | None = None  # of a published data set; None also where none was kept yet
    retries: int = 0  # how often the run went back to a checkpoint because the loss was not finite
    named_streams: bool = False  # where its random numbers come from, see `run.initial_key`
    best_step: int | None = None  # that best_value is of; None also where a run of before had not noted it

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


def _known_record(kept: dict[str, Any], checkpoints: Checkpoints) -> Record:
    """The record of a checkpoint, with the best step of a run of before, which did not note it, as far as it is there.

    Raises:
      UserError: as `Record.from_json`.
    """
    record = Record.from_json(kept)
    if record.best_step is None and record.best_value is not None:
        equal = (step for step in checkpoints.best_steps() if checkpoints.watched(step) == record.best_value)
        record.best_step = next(equal, None)
    return record


def _require_same_data(folder: Path, record: Record, dataset: Dataset) -> None:
    """Raises UserError where a run is to go on with other pictures or arrays than it was begun with."""
    before, now = record.fingerprint, dataset.fingerprint
    if before is None and now is not None:
        logger.warning(
            "%s: it is not known what data the run was begun with, by another version of inception_jax; it goes on "
            "with what is given now",
            folder,
        )
        record.fingerprint = now
    elif before != now:
        what, way_out = "arrays than given now", "workdir, or give the arrays that it was begun with"
        if dataset.cache:
            what = "pictures than are there now"
            way_out = "--workdir, or bring the pictures back to what they were"
        differences = data.changes(dataset.cache, before or "", now or "")
        raise UserError(f"{folder} holds a run on other {what}: {differences}. Choose another {way_out}")


def _with_splits_there(config: Config, dataset: Dataset) -> Config:
    """The config without the evaluation of splits that are chosen by themselves and are not published."""
    config = copy.deepcopy(config)
    for field in ("splits", "final_splits"):
        config.evaluate[field] = tuple(split for split in config.evaluate[field] if split in dataset.splits)
    needed = {"evaluate.watch": config.evaluate.watch} if config.evaluate.splits else {}
    if config.schedule.name == "plateau":
        needed["schedule.metric"] = config.schedule.metric
    for field, metric in needed.items():
        split = metric.partition("_")[0]
        if split not in ("train", *config.evaluate.splits):
            raise UserError(f"{field}={metric!r} needs the split {split}, and the data has none: choose another one")
    return config


def _facts(
    config: Config, folder: Path, dataset: Dataset, inputs: run.Inputs, steps_per_epoch: int, initial: Any
) -> dict[str, Any]:
    """What all processes of a run have to have in common, by what it is."""
    if multihost.count() == 1:
        return {}
    fingerprint = agreement.fingerprint
    names, variables = inputs.class_names, initial.variables if initial else {}
    return run.common_fields(config) | {
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
        "the number of steps an epoch": steps_per_epoch,
        "the weights of init_from": [fingerprint(np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(variables)],
        "the list of checkpoints": saved_steps(folder / "checkpoints"),
    }


def _train(
    config: Config, folder: Path, dataset: Dataset, clear_caches: bool = False, trust_code: bool = False
) -> dict[str, Any]:
    started = time.monotonic()
    config = _with_splits_there(config, dataset)
    mesh = sharding.make_mesh(config.num_devices)
    sharding.check_divides(mesh, config.batch_size // config.accumulation_steps, "batch_size / accumulation_steps")
    steps_per_epoch = order.steps_per_epoch(len(dataset.splits["train"]), config.batch_size)
    total_steps = config.num_epochs * steps_per_epoch

    config = run.with_options_of_weights(config, len(dataset.class_names))
    config, why = choose_compute_dtype(config, folder, len(dataset.class_names), dataset.image_shape)
    dtype, image_dtype = run.dtypes(config.compute_dtype)
    model = run.build_model(config, len(dataset.class_names))
    initial_key = run.initial_key(config)
    mean, std, initial = config.data.mean, config.data.std, None
    if config.init_from:
        known = run.kept_inputs(folder)  # the weights may be gone once the run has begun
        if known is None:
            known = initial = run.load_initial(
                config.init_from, model, dataset.image_shape, initial_key, trust_code=trust_code, own=config
            )
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
    beginning = jax.jit(initial_state, out_shardings=everywhere).trace(initial_key)
    multihost.require_equal(_facts(config, folder, dataset, inputs, steps_per_epoch, initial))
    with multihost.first_goes_first("folder"):
        run.prepare_folder(folder, config)

    record = Record(
        dataclasses.asdict(inputs),
        steps_per_epoch,
        fingerprint=dataset.fingerprint,
        data_version=dataset.version,
        named_streams=True,
    )
    with ExitStack() as exits:
        stop_requested = exits.enter_context(_stop_requests(folder))  # until the last save is done
        checkpoints = exits.enter_context(run.open_checkpoints(folder, config))
        template = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), beginning.out_info
        )
        restored: TrainState | None = None
        if checkpoints.latest_step() is not None:
            restored, kept = checkpoints.restore(None, template)
            record = _known_record(kept, checkpoints)
            _require_same_data(folder, record, dataset)
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
        resumed_step = None if restored is None else first_step
        _log_start(
            folder, dataset, mesh, np.dtype(dtype).name + (why and f" ({why})"), template, first_step, total_steps
        )
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
        train_step = jax.jit(
            votes.counted(step_fn),
            donate_argnames="state",
            out_shardings=everywhere,
            compiler_options=ops.compiler_options(dtype),
        )
        first_writes = multihost.is_first()
        batches = source = exits.enter_context(closing(_batches(config, dataset, mesh, first_step, total_steps)))
        key = run.training_key(config, record.named_streams)
        if restored is not None and first_step == total_steps:
            state = restored
        else:
            # The weights are drawn while the program is compiled, or read from the cache.
            with ThreadPoolExecutor(1) as pool:
                fresh = pool.submit(lambda: restored or initialization.evaluate(beginning, initial_key))
                example = next(batches)
                batches = itertools.chain([example], batches)
                traced = train_step.trace(template, *example, key, *votes.cast())
                with _saying_that_it_compiles(traced):
                    train_step = traced.lower().compile()
            state = fresh.result()
            # One process may have compiled for minutes, and another one found its program in the cache.
            multihost.wait_for_all("compiled")
        if restored is None:
            if initial:
                state = state.start_from(initial.variables)
                new = f", new: {', '.join(initial.left_out)}" if initial.left_out else ""
                logger.info("weights: %s%s", config.init_from, new)
            if clear_caches:
                jax.clear_caches()
        restored = initial = fresh = None  # else their arrays would stay beside the state's own
        evaluator = Evaluator(
            dataset,
            mesh,
            config.evaluate.batch_size or config.batch_size,
            model=model,
            prepare=inputs.normalizer(config.data.normalization, image_dtype),
            stop_requested=stop_requested,
        )
        while True:
            state = sharding.own(state, mesh)  # each step donates it, wherever it comes from
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
        if int(state.step) == resumed_step:
            logger.warning("%s is complete: its network is loaded, nothing is trained", folder)
        try:
            summary = _summarize(config, folder, state, record, evaluator, checkpoints, stopped)
        except _EvaluationStopped:
            raise Interrupted(
                "stopped after the last step, which is saved: the same command evaluates the network", stop_requested()
            ) from None
    if first_writes:
        from inception_jax import report  # only now, since Matplotlib would delay the first step

        logger.info("report: %s", report.write_report(folder))
        for line in describe_result(summary):
            logger.info("%s", line)
    return summary


@contextmanager
def _saying_that_it_compiles(traced: Any) -> Iterator[None]:
    """Logs that the step's program is compiled, and on a CPU how long that takes, unless it is soon there."""

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


def _go_back(
    config: Config, error: NonFiniteLoss, checkpoints: Checkpoints, template: TrainState
) -> tuple[TrainState, Record]:
    """The last checkpoint's state, with a smaller rate from there on, and its record, which counts the retry.

    Raises:
      NonFiniteLoss: the retries are used up.
    """
    state, kept = checkpoints.restore(None, template)
    record = _known_record(kept, checkpoints)
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
    # Where the run went back to would be the clock's choice, and with it what is computed.
    every_seconds = 0.0 if config.nonfinite.retries else 60 * config.checkpoint.every_minutes
    patience = config.evaluate.early_stopping_patience
    clock = Clock(record, config.batch_size, started)
    in_flight: collections.deque[tuple[int, Any]] = collections.deque()
    first_step = step = saved_step = int(state.step)
    saved_at = time.monotonic()

    def save_is_due() -> bool:
        return bool(every_seconds) and time.monotonic() - saved_at >= every_seconds

    def finish_steps(number_left: int = 0) -> None:
        while len(in_flight) > number_left:
            finished, result = in_flight.popleft()
            with waiting(f"step {finished} of all processes"):
                loss = votes.read(finished, result)
            moved()
            if not math.isfinite(loss):
                raise _not_finite(f"the loss of step {finished} is {loss}", checkpoints)

    def save(watched: dict[str, float] | None = None) -> None:
        nonlocal saved_step, saved_at
        # A finite loss can leave weights that are not: they would be gone back to in vain.
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.batch_stats))):
            raise _not_finite(f"the weights after step {step} are not finite", checkpoints)
        clock.pause(step)  # what was timed belongs to the checkpoint
        record.elapsed_seconds = clock.elapsed()
        checkpoints.save(step, state, dataclasses.asdict(record), watched)
        saved_step, saved_at = step, time.monotonic()

    def stop() -> NoReturn:
        votes.requests.saving = True
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
        due = votes.saves(step, saved_step, save_is_due()) or any(every and step % every == 0 for every in save_at)
        if due and step > max(first_step, record.evaluated_step):
            finish_steps()
            save()

        if profiler.starts_with(step + 1):
            finish_steps()
            clock.pause(step)
            profiler.start()
        with profiler.step(step + 1):
            clock.resume(step)
            with waiting("the next batch", alone=True):
                batch = next(batches)
            state, result = train_step(state, *batch, key, *votes.cast(save_is_due()))
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
            if config.evaluate.splits or config.evaluate.final_splits:  # only now, since it takes the step's cores
                evaluator.compile_ahead(state.variables)
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
            record.best_value, record.best_step = value, step
        record.evaluations_since_best = 0 if better else record.evaluations_since_best + 1
    record.evaluated_step = step
    fresh = sharding.own(
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
        evaluate = partial(steps.eval_step, model=fold_model(model), prepare=prepare)
        self._eval_step = jax.jit(evaluate, compiler_options=ops.compiler_options(getattr(model, "dtype", None)))
        self._ahead: Future[tuple[Callable, Callable]] | None = None
        self._compiled = False
        self.seconds = 0.0

    def compile_ahead(self, variables: dict[str, Any]) -> None:
        """Compiles the programs for variables such as these in a thread, so that no evaluation has to wait for them.

        Nothing happens after the first evaluation, which has compiled them.
        """
        if self._compiled:
            return
        variables = jax.tree.map(_like, variables)
        image_shape = next(iter(self.dataset.splits.values())).image_shape
        rows = NamedSharding(self.mesh, PartitionSpec("data"))
        batch = [
            jax.ShapeDtypeStruct((self._batch_size, *shape), dtype, sharding=rows)
            for shape, dtype in ((image_shape, np.uint8), ((), np.int32), ((), np.bool_))
        ]

        def compile_both() -> tuple[Callable, Callable]:
            lowered = self._inference_variables.lower(variables)
            first = lowered.compile()
            folded = jax.tree.map(
                lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                lowered.out_info,
                first.output_shardings,
            )
            return first, self._eval_step.lower(folded, *batch).compile()

        pool = ThreadPoolExecutor(1, "evaluation")
        self._ahead = pool.submit(compile_both)
        pool.shutdown(wait=False)

    def __call__(self, variables: dict[str, Any], split: str) -> dict[str, float]:
        """The means over the split: loss, top1, top5, count."""
        if self._ahead is not None:
            (self._inference_variables, self._eval_step), self._ahead = self._ahead.result(), None
        total, started = None, time.monotonic()
        in_flight: collections.deque[Any] = collections.deque()
        variables = self._inference_variables(variables)
        for batch in eval_batches(self.dataset.splits[split], self._batch_size, self._rows):
            if self._stop_requested():
                raise _EvaluationStopped
            sums = self._eval_step(variables, *sharding.split_batch(batch, self.mesh))
            total = sums if total is None else metrics.add(total, sums)
            in_flight.append(sums)
            if len(in_flight) > STEPS_IN_FLIGHT:
                with waiting("the evaluation of all processes"):
                    jax.block_until_ready(in_flight.popleft())
            moved()
            if not self._compiled:
                jax.block_until_ready(sums)
                self._compiled, started = True, time.monotonic()
        total = jax.device_get(total)
        self.seconds += time.monotonic() - started
        return metrics.summarize(total)


def _like(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)


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


class StopRequests:
    """Signals that ask the run to stop; calling it gives the one that came, 0 if none did.

    Attributes:
      step: that training has come to; None: it has made none yet.
      saving: whether the run is being saved, as it was asked to: one more Ctrl-C does not end that.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        self.saving = False
        self._received: list[int] = []
        self._pressed = 0.0  # when Ctrl-C came first

    def __call__(self) -> int:
        return max(self._received, default=0)

    def note(self, number: int, frame: Any) -> None:
        """Handles a signal; raises KeyboardInterrupt where Ctrl-C is to end the run at once."""
        first = number not in self._received
        self._received.append(number)
        if number != signal.SIGINT:
            return
        if first:
            self._pressed = time.monotonic()
        elif time.monotonic() - self._pressed < SECONDS_OF_PRESSING:
            return
        elif self.saving:
            self.saving = False
            with suppress(OSError):
                os.write(2, b"the run is being saved; one more Ctrl-C ends it without that\n")
        else:
            raise KeyboardInterrupt


class Votes:
    """Requests to stop or to save, on which several processes have to agree, since each step needs all of them.

    Every process hands its own request to each step, which returns the largest of all. Whether a step's outcome is
    known already depends on how far a process has waited for its devices, so that it counts a fixed number of steps
    later, when it is known everywhere. A single process needs none of this, and answers at once. Of their clocks the
    first process's decides when to save.
    """

    def __init__(self, mesh: Mesh, requests: StopRequests):
        self._mesh = mesh
        self.requests = requests
        self._several = multihost.count() > 1
        self._outcomes: dict[int, int] = {}  # by the step that returned them: twice the signal, and 1 to save

    def counted(self, train_step: Callable) -> Callable:
        """The step, which takes what `cast` gives and whose second result `read` understands."""
        if not self._several:
            return train_step

        def step_with_votes(state, images, labels, key, requests):
            state, loss = train_step(state, images, labels, key)
            return state, (loss, requests.max())

        return step_with_votes

    def cast(self, save: bool = False) -> tuple[jax.Array, ...]:
        """What the step takes besides its other arguments; `save`: a checkpoint is due by this process's clock."""
        if not self._several:
            return ()
        request = 2 * self.requests() + (save and multihost.is_first())
        own = np.full(len(self._mesh.local_devices), request, np.int32)
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
        """The signal by which the run is asked to stop after `step`, to which it has come; 0: it is not."""
        self.requests.step = step
        if not self._several:
            return self.requests()
        return max((request // 2 for at, request in self._outcomes.items() if at <= step - STEPS_IN_FLIGHT), default=0)

    def saves(self, step: int, saved_step: int, due: bool) -> bool:
        """Whether a checkpoint is to be saved after `step`, the last one being that of `saved_step`.

        Args:
          due: it is by this process's clock.
        """
        if not self._several:
            return due
        return any(request % 2 and saved_step < at <= step - STEPS_IN_FLIGHT for at, request in self._outcomes.items())


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
def _stop_requests(folder: Path) -> Iterator[StopRequests]:
    """Notes SIGINT and SIGTERM, to be answered between two steps; a later SIGINT ends at once.

    Raises:
      StoppedAtOnce: it did, and what training had come to is not saved.
      Interrupted: it did after everything was saved.
    """
    requests = StopRequests()
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers in that one alone
        yield requests
        return
    before = {number: signal.signal(number, requests.note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield requests
    except KeyboardInterrupt:
        # What was being saved has been finished on the way here, so the folder says what is there.
        saved = max(
            (int(path.name) for path in (folder / "checkpoints").glob("*") if path.name.isdecimal()), default=None
        )
        if saved is not None and saved == requests.step:
            raise Interrupted(
                f"stopped at once after step {saved}, which is saved: the same command goes on from there",
                requests() or signal.SIGINT,
            ) from None
        when = "before the first step" if requests.step is None else f"after step {requests.step}"
        kept = f"the checkpoint of step {saved} is kept, and the same command goes on from there"
        raise StoppedAtOnce(
            f"stopped at once {when}, without saving: {kept if saved is not None else 'there is no checkpoint yet'}"
        ) from None
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
    dtype: str,
    state: TrainState,
    first_step: int,
    total_steps: int,
) -> None:
    device = mesh.devices.flat[0]
    processes = f", {multihost.count()} processes" if multihost.count() > 1 else ""
    logger.info("device: %s, %s%s", _describe_devices(mesh), dtype, processes)
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


def _best_weights(
    config: Config, state: TrainState, record: Record, checkpoints: Checkpoints
) -> tuple[int, float | None, dict[str, Any]]:
    """Step, watched metric and variables of the best weights: of the last ones where nothing was watched.

    Where the best checkpoint is damaged or gone, the best of those that are left stands for it, with what is its own.
    """
    step, best_step, value = int(state.step), record.best_step, record.best_value
    if value is None or best_step == step:
        return step, value, state.variables
    for candidate in checkpoints.best_steps():
        own = checkpoints.watched(candidate)
        try:
            variables = state.variables if candidate == step else checkpoints.restore(candidate, state)[0].variables
        except UserError as damage:
            logger.warning("%s", damage)
            continue
        break
    else:
        candidate, own, variables = step, None, state.variables
    if candidate != best_step:
        metric = config.evaluate.watch
        lost = "the best checkpoint" if best_step is None else f"the best checkpoint, that of step {best_step},"
        stands = f"that of step {candidate}" + ("" if own is None else f" ({metric} {own:g})")
        logger.warning("%s (%s %g) is not there any more or damaged; %s stands for it", lost, metric, value, stands)
    return candidate, own, variables


def describe_result(summary: dict[str, Any]) -> list[str]:
    """What a run came to, for people: a line for its end, one for the last weights, and one for the best."""
    ends = {"early": "no better any more", "target": "at its target"}
    end = ends.get(summary["stopped"], "completed")
    lines = [f"{printable(summary['name'])}: {end} after {format_seconds(summary['seconds'])}"]
    best = summary["best"]
    for which, step, epoch, means in (
        ("last", summary["steps"], summary["epochs"], summary),
        ("best", best["step"], best["epoch"], best),
    ):
        parts = [f"{which}: step {step}, epoch {epoch:g}"]
        if which == "best" and best["metric"] is not None:
            parts.append(f"by {best['metric']} {best['value']:.4f}")
        for split in ("train", "validation", "test"):
            if found := means.get(split):
                parts.append(" ".join([split, *(f"{name} {found[name]:.4f}" for name in ("top1", "top5", "loss"))]))
        if which == "last" or best["metric"] is not None:  # else the last ones are the best
            lines.append("  ".join(parts))
    return lines


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
    best_step, best_value, variables = _best_weights(config, state, record, checkpoints)
    best = final
    if best_step != step:
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
            "metric": watched if best_value is not None else None,
            "value": best_value,
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
        files.write_json(folder / "summary.json", summary)
    return summary
