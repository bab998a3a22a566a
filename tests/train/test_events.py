"""When a run evaluates, saves and ends: whole runs' bookkeeping, without a run."""

import math

import pytest

from inception_jax.config import default_config
from inception_jax.experiment import Experiment, Inputs
from inception_jax.train.events import Events
from inception_jax.train.record import TrainingRecord


@pytest.fixture
def record():
    return TrainingRecord({}, steps_per_epoch=10)


def evaluated(events, record, steps):
    found = []
    for step in range(steps + 1):
        if events.evaluates(step, record):
            found.append(step)
            record.evaluated_step = step
    return found


@pytest.mark.parametrize(
    ("every", "first", "total", "expected"),
    [(10, 0, 30, [10, 20, 30]), (10, 20, 30, [20, 30]), (20, 0, 50, [20, 40, 50]), (10, 90, 30, [30])],
)
def test_evaluations_and_always_one_after_the_last_step(record, every, first, total, expected):
    assert evaluated(Events(total, every, first), record, total) == expected


def test_an_evaluation_before_the_run_was_resumed_is_not_repeated(record):
    record.evaluated_step = 20
    assert evaluated(Events(40, 10), record, 40) == [30, 40]


def test_saves():
    events = Events(100, 50, save_every=(7, 10))
    assert [step for step in range(1, 22) if events.saves(step)] == [7, 10, 14, 20, 21]
    assert not any(Events(100, 50).saves(step) for step in range(100))


@pytest.mark.parametrize(
    ("maximize", "best", "expected"),
    [(True, 0.9, "target"), (True, 0.94, "target"), (True, 0.89, None), (False, 0.89, "target"), (False, 0.91, None),
     (True, None, None)],
)  # fmt: skip
def test_a_target_ends_the_run(record, maximize, best, expected):
    record.best_value = best
    assert Events(100, 10, target=0.9, maximize=maximize).ended(10, record) == expected


def test_patience_counts_evaluations_and_comes_before_the_end(record):
    events = Events(30, 10, patience=2)
    for number, expected in ((0, "completed"), (1, "completed"), (2, "early")):
        record.evaluations_since_best = number
        assert events.ended(30, record) == expected
    assert events.ended(10, record) == "early"
    assert Events(30, 10).ended(20, record) is None  # 0: any number of them


def test_a_callback_ends_the_run_at_its_step_or_before(record):
    events = Events(30, 10)
    record.end_step = 17
    assert [events.ended(step, record) for step in (16, 17, 18)] == [None, "callback", "callback"]
    assert events.ended(30, record) == "completed"


@pytest.mark.parametrize(("maximize", "better"), [(True, 0.6), (False, 0.4)])
def test_better(maximize, better):
    events = Events(10, 10, maximize=maximize)
    assert events.better(0.5, None)
    assert events.better(better, 0.5)
    assert not events.better(0.5, 0.5)
    assert not events.better(math.nan, 0.5)


def test_of_a_config():
    config = default_config()
    config.num_epochs = 7
    config.evaluate.every_epochs, config.evaluate.first_epoch = 2, 3
    config.evaluate.watch_mode, config.evaluate.stop_at = "min", 0.25
    config.checkpoint.every_steps, config.evaluate.early_stopping_patience = 15, 4
    config.model.name = "simple_cnn"
    inputs = Inputs(("a", "b"), (8, 8, 1), (0.5,), (0.25,))
    events = Events.of(Experiment.of(config, inputs, steps_per_epoch=10))
    assert events == Events(70, 20, 30, (15,), patience=4, target=0.25, maximize=False)
