"""What a run shows while it trains."""

import io
import logging

import pytest

from inception_jax.train import console
from inception_jax.train.console import Console


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved: clock[0] += seconds."""
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


ROW = {"learning_rate": 0.098, "train_loss": 0.43214, "train_top1": 0.8712, "train_top5": 0.99, "train_aux1_loss": 2.0}


def test_lines_come_at_intervals_and_leave_the_compilation_out(clock):
    stream = io.StringIO()
    progress = Console(900, 90, batch_size=128, mode="lines", every_seconds=10.0, stream=stream)
    clock[0] += 60.0  # the first step compiles
    lines_at = []
    for step in range(1, 201):
        if progress.due(step):
            lines_at.append(step)
            progress.update(step, ROW)
        clock[0] += 0.25
    assert lines_at == [9, 49, 89, 129, 169]  # a first one after 2 s, the next ones 10 s apart
    lines = stream.getvalue().splitlines()
    assert lines[0] == ("epoch 1/10  step 9/900  loss 0.4321  top1 0.8712  lr 0.0980  512 images/s  3 min 43 s left")
    assert lines[3].startswith("epoch 2/10  step 129/900  ")


def test_a_compilation_counts_neither_as_training_nor_as_time_left(clock):
    stream = io.StringIO()
    progress = Console(40, 10, batch_size=4, mode="lines", stream=stream)
    for step in range(1, 21):
        clock[0] += 1
        progress.due(step)
    progress.update(20, ROW)
    clock[0] += 100
    progress.leave_out(100)
    clock[0] += 1
    progress.update(21, ROW)
    assert stream.getvalue().endswith("4 images/s  19 s left\n")


def test_evaluation_does_not_count_as_training_but_as_time_left(clock):
    stream = io.StringIO()
    progress = Console(100, 10, batch_size=10, mode="lines", every_seconds=5.0, stream=stream)
    for step in range(1, 16):
        if progress.due(step):
            progress.update(step, ROW)
        if step == 10:
            clock[0] += 11.0
            progress.epoch(step, ROW | {"validation_loss": 0.5, "validation_top1": 0.9})
        clock[0] += 1.0
    first, _, epoch, after = stream.getvalue().splitlines()
    assert first.endswith("10 images/s  1 min 37 s left")  # 97 steps of 1 s
    assert epoch == "epoch 1/10 done  train loss 0.4321 top1 0.8712  validation loss 0.5000 top1 0.9000  lr 0.0980"
    assert after.startswith("epoch 2/10  step 15/100  ")
    assert after.endswith("10 images/s  2 min 32 s left")  # 14 steps took 25 s with the evaluation; 85 are left


@pytest.mark.parametrize(("rate", "text"), [(0.1, "0.1000"), (0.0, "0.0000"), (4.5e-5, "4.50e-05")])
def test_small_rates_stay_readable(clock, rate, text):
    stream = io.StringIO()
    with Console(10, 5, batch_size=4, mode="lines", stream=stream) as progress:
        progress.update(1, {"learning_rate": rate})
    assert stream.getvalue() == f"epoch 1/2  step 1/10  lr {text}\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_auto_shows_a_bar_on_a_terminal_and_other_lines_above_it(clock):
    stream = Terminal()
    logger = logging.getLogger("inception_jax")
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    try:
        with Console(100, 10, batch_size=8, stream=stream) as progress:
            progress.due(1)
            clock[0] += 2.0
            progress.update(5, ROW)
            progress.epoch(10, ROW)
            logger.warning("a word from the package")
    finally:
        logger.removeHandler(handler)
    shown = stream.getvalue()
    assert "epoch 1/10 |" in shown
    assert "5 %, loss 0.4321  top1 0.8712  lr 0.0980  16 images/s  48 s left" in shown
    assert "epoch 1/10 done  train loss 0.4321 top1 0.8712  lr 0.0980\n" in shown
    assert "10 %" in shown


def test_auto_shows_lines_elsewhere():
    stream = io.StringIO()
    with Console(10, 5, batch_size=4, stream=stream) as progress:
        progress.epoch(5, {"train_loss": 1.0})
    assert stream.getvalue() == "epoch 1/2 done  train loss 1.0000\n"
