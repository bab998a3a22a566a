"""Losses, metrics, optimizers, schedules and augmentation from outside the package."""

import inspect
import json
import re
import sys
import types
from pathlib import Path

import flax.struct
import jax
import numpy as np
import optax
import pytest
from clu import metrics
from jax import numpy as jnp
from runs import assert_same_run, small_config, stop_after
from scipy.special import softmax

import inception_jax
from inception_jax import train
from inception_jax.config.files import override
from inception_jax.errors import UserError
from inception_jax.experiment import Experiment, Inputs
from inception_jax.runs.records import read_record
from inception_jax.runs.run import load_run
from inception_jax.steps import extensions, optimizers
from inception_jax.train.extensions import record
from inception_jax.trained import evaluate
from inception_jax.trained.report.sections import curves

PAGE = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
SECTIONS = ("Loss", "Metrics", "Optimizer", "Schedule", "Augmentation")


@pytest.fixture
def config(digits):
    """Two epochs of two updates, and a validation split that does not divide into batches."""
    config = small_config(digits)
    config.compute_dtype = "float64"
    config.data.splits.train, config.data.splits.validation = "train[:120]", "train[120:190]"
    config.evaluate.final_splits = ("validation",)
    config.schedule.name = "constant"
    return config


def example(section, monkeypatch):
    """Makes the section's module importable; returns the flags with which the page uses it."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(code.splitlines()) <= 18
    name = f"my_{section.lower()}"
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)
    exec(compile(code, name, "exec"), vars(module))
    lines = text.replace("\\\n", "").splitlines()
    (command,) = [line for line in lines if line.startswith("    inception-jax train") and name in line]
    return [flag for flag in command.split() if flag.startswith("--config.")]


def test_the_examples_of_the_page_resume_and_do_not_depend_on_devices(config, tmp_path, monkeypatch):
    """All of them in one run: each has its part of every step and of what is saved."""
    override(config, ["", *(flag for section in SECTIONS for flag in example(section, monkeypatch))])
    train.train_and_evaluate(config, tmp_path / "whole")
    with monkeypatch.context() as patched:
        stop_after(patched, 3)  # in the middle of an epoch, whose sums have to be kept
        with pytest.raises(train.Interrupted):
            train.train_and_evaluate(config, tmp_path / "stopped")
    train.train_and_evaluate(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    config.num_devices = 2
    train.train_and_evaluate(config, tmp_path / "two")
    one, two = (load_run(tmp_path / name, "latest").variables["params"] for name in ("whole", "two"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), one, two)


def arrays(seed, size):
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (size, 8, 8, 1), np.uint8), random.integers(0, 4, size)


@flax.struct.dataclass
class MeanLabel(metrics.Average):
    @classmethod
    def from_model_output(cls, *, labels, mask, **_):
        return super().from_model_output(labels.astype(float), mask)


def brier(logits, labels, **_):
    return ((jax.nn.softmax(logits) - jax.nn.one_hot(labels, logits.shape[-1])) ** 2).sum(axis=-1)


Brier = metrics.Collection.create(brier=metrics.Average.from_fun(brier))


def test_fit_takes_objects_and_records_their_names(config, tmp_path, caplog):
    config.compute_dtype = "float32"
    config.optimizer.b1 = 0.8
    config.evaluate.watch, config.evaluate.watch_mode = "validation_brier", "min"
    chosen = {
        "loss": optax.losses.softmax_cross_entropy,
        "metrics": [MeanLabel, Brier],
        "optimizer": lambda learning_rate, b1: optax.lion(learning_rate, b1),
        "schedule": optax.linear_schedule(0.01, 0.0, 100),
        "augment_before": lambda key, images: images[:, ::-1],
    }
    call = (config, arrays(0, 120), arrays(1, 70))
    run = inception_jax.fit(*call, workdir=tmp_path, **chosen)
    kept = json.loads((tmp_path / "config.json").read_text())
    assert kept["loss"]["name"] == "optax:softmax_cross_entropy"
    assert kept["metrics"] == [f"{__name__}:MeanLabel", "a class given to fit"]
    assert kept["optimizer"]["name"] == kept["schedule"]["name"] == "a function given to fit"
    assert kept["data"]["augment"]["before"] == ["a function given to fit"]

    images, labels = call[2]
    expected = ((softmax(run.logits(images).astype(float), axis=1) - np.eye(4)[labels]) ** 2).sum(axis=1).mean()
    assert run.summary["best"]["value"] == pytest.approx(expected, rel=1e-5)
    assert run.summary["validation"]["mean_label"] == pytest.approx(labels.mean(), rel=1e-6)
    assert "validation_brier" in run.history
    assert run.history["learning_rate"] == pytest.approx([0.0099, 0.0097])  # of the second and the fourth update
    assert {figure.caption for figure in curves(read_record(tmp_path)).blocks[0].pictures} >= {"brier", "mean_label"}

    # The same call again loads the run; a command cannot go on with it.
    assert inception_jax.fit(*call, workdir=tmp_path, **chosen).step == 4
    assert "is complete" in caplog.text
    assert run.evaluate("validation").own == {}
    assert "evaluated without its own metrics" in caplog.text
    with pytest.raises(UserError, match="is 'a function given to fit', which this command does not have"):
        experiment(record(config, chosen)[0])


def test_evaluation_computes_own_metrics_of_code_that_the_user_named(config, tmp_path, monkeypatch):
    flags = example("Metrics", monkeypatch)
    override(config, ["", *flags])
    summary = train.train_and_evaluate(config, tmp_path)
    loaded = load_run(tmp_path, "latest", own=config)
    dataset = evaluate.load_for(loaded, "validation", {"directory": config.data.directory})
    found = evaluate.metrics(evaluate.predictions(loaded, dataset, "validation"), own=loaded.own_metrics())
    assert found == pytest.approx(summary["validation"], rel=1e-5)
    assert set(found) == {"top1", "top5", "loss", "count", "confidence", "brier"}


def experiment(config, given=None):
    inputs = Inputs(tuple("abcd"), (8, 8, 1), (0.5,), (0.2,))
    made = Experiment.of(config, inputs, 10, given)
    state = jax.eval_shape(made.initial_state, jax.random.key(0))
    made.check(state)
    return made, state


def classes_only(logits, labels):
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels)


@flax.struct.dataclass
class Everything(metrics.Average):
    """Counts padding."""

    @classmethod
    def from_model_output(cls, *, loss, **_):
        return super().from_model_output(loss)


@flax.struct.dataclass
class PerClass(MeanLabel):
    def compute(self):
        return jnp.zeros(4)


@flax.struct.dataclass
class Nothing(MeanLabel):
    @classmethod
    def from_model_output(cls, **_):
        return None


@flax.struct.dataclass
class Raising(MeanLabel):
    @classmethod
    def from_model_output(cls, *, probabilities, **_):
        return super().from_model_output(probabilities)


def shrinks(state):
    return optax.GradientTransformation(
        lambda params: (), lambda updates, state, params: (jax.tree.map(jnp.sum, updates), ())
    )


def fails(*_, **__):
    raise KeyError("own mistake")


WRONG = {
    "loss is a mean": ({"loss": lambda logits, labels: jnp.mean(logits)}, {}, "it returns float32[]"),
    "loss is None": ({"loss": lambda logits, labels: None}, {}, "it returns None"),
    "loss of each class": ({"loss": optax.losses.sigmoid_binary_cross_entropy}, {}, "it returns float32[5, 4]"),
    "loss is whole": ({"loss": lambda logits, labels: logits.argmax(-1)}, {}, "it returns int32[5]"),
    "loss raises": ({"loss": fails}, {}, "raises KeyError: 'own mistake'"),
    "loss of classes": ({"loss": classes_only}, {"data.augment.mixup": 0.2}, "with class probabilities (b, k)"),
    "no function": ({"loss": 3}, {}, "is 3, which is not a function"),
    "no metric": ({"metrics": brier}, {}, "is not a clu.metrics.Collection or Metric class"),
    "metric twice": ({"metrics": [MeanLabel, MeanLabel]}, {}, "'mean_label', which there is already"),
    "metric of ours": ({"metrics": metrics.Collection.create(top1=MeanLabel)}, {}, "'top1', which there is already"),
    "metric not watched": ({"metrics": MeanLabel}, {"evaluate.watch": "validation_mean_lable"}, "Did you mean"),
    "metric counts padding": ({"metrics": Everything}, {}, "'everything' counts padding"),
    "metric of classes": ({"metrics": PerClass}, {}, "must be a single number"),
    "metric is None": ({"metrics": Nothing}, {}, "must return a Nothing"),
    "metric raises": ({"metrics": Raising}, {}, "'raising' raises TypeError"),
    "metric collects": (
        {"metrics": metrics.CollectingMetric.from_outputs(("loss",))}, {}, "must have sums of fixed shapes"
    ),
    "optimizer made": ({"optimizer": optax.adam(0.1)}, {}, "is not a function"),
    "optimizer is None": ({"optimizer": lambda learning_rate: None}, {}, "returns None: it must return an optax"),
    "optimizer raises": ({"optimizer": fails}, {}, "raises KeyError"),
    "optimizer's shapes": ({"optimizer": shrinks}, {"optimizer.state": 1}, "updates of other shapes"),
    "unknown argument": ({"optimizer": optax.lion}, {"optimizer.b3": 1.0}, "optimizer.b3: its arguments are b1, b2"),
    "a rate of its own": ({"optimizer": optax.lion}, {"optimizer.learning_rate": 1.0}, "optimizer.learning_rate"),
    "unknown name": ({}, {"optimizer.name": "optax.lyon"}, "unknown optimizer 'optax.lyon'. Did you mean 'optax.lion'"),
    "missing argument": ({"schedule": optax.exponential_decay}, {}, "needs schedule.init_value"),
    "unset argument": (
        {"schedule": optax.exponential_decay},
        {"schedule.init_value": 0.1, "schedule.transition_steps": 10},
        "needs schedule.decay_rate",
    ),
    "decoupled decay": (
        {"optimizer": optax.adam},
        {"optimizer.weight_decay": 0.1, "optimizer.weight_decay_mode": "decoupled"},
        "weight_decay_mode='decoupled' is not possible with optimizer 'optax:adam'",
    ),
    "needs the loss": ({"optimizer": optax.lbfgs}, {}, "'optax:lbfgs' raises TypeError"),
    "schedule is None": ({"schedule": lambda step: None}, {}, "returns None for a step"),
    "schedule of two": ({"schedule": lambda step: jnp.ones(2)}, {}, "returns float32[2] for a step"),
    "schedule raises": ({"schedule": fails}, {}, "raises KeyError"),
    "images' type": ({"augment_after": lambda key, x: x.astype("float16")}, {}, "returns float16[2, 8, 8, 1]"),
    "images' shape": ({"augment_before": lambda key, x: x[:, 1:]}, {}, "returns float32[2, 7, 8, 1]"),
    "images are None": ({"augment_before": [lambda key, x: None]}, {}, "returns None, but must return images"),
    "images raise": ({"augment_after": fails}, {}, ":fails' raises KeyError"),
}  # fmt: skip


@pytest.mark.parametrize(("given", "fields", "said"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_in_a_line(given, fields, said, config):
    config.compute_dtype = "float32"
    for name, value in fields.items():
        section, _, last = name.rpartition(".")
        part = config
        for each in section.split("."):
            part = part[each]
        part[last] = value
    with pytest.raises(UserError) as refused:
        experiment(*record(config, given))
    message = str(refused.value)
    assert said in message
    assert len(message.splitlines()) == 1
    for argument in given:
        assert argument.partition("_")[0].removesuffix("s") in message


# The loss, or a rate that is a number.
NEED_MORE = {"lbfgs", "rprop", "scale_by_rprop", "sm3", "optimistic_adam"}


@pytest.mark.filterwarnings("ignore:Specifying a key")  # of noisy_sgd
def test_every_optimizer_of_optax_is_used_as_it_is_there(config):
    config.compute_dtype = "float32"
    config.optimizer.momentum = 0.0
    names = [
        name
        for name, value in vars(optax).items()
        if name[0] != "_" and inspect.isfunction(value) and "learning_rate" in inspect.signature(value).parameters
    ]
    assert len(names) > 20
    refused = set()
    for name in names:
        config.optimizer.name = f"optax.{name}"
        try:
            experiment(config)
        except UserError as error:
            refused.add((name, str(error).partition(" raises ")[0]))
    assert refused == {(name, f"optimizer 'optax.{name}'") for name in NEED_MORE}


def test_an_optimizer_of_optax_computes_what_it_computes_there():
    params = {"fc": {"kernel": jnp.arange(6.0).reshape(2, 3) / 6, "bias": jnp.ones(3)}}
    gradients = jax.tree.map(lambda x: jnp.cos(7 * x), params)
    schedule = optax.linear_schedule(0.1, 0.0, 10)

    def updates(optimizer):
        state = optimizer.init(params)
        for _ in range(3):
            found, state = optimizer.update(gradients, state, params)
        return found

    def ours(name, own, **options):
        part = extensions.find("optimizer", f"optax.{name}")
        rule = extensions.make_rule(part, schedule, own, options, optimizers.kernels)
        options = options | {"weight_decay": 0.0} if rule.decays else options
        return optimizers.make_optimizer(part.name, schedule, own=rule[0], has_rate=rule.has_rate, **options)

    expected = optax.lion(schedule, b1=0.8, weight_decay=0.2, mask={"fc": {"kernel": True, "bias": False}})
    found = updates(ours("lion", {"b1": 0.8}, weight_decay=0.2))
    jax.tree.map(np.testing.assert_array_equal, found, updates(expected))
    # A rule without a rate has ours last, and decoupled decay before it.
    found = updates(ours("scale_by_adam", {"b1": 0.8}, weight_decay=0.2, weight_decay_mode="decoupled"))
    expected = optax.adamw(schedule, b1=0.8, weight_decay=0.2, mask={"fc": {"kernel": True, "bias": False}})
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), found, updates(expected))


def test_schedules_of_optax_and_warm_up(config):
    flags = {"name": "optax.cosine_decay_schedule", "init_value": 0.2, "decay_steps": 20, "warmup_epochs": 0.5}
    override(config, ["", *(f"--config.schedule.{name}={value}" for name, value in flags.items())])
    made, _ = experiment(config)  # ten updates an epoch
    there = optax.cosine_decay_schedule(0.2, 20)
    assert [float(made.schedule(step)) for step in (5, 9, 19)] == pytest.approx(
        [float(there(step)) for step in (5, 9, 19)]
    )
    assert float(made.schedule(0)) == pytest.approx(float(there(5)) / 5)


def test_losses_get_mixed_and_smoothed_labels(config):
    config.compute_dtype = "float32"
    config.loss.name, config.loss.label_smoothing = "optax.softmax_cross_entropy", 0.1
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((5, 4)), jnp.float32)
    labels = jnp.array([0, 1, 2, 3, 0])
    made, _ = experiment(config)
    ours = Experiment.of(small_config(Path()), made.inputs, 10).loss
    for targets in (labels, jax.nn.one_hot(labels, 4) / 2 + 1 / 8):
        found, expected = (loss(logits, targets, label_smoothing=0.1) for loss in (made.loss, ours))
        np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_new_fields_of_an_optimizer_are_arguments_of_those_from_outside(config):
    with pytest.raises(
        UserError, match=r"unknown field --config.optimizer.momentun: did you mean --config.optimizer.m"
    ):
        override(config, ["", "--config.optimizer.momentun=0.5"])
    del config.optimizer.momentun
    override(config, ["", "--config.optimizer.name=optax.lion", "--config.optimizer.b1=0.8"])
    assert config.optimizer.b1 == 0.8
    override(config, ["", "--config.optimizer.name=optax.adan"])
    assert "b1" not in config.optimizer
