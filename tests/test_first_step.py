"""What a run says while programs are compiled, before its first step."""

import logging

import pytest

from inception_jax import train
from inception_jax.config import default_config


@pytest.fixture
def config(digits):
    config = default_config()
    config.batch_size = 40  # thirty steps an epoch
    config.num_epochs = 1
    config.num_devices = 1
    config.model.name = "simple_cnn"
    config.model.stage_features = (4,)
    config.data.directory = str(digits)
    config.log.tensorboard = False
    return config


@pytest.mark.parametrize(("patience", "said"), [(0.0, True), (600.0, False)])
def test_a_program_that_is_not_soon_there_is_said_to_be_compiled(config, tmp_path, monkeypatch, caplog, patience, said):
    monkeypatch.setattr(train, "SECONDS_TO_READ", patience)
    with caplog.at_level(logging.INFO, "inception_jax"):
        train.train_and_evaluate(config, tmp_path / "run")
    assert ("compiling (about " in caplog.text) == said
    assert not said or caplog.text.index("compiling (about ") < caplog.text.index("first step: ")
