"""Runs below a folder as records and as a table."""

import csv
import dataclasses
import io
import json
import os
import re
import sys

import pytest
from runs import metrics_csv

import inception_jax
from inception_jax.commands import main
from inception_jax.config import default_config
from inception_jax.errors import UserError
from inception_jax.runs.records import read_records
from inception_jax.trained.report import write_report
from inception_jax.trained.report.sections import results, versions
from inception_jax.trained.report.tables import facts_of_runs, results_of_runs, results_table


def make(folder, *, epochs=2, rate=0.1, top1=None, model="googlenet"):
    config = default_config()
    config.num_epochs = 2
    config.model.name = model
    config.schedule.learning_rate = rate
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    with metrics_csv(folder) as writer:
        for epoch in range(1, epochs + 1):
            writer.write_scalars(
                10 * epoch, {"epoch": float(epoch), "validation_top1": 0.1 * epoch, "seconds": 30.0 * epoch}
            )
    if top1 is not None:
        best = {"metric": "validation_top1", "value": top1 + 0.01, "test": {"top1": top1 + 0.02}}
        summary = {"name": folder.name, "stopped": "early", "seconds": 75.0, "test": {"top1": top1}, "best": best}
        (folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture
def folder(tmp_path):
    make(tmp_path / "a" / "first", top1=0.5)
    make(tmp_path / "second", rate=0.01, epochs=1)
    make(tmp_path / "third", top1=0.75, model="vgg11")
    make(tmp_path / "waiting", epochs=0)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"not": "ours"}')
    return tmp_path


def table(capsys, *arguments):
    assert main(["runs", *map(str, arguments), "--csv"]) == 0
    return list(csv.DictReader(io.StringIO(capsys.readouterr().out)))


def test_every_run_is_a_record(folder):
    runs = inception_jax.list_runs(folder)
    assert [run.name for run in runs] == ["a/first", "second", "third", "waiting"]
    assert [run.status for run in runs] == ["early", "unfinished", "early", "not begun"]
    assert runs[0].summary["test"]["top1"] == 0.5
    assert runs[1].fields["schedule.learning_rate"] == 0.01


def test_what_a_notebook_shows_of_them_is_a_table(folder):
    runs = inception_jax.list_runs(folder)
    header, _rule, *lines = repr(runs).splitlines()
    assert header.split() == ["run", "network", "data", "status", "epochs", "validation", "top-1", "test", "top-1"]
    assert [line.split()[0] for line in lines] == ["a/first", "second", "third", "waiting"]
    assert "50.00 %" in lines[0]
    assert repr(runs[0]).startswith("Record(a/first, network ")
    assert "test top-1 50.00 %" in repr(runs[0])
    assert len(re.findall(r"<tr>", runs._repr_html_())) == 5
    runs[0] = dataclasses.replace(runs[0], name="<b>\n\x1b[2J")
    assert "&lt;b&gt;\\n\\x1b[2J" in runs._repr_html_()
    assert len(repr(type(runs)(runs * 20)).splitlines()) == 23  # and how many more
    assert repr(type(runs)()) == "no runs"


def test_the_table_has_results_and_what_differs(folder, capsys):
    rows = table(capsys, folder)
    assert [row["run"] for row in rows] == ["a/first", "second", "third", "waiting"]
    assert [row["schedule.learning_rate"] for row in rows] == ["0.1", "0.01", "0.1", "0.1"]
    assert [row["test_top1"] for row in rows] == ["0.5", "", "0.75", ""]
    assert [row["epochs"] for row in rows] == ["2/2", "1/2", "2/2", "0/2"]
    assert "batch_size" not in rows[0]
    assert main(["runs", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "50.00%" in shown
    assert "1 min 15 s" in shown


def on_a_terminal(monkeypatch, columns):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))


