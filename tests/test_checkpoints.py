"""Checkpoints on a real folder: what comes back, what is kept, and what happens to damaged ones."""

import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from states import assert_equal, make_state

from inception_jax.errors import UserError, WriteError
from inception_jax.runs.checkpoints import Checkpoints
from inception_jax.steps.schedules import init_plateau, plateau_update

PLATEAU = {
    "mode": "max", "factor": 0.1, "patience": 0, "threshold": 0.0, "threshold_mode": "absolute",
    "cooldown": 2, "min_scale": 0.0, "learning_rate": 0.1,
}  # fmt: skip


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
        ({"keep_every_steps": 3, "keep_best": 0}, [3, 6], None),
        ({"keep_every_steps": 2}, [2, 4, 6], 2),
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
        assert checkpoints.best_step() == (5 if 5 in kept and options.get("keep_best") == 0 else best)
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


def test_a_program_that_only_reads_does_not_undo_a_replacement_that_is_going_on(tmp_path):
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        checkpoints.save(2, make_state(), {})
        checkpoints.save(3, make_state(seed=1), {})
    (tmp_path / "3").rename(tmp_path / "replaced-3")  # as while its successor is written
    with Checkpoints(tmp_path, keep_latest=2, read_only=True) as checkpoints:
        assert_equal(checkpoints.restore(None, make_state())[0], make_state())
    assert sorted(os.listdir(tmp_path)) == ["2", "replaced-3"]


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
        # What is wrong with the JSON is known at once, with the arrays when they are read.
        assert checkpoints.latest_step() == (2 if item == "state" else 1)
        with caplog.at_level(logging.WARNING, logger="absl"):
            restored, progress = checkpoints.restore(None, make_state())
        assert_equal(restored, make_state(1, step=1))
        assert progress == {"seconds": 1.0}
        (message,) = [record.getMessage() for record in caplog.records]
        assert "the checkpoint of step 2 is damaged: " in message
        if item == "state":
            assert "not as saved" in message
            assert message.endswith(". Continuing from step 1")
        assert checkpoints.latest_step() == 1
        assert checkpoints.best_step() is None
        assert checkpoints.progress(1) == {"seconds": 1.0}
        with pytest.raises(UserError, match=r"the checkpoint of step 2 is damaged: .* Choose another step"):
            checkpoints.restore(2, make_state())
        if item != "state":
            with pytest.raises(UserError, match=r"the checkpoint of step 2 in .* is damaged"):
                checkpoints.progress(2)

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
        with pytest.raises(UserError, match=r"params/kernel not as saved\. Remove the folder to start over"):
            checkpoints.restore(None, state)


def test_missing_checkpoints_are_named(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        assert checkpoints.best_step() is None
        with pytest.raises(UserError, match="there is no checkpoint in"):
            checkpoints.restore(None, make_state())
        checkpoints.save(1, make_state(), {})
        with pytest.raises(UserError, match=r"there is no checkpoint of step 5 in .*; available: 1"):
            checkpoints.restore(5, make_state())
        with pytest.raises(UserError, match=r"there is no checkpoint of step 5 in .*; available: 1"):
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
            "params/conv/kernel: saved float32[64, 65], expected float32[64, 66]",
            "params/head: saved nothing, expected float32[3]",
            "half: saved bfloat16[5], expected nothing",
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
        pytest.raises(UserError, match=r"kernel: saved float64\[3\], expected float32\[3\]"),
    ):
        checkpoints.restore(1, {"kernel": jnp.ones(3)})


def test_an_unusable_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot use the checkpoint folder .*file/checkpoints: "):
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
        from inception_jax.runs.checkpoints import Checkpoints

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


