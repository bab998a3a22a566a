"""Checkpoints on a real folder: what comes back, what is kept, and what happens to damaged ones."""

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from inception_jax.checkpoints import Checkpoints
from inception_jax.errors import UserError
from inception_jax.optimizers import make_optimizer
from inception_jax.schedules import init_plateau, plateau_update

PLATEAU = {
    "mode": "max", "factor": 0.1, "patience": 0, "threshold": 0.0, "threshold_mode": "absolute",
    "cooldown": 2, "min_scale": 0.0, "learning_rate": 0.1,
}  # fmt: skip


def make_state(seed=0, step=0):
    """A state with all that a train state has: nested, empty and named containers, scalars, both kinds of keys."""
    generator = np.random.default_rng(seed)
    params = {
        "conv": {"kernel": jnp.asarray(generator.standard_normal((64, 65))), "bias": jnp.zeros(65)},
        "empty": {},
    }
    return {
        "step": jnp.asarray(step),
        "params": params,
        "half": jnp.asarray(generator.standard_normal(5), jnp.bfloat16),
        "mask": jnp.asarray([True, False]),
        "opt_state": make_optimizer("adam", 0.1).init(params),
        "plateau": init_plateau("max"),
        "key": jax.random.key(seed),
        "raw_key": jax.random.PRNGKey(seed),
        "average": None,
    }


def assert_equal(state, expected):
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    for leaf, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == wanted.dtype
        assert leaf.sharding == wanted.sharding
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf, wanted = jax.random.key_data(leaf), jax.random.key_data(wanted)
        assert np.asarray(leaf).tobytes() == np.asarray(wanted).tobytes()


def damage(folder, item="state"):
    """Flips the lowest bit of the middle byte of an item: its JSON text, or the arrays' bytes."""
    files = [path for path in (folder / item).rglob("*") if path.is_file()]
    file = max(files, key=lambda path: (path.name == "metadata", path.stat().st_size))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("x64", [False, True])
def test_what_is_restored_is_bit_equal(tmp_path, x64):
    with jax.enable_x64(x64):
        state = make_state()
        assert state["params"]["conv"]["kernel"].dtype == (jnp.float64 if x64 else jnp.float32)
        progress = {"seconds": 1.5, "last_evaluated": None, "rows": [1, 2]}
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(7, state, progress, {"validation_top1": 0.5})
            restored, given_back = checkpoints.restore(7, make_state(seed=1))
        assert_equal(restored, state)
        assert given_back == progress
        with Checkpoints(tmp_path) as checkpoints:  # in a later process, from shapes alone
            assert checkpoints.latest_step() == checkpoints.best_step() == 7
            restored, _ = checkpoints.restore(None, jax.eval_shape(make_state))
        assert_equal(restored, state)


def test_plateau_goes_on_after_a_restore(tmp_path):
    metrics = [0.5, 0.4, 0.6, 0.1, 0.1, 0.1, 0.1, 0.7, 0.2]
    states = [init_plateau("max")]
    for metric in metrics:
        states.append(plateau_update(states[-1], metric, **PLATEAU))
    assert len({float(state.scale) for state in states}) > 2
    for split in range(1, len(metrics)):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(split, {"plateau": states[split]}, {})
        with Checkpoints(tmp_path) as checkpoints:
            state = checkpoints.restore(None, {"plateau": init_plateau("max")})[0]["plateau"]
        for metric, expected in zip(metrics[split:], states[split + 1 :], strict=True):
            state = plateau_update(state, metric, **PLATEAU)
            assert_equal(state, expected)


@pytest.mark.parametrize(("before", "after"), [(8, 1), (1, 8), (2, 4)])
def test_restores_on_another_number_of_devices(tmp_path, before, after):
    def place(state, count):
        mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:count])
        state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
        rows = NamedSharding(mesh, PartitionSpec("data"))
        return state | {"sharded": jax.device_put(jnp.arange(16.0).reshape(8, 2), rows)}

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, place(make_state(), before), {})
        restored, _ = checkpoints.restore(1, place(make_state(seed=1), after))
    assert_equal(restored, place(make_state(), after))


def test_saving_does_not_see_later_updates_in_place(tmp_path):
    """The state is donated to the next step while it is being written."""
    state = {"kernel": jnp.zeros((1000, 1000))}
    step = jax.jit(lambda state: jax.tree.map(lambda leaf: leaf + 1, state), donate_argnums=0)
    with Checkpoints(tmp_path, keep_latest=3) as checkpoints:
        for i in range(3):
            checkpoints.save(i, state, {})
            for _ in range(5):
                state = step(state)
        for i in range(3):
            restored, _ = checkpoints.restore(i, state)
            np.testing.assert_array_equal(restored["kernel"], 5.0 * i)


