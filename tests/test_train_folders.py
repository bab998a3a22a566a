"""Whole runs on people's folders: streamed as from memory, resumed in the middle of an epoch, refused where changed."""

import numpy as np
import pytest
from PIL import Image
from runs import assert_same_run, rows, stop_after

from inception_jax import train
from inception_jax.config import default_config
from inception_jax.errors import UserError
from inception_jax.runs import run
from inception_jax.trained import evaluate
from inception_jax.trained.report import findings


@pytest.fixture
def folder(tmp_path):
    """Bright and dark pictures of several sizes and modes, 30 and 12."""
    generator = np.random.default_rng(0)
    for number in range(42):
        name, level = ("bright", 140) if number < 30 else ("dark", 0)
        (tmp_path / "pictures" / name).mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(level, level + 110, (20 + number % 7, 24, 3), np.uint8)
        image = Image.fromarray(pixels).convert("L" if number % 6 == 0 else "RGB")
        image.save(tmp_path / "pictures" / name / f"{number}.{('png', 'jpg')[number % 2]}")
    return tmp_path / "pictures"


@pytest.fixture
def config(folder, tmp_path):
    config = default_config()
    config.batch_size = 8
    config.num_devices = 1
    config.num_epochs = 3
    config.model.name = "simple_cnn"
    config.model.stage_features = (4,)
    config.data.name = "image_folder"
    config.data.folder = str(folder)
    config.data.directory = str(tmp_path / "prepared")
    config.data.image_size = 16
    config.data.hold_out = 3.0
    config.data.augment.random_resized_crop = (0.3, 1.0)
    config.optimizer.name = "adam"
    config.schedule.learning_rate = 0.01
    config.log.tensorboard = False
    return config


def test_a_streamed_run_equals_one_from_memory(config, tmp_path):
    config.data.balanced = True
    config.data.pipeline = "memory"
    train.train_and_evaluate(config, tmp_path / "memory")
    assert [row["step"] for row in rows(tmp_path / "memory")] == ["4", "8", "12"]
    for workers in (0, 1):
        config.data.pipeline = "streaming"
        config.data.num_workers = workers
        train.train_and_evaluate(config, tmp_path / f"streamed{workers}")
        assert_same_run(tmp_path / f"streamed{workers}", tmp_path / "memory")
    # Where and how pictures are read may change when a run goes on.
    train.train_and_evaluate(config, tmp_path / "memory")


def test_crops_of_originals_go_on_in_the_middle_of_an_epoch(config, tmp_path, monkeypatch):
    config.data.augment.crop_originals = True
    train.train_and_evaluate(config, tmp_path / "whole")
    config.data.num_workers = 1
    stop_after(monkeypatch, 1, 6)
    for _ in range(2):
        with pytest.raises(train.Interrupted):
            train.train_and_evaluate(config, tmp_path / "stopped")
    config.data.num_workers = 0
    train.train_and_evaluate(config, tmp_path / "stopped")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


def test_a_run_does_not_go_on_with_other_pictures_and_an_evaluation_says_so(
    config, folder, tmp_path, monkeypatch, caplog
):
    stop_after(monkeypatch, 2)
    with pytest.raises(train.Interrupted):
        train.train_and_evaluate(config, tmp_path / "run")
    kept = (folder / "dark" / "40.png").read_bytes()
    Image.new("RGB", (9, 9)).save(folder / "dark" / "40.png")
    with pytest.raises(UserError, match=r"different pictures: 1 changed: dark/40\.png"):
        train.train_and_evaluate(config, tmp_path / "run")
    evaluate.load_for(run.load_run(tmp_path / "run", "latest"), "test", {})
    assert f"{tmp_path / 'run'}: the data has changed since training: 1 changed: dark/40.png" in caplog.text
    (folder / "dark" / "40.png").write_bytes(kept)
    caplog.clear()
    evaluate.load_for(run.load_run(tmp_path / "run", "latest"), "test", {})
    assert "trained on" not in caplog.text
    moved = folder.rename(tmp_path / "moved")
    config.data.folder = str(moved)
    train.train_and_evaluate(config, tmp_path / "run")
    assert run.load_run(tmp_path / "run").class_names == ("bright", "dark")


def test_synsets_are_shown_by_words_which_may_change_when_a_run_goes_on(config, folder, tmp_path, monkeypatch):
    for name, synset in (("bright", "n01440764"), ("dark", "n02123045")):
        (folder / name).rename(folder / synset)
    config.num_epochs = 1
    stop_after(monkeypatch, 2)
    with pytest.raises(train.Interrupted):
        train.train_and_evaluate(config, tmp_path / "run")
    assert run.load_run(tmp_path / "run").class_names == ("tench", "tabby")
    (folder / "classes.txt").write_text("n02123045\tgetigerte Katze\n")
    train.train_and_evaluate(config, tmp_path / "run")
    trained = run.load_run(tmp_path / "run")
    assert trained.class_names == ("tench", "getigerte Katze")
    assert trained.inputs.class_names == ("n01440764", "n02123045")
    found = findings.examine(tmp_path / "run")
    assert [each.name for each in found.classes] == ["tench", "getigerte Katze"]
    (prediction,) = trained.classify([folder / "n02123045" / "30.png"])
    assert set(prediction.classes) == {"tench", "getigerte Katze"}


def test_splits_that_a_folder_does_not_have_are_not_evaluated(config, tmp_path):
    config.data.hold_out = 0.0
    config.num_epochs = 1
    summary = train.train_and_evaluate(config, tmp_path / "run")
    assert "test" not in summary
    assert summary["validation"]["count"] == 4
