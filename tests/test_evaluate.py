"""Runs on other data: what a network says of each example, classes by name, and networks that share the work."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from networks import random_variables
from PIL import Image
from sklearn.metrics import log_loss, top_k_accuracy_score

from inception_jax import commands, data, evaluate, run
from inception_jax.config import default_config
from inception_jax.errors import UserError
from inception_jax.evaluate import Predictions
from inception_jax.run import Run

CLASSES = ("cat", "dog", "sea urchin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pictures of the three classes and of a fourth, half of them grayscale, with a test split of their own."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for number in range(48):
        place = root / ("train", "test")[number % 2] / ("Cat", "DOG", "sea_urchin", "teapot")[number // 2 % 4]
        place.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(generator.integers(0, 256, (20, 24, 3), np.uint8))
        image.convert("L" if number // 8 % 2 else "RGB").save(place / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def make_run(tmp_path_factory, folder):
    """A run as training leaves it, with weights from NumPy."""

    def make(name: str, channels: int = 3, classes: tuple[str, ...] = CLASSES) -> Run:
        place = tmp_path_factory.mktemp("runs") / name
        config = default_config()
        config.seed = len(name)
        config.model.name = "simple_cnn"
        config.model.stage_features = (4, 8)
        config.data.mean, config.data.std = (0.5,) * channels, (0.25,) * channels
        config.data.name = "image_folder"
        config.data.folder = str(folder)
        config.data.directory = str(place.parent / "prepared")
        config.data.image_size = 16
        config.data.channels = channels
        inputs = run.Inputs(classes, (16, 16, channels), config.data.mean, config.data.std)
        model = run.build_model(config, len(classes))
        optimizer, _ = run.build_optimizer(config, 10)
        state = jax.eval_shape(lambda: run.new_state(config, model, optimizer, inputs.image_shape))
        variables = random_variables({"params": state.params, "batch_stats": state.batch_stats}, seed=config.seed)
        state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state).replace(**variables)
        run.prepare_folder(place, config)
        with run.open_checkpoints(place, config) as checkpoints:
            checkpoints.save(7, state, {"inputs": dataclasses.asdict(inputs), "steps_per_epoch": 10})
        return run.load_run(place)

    return make


@pytest.fixture(scope="module")
def trained(make_run) -> Run:
    return make_run("plain")


def test_metrics_are_scikit_learns():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(200, 7)).astype(np.float32)
    labels = generator.integers(-1, 7, 200).astype(np.int32)
    gray, decoded = generator.random(200) < 0.3, generator.random(200) < 0.9
    found = evaluate.by_color(Predictions(logits, labels, gray, decoded))
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    for kind, rows in {"all": gray | ~gray, "grayscale": gray, "color": ~gray}.items():
        rows = rows & decoded & (labels >= 0)
        assert found[kind]["count"] == rows.sum()
        for k in (1, 5):
            expected = top_k_accuracy_score(labels[rows], logits[rows], k=k, labels=range(7))
            assert found[kind][f"top{k}"] == pytest.approx(expected, abs=1e-12)
        assert found[kind]["loss"] == pytest.approx(log_loss(labels[rows], probabilities[rows], labels=range(7)), 1e-9)
    assert evaluate.metrics(Predictions(logits, np.full(200, -1), gray, decoded))["count"] == 0


def test_another_data_set_is_resized_and_its_classes_matched(trained, folder):
    dataset = evaluate.load_for(trained, "test", {"name": "image_folder", "folder": str(folder)})
    assert dataset.class_names == ("Cat", "DOG", "sea_urchin", "teapot")
    found = evaluate.predictions(trained, dataset, "test", batch_size=7)
    images, labels = dataset.splits["test"].gather(np.arange(24))
    np.testing.assert_allclose(found.logits, trained.logits(images), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.labels, np.where(labels == 3, -1, labels))
    np.testing.assert_array_equal(found.grayscale, dataset.splits["test"].grayscale())
    assert evaluate.metrics(found)["count"] == 18


@pytest.mark.parametrize(
    ("theirs", "ours", "given", "expected"),
    [
        (("Sea-Urchin", "DOG", "fox"), CLASSES, None, [2, 1, -1]),
        (("tabby, cat", "hound, dog", "x"), CLASSES, None, [0, 1, -1]),
        (("dog",), ("domestic dog, dog", "cat"), None, [0]),
        (("hound", "dog"), CLASSES, {"hound": "dog"}, [1, 1]),
        (("a", "b"), ("b", "a"), {"a": "b"}, [0, 0]),
        (("0", "1"), ("0", "1"), None, [0, 1]),
        (("maillot, tank suit", "maillot", "tank_suit"), ("maillot", "maillot, tank suit"), None, [1, 0, 1]),
        (("dog",), ("hound, dog", "Dog"), None, [1]),
        (("", "dog"), ("dog,", "cat"), None, [-1, 0]),
    ],
)
def test_classes_are_matched_by_name(theirs, ours, given, expected):
    labels = evaluate.match_classes(theirs, ours, given)
    assert labels.tolist() == expected
    assert labels.dtype == np.int32


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "no class of the data is one of the run's: the data has fox, ant; the run has cat, dog"),
        ({"cow": "cat"}, "names 'cow', which is no class of the data: fox, ant"),
        ({"fox": "cow"}, "names 'cow', which is no class of the run: cat, dog"),
    ],
)
def test_classes_that_cannot_be_matched(given, message):
    with pytest.raises(UserError, match=message):
        evaluate.match_classes(("fox", "ant"), ("cat", "dog"), given)


def test_a_pair_routes_each_picture_to_its_network(make_run, folder, capsys):
    color, gray = make_run("color"), make_run("grayscale", channels=1)
    assert commands.main(
        ["evaluate", str(color.folder), "--grayscale-run", str(gray.folder), "--data", "image_folder", "--folder",
         str(folder), "--json"]
    ) == 0  # fmt: skip
    (row,) = json.loads(capsys.readouterr().out).values()
    load = {"directory": str(color.folder.parent / "prepared"), "folder": folder, "image_size": 16}
    right = {True: [], False: []}
    parts = [data.load("image_folder", channels=channels, **load).splits["test"] for channels in (3, 1)]
    for position in range(24):
        is_gray = bool(parts[0].grayscale()[position])
        images, (label,) = parts[is_gray].gather(np.array([position]))
        if label < 3:
            right[is_gray].append((gray if is_gray else color).predict(images).argmax() == label)
    for kind, values in {"grayscale": right[True], "color": right[False], "all": right[True] + right[False]}.items():
        assert row[kind]["count"] == len(values) > 0
        assert row[kind]["top1"] == pytest.approx(np.mean(values))


def test_a_pair_of_different_pictures_is_none():
    logits, decoded = np.eye(4, dtype=np.float32), np.ones(4, bool)
    labels, gray = np.arange(4), np.array([True, False, True, False])
    whole = Predictions(logits, labels, gray, decoded)
    for other in (
        Predictions(logits, labels[::-1], gray, decoded),
        Predictions(logits, labels, ~gray, decoded),
        Predictions(logits[:3], labels[:3], gray[:3], decoded[:3]),
    ):
        with pytest.raises(UserError, match="the same pictures"):
            evaluate.routed(whole, other)
    with pytest.raises(UserError, match="nothing is known"):
        evaluate.routed(whole, dataclasses.replace(whole, grayscale=None))


def test_a_pair_is_given_the_first_runs_pictures(make_run, folder, tmp_path, capsys):
    classes = ("Cat", "DOG", "sea_urchin", "teapot")
    color, gray = make_run("first", classes=classes), make_run("second", channels=1, classes=classes)
    config = json.loads((gray.folder / "config.json").read_text())
    config["data"] |= {"folder": str(tmp_path / "elsewhere"), "split_seed": 7}  # its own are not there any more
    (gray.folder / "config.json").write_text(json.dumps(config))
    pair = ["evaluate", str(color.folder), "--grayscale-run", str(gray.folder), "--json"]
    answers = []
    for arguments in ([], ["--data", "image_folder", "--folder", str(folder)], ["--folder", str(folder)]):
        assert commands.main([*pair, *arguments]) == 0
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0] == answers[1] == answers[2]
    assert next(iter(answers[0].values()))["all"]["count"] == 24


def test_the_data_of_a_config(trained, folder, tmp_path, capsys):
    path = tmp_path / "other.py"
    path.write_text(
        "from inception_jax.config import default_config\n\n\ndef get_config():\n    config = default_config()\n"
        f"    config.data.name, config.data.folder = 'image_folder', {str(folder)!r}\n"
        "    config.data.splits.test, config.data.keep = 'train[:50%]', 'color'\n    return config\n"
    )
    assert commands.main(["evaluate", str(trained.folder), "--config", str(path), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out).values()
    assert row["all"]["count"] + row["left_out"] == 6  # half of the training pictures, and of these the coloured ones
    assert row["grayscale"] == {"top1": None, "top5": None, "loss": None, "count": 0}
    assert commands.main(["evaluate", str(trained.folder), "--config", str(path), "--split", "train[:4]"]) == 0
    assert "train[:4]" in capsys.readouterr().out


def test_the_table(trained, make_run, folder, capsys):
    one_channel = make_run("one", channels=1)
    arguments = ["--data", "image_folder", "--folder", str(folder)]
    assert commands.main(["evaluate", str(trained.folder), str(one_channel.folder), *arguments]) == 0
    header, first, second, *notes = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "data", "top-1", "top-5", "loss", "examples", "grayscale", "color"]
    assert first.startswith(str(trained.folder))
    assert second.startswith(str(one_channel.folder))
    assert len(first) == len(second) == len(header)
    assert notes == [
        f"{run.folder}: 6 examples of classes that it does not have: teapot" for run in (trained, one_channel)
    ]


def test_a_runs_own_split_by_default(make_run, folder, capsys):
    own = make_run("own", classes=("Cat", "DOG", "sea_urchin", "teapot"))
    assert commands.main(["evaluate", str(own.folder), "--split", "validation", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out).values()
    assert (row["data"], row["split"], row["all"]["count"], row["left_out"]) == ("image_folder", "validation", 2, 0)
    assert commands.main(["evaluate", str(own.folder), "--keep", "grayscale", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out).values()
    assert row["all"] == row["grayscale"]
    assert row["color"]["count"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "tset"], "tset"),
        (["--split", "a.b"], "split 'a.b' is not allowed"),
        (["--split", ""], "split '' is not allowed"),
        (["--config", "googlenet_cifar11"], "did you mean googlenet_cifar1"),
        (["--config", "googlenet_digits", "--data", "digits"], "not allowed with argument --config"),
        (["--checkpoint", "newest"], "choose 'best' or 'latest'"),
        (["--data", "cifar11"], "unknown data set 'cifar11'. Did you mean 'cifar1"),
        (["--data", "image_folder"], "name its folder"),
        (["--class-map", "nowhere.json"], "cannot read the class map nowhere.json"),
        (["--batch-size", "0"], "--batch-size=0 is not allowed"),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments, message, trained, capsys):
    assert commands.main(["evaluate", str(trained.folder), *arguments]) == 2
    answer = capsys.readouterr()
    assert message in answer.err
    assert (answer.err.count("\n"), answer.out) == (1, "")


@pytest.mark.parametrize("content", [None, "[1]", '{"architectures": ["X"]}', "{"])
def test_no_run(content, tmp_path, capsys):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert commands.main(["evaluate", str(tmp_path)]) == 2
    assert "config.json is no run's config" in capsys.readouterr().err