def test_on_a_terminal_it_has_the_columns_that_fit_the_most_important_ones(folder, capsys, monkeypatch):
    assert main(["runs", str(folder)]) == 0
    whole = capsys.readouterr().out
    assert max(map(len, whole.splitlines())) > 110
    for width, kept in (
        (200, ["time", "data"]),
        (100, ["learning_rate", "network"]),
        (60, ["status"]),
    ):
        on_a_terminal(monkeypatch, width)
        assert main(["runs", str(folder)]) == 0
        shown = capsys.readouterr()
        lines = shown.out.splitlines()
        assert max(map(len, lines)) <= width
        assert {"run", "test_top1", *kept} <= set(lines[0].split())
        assert [line.split()[0] for line in lines[1:]] == ["a/first", "second", "third", "waiting"]
        left_out = set(whole.split("\n")[0].split()) - set(lines[0].split()) - {"schedule.learning_rate"}
        assert all(name in shown.err for name in left_out)
        assert (shown.out == whole) == (width == 200)
    assert main(["runs", str(folder), "--sort=-time"]) == 0
    assert "time" in capsys.readouterr().out.splitlines()[0].split()
    assert main(["runs", str(folder), "--columns", "run,schedule.learning_rate,best.test.top1,model.name,time"]) == 0
    assert "best.test.top1" in capsys.readouterr().out  # what was asked for is there


