"""Whole runs of small networks: what a user starts, stops, resumes and looks into."""

import dataclasses
import gzip
import importlib
import json
import re
import shutil
import signal
import sys
import warnings
from functools import partial

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax import numpy as jnp
from loading import load_data
from runs import Killed, assert_same_run, killed_at, rows, small_config, stop_after, summary

import inception_jax
from inception_jax import data, main, steps, train
from inception_jax.data import augment
from inception_jax.data.augment import mixing
from inception_jax.distributed import multihost
from inception_jax.errors import UserError
from inception_jax.experiment import Experiment, Inputs
from inception_jax.process import log_to_stderr
from inception_jax.runs import checkpoints, run
from inception_jax.runs import folder as run_folder
from inception_jax.steps import state
from inception_jax.train import evaluator, profiling, record, stopping
from inception_jax.trained.report import write_report


@pytest.fixture
def config(digits):
    return small_config(digits)


@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    """A finished run with it, to compare with."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train.train_and_evaluate(small_config(digits), folder)
    return folder


@pytest.fixture
def finished(whole, tmp_path):
    """A copy of it."""
    return shutil.copytree(whole, tmp_path / "finished")


def test_a_resumed_run_equals_an_uninterrupted_one(config, tmp_path, monkeypatch):
    config.data.augment.random_erasing = 0.25
    config.data.augment.mixup = 0.2
    config.data.augment.cutmix = 1.0
    train.train_and_evaluate(config, tmp_path / "whole")
    assert [row["step"] for row in rows(tmp_path / "whole")] == ["21", "42"]
    assert float(rows(tmp_path / "whole")[1]["learning_rate"]) == pytest.approx(0.05)  # reduced after this epoch

    # In the middle of an epoch, at its end before the evaluation, and just behind it.
    stop_after(monkeypatch, 10, 21, 22)
    for _ in range(3):
        with pytest.raises(train.Interrupted, match="the same command continues"):
            train.train_and_evaluate(config, tmp_path / "stopped")
    result = train.train_and_evaluate(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    timed = (result["steps"] - 4) * config.batch_size  # all but each session's first step
    assert result["images_per_second"] == pytest.approx(timed / result["training_seconds"])

    # A finished run that is started again changes nothing.
    train.train_and_evaluate(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_run_killed_between_checkpoints_repeats_what_was_lost(config, whole, tmp_path, monkeypatch):
    """And a step that is due and evaluated as well is saved once."""
    saved = []

    class Checkpoints(checkpoints.Checkpoints):
        def save(self, step, *arguments):
            saved.append(step)
            super().save(step, *arguments)

    monkeypatch.setattr(run_folder, "Checkpoints", Checkpoints)
    config.checkpoint.every_steps = 7  # 21 steps are an epoch
    with pytest.raises(Killed):
        train.train_and_evaluate(config, tmp_path, console=killed_at(33))
    assert run.load_run(tmp_path, "latest").step == 28
    assert saved == [7, 14, 21, 28]
    train.train_and_evaluate(config, tmp_path)
    assert saved == [7, 14, 21, 28, 35, 42]
    assert_same_run(tmp_path, whole)


def test_a_step_on_mixed_examples():
    """Labels as certain probabilities change nothing, accumulated or not; mixing is what it is outside the step."""

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, images, *, train):
            return nn.Dense(10)(images.reshape(len(images), -1))

    model, optimizer, rng = Linear(), optax.sgd(0.1), np.random.default_rng(0)
    fresh = state.create_state(jax.random.key(0), model, optimizer, (8, 8, 1))
    images, labels = rng.random((8, 8, 8, 1), np.float32), rng.integers(0, 10, 8, np.int32)

    def step(images, mix, accumulation_steps=1):
        train_step = partial(
            steps.train_step,
            model=model,
            optimizer=optimizer,
            prepare=lambda key, images: images,
            mix=mix,
            label_smoothing=0.1,
            accumulation_steps=accumulation_steps,
        )
        new, loss = jax.jit(train_step)(fresh, images, labels, jax.random.key(3))
        return loss, new.metrics, new.params

    def mix(key, images, labels):
        return mixing.mix_pairs(images, jax.nn.one_hot(labels, 10), jnp.full((8, 8), 0.75), jnp.array(0.75))

    def assert_equal(ours, expected):
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), ours, expected)

    assert_equal(step(images, partial(augment.mix, num_classes=10), 2), step(images, None, 2))
    mixed = 0.75 * images + 0.25 * np.roll(images, 1, axis=0)
    classes = np.eye(10, dtype=np.float32)
    targets = 0.75 * classes[labels] + 0.25 * classes[np.roll(labels, 1)]
    assert_equal(step(images, mix), step(mixed, lambda key, images, labels: (images, jnp.asarray(targets))))


def test_the_summary_counts_every_example_of_the_split_once(config, tmp_path):
    config.num_epochs = 1
    config.data.splits.train = "train[:200]"
    config.data.splits.validation = "train[200:301]"
    config.evaluate.batch_size = 48
    result = train.train_and_evaluate(config, tmp_path)
    loaded = run.load_run(tmp_path)
    dataset = load_data(
        "digits", directory=config.data.directory, splits={"validation": "train[200:301]", "test": "test"}
    )
    for split, expected in dataset.splits.items():
        images, labels = expected.gather(np.arange(len(expected)))
        correct = loaded.predict(images).argmax(axis=1) == labels
        assert result[split]["count"] == len(labels)
        assert result[split]["top1"] == pytest.approx(correct.mean(), abs=1e-9)


def test_accumulated_gradients_are_the_batchs(config):
    """Without batch norm, dropout and augmentation, micro-batches change nothing but the rounding."""
    config.model.norm = "none"
    config.model.dropout_rate = 0.0
    config.data.augment.pad_and_crop = 0
    generator, key, results = np.random.default_rng(0), jax.random.key(0), []
    images = generator.integers(0, 256, (60, 8, 8, 1), np.uint8)
    labels = generator.integers(0, 10, 60, np.int32)
    for config.accumulation_steps in (1, 3):
        inputs = Inputs(tuple("0123456789"), (8, 8, 1), config.data.mean, config.data.std)
        experiment = Experiment.of(config, inputs, steps_per_epoch=21)
        results.append(jax.jit(experiment.train_step)(jax.jit(experiment.initial_state)(key), images, labels, key))
    (whole, whole_loss), (parts, parts_loss) = results
    assert float(parts_loss) == pytest.approx(float(whole_loss), rel=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), parts.params, whole.params)


def test_another_config_in_the_same_folder_is_refused_with_the_difference(config, finished):
    config.log.progress = "lines"  # how it is shown may differ
    config.profile = True
    train.train_and_evaluate(config, finished)
    config.schedule.learning_rate = 0.2
    with pytest.raises(UserError, match=r"another config: schedule.learning_rate was 0.05, now 0.2"):
        train.train_and_evaluate(config, finished)


def test_a_record_of_another_version_is_refused():
    kept = dataclasses.asdict(record.TrainingRecord({"mean": [0.5]}, 21, evaluated_step=42))
    assert record.TrainingRecord.from_json(kept) == record.TrainingRecord({"mean": [0.5]}, 21, evaluated_step=42)
    with pytest.raises(UserError, match=r"written by another version of inception_jax: it has energy\. Install"):
        record.TrainingRecord.from_json(kept | {"energy": 1.5})


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(config, tmp_path):
    config.num_epochs = 1
    config.schedule.name = "step"
    config.schedule.boundaries = (0.6,)
    config.schedule.factor = 1e30
    config.checkpoint.every_steps = 5
    with pytest.raises(
        train.NonFiniteLoss, match=r"the loss of step 1\d is (nan|inf); the checkpoint of step 10 is kept"
    ):
        train.train_and_evaluate(config, tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(run.load_run(tmp_path).variables))


def test_a_run_goes_back_from_a_loss_that_is_not_finite(config, tmp_path, monkeypatch, caplog):
    """The rate explodes in step 13; from the checkpoint of step 10 on it is cut down, also where the run is stopped."""
    config.num_epochs = 1
    config.schedule.name = "step"
    config.schedule.boundaries = (0.6,)
    config.schedule.factor = 1e30
    config.checkpoint.every_steps = 5
    config.nonfinite.retries = 2
    message = r"is (nan|inf); the checkpoint of step 10 .* has already returned to a checkpoint 2 time\(s\)"
    with pytest.raises(train.NonFiniteLoss, match=message):
        train.train_and_evaluate(config, tmp_path / "in_vain")

    config.nonfinite.factor = 1e-32
    caplog.clear()
    with caplog.at_level("WARNING"):
        train.train_and_evaluate(config, tmp_path / "whole")
    (message,) = [record.getMessage() for record in caplog.records]
    assert "Returning to step 10 with 1e-32 times the learning rate (1 of 2)" in message
    assert [row["step"] for row in rows(tmp_path / "whole")] == ["21"]
    assert float(rows(tmp_path / "whole")[0]["learning_rate"]) == pytest.approx(0.05 * 1e30 * 1e-32)

    stop_after(monkeypatch, 8, 18)
    for _ in range(2):
        with pytest.raises(train.Interrupted):
            train.train_and_evaluate(config, tmp_path / "stopped")
    train.train_and_evaluate(config, tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")


def test_a_run_goes_back_to_its_very_beginning(config, tmp_path):
    config.num_epochs = 1
    config.schedule.name = "constant"
    config.schedule.learning_rate = 1e30
    config.nonfinite.retries = 1
    config.nonfinite.factor = 1e-32
    assert train.train_and_evaluate(config, tmp_path)["steps"] == 21


def test_weights_that_are_not_finite_are_not_saved(config, tmp_path):
    """The update of a finite loss can be too large for the weights: nobody could go on from there."""
    config.num_epochs = 1
    config.schedule.name = "constant"
    config.schedule.learning_rate = 3e38
    config.data.normalization = "none"  # pixels up to 255, and gradients far above 1
    config.model.norm = "none"
    config.checkpoint.every_steps = 1
    with pytest.raises(
        train.NonFiniteLoss, match="the weights after step 1 are NaN or infinite; no checkpoint was saved"
    ):
        train.train_and_evaluate(config, tmp_path)


def test_a_request_to_stop_ends_an_evaluation(config, whole, tmp_path, monkeypatch):
    """Also the last one, and the run ends as if nothing had been."""
    calls = []
    eval_batches = evaluator.eval_batches

    def stop_at_third_call(*arguments):
        calls.append(arguments)
        if len(calls) in (2, 5):  # the second epoch's, and one at the end
            signal.raise_signal(signal.SIGTERM)
        return eval_batches(*arguments)

    monkeypatch.setattr(evaluator, "eval_batches", stop_at_third_call)
    for message in ("stopped after step 42 of 42 and saved", "stopped after the last step, which is saved"):
        with pytest.raises(train.Interrupted, match=message) as stopped:
            train.train_and_evaluate(config, tmp_path / "stopped")
        assert stopped.value.signal == signal.SIGTERM
    train.train_and_evaluate(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", whole)


def test_a_run_ends_at_its_target_and_tells_the_time_until_then(config, tmp_path):
    config.num_epochs = 6
    config.schedule.name = "constant"
    config.schedule.learning_rate = 0.3
    config.evaluate.splits = ("test",)
    config.evaluate.watch = "test_top1"
    config.evaluate.first_epoch = 2
    config.evaluate.every_epochs = 1
    config.evaluate.stop_at = 0.28
    result = train.train_and_evaluate(config, tmp_path / "max")
    evaluated = [float(row["test_top1"]) for row in rows(tmp_path / "max")]
    assert all(value < 0.28 for value in evaluated[:-1])
    assert evaluated[-1] >= 0.28
    assert (result["stopped"], result["epochs"]) == ("target", len(evaluated) + 1)
    assert 0 < result["training_seconds"] < result["seconds"]
    assert 0 <= result["evaluation_seconds"] < result["seconds"] - result["training_seconds"]
    timed = (result["steps"] - 1) * config.batch_size  # all but the first step
    assert result["images_per_second"] == pytest.approx(timed / result["training_seconds"])
    assert "Stopped on test data" in write_report(tmp_path / "max").read_text()
    # A run that has reached it stays ended.
    assert train.train_and_evaluate(config, tmp_path / "max")["stopped"] == "target"


def traced_steps(folder):
    """The steps that the only trace in a run's folder marks, by what TensorBoard reads and by what Perfetto reads."""
    (profile,) = (folder / "profile" / "plugins" / "profile").glob("*/*.xplane.pb")
    (perfetto,) = profile.parent.glob("perfetto_trace.json.gz")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nanobind's types have no module, says Python 3.12
        events = [
            event
            for plane in jax.profiler.ProfileData.from_file(str(profile)).planes
            for line in plane.lines
            for event in line.events
            if event.name == "train"
        ]
        marked = [dict(event.stats)["step_num"] for event in events]
    shown = json.loads(gzip.decompress(perfetto.read_bytes()))["traceEvents"]
    return marked, [int(event["args"]["step_num"]) for event in shown if event.get("name") == "train"]


