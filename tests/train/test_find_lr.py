"""The learning-rate range test: what it computes, what it suggests, and the command."""

import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from runs import small_config

import inception_jax
from inception_jax import commands
from inception_jax.config.files import find_config, load_config, override
from inception_jax.errors import UserError
from inception_jax.train.find_lr import FEWEST_STEPS, SMOOTHING, RateTest, find_learning_rate


@pytest.fixture(scope="module")
def config(digits):
    return small_config(digits)


@pytest.fixture(scope="module")
def found(config):
    return find_learning_rate(config, lowest=1e-4, highest=1e4, steps=60)


def test_the_rate_rises_until_the_loss_has(found):
    ratios = found.rates[1:] / found.rates[:-1]
    np.testing.assert_allclose(ratios, ratios[0])
    assert found.rates[0] == pytest.approx(1e-4)
    assert FEWEST_STEPS < len(found.losses) == len(found.rates) < 60
    assert found.smoothed.argmin() not in (0, len(found.losses) - 1)
    assert 1e-3 < found.suggestion < found.rates[found.smoothed.argmin()]


def test_the_steps_are_those_of_training_at_these_rates(config, found, tmp_path):
    constant = ConfigDict(config)
    constant.schedule.name, constant.num_epochs, constant.log.every_seconds = "constant", 1, 0.0
    constant.schedule.learning_rate = 1e-4
    losses = find_learning_rate(config, lowest=1e-4, highest=1.0000001e-4, steps=21).losses
    constant.evaluate.splits = constant.evaluate.final_splits = ()
    inception_jax.train_and_evaluate(constant, tmp_path / "run")
    row = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    trained = dict(zip(*(line.split(",") for line in row), strict=True))["train_loss"]
    assert np.mean(losses) == pytest.approx(float(trained), rel=1e-5)
    np.testing.assert_array_equal(losses[0], found.losses[0])  # the same weights, batch and augmentation


def test_smoothing_forgets_its_start():
    test = RateTest(np.geomspace(1e-3, 1, 30), np.full(30, 2.5))
    np.testing.assert_allclose(test.smoothed, 2.5)
    losses = np.arange(1.0, 6.0)
    weights = SMOOTHING ** np.arange(4, -1, -1)
    assert RateTest(losses, losses).smoothed[-1] == pytest.approx((weights * losses).sum() / weights.sum())


def test_the_suggestion_is_a_tenth_of_the_rate_with_the_lowest_loss():
    rates, losses = np.geomspace(1e-6, 10, 400), np.full(400, 2.3)
    losses[200:300] = np.linspace(2.3, 0.3, 100)
    losses[300:] = np.linspace(0.3, 9, 100)
    lag = 1  # steps by which the average is late, each 4 % of the rate
    assert RateTest(rates, losses).suggestion == pytest.approx(rates[300 + lag] / 10, rel=0.1)
    assert RateTest(rates, np.linspace(1, 9, 400)).suggestion == rates[0]  # it only rises


def test_arrays_a_repr_and_a_chart(config, tmp_path):
    random = np.random.default_rng(0)
    images, labels = random.integers(0, 256, (120, 8, 8, 1), np.uint8), random.integers(0, 10, 120)
    found = inception_jax.find_learning_rate(config, (images, labels), steps=12, highest=1e-3)
    assert len(found.losses) == 12  # two steps an epoch
    assert repr(found).startswith("RateTest(12 steps, rates 1e-06 to 0.001, suggestion ")
    found.save(tmp_path / "rates.svg")
    assert "learning rate" in (tmp_path / "rates.svg").read_text()
    assert found._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="must end in"):
        found.save(tmp_path / "rates.txt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 9}, "steps=9 is not allowed"),
        ({"lowest": 0.0}, "the rate must rise"),
        ({"lowest": 1.0, "highest": 0.1}, "the rate must rise"),
        ({"lowest": 1e30, "highest": 1e31}, "the loss became NaN or infinite at a learning rate of"),
    ],
)
def test_mistakes_are_named(config, options, message):
    with pytest.raises(UserError, match=message):
        find_learning_rate(config, **options)


def test_the_command(digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fields = [
        "--config.model.name=simple_cnn", "--config.model.stage_features=(4,)", f"--config.data.directory={digits}",
    ]  # fmt: skip
    command = ["find-lr", "googlenet_digits", "--steps=12", *fields]
    assert commands.main([*command, "--chart=rates.png"]) == 0
    assert capsys.readouterr().out.startswith("suggestion: ")
    assert [path.name for path in tmp_path.iterdir()] == ["rates.png"]
    assert commands.main([*command, "--json", "--highest=0.1"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert len(content["rates"]) == len(content["losses"]) == 12
    assert content["suggestion"] in content["rates"]
    assert commands.main([*command, "--chart=rates.txt"]) == 2


@pytest.mark.slow
def test_the_suggestion_trains_as_well_as_the_shipped_rate(digits, tmp_path):
    config = load_config(find_config("googlenet_digits"))
    fields = {"model.name": "simple_cnn", "model.stage_features": "(8, 16)", "model.norm": "batch", "num_epochs": "6"}
    fields |= {"data.directory": str(digits), "log.tensorboard": "False"}
    override(config, ["", *(f"--config.{name}={value}" for name, value in fields.items())])
    reached = []
    for rate in (config.schedule.learning_rate, find_learning_rate(config).suggestion):
        config.schedule.learning_rate = rate
        reached.append(inception_jax.train_and_evaluate(config, tmp_path / str(rate))["test"]["top1"])
    shipped, suggested = reached
    assert suggested > shipped - 0.005
