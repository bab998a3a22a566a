"""One network on 1, 2 and 8 devices: the same batches, the same counts, and parameters equal but for rounding."""

import contextlib
import csv
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest
from runs import stop_after

from inception_jax import train
from inception_jax.config import default_config
from inception_jax.models.googlenet import Inception, InceptionModule
from inception_jax.models.layers import ConvUnit
from inception_jax.runs import run


class ShortGoogLeNet(nn.Module):
    """A convolution and an Inception module with batch norm, which is residual."""

    num_classes: int
    dtype: object = None
    param_dtype: object = np.float32

    @nn.compact
    def __call__(self, images, *, train):
        common = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(ConvUnit, **common)
        x = conv(16, (3, 3), (2, 2), name="conv1")(images, train)
        row = Inception(4, 4, 4, 4, 4, 4)
        x = InceptionModule(row, residual="identity", conv=conv, name="inception_3a")(x, train)
        x = nn.Dropout(0.4, deterministic=not train)(x.mean(axis=(1, 2)))
        return nn.Dense(self.num_classes, name="fc", **common)(x)


@pytest.fixture
def config(digits):
    config = default_config()
    config.batch_size = 16
    config.num_epochs = 1
    config.model.name = f"{__name__}:ShortGoogLeNet"
    config.data.directory = str(digits)
    config.data.splits.train = "train[:90]"  # five steps, and ten examples left over
    config.data.splits.validation = "train[90:191]"  # 101, a prime
    config.data.augment.pad_and_crop = 1
    config.data.augment.rotation = 10.0
    config.schedule.learning_rate = 0.05
    config.evaluate.final_splits = ("validation",)
    config.log.tensorboard = False
    return config


def train_on_devices(config, folder, devices=(1, 8)):
    """By the number of devices: the summary, the row of metrics.csv, and the parameters in the end."""
    results = {}
    for number in devices:
        config.num_devices = number
        summary = train.train_and_evaluate(config, folder / str(number))
        with (folder / str(number) / "metrics.csv").open() as file:
            (row,) = csv.DictReader(file)
        results[number] = (
            summary,
            row,
            run.load_run(folder / str(number), "latest", trust_code=True).variables["params"],
        )
    return results


def assert_parameters_agree(results, tolerance):
    for number, (_, _, params) in results.items():
        for (path, expected), actual in zip(
            jax.tree_util.tree_leaves_with_path(results[1][2]), jax.tree.leaves(params), strict=True
        ):
            assert actual.dtype == np.float64
            np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=f"{number} devices, {path}")


@pytest.mark.parametrize("devices", [(1, 8), pytest.param((1, 2), marks=pytest.mark.slow)])
def test_parameters_agree_in_float64_after_five_steps(config, tmp_path, devices):
    config.compute_dtype = "float64"
    results = train_on_devices(config, tmp_path, devices)
    assert_parameters_agree(results, 1e-9)
    for summary, row, _ in results.values():
        assert summary["steps"] == 5
        assert summary["validation"]["count"] == 101
        assert summary["validation"]["top1"] == results[1][0]["validation"]["top1"]
        assert summary["validation"]["loss"] == pytest.approx(results[1][0]["validation"]["loss"], abs=1e-9)
        assert row["train_top1"] == results[1][1]["train_top1"]  # the same examples were in the batches


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(config, tmp_path, monkeypatch):
    config.compute_dtype = "float64"
    config.data.splits.train = "train[:64]"  # four steps
    config.num_devices = 1
    train.train_and_evaluate(config, tmp_path / "1")
    stop_after(monkeypatch, 1, 3)
    for devices, stopped in ((1, True), (8, True), (1, False)):
        config.num_devices = devices
        with pytest.raises(train.Interrupted) if stopped else contextlib.nullcontext():
            train.train_and_evaluate(config, tmp_path / "changing")
    params = {
        name: run.load_run(tmp_path / name, "latest", trust_code=True).variables["params"] for name in ("1", "changing")
    }
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-9), params["changing"], params["1"])


@pytest.mark.slow
def test_the_first_steps_loss_agrees_in_float32(config, tmp_path):
    config.data.splits.train = "train[:16]"
    results = train_on_devices(config, tmp_path)
    for _, row, _ in results.values():
        assert float(row["train_loss"]) == pytest.approx(float(results[1][1]["train_loss"]), rel=1e-5)


@pytest.mark.slow
def test_micro_batches_agree_in_float64(config, tmp_path):
    """Each micro-batch takes its rows from all devices; batch norm sees the same ones, and the same ones are mixed."""
    config.compute_dtype = "float64"
    config.batch_size = 32
    config.accumulation_steps = 2
    config.data.augment.randaugment_ops = 1
    config.data.augment.random_erasing = 0.5
    config.data.augment.mixup = 0.5
    config.data.augment.cutmix = 1.0
    assert_parameters_agree(train_on_devices(config, tmp_path), 1e-9)
