"""A rate that restarts: the checkpoints at the ends of its cycles, their ensemble, and further cycles."""

import json
import shutil

import numpy as np
import pytest
from runs import assert_same_run, small_config

from inception_jax import commands, train
from inception_jax.errors import UserError
from inception_jax.runs.checkpoint_folders import saved_steps
from inception_jax.runs.run import load_run, snapshot_steps
from inception_jax.trained import evaluate


@pytest.fixture(scope="module")
def config(digits):
    """Cycles of one and a half epochs."""
    config = small_config(digits)
    config.schedule.name = "cosine"
    config.num_epochs, config.schedule.cycles = 6, 4
    config.checkpoint.keep_latest, config.checkpoint.keep_best = 1, 0
    return config


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    train.train_and_evaluate(config, folder)
    return folder


def test_a_run_is_extended_by_whole_cycles(config, whole, tmp_path):
    config = config.copy_and_resolve_references()
    config.num_epochs, config.schedule.cycles = 3, 2
    train.train_and_evaluate(config, tmp_path)
    assert saved_steps(tmp_path / "checkpoints") == [32, 63]
    for epochs, cycles in ((6, 2), (5, 3)):
        config.num_epochs, config.schedule.cycles = epochs, cycles
        with pytest.raises(UserError, match=f"cannot be extended from 3 to {epochs} epochs: .* number of whole cycles"):
            train.train_and_evaluate(config, tmp_path)
    config.num_epochs, config.schedule.cycles = 6, 4
    train.train_and_evaluate(config, tmp_path)
    assert saved_steps(tmp_path / "checkpoints") == [32, 63, 94, 126]
    assert_same_run(tmp_path, whole)


def test_an_ensemble_of_the_cycles(whole, tmp_path, capsys):
    steps = snapshot_steps(whole)
    assert saved_steps(whole / "checkpoints") == steps == [32, 63, 94, 126]
    assert commands.main(["evaluate", str(whole), "--snapshots", "--json", "--split", "validation"]) == 0
    *rows, together = json.loads(capsys.readouterr().out).values()
    assert [(row["checkpoint"], row["step"], row["all"]["count"]) for row in rows] == [
        ("snapshot", step, rows[0]["all"]["count"]) for step in steps
    ]
    members = [load_run(whole, step) for step in steps]
    split = evaluate.load_for(members[0], "validation", {}).splits["validation"]
    images, labels = split.gather(np.arange(len(split)))
    probabilities = np.mean([member.predict(images) for member in members], axis=0)
    assert together["all"]["top1"] == pytest.approx(np.mean(probabilities.argmax(axis=1) == labels))
    own = -np.log(probabilities[np.arange(len(labels)), labels])
    assert together["all"]["loss"] == pytest.approx(own.mean(), rel=1e-4)
    assert [each["step"] for each in together["members"]] == steps
    other = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(other / "checkpoints" / "63")
    assert commands.main(["evaluate", str(other), "--snapshots"]) == 2
    assert capsys.readouterr().err.endswith("run: the checkpoint of step 63 is missing\n")
