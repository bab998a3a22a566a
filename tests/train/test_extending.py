"""More epochs for a run that was started with fewer."""

import json

import numpy as np
import pytest
from runs import assert_same_run, small_config

from inception_jax import train
from inception_jax.errors import UserError


@pytest.fixture
def config(digits):
    return small_config(digits)


@pytest.mark.parametrize("schedule", ["plateau", "step", "inverse_time"])
def test_an_extended_run_is_the_one_that_was_longer_from_the_start(schedule, config, tmp_path, caplog):
    caplog.set_level("INFO")
    config.schedule.name = schedule
    config.schedule.every_epochs, config.schedule.decay_rate = 0.7, 0.1
    for place, epochs in (("whole", 3), ("extended", 1), ("extended", 3)):
        config.num_epochs = epochs
        train.train_and_evaluate(config, tmp_path / place)
    assert_same_run(tmp_path / "extended", tmp_path / "whole")
    assert json.loads((tmp_path / "extended" / "config.json").read_text())["num_epochs"] == 3
    (said,) = [message for message in caplog.messages if "extended" in message and "epochs;" in message]
    rate = {"step": "with a rate of 0.005", "inverse_time": "with a rate of 0.01613"}
    how = rate.get(schedule, "with the rate that it has reached")
    assert said.endswith(f"from 1 to 3 epochs; the schedule {schedule} continues {how}")


def test_a_schedule_that_has_ended_is_not_extended(config, tmp_path):
    config.schedule.name, config.num_epochs = "cosine", 1
    train.train_and_evaluate(config, tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    config.num_epochs = 2
    with pytest.raises(
        UserError, match="cannot be extended from 1 to 2 epochs: its cosine schedule was computed for 1"
    ):
        train.train_and_evaluate(config, tmp_path)
    config.num_epochs, config.schedule.name = 2, "step"  # not the schedule that it began with
    with pytest.raises(UserError, match=r"num_epochs was 1, now 2; schedule.name was 'cosine', now 'step'"):
        train.train_and_evaluate(config, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before


def test_fewer_epochs_are_another_run(config, tmp_path):
    config.schedule.name, config.num_epochs = "constant", 2
    train.train_and_evaluate(config, tmp_path)
    config.num_epochs = 1
    with pytest.raises(UserError, match="another config: num_epochs was 2, now 1"):
        train.train_and_evaluate(config, tmp_path)


def test_a_run_is_not_extended_with_other_data(digits, tmp_path):
    images, labels = np.zeros((60, 8, 8, 1), np.uint8), np.arange(60) % 10
    config = small_config(digits)
    config.schedule.name, config.num_epochs = "constant", 1
    train.fit(config, (images, labels), workdir=tmp_path)
    before = (tmp_path / "config.json").read_bytes()
    config.num_epochs = 2
    with pytest.raises(UserError, match="has a run on different arrays"):
        train.fit(config, (images, labels[::-1]), workdir=tmp_path)
    assert (tmp_path / "config.json").read_bytes() == before
