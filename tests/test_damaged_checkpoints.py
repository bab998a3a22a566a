"""Every file of a checkpoint, damaged in every way: what is restored is right, and what was damaged is named."""

import shutil

import pytest
from runs import assert_same_run, stop_after
from states import assert_equal, make_state

from inception_jax import train
from inception_jax.config import default_config
from inception_jax.runs.checkpoints import Checkpoints


def flip(path, share):
    content = bytearray(path.read_bytes())
    if content:
        content[round(share * (len(content) - 1))] ^= 1
    path.write_bytes(content)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    if path.is_dir():
        shutil.rmtree(path)
        path.mkdir()
    else:
        path.write_bytes(b"")


def delete(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def damages(folder, *, all_of_them):
    """(name, function of a copy of the folder) for every damage of every file and folder in it."""
    paths = [folder, *sorted(folder.rglob("*"))]
    files = [path for path in paths if path.is_file()]
    folders = [path for path in paths if path.is_dir()]
    kinds = {"a flipped bit in the middle of": (lambda path: flip(path, 0.5), files), "no": (delete, paths)}
    if all_of_them:
        kinds |= {
            "a flipped bit in the first byte of": (lambda path: flip(path, 0.0), files),
            "a flipped bit in the last byte of": (lambda path: flip(path, 1.0), files),
            "half of": (truncate, files),
            "an empty": (empty, paths),
        }
    assert len(files) > 15
    assert len(folders) > 5
    for kind, (function, where) in kinds.items():
        for path in where:
            name = path.relative_to(folder.parent)
            yield f"{kind} {name}", lambda copy, function=function, name=name: function(copy / name)


@pytest.mark.parametrize("all_of_them", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_passed_over_or_bit_equal(tmp_path, all_of_them, caplog, capfd):
    states = {step: make_state(step, step=step) for step in (1, 2, 3)}
    original, copy = tmp_path / "original", tmp_path / "copy"
    with Checkpoints(original, keep_latest=2) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, states[step], {"seconds": step}, {"validation_top1": step / 10})
    passed_over = 0
    for damage, apply in damages(original / "2", all_of_them=all_of_them):
        shutil.copytree(original, copy)
        apply(copy)
        caplog.clear()
        with Checkpoints(copy, keep_latest=2) as checkpoints:
            latest = checkpoints.latest_step()
            assert checkpoints.progress(latest) == {"seconds": latest}, damage
            assert checkpoints.best_step() == latest, damage
            state, progress = checkpoints.restore(None, make_state())
            step = progress["seconds"]
            assert_equal(state, states[step])
            assert checkpoints.latest_step() == checkpoints.best_step() == step, damage
            named = ["the checkpoint of step 2 is damaged: " in message for message in caplog.messages]
            # Nothing is left of a folder that somebody has removed, so there is nothing to name.
            assert named == ([] if step == 2 or not (copy / "2").exists() else [True]), damage
            passed_over += step == 1
            checkpoints.save(3, states[3], {"seconds": 3})
            assert_equal(checkpoints.restore(None, make_state())[0], states[3])
            assert checkpoints.steps() == ([1, 3] if step == 1 else [2, 3]), damage
        shutil.rmtree(copy)
    assert passed_over > 10
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_a_run_with_a_damaged_checkpoint_ends_as_if_nothing_had_been(digits, tmp_path, monkeypatch):
    config = default_config()
    config.batch_size = 60  # 21 steps an epoch
    config.num_devices = 1
    config.num_epochs = 2
    config.model.name = "simple_cnn"
    config.model.stage_features = (4, 8)
    config.data.directory = str(digits)
    config.checkpoint.every_steps = 15
    config.checkpoint.keep_latest = 2
    config.log.tensorboard = False
    whole, stopped, copy = tmp_path / "whole", tmp_path / "stopped", tmp_path / "copy"
    train.train_and_evaluate(config, whole)
    with monkeypatch.context() as patched:
        stop_after(patched, 33)
        with pytest.raises(train.Interrupted):
            train.train_and_evaluate(config, stopped)
    # An eighth of them: what reading makes of each is tried above.
    for damage, apply in list(damages(stopped / "checkpoints" / "33", all_of_them=False))[::8]:
        shutil.copytree(stopped, copy)
        apply(copy / "checkpoints")
        train.train_and_evaluate(config, copy)
        try:
            assert_same_run(copy, whole)
        except AssertionError as error:
            raise AssertionError(f"after {damage}") from error
        shutil.rmtree(copy)