def test_of_the_fields_that_differ_those_with_more_values_stay_longer(tmp_path, capsys, monkeypatch):
    for number in range(4):
        make(tmp_path / f"run{number}", rate=0.1 * 2**number, top1=0.5 + 0.1 * number)
        config = json.loads((tmp_path / f"run{number}" / "config.json").read_text())
        (tmp_path / f"run{number}" / "config.json").write_text(json.dumps(config | {"batch_size": 32 + number % 2}))
    on_a_terminal(monkeypatch, 40)
    assert main(["runs", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["run", "learning_rate", "test_top1"]


def test_it_sorts_by_any_column_with_the_unknown_last(folder, capsys):
    for key, names in (
        ("test_top1", ["a/first", "third", "second", "waiting"]),
        ("-test_top1", ["third", "a/first", "second", "waiting"]),
        ("schedule.learning_rate", ["second", "a/first", "third", "waiting"]),
    ):
        assert [row["run"] for row in table(capsys, folder, f"--sort={key}")] == names


def test_columns_are_fields_and_results(folder, capsys):
    (row, *_) = table(capsys, folder, "--columns", "run,batch_size,best.test.top1,time")
    assert list(row.items()) == [
        ("run", "a/first"),
        ("batch_size", "128"),
        ("best.test.top1", "0.52"),
        ("time", "75.0"),
    ]
    assert main(["runs", str(folder), "--columns", "run,time", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[1] == {"run": "second", "time": 30.0}


def test_what_is_damaged_is_named_and_the_others_listed(folder, capsys):
    (folder / "third" / "metrics.csv").write_text("{\n,,\n")
    assert main(["runs", str(folder), "--json"]) == 0
    shown = capsys.readouterr()
    assert [row["run"] for row in json.loads(shown.out)] == ["a/first", "second", "waiting"]
    assert "third is left out: " in shown.err


DAMAGES = {
    "metrics.csv": [b"\xff\xfe\n", b"step,x\n1," + b"9" * 200_000 + b"\n", b"step,x\n1,\0\n", None],
    "summary.json": [b"[" * 100_000, b'{"a":' * 100_000, b'{"name": "\\ud800"}', b"\xff", b"[]", None],
    "config.json": [b'{"model": ' + b"[" * 500 + b"]" * 500 + b', "data": {}, "checkpoint": {}}', b"\xff", None],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_one_runs_damaged_file_is_named_in_one_line_and_all_others_are_shown(folder, name, capsys, caplog):
    path = folder / "third" / name
    for content in DAMAGES[name]:
        path.unlink() if path.is_file() else path.exists() and path.rmdir()
        path.mkdir() if content is None else path.write_bytes(content)
        assert main(["runs", str(folder), "--json"]) == 0
        shown = capsys.readouterr()
        assert [row["run"] for row in json.loads(shown.out)] == ["a/first", "second", "waiting"], content
        # Of a folder with a folder of that name nobody knows that it was a run's.
        assert shown.err.count("\n") == (0 if (name, content) == ("config.json", None) else 1), content
        if (name, content) != ("config.json", None):
            assert name in shown.err
        caplog.clear()
        runs = [folder / "second", folder / "third", folder / "waiting"]
        page = write_report(runs, folder / "page.html").read_text()
        assert "2 runs compared" in page
        (message,) = caplog.messages
        assert f"{folder / 'third'} is left out: " in message
        assert str(path) in message
        with pytest.raises(UserError, match=name):
            write_report(folder / "third")


STRANGE = ("x", None, [[1]], {"a": []}, True, float("nan"), float("inf"), 10**400, "\x1b[2J\n=1")


def damaged(values, strange, depth):
    """A summary with each value that is so deep, or deeper where there is none, replaced."""
    if depth == 0 or not isinstance(values, dict):
        return strange
    return {name: damaged(value, strange, depth - 1) for name, value in values.items()}


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("strange", STRANGE, ids=lambda value: ascii(value)[:12])
def test_a_summarys_value_of_a_wrong_type_is_unknown(folder, strange, depth, capsys):
    summary = {
        "name": "third", "steps": 20, "epochs": 2.0, "stopped": "early", "seconds": 75.0, "images_per_second": 9.5,
        "training_seconds": 3.0, "evaluation_seconds": 1.0, "parameters": 77, "device": "1 x cpu",
        "validation": {"top1": 0.5, "top5": 0.75, "loss": 1.5, "count": 10}, "versions": {"jax": "0.10"},
        "best": {"metric": "validation_top1", "value": 0.5, "step": 10, "epoch": 1.0, "test": {"top1": 0.25}},
    }  # fmt: skip
    summary = damaged(summary, strange, depth)
    if depth > 1:
        summary["best"]["metric"] = "validation_top1"
    (folder / "third" / "summary.json").write_text(json.dumps(summary))
    assert [row["run"] for row in table(capsys, folder)] == ["a/first", "second", "third", "waiting"]
    for arguments in ([], ["--sort=-test_top1", "--json"]):
        assert main(["runs", str(folder), *arguments]) == 0
        shown = capsys.readouterr().out
        assert "third" in shown
        assert not re.search(r"\x1b|\bNaN\b|\bInfinity\b", shown)
    first, second = read_records([folder / "third", folder / "second"])
    assert {row[0] for row in results_table(first).rows if len(row) > 1} <= {"validation", "test"}
    assert facts_of_runs([first, second]).rows
    assert results_of_runs([first, second]).rows
    assert (results(first).title, versions(first).title) == ("Results", "Versions")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("summary.json", "[" * 100_000),
        ("summary.json", "[1]"),
        ("summary.json", '{"name": "\\ud800"}'),
        ("summary.json", b"\xff"),
        ("config.json", '{"model": [], "data": {}, "checkpoint": {}}'),
        ("config.json", '{"model": {}, "data": {}, "checkpoint": {}, "evaluate": "x"}'),
        ("metrics.csv", "step,strange\n1,2\n"),
        ("metrics.csv", "step,epoch\n1,nan\n"),
        ("metrics.csv", "step,epoch,loss\n1,1,x\n"),
    ],
)
def test_a_damaged_run_does_not_hide_the_others(folder, file, content, capsys):
    (folder / "third" / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["runs", str(folder), "--json"]) == 0
    shown = capsys.readouterr()
    assert [row["run"] for row in json.loads(shown.out)] == ["a/first", "second", "waiting"]
    assert "third is left out: " in shown.err
    assert shown.err.count("\n") == 1
    assert main(["report", str(folder / "third"), "--quick"]) == 2
    assert f"{file} is damaged" in capsys.readouterr().err


def test_a_pipe_is_no_summary(folder, capsys):
    (folder / "third" / "summary.json").unlink()
    os.mkfifo(folder / "third" / "summary.json")
    assert main(["runs", str(folder)]) == 0
    assert "third is left out: " in capsys.readouterr().err


def test_columns_that_are_no_names_are_damage(folder, capsys):
    (folder / "third" / "metrics.csv").write_text("step,epoch,=cmd|x,\x1b[2J,run\n10,1.0,-0.5,2.5,3\n")
    assert main(["runs", str(folder)]) == 0
    shown = capsys.readouterr()
    assert "third is left out: " in shown.err
    assert "\x1b" not in shown.out + shown.err


def test_mistakes_are_answered_in_one_line(folder, capsys):
    for arguments, message in (
        ([folder / "other"], "no runs found below"),
        ([folder / "nowhere"], "nowhere is not a directory"),
        ([folder, "--sort", "test_top"], "unknown column 'test_top'. Did you mean 'test_top1'?"),
    ):
        assert main(["runs", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError):
        inception_jax.list_runs(folder / "nowhere")
