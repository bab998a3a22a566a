"""Several studies one after the other: what is read, what is kept, what the status page says."""

import argparse
import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import programs
import pytest
from browser import WIDTHS, assert_fits, browser, page
from fake_runs import finish, make_study, write_study
from runs import assert_same_run

from inception_jax.commands import main
from inception_jax.errors import LostError, UserError
from inception_jax.files import cannot_write, held, read_json
from inception_jax.studies import runner
from inception_jax.studies.plan import make_plan, start
from inception_jax.studies.queue import Queue, QueueEntry, make_entry, read_entries
from inception_jax.studies.status import Status, read_run_progress, run_name
from inception_jax.train.console import Console

FORM = ["--form", "smoke"]  # two variations with two seeds
UNSET = argparse.Namespace(form=None, only=None, epochs=None, seeds=None)


@pytest.fixture
def studies(tmp_path):
    """Two study files, the queue file that names them, and the command for it."""
    first, second = (write_study(tmp_path / f"{name}.py") for name in ("first", "second"))
    queue = tmp_path / "weekend.txt"
    queue.write_text(f"{first} --only narrow\n\n# all of it\n{second}  # both\n")
    return queue


def command(queue, workdir, *more):
    return ["study", "--queue", str(queue), "--workdir", str(workdir), *FORM, *more]


@pytest.fixture
def made_up(monkeypatch):
    """Runs without training; the list of those that were started, and a set of names of those that fail."""
    started, failing = [], set()

    def run(planned, folder=None):
        name = f"{planned.folder.parts[-4]}: {run_name(planned)}"
        started.append(name)
        if name in failing:
            return [sys.executable, "-c", "print('nothing works'); raise SystemExit(3)"]
        finish(planned, 0.9)
        return [sys.executable, "-c", ""]

    def write_report(table, failures):
        (table.plan.folder / "report.html").touch()
        return table.plan.folder / "report.html"

    monkeypatch.setattr("inception_jax.studies.plan.PlannedRun.command", run)
    monkeypatch.setattr("inception_jax.studies.runner.apart", lambda function, table, tick: {})
    monkeypatch.setattr("inception_jax.studies.report.write_report", write_report)
    return started, failing


def status(workdir):
    content = read_json(workdir / "queue.json")
    return content | {"studies": {study["name"].partition(",")[0]: study for study in content["studies"]}}


def test_a_line_is_read_as_the_command_line_is(tmp_path):
    path = tmp_path / "weekend.txt"
    path.write_text(
        "# a weekend\n\nresiduals --only 'plain_*' --only residual_3x3 --config.a='x y' # first\naux_heads\n"
    )
    defaults = argparse.Namespace(form="cpu", only=None, epochs=3, seeds=(1, 2))
    first, second = read_entries(path, defaults, ["--config.a=z"])
    assert first.study == "residuals"
    assert first.only == ("plain_*", "residual_3x3")
    assert first.fields == ("--config.a=z", "--config.a=x y")  # the last one counts
    assert first.place == f"{path}, line 3"
    assert second == make_entry("aux_heads", defaults, ["--config.a=z"], f"{path}, line 4")
    path.write_text(f"residuals --form smoke {first.options}")
    (again,) = read_entries(path, UNSET)
    assert (again.only, again.epochs, again.seeds, again.fields) == (first.only, 3, (1, 2), first.fields)


