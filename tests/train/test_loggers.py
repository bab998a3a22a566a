"""What loggers have of a run that was stopped and killed, read back by their own libraries; and loggers that fail."""

import contextlib
import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from runs import TIMINGS, Killed, assert_same_run, killed_at, small_config, stop_after

from inception_jax import train
from inception_jax.config import default_config
from inception_jax.errors import UserError, WriteError
from inception_jax.runs.folder import fields_of, read_config
from inception_jax.runs.metrics_log import read_metrics
from inception_jax.runs.run import load_run
from inception_jax.train import training
from inception_jax.train.listeners import Listeners
from inception_jax.writers import background
from inception_jax.writers.background import Background
from inception_jax.writers.group import Writers
from inception_jax.writers.mlflow import MlflowWriter

PAGE = Path(__file__).parents[2] / "docs" / "logging.md"
STEPS, EVERY = 42, 10
PICTURES = {"augmented": 0, "mistakes": STEPS, "grad_cam": STEPS}  # by the step at which they are shown


def example(name):
    """The page's code that has this class."""
    (code,) = [code for code in re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
               if f"class {name}" in code]  # fmt: skip
    return code


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("loggers")


@pytest.fixture(scope="module")
def services(place):
    """Services on this machine, and the page's examples as modules."""
    (place / "my_writer.py").write_text(example("JsonLines"))
    (place / "my_callback.py").write_text(example("LowLoss"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", (place / "mlruns").as_uri())
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setenv("WANDB_MODE", "offline")
        for kind in ("CACHE", "CONFIG", "DATA", "ARTIFACT"):
            patch.setenv(f"WANDB_{kind}_DIR", str(place / "wandb"))
        patch.syspath_prepend(place)
        yield patch


@pytest.fixture(scope="module")
def logged(services, place, digits):
    """The folder of a run with all loggers, stopped after step 25 and killed after step 33."""
    config = small_config(digits)
    config.log.to = ("mlflow", "wandb", "tensorboard", "my_writer:JsonLines")
    config.log.every_steps = EVERY
    config.callbacks = ("my_callback:LowLoss",)
    folder = place / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_write_report", lambda folder: (folder / "report.html").write_text("<p>report</p>"))
        with pytest.MonkeyPatch.context() as once:
            stop_after(once, 25)
            with pytest.raises(train.Interrupted):
                train.train_and_evaluate(config, folder)
        with pytest.raises(Killed):
            train.train_and_evaluate(config, folder, console=killed_at(33))
        train.train_and_evaluate(config, folder)
    return folder


@pytest.fixture(scope="module")
def plain(place, digits):
    """The same run without loggers or interruption."""
    train.train_and_evaluate(small_config(digits), place / "plain")
    return place / "plain"


def expected(folder):
    """What a logger should have, by (name, step): all of metrics.csv, and points of some names between."""
    table = {(name, row["step"]): value for row in read_metrics(folder / "metrics.csv") for name, value in row.items()
             if name != "step"}  # fmt: skip
    assert len({step for _, step in table}) == 2
    return table


def untimed(points, rows):
    """The points of metrics.csv without the timings: where a kill came before a checkpoint, a step has two of them."""
    return {
        (name, step): value for (name, step), value in points.items() if (name, step) in rows and name not in TIMINGS
    }


def points_between():
    return {(name, step) for step in range(EVERY, STEPS + 1, EVERY) for name in ("batch_loss", "learning_rate")}


def test_training_with_loggers_is_training_without(logged, plain):
    assert_same_run(logged, plain)


def assert_is_a_picture(path):
    with Image.open(path) as picture:
        assert min(picture.size) > 100


def client():
    import mlflow  # which takes seconds, as others below

    return mlflow.MlflowClient()


def assert_mlflow_has(folder):
    """All points, none twice, in one MLflow run, which is returned."""
    ours = client()
    experiment = ours.get_experiment_by_name("inception_jax")
    (run,) = [run for run in ours.search_runs([experiment.experiment_id]) if run.info.run_name == folder.name]
    assert run.info.status == "FINISHED"
    found = [
        ((name, point.step), point.value)
        for name in run.data.metrics
        for point in ours.get_metric_history(run.info.run_id, name)
    ]
    rows = expected(folder)
    assert len(found) == len(dict(found))
    assert rows.keys() <= dict(found).keys()
    assert untimed(dict(found), rows) == untimed(rows, rows)
    finally_ = {(f"test_{name}", STEPS) for name in ("loss", "top1", "top5")}
    assert dict(found).keys() == rows.keys() | points_between() | finally_
    return run


def test_mlflow_has_the_config_all_rows_and_the_pictures_once(logged, tmp_path):
    ours, run = client(), assert_mlflow_has(logged)
    assert run.data.params == {
        name: str(value) for name, value in fields_of(read_config(logged / "config.json")).items()
    }
    for name, step in PICTURES.items():
        picture = ours.download_artifacts(run.info.run_id, f"images/{name}-{step}.png", str(tmp_path))
        assert_is_a_picture(picture)
    assert Path(ours.download_artifacts(run.info.run_id, "report.html", str(tmp_path))).read_text() == "<p>report</p>"
    text = Path(ours.download_artifacts(run.info.run_id, "result.txt", str(tmp_path))).read_text()
    assert text.startswith("run: completed after")


def assert_wandb_has(folder):
    """All points and pictures, none twice, in one W&B run, whose records are returned."""
    import wandb_files

    files = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({path.name for path in files}) == 1 < len(files)  # one run, in several sessions
    found = [record for path in files for record in wandb_files.records(path)]
    history = [wandb_files.rows(record) for record in found if record.WhichOneof("record_type") == "history"]
    points = [((name, row["_step"]), value) for row in history for name, value in row.items() if name[0] != "_"]
    rows = expected(folder)
    assert len(points) == len(dict(points))
    assert rows.keys() <= dict(points).keys()
    assert untimed(dict(points), rows) == untimed(rows, rows)
    pictures = {name: step for (name, step), value in points if isinstance(value, dict)}
    # A row that is written is closed: the last pictures are behind it.
    assert pictures == {name: step + (step == STEPS) for name, step in PICTURES.items()}
    assert dict(points).keys() == rows.keys() | points_between() | pictures.items()
    return found


def test_wandb_has_the_config_all_rows_and_the_pictures_once(logged):
    import wandb_files

    found = assert_wandb_has(logged)
    for name in PICTURES:
        (picture,) = logged.glob(f"wandb/offline-run-*/files/media/images/{name}_*.png")
        assert_is_a_picture(picture)
    config = wandb_files.config(found)
    fields = fields_of(read_config(logged / "config.json"))
    assert {name: config[name] for name in fields} == fields
    assert {record.artifact.type for record in found if record.HasField("artifact")} == {"report"}


def test_tensorboard_has_the_config_all_rows_and_the_pictures_once(logged):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = EventAccumulator(str(logged), size_guidance={"scalars": 0, "images": 0}).Reload()
    rows = expected(logged)
    for name in {name for name, _ in rows} - {"epoch"}:
        tag = re.sub("^(train|validation)_", r"\1/", name)
        found = {event.step: event.value for event in events.Scalars(tag)}
        for (column, step), value in rows.items():
            assert column != name or found[step] == np.float32(value)
    assert [event.step for event in events.Scalars("batch_loss")] == list(range(EVERY, STEPS + 1, EVERY))
    for name, step in PICTURES.items():
        (picture,) = events.Images(name)
        assert picture.step == step
        assert picture.width > 100
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = HParamsPluginData.FromString(content).session_start_info.hparams
    assert hparams["model.name"].string_value == "simple_cnn"
    assert hparams["batch_size"].number_value == 60


def test_the_pages_writer_has_every_point_once(logged):
    lines = [json.loads(line) for line in (logged / "points.jsonl").read_text().splitlines()]
    rows = {(name, line["step"]): value for line in lines for name, value in line.items() if name != "step"}
    table = expected(logged)
    assert {key: value for key, value in rows.items() if key in table} == table
    assert rows.keys() >= points_between()
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)


def test_a_finished_run_is_sent_to_a_logger_that_is_named_later(services, plain, digits):
    config = small_config(digits)
    config.log.to = ("mlflow",)
    for _ in range(2):
        train.train_and_evaluate(config, plain)
    ours = client()
    run_id = json.loads((plain / "mlflow.json").read_text())["run_id"]
    for (name, step), value in expected(plain).items():
        assert [(p.step, p.value) for p in ours.get_metric_history(run_id, name) if p.step == step] == [(step, value)]


class KillingCallback:
    """Kills the run once W&B has written the row before, which takes it some 10 seconds: its own process ends, too."""

    def on_step(self, step, metrics):
        if step == 33:
            end = time.monotonic() + 60
            while not written(21) and time.monotonic() < end:
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)


