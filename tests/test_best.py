"""Which weights are the best: those that were, or a line that says why they are not at hand; never another one's."""

import json
import shutil

import numpy as np
import pytest
from runs import rows, stop_after

from inception_jax import train
from inception_jax.commands import main
from inception_jax.config import default_config
from inception_jax.errors import UserError
from inception_jax.runs import run
from inception_jax.runs.verification import Manifest
from inception_jax.trained import evaluate
from inception_jax.trained.report.findings import examine

BEST, LATEST, LAST_BUT_ONE = 42, 84, 63


@pytest.fixture(scope="module")
def config(digits):
    """21 steps an epoch, of which the third ruins what was learnt before."""
    config = default_config()
    config.batch_size = 60
    config.num_devices = 1
    config.num_epochs = 4
    config.model.name = "simple_cnn"
    config.model.norm = "batch"
    config.model.stage_features = (4, 8)
    config.data.directory = str(digits)
    config.schedule.name = "step"
    config.schedule.learning_rate = 0.05
    config.schedule.boundaries = (2,)
    config.schedule.factor = 60.0
    config.log.tensorboard = False
    return config


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    train.train_and_evaluate(config, folder)
    assert json.loads((folder / "summary.json").read_text())["best"]["step"] == BEST
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["42", "63", "84"]
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def append(path):
    with path.open("ab") as file:
        file.write(b"x")