@pytest.mark.parametrize(
    ("options", "kept", "best"),
    [
        ({}, [2, 6], 2),  # of the equal 2 and 4, the first
        ({"keep_latest": 2, "keep_best": 0}, [5, 6], None),
        ({"keep_best": 3}, [2, 4, 5, 6], 2),
        ({"watch_mode": "min"}, [1, 6], 1),
        ({"watch": "validation_loss"}, [6], None),
    ],
)
def test_keeps_the_latest_and_the_best(tmp_path, options, kept, best):
    values = {1: 0.1, 2: 0.9, 3: None, 4: 0.9, 5: 0.5, 6: float("nan")}
    with Checkpoints(tmp_path, **options) as checkpoints:
        for step, value in values.items():
            metrics = None if value is None else {"validation_top1": value, "validation_top5": 1.0}
            checkpoints.save(step, {"step": jnp.asarray(step)}, {}, metrics)
    with Checkpoints(tmp_path, **options) as checkpoints:
        assert checkpoints.steps() == kept
        assert checkpoints.latest_step() == 6
        # A best one is there as long as it is kept for another reason, too.
        assert checkpoints.best_step() == (best if options.get("keep_best") != 0 else 5)
    assert sorted(os.listdir(tmp_path)) == sorted(map(str, kept))


def test_the_best_survives_a_restart(tmp_path):
    for step, value in enumerate([0.3, 0.8, 0.5, 0.6]):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(step, {"step": jnp.asarray(step)}, {}, {"validation_top1": value})
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1, 3]
        assert checkpoints.best_step() == 1


def test_saving_the_same_again_is_no_fault(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, state, {"seconds": 1}, {"validation_top1": 0.5})
        checkpoints.wait()
        written = (tmp_path / "3").stat().st_mtime_ns
        checkpoints.save(3, state, {"seconds": 1})
        checkpoints.wait()
        assert (tmp_path / "3").stat().st_mtime_ns == written
        assert checkpoints.best_step() == 3


def test_another_content_replaces_that_of_the_step(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, make_state(), {"seconds": 1})
        checkpoints.save(3, make_state(), {"seconds": 1}, {"validation_top1": 0.5})  # evaluated since
        assert checkpoints.best_step() == 3
        checkpoints.save(3, make_state(), {"seconds": 2})  # the state is the same: so is what was measured of it
        assert checkpoints.best_step() == 3
        assert checkpoints.restore(3, make_state())[1] == {"seconds": 2}
        checkpoints.save(3, make_state(seed=1), {"seconds": 2})
        assert checkpoints.best_step() is None
    assert os.listdir(tmp_path) == ["3"]
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore(3, make_state())[0], make_state(seed=1))


def test_a_replacement_that_was_cut_off_is_undone(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, make_state(), {})
    (tmp_path / "3").rename(tmp_path / "replaced-3")
    (tmp_path / "3.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(tmp_path) as checkpoints:
        assert_equal(checkpoints.restore(None, make_state())[0], make_state())
        checkpoints.save(4, make_state(), {})
    assert os.listdir(tmp_path) == ["4"]


def test_an_earlier_step_than_the_latest_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, make_state(), {})
        with pytest.raises(UserError, match=r"cannot save step 2 in .*: there is already a checkpoint of step 3"):
            checkpoints.save(2, make_state(), {})
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        checkpoints.save(4, make_state(), {})
        with pytest.raises(UserError, match="already a checkpoint of step 4"):
            checkpoints.save(3, make_state(seed=1), {})
        assert checkpoints.steps() == [3, 4]


@pytest.mark.parametrize("item", ["state", "progress", "digest"])
def test_a_flipped_bit_is_named_and_the_checkpoint_before_is_restored(tmp_path, item, caplog):
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        checkpoints.save(1, make_state(1, step=1), {"seconds": 1.0})
        checkpoints.save(2, make_state(2, step=2), {"seconds": 2.0}, {"validation_top1": 0.5})
    damage(tmp_path / "2", item)

    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        with pytest.raises(UserError, match=r"the checkpoint of step 2 is damaged: .* Choose another step"):
            checkpoints.restore(2, make_state())
        if item != "state":
            with pytest.raises(UserError, match=r"the checkpoint of step 2 in .* is damaged"):
                checkpoints.progress(2)
        assert checkpoints.progress(1) == {"seconds": 1.0}
        with caplog.at_level(logging.WARNING, logger="absl"):
            restored, progress = checkpoints.restore(None, make_state())
        assert_equal(restored, make_state(1, step=1))
        assert progress == {"seconds": 1.0}
        (message,) = [record.getMessage() for record in caplog.records]
        assert message.startswith("the checkpoint of step 2 is damaged: ")
        assert message.endswith(". Going on from step 1")
        if item == "state":
            assert "not as saved" in message

        # The run goes on from there, past the damaged one, which is set aside for its owner.
        checkpoints.save(2, make_state(3, step=2), {"seconds": 3.0})
        assert_equal(checkpoints.restore(None, make_state())[0], make_state(3, step=2))
    assert sorted(os.listdir(tmp_path)) == ["1", "2", "damaged-2"]


