"""A run from its config to its summary: for `main`, from a config, and for `fit`, with data given in Python."""

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

import jax

from inception_jax import files, process
from inception_jax.config import Config, validate
from inception_jax.data import streaming
from inception_jax.data.dataset import Dataset
from inception_jax.distributed import multihost, sharding
from inception_jax.errors import UserError
from inception_jax.experiment import initial_key
from inception_jax.runs.dataset import Given, given_data, load_data
from inception_jax.runs.folder import common_fields, fields_of, open_checkpoints
from inception_jax.steps import initialization
from inception_jax.steps.state import TrainState
from inception_jax.train import loop, pictures, start, summary
from inception_jax.train.console import EPOCHS, Console
from inception_jax.train.evaluator import Evaluator
from inception_jax.train.extensions import Extensions, record
from inception_jax.train.initial import Initial, with_network_of_weights
from inception_jax.train.listeners import Hooks, Listeners, note
from inception_jax.train.precision import types_for
from inception_jax.train.session import Session
from inception_jax.train.step_programs import TrainStep
from inception_jax.train.stopping import EvaluationStopped, Interrupted, NonFiniteLoss, StopRequests, stop_requests
from inception_jax.writers.group import Writers

if TYPE_CHECKING:
    from inception_jax.trained.trained_run import TrainedRun

logger = logging.getLogger(__name__)

LOG, REPORT = "log.txt", "report.html"  # in the run's folder
RUNS = Path("runs")  # parent of the folders that `fit` creates


def train_and_evaluate(
    config: Config,
    workdir: str | Path,
    *,
    clear_caches: bool = False,
    wait: bool = False,
    trust_code: bool = False,
    console: Callable[..., Console] = Console,
) -> dict[str, Any]:
    """Trains according to the config, or continues the run in `workdir`; returns the content of summary.json.

    Args:
      clear_caches: whether to clear JAX's caches once the step is compiled, which saves about 130 MB of memory for
        GoogLeNet; for a process that does nothing else.
      wait: whether to wait while another process trains in `workdir`; otherwise that is a UserError.
      trust_code: whether a run that config.init_from names may name a network outside the package, see `load_run`.
        Names in `config` itself are trusted.
      console: factory for the progress display, called like `console.Console`.

    Raises:
      UserError: the config, the data or the folder cannot be used; nothing was changed.
      Interrupted: SIGINT or SIGTERM was received; the state was saved.
      StoppedAtOnce: a second SIGINT came before that.
      NonFiniteLoss: the loss became NaN or infinite more often than config.nonfinite.retries.
      WriteError: a checkpoint or another file of the run could not be written.
    """
    if config.data.num_workers:
        streaming.end_unguarded_worker()  # before it takes time
    folder = files.expand(workdir, "workdir")
    config = ready(config, folder, trust_code)
    listeners = Listeners.of(config)
    with _held(folder, wait), process.log_in_notebook(), types_for(config, folder):
        return _train(config, folder, load_data(config), listeners, clear_caches, trust_code, console)


