"""metrics.csv by the standard library, events by their record format, progress by a clock that the test moves."""

import contextlib
import csv
import importlib.util
import io
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
from runs import metrics_csv
from tensorboardX.proto.event_pb2 import Event

from inception_jax.config import default_config
from inception_jax.distributed import multihost
from inception_jax.errors import UserError
from inception_jax.runs.metrics_log import read_metrics
from inception_jax.train.console import Console
from inception_jax.train.listeners import Listeners
from inception_jax.writers.tensorboard import TensorBoardWriter


def read_csv(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def read_events(folder):
    """The events of all files in order of time: length (uint64), its checksum, the event, its checksum."""
    events = []
    for path in sorted(folder.glob("events.*")):
        content, start = path.read_bytes(), 0
        while start < len(content):
            (length,) = struct.unpack_from("<Q", content, start)
            events.append(Event.FromString(content[start + 12 : start + 12 + length]))
            start += 12 + length + 4
    return events


def test_rows_keep_every_bit_of_their_numbers(tmp_path):
    values = [1 / 3, 1e-300, -0.1, 2.0**60, float("nan"), float("inf")]
    with metrics_csv(tmp_path) as writer:
        for step, value in enumerate(values, start=1):
            writer.write_scalars(step, {"epoch": step, "train_loss": value})
        writer.write_scalars(10, {"epoch": np.float64(2.5), "train_loss": np.float32(0.1)})
    rows = read_csv(tmp_path)
    assert [float(row["train_loss"]) for row in rows[:-1]] == pytest.approx(values, rel=0, abs=0, nan_ok=True)
    assert (rows[-1]["step"], rows[-1]["epoch"]) == ("10", "2.5")
    assert float(rows[-1]["train_loss"]) == float(np.float32(0.1))
    assert read_metrics(tmp_path / "metrics.csv")[0] == {"step": 1, "epoch": 1.0, "train_loss": 1 / 3}


def test_a_new_metric_becomes_a_column_and_leaves_earlier_rows_empty(tmp_path):
    with metrics_csv(tmp_path) as writer:
        writer.write_scalars(1, {"train_loss": 1.0})
        writer.write_scalars(2, {"train_loss": 0.5, "validation_top1": 0.75})
        writer.write_scalars(3, {"train_loss": 0.25})
    rows = read_csv(tmp_path)
    assert [row["validation_top1"] for row in rows] == ["", "0.75", ""]
    assert list(rows[0]) == ["step", "train_loss", "validation_top1"]
    assert read_metrics(tmp_path / "metrics.csv")[2] == {"step": 3, "train_loss": 0.25}
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize(("resume_step", "kept"), [(None, []), (0, []), (10, ["10"]), (25, ["10", "20"])])
def test_going_on_cuts_off_what_came_after(tmp_path, resume_step, kept):
    with metrics_csv(tmp_path) as writer:
        for step in (10, 20, 30):
            writer.write_scalars(step, {"train_loss": 1 / step})
    whole = (tmp_path / "metrics.csv").read_bytes()
    with metrics_csv(tmp_path, resume_step) as writer:
        assert [row["step"] for row in read_csv(tmp_path)] == kept
        for step in (10, 20, 30):
            if str(step) not in kept:
                writer.write_scalars(step, {"train_loss": 1 / step})
    assert (tmp_path / "metrics.csv").read_bytes() == whole


def test_a_line_that_was_cut_short_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,train_loss\n10,0.5\n2")  # of "20,0.25": its step would look like an early one
    with metrics_csv(tmp_path, 10):
        assert path.read_text() == "step,train_loss\n10,0.5\n"


@pytest.mark.parametrize("content", ["loss\n1\n", "step,loss\nx,1\n", "step,loss\n1,2,3\n", "step,loss\n1,high\n"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "metrics.csv").write_text(content)
    with pytest.raises(UserError, match=r"metrics\.csv is damaged"):
        read_metrics(tmp_path / "metrics.csv")


WHOLE = "step,epoch,train_loss\n10,1.0,0.5\n20,2.0,0.25\n30,3.0,0.125\n"


def test_every_number_that_is_written_is_read(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2**64, 3000, np.uint64, endpoint=False)
    numbers = [*bits.view(np.float64).tolist(), *np.random.default_rng(1).lognormal(-6, 4, 3000).tolist()]
    numbers += [
        0.0,
        -0.0,
        1e16,
        1e-4,
        123456789012345680.0,
        5e-324,
        1.7976931348623157e308,
        float("inf"),
        float("-inf"),
    ]
    with metrics_csv(tmp_path) as writer:
        writer.write_scalars(1, {f"loss_{place}": number for place, number in enumerate(numbers)})
    (row,) = read_metrics(tmp_path / "metrics.csv")
    np.testing.assert_array_equal([row[f"loss_{place}"] for place in range(len(numbers))], numbers)


DAMAGED = {  # and the steps of what is whole
    "no UTF-8": (b"20,2.0,0.25", b"20,2.0,\xff\xfe", [10, 30]),
    "a long cell": (b"0.25", b"9" * 200_000, [10, 30]),
    "a long step": (b"20,", b"9" * 200_000 + b",", [10, 30]),
    "a longer line": (b"20,2.0,0.25", b"x" * 3_000_000, [10, 30]),
    "zeros": (b"20,2.0,0.25", b"\0" * 11, [10, 30]),
    "a cell too many": (b"2.0,", b"2.0,,", [10, 30]),
    "a cell too few": (b"20,2.0,", b"20,", [10, 30]),
    "text": (b"0.25", b"high", [10, 30]),
    "an open quote": (b"20,2.0,0.25", b'"20,2.0,0.25', [10, 30]),
    "a row without a step": (b"20,2.0", b",2.0", [10, 30]),
    "no header": (b"step,epoch,train_loss\n", b"", []),
    "a header of other bytes": (b"step", b"\xc3\x28ep", []),
    "a header twice the same": (b"epoch", b"step", []),
    "a header that steers terminals": (b"epoch", b"\x1b[2J", []),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_run_goes_on_without_a_damaged_file_and_with_its_whole_rows(tmp_path, kind, caplog):
    old, new, kept = DAMAGED[kind]
    path = tmp_path / "metrics.csv"
    content = WHOLE.encode().replace(old, new)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.csv is damaged: ") as error:
        read_metrics(path)
    assert len(str(error.value)) < 500
    assert len(str(error.value).splitlines()) == 1
    (tmp_path / "metrics.csv.damaged").write_text("an earlier one")
    with metrics_csv(tmp_path, 30) as writer:
        assert [row["step"] for row in read_metrics(path)] == kept
        writer.write_scalars(40, {"epoch": 4.0, "train_loss": 1 / 16})
    assert [row["step"] for row in read_metrics(path)] == [*kept, 40]
    assert "10,1.0,0.5\n" in path.read_text() or not kept
    assert (tmp_path / "metrics.csv.damaged").read_text() == "an earlier one"
    assert (tmp_path / "metrics.csv.damaged2").read_bytes() == content
    (message,) = caplog.messages
    assert "metrics.csv.damaged2" in message


def test_what_is_no_file_is_set_aside_as_well(tmp_path, caplog):
    path = tmp_path / "metrics.csv"
    for number, make in enumerate([path.mkdir, lambda: os.mkfifo(path)], start=1):
        path.unlink(missing_ok=True) if number > 1 else None
        make()
        with pytest.raises(UserError, match="is damaged: it is not a file"):
            read_metrics(path)
        with metrics_csv(tmp_path, 10) as writer:
            writer.write_scalars(20, {"train_loss": 0.5})
        assert read_metrics(path) == [{"step": 20, "train_loss": 0.5}]
        assert len(caplog.messages) == number


def test_no_metrics_yet(tmp_path):
    assert read_metrics(tmp_path / "metrics.csv") == []


def tensorboard(folder, resume_step=0):
    writer = TensorBoardWriter(folder)
    writer.resume(resume_step, [])
    return contextlib.closing(writer)


def test_scalars_for_tensorboard_are_grouped_by_split(tmp_path):
    with tensorboard(tmp_path) as writer:
        writer.write_scalars(5, {"epoch": 1.0, "learning_rate": 0.5, "validation_top1": 0.25})
        writer.write_scalars(7, {"train_loss": 2.0})
    scalars = [
        (value.tag, value.simple_value, event.step) for event in read_events(tmp_path) for value in event.summary.value
    ]
    assert scalars == [("learning_rate", 0.5, 5), ("validation/top1", 0.25, 5), ("train/loss", 2.0, 7)]


def test_tensorboard_forgets_what_came_after_the_resumed_step(tmp_path):
    with tensorboard(tmp_path, resume_step=20):
        pass
    started = [event.step for event in read_events(tmp_path) if event.HasField("session_log")]
    assert started == [21]  # TensorBoard drops the steps from a START event's own onward


def test_events_that_find_no_room_are_said_instead_of_waited_for(tmp_path):
    """The file system refuses to write more than 20 kB to a file."""
    script = """
import contextlib, resource, signal, sys
from pathlib import Path
from inception_jax.errors import WriteError
from inception_jax.writers.tensorboard import TensorBoardWriter

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    with contextlib.closing(TensorBoardWriter(Path(sys.argv[1]))) as writer:
        writer.resume(0, [])
        for step in range(10_000):
            writer.write_scalars(step, {"train_loss": 1.0})
except WriteError as error:
    print(error)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == "cannot write TensorBoard's events: File too large\n"


def no_writer(folder):
    raise AssertionError(folder)


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(multihost, "is_first", lambda: False)
    config = default_config()
    config.log.to = ("tensorboard", f"{__name__}:no_writer")
    hooks = Listeners.of(config).open(tmp_path)
    hooks.writers.resume(0)
    hooks.writers.write_row(1, {"train_loss": 1.0})
    hooks.writers.write_point(1, {"train_loss": 1.0})
    hooks.writers.close()
    stream = io.StringIO()
    with Console(10, 5, batch_size=4, active=False, mode="bar", stream=stream) as progress:
        assert not progress.due(1)
        progress.epoch(5, {"train_loss": 1.0})
    assert list(tmp_path.iterdir()) == []
    assert stream.getvalue() == ""


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="PyTorch is not installed")
def test_a_start_does_not_import_pytorch_and_leaves_it_importable():
    code = "import sys, inception_jax.train; assert 'torch' not in sys.modules; import torch; torch.ones(1)"
    subprocess.run([sys.executable, "-c", code], check=True)
