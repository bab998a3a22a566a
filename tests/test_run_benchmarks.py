"""The benchmarks of whole runs run; how fast anything is, is not asserted."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from inception_jax import train

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("name", ["kill_runs", "loop_overhead", "time_to_accuracy"])
def test_help_shows_examples(name):
    script = BENCHMARKS / f"{name}.py"
    shown = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True, check=True).stdout
    assert f"python benchmarks/{name}.py --" in shown


def test_the_loop_takes_turns_with_the_bare_step(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(train, "Progress", train.Progress)  # put back afterwards
    import loop_overhead

    fields = ["--config.model.name=simple_cnn", "--config.model.stage_features=(4,8)", "--config.num_devices=1"]
    loop_overhead.benchmark(["--steps=2", "--rounds=3", "--config.batch_size=4", *fields])
    shown = capsys.readouterr().out
    assert [line.split(" | ")[0] for line in shown.splitlines() if line.startswith("| ")][2:] == ["| 1", "| 2", "| 3"]
    assert "medians: bare " in shown


def test_runs_with_several_seeds_are_summed_up(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import time_to_accuracy

    def train_without_training(command):
        flags = dict(part.split("=", 1) for part in command if "=" in part)
        assert flags["--config"] == "googlenet_digits"
        assert flags["--config.batch_size"] == "8"
        folder, seed = Path(flags["--workdir"]), int(flags["--config.seed"])
        folder.mkdir(parents=True)
        summary = {"test": {"top1": 0.94 + 0.01 * seed}, "epochs": 18.0, "stopped": "target"}
        times = {"training_seconds": 40.0 + seed, "evaluation_seconds": 1.0}
        (folder / "summary.json").write_text(json.dumps(summary | times))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(time_to_accuracy.subprocess, "run", train_without_training)
    arguments = ["--config=googlenet_digits", "--runs=3", f"--workdir={tmp_path}", "--config.batch_size=8"]
    time_to_accuracy.main(arguments)
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("| 1 | 95.00 | 18.00 | 41.00 | 1.00 |")
    assert lines[5].startswith("| mean | 95.00 | 18.00 | 41.00 | 1.00 |")
    assert lines[6].startswith("| deviation | 1.00 | 0.00 | 1.00 | 0.00 |")
    with pytest.raises(SystemExit, match="seed_0 exists"):
        time_to_accuracy.main(arguments)


@pytest.mark.parametrize(("number", "kills"), [("KILL", 10), pytest.param("TERM", 5, marks=pytest.mark.slow)])
def test_killed_runs_end_as_if_nothing_had_been(monkeypatch, capsys, tmp_path, digits, number, kills):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import kill_runs

    arguments = [f"--kills={kills}", f"--signal={number}", f"--workdir={tmp_path / 'runs'}"]
    code = kill_runs.main([*arguments, f"--config.data.directory={digits}", "--config.num_epochs=2"])
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert f"SIG{number} at random moments" in shown
