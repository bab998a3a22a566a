"""The training loop, on one screen."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from inception_jax.distributed import sharding
from inception_jax.experiment import Experiment
from inception_jax.steps import metrics, schedules
from inception_jax.steps.state import TrainState
from inception_jax.train.evaluator import Evaluator
from inception_jax.train.events import Events
from inception_jax.train.session import STEPS_TO_ESTIMATE, Session
from inception_jax.train.stopping import EvaluationStopped


@dataclasses.dataclass(frozen=True)
class Programs:
    """The compiled programs.

    Attributes:
      step_after: number of steps -> the program of the next one: (state, images, labels, key, *votes) -> the new state,
        and a result for `Votes.read`.
      evaluate: (variables, split) -> metrics.
    """

    step_after: Callable[[int], Callable[..., tuple[TrainState, Any]]]
    evaluate: Evaluator


def run(experiment: Experiment, programs: Programs, session: Session, state: TrainState) -> tuple[TrainState, str]:
    """Trains until the end, early stopping or a request to stop. After an epoch it evaluates, then saves.

    Returns the state, and why training ended, see `Events.ended`.

    Raises:
      Interrupted: the run was asked to stop, and has saved its state.
      NonFiniteLoss: a loss or a weight is not finite.
      WriteError: a file of the run could not be written.
    """
    when, step = Events.of(experiment), int(state.step)
    if experiment.config.nonfinite.retries and session.checkpoints.latest_step() is None:
        session.save(state)  # to return to
    while True:
        if when.evaluates(step, session.record):
            state = end_epoch(experiment, programs.evaluate, session, state)
        if ended := when.ended(step, session.record):
            if ended == "callback" and session.saves(step, True):
                session.save(state)
            return state, ended
        if session.asked_to_stop(step):
            session.stop(state)
        if session.saves(step, when.saves(step)):
            session.save(state)
        state = session.dispatch(programs.step_after(step), state, step)
        step += 1
        session.report_step(step, lambda state=state, step=step: running_metrics(experiment, state, step))
        if step == session.first_step + STEPS_TO_ESTIMATE and experiment.evaluates:
            programs.evaluate.compile_ahead(state.variables)  # not earlier, since it competes with the step for cores


def end_epoch(experiment: Experiment, evaluate: Evaluator, session: Session, state: TrainState) -> TrainState:
    """Evaluates, updates the plateau schedule with the result, and saves, in this order."""
    session.settle()
    step, record = int(state.step), session.record
    rate = session.clock.pause(step)
    row = {"epoch": step / record.steps_per_epoch} | running_metrics(experiment, state, step)
    seconds_before = evaluate.seconds
    try:
        for split in experiment.config.evaluate.splits:
            means = evaluate(state.variables, split)
            row |= {f"{split}_{name}": value for name, value in means.items() if name != "count"}
    except EvaluationStopped:
        session.stop(state)
    record.evaluation_seconds += evaluate.seconds - seconds_before
    plateau = _updated_plateau(experiment, state, row)
    watched = _note(experiment, session, row, step)
    zeros = metrics.reset(jax.device_get(state.metrics))
    plateau, zeros = sharding.own((jax.device_get(plateau), zeros), evaluate.mesh)
    state = state.replace(plateau=plateau, metrics=zeros)
    session.rate_scale = float(jax.device_get(plateau.scale))
    session.report_epoch(step, row, rate)
    session.save(state, watched)
    return state


def running_metrics(experiment: Experiment, state: TrainState, step: int) -> dict[str, float]:
    """The means over the epoch so far, and the learning rate of the last update."""
    means = metrics.summarize(jax.device_get(state.metrics))
    rate = float(experiment.schedule(step - 1)) * float(state.plateau.scale)
    return {"learning_rate": rate} | {f"train_{name}": value for name, value in means.items() if name != "count"}


def _updated_plateau(experiment: Experiment, state: TrainState, row: dict[str, float]) -> schedules.PlateauState:
    section = experiment.config.schedule
    if section.name != "plateau":
        return state.plateau
    fields = ("mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "learning_rate")
    return schedules.plateau_update(
        state.plateau,
        row[section.metric],
        min_scale=section.min_rate / section.learning_rate if section.learning_rate else 0.0,
        **{field: section[field] for field in fields},
    )


def _note(experiment: Experiment, session: Session, row: dict[str, float], step: int) -> dict[str, float]:
    """Adds the evaluation at `step` to the record; returns the watched metric, which decides the best checkpoint."""
    record, watch = session.record, experiment.config.evaluate.watch
    if experiment.config.evaluate.splits:
        value = row[watch]
        better = math.isfinite(value) and Events.of(experiment).better(value, record.best_value)
        if better:
            record.best_value, record.best_step = value, step
        record.evaluations_since_best = 0 if better else record.evaluations_since_best + 1
    record.evaluated_step = step
    return {watch: row[watch]} if watch in row else {}
