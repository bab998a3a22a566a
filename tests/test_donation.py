"""Each step donates the state: every leaf of it is a buffer of its own, however it came about."""

import itertools

import jax
import numpy as np
import pytest
from runs import small_config

from inception_jax import train
from inception_jax.distributed import sharding
from inception_jax.runs import run
from inception_jax.train import loop


def buffers(tree):
    """Where every leaf's data is, on each of its devices."""
    return [shard.data.unsafe_buffer_pointer() for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]


def given_as(how, mesh):
    """Trees of two leaves that share memory: with each other, with NumPy, with a caller, between devices."""
    array = np.arange(4096, dtype=np.float32)
    if how == "NumPy":
        return (array, array), [array.ctypes.data]
    if how == "one device":
        leaf = jax.numpy.asarray(array, copy=True)
        return (leaf, leaf), buffers(leaf)
    if how == "views":
        leaf = jax.device_put(array)  # the same memory as the array's, on a CPU
        return (leaf, array), [array.ctypes.data]
    placed = sharding.replicate(array, mesh)
    return (placed, placed), [*buffers(placed), array.ctypes.data]


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("how", ["NumPy", "one device", "views", "placed"])
def test_what_is_owned_shares_nothing(devices, how):
    mesh = sharding.make_mesh(devices)
    tree, held = given_as(how, mesh)
    own = sharding.own(tree, mesh)
    assert len(set(buffers(own))) == 2 * devices
    assert not set(buffers(own)) & set(held)
    donated = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(own)
    for leaf, before in itertools.product(donated, tree):
        np.testing.assert_array_equal(leaf, np.arange(4096) + 1)
        np.testing.assert_array_equal(before, np.arange(4096))


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_every_state_that_trains_shares_nothing(digits, tmp_path, monkeypatch, devices):
    """A new one; one that starts from a run's weights; a restored one; one that goes back; behind an evaluation."""
    config = small_config(digits)
    config.data.splits.train = "train[:120]"  # two steps an epoch
    config.num_devices = devices
    seen = []

    def check(state, where):
        found = buffers(state)
        assert len(set(found)) == len(found) == devices * len(jax.tree.leaves(state))
        seen.append(where)

    def run_loop(experiment, programs, session, state):
        check(state, "loop")
        return loop_run(experiment, programs, session, state)

    def end_epoch(*arguments):
        state = loop_end_epoch(*arguments)
        check(state, "epoch")
        return state

    loop_run, loop_end_epoch = loop.run, loop.end_epoch
    monkeypatch.setattr(loop, "run", run_loop)
    monkeypatch.setattr(loop, "end_epoch", end_epoch)
    train.train_and_evaluate(config, tmp_path / "new")
    train.train_and_evaluate(config, tmp_path / "new")
    assert seen == ["loop", "epoch", "epoch", "loop"]

    config.init_from = str(tmp_path / "new")
    config.schedule.name = "step"
    config.schedule.boundaries = (1,)
    config.schedule.factor = 1e37
    config.nonfinite.retries, config.nonfinite.factor = 1, 1e-37
    train.train_and_evaluate(config, tmp_path / "from_run")
    assert seen[4:] == ["loop", "epoch", "loop", "epoch"]  # the loss was not finite behind the first epoch
    trained, started = (run.load_run(tmp_path / name, "latest").variables for name in ("new", "from_run"))
    assert jax.tree.structure(trained) == jax.tree.structure(started)
