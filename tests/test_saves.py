"""What a run saves by the clock, goes on without, and says in the end."""

import pytest
from runs import assert_same_run, rows, small_config, stop_after, summary

from inception_jax import main, train
from inception_jax.distributed import multihost
from inception_jax.runs import run
from inception_jax.train import session, stopping
from inception_jax.train.console import Console
from inception_jax.train.stopping import Votes


@pytest.fixture
def config(digits):
    config = small_config(digits)
    config.data.splits.train = "train[:600]"  # ten steps an epoch
    config.checkpoint.every_minutes = 0.0
    config.checkpoint.keep_latest = 100
    return config


def saved(folder):
    return sorted(int(step.name) for step in (folder / "checkpoints").iterdir())


def test_saves_by_the_clock_change_nothing(config, tmp_path, monkeypatch):
    config.data.splits.train = "train[:300]"  # five steps an epoch, since a save takes longer than a step
    train.train_and_evaluate(config, tmp_path / "without")
    assert saved(tmp_path / "without") == [5, 10]
    config.checkpoint.every_minutes = 1e-6  # that is: whenever a step ends
    stop_after(monkeypatch, 7)
    with pytest.raises(train.Interrupted):
        train.train_and_evaluate(config, tmp_path / "with")
    train.train_and_evaluate(config, tmp_path / "with")
    assert saved(tmp_path / "with") == list(range(1, 11))
    assert_same_run(tmp_path / "with", tmp_path / "without")

    config.nonfinite.retries = 1  # where it went back to would depend on the clock
    config.num_epochs = 1
    train.train_and_evaluate(config, tmp_path / "going_back")
    assert saved(tmp_path / "going_back") == [0, 5]


def test_the_interval_is_in_minutes_and_begins_anew_with_every_save(config, tmp_path, monkeypatch):
    """By a clock that moves a minute a step."""
    now = [0.0]

    class AMinuteAStep(Console):
        def due(self, step):
            now[0] = 60.0 * step
            return False

    class Time:
        @staticmethod
        def monotonic():
            return now[0]

    monkeypatch.setattr(session, "time", Time)
    config.checkpoint.every_minutes = 4.0
    config.checkpoint.every_steps = 7
    train.train_and_evaluate(config, tmp_path, console=AMinuteAStep)
    assert saved(tmp_path) == [4, 7, 10, 14, 18, 20]


@pytest.mark.parametrize("several", [False, True])
def test_processes_save_after_the_same_step(several, monkeypatch):
    """By the first one's clock, whose word counts as many steps later as a process may be behind; once for a save."""
    monkeypatch.setattr(multihost, "count", lambda: 2 if several else 1)
    votes = Votes(None, lambda: 0)
    if not several:
        assert votes.ends(5, True)
        assert votes.saves(5, 0, True)
        assert not votes.saves(5, 0, False)
        return
    for step, outcome in ((3, 1), (4, 1), (7, 0), (8, 2 * 15 + 1), (11, stopping.END)):
        votes.read(step, (0.5, outcome))
    # Whether to end the run is the word of the first process's callbacks, which come back with the step's result.
    assert [step for step in range(12) if votes.ends(step, asked=step < 11)] == [11]
    saved = 0
    for step in range(12):
        if votes.saves(step, saved, due=True):  # its own clock does not count
            saved = step
            assert step in (5, 10)
        assert votes.outcome(step) == (15 if step >= 10 else 0)
    assert saved == 10


def test_a_run_whose_metrics_are_damaged_goes_on(config, tmp_path, monkeypatch, caplog):
    train.train_and_evaluate(config, tmp_path / "whole")
    stop_after(monkeypatch, 13)
    with pytest.raises(train.Interrupted):
        train.train_and_evaluate(config, tmp_path / "stopped")
    path = tmp_path / "stopped" / "metrics.csv"
    path.write_bytes(path.read_bytes() + b"11,\xff," + b"9" * 200_000 + b"\n")
    with caplog.at_level("WARNING", "inception_jax"):
        train.train_and_evaluate(config, tmp_path / "stopped")
    assert "metrics.csv.damaged; its 1 intact row(s) are used" in caplog.text
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_the_command_ends_with_its_result(config, digits, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "from inception_jax.config import default_config\n"
        "def get_config():\n"
        "    config = default_config()\n"
        "    config.model.name = 'simple_cnn'\n"
        "    config.model.stage_features = (4,)\n"
        "    config.log.tensorboard = False\n"
        "    return config\n"
    )
    command = ["--config=own.py", "--config.num_epochs=2", "--config.batch_size=120", "--config.num_devices=1"]
    command.append(f"--config.data.directory={digits}")
    assert main.main(command) == 0
    result = summary(tmp_path / "runs" / "own")
    title, last, best = capsys.readouterr().err.splitlines()[-3:]
    assert title.startswith("own: completed after ")
    assert last.startswith("last: step 20, epoch 2  ")
    assert best.startswith(f"best: step {result['best']['step']}, epoch {result['best']['epoch']:g}  ")
    assert f"by validation_top1 {result['best']['value']:.4f}" in best
    for line, means in ((last, result), (best, result["best"])):
        for split in ("validation", "test"):
            shown = " ".join(f"{name} {means[split][name]:.4f}" for name in ("top1", "top5", "loss"))
            assert f"{split} {shown}" in line
    assert [float(row["validation_top1"]) for row in rows(tmp_path / "runs" / "own")][-1] == pytest.approx(
        result["validation"]["top1"]
    )
    assert run.load_run(tmp_path / "runs" / "own").step == result["best"]["step"]