def test_a_profile_marks_its_steps_and_changes_nothing(config, whole, tmp_path, caplog):
    config.profile = True
    with caplog.at_level("INFO", "inception_jax"):
        train.train_and_evaluate(config, tmp_path / "profiled")
    expected = list(range(profiling.FIRST_STEP, profiling.LAST_STEP + 1))
    assert traced_steps(tmp_path / "profiled") == (expected, expected)
    assert f"profile: steps 6 to 10 in {tmp_path / 'profiled' / 'profile'}" in caplog.text
    assert_same_run(tmp_path / "profiled", whole)
    assert not (whole / "profile").exists()


@pytest.mark.parametrize("end", ["completed", "stopped", "failed", "too early"])
def test_a_profile_is_whole_however_the_run_ends(config, tmp_path, monkeypatch, caplog, request, end):
    config.profile = True
    config.num_epochs = 1
    if end == "completed":
        config.data.splits.train = "train[:480]"  # eight steps
        train.train_and_evaluate(config, tmp_path)
    elif end == "too early":
        config.data.splits.train = "train[:180]"
        train.train_and_evaluate(config, tmp_path)
        assert "profile: nothing was traced" in caplog.text
        assert not (tmp_path / "profile").exists()
        return
    else:
        stop_after(monkeypatch, 8)
        if end == "failed":
            before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
            request.addfinalizer(partial(signal.signal, signal.SIGINT, before))
            monkeypatch.setattr(stopping.signal, "signal", lambda number, handler: None)
        with pytest.raises(KeyboardInterrupt if end == "failed" else train.Interrupted):
            train.train_and_evaluate(config, tmp_path)
    assert traced_steps(tmp_path) == ([6, 7, 8], [6, 7, 8])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "batch_size",
            62,
            r"batch_size / accumulation_steps=62 is not divisible by 8, the number of devices: choose 56 or 64",
        ),
        ("num_devices", 9, r"num_devices=9 is not allowed: there are 8 devices: CPU"),
        ("batch_size", 4000, r"batch_size=4000 is not allowed: the training split has 1298 examples"),
    ],
)
def test_what_does_not_fit_the_machine_or_the_data_is_said_before_anything_is_written(
    config, tmp_path, field, value, message
):
    config.batch_size = 64
    config.num_devices = 8
    config[field] = value
    with pytest.raises(UserError, match=message):
        train.train_and_evaluate(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_written_is_named(config, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the run's folder"):
        train.train_and_evaluate(config, tmp_path / "file" / "run")


OWN_NETWORK = """
import numpy as np
from flax import linen as nn

def my_data():
    labels = np.arange(80) % 2
    images = np.where(labels[:, None, None, None], np.full((6, 6, 3), 200, np.uint8), np.uint8(50))
    return {"train": (images, labels), "test": (images, labels), "class_names": ("dark", "light")}

class MyNet(nn.Module):
    num_classes: int
    width: int = 8

    @nn.compact
    def __call__(self, images, *, train):
        x = nn.relu(nn.Conv(self.width, (3, 3), strides=2, name="conv")(images))
        return nn.Dense(self.num_classes, name="fc")(x.mean(axis=(1, 2)))
"""
OWN_CONFIG = """
from inception_jax.config import default_config

def get_config():
    config = default_config()
    config.model.name = "my_module:MyNet"
    config.num_epochs = 1
    config.batch_size = 64
    config.optimizer.name = "adam"
    config.schedule.learning_rate = 0.01
    config.log.tensorboard = False
    return config
"""


def test_a_network_outside_the_package_trains_resumes_and_can_be_looked_into(tmp_path, monkeypatch, digits):
    (tmp_path / "my_module.py").write_text(OWN_NETWORK)
    (tmp_path / "experiment.py").write_text(OWN_CONFIG)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    command = ["--config=experiment.py", f"--config.data.directory={digits}", "--config.model.width=6"]
    with monkeypatch.context() as patched:
        stop_after(patched, 7)
        assert main.main(command) == 130
    assert main.main(command) == 0
    loaded = inception_jax.load(tmp_path / "runs" / "experiment", trust_code=True)
    assert loaded.variables["params"]["conv"]["kernel"].shape == (3, 3, 1, 6)
    images = np.zeros((2, *loaded.inputs.image_shape), np.uint8)
    _, state = loaded.model.apply(loaded.variables, loaded.normalize(images), train=False, capture_intermediates=True)
    assert state["intermediates"]["conv"]["__call__"][0].shape == (2, 4, 4, 6)
    np.testing.assert_allclose(loaded.predict(images).sum(axis=1), 1, rtol=1e-5)


def test_a_data_set_outside_the_package_is_trained_on(tmp_path, monkeypatch):
    (tmp_path / "my_module_with_data.py").write_text(OWN_NETWORK)
    (tmp_path / "experiment.py").write_text(OWN_CONFIG.replace("my_module", "my_module_with_data"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    command = ["--config=experiment.py", "--config.data.name=my_module_with_data:my_data", "--config.batch_size=8"]
    assert main.main(command) == 0
    loaded = inception_jax.load(tmp_path / "runs" / "experiment", trust_code=True)
    assert loaded.inputs.class_names == ("dark", "light")
    assert summary(loaded.folder)["test"]["count"] == 80


def test_a_run_does_not_go_on_with_another_version_of_its_data_set(config, finished, monkeypatch):
    loading = importlib.import_module("inception_jax.data.load")  # `data.load` is the function
    published = data.published
    monkeypatch.setattr(loading, "published", lambda *a: dataclasses.replace(published(*a), version="9.0.0"))
    with pytest.raises(UserError, match=r"run on version 1\.0\.0 of digits, but the version is now 9\.0\.0"):
        train.train_and_evaluate(config, finished)


def test_fit_trains_on_arrays_in_hand(config, tmp_path):
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 300)
    images = (generator.integers(0, 80, (300, 8, 8, 1)) + 170 * labels[:, None, None, None]).astype(np.uint8)
    config.num_epochs = 6
    config.schedule.name = "cosine"
    config.average_decay = 0.0
    fitted = inception_jax.fit(
        config,
        train=(images[:240], labels[:240]),
        validation=(images[240:], labels[240:]),
        class_names=("dark", "light"),
        workdir=tmp_path / "run",
    )
    assert fitted.inputs.class_names == ("dark", "light")
    assert (fitted.predict(images[240:]).argmax(axis=1) == labels[240:]).mean() > 0.95
    with pytest.raises(UserError, match=r"has a run on different arrays: .* train images of 8x8x1 \(240 "):
        inception_jax.fit(config, (images[:230], labels[:230]), (images[240:], labels[240:]), workdir=tmp_path / "run")
    without_validation = inception_jax.fit(config, (images, labels), workdir=tmp_path / "no_validation")
    assert without_validation.step == 30


@pytest.fixture
def halves():
    """Images whose left or right half is brighter: what they are is in each of them, and 60 are enough."""
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 2
    images = generator.integers(0, 100, (60, 8, 8, 1))
    images[labels == 0, :, :4] += 120
    images[labels == 1, :, 4:] += 120
    return images.astype(np.uint8), labels


@pytest.fixture
def small(config, monkeypatch, tmp_path):
    """A config for them, in a folder without runs."""
    monkeypatch.chdir(tmp_path)
    config.batch_size = 10
    config.num_epochs = 8
    config.average_decay = 0.0
    config.schedule.name = "constant"
    config.data.augment.pad_and_crop = 0
    config.data.mean, config.data.std = (0.5,), (0.25,)  # statistics that differ would give the data away
    return config


def test_cross_validation_in_a_loop_gives_each_fold_its_own_network(small, halves, tmp_path):
    images, labels = halves
    labels = labels.copy()
    labels[np.arange(60) % 3 == 2] ^= 1  # a third of the labels is wrong: a network cannot know which of another fold
    folds, accuracies, folders, kernels = np.arange(60) % 5, [], [], []
    for fold in range(3):
        part = folds != fold
        fitted = inception_jax.fit(small, train=(images[part], labels[part]))
        accuracies.append((fitted.predict(images[~part]).argmax(axis=1) == labels[~part]).mean())
        folders.append(fitted.folder)
        kernels.append(jax.tree.leaves(fitted.variables["params"])[0])
    assert [str(folder) for folder in folders] == ["runs/fit-1", "runs/fit-2", "runs/fit-3"]
    assert max(accuracies) < 0.9  # and 2/3 is what can be had
    assert not any((kernel == kernels[0]).all() for kernel in kernels[1:])


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_goes_on_with_its_arrays_alone(finished, small, halves, monkeypatch, caplog):
    images, labels = halves
    given = {"train": (images[:40], labels[:40]), "validation": (images[40:], labels[40:]), "test": (images, labels)}
    others = {
        "train images": given | {"train": (255 - images[:40], labels[:40])},
        "train labels": given | {"train": (images[:40], 1 - labels[:40])},
        "train images of 8x8x1 (40 before, 39 now)": given | {"train": (images[:39], labels[:39])},
        "class names": given | {"class_names": ("left", "right")},
        "test images of 8x8x1 (60 before, 59 now)": given | {"test": (images[:59], labels[:59])},
    }
    small.num_epochs = 1
    if not finished:
        stop_after(monkeypatch, 2)
        with pytest.raises(train.Interrupted):
            inception_jax.fit(small, **given, workdir="run")
    else:
        inception_jax.fit(small, **given, workdir="run")
    for what, other in others.items():
        with pytest.raises(UserError, match=rf"^run has a run on different arrays: .*{re.escape(what)}"):
            inception_jax.fit(small, **other, workdir="run")
    assert "is complete" not in caplog.text
    inception_jax.fit(small, **given, workdir="run")
    assert ("run is complete: its network is loaded without training" in caplog.messages) == finished


def test_a_run_that_does_not_know_its_arrays_goes_on_with_a_word(small, halves, monkeypatch, caplog):
    """As runs of before do."""
    small.num_epochs = 1
    from_arrays = data.from_arrays
    with monkeypatch.context() as patch:
        patch.setattr(data, "from_arrays", lambda **k: dataclasses.replace(from_arrays(**k), fingerprint=None))
        inception_jax.fit(small, halves, workdir="run")
    inception_jax.fit(small, halves, workdir="run")
    assert any("did not record the data of this run" in message for message in caplog.messages)


def test_arrays_of_a_module_are_known_again(small, halves, tmp_path, monkeypatch, caplog):
    images, labels = halves
    np.savez(tmp_path / "mine.npz", images=images, labels=labels)
    (tmp_path / "my_arrays.py").write_text(
        "import numpy as np\ndef my_data():\n    kept = np.load('mine.npz')\n"
        "    return {'train': (kept['images'], kept['labels'])}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    small.data.name, small.num_epochs, small.evaluate.splits = "my_arrays:my_data", 1, ("validation",)
    small.evaluate.final_splits = ("validation",)
    train.train_and_evaluate(small, tmp_path / "run")
    train.train_and_evaluate(small, tmp_path / "run")
    assert "is loaded without training" in caplog.text
    np.savez(tmp_path / "mine.npz", images=images, labels=np.where(np.arange(60) == 3, 1 - labels, labels))
    with pytest.raises(UserError, match=r"on different arrays: these differ: train labels \(54 before, 54"):
        train.train_and_evaluate(small, tmp_path / "run")


def test_folders_of_fit_are_its_own(small, halves, tmp_path, monkeypatch):
    (tmp_path / "runs" / "fit-1").mkdir(parents=True)
    (tmp_path / "runs" / "fit-2").touch()
    small.num_epochs = 1
    assert str(inception_jax.fit(small, halves).folder) == "runs/fit-3"
    small.batch_size = 1000
    with pytest.raises(UserError, match="batch_size=1000"):
        inception_jax.fit(small, halves)
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["fit-1", "fit-2", "fit-3"]
    monkeypatch.setattr(multihost, "count", lambda: 2)
    with pytest.raises(UserError, match="workdir=FOLDER"):
        inception_jax.fit(small, halves)


def test_the_log_has_everything_with_the_time_and_a_resumed_run_goes_on_in_it(config, tmp_path):
    config.schedule.name, config.num_epochs = "constant", 1
    with log_to_stderr():
        train.train_and_evaluate(config, tmp_path / "run")
        config.num_epochs = 2
        train.train_and_evaluate(config, tmp_path / "run")
    lines = (tmp_path / "run" / "log.txt").read_text().splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S", line) for line in lines)
    said = [line[20:] for line in lines]
    starts = [number for number, line in enumerate(said) if line.startswith("device: ")]
    assert len(starts) == 2
    assert [line.partition(" done")[0] for line in said if " done  train loss " in line] == ["epoch 1/1", "epoch 2/2"]
    assert sum(line.startswith("last: step ") for line in said) == 2


def test_a_log_that_cannot_be_written_does_not_stop_the_run(config, tmp_path):
    config.num_epochs = 1
    (tmp_path / "run" / "log.txt").mkdir(parents=True)
    assert train.train_and_evaluate(config, tmp_path / "run")["epochs"] == 1
