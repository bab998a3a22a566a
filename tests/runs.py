"""Runs that are stopped, and what two of them have to have in common."""

import csv
import json
import signal

import jax
import numpy as np

from inception_jax import run, train

TIMINGS = ("images_per_second", "seconds", "training_seconds", "evaluation_seconds")


def stop_after(monkeypatch, *steps):
    """Sends SIGINT to this process right after these steps, as Ctrl-C does."""

    class Progress(train.Progress):
        def due(self, step):
            if step in steps:
                signal.raise_signal(signal.SIGINT)
            return super().due(step)

    monkeypatch.setattr(train, "Progress", Progress)


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
