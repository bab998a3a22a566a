"""`inception-jax study`: trains what is missing, goes on after anything, and reports."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import programs
import pytest
from fake_runs import fake_plan, finish
from small_archives import write_cifar10

from inception_jax import data
from inception_jax.commands import main
from inception_jax.files import read_json
from inception_jax.studies import runner
from inception_jax.studies.plan import PlannedRun, load_study, make_plan, shipped_studies
from inception_jax.studies.results import EXTRAS

STUDY = """
import sys
sys.path.insert(0, {tests!r})
from fake_runs import make_study

def get_study():
    return make_study(gradient_norms=True)
"""
TIMINGS = ("training_minutes", "minutes", "images_per_second")
# One of each way to train and to measure, and what its smoke form needs from the folder with the original archives. The
# others train networks of the same kinds (finetuning: that of uc_merced, on its pictures); that all of them plan in
# every form is tried elsewhere.
SMOKES = {
    "simple_against_googlenet": {"data.folder": "imagenet10"},
    "tiny_vgg": {"data.archives": ""},
    "tiny_vgg_search": {"data.archives": ""},
    "uc_merced": {"data.archives": "ucmerced"},
}


@pytest.fixture
def study_file(tmp_path):
    path = tmp_path / "widths.py"
    path.write_text(STUDY.format(tests=str(Path(__file__).parent.parent)))
    return path


def test_the_list_names_all_that_are_shipped(capsys):
    assert main(["study"]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == len(shipped_studies()) >= 13
    assert "residuals " in shown


def test_the_examples_of_the_help_are_of_shipped_studies(capsys):
    with pytest.raises(SystemExit):
        main(["study", "--help"])
    named = re.findall(r"inception-jax study (\w+) ", capsys.readouterr().out)
    assert named
    assert set(named) <= shipped_studies().keys()


def test_a_run_too_short_to_be_measured_is_named(study_file, tmp_path, monkeypatch, capsys):
    class Checkpoints(contextlib.nullcontext):
        def __enter__(self):
            return self

        def latest_step(self):
            return 1

        def progress(self, step):
            return {"steps_per_epoch": 1, "training_images": 0, "training_seconds": 0.0}

    def measure(planned):
        folder = tmp_path / planned.variation / "run"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(planned.load_config().to_json())
        return 1.0, folder

    monkeypatch.setattr(runner, "measure", measure)
    monkeypatch.setattr("inception_jax.runs.folder.open_checkpoints", lambda folder, config: Checkpoints())
    assert main(["study", str(study_file), "--dry-run", "--workdir", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert shown.out.count("not measured: it ends after its first step") == 2
    assert "measuring narrow (1 of 2)\n" in shown.err
    assert "measuring wide (2 of 2)\n" in shown.err


def test_what_is_complete_is_not_trained_again(study_file, tmp_path, monkeypatch, capsys):
    plan = fake_plan(tmp_path / "work", wide=(0.90, 0.92, 0.91), narrow=(0.80, 0.81, 0.805))
    monkeypatch.setattr("inception_jax.studies.extras.measure_all", lambda table: {})
    assert main(["study", str(study_file), "--workdir", str(tmp_path / "work")]) == 0
    assert "holds: wider is better" in capsys.readouterr().out
    assert (plan.folder / "report.html").is_file()


def test_a_run_that_fails_is_reported_and_the_others_go_on(study_file, tmp_path, monkeypatch):
    def command(planned, folder=None):
        finish(planned, 0.9) if planned.seed == 0 else None
        return [sys.executable, "-c", f"print('nothing works'); raise SystemExit({3 * (planned.seed > 0)})"]

    monkeypatch.setattr("inception_jax.studies.plan.PlannedRun.command", command)
    monkeypatch.setattr("inception_jax.studies.extras.measure_all", lambda table: {})
    plan = make_plan(*load_study(str(study_file)), "smoke", tmp_path)
    failures = runner.train(plan.runs, jobs=2)
    assert {path.parent.name for path in failures} == {"narrow", "wide"}
    assert set(failures.values()) == {"exit code 3: nothing works"}


def terminated_when(ready: Path) -> threading.Thread:
    """Sends this process SIGTERM when the file is there."""

    def terminate():
        until = time.monotonic() + 60
        while not ready.exists() and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=terminate)
    sender.start()
    return sender


def test_sigterm_lets_the_runs_save_and_asks_for_a_new_start(study_file, tmp_path, monkeypatch, capsys):
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    run = f"""
import pathlib, signal, time

