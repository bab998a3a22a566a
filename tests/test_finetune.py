"""Runs that start from weights: another run's, a file's, published ones; frozen trunks; other classes."""

import contextlib
import json
import logging
from functools import partial

import jax
import numpy as np
import pytest
import safetensors.numpy
from networks import random_variables, shapes
from PIL import Image
from runs import assert_same_run, final_state, stop_after, untrained_run

import inception_jax
from inception_jax import main, weights
from inception_jax.config import default_config
from inception_jax.config.files import find_config, load_config
from inception_jax.errors import UserError
from inception_jax.experiment import Experiment, Inputs, build_model
from inception_jax.runs import run
from inception_jax.runs.folder import open_checkpoints
from inception_jax.train import initial as initial_weights
from inception_jax.train import training
from inception_jax.train.precision import equations
from inception_jax.train.stopping import Interrupted

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 16, 16, 3), np.uint8)


def labels(classes):
    return np.arange(len(IMAGES), dtype=np.int32) % classes


@pytest.fixture
def config():
    """Two epochs of four steps of a small sequential network."""
    config = default_config()
    config.batch_size = 16
    config.num_devices = 1
    config.num_epochs = 2
    config.model.name = "simple_cnn"
    config.model.stage_features = (4, 8)
    config.schedule.learning_rate = 0.05
    config.log.tensorboard = False
    return config


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run on four classes, whose weights the others start from."""
    config = default_config()
    config.batch_size = 16
    config.num_devices = 1
    config.num_epochs = 1
    config.model.name = "simple_cnn"
    config.model.stage_features = (4, 8)
    config.data.mean, config.data.std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    config.log.tensorboard = False
    return inception_jax.fit(config, (IMAGES, labels(4)), workdir=tmp_path_factory.mktemp("first") / "run")


def flat(variables):
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables)}


def test_a_rate_of_nothing_keeps_the_other_runs_weights_and_its_normalisation(config, first, tmp_path):
    config.init_from = str(first.folder)
    config.schedule.learning_rate = 0.0
    got = inception_jax.fit(config, (IMAGES, labels(4)), workdir=tmp_path / "run")
    assert (got.inputs.mean, got.inputs.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    jax.tree.map(np.testing.assert_array_equal, got.variables, first.variables)
    np.testing.assert_array_equal(got.predict(IMAGES[:3]), first.predict(IMAGES[:3]))


def test_other_classes_get_a_new_classifier_and_a_frozen_trunk_stays(config, first, tmp_path, caplog):
    config.init_from = str(first.folder)
    config.finetune.freeze_epochs = 2.0
    with caplog.at_level(logging.INFO, logger="inception_jax"):
        got = inception_jax.fit(config, (IMAGES, labels(3)), workdir=tmp_path / "run")
    assert f"weights: {first.folder}, new: fc" in caplog.text
    before, after = flat(first.variables["params"]), flat(got.variables["params"])
    for path in before:
        if "fc" in path:
            assert after[path].shape[-1] == 3
        else:
            np.testing.assert_array_equal(after[path], before[path], err_msg=path)


def test_the_trunk_moves_once_its_epochs_are_over_and_the_run_goes_on_without_the_source(config, first, tmp_path):
    source = tmp_path / "source"
    first.folder.rename(source)
    config.init_from = str(source)
    config.finetune.freeze_epochs = 1.0
    whole = inception_jax.fit(config, (IMAGES, labels(3)), workdir=tmp_path / "whole")
    kernel = "['conv1_1']['conv']['kernel']"
    assert np.abs(flat(whole.variables["params"])[kernel] - flat(first.variables["params"])[kernel]).max() > 0
    source.rename(first.folder)
    # What was there when it ended is found again although the source is gone.
    again = inception_jax.fit(config, (IMAGES, labels(3)), workdir=tmp_path / "whole")
    jax.tree.map(np.testing.assert_array_equal, again.variables, whole.variables)


@pytest.mark.parametrize("types", [("float64", "float32"), ("float32", "float64"), ("float64", "bfloat16")])
def test_a_run_starts_from_one_in_another_type_and_is_resumed_in_its_own(config, tmp_path, monkeypatch, types):
    data, (before, after) = (IMAGES, labels(4)), types
    config.compute_dtype, config.num_epochs = before, 1
    source = inception_jax.fit(config, data, workdir=tmp_path / "source")
    config.compute_dtype, config.init_from, config.finetune.trunk_rate = after, str(source.folder), 0.0
    whole = inception_jax.fit(config, data, workdir=tmp_path / "whole")
    kernel, dtype = "['conv1_1']['conv']['kernel']", "float64" if after == "float64" else "float32"
    expected = np.asarray(flat(source.variables["params"])[kernel]).astype(dtype)
    np.testing.assert_array_equal(flat(whole.variables["params"])[kernel], expected)
    with open_checkpoints(whole.folder, config, read_only=True) as checkpoints:
        assert {leaf["dtype"] for leaf in checkpoints.manifest(4).leaves.values()} == {dtype, "int32"}

    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            inception_jax.fit(config, data, workdir=tmp_path / "resumed")
    jax.config.update("jax_enable_x64", False)  # as in a new process
    inception_jax.fit(config, data, workdir=tmp_path / "resumed")
    assert_same_run(tmp_path / "resumed", tmp_path / "whole")


def test_a_run_that_an_earlier_version_began_with_64_bit_types_goes_on_with_them(config, tmp_path, monkeypatch):
    jax.config.update("jax_enable_x64", True)
    with monkeypatch.context() as patch:
        patch.setattr(training, "types_for", lambda config, folder: contextlib.nullcontext())
        stop_after(patch, 2)
        with pytest.raises(Interrupted):
            inception_jax.fit(config, (IMAGES, labels(4)), workdir=tmp_path / "run")
    assert inception_jax.fit(config, (IMAGES, labels(4)), workdir=tmp_path / "run").step == 8


@pytest.fixture
def frozen(config, tmp_path):
    """Two steps with a frozen trunk, then six without, and whatever the trunk's gradient could have a part in."""
    classes, model = ("a", "b", "c", "d"), {"stage_features": (4, 8), "norm": "batch"}
    config.init_from = str(untrained_run(tmp_path / "source", tmp_path / "pictures", classes, **model).folder)
    config.model.norm = "batch"
    config.finetune.freeze_epochs, config.finetune.trunk_rate = 0.5, 0.5
    config.optimizer.clip_norm, config.optimizer.weight_decay = 1.0, 0.01
    config.accumulation_steps, config.average_decay, config.num_devices = 2, 0.9, 2
    return config