def written(step):
    import wandb_files

    files = Path(os.environ["RUN_FOLDER"]).glob("wandb/offline-run-*/run-*.wandb")
    found = [record for path in files for record in wandb_files.records(path)]
    return any(wandb_files.rows(record).get("_step") == step for record in found)


@pytest.mark.slow
def test_after_a_sigkill_nothing_is_missing_or_twice(services, digits, tmp_path):
    config = small_config(digits)
    config.log.to, config.log.every_steps = ("mlflow", "wandb"), EVERY
    config.callbacks = (f"{__name__.rpartition('.')[2]}:KillingCallback",)
    (tmp_path / "config.json").write_text(config.to_json())
    code = """
import sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from inception_jax import train
from inception_jax.runs.folder import read_config
train.train_and_evaluate(read_config(Path(sys.argv[1], "config.json")), Path(sys.argv[1], "killed"))
"""
    tests = Path(__file__).parent
    command = [sys.executable, "-c", code, str(tmp_path), str(tests), str(tests.parent)]
    # As from a shell: W&B would otherwise share this process's helper, in which the killed run is still open.
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    environment["RUN_FOLDER"] = str(tmp_path / "killed")
    assert subprocess.run(command, env=environment, capture_output=True).returncode == -signal.SIGKILL
    config.callbacks = ()
    train.train_and_evaluate(config, tmp_path / "killed")
    assert_mlflow_has(tmp_path / "killed")
    assert_wandb_has(tmp_path / "killed")


