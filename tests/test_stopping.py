"""Ctrl-C and SIGTERM, once and again, at every moment of a run: what is said is true, and so is the exit code."""

import re
import shutil
import signal
import threading

import pytest
from loading import load_data

from inception_jax import data, files, main, process
from inception_jax.runs import checkpoints, run
from inception_jax.runs.folder import open_checkpoints, read_config
from inception_jax.train import fit, start, stopping, training
from inception_jax.train.console import Console

FIELDS = {
    "model.name": "simple_cnn", "model.stage_features": "(4,)", "model.norm": "none", "num_devices": "1",
    "data.splits.train": "train[:640]", "batch_size": "64", "num_epochs": "3", "log.tensorboard": "False",
    "average_decay": "0",
}  # fmt: skip
FLAGS = ["--config=googlenet_digits", *(f"--config.{name}={value}" for name, value in FIELDS.items())]  # 10 steps each


@pytest.fixture
def folder(tmp_path, digits, monkeypatch):
    """Of a run that is to be."""
    monkeypatch.setenv("INCEPTION_JAX_DATA", str(digits))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    yield tmp_path / "run"
    signal.signal(signal.SIGINT, before)


def send(*numbers):
    for number in numbers:
        signal.raise_signal(number)


def at_step(monkeypatch, step, *numbers, evaluated=False):
    name = "epoch" if evaluated else "due"
    shows = getattr(Console, name)

    def shows_and_sends(self, now, *row):
        if now == step:
            send(*numbers)
        return shows(self, now, *row)

    monkeypatch.setattr(Console, name, shows_and_sends)


def before_call(monkeypatch, owner, name, *numbers):
    """Sends the signals at the first call."""
    called, original = [], getattr(owner, name)

    def replaced(*args, **kwargs):
        if not called:
            called.append(name)
            send(*numbers)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, replaced)


def slowly(monkeypatch):
    """As if there were more than a second between two Ctrl-C."""
    monkeypatch.setattr(stopping, "SECONDS_OF_PRESSING", 0.0)


def train_in(folder, *flags):
    return main.main([*FLAGS, f"--workdir={folder}", *flags])


def steps(folder):
    with open_checkpoints(folder, read_config(folder / "config.json"), read_only=True) as kept:
        return kept.steps()


INT, TERM = signal.SIGINT, signal.SIGTERM


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ((INT, INT), 130),
        ((INT, TERM), 75),
        pytest.param((TERM, INT), 75, marks=pytest.mark.slow),
        pytest.param((TERM, TERM), 75, marks=pytest.mark.slow),
    ],
)
def test_what_is_pressed_twice_in_a_moment_saves_once(folder, monkeypatch, capsys, signals, code):
    at_step(monkeypatch, 13, *signals)
    assert train_in(folder) == code
    assert "stopped after step 13 of 30 and saved: the same command continues from there" in capsys.readouterr().err
    assert steps(folder)[-1] == 13


@pytest.mark.parametrize(
    ("step", "kept"),
    [
        (13, "the checkpoint of step 10 is kept, and"),
        pytest.param(7, "there is no checkpoint", marks=pytest.mark.slow),
    ],
)
def test_a_second_ctrl_c_later_on_ends_the_run_at_once_and_says_what_is_kept(folder, monkeypatch, capsys, step, kept):
    slowly(monkeypatch)
    at_step(monkeypatch, step, INT, INT)
    assert train_in(folder) == process.NOT_SAVED == 6
    shown = capsys.readouterr().err.splitlines()[-1]
    found = re.fullmatch(rf"stopped at once after step (\d+), without saving: {kept}.*", shown)
    assert found, shown
    assert step - 1 <= int(found[1]) <= step
    assert steps(folder) == [10] * (step > 10)


def test_a_save_under_way_is_finished_first(folder, monkeypatch, capsys):
    slowly(monkeypatch)
    at_step(monkeypatch, 7, INT)
    before_call(monkeypatch, checkpoints.ocp.CheckpointManager, "wait_until_finished", INT)
    assert train_in(folder) == 130
    assert "stopped after step 7 of 30 and saved" in capsys.readouterr().err
    assert steps(folder) == [7]