def test_a_frozen_trunk_has_no_gradient_and_the_run_is_the_same(frozen, tmp_path, monkeypatch):
    """On two devices; compared with the run that computes the gradient and lets the optimizer ignore it."""
    data = (IMAGES, labels(4))
    inception_jax.fit(frozen, data, workdir=tmp_path / "run")
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Interrupted):
            inception_jax.fit(frozen, data, workdir=tmp_path / "resumed")
    inception_jax.fit(frozen, data, workdir=tmp_path / "resumed")
    assert_same_run(tmp_path / "resumed", tmp_path / "run")
    monkeypatch.setattr(Experiment, "frozen_steps", 0)
    inception_jax.fit(frozen, data, workdir=tmp_path / "computed")
    (_, ours), (_, expected) = final_state(tmp_path / "run"), final_state(tmp_path / "computed")
    for (path, leaf), (_, other) in zip(ours, expected, strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-5, atol=1e-6, err_msg=str(path))


def test_only_the_heads_gradient_is_computed_while_the_trunk_is_frozen(frozen):
    experiment = Experiment.of(frozen, Inputs(("a", "b"), (16, 16, 3), (0.5,) * 3, (0.5,) * 3), steps_per_epoch=4)
    state = jax.eval_shape(experiment.initial_state)
    batch = (jax.ShapeDtypeStruct((4, 16, 16, 3), np.uint8), jax.ShapeDtypeStruct((4,), np.int32))

    def convolutions(train_step):
        traced = jax.make_jaxpr(train_step)(state, *batch, jax.random.key(0))
        return sum(str(equation.primitive) == "conv_general_dilated" for equation in equations(traced.jaxpr))

    model = jax.make_jaxpr(lambda variables, x: experiment.model.apply(variables, x, train=False))
    forward = model(state.variables, np.zeros((4, 16, 16, 3), np.float32)).jaxpr
    number = sum(str(equation.primitive) == "conv_general_dilated" for equation in equations(forward))
    assert convolutions(partial(experiment.train_step, frozen=True)) == number > 0
    assert convolutions(experiment.train_step) > 2 * number


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 2),
        ({"finetune.freeze_epochs": 0.0}, 0),
        ({"finetune.trunk_rate": 0.0}, 2),  # afterwards its gradient counts for clipping
        ({"finetune.trunk_rate": 0.0, "optimizer.clip_norm": 0.0}, 2**31 - 1),
        ({"init_from": None}, 0),
    ],
)
def test_how_long_the_trunk_has_no_gradient(frozen, changes, steps):
    frozen.update_from_flattened_dict(changes)
    inputs = Inputs(("a", "b"), (16, 16, 3), (0.5,) * 3, (0.5,) * 3)
    assert Experiment.of(frozen, inputs, steps_per_epoch=4).frozen_steps == steps