def save(*_):
    pathlib.Path({str(saved)!r}).touch()
    raise SystemExit(75)

signal.signal(signal.SIGTERM, save)
pathlib.Path({str(ready)!r}).touch()
time.sleep(60)
"""
    monkeypatch.setattr("inception_jax.studies.plan.PlannedRun.command", lambda *_: [sys.executable, "-c", run])
    sender = terminated_when(ready)
    assert main(["study", str(study_file), "--form=smoke", "--workdir", str(tmp_path)]) == 75
    sender.join()
    assert saved.exists()
    assert "terminated: the same command continues" in capsys.readouterr().err


def test_a_dry_run_that_is_terminated_leaves_nothing_behind(study_file, tmp_path, monkeypatch):
    ready = tmp_path / "ready"
    run = f"import pathlib, time; pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"
    monkeypatch.setattr("inception_jax.studies.plan.PlannedRun.command", lambda *_: [sys.executable, "-c", run])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(tmp_path.iterdir())
    sender = terminated_when(ready)
    assert main(["study", str(study_file), "--form=smoke", "--dry-run", "--workdir", str(tmp_path / "work")]) == 75
    sender.join()
    assert set(tmp_path.iterdir()) == before | {ready}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["no_such_study"], "unknown study 'no_such_study'"),
        (["residuals", "--form", "large"], "unknown form 'large'. Known: cores, cpu, full, smoke"),
        (["residuals", "--budget", "soon"], "--budget=soon is not allowed: it must be e.g. 5epochs or 30minutes"),
        (["residuals", "--jobs", "0"], "--jobs=0 is not allowed"),
    ],
)
def test_mistakes_are_answered_in_one_line(capsys, flags, message):
    assert main(["study", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def run_study(study_file, workdir, digits, *, wait=True):
    command = [sys.executable, "-c", programs.STUDIES, "study", str(study_file), "--form=smoke", "--seeds=0"]
    command += [f"--workdir={workdir}", f"--config.data.directory={digits}"]
    process = subprocess.Popen(command, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"}, start_new_session=True)
    if wait:
        assert process.wait(300) == 0
    return process


def numbers(workdir):
    def without_timings(value):
        if isinstance(value, dict):
            return {key: without_timings(item) for key, item in value.items() if key not in TIMINGS}
        return [without_timings(item) for item in value] if isinstance(value, list) else value

    return without_timings(json.loads((workdir / "widths" / "smoke" / "results.json").read_text()))


@pytest.mark.slow
def test_a_study_that_is_killed_ends_with_the_same_report(study_file, tmp_path, digits):
    run_study(study_file, tmp_path / "whole", digits)
    killed = tmp_path / "killed"
    for variation in ("narrow", "wide"):
        process = run_study(study_file, killed, digits, wait=False)
        metrics = killed / "widths" / "smoke" / variation / "seed0" / "metrics.csv"
        until = time.monotonic() + 300
        while not metrics.exists() and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run_study(study_file, killed, digits)
    assert numbers(killed) == numbers(tmp_path / "whole")
    assert {state["state"] for found in numbers(killed)["results"].values() for state in found} == {"complete"}
    extras = read_json(killed / "widths" / "smoke" / "wide" / "seed0" / EXTRAS)
    assert {*extras["gradient_norms"]} == {"start", "end"}


@pytest.mark.slow
@pytest.mark.parametrize("name", SMOKES)
def test_the_smallest_form_of_a_study_runs_to_its_report(name, originals, prepared, tmp_path, monkeypatch):
    if name == "simple_against_googlenet":  # whose networks are evaluated on CIFAR-10, too: on a few of its images
        monkeypatch.setenv("INCEPTION_JAX_DATA", str(tmp_path / "prepared"))
        data.prepare("cifar10", archives=write_cifar10(tmp_path / "archives", monkeypatch))
    monkeypatch.setattr(PlannedRun, "command", programs.command)
    fields = {"num_devices": 1, "data.archives": str(originals)}
    fields |= {field: str(originals / place) for field, place in SMOKES[name].items()}
    flags = [f"--config.{field}={value}" for field, value in fields.items()]
    assert main(["study", name, "--form=smoke", f"--workdir={tmp_path}", *flags]) == 0
    content = json.loads((tmp_path / name / "smoke" / "results.json").read_text())
    assert all(run["state"] == "complete" for found in content["results"].values() for run in found)
    assert {claim["verdict"] for claim in content["claims"]} <= {"none"}
