"""A run from Python and in a notebook: its history, results and pictures."""

import csv
import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from runs import small_config

import inception_jax
from inception_jax.commands import main
from inception_jax.errors import UserError
from inception_jax.runs.dataset import load_data
from inception_jax.trained.trained_run import History, TrainedRun


@pytest.fixture(scope="module")
def run(trained):
    return inception_jax.load(trained)


def test_what_a_notebook_shows_is_short(run):
    for shown in (repr(run), repr(run.history), repr(run.evaluate())):
        assert len(shown) < 300
        assert "\n" not in shown
    assert len(run.history._repr_html_()) < 10_000


def test_the_history_is_metrics_csv_by_column(run):
    with (run.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(run.history) == list(rows[0])
    for column, values in run.history.items():
        np.testing.assert_array_equal(values, [float(row[column]) for row in rows])
    (header, *lines) = re.findall(r"<tr>(.*?)</tr>", run.history._repr_html_())
    assert re.findall(r"<th>(.*?)</th>", header) == list(rows[0])
    assert len(lines) == min(len(rows), 10)
    np.testing.assert_array_equal(History([{"a": 1.0}, {"b": 2.0}])["b"], [np.nan, 2.0])


def test_the_history_is_a_data_frame_where_pandas_is(run):
    if importlib.util.find_spec("pandas"):
        frame = run.history.frame()
        np.testing.assert_array_equal(frame["epoch"], run.history["epoch"])
    else:
        with pytest.raises(UserError, match="pip install pandas"):
            run.history.frame()


def test_the_summary_is_the_files(run, tmp_path):
    assert run.summary["test"] == json.loads((run.folder / "summary.json").read_text())["test"]


@pytest.mark.parametrize("tta", ["none", "flip"])
def test_an_evaluation_is_the_commands(run, tta, capsys):
    found = run.evaluate(tta=tta)
    assert main(["evaluate", str(run.folder), "--json", f"--tta={tta}"]) == 0
    (row,) = json.loads(capsys.readouterr().out).values()
    assert (found.data, found.split) == (row["data"], row["split"])
    for name in ("top1", "top5", "loss", "count"):
        assert getattr(found, name) == row["all"][name]
    assert found.predictions.logits.shape == (found.count, 10)
    assert f"top-1 {100 * found.top1:.2f} %" in repr(found)


def test_other_splits_and_other_data(run, digits):
    assert run.evaluate("validation").split == "validation"
    fields = {"name": "digits", "directory": str(digits)}
    assert run.evaluate("test[:40]", fields=fields).count == 40
    with pytest.raises(UserError, match="unknown test-time augmentation 'flips'"):
        run.evaluate(tta="flips")


def test_grad_cam_of_a_picture_is_that_of_the_arrays(run):
    images, _ = run_images(run)
    heat = inception_jax.grad_cam(run.model, run.variables, run.normalize(images[:1]), classes=8)
    expected = inception_jax.overlay(images[0], heat[0]).array
    np.testing.assert_allclose(run.grad_cam(images[0], run.class_names[8]).array, expected, atol=1)
    likely = run.class_names[int(run.logits(images[:1]).argmax())]
    np.testing.assert_allclose(run.grad_cam(images[0]).array, run.grad_cam(images[0], likely).array, atol=1)
    with pytest.raises(UserError, match="unknown class 'cat'"):
        run.grad_cam(images[0], "cat")


def run_images(run):
    dataset = load_data(run.config)
    return dataset.splits["test"].gather(np.arange(5))


def test_pictures_of_a_batch_and_of_the_highest_losses(run):
    tile, gap, caption, header = 96, 4, 150, 24
    assert run.show_batch(rows=3, draws=2).array.shape == (header + 3 * (tile + gap), caption + 3 * (tile + gap), 3)
    assert run.top_losses(5).array.shape == (header + 5 * (tile + gap), caption + 2 * (tile + gap), 3)
    for wrong in (lambda: run.show_batch(rows=0), lambda: run.top_losses(0)):
        with pytest.raises(UserError, match="=0 is not allowed: it must be at least 1"):
            wrong()
    assert run.top_losses(5)._repr_png_().startswith(b"\x89PNG")


def test_the_highest_losses_are_those_of_the_labels(run):
    from inception_jax.trained.evaluate import Predictions, losses

    said = Predictions(
        np.log(np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]], np.float32)), np.array([0, 1, -1], np.int32), None,
        np.array([True, True, True]),
    )  # fmt: skip
    np.testing.assert_allclose(losses(said), [-np.log(0.5), -np.log(0.1), 0], rtol=1e-6)


def test_the_report_has_what_the_command_finds(run, monkeypatch):
    page = run.report()
    assert page == run.folder / "report.html"
    assert "Grad-CAM" in page.read_text()


def test_the_code_of_the_page_runs(run, tmp_path, monkeypatch):
    page = Path(__file__).parent.parent / "docs" / "your_own.md"
    (code,) = re.findall(r"^## In a notebook\n.*?^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("picture.jpg")
    exec(code.replace("cat", run.class_names[3]), {"run": run})


def test_a_run_of_arrays_knows_them(digits, tmp_path):
    config = small_config(digits)
    dataset = load_data(config)
    splits = {name: dataset.splits[name].gather(np.arange(60)) for name in ("train", "test")}
    config.num_epochs, config.schedule.name = 1, "constant"
    run = inception_jax.fit(config, splits["train"], test=splits["test"], workdir=tmp_path / "run")
    assert isinstance(run, TrainedRun)
    assert run.evaluate().count == 60
    assert run.evaluate().top1 == run.summary["test"]["top1"]
    assert run.show_batch(rows=2).array.ndim == run.top_losses(2).array.ndim == 3
    with pytest.raises(UserError, match="the arrays have no validation split; they have train, test"):
        run.evaluate("validation")
    with pytest.raises(UserError, match="was trained on arrays in memory"):
        inception_jax.load(tmp_path / "run").evaluate()
    assert "was trained on arrays in memory" in run.report().read_text()
