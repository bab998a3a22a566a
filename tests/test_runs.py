"""Runs below a folder as records and as a table."""

import csv
import io
import json

import pytest

import inception_jax
from inception_jax.commands import main
from inception_jax.config import default_config
from inception_jax.errors import UserError
from inception_jax.writers import MetricWriter


def make(folder, *, epochs=2, rate=0.1, top1=None, model="googlenet"):
    config = default_config()
    config.num_epochs = 2
    config.model.name = model
    config.schedule.learning_rate = rate
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.to_json())
    with MetricWriter(folder, tensorboard=False) as writer:
        for epoch in range(1, epochs + 1):
            writer.write(10 * epoch, {"epoch": float(epoch), "validation_top1": 0.1 * epoch, "seconds": 30.0 * epoch})
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


def test_mistakes_are_answered_in_one_line(folder, capsys):
    for arguments, message in (
        ([folder / "other"], "there are no runs below"),
        ([folder / "nowhere"], "nowhere is no folder"),
        ([folder, "--sort", "test_top"], "unknown column 'test_top'. Did you mean 'test_top1'?"),
    ):
        assert main(["runs", *map(str, arguments)]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(UserError):
        inception_jax.list_runs(folder / "nowhere")
