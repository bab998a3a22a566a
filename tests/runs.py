"""Runs as training leaves them; runs that are stopped, and what two of them have to have in common."""

import contextlib
import csv
import dataclasses
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from networks import random_variables
from PIL import Image

from inception_jax.config import default_config
from inception_jax.experiment import Experiment, Inputs
from inception_jax.runs import run
from inception_jax.runs.folder import open_checkpoints, prepare_folder
from inception_jax.runs.metrics_log import CsvWriter
from inception_jax.train.console import Console

TIMINGS = ("images_per_second", "seconds", "training_seconds", "evaluation_seconds")


def small_config(digits: Path) -> ConfigDict:
    """A small sequential network on the digits, 21 steps an epoch, with what a resume must restore.

    What tests leave of it as it is gives one program for all of them, which takes longer to compile than to run: so
    the images' statistics are given, which differ from split to split.
    """
    config = default_config()
    config.batch_size = 60
    config.num_devices = 1
    config.num_epochs = 2
    config.average_decay = 0.9
    config.model.name = "simple_cnn"
    config.model.norm = "batch"
    config.model.stage_features = (4,)
    config.data.directory = str(digits)
    config.data.mean, config.data.std = (0.3,), (0.37,)
    config.data.augment.pad_and_crop = 1
    config.schedule.name = "plateau"
    config.schedule.learning_rate = 0.05
    config.schedule.metric = "validation_loss"
    config.schedule.patience = 0
    config.schedule.threshold = 10.0  # nothing improves by so much, so that the rate falls at once
    config.schedule.threshold_mode = "absolute"
    config.log.tensorboard = False
    return config


class Killed(Exception):  # noqa: N818
    """A run ends without saving."""


def killed_at(step: int) -> type[Console]:
    """A console for a run that is killed right after a step."""

    class KillingConsole(Console):
        def due(self, now):
            if now == step:
                raise Killed
            return super().due(now)

    return KillingConsole


def stop_after(monkeypatch, *steps):
    """Sends SIGINT to this process right after these steps, as Ctrl-C does."""

    due = Console.due

    def due_or_stopped(self, step):
        if step in steps:
            signal.raise_signal(signal.SIGINT)
        return due(self, step)

    monkeypatch.setattr(Console, "due", due_or_stopped)


@contextlib.contextmanager
def metrics_csv(folder: Path, resume_step: int | None = None) -> Iterator[CsvWriter]:
    """The writer of a run's metrics.csv, of a new run or one that goes on from a step."""
    writer = CsvWriter(folder)
    writer.resume(resume_step or 0)
    yield writer
    writer.close()


def final_state(folder):
    """Every array of the latest checkpoint, by path."""
    loaded = run.load_run(folder, "latest")
    return loaded.step, jax.tree_util.tree_leaves_with_path(loaded.variables)


def rows(folder):
    with (folder / "metrics.csv").open() as file:
        return [{key: value for key, value in row.items() if key not in TIMINGS} for row in csv.DictReader(file)]


def summary(folder):
    content = json.loads((folder / "summary.json").read_text())
    return {key: value for key, value in content.items() if key not in (*TIMINGS, "name")}


def assert_same_run(folder, expected):
    assert rows(folder) == rows(expected)
    assert summary(folder) == summary(expected)
    (step, leaves), (expected_step, expected_leaves) = final_state(folder), final_state(expected)
    assert step == expected_step
    for (path, leaf), (expected_path, expected_leaf) in zip(leaves, expected_leaves, strict=True):
        assert path == expected_path
        np.testing.assert_array_equal(leaf, expected_leaf, err_msg=str(path))


def four_classes(root: Path) -> Path:
    """Pictures of four classes, half of them grayscale, with a test split of their own."""
    generator = np.random.default_rng(0)
    for number in range(48):
        place = root / ("train", "test")[number % 2] / ("Cat", "DOG", "sea_urchin", "teapot")[number // 2 % 4]
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(generator.integers(0, 256, (20, 24, 3), np.uint8))
        image.convert("L" if number // 8 % 2 else "RGB").save(place / f"{number}.png")
    return root


def untrained_run(place: Path, pictures: Path, classes: tuple[str, ...], channels: int = 3, **model) -> run.Run:
    """A run on a folder of pictures as training leaves it, with weights from NumPy, by its name's length.

    Args:
      model: fields of config.model in place of a small simple_cnn's.
    """
    config = default_config()
    config.seed = len(place.name)
    config.model.update({"name": "simple_cnn"} | (model or {"stage_features": (4, 8)}))
    config.data.mean, config.data.std = (0.5,) * channels, (0.25,) * channels
    config.data.name = "image_folder"
    config.data.folder = str(pictures)
    config.data.directory = str(place.parent / "prepared")
    config.data.image_size = 16
    config.data.channels = channels
    _save_untrained(place, config, Inputs(classes, (16, 16, channels), config.data.mean, config.data.std))
    return run.load_run(place, own=config)


def untrained_resnet(folder: Path) -> Path:
    """The folder of a run of a ResNet-18, which other libraries have, as training leaves it, with weights from NumPy.

    Its state is the weights alone, a third of what momentum and averages would make of it.
    """
    config = default_config()
    config.model.name = "resnet18"
    config.optimizer.momentum = config.average_decay = 0.0
    config.data.mean, config.data.std = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
    _save_untrained(folder, config, Inputs(("cat", "dog", "owl"), (32, 32, 3), config.data.mean, config.data.std))
    return folder


def _save_untrained(folder: Path, config: ConfigDict, inputs: Inputs) -> None:
    state = jax.eval_shape(Experiment.of(config, inputs, steps_per_epoch=10).initial_state)
    variables = random_variables({"params": state.params, "batch_stats": state.batch_stats}, seed=config.seed)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state).replace(**variables)
    prepare_folder(folder, config)
    with open_checkpoints(folder, config) as checkpoints:
        checkpoints.save(7, state, {"inputs": dataclasses.asdict(inputs), "steps_per_epoch": 10})