@pytest.mark.slow
def test_the_pages_examples_see_the_same_on_two_devices(services, digits, tmp_path):
    config = small_config(digits)
    config.compute_dtype, config.num_epochs = "float64", 1
    config.log.to, config.callbacks = ("my_writer:JsonLines",), ("my_callback:LowLoss",)
    params = {}
    for devices in (1, 2):
        config.num_devices = devices
        result = train.train_and_evaluate(config, tmp_path / str(devices))
        params[devices] = (result["steps"], load_run(tmp_path / str(devices), "latest").variables["params"])
    assert params[1][0] == params[2][0]
    for one, two in zip(jax.tree.leaves(params[1][1]), jax.tree.leaves(params[2][1]), strict=True):
        assert one.dtype == np.float64
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-9)


def test_results_that_differ_are_kept_beside_the_former_ones(services, tmp_path):
    """After a loss that is not finite, the run goes back with a smaller learning rate."""
    writer = MlflowWriter(tmp_path)
    rows = [{"step": 10, "train_loss": 1.0, "seconds": 3.0}, {"step": 20, "train_loss": float("nan"), "seconds": 6.0}]
    for other in ({}, {"seconds": 7.0}, {"seconds": 8.0, "train_loss": 0.5}):
        writer.resume(20, [row | other if row["step"] == 20 else row for row in rows])
    writer.close()
    run_id = json.loads((tmp_path / "mlflow.json").read_text())["run_id"]
    points = [point.value for point in client().get_metric_history(run_id, "seconds")]
    assert points == [3.0, 6.0, 8.0]


def test_of_a_copied_folder_whose_mlflow_run_is_elsewhere_there_is_a_new_one(services, tmp_path):
    for kept in ('{"run_id": "0123456789abcdef0123456789abcdef"}', '{"run_id": "../../elsewhere"}', "[]", "{"):
        (tmp_path / "mlflow.json").write_text(kept)
        MlflowWriter(tmp_path).close()
        run_id = json.loads((tmp_path / "mlflow.json").read_text())["run_id"]
        assert client().get_run(run_id).info.status == "KILLED"  # there is no summary.json


