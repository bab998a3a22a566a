"""What a run says and does while programs are compiled: before its first step, and beside the next ones."""

import logging

import jax
import pytest
from runs import assert_same_run, small_config

from inception_jax import train
from inception_jax.train import evaluator, start, training


@pytest.fixture
def config(digits):
    config = small_config(digits)  # 21 steps an epoch, of which 12 are behind when the next programs are compiled
    config.num_epochs = 1
    return config


@pytest.mark.parametrize(("patience", "said"), [(0.0, True), (600.0, False)])
def test_a_program_that_is_not_soon_there_is_said_to_be_compiled(config, tmp_path, monkeypatch, caplog, patience, said):
    monkeypatch.setattr(start, "SECONDS_TO_READ", patience)
    with caplog.at_level(logging.INFO, "inception_jax"):
        train.train_and_evaluate(config, tmp_path / "run")
    assert ("compiling (about " in caplog.text) == said
    assert not said or caplog.text.index("compiling (about ") < caplog.text.index("first step: ")


@pytest.mark.parametrize("devices", [1, 4])
def test_programs_compiled_beside_the_steps_evaluate_the_same(config, tmp_path, monkeypatch, devices):
    config.num_devices = devices
    used = []

    class Evaluator(evaluator.Evaluator):
        def __call__(self, variables, split):
            means = super().__call__(variables, split)
            used.append((type(self._inference_variables), type(self._eval_step)))
            return means

    with monkeypatch.context() as ahead:
        ahead.setattr(training, "Evaluator", Evaluator)
        train.train_and_evaluate(config, tmp_path / "ahead")
    assert set(used) == {(jax.stages.Compiled, jax.stages.Compiled)}
    monkeypatch.setattr(evaluator.Evaluator, "compile_ahead", lambda self, variables: None)
    train.train_and_evaluate(config, tmp_path / "afterwards")
    assert_same_run(tmp_path / "ahead", tmp_path / "afterwards")
