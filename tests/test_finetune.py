"""Runs that start from weights: another run's, a file's, published ones; frozen trunks; other classes."""

import logging

import jax
import numpy as np
import pytest
from networks import random_variables, shapes

import inception_jax
from inception_jax import run, weights
from inception_jax.config import default_config
from inception_jax.errors import UserError

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
    config = run.with_options_of_weights(config, 4)
    model = run.build_model(config, 4)
    assert (model.kernel_5x5, model.num_classes) == (3, 4)
    initial = run.load_initial(config.init_from, model, (32, 32, 3), jax.random.key(0))
    assert (initial.mean, initial.std) == (published.preprocessing.mean, published.preprocessing.std)
    assert initial.left_out == ("fc",)
    expected = flat(variables)
    for path, leaf in flat(initial.variables).items():
        if "fc" not in path:
            np.testing.assert_array_equal(leaf, expected[path], err_msg=path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.stage_features": (4, 4)}, "holds another network than model.name and its options give: 4 of its"),
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