def test_published_weights_bring_options_and_normalisation_with_them(config, tmp_path, monkeypatch):
    """A file made here in place of the published one."""
    config.model.name = "googlenet"
    config.model.stage_features = None
    config.init_from = "torchvision:googlenet"
    published = weights.PRETRAINED[config.init_from]
    variables = random_variables(shapes("googlenet", size=32, kernel_5x5=3)[1])
    file = tmp_path / "weights.safetensors"
    whole = inception_jax.create_model("googlenet", num_classes=1000, kernel_5x5=3)
    weights.write_state_dict(file, weights.to_state_dict(whole, variables, "torchvision"))
    monkeypatch.setattr(weights.pretrained, "fetch", lambda given: file if given == published else None)
    config = initial_weights.with_options_of_weights(config, 4)
    model = build_model(config, 4)
    assert (model.kernel_5x5, model.num_classes) == (3, 4)
    initial = initial_weights.load_initial(config.init_from, model, (32, 32, 3), jax.random.key(0))
    assert (initial.mean, initial.std) == (published.preprocessing.mean, published.preprocessing.std)
    assert initial.left_out == ("fc",)
    expected = flat(variables)
    for path, leaf in flat(initial.variables).items():
        if "fc" not in path:
            np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.stage_features": (4, 4)}, "does not fit the network of model.name and its options: 4 arrays"),
        (
            {"finetune.head": ("classifier",), "finetune.trunk_rate": 0.1},
            "matches none of the network's submodules: conv1_1, ",
        ),
        ({"init_from": "torchvison:googlenet"}, "Did you mean 'torchvision:googlenet'?"),
        ({"init_from": "missing.pth"}, "missing.pth"),
    ],
)
def test_what_does_not_fit_is_named_before_anything_is_written(config, first, tmp_path, changes, message):
    config.init_from = str(first.folder)
    config.update_from_flattened_dict(changes)
    with pytest.raises(UserError) as error:
        inception_jax.fit(config, (IMAGES, labels(4)), workdir=tmp_path / "run")
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def pictures_of(folder, classes=3, number=30, size=20):
    """A folder of pictures whose classes differ by colour."""
    random = np.random.default_rng(1)
    for label in range(classes):
        (folder / f"class_{label}").mkdir(parents=True)
        for index in range(number):
            pixels = random.integers(0, 80, (size, size + index, 3), np.uint8)
            pixels[..., label] += 150
            Image.fromarray(pixels).save(folder / f"class_{label}" / f"{index}.png")
    return folder


