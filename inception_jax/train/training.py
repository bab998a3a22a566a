"""A run from its config to its summary: for `main`, from a config, and for `fit`, with arrays in memory."""

import copy
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from inception_jax import data, files, process
from inception_jax.config import Config, validate
from inception_jax.data import streaming
from inception_jax.data.dataset import Dataset
from inception_jax.distributed import multihost, sharding
from inception_jax.errors import UserError
from inception_jax.experiment import initial_key
from inception_jax.runs.dataset import load_data
from inception_jax.runs.folder import common_fields, open_checkpoints
from inception_jax.steps import initialization
from inception_jax.steps.state import TrainState
from inception_jax.train import loop, start, summary
from inception_jax.train.console import EPOCHS, Console
from inception_jax.train.evaluator import Evaluator
from inception_jax.train.initial import Initial, with_network_of_weights
from inception_jax.train.session import Session
from inception_jax.train.stopping import EvaluationStopped, Interrupted, NonFiniteLoss, StopRequests, stop_requests

if TYPE_CHECKING:
    from inception_jax.trained.trained_run import TrainedRun

logger = logging.getLogger(__name__)

LOG = "log.txt"  # in the run's folder
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
    with _held(folder, wait), process.log_in_notebook():
        return _train(config, folder, load_data(config), clear_caches, trust_code, console)


def fit(
    config: Config,
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    *,
    class_names: tuple[str, ...] | None = None,
    workdir: str | Path | None = None,
    trust_code: bool = False,
    console: Callable[..., Console] = Console,
) -> "TrainedRun":
    """Trains on arrays in memory, exactly as the command does, and returns the trained network.

    Args:
      config: as for the command; of its `data` section only normalization and augmentation are used.
        `deterministic` has an effect only if JAX has not used a device before.
      train, validation, test: (images uint8 (n, height, width, channels), labels integer (n,)). Without a validation
        split nothing is evaluated during training, and the last weights count as the best.
      class_names: in the order of the labels; by default their numbers.
      workdir: the run's folder. An existing run on the same arrays is continued, or loaded if it is complete. None: a
        new folder, runs/fit-1, runs/fit-2, ..., available as the result's `folder`.
      trust_code, console: as for `train_and_evaluate`.

    Raises:
      UserError: as in `train_and_evaluate`; the arrays are not images and labels; the folder has a run on other arrays.
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
        config = ready(config, folder, trust_code)
        with _held(folder), process.log_in_notebook():
            _train(config, folder, dataset, False, trust_code, console)
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
    clear_caches: bool,
    trust_code: bool,
    console: Callable[..., Console],
) -> dict[str, Any]:
    started = time.monotonic()
    begun, initial = start.prepare(config, folder, dataset, trust_code)
    if not multihost.is_first():
        return _train_in_folder(begun, initial, folder, dataset, clear_caches, console, started)
    with process.log_to_file(folder / LOG, "inception_jax", EPOCHS.name):
        result = _train_in_folder(begun, initial, folder, dataset, clear_caches, console, started)
        _write_report(folder)
        for line in summary.describe_result(result):
            logger.info("%s", line)
    return result


def _train_in_folder(
    begun: start.Start,
    initial: Initial | None,
    folder: Path,
    dataset: Dataset,
    clear_caches: bool,
    console: Callable[..., Console],
    started: float,
) -> dict[str, Any]:
    """Trains from the folder's last checkpoint to the summary; `started`: `time.monotonic()` when the command began."""
    config = begun.experiment.config
    with ExitStack() as exits:
        requests = exits.enter_context(stop_requests(folder))  # until the last save is done
        checkpoints = exits.enter_context(open_checkpoints(folder, config))
        session = Session(begun, folder, dataset, checkpoints, requests, console, started)
        restored = session.restore()
        resumed_step = None if restored is None else session.first_step
        start.log_start(begun, folder, dataset, session.first_step)
        session.open_batches()
        exits.callback(session.close_batches)
        train_step, state = _compiled_step(session, restored)
        if restored is None:
            state = _with_initial(config, state, initial)
            if clear_caches:
                jax.clear_caches()
        restored = initial = None  # otherwise their arrays would stay in memory besides the state's own
        evaluator = Evaluator(begun.experiment, dataset, begun.mesh, requests)
        state, stopped = _run_with_retries(session, loop.Programs(train_step, evaluator), state)
        if int(state.step) == resumed_step:
            logger.warning("%s is complete: its network is loaded without training", folder)
        return _summarize(session, state, evaluator, stopped, requests)


def _write_report(folder: Path) -> None:
    from inception_jax.trained import report  # not earlier, since Matplotlib would delay the first step

    logger.info("report: %s", report.write_report(folder))


def _compiled_step(session: Session, restored: TrainState | None) -> tuple[Callable, TrainState]:
    """The step's program, and the initial state: the restored one, or a new one."""
    begun, experiment = session.start, session.experiment
    step = jax.jit(
        session.votes.counted(experiment.train_step),
        donate_argnames="state",
        out_shardings=NamedSharding(begun.mesh, PartitionSpec()),
        compiler_options=experiment.compiler_options,
    )
    if restored is not None and session.first_step == experiment.total_steps:
        return step, restored
    # The weights are drawn while the program is compiled or read from the cache.
    with ThreadPoolExecutor(1) as pool:
        key = initial_key(experiment.config)
        state = pool.submit(lambda: restored or initialization.evaluate(begun.beginning, key))
        traced = step.trace(begun.template, *session.example(), session.key, *session.votes.cast())
        with start.saying_that_it_compiles(traced):
            compiled = traced.lower().compile()
    # One process may have compiled for minutes while another found its program in the cache.
    multihost.wait_for_all("compiled")
    return compiled, state.result()


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
            with session.attempt(int(state.step)):
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