@pytest.mark.parametrize("name", ["save", pytest.param("wait_until_finished", marks=pytest.mark.slow)])
def test_the_checkpoint_that_a_save_replaces_outlives_its_interruption(folder, monkeypatch, capsys, name):
    """The run is stopped where it has just saved, and the same step is saved once more."""
    slowly(monkeypatch)
    at_step(monkeypatch, 10, INT, evaluated=True)
    original = checkpoints.Checkpoints.save

    def save(self, step, state, progress, metrics=None):
        if metrics is None:  # the second time
            before_call(monkeypatch, checkpoints.ocp.CheckpointManager, name, INT, INT)
        return original(self, step, state, progress, metrics)

    monkeypatch.setattr(checkpoints.Checkpoints, "save", save)
    assert train_in(folder) == 130
    assert "stopped at once after step 10, which is saved" in capsys.readouterr().err
    assert steps(folder) == [10]
    assert not list((folder / "checkpoints").glob("replaced-*"))
    monkeypatch.undo()
    assert run.load_run(folder, "latest").step == 10


@pytest.mark.parametrize(("number", "code"), [(INT, 130), (TERM, 75)])
@pytest.mark.parametrize(("owner", "name"), [(data, "load"), (start, "prepare_folder")])
def test_before_training_there_is_nothing_to_save(folder, monkeypatch, capsys, number, code, owner, name):
    before_call(monkeypatch, owner, name, number)
    assert train_in(folder) == code
    assert capsys.readouterr().err.splitlines()[-1].endswith("ed: there was nothing to save")
    assert not folder.exists()


def test_a_ctrl_c_after_another_while_it_compiles(folder, monkeypatch, capsys):
    slowly(monkeypatch)
    before_call(monkeypatch, training, "Evaluator", INT, INT)
    assert train_in(folder) == 6
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown == "stopped at once before the first step, without saving: there is no checkpoint yet"


@pytest.mark.parametrize(("number", "code"), [(INT, 130), pytest.param(TERM, 75, marks=pytest.mark.slow)])
def test_all_is_saved_once_the_last_evaluation_has_begun(folder, monkeypatch, capsys, number, code):
    before_call(monkeypatch, training, "_summarize", number)
    assert train_in(folder) == code
    assert "stopped after the last step, which is saved: the same command evaluates" in capsys.readouterr().err
    monkeypatch.undo()
    assert steps(folder)[-1] == 30


@pytest.mark.parametrize(("number", "code"), [(INT, 130), pytest.param(TERM, 75, marks=pytest.mark.slow)])
def test_all_is_saved_while_the_report_is_written(folder, monkeypatch, capsys, reports, number, code):
    from inception_jax.trained import report

    before_call(monkeypatch, report, "write_report", number)
    assert train_in(folder) == code
    assert "nothing to save" in capsys.readouterr().err
    assert (folder / "summary.json").exists()


def test_a_second_signal_on_the_way_out_changes_nothing(folder, monkeypatch, capsys):
    at_step(monkeypatch, 13, TERM)
    before_call(monkeypatch, checkpoints.Checkpoints, "close", TERM, INT)
    assert train_in(folder) == 75
    assert "stopped after step 13 of 30 and saved" in capsys.readouterr().err


# One process a folder


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def taken(folder, trained):
    """The folder of a finished run in which somebody trains."""
    shutil.copytree(trained, folder)
    with files.held(folder, "the run's folder", "trains"):
        yield folder


def test_training_in_a_folder_where_another_trains_is_refused_and_changes_nothing(taken, digits, capsys):
    before = content(taken)
    assert train_in(taken) == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(rf"error: another process \(pid \d+, host .*, since 2.*\) trains in {taken}\n", shown)
    config, fitted = read_config(taken / "config.json"), load_data("digits", directory=digits)
    images, labels = fitted.splits["train"].gather(range(64))
    with pytest.raises(ValueError, match=f"trains in {taken}"):
        fit(config, (images, labels), workdir=taken)
    assert content(taken) == before


@pytest.mark.parametrize(("number", "code"), [(INT, 130), (TERM, 75)])
def test_waiting_says_for_what_and_can_be_ended(taken, capsys, number, code):
    threading.Timer(1.0, lambda: signal.pthread_kill(threading.main_thread().ident, number)).start()
    assert train_in(taken, "--wait") == code
    shown = capsys.readouterr().err
    assert f"trains in {taken}: waiting for it to end" in shown
    assert "there was nothing to save" in shown


def test_waiting_ends_with_the_other_one(folder, capsys):
    entered, leave = threading.Event(), threading.Event()

    def other():
        with files.held(folder, "the run's folder", "trains"):
            entered.set()
            leave.wait(60)

    threading.Thread(target=other).start()
    entered.wait(60)
    threading.Timer(1.0, leave.set).start()
    assert train_in(folder, "--wait", "--config.num_epochs=1") == 0
    assert f"trains in {folder}: waiting for it to end" in capsys.readouterr().err
    assert (folder / "summary.json").exists()
    assert not (folder / ".lock").exists()