def finetune(*flags):
    return main.main(["--config=finetune_folder", "--config.num_devices=1", *flags])


def test_one_command_fine_tunes_a_runs_network_on_a_folder(first, tmp_path, capsys):
    flags = [f"--config.data.folder={pictures_of(tmp_path / 'pictures')}", f"--config.init_from={first.folder}"]
    flags += [f"--workdir={tmp_path / 'run'}", "--config.batch_size=6", "--config.num_epochs=10"]
    flags += [
        "--config.schedule.learning_rate=0.1",
        "--config.finetune.trunk_rate=0.5",
        "--config.log.tensorboard=False",
    ]
    assert finetune(*flags) == 0
    got = run.load_run(tmp_path / "run")
    assert got.class_names == ("class_0", "class_1", "class_2")
    assert got.config.model.name == "simple_cnn"
    assert got.config.model.stage_features == (4, 8)
    assert got.inputs.image_shape == (16, 16, 3)
    assert (got.inputs.mean, got.inputs.std) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["test"]["top1"] > 0.6
    # The same command goes on, or says that all is done; the weights may be gone.
    again = [flag if "init_from" not in flag else f"--config.init_from={first.folder}" for flag in flags]
    assert finetune(*again) == 0
    capsys.readouterr()


def test_options_that_are_set_stay(first, tmp_path):
    config = load_config(find_config("finetune_folder"))
    config.init_from = str(first.folder)
    config.model.dropout_rate = 0.25
    config.data.image_size = 24
    config = initial_weights.with_network_of_weights(config, tmp_path)
    assert (config.model.name, config.model.dropout_rate) == ("simple_cnn", 0.25)
    assert (config.data.image_size, config.data.channels) == (24, 3)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("googlenet", 224),
        ("resnet18", 224),
        pytest.param("vgg11_bn", 224, marks=pytest.mark.slow),
    ],  # of half a gigabyte
)
def test_a_file_of_weights_says_which_network_it_is_of(name, size, tmp_path):
    file = tmp_path / "weights.safetensors"
    model = inception_jax.create_model(name, num_classes=7)
    if name == "googlenet":
        model = inception_jax.create_model(name, num_classes=7, kernel_5x5=3, norm="batch")
    inputs = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")
    variables = jax.eval_shape(lambda key, x: model.init(key, x, train=False), jax.random.key(0), inputs)
    weights.write_state_dict(file, weights.to_state_dict(model, random_variables(variables), "torchvision"))
    config = load_config(find_config("finetune_folder"))
    config.init_from = str(file)
    config = initial_weights.with_network_of_weights(config, tmp_path)
    assert config.model.name == name
    assert (config.data.image_size, config.data.channels) == (size, 3)
    assert build_model(config, 7).clone(dtype=None) == model.clone(dtype=None)


@pytest.mark.parametrize(
    ("init_from", "message"),
    [
        (None, "give --config.init_from=RUN_OR_FILE"),
        ("torchvision", "name its weights, such as torchvision:resnet50"),
        ("nowhere", "not a run's folder, a weights file or published weights"),
        ("{folder}/empty.safetensors", "contains the weights of an unknown network: set model.name"),
    ],
)
def test_weights_that_do_not_say_their_network_are_named(init_from, message, tmp_path):
    safetensors.numpy.save_file({"other": np.zeros(3, np.float32)}, tmp_path / "empty.safetensors")
    config = load_config(find_config("finetune_folder"))
    config.init_from = init_from and init_from.format(folder=tmp_path)
    with pytest.raises(UserError) as error:
        initial_weights.with_network_of_weights(config, tmp_path)
    assert message in str(error.value)