def test_the_damaged_leaf_is_named(tmp_path):
    state = {"params": {"kernel": jnp.asarray(np.random.default_rng(0).standard_normal((200, 200)))}}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state, {})
        checkpoints.wait()
        damage(tmp_path / "1")
        with pytest.raises(UserError, match=r"params/kernel not as saved\. Remove the folder to start anew"):
            checkpoints.restore(None, state)


def test_missing_checkpoints_are_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.best_step() is None
        with pytest.raises(UserError, match="there is no checkpoint in"):
            checkpoints.restore(None, make_state())
        checkpoints.save(1, make_state(), {})
        with pytest.raises(UserError, match=r"there is no checkpoint of step 5 in .*; there are: 1"):
            checkpoints.restore(5, make_state())
        with pytest.raises(UserError, match=r"there is no checkpoint of step 5 in .*; there are: 1"):
            checkpoints.progress(5)


def test_a_state_of_another_network_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), {})
        other = make_state()
        other["params"]["conv"]["kernel"] = jnp.zeros((64, 66))
        other["params"]["head"] = jnp.zeros(3)
        del other["half"]
        with pytest.raises(UserError) as error:
            checkpoints.restore(None, other)
        for part in (
            "the checkpoint of step 1 is of another network",
            "params/conv/kernel: float32[64, 65] there, float32[64, 66] here",
            "params/head: nothing there, float32[3] here",
            "half: bfloat16[5] there, nothing here",
        ):
            assert part in str(error.value)
        # Not damaged: nothing is passed over or set aside.
        checkpoints.save(2, make_state(), {})
    assert os.listdir(tmp_path) == ["2"]


def test_double_precision_is_not_cut_in_silence(tmp_path):
    with jax.enable_x64(True), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"kernel": jnp.ones(3)}, {})
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(UserError, match=r"kernel: float64\[3\] there, float32\[3\] here"),
    ):
        checkpoints.restore(1, {"kernel": jnp.ones(3)})


def test_an_unusable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the folder of checkpoints .*file/checkpoints cannot be used"):
        Checkpoints(tmp_path / "file" / "checkpoints")
    with pytest.raises(UserError, match="unknown watch mode 'best'"):
        Checkpoints(tmp_path, watch_mode="best")


def test_orbax_is_quiet(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG, logger="absl"), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), {})
        checkpoints.restore(1, make_state())
    assert [record.getMessage() for record in caplog.records if record.name == "absl"] == []


def test_the_digests_can_be_read_by_people(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), {}, {"validation_top1": np.float32(0.5)})
    record = json.loads((tmp_path / "1" / "digest" / "metadata").read_text())
    assert record["metrics"] == {"validation_top1": 0.5}
    assert record["leaves"]["params/conv/kernel"]["shape"] == [64, 65]
    assert set(record["leaves"]) >= {"opt_state/0/mu/conv/kernel", "plateau/scale", "key", "raw_key"}


def run_script(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )


def test_a_killed_save_leaves_the_last_whole_checkpoint(tmp_path):
    """A real kill -9 while the second save is being written."""
    ended = run_script(
        """
        import os, signal, sys
        import jax, jax.numpy as jnp
        from inception_jax.checkpoints import Checkpoints

        checkpoints = Checkpoints(sys.argv[1])
        checkpoints.save(1, {"kernel": jnp.ones((3000, 3000))}, {"seconds": 1})
        checkpoints.save(2, {"kernel": jax.random.normal(jax.random.key(0), (3000, 3000))}, {"seconds": 2})
        os.kill(os.getpid(), signal.SIGKILL)
        """,
        tmp_path,
    )
    assert ended.returncode == -signal.SIGKILL
    assert "2" not in os.listdir(tmp_path)
    template = {"kernel": jnp.zeros((3000, 3000))}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 1
        restored, progress = checkpoints.restore(None, template)
        np.testing.assert_array_equal(restored["kernel"], 1.0)
        assert progress == {"seconds": 1}
        checkpoints.save(2, template, {"seconds": 2})
    assert os.listdir(tmp_path) == ["2"]


def test_a_full_disk_is_reported_and_the_last_whole_checkpoint_stays(tmp_path):
    """The file system refuses to write more than 8 MB to a file, as it does when there is no room left."""
    ended = run_script(
        """
        import resource, signal, sys
        import jax, jax.numpy as jnp
        from inception_jax.checkpoints import Checkpoints
        from inception_jax.errors import UserError

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000_000, 8_000_000))
        checkpoints = Checkpoints(sys.argv[1])
        checkpoints.save(1, {"kernel": jnp.ones(10)}, {})
        checkpoints.save(2, {"kernel": jax.random.normal(jax.random.key(0), (3000, 3000))}, {})
        try:
            checkpoints.close()
        except UserError as error:
            print(error)
        """,
        tmp_path,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"a checkpoint could not be written in {tmp_path}: ")
    assert ended.stdout.count("\n") == 1
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [1]
