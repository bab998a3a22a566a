"""Runs that earlier versions began are loaded, evaluated, reported, exported and continued."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from inception_jax import train
from inception_jax.runs.records import list_runs
from inception_jax.runs.run import load_run
from inception_jax.trained import evaluate
from inception_jax.trained.export import export_run
from inception_jax.trained.report import write_report

ARCHIVES = sorted((Path(__file__).parent / "earlier_runs").glob("*.zip"))


@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.stem)
def test_a_run_of_an_earlier_version(archive, digits, tmp_path, monkeypatch):
    """Its numbers after the end are those that its own version came to, as far as processors agree on them."""
    monkeypatch.syspath_prepend(str(archive.parent))
    from make import CONFIG

    sys.modules.pop("make")
    shutil.unpack_archive(archive, tmp_path)
    folder, expected = tmp_path / "run", json.loads((tmp_path / "expected.json").read_text())
    names = {}
    exec(CONFIG, names)
    config = names["get_config"]()
    config.data.directory = str(digits)
    config.checkpoint.every_steps = 0  # it had many, so as to be killed between two; they may be fewer now

    begun = load_run(folder, own=config)
    assert 0 < begun.step < expected["steps"]
    split, dataset = evaluate.load_split(begun, "test", {"directory": str(digits)})
    assert evaluate.metrics(evaluate.predictions(begun, dataset, split))["count"] == expected["test"]["count"]
    assert [each.status for each in list_runs(tmp_path)] == ["not begun"]
    assert write_report(folder).is_file()
    export_run(begun, tmp_path / "network.stablehlo", "stablehlo")

    summary = train.train_and_evaluate(config, folder)
    assert summary["steps"] == expected["steps"]
    assert summary["test"]["loss"] == pytest.approx(expected["test"]["loss"], rel=0.02)
    assert summary["test"]["top1"] == pytest.approx(expected["test"]["top1"], abs=0.02)