def fit(
    config: Config,
    train: Given,
    validation: Given | None = None,
    test: Given | None = None,
    *,
    class_names: tuple[str, ...] | None = None,
    workdir: str | Path | None = None,
    trust_code: bool = False,
    console: Callable[..., Console] = Console,
    **extensions: Unpack[Extensions],
) -> "TrainedRun":
    """Trains on arrays in memory or on data sources, exactly as the command does, and returns the trained network.

    Args:
      config: as for the command; of its `data` section only normalization and augmentation are used, and for data
        sources also how pictures are read and converted. `deterministic` has an effect only if JAX has not used a
        device before.
      train, validation, test: (images uint8 (n, height, width, channels), labels integer (n,)), or a data source, see
        `data.Items`. Without a validation split nothing is evaluated during training, and the last weights count as
        the best.
      class_names: in the order of the labels; by default their numbers, or the names of a Hugging Face `ClassLabel`.
      workdir: the run's folder. An existing run on the same data is continued, or loaded if it is complete. None: a
        new folder, runs/fit-1, runs/fit-2, ..., available as the result's `folder`.
      trust_code, console: as for `train_and_evaluate`.
      extensions: loss, metrics, optimizer, schedule, augment_before and augment_after, in place of those that the
        config names, and `writers` and `callbacks` besides them, see `train.extensions.Extensions`. config.json has
        their names.

    Raises:
      UserError: as in `train_and_evaluate`; the data is not images and labels; the folder has a run on other data.
    """
    if config.data.num_workers:
        streaming.end_unguarded_worker()  # before it takes time
    config, given = record(config, extensions)
    splits = {"train": train, "validation": validation, "test": test}
    dataset = given_data(config, {split: value for split, value in splits.items() if value is not None}, class_names)
    config.data.name = dataset.name
    for split in config.data.splits:
        config.data.splits[split] = "all" if split in dataset.splits else ""
    evaluate = config.evaluate
    evaluate.splits = tuple(split for split in evaluate.splits if split in dataset.splits)
    evaluate.final_splits = tuple(split for split in evaluate.final_splits if split in dataset.splits)
    with _folder_of_fit(workdir) as folder:
        config = ready(config, folder, trust_code)
        listeners = Listeners.of(config, extensions)
        note(config, extensions)
        with _held(folder), process.log_in_notebook(), types_for(config, folder):
            _train(config, folder, dataset, listeners, False, trust_code, console, given)
    from inception_jax.trained import trained_run  # not earlier, since Matplotlib would delay the first step

    return trained_run.load(folder, own=config, dataset=dataset)


def ready(config: Config, folder: Path, trust_code: bool) -> Config:
    """The config, complete, validated, and equal in all processes."""
    multihost.require_same_start(partial(common_fields, config), folder)
    config = with_network_of_weights(config, folder, trust_code=trust_code)
    validate(config)
    if config.deterministic:
        process.make_deterministic()
    return config


@contextmanager
def _folder_of_fit(workdir: str | Path | None) -> Iterator[Path]:
    """The given folder, or a new one, which is removed again if it stays empty."""
    if workdir is not None:
        yield files.expand(workdir, "workdir")
        return
    if multihost.count() > 1:
        raise UserError("several processes train in one folder: give all of them the same fit(..., workdir=FOLDER)")
    for number in itertools.count(1):
        folder = RUNS / f"fit-{number}"
        try:
            folder.mkdir(parents=True)  # succeeds for only one of several concurrent programs
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
    """Locks the run's folder, in which one process writes, against other programs."""
    return files.held(folder, "the run's folder", "trains", wait=wait) if multihost.is_first() else nullcontext()