def test_the_queue_file_of_the_page_can_be_run(tmp_path):
    pages = Path(__file__).parents[2] / "docs"
    (text,) = re.findall(r"^```text\n(.*?)^```$", (pages / "studies.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "weekend.txt").write_text(text)
    *shipped, own = read_entries(tmp_path / "weekend.txt", UNSET)
    assert [plan.form_name for plan in Queue(tuple(shipped), tmp_path).plans()] == ["cores", "cores", "cpu-20epochs"]
    assert own == make_entry("my_study.py", UNSET, ["--config.data.archives=~/archives"], own.place)


def test_seeds_and_epochs_of_a_line_are_those_of_its_runs(studies, tmp_path):
    studies.write_text(f"{tmp_path / 'first.py'} --seeds 4,7 --epochs 3 --only wide")
    (plan,) = Queue(read_entries(studies, UNSET), tmp_path).plans()
    assert [(run_name(planned), planned.load_config().num_epochs) for planned in plan.runs] == [
        ("wide, seed 4", 3),
        ("wide, seed 7", 3),
    ]
    assert plan.folder == tmp_path / "first" / "full-3epochs"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "contains no study"),
        ("# nothing\n", "contains no study"),
        ("{study}\nno_such_study", "weekend.txt, line 2: unknown study 'no_such_study'"),
        ("{study} --form large", "weekend.txt, line 1: unknown form 'large'. Known: full, smoke"),
        ("{study} 'x", "weekend.txt, line 1: No closing quotation"),
        ("{study} --epochs 0", "weekend.txt, line 1: argument --epochs: '0' is not a whole number of at least 1"),
        ("{study} --seeds 1,1", "weekend.txt, line 1: argument --seeds: '1,1' is not a list of distinct numbers"),
        ("{study} --budget 3minutes", "weekend.txt, line 1: unexpected argument '--budget'"),
        ("--form smoke", "weekend.txt, line 1: the following arguments are required: study"),
        (
            "{study}\n{study} --only wide --config.batch_size=32",
            "line 1 and {place}/weekend.txt, line 2 would train {place}/first/smoke/wide/seed0 with different fields: "
            "--config.batch_size=32",
        ),
    ],
)
def test_mistakes_in_the_file_are_named_before_anything_is_trained(studies, tmp_path, text, message, capsys):
    studies.write_text(text.format(study=tmp_path / "first.py"))
    assert main(command(studies, tmp_path)) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert message.format(place=tmp_path) in error
    assert not (tmp_path / "first").exists()


def test_mistakes_on_the_command_line_are_named(studies, tmp_path, capsys):
    for words, message in (
        (["first.py", "--queue", str(studies)], "give either studies or --queue, not both: "),
        (["first.py", "--epochs", "3", "--budget", "3epochs"], "give either --epochs or --budget in epochs"),
        (["--queue", str(tmp_path / "none.txt")], "none.txt: No such file or directory"),
    ):
        assert main(["study", *words]) == 2
        assert message in capsys.readouterr().err


def test_a_run_with_another_config_in_its_place_is_found_at_the_start(studies, tmp_path):
    start(make_plan("second", make_study(fields={"batch_size": 32}), "smoke", tmp_path).runs[0])
    queue = Queue(read_entries(studies, argparse.Namespace(**vars(UNSET) | {"form": "smoke"})), tmp_path)
    with pytest.raises(UserError, match=r"weekend.txt, line 4: .*narrow/seed0 contains a run with another config"):
        queue.plans()


def test_a_queue_goes_on_after_a_failure_and_the_same_command_tries_it_again(studies, tmp_path, made_up, capsys):
    started, failing = made_up
    failing.add("first: narrow, seed 0")
    assert main(command(studies, tmp_path)) == 1
    failure = "first, form smoke: narrow, seed 0: exit code 3: nothing works"
    assert capsys.readouterr().err.splitlines()[-1] == f"failed: {failure}"
    assert len(started) == 6
    found = status(tmp_path)
    assert (found["state"], found["complete_runs"], found["runs"]) == ("finished", 5, 6)
    assert found["failures"] == [failure]
    assert {name: study["state"] for name, study in found["studies"].items()} == {
        "first": "failed",
        "second": "complete",
    }
    assert found["seconds_done"] == 5 * 90.0
    assert found["seconds_to_go"] == pytest.approx(90.0 / 4)  # one epoch, at the pace of the other seed
    assert found["studies"]["second"]["report"] == "second/smoke/report.html"
    text = (tmp_path / "queue.html").read_text()
    assert failure in text
    assert 'href="second/smoke/report.html"' in text

    failing.clear()
    assert main(command(studies, tmp_path)) == 0
    assert started[6:] == ["first: narrow, seed 0"]
    assert status(tmp_path)["failures"] == []