def test_a_failed_save_is_said_at_once_and_leaves_everything_as_it_was(tmp_path):
    """The file system refuses to write more than 8 MB to a file."""
    ended = run_script(
        """
        import os, resource, signal, sys, time
        import jax, jax.numpy as jnp
        from inception_jax.runs.checkpoints import Checkpoints
        from inception_jax.errors import WriteError

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000_000, 8_000_000))
        large = {"kernel": jax.random.normal(jax.random.key(0), (3000, 3000))}
        small = {"kernel": jnp.ones((3000, 3000))}
        with Checkpoints(sys.argv[1]) as checkpoints:
            for step, replaced in ((2, 1), (2, 2), (3, 3)):
                checkpoints.save(replaced, small, {"seconds": replaced}, {"validation_top1": replaced / 10})
                checkpoints.check()
                checkpoints.save(step, large, {}, {"validation_top1": 0.9})
                try:
                    while True:
                        checkpoints.check()
                        time.sleep(0.01)
                except WriteError as error:
                    print(error)
                checkpoints.check()
                assert checkpoints.steps() == [replaced] == [checkpoints.best_step()], checkpoints.steps()
                assert checkpoints.progress(replaced) == {"seconds": replaced}
            checkpoints.save(4, large, {})
            try:
                checkpoints.wait()
            except WriteError as error:
                print(error)
            checkpoints.save(5, small, {})
            checkpoints.save(6, large, {})
            try:
                checkpoints.close()
            except WriteError as error:
                print(error)
        """,
        tmp_path,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [
        f"the checkpoint of step {step} could not be written in {tmp_path}: File too large; that of step {kept} is kept"
        for step, kept in ((2, 1), (2, 2), (3, 3), (4, 3), (6, 5))
    ]
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [3, 5]
        assert checkpoints.best_step() == 3


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(not shutil.which("mount"), reason="there is no program 'mount'")
def test_a_full_disk_is_reported_and_the_last_whole_checkpoint_stays(small_disk, capfd):
    def state(seed):
        return {str(number): jax.random.normal(jax.random.key(seed * 100 + number), (300, 200)) for number in range(40)}

    with Checkpoints(small_disk / "checkpoints") as checkpoints:
        checkpoints.save(1, state(1), {})
        checkpoints.save(2, state(2), {})
        message = f"the checkpoint of step 2 could not be written in {checkpoints.directory}: No space left on device"
        with pytest.raises(WriteError, match=f"{message}; that of step 1 is kept"):
            checkpoints.wait()
        assert_equal(checkpoints.restore(None, state(0))[0], state(1))
    assert capfd.readouterr() == ("", "")
    with Checkpoints(small_disk / "checkpoints") as checkpoints:
        assert_equal(checkpoints.restore(None, state(0))[0], state(1))
        checkpoints.save(3, {"small": jnp.ones(3)}, {})
        assert checkpoints.latest_step() == 3


def rewrite_digest(folder, **fields):
    """As the digest would be had it been written with these fields; without one that is None."""
    path = folder / "digest" / "metadata"
    digest = {name: value for name, value in (json.loads(path.read_text()) | fields).items() if value is not None}
    progress = json.loads((folder / "progress" / "metadata").read_text())
    signed = [{name: value for name, value in digest.items() if name != "checksum"}, progress]
    if "format" not in digest:
        signed = [digest["leaves"], progress, digest["metrics"]]
    content = json.dumps(signed, sort_keys=True).encode()
    path.write_text(json.dumps(digest | {"checksum": hashlib.blake2b(content, digest_size=16).hexdigest()}))


def test_a_checkpoint_of_the_first_format_is_read(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, make_state(), {"seconds": 1}, {"validation_top1": 0.5})
    rewrite_digest(tmp_path / "1", format=None)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.best_step() == 1
        restored, progress = checkpoints.restore(None, make_state(seed=1))
    assert_equal(restored, make_state())
    assert progress == {"seconds": 1}


def test_a_checkpoint_of_a_later_format_is_refused_and_not_taken_for_damaged(tmp_path):
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        checkpoints.save(1, make_state(), {})
        checkpoints.save(2, make_state(), {})
    later = r"step 2 in .* was written by a later version .*format 3; this one reads up to 2\): install"
    rewrite_digest(tmp_path / "2", format=3, leaves=None, arrays=[])
    with pytest.raises(UserError, match=later):
        Checkpoints(tmp_path, keep_latest=2)
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]
    path = tmp_path / "2" / "digest" / "metadata"
    path.write_text(path.read_text().replace('"format": 3', '"format": 7'))  # a flipped bit is damage
    with Checkpoints(tmp_path, keep_latest=2) as checkpoints:
        assert checkpoints.latest_step() == 1