def test_a_service_that_fails_is_named_once_and_no_one_waits_for_it(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    writer = Background("MLflow", lambda: MlflowWriter(tmp_path))
    for step in range(10):
        writer.write_scalars(step, {"train_loss": 1.0})
    writer.close()
    (said,) = [record.getMessage() for record in caplog.records if record.name == background.__name__]
    assert said.startswith("MLflow: start failed (MlflowException: ")
    assert "training goes on without it" in said
    assert "\n" not in said


def test_a_service_that_does_not_answer_is_waited_for_at_the_end_alone(monkeypatch, caplog):
    monkeypatch.setattr(background, "CLOSE_SECONDS", 0.01)
    answer = threading.Event()

    class Slow(MlflowWriter):
        def __init__(self):
            answer.wait()

    writer = Background("Slow", Slow)
    writer.write_scalars(1, {"train_loss": 1.0})
    writer.flush()
    writer.close()
    assert caplog.messages == ["Slow did not take everything within 0 s"]
    with caplog.at_level(logging.CRITICAL):
        answer.set()
        writer._thread.join()


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / name).mkdir()  # such as W&B's own folder, beside a program
    importlib.invalidate_caches()
    config = default_config()
    config.log.to = (name,)
    with pytest.raises(UserError, match=rf"log\.to={name} needs a package: pip install 'inception-jax\[{name}\]'"):
        Listeners.of(config)


def test_whoever_is_not_logged_in_is_told_before_training(tmp_path):
    code = "from inception_jax.writers.wandb import require_login; require_login()"
    environment = {"HOME": str(tmp_path), "PYTHONPATH": str(Path(training.__file__).parents[2])}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert ended.stderr.splitlines()[-1].endswith(
        "UserError: log.to=wandb needs a login: run `wandb login`, or set WANDB_MODE=offline"
    )


def broken(folder):
    raise OSError("no room")


def incomplete(folder):
    return type("Incomplete", (), {"write_scalars": print, "flush": print, "close": print})()


not_callable = {"write": print}
WRONG = {
    "mlfow": "unknown writer 'mlfow'. Did you mean 'mlflow'?",
    f"{__name__}:nothing": "unknown writer in .* 'nothing'",
    f"{__name__}:broken": r"writer .*:broken: for the run's folder it raised OSError: no room \(test_loggers.py, line",
    f"{__name__}:incomplete": "it has no write_texts, write_images, write_hparams; a class that inherits from",
    f"{__name__}:not_callable": "it is neither a writer nor a class or function that returns one",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_writer_is_named_in_one_line(name, tmp_path):
    config = default_config()
    config.log.to = (name,)
    with pytest.raises(UserError, match=WRONG[name]) as error:
        Listeners.of(config).open(tmp_path)
    assert len(str(error.value).splitlines()) == 1


class Raising:
    def write_scalars(self, step, scalars):
        raise ValueError(f"no place\nfor {sorted(scalars)}")

    write_texts = write_images = write_hparams = flush = close = print


class WithoutRoom(Raising):
    def write_scalars(self, step, scalars):
        raise WriteError("cannot write events: no space left")


def test_a_writer_that_raises_is_named_in_one_warning_and_left_out(caplog):
    writers = Writers(None, [("mine:Raising", Raising())])
    for step in (1, 2):
        writers.write_point(step, {"batch_loss": 1.0})
    assert [re.sub(r"\d+\)", "N)", message) for message in caplog.messages] == [
        "writer mine:Raising: write_scalars raised ValueError: no place for ['batch_loss'] (test_loggers.py, line N); "
        "training goes on without it"
    ]
    with pytest.raises(WriteError):  # as for any file of the run
        Writers(None, [("tensorboard", WithoutRoom())]).write_point(1, {"batch_loss": 1.0})
    with contextlib.suppress(Exception):
        writers.close()