def test_names_on_the_command_line_are_a_queue_and_the_file_may_change(studies, tmp_path, made_up):
    names = [str(tmp_path / f"{name}.py") for name in ("second", "first")]
    options = ["--workdir", str(tmp_path / "work"), *FORM]
    assert main(["study", *names, *options, "--seeds", "0", "--only", "wide"]) == 0
    assert made_up[0] == ["second: wide, seed 0", "first: wide, seed 0"]
    assert main(command(studies, tmp_path / "work", "--only", "*")) == 0
    assert len(made_up[0]) == len(set(made_up[0])) == 7  # both seeds of "narrow", and the other three of "second"


def test_a_study_by_itself_has_its_status_in_its_folder(studies, tmp_path, made_up, monkeypatch):
    monkeypatch.setattr("inception_jax.studies.extras.measure_all", lambda table: {})
    assert main(["study", str(tmp_path / "first.py"), "--workdir", str(tmp_path), *FORM]) == 0
    assert status(tmp_path / "first" / "smoke")["studies"]["first"]["report"] == "report.html"
    assert not (tmp_path / "queue.json").exists()


def test_a_second_queue_in_the_folder_is_refused(studies, tmp_path, capsys):
    with held(tmp_path, "the queue's folder", "is running a queue of studies"):
        assert main(command(studies, tmp_path)) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: another process (pid {os.getpid()}, host ")
    assert error.endswith(f"is running a queue of studies in {tmp_path}")
    assert not (tmp_path / "queue.json").exists()


def test_a_study_that_cannot_be_worked_on_does_not_keep_the_next_one_waiting(studies, tmp_path, made_up):
    with held(tmp_path / "first" / "smoke", "the study's folder", "is running the study"):
        assert main(command(studies, tmp_path)) == 1
    found = status(tmp_path)["studies"]
    assert "is running the study in" in found["first"]["failures"]["the study"]
    assert found["second"]["state"] == "complete"


def test_a_mistake_in_the_package_is_a_failure_of_its_study_alone(studies, tmp_path, made_up, monkeypatch, capsys):
    def measured(function, table, tick):
        if table.plan.name == "first":
            raise ZeroDivisionError("by zero")
        return {}

    monkeypatch.setattr("inception_jax.studies.runner.apart", measured)
    assert main(command(studies, tmp_path)) == 1
    assert "Traceback" in capsys.readouterr().err
    found = status(tmp_path)["studies"]
    assert found["first"]["failures"] == {"the study": "by zero"}
    assert found["second"]["state"] == "complete"


def test_a_study_whose_measuring_dies_has_its_report_and_is_a_failure(studies, tmp_path, made_up, monkeypatch):
    def measured(function, table, tick):
        raise LostError("measure_all ended with exit code -9, without a result")

    monkeypatch.setattr("inception_jax.studies.runner.apart", measured)
    assert main(command(studies, tmp_path)) == 1
    for study in status(tmp_path)["studies"].values():
        assert study["report"]
        assert study["failures"]["the study"].startswith("measuring after training failed: measure_all ended with")


def test_a_full_disk_ends_the_queue(studies, tmp_path, made_up, monkeypatch, capsys):
    def write_report(table, failures):
        raise cannot_write(table.plan.folder, OSError(errno.ENOSPC, "No space left")) from OSError(errno.ENOSPC, "")

    monkeypatch.setattr("inception_jax.studies.report.write_report", write_report)
    assert main(command(studies, tmp_path)) == 4
    assert capsys.readouterr().err.splitlines()[-1].endswith(": No space left")
    assert {name.partition(":")[0] for name in made_up[0]} == {"first"}


def test_the_time_limit_is_of_the_whole_queue(studies, tmp_path, made_up):
    assert main(command(studies, tmp_path, "--budget", "0.00001minutes")) == 75
    found = status(tmp_path)
    assert made_up[0] == []
    assert found["state"] == "stopped"
    assert [study["state"] for study in found["studies"].values()] == ["incomplete", "waiting"]


def test_sigterm_lets_the_run_save_and_the_status_says_so(studies, tmp_path, made_up, monkeypatch, capsys):
    program = "import os, signal, sys, time\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
    program += "os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)"
    monkeypatch.setattr("inception_jax.studies.plan.PlannedRun.command", lambda *_: [sys.executable, "-c", program])
    assert main(command(studies, tmp_path)) == 75
    assert "terminated: the same command continues" in capsys.readouterr().err
    found = status(tmp_path)
    assert found["state"] == "stopped"
    assert {study["state"] for study in found["studies"].values()} == {"waiting"}


def test_a_dry_run_counts_a_run_once(studies, tmp_path, monkeypatch, capsys):
    studies.write_text("{study} --only narrow\n{study}\n".format(study=tmp_path / "first.py"))
    monkeypatch.setattr("inception_jax.commands.study._estimate", lambda name, runs: (name, len(runs) * 1.5, len(runs)))
    assert main(command(studies, tmp_path / "work", "--dry-run")) == 0
    assert capsys.readouterr().out.splitlines() == [
        "first, form smoke:",
        "narrow",
        "first, form smoke:",
        "wide",
        f"all: 6.0 hours without evaluation, one run after the other; 4.00 GB in {tmp_path / 'work'}",
    ]
    assert not (tmp_path / "work").exists()


def test_a_dry_run_counts_the_second_round_of_a_search(tmp_path, monkeypatch, capsys):
    search = "Search({'schedule.learning_rate': Range(0.01, 0.1)}, draws=3, finer=2)"
    study = Path(write_study(tmp_path / "searched.py"))
    study.write_text(
        study.read_text().replace("make_study as get_study", "make_study")
        + "from inception_jax.studies import Range, Search\n"
        + f"get_study = lambda: make_study(variations={{}}, claims=(), search={search})\n"
    )
    monkeypatch.setattr("inception_jax.commands.study._estimate", lambda name, runs: (name, len(runs) * 1.5, len(runs)))
    assert main(["study", str(study), "--form=smoke", "--dry-run", "--workdir", str(tmp_path / "work")]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [  # two seeds
        "4 finer runs follow from these: 6.00 h and 4.00 GB",
        f"all: 15.0 hours without evaluation, one run after the other; 10.00 GB in {tmp_path / 'work/searched/smoke'}",
    ]
    # A form with a part of the draws has no second round.
    assert main(["study", str(study), "--form=smoke", "--only=draw000", "--dry-run"]) == 0
    assert "finer" not in capsys.readouterr().out


def test_a_run_is_estimated_by_its_own_pace_or_that_of_others(tmp_path, monkeypatch):
    plan = make_plan("widths", make_study(), "full", tmp_path)  # three seeds, four epochs
    at_work = Status(tmp_path, [""], [plan])
    (unknown,) = at_work.as_json()["studies"]
    assert (unknown["runs_without_estimate"], unknown["seconds_to_go"]) == (6, 0.0)
    narrow, wide = (plan.runs_of(name) for name in ("narrow", "wide"))
    finish(narrow[0], 0.9)  # in 90 seconds
    for planned, seconds in ((narrow[1], 30.0), (wide[0], 40.0)):
        planned.folder.mkdir(parents=True)
        (planned.folder / "metrics.csv").write_text(f"step,epoch,seconds\n20,1.0,{seconds}\n")
    (found,) = at_work.as_json()["studies"]
    assert found["seconds_done"] == 90 + 30 + 40
    # Its own three epochs, another seed of "narrow" at the mean of two; one begun and two other seeds of "wide".
    assert found["seconds_to_go"] == pytest.approx(3 * 30 + 4 * (22.5 + 30) / 2 + 3 * 40 + 2 * 4 * 40)
    assert found["runs_without_estimate"] == 0

    log = wide[0].folder.with_suffix(".log")
    now, row = [100.0], {"learning_rate": 0.1, "train_loss": 1.0, "train_top1": 0.5}
    with log.open("w") as stream, monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", lambda: now[0])
        console = Console(80, 20, batch_size=13, mode="lines", stream=stream)
        console.due(25)
        console.update(25, row)  # without an estimate
        now[0] += 7.2
        console.update(30, row)  # 5 steps in 7.2 s: 50 more take 72 s
    assert read_run_progress(wide[0], 4).seconds_left is None  # the log may be of an earlier session
    at_work.tick([wide[0]], {})
    (running,) = at_work.as_json()["studies"][0]["now"]
    assert running == {"run": "wide, seed 0", "epoch": 1.5, "epochs": 4, "seconds_to_go": 72}
    log.write_text(log.read_text().splitlines()[0] + "\n")
    assert read_run_progress(wide[0], 4, is_running=True).seconds_left is None


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_says_what_runs(tmp_path, width):
    plan = make_plan("widths", make_study(), "smoke", tmp_path)
    at_work = Status(tmp_path, ["--only 'w*' --config.data.archives=" + 30 * "folder/"], [plan])
    at_work.enter(0, "training")
    at_work.tick(plan.runs[:1], {plan.runs[1].folder: "exit code 3: <loss> not finite"})
    with browser() as started, page(started, (tmp_path / "queue.html").as_uri(), width) as shown:
        assert_fits(shown)
        text = shown.inner_text("body")
    assert re.search(r"narrow, seed 0, epoch 0\.0 of 1, remaining: not known yet", text)
    assert "narrow, seed 1: exit code 3: <loss> not finite" in text


def test_a_status_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "queue.json").mkdir()
    at_work = Status(tmp_path, [""], [make_plan("widths", make_study(), "smoke", tmp_path)])
    at_work.write()
    at_work.write()
    assert caplog.text.count("cannot write the status page: cannot write") == 1


def test_what_is_called_apart_has_its_own_process():
    assert runner.apart(os.getpid, tick=lambda: None) != os.getpid()
    with pytest.raises(LostError, match="_exit ended with exit code 3, without a result"):
        runner.apart(os._exit, 3, tick=lambda: None)


def start_queue(queue, workdir, digits):
    program = [sys.executable, "-c", programs.STUDIES]
    program += command(queue, workdir, f"--config.data.directory={digits}")
    return subprocess.Popen(program, env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"}, start_new_session=True)


@pytest.mark.slow
@pytest.mark.first
def test_a_queue_that_is_killed_in_its_second_study_ends_with_the_same_results(tmp_path, digits):
    first, second = (write_study(tmp_path / f"{name}.py") for name in ("first", "second"))
    queue = tmp_path / "weekend.txt"
    queue.write_text(f"{first} --only narrow --seeds 0\n{second} --only wide --seeds 0 --epochs 12\n")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start_queue(queue, whole, digits).wait(900) == 0

    last = Path("second", "smoke-12epochs", "wide", "seed0")
    process = start_queue(queue, killed, digits)
    until = time.monotonic() + 900
    while not list((killed / last).glob("checkpoints/[0-9]*")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / last / "summary.json").exists()
    assert read_json(killed / "queue.json")["state"] == "running"
    assert start_queue(queue, killed, digits).wait(900) == 0

    assert status(killed)["state"] == "finished"
    folders = sorted(path.parent.relative_to(whole) for path in whole.rglob("summary.json"))
    assert len(folders) == 2
    for folder in folders:
        assert_same_run(killed / folder, whole / folder)
    for place in ("first/smoke", "second/smoke-12epochs"):
        results = [read_json(workdir / place / "results.json") for workdir in (whole, killed)]
        assert results[0] == results[1]


def test_studies_that_share_runs_are_a_queue(tmp_path):
    entries = tuple(QueueEntry(name, "cores") for name in ("residuals", "aux_heads", "deeper_cifar10"))
    folders = [planned.folder for plan in Queue(entries, tmp_path).plans() for planned in plan.runs]
    assert len(folders) == 5 + 2 + 3
    assert len(set(folders)) == 5 + 2
