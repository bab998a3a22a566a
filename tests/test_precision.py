"""The type that a network computes in where the config leaves it open."""

import json

import jax
import numpy as np
import pytest

from inception_jax import experiment, ops, train
from inception_jax.config import default_config
from inception_jax.errors import UserError
from inception_jax.inspection.table import layer_table
from inception_jax.models import create_model
from inception_jax.runs import run
from inception_jax.runs.folder import prepare_folder
from inception_jax.train import precision


@pytest.fixture
def config(digits):
    config = default_config()
    config.batch_size = 60
    config.num_devices = 1
    config.num_epochs = 1
    config.model.name = "simple_cnn"
    config.model.stage_features = (4,)
    config.data.directory = str(digits)
    config.log.tensorboard = False
    return config


@pytest.fixture
def machine(monkeypatch):
    """Makes this machine one with a single device, whose processor has units for bfloat16, or not."""

    def pretend(fast_bfloat16: bool) -> None:
        monkeypatch.setattr(jax, "local_device_count", lambda: 1)
        monkeypatch.setattr(ops, "fast_bfloat16", lambda: fast_bfloat16)

    return pretend


def choice(config, folder, side):
    chosen, why = precision.choose_compute_dtype(config, folder, 10, (side, side, 3))
    return chosen.compute_dtype, why


@pytest.mark.parametrize(
    ("fast", "stem", "batch_size", "side", "expected"),
    [
        (True, "imagenet", 64, 64, "bfloat16"),
        (True, "imagenet", 64, 32, "float32"),  # convolutions of 4x4 pixels and less
        (True, "imagenet", 16, 224, "bfloat16"),
        (True, "small", 128, 32, "bfloat16"),  # as the images, so large are the maps
        (False, "imagenet", 16, 224, "float32"),
    ],
)
def test_a_new_run_takes_bfloat16_where_the_processor_and_the_maps_suit_it(
    machine, tmp_path, fast, stem, batch_size, side, expected
):
    machine(fast)
    config = default_config()
    config.batch_size, config.model.stem = batch_size, stem
    dtype, why = choice(config, tmp_path, side)
    assert dtype == expected
    assert why


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_what_the_config_says_stays(machine, tmp_path, dtype):
    machine(dtype != "bfloat16")
    config = default_config()
    config.compute_dtype = dtype
    assert choice(config, tmp_path, 224) == (dtype, "")


def test_micro_batches_are_what_counts(config):
    whole = precision.multiply_adds_of_convolutions(config, 10, (8, 8, 1))
    config.accumulation_steps = 4
    assert precision.multiply_adds_of_convolutions(config, 10, (8, 8, 1)) == whole / 4


@pytest.mark.parametrize("name", ["alexnet", "vgg11_bn"])
def test_the_convolutions_work_is_that_of_the_table_of_layers(name):
    config = default_config()
    config.batch_size, config.model.name = 2, name
    table = layer_table(create_model(name, num_classes=10), image_size=64)
    expected = 2 * np.mean([row.multiply_adds for row in table.rows if row.kind == "convolution"])
    assert precision.multiply_adds_of_convolutions(config, 10, (64, 64, 3)) == pytest.approx(expected)


def test_a_run_goes_on_and_is_loaded_in_the_type_that_it_began_in(config, machine, monkeypatch, tmp_path, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(precision, "LEAST_MULTIPLY_ADDS", 1)
    machine(True)
    result = train.train_and_evaluate(config, tmp_path)
    assert np.isfinite(result["test"]["loss"])
    assert json.loads((tmp_path / "config.json").read_text())["compute_dtype"] == "bfloat16"
    assert "bfloat16 (faster on this processor" in caplog.text

    machine(False)  # it goes on elsewhere
    train.train_and_evaluate(config, tmp_path)
    assert "bfloat16 (as at the start of the run)" in caplog.text
    loaded = run.load_run(tmp_path)
    assert loaded.model.dtype == jax.numpy.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.variables)} == {np.dtype("float32")}
    images = loaded.normalize(np.zeros((1, *loaded.inputs.image_shape), np.uint8))
    _, kept = loaded.model.apply(loaded.variables, images, train=False, capture_intermediates=True)
    assert kept["intermediates"]["conv1_1"]["__call__"][0].dtype == "bfloat16"


def test_a_run_of_before_stays_with_what_auto_was(config, machine, tmp_path):
    machine(True)
    (tmp_path / "config.json").write_text(config.to_json())
    assert choice(config, tmp_path, 224)[0] == "auto"
    assert experiment.dtypes("auto")[0] == jax.numpy.float32  # on a CPU
    config.compute_dtype = "float32"  # as recipes say now that left it open
    prepare_folder(tmp_path, config)
    config.compute_dtype = "bfloat16"
    with pytest.raises(UserError, match="compute_dtype was 'auto', now 'bfloat16'"):
        prepare_folder(tmp_path, config)