def damage_arrays(checkpoint):
    largest = max((checkpoint / "state").rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
    largest.write_bytes(b"\0" * largest.stat().st_size)


DAMAGES = {
    "digest": lambda checkpoint: append(checkpoint / "digest" / "metadata"),
    "progress": lambda checkpoint: append(checkpoint / "progress" / "metadata"),
    "nesting": lambda checkpoint: (checkpoint / "progress" / "metadata").write_text("[" * 100_000),
    "arrays": damage_arrays,
    "gone": shutil.rmtree,
    "set aside": lambda checkpoint: checkpoint.rename(checkpoint.with_name(f"damaged-{checkpoint.name}")),
}


def watched(folder):
    """The watched metric by step, as metrics.csv has it."""
    return {int(row["step"]): float(row["validation_top1"]) for row in rows(folder)}


def as_before(folder):
    """Takes from every record what runs of before did not note."""
    for step in (folder / "checkpoints").iterdir():
        path = step / "progress" / "metadata"
        progress = {name: value for name, value in json.loads(path.read_text()).items() if name != "best_step"}
        digest = json.loads((step / "digest" / "metadata").read_text())
        manifest = Manifest(digest["leaves"], progress, digest["metrics"])
        path.write_text(json.dumps(progress))
        (step / "digest" / "metadata").write_text(json.dumps(manifest.digest()))


@pytest.mark.parametrize(("damage", "noted"), [*((damage, True) for damage in DAMAGES), ("gone", False)])
def test_a_best_checkpoint_that_is_damaged_or_gone_is_refused_and_the_latest_one_is_not(folder, damage, noted):
    if not noted:
        as_before(folder)
    assert run.load_run(folder).step == BEST
    DAMAGES[damage](folder / "checkpoints" / str(BEST))
    with pytest.raises(UserError, match=rf"step {BEST}.*'latest'") as error:
        run.load_run(folder)
    assert len(str(error.value).splitlines()) == 1
    assert run.load_run(folder, "latest").step == LATEST


def test_commands_do_not_answer_with_another_ones_accuracy(folder, capsys):
    append(folder / "checkpoints" / str(BEST) / "digest" / "metadata")
    assert main(["evaluate", str(folder), "--split", "validation"]) == 2
    shown = capsys.readouterr()
    assert f"step {BEST}" in shown.err
    assert shown.out == ""
    with pytest.raises(UserError, match=f"step {BEST}"):
        examine(folder)


@pytest.mark.parametrize("damage", ["digest", "gone", "set aside"])
def test_where_the_best_is_the_latest_as_well_the_one_before_does_not_stand_for_it(folder, damage):
    """What the latest one's record would say is lost with it."""
    content = json.loads((folder / "summary.json").read_text())
    lines = (folder / "metrics.csv").read_text().splitlines()
    column = lines[0].split(",").index("validation_top1")
    cells = lines[-1].split(",")
    cells[column] = "0.999"  # as if the last evaluation had been the best
    (folder / "metrics.csv").write_text("\n".join([*lines[:-1], ",".join(cells), ""]))
    content["best"] |= {"step": LATEST, "value": 0.999}
    (folder / "summary.json").write_text(json.dumps(content))
    DAMAGES[damage](folder / "checkpoints" / str(LATEST))
    with pytest.raises(UserError, match=rf"step {LATEST} .*0\.999.*Choose checkpoint 'latest' for step {LAST_BUT_ONE}"):
        run.load_run(folder)
    assert run.load_run(folder, "latest").step == LAST_BUT_ONE


@pytest.mark.parametrize(("damage", "noted"), [("digest", True), ("digest", False), ("arrays", True), ("gone", True)])
def test_a_summary_has_no_steps_value_but_its_own(config, folder, damage, noted, caplog):
    """Of a run that is started again after its best checkpoint was lost."""
    if not noted:
        as_before(folder)
    values = watched(folder)
    DAMAGES[damage](folder / "checkpoints" / str(BEST))
    with caplog.at_level("WARNING", "inception_jax"):
        summary = train.train_and_evaluate(config, folder)
    step = summary["best"]["step"]
    assert step in (LAST_BUT_ONE, LATEST)
    assert summary["best"]["value"] == values[step] == max(values[LAST_BUT_ONE], values[LATEST])
    assert summary["best"]["validation"]["top1"] == pytest.approx(values[step], abs=1e-9)
    assert f"that of step {step} (validation_top1" in caplog.text
    assert f"by validation_top1 {values[step]:.4f}" in train.describe_result(summary)[-1]


def test_a_run_goes_on_with_the_best_that_it_had(config, tmp_path, monkeypatch):
    """Also for early stopping, which waits for its patience: the best value of before counts, whatever became of its
    checkpoint.
    """
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    config = config.copy_and_resolve_references()
    config.evaluate.early_stopping_patience = 2
    config.num_epochs = 6
    result = train.train_and_evaluate(config, whole)
    assert (result["stopped"], result["epochs"], result["best"]["step"]) == ("early", 4, BEST)
    stop_after(monkeypatch, 70)
    with pytest.raises(train.Interrupted):
        train.train_and_evaluate(config, stopped)
    append(stopped / "checkpoints" / str(BEST) / "digest" / "metadata")
    summary = train.train_and_evaluate(config, stopped)
    assert rows(stopped) == rows(whole)
    assert summary["best"]["step"] != BEST
    assert summary["best"]["value"] == watched(stopped)[summary["best"]["step"]]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_where_no_best_is_kept_another_one_is_named_with_its_own_value(config, tmp_path, mode, caplog):
    config = config.copy_and_resolve_references()
    config.checkpoint.keep_best = 0
    config.evaluate.watch = "validation_top1" if mode == "max" else "validation_loss"
    config.evaluate.watch_mode = mode
    summary = train.train_and_evaluate(config, tmp_path)
    values = {int(row["step"]): float(row[config.evaluate.watch]) for row in rows(tmp_path)}
    pick = max if mode == "max" else min
    best = pick(values, key=values.__getitem__)
    there = pick((LAST_BUT_ONE, LATEST), key=values.__getitem__)
    assert best not in (LAST_BUT_ONE, LATEST)
    assert (summary["best"]["step"], summary["best"]["value"]) == (there, values[there])
    caplog.clear()
    assert run.load_run(tmp_path).step == there
    (message,) = caplog.messages
    assert f"step {best} ({config.evaluate.watch} {values[best]:g})" in message
    assert f"Using step {there} ({config.evaluate.watch} {values[there]:g}) instead" in message


def test_of_several_best_ones_the_first_is_meant(config, tmp_path):
    config = config.copy_and_resolve_references()
    config.checkpoint.keep_best = 3
    summary = train.train_and_evaluate(config, tmp_path)
    assert run.load_run(tmp_path).step == summary["best"]["step"] == BEST
    append(tmp_path / "checkpoints" / str(BEST) / "digest" / "metadata")
    with pytest.raises(UserError, match=f"step {BEST}"):
        run.load_run(tmp_path)


def test_the_best_ones_accuracy_is_what_the_summary_says(folder):
    loaded = run.load_run(folder)
    found = evaluate.metrics(evaluate.predictions(loaded, evaluate.load_for(loaded, "validation", {}), "validation"))
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert best["value"] == best["validation"]["top1"] == pytest.approx(found["top1"], abs=1e-9)
    assert np.isclose(best["value"], watched(folder)[BEST])
