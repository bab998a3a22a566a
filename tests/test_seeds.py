"""One seed, several uses of it: none of them, and no other seed, draws the same numbers."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from runs import assert_same_run, small_config, stop_after

from inception_jax import experiment, train
from inception_jax.config import default_config
from inception_jax.data import order
from inception_jax.runs import checkpoints, folder, run
from inception_jax.train import record, session, start, training

SEEDS = [0, 1, 2, 3, 2**31 - 2, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]


@pytest.mark.parametrize("x64", [False, True])
def test_no_two_uses_and_no_two_seeds_have_a_key_in_common(x64):
    keys = {}
    with jax.enable_x64(x64):
        for seed in SEEDS:
            config = default_config()
            config.seed = seed
            for use in (experiment.initial_key, experiment.training_key):
                keys[seed, use.__name__] = tuple(jax.random.key_data(use(config)).tolist())
                for step in range(3):  # and its steps'
                    key = jax.random.fold_in(use(config), step)
                    keys[seed, use.__name__, step] = tuple(jax.random.key_data(key).tolist())
    assert len(set(keys.values())) == len(keys)


def test_no_two_seeds_have_an_order_in_common():
    orders = [order.batch_indices(seed, step, num_examples=64, batch_size=32) for seed in SEEDS for step in range(4)]
    assert len({tuple(found.tolist()) for found in orders}) == len(orders)


@pytest.fixture
def config(digits):
    config = small_config(digits)
    config.seed = 3
    config.data.splits.train = "train[:600]"  # ten steps an epoch
    return config


def test_a_run_of_before_goes_on_with_the_numbers_that_it_began_with(config, tmp_path, monkeypatch):
    """Its weights were drawn from the seed, its augmentation from the next one, and its records did not say so."""
    kept = [field.name for field in dataclasses.fields(record.TrainingRecord)]
    kept = [name for name in kept if name not in ("named_streams", "best_step")]

    class Checkpoints(checkpoints.Checkpoints):
        def save(self, step, state, progress, metrics=None):
            super().save(step, state, {name: progress[name] for name in kept}, metrics)

    with monkeypatch.context() as before:
        before.setattr(folder, "Checkpoints", Checkpoints)
        for module in (start, training):
            before.setattr(module, "initial_key", lambda config: jax.random.key(config.seed))
        before.setattr(session, "training_key", lambda config, named_streams: jax.random.key(config.seed + 1))
        train.train_and_evaluate(config, tmp_path / "whole")
        stop_after(before, 4)
        with pytest.raises(train.Interrupted):
            train.train_and_evaluate(config, tmp_path / "stopped")
    progress = json.loads((tmp_path / "stopped" / "checkpoints" / "4" / "progress" / "metadata").read_text())
    assert "named_streams" not in progress
    train.train_and_evaluate(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    assert not run.load_run(tmp_path / "stopped").named_streams

    # And a new one draws others.
    train.train_and_evaluate(config, tmp_path / "new")
    assert run.load_run(tmp_path / "new").named_streams
    old, new = (run.load_run(tmp_path / name).variables["params"] for name in ("whole", "new"))
    assert not all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True))
