"""The benchmarks of whole runs run; how fast anything is, is not asserted."""

import contextlib
import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from inception_jax import process

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.mark.parametrize("name", ["differing_processes", "kill_runs", "loop_overhead", "serving", "time_to_accuracy"])
def test_help_shows_examples(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    monkeypatch.syspath_prepend(str(BENCHMARKS))  # as where a script is started
    monkeypatch.setattr(process, "tune", lambda: None)  # which would be for the other tests, too
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(str(BENCHMARKS / f"{name}.py"), run_name="__main__")
    assert f"python benchmarks/{name}.py --" in capsys.readouterr().out


@pytest.mark.slow
def test_the_loop_takes_turns_with_the_bare_step(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
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


@pytest.mark.slow
def test_a_served_network_answers_a_second_process(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import serving

    monkeypatch.setattr(serving, "BARE_SECONDS", 0.1)
    arguments = ["--network=simple_cnn", "--image-size=32", "--requests=100", "--concurrency=16"]
    assert serving.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "100 requests, 16 at once\nfailed: 0\n" in shown
    for figure in ("throughput: ", "bare inference: ", "latency: p50 ", "resident memory of the server: "):
        assert f"\n{figure}" in shown


@pytest.mark.parametrize("wrong", [False, True])
def test_scaling_holds_the_losses_of_divided_batches_against_each_other(monkeypatch, capsys, wrong):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import scaling

    def measure(options, *, batch, devices=1, processes=1, joined=True):
        parts = devices * processes
        off = 0.01 * (wrong and processes == 2 and joined)
        loss = (2.5 if parts * batch == 16 else 9.0) + 1e-6 * parts + off
        return {"loss": loss, "seconds": [0.1 * parts], "replay": [0.1], "all_reduces": [[(3, 4)]]}

    monkeypatch.setattr(scaling, "measure", measure)
    with pytest.raises(SystemExit, match="the losses differ") if wrong else contextlib.nullcontext():
        scaling.main(["--batch=16", "--devices", "1", "2", "8", "--rounds=1"])
    shown = capsys.readouterr().out
    assert "loss of the first step, over all splits of the batch: 2.500001 to 2.5" in shown
    assert "predicted / measured: 1.50" in shown
    assert "| strong | 8 | 16 | 800.0 | 20 | 0.12 |" in shown


@pytest.mark.slow
@pytest.mark.parametrize(("number", "kills"), [("KILL", 2), ("TERM", 1)])
def test_killed_runs_end_as_if_nothing_had_been(monkeypatch, capsys, tmp_path, digits, number, kills):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import kill_runs

    arguments = [f"--kills={kills}", f"--signal={number}", f"--workdir={tmp_path / 'runs'}"]
    arguments += ["--config.model.stage_features=(4,)", "--config.log.tensorboard=false"]
    code = kill_runs.main([*arguments, f"--config.data.directory={digits}", "--config.num_epochs=2"])
    shown = capsys.readouterr().out
    assert code == 0, shown
    assert f"SIG{number} at random times" in shown
