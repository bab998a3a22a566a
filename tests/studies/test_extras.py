"""What a study measures of its networks after their training."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from fake_runs import fake_plan, make_study
from ml_collections import ConfigDict

from inception_jax.runs import run
from inception_jax.studies import CrossEvaluation, Pair
from inception_jax.studies.extras import measure_all
from inception_jax.studies.results import EXTRAS, read_table
from inception_jax.trained import evaluate

TOP1 = {"wide": (0.9, 0.9, 0.9), "narrow": (0.8, 0.8, 0.8)}
LABELS = np.array([0, 1, 0, 1], np.int32)
GRAY = np.array([True, False, False, True])
# What each network says; a pair takes the narrow one's first and last, and the wide one's others.
SAID = {"wide": [1, 1, 0, 0], "narrow": [0, 0, 1, 0]}


@pytest.fixture
def loaded(monkeypatch):
    """Stands for trained networks and their data; the fields that data was asked for with."""
    asked = []

    def load_run(folder, own=None):
        config = json.loads((folder / "config.json").read_text())
        config = ConfigDict(config)
        said = SimpleNamespace(name="test/images/1.png", classes=("dog",), probabilities=(0.75,), error=None)
        return SimpleNamespace(
            folder=folder, config=config, trusts_data=False, class_names=("cat", "dog"),
            classify=lambda pictures, top: [said] * len(pictures),
        )  # fmt: skip

    def load_for(trained, split, fields, tta="none"):
        asked.append(fields)
        return SimpleNamespace(class_names=("cat", "dog"))

    def predictions(trained, dataset, split, **options):
        said = LABELS if options.get("tta", "none") == "flip" else SAID[trained.folder.parent.name]  # flips help
        logits = np.eye(2, dtype=np.float32)[said]
        return evaluate.Predictions(logits, LABELS, GRAY, np.ones(4, bool))

    monkeypatch.setattr(run, "load_run", load_run)
    monkeypatch.setattr(evaluate, "load_for", load_for)
    monkeypatch.setattr(evaluate, "predictions", predictions)
    monkeypatch.setattr("inception_jax.studies.extras._costs", lambda trained: {"multiply_adds": 1})
    return asked


def test_all_arms_of_a_study_with_a_pair_are_asked_for_all_pictures(tmp_path, loaded):
    plan = fake_plan(tmp_path, make_study(pairs={"pair": Pair("wide", "narrow")}), **TOP1)
    assert measure_all(read_table(plan)) == {}
    assert all(fields["keep"] == "all" for fields in loaded)
    table = read_table(plan)
    found = {
        name: tuple(table.estimate(name, measure).mean for measure in ("top1", "grayscale.top1", "color.top1"))
        for name in ("wide", "narrow", "pair")
    }
    assert found == {"wide": (0.5, 0, 1), "narrow": (0.25, 0.5, 0), "pair": (0.75, 0.5, 1)}
    loaded.clear()
    measure_all(table)
    assert loaded == []  # nothing is measured twice


def test_other_data_is_looked_for_in_the_same_archives(tmp_path, loaded):
    study = make_study(evaluations=(CrossEvaluation("other", {"name": "cifar10"}),))
    study.fields["data.archives"] = "somewhere"
    plan = fake_plan(tmp_path, study, wide=TOP1["wide"])
    assert measure_all(read_table(plan)) == {}
    assert loaded == [{"archives": "somewhere", "name": "cifar10"}] * 3
    assert read_table(plan).estimate("wide", "other_top1").mean == 0.5


def test_some_rows_are_evaluated_on_their_own_data_with_test_time_augmentation(tmp_path, loaded):
    evaluation = CrossEvaluation("flipped", tta="flip", variations=("wi*",))
    plan = fake_plan(tmp_path, make_study(evaluations=(evaluation,)), **TOP1)
    assert measure_all(read_table(plan)) == {}
    assert loaded == [{}] * 3
    table = read_table(plan)
    assert table.estimate("wide", "flipped_top1").mean == 1.0
    assert not table.estimate("narrow", "flipped_top1").values


def test_unlabelled_pictures_are_found_once_they_are_there(tmp_path, loaded):
    study = make_study(predict="test/images")
    study.fields["data.archives"] = str(tmp_path)
    plan = fake_plan(tmp_path / "runs", study, wide=TOP1["wide"])
    measure_all(read_table(plan))
    extras = plan.runs_of("wide")[0].folder / EXTRAS
    assert "predicted_pictures" not in json.loads(extras.read_text())
    (tmp_path / "test/images").mkdir(parents=True)
    (tmp_path / "test/images/1.png").write_bytes(b"a picture")
    measure_all(read_table(plan))
    assert json.loads(extras.read_text())["predicted_pictures"] == 1
    lines = (extras.parent / "predictions.csv").read_text().split()
    assert lines == ["picture,class,probability", "1.png,dog,0.750000"]