def _train(
    config: Config,
    folder: Path,
    dataset: Dataset,
    listeners: Listeners,
    clear_caches: bool,
    trust_code: bool,
    console: Callable[..., Console],
    given: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    started = time.monotonic()
    begun, initial = start.prepare(config, folder, dataset, trust_code, given)
    with ExitStack() as exits:
        if multihost.is_first():
            exits.enter_context(process.log_to_file(folder / LOG, "inception_jax", EPOCHS.name))
        hooks = listeners.open(folder)
        exits.callback(hooks.writers.close)
        result = _train_in_folder(begun, initial, folder, dataset, clear_caches, console, started, hooks)
        if multihost.is_first():
            _write_report(folder)
            for line in summary.describe_result(result):
                logger.info("%s", line)
            _show_result(config, folder, dataset, result, hooks.writers)
            hooks.callbacks.on_end(result)
    return result


def _train_in_folder(
    begun: start.Start,
    initial: Initial | None,
    folder: Path,
    dataset: Dataset,
    clear_caches: bool,
    console: Callable[..., Console],
    started: float,
    hooks: Hooks,
) -> dict[str, Any]:
    """Trains from the folder's last checkpoint to the summary; `started`: `time.monotonic()` when the command began."""
    config = begun.experiment.config
    with ExitStack() as exits:
        requests = exits.enter_context(stop_requests(folder))  # until the last save is done
        checkpoints = exits.enter_context(open_checkpoints(folder, config, keep_steps=begun.experiment.snapshots))
        session = Session(begun, folder, dataset, checkpoints, requests, console, started, hooks)
        restored = session.restore()
        start.extend(begun, folder)
        resumed_step = None if restored is None else session.first_step
        start.log_start(begun, folder, dataset, session.first_step)
        _show_beginning(config, dataset, session.first_step, hooks.writers)
        session.open_batches()
        exits.callback(session.close_batches)
        train_step = TrainStep(session)
        state = _beginning(session, restored, train_step)
        if restored is None:
            state = _with_initial(config, state, initial)
            if clear_caches:
                jax.clear_caches()
        restored = initial = None  # otherwise their arrays would stay in memory besides the state's own
        evaluator = Evaluator(begun.experiment, dataset, begun.mesh, requests)
        state, stopped = _run_with_retries(session, loop.Programs(train_step.after, evaluator), state)
        if int(state.step) == resumed_step:
            logger.warning("%s is complete: its network is loaded without training", folder)
        return _summarize(session, state, evaluator, stopped, requests)


def _show_beginning(config: Config, dataset: Dataset, first_step: int, writers: Writers) -> None:
    """Prepares the writers, and gives them the config and, of a new run, augmented images."""
    writers.resume(first_step)
    writers.write_hparams(fields_of(config))
    if writers.pictures and not first_step:
        writers.write_images(first_step, pictures.of_data(dataset, config))


def _show_result(config: Config, folder: Path, dataset: Dataset, result: dict[str, Any], writers: Writers) -> None:
    """Gives the loggers the results of the last weights that are not in metrics.csv, the report, and pictures."""
    if not writers:
        return
    step = result["steps"]
    writers.write_texts(step, {"result": "\n".join(summary.describe_result(result))})
    splits = [split for split in config.evaluate.final_splits if split not in config.evaluate.splits]
    means = {f"{split}_{name}": value for split in splits for name, value in result.get(split, {}).items()}
    writers.write_point(step, {name: value for name, value in means.items() if not name.endswith("_count")})
    if (folder / REPORT).is_file():
        writers.write_file(folder / REPORT)
    if writers.pictures and multihost.count() == 1:  # the other processes would wait for the first one's evaluation
        writers.write_images(step, pictures.of_network(folder, dataset, config))


def _write_report(folder: Path) -> None:
    from inception_jax.trained import report  # not earlier, since Matplotlib would delay the first step

    logger.info("report: %s", report.write_report(folder))


def _beginning(session: Session, restored: TrainState | None, train_step: TrainStep) -> TrainState:
    """The initial state: the restored one, or a new one, drawn while the step's program is compiled or read."""
    begun, experiment = session.start, session.experiment
    if restored is not None and session.first_step == experiment.total_steps:
        return restored
    with ThreadPoolExecutor(1) as pool:
        key = initial_key(experiment.config)
        state = pool.submit(lambda: restored or initialization.evaluate(begun.beginning, key))
        train_step.compile_for(session.first_step)
    return state.result()


def _with_initial(config: Config, state: TrainState, initial: Initial | None) -> TrainState:
    """The new state with the weights of config.init_from, if there are any."""
    if initial is None:
        return state
    state = state.start_from(initial.variables)
    new = f", new: {', '.join(initial.left_out)}" if initial.left_out else ""
    logger.info("weights: %s%s", config.init_from, new)
    return state


def _run_with_retries(session: Session, programs: loop.Programs, state: TrainState) -> tuple[TrainState, str]:
    """Trains; after a non-finite loss it restarts from the last checkpoint, as often as the config allows."""
    while True:
        state = sharding.own(state, session.start.mesh)  # each step donates it, wherever it comes from
        try:
            with session.attempt(state):
                return loop.run(session.experiment, programs, session, state)
        except NonFiniteLoss as error:
            if not session.config.nonfinite.retries:
                raise
            state = session.go_back(error)


def _summarize(
    session: Session, state: TrainState, evaluator: Evaluator, stopped: str, requests: StopRequests
) -> dict[str, Any]:
    try:
        return summary.write_summary(
            session.config, session.folder, state, session.record, evaluator, session.checkpoints, stopped
        )
    except EvaluationStopped:
        raise Interrupted(
            "stopped after the last step, which is saved: the same command evaluates the network", requests()
        ) from None
