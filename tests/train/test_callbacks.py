"""Callbacks see a run as its files have it, end it where they say, and are named when they are wrong."""

import json
import sys
import types

import numpy as np
import pytest
from runs import assert_same_run, small_config, stop_after

import inception_jax
from inception_jax import train
from inception_jax.errors import UserError
from inception_jax.runs.metrics_log import read_metrics
from inception_jax.train.callbacks import Callbacks
from inception_jax.train.listeners import UNNAMED, Listeners
from inception_jax.train.stopping import STEPS_IN_FLIGHT
from inception_jax.writers import Writer

SEEN = []


class Watching:
    def on_step(self, step, metrics):
        SEEN.append(("step", step, metrics["batch_loss"]))

    def on_evaluation(self, step, metrics):
        SEEN.append(("evaluation", step, metrics))

    def on_end(self, summary):
        SEEN.append(("end", summary["steps"], summary))


class AtStep10:
    def on_step(self, step, metrics):
        return "stop" if step == 10 else None


class AtEvaluation:
    def on_evaluation(self, step, metrics):
        return "stop"


class Watcher:
    def __init__(self, answer=None):
        self.answer = answer

    def on_step(self, step, metrics):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Points(Writer):
    def __init__(self, folder=None):
        self.points = {}

    def write_scalars(self, step, scalars):
        self.points.setdefault(step, {}).update(scalars)


@pytest.fixture
def config(digits):
    return small_config(digits)


def test_callbacks_see_every_step_and_evaluation_and_the_end(config, tmp_path):
    SEEN.clear()
    config.num_epochs = 1
    config.callbacks = (f"{__name__}:Watching",)
    result = train.train_and_evaluate(config, tmp_path)
    kinds, steps, seen = zip(*SEEN, strict=True)
    assert kinds == ("step",) * 21 + ("evaluation", "end")
    assert steps == (*range(1, 22), 21, 21)
    (row,) = read_metrics(tmp_path / "metrics.csv")
    assert seen[21] == {name: value for name, value in row.items() if name != "step"}
    assert seen[22] == result
    # Equal batches: the mean of their losses is that of the epoch.
    assert np.mean(seen[:21]) == pytest.approx(row["train_loss"], rel=1e-4)


def test_a_callback_ends_the_run_after_the_same_step_whatever_comes_between(config, tmp_path, monkeypatch):
    config.callbacks = (f"{__name__}:AtStep10",)
    result = train.train_and_evaluate(config, tmp_path / "whole")
    assert (result["steps"], result["stopped"]) == (10 + STEPS_IN_FLIGHT, "callback")
    assert result["stopped_by"] == f"{__name__}:AtStep10"
    assert result["test"]["count"] > 0
    stop_after(monkeypatch, 11)
    with pytest.raises(train.Interrupted):
        train.train_and_evaluate(config, tmp_path / "stopped")
    for callbacks in (config.callbacks, ()):  # what has been asked for is in the checkpoint
        config.callbacks = callbacks
        train.train_and_evaluate(config, tmp_path / "stopped")
        assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_callback_ends_the_run_at_an_evaluation(config, tmp_path):
    config.callbacks = (f"{__name__}:AtEvaluation",)
    result = train.train_and_evaluate(config, tmp_path)
    assert (result["steps"], result["stopped"]) == (21, "callback")
    assert train.describe_result(result)[0].startswith(
        f"{tmp_path.name}: ended by the callback {__name__}:AtEvaluation"
    )


def images_and_labels():
    generator = np.random.default_rng(0)
    return generator.integers(0, 256, (90, 8, 8, 1), np.uint8), generator.integers(0, 10, 90)


def test_objects_given_to_fit_are_used_and_noted_and_no_reader_needs_them(config, tmp_path, monkeypatch):
    config.num_epochs, config.log.every_steps = 1, 1

    class Local(Points):
        pass

    points, unnamed, watcher = Points(), Local(), Watcher()
    config.schedule.name = "constant"
    config.evaluate.watch = "validation_top1"
    data = images_and_labels()
    run = inception_jax.fit(config, data, data, workdir=tmp_path, writers=[points, Local, unnamed], callbacks=[watcher])
    assert points.points.keys() == {1} == unnamed.points.keys()
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["log"]["to"] == [f"{__name__}:Points", UNNAMED]
    assert kept["callbacks"] == [f"{__name__}:Watcher"]

    noted = []
    module = types.ModuleType("noted_by_a_folder")
    module.__getattr__ = noted.append
    monkeypatch.setitem(sys.modules, module.__name__, module)
    kept["log"]["to"] = kept["callbacks"] = [f"{module.__name__}:Any", "absent_module:Any"]
    (tmp_path / "config.json").write_text(json.dumps(kept))
    assert inception_jax.load(tmp_path).step == run.step
    # Nor does a run that goes on call what its folder names: what it is given now counts.
    again = inception_jax.fit(config, data, data, workdir=tmp_path)
    assert again.step == run.step
    assert noted == []


def test_fit_knows_its_arguments(config):
    with pytest.raises(UserError, match=r"unknown argument of fit 'callback'. Did you mean 'callbacks'"):
        inception_jax.fit(config, images_and_labels(), callback=[Watcher()])


class Failing:
    def __init__(self):
        raise ValueError("at\nfirst")


nothing = object()
WRONG = {
    "LowLoss": "callback 'LowLoss' is not allowed: it must be module:Name",
    UNNAMED: f"the config notes a callback that was {UNNAMED}: give it again",
    f"{__name__}:absent": "unknown callback in .* 'absent'",
    f"{__name__}:nothing": "callback .*:nothing: it has none of the methods on_step, on_evaluation, on_end",
    f"{__name__}:Failing": r"without arguments it raised ValueError: at first \(test_callbacks.py, line \d+\)",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_callback_is_named_in_one_line(name, config, tmp_path):
    config.callbacks = (name,)
    with pytest.raises(UserError, match=WRONG[name]) as error:
        Listeners.of(config).open(tmp_path)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            ValueError("bad\nvalue"),
            r"callback mine: on_step raised ValueError: bad value \(test_callbacks.py, line \d+\)",
        ),
        (True, "callback mine: on_step returned True; it must return 'stop' or None"),
        (np.zeros(3), "it must return 'stop' or None"),
    ],
)
def test_a_callback_that_raises_or_answers_otherwise_is_named_in_one_line(answer, said):
    with pytest.raises(UserError, match=said) as error:
        Callbacks([("mine", Watcher(answer))]).on_step(1, {"batch_loss": 1.0})
    assert len(str(error.value).splitlines()) == 1
