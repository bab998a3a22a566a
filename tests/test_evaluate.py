"""Runs on other data: what a network says of each example, classes by name, and networks that share the work."""

import csv
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from loading import load_data
from peers import import_torchvision
from PIL import Image
from runs import four_classes, untrained_run
from sklearn.metrics import confusion_matrix, log_loss, precision_recall_fscore_support, top_k_accuracy_score

from inception_jax import commands
from inception_jax.errors import UserError
from inception_jax.experiment import Experiment
from inception_jax.runs.folder import open_checkpoints
from inception_jax.runs.run import Run
from inception_jax.trained import evaluate, views
from inception_jax.trained.classes import match_classes, read_class_map
from inception_jax.trained.evaluate import Predictions

CLASSES = ("cat", "dog", "sea urchin")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return four_classes(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def make_run(tmp_path_factory, folder):
    def make(name: str, channels: int = 3, classes: tuple[str, ...] = CLASSES) -> Run:
        return untrained_run(tmp_path_factory.mktemp("runs") / name, folder, classes, channels)

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


def test_each_class_is_counted_as_scikit_learn_does():
    generator = np.random.default_rng(1)
    labels = generator.integers(-1, 6, 300).astype(np.int32)  # none of class 6, ...
    logits = generator.normal(size=(300, 7)).astype(np.float32) + 2 * np.eye(7, dtype=np.float32)[labels]
    logits[:, 5] = -9  # ... and nothing is taken for class 5
    decoded = generator.random(300) < 0.9
    found = Predictions(logits, labels, None, decoded)
    rows = decoded & (labels >= 0)
    truth, guesses = labels[rows], logits[rows].argmax(axis=1)
    np.testing.assert_array_equal(evaluate.confusion_matrix(found), confusion_matrix(truth, guesses, labels=range(7)))
    precision, recall, _, counts = precision_recall_fscore_support(
        truth, guesses, labels=range(7), zero_division=np.nan
    )
    classes = evaluate.per_class(found, "abcdefg")
    assert [each.name for each in classes] == list("abcdefg")
    assert [each.count for each in classes] == counts.tolist()
    np.testing.assert_allclose([each.precision for each in classes], precision, rtol=1e-12)
    np.testing.assert_allclose([each.recall for each in classes], recall, rtol=1e-12)


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_the_calibration_error_is_that_of_its_definition(bins):
    generator = np.random.default_rng(2)
    labels = generator.integers(-1, 4, 500).astype(np.int32)
    logits = 3 * generator.normal(size=(500, 4)).astype(np.float32)
    logits[0] = (200, 0, 0, 0)  # a probability of 1
    probabilities = np.exp(logits.astype(float)) / np.exp(logits.astype(float)).sum(axis=1, keepdims=True)
    known = labels >= 0
    confidence, right = probabilities[known].max(axis=1), probabilities[known].argmax(axis=1) == labels[known]
    expected = 0.0
    for interval in range(bins):
        low, high = interval / bins, (interval + 1) / bins
        inside = (confidence >= low) & ((confidence < high) | (interval == bins - 1))
        if inside.any():
            expected += inside.sum() / known.sum() * abs(right[inside].mean() - confidence[inside].mean())
    found = evaluate.calibration_error(Predictions(logits, labels, None, np.ones(500, bool)), bins)
    assert found == pytest.approx(expected, abs=1e-12)
    assert np.isnan(evaluate.calibration_error(Predictions(logits, np.full(500, -1), None, np.ones(500, bool))))


@pytest.mark.parametrize(("side", "crop"), [(9, 8), (37, 32), (18, 16), (256, 224)])
def test_the_ten_crops_are_torchvisions(side, crop):
    import_torchvision()
    import torch
    from torchvision.transforms import CenterCrop, TenCrop

    images = np.random.default_rng(0).integers(0, 256, (2, side, side, 3), np.uint8)
    expected = TenCrop(crop)(torch.from_numpy(images).permute(0, 3, 1, 2))
    found = evaluate.views(images, "10-crop", (crop, crop, 3))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs.permute(0, 2, 3, 1).numpy())
    (middle,) = evaluate.views(images, "1-crop", (crop, crop, 3))
    expected = CenterCrop(crop)(torch.from_numpy(images).permute(0, 3, 1, 2))
    np.testing.assert_array_equal(middle, expected.permute(0, 2, 3, 1).numpy())


def test_the_probabilities_of_an_image_and_its_mirror_image_are_averaged(trained, folder):
    dataset = evaluate.load_for(trained, "test", {"name": "image_folder", "folder": str(folder)}, tta="flip")
    found = evaluate.predictions(trained, dataset, "test", batch_size=7, tta="flip")
    images, _ = dataset.splits["test"].gather(np.arange(24))
    expected = (trained.predict(images) + trained.predict(images[:, :, ::-1])) / 2
    np.testing.assert_allclose(jax.nn.softmax(found.logits), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.exp(found.logits), expected, rtol=1e-5, atol=1e-6)


def test_shifted_views_have_half_the_weight_together(trained, folder):
    dataset = evaluate.load_for(trained, "test", {"name": "image_folder", "folder": str(folder)}, tta="flip-shift")
    found = evaluate.predictions(trained, dataset, "test", batch_size=7, tta="flip-shift")
    images, _ = dataset.splits["test"].gather(np.arange(24))

    def both(images):
        return (trained.predict(images) + trained.predict(images[:, :, ::-1])) / 2

    # A border of one pixel that mirrors, so that row -1 is row 1 and the row after the last is the last but one.
    upwards, downwards = [*range(1, 16), 14], [1, *range(15)]
    shifted = [both(images[:, places][:, :, places]) for places in (upwards, downwards)]
    np.testing.assert_allclose(np.exp(found.logits), both(images) / 2 + sum(shifted) / 4, rtol=1e-5, atol=1e-6)


def test_ten_crops_are_cut_out_of_pictures_decoded_larger(trained, folder):
    dataset = evaluate.load_for(trained, "test", {"name": "image_folder", "folder": str(folder)}, tta="10-crop")
    assert dataset.image_shape == (18, 18, 3)
    found = evaluate.predictions(trained, dataset, "test", batch_size=7, tta="10-crop")
    place = next(iter(sorted((folder / "test/Cat").iterdir())))
    with Image.open(place) as picture:
        image = np.asarray(picture.convert("RGB").resize((18, 18), Image.Resampling.BILINEAR))
    images, _ = dataset.splits["test"].gather(np.arange(24))
    (number,) = np.flatnonzero((images == image).all(axis=(1, 2, 3)))
    crops = [image[y : y + 16, x : x + 16] for y, x in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1))]
    crops += [crop[:, ::-1] for crop in crops]
    np.testing.assert_allclose(np.exp(found.logits[number]), trained.predict(np.stack(crops)).mean(axis=0), rtol=1e-4)
    one = evaluate.predictions(trained, dataset, "test", batch_size=7, tta="1-crop")
    np.testing.assert_allclose(one.logits[number], trained.logits(crops[4][None])[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match=r"are \(18, 18, 3\), not \(16, 16, 3\)"):
        evaluate.predictions(trained, dataset, "test")


def test_the_middle_crop_is_the_trainings_image(trained, tmp_path):
    slope = np.add.outer(np.arange(128), np.arange(160)).astype(np.uint8)[::-1] // 2
    for split in ("train", "test"):
        (tmp_path / split / "cat").mkdir(parents=True)
        Image.fromarray(slope).save(tmp_path / split / "cat/a.png")
    config = trained.config.copy_and_resolve_references()
    config.data.fit, config.data.crop_share = "crop", 0.875
    cropping = dataclasses.replace(trained, config=config)
    images = {}
    for tta in ("none", "10-crop"):
        dataset = evaluate.load_for(cropping, "test", {"folder": str(tmp_path)}, tta=tta)
        images[tta], _ = dataset.splits["test"].gather(np.arange(1))
    middle = evaluate.views(images["10-crop"], "10-crop", (16, 16, 3))[4]
    assert np.abs(middle.astype(int) - images["none"]).max() <= 1


def test_the_boxes_of_144_crops():
    """A picture of 500x375 pixels, counted by hand: at 256 pixels it is 341 wide."""
    assert views.scaled_sides(224) == [256, 288, 320, 352]
    found = views.boxes(341, 256, 224)
    for number, left in enumerate((0, 42, 85)):
        assert found[6 * number : 6 * number + 6] == [
            (left, 0, left + 224, 224),
            (left + 32, 0, left + 256, 224),
            (left, 32, left + 224, 256),
            (left + 32, 32, left + 256, 256),
            (left + 16, 16, left + 240, 240),
            (left, 0, left + 256, 256),
        ]
    assert len(found) == 3 * 6  # and at 4 sizes, with their mirror images, 144
    assert views.boxes(256, 341, 224) == [
        (left, top, right, bottom)
        for x in (0, 42, 85)
        for left, top, right, bottom in [
            (0, x, 224, x + 224), (32, x, 256, x + 224), (0, x + 32, 224, x + 256), (32, x + 32, 256, x + 256),
            (16, x + 16, 240, x + 240), (0, x, 256, x + 256),
        ]
    ]  # fmt: skip


@pytest.mark.parametrize(("width", "height", "channels"), [(41, 30, 3), (30, 41, 1), (24, 24, 3)])
def test_the_144_crops_are_those_of_torchvision(width, height, channels):
    functional = import_torchvision().transforms.functional
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, channels), np.uint8)
    image = Image.fromarray(pixels.squeeze(-1) if channels == 1 else pixels)
    expected = []
    for side in (18, 21, 23, 25):  # 16 / 224 of the paper's
        resized = functional.resize(image, side)
        rest = max(resized.size) - side
        for start in (0, round(rest / 2), rest):
            top, left = (0, start) if width > height else (start, 0)
            square = functional.crop(resized, top, left, side, side)
            for crop in (*functional.five_crop(square, 16), functional.resize(square, [16, 16])):
                expected += [np.asarray(crop), np.asarray(functional.hflip(crop))]
    found = views.crops(pixels, 16)
    assert found.shape == (144, 16, 16, channels)
    np.testing.assert_array_equal(found, np.reshape(expected, found.shape))


def test_144_crops_are_cut_out_of_the_pictures(trained, folder, tmp_path, caplog):
    pictures = shutil.copytree(folder, tmp_path / "pictures")
    fields = {"name": "image_folder", "folder": str(pictures), "directory": str(tmp_path / "prepared")}
    dataset = evaluate.load_for(trained, "test", fields, tta="144-crop")
    split = dataset.splits["test"]
    paths = [pictures / split.sources[0].name(int(row)) for row in split.rows]
    paths[1].unlink()
    found = evaluate.predictions(trained, dataset, "test", batch_size=50, tta="144-crop")
    assert found.decoded.tolist() == [row != 1 for row in range(len(paths))]
    assert "left out" in caplog.text
    for row in (0, 2, len(paths) - 1):
        crops = views.crops(np.asarray(Image.open(paths[row]).convert("RGB")), 16)
        np.testing.assert_allclose(np.exp(found.logits[row]), trained.predict(crops).mean(axis=0), rtol=1e-4)
    arrays = evaluate.load_for(trained, "test", {"name": "image_folder", "folder": str(folder)})
    with pytest.raises(UserError, match="144 crops are cut out of pictures at their own size, but these are arrays"):
        evaluate.predictions(trained, arrays, "test", tta="144-crop")


def test_an_ensemble_is_the_mean_of_probabilities():
    generator = np.random.default_rng(0)
    labels, decoded = np.arange(5) - 1, np.arange(5) < 4
    logits = [generator.normal(size=(5, 3)).astype(np.float32) for _ in range(3)]
    logits[0][1] = (1000, 0, -1000)  # probabilities of 0
    members = [Predictions(values, labels, None, np.ones(5, bool)) for values in logits]
    members[1] = dataclasses.replace(members[1], decoded=decoded)
    found = evaluate.ensemble(members)
    np.testing.assert_allclose(np.exp(found.logits), np.mean(jax.nn.softmax(np.stack(logits)), axis=0), rtol=1e-5)
    assert np.isfinite(found.logits).all()
    np.testing.assert_array_equal(found.decoded, decoded)
    for other in (
        dataclasses.replace(members[0], labels=labels[::-1]),
        Predictions(logits[0][:, :2], labels, None, decoded),
    ):
        with pytest.raises(UserError, match="the same pictures, for the same classes"):
            evaluate.ensemble([members[0], other])


def test_the_ensembles_row(make_run, folder, tmp_path, capsys):
    runs = [make_run("one of them"), make_run("two")]
    place = tmp_path / "predictions.npz"
    arguments = [*(str(run.folder) for run in runs), "--folder", str(folder), "--data", "image_folder", "--json"]
    assert commands.main(["evaluate", *arguments, "--ensemble", "--predictions", str(place)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert list(rows) == [str(run.folder) for run in runs] + ["ensemble of 2"]
    dataset = evaluate.load_for(runs[0], "test", {"name": "image_folder", "folder": str(folder)})
    images, labels = dataset.splits["test"].gather(np.arange(24))
    probabilities = np.mean([run.predict(images) for run in runs], axis=0)
    known = labels < 3
    assert rows["ensemble of 2"]["all"]["top1"] == (probabilities.argmax(axis=1) == labels)[known].mean()
    with np.load(place) as saved:
        np.testing.assert_allclose(np.exp(saved["logits"]), probabilities, rtol=1e-4)
        assert saved["labels"].tolist() == np.where(known, labels, -1).tolist()
        assert saved["class_names"].tolist() == list(CLASSES)
        assert saved["grayscale"].sum() == dataset.splits["test"].grayscale().sum()
    other = make_run("of other classes", classes=("dog", "cat", "sea urchin"))
    assert commands.main(["evaluate", str(runs[0].folder), str(other.folder), *arguments[2:], "--ensemble"]) == 2
    assert "have different classes: they cannot be used as an ensemble" in capsys.readouterr().err


def test_an_ensemble_is_given_the_first_runs_pictures(make_run, tmp_path, capsys):
    classes = ("Cat", "DOG", "sea_urchin", "teapot")
    one, two = make_run("member", classes=classes), make_run("another member", classes=classes)
    config = json.loads((two.folder / "config.json").read_text())
    config["data"] |= {"folder": str(tmp_path / "elsewhere"), "split_seed": 7}
    (two.folder / "config.json").write_text(json.dumps(config))
    assert commands.main(["evaluate", str(one.folder), str(two.folder), "--ensemble", "--json"]) == 0
    assert {row["all"]["count"] for row in json.loads(capsys.readouterr().out).values()} == {24}


def test_classes_and_files(trained, folder, tmp_path, capsys):
    arguments = ["evaluate", str(trained.folder), "--data", "image_folder", "--folder", str(folder), "--per-class"]
    files = [tmp_path / "confusion.csv", tmp_path / "predictions.csv"]
    assert commands.main([*arguments, "--confusion", str(files[0]), "--predictions", str(files[1])]) == 0
    *_, title, header, rule, cat, dog, urchin = capsys.readouterr().out.splitlines()
    assert title == f"{trained.folder}:"
    assert header.split() == ["class", "precision", "recall", "examples"]
    assert set(rule) == {"-", " "}
    dataset = evaluate.load_for(trained, "test", {"name": "image_folder", "folder": str(folder)})
    found = evaluate.predictions(trained, dataset, "test")
    matrix = evaluate.confusion_matrix(found)
    for line, name, counts in zip((cat, dog, urchin), CLASSES, matrix, strict=True):
        assert line.startswith(name)
        assert line.split()[-2:] == [f"{counts[CLASSES.index(name)] / counts.sum():.2%}", f"{counts.sum()}"]
    with files[0].open() as file:
        assert list(csv.reader(file)) == [
            ["true class", *CLASSES],
            *([name, *map(str, counts)] for name, counts in zip(CLASSES, matrix, strict=True)),
        ]
    with files[1].open() as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in rows] == list(map(str, range(24)))
    assert [row["class"] for row in rows] == [CLASSES[label] if label >= 0 else "" for label in found.labels]
    assert [row["predicted"] for row in rows] == [CLASSES[label] for label in found.logits.argmax(axis=1)]
    np.testing.assert_allclose(
        [float(row["probability"]) for row in rows], jax.nn.softmax(found.logits).max(axis=1), atol=2e-6
    )
    assert commands.main([*arguments, "--json", "--tta", "flip", "--keep", "color"]) == 0
    (row,) = json.loads(capsys.readouterr().out).values()
    assert row["tta"] == "flip"
    assert 0 <= row["calibration_error"] <= 1
    assert [each["name"] for each in row["per_class"]] == list(CLASSES)
    assert sum(each["count"] for each in row["per_class"]) == row["all"]["count"]


def test_another_data_set_is_resized_and_its_classes_matched(trained, folder):
    dataset = evaluate.load_for(trained, "test", {"name": "image_folder", "folder": str(folder)})
    assert dataset.class_names == ("Cat", "DOG", "sea_urchin", "teapot")
    found = evaluate.predictions(trained, dataset, "test", batch_size=7)
    images, labels = dataset.splits["test"].gather(np.arange(24))
    np.testing.assert_allclose(found.logits, trained.logits(images), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found.labels, np.where(labels == 3, -1, labels))
    np.testing.assert_array_equal(found.grayscale, dataset.splits["test"].grayscale())
    assert evaluate.metrics(found)["count"] == 18


def test_a_split_is_evaluated_beside_which_no_other_is_there(trained, folder, tmp_path):
    for synset in ("n01440764", "n02102040"):
        (tmp_path / "imagenet" / "val" / synset).mkdir(parents=True)
        Image.new("RGB", (20, 16), "red").save(tmp_path / "imagenet" / "val" / synset / "1.JPEG")
    dataset = evaluate.load_for(trained, "test", {"name": "imagenet2012", "folder": str(tmp_path / "imagenet")})
    assert dataset.splits["test"].all_labels().tolist() == [0, 217]
    # What training would have cut off for validation stays cut off.
    dataset = evaluate.load_for(trained, "train", {"name": "image_folder", "folder": str(folder)})
    assert "validation" in dataset.splits


@pytest.mark.parametrize(
    ("theirs", "ours", "given", "expected"),
    [
        (("Sea-Urchin", "DOG", "fox"), CLASSES, None, [2, 1, -1]),
        (("tabby, cat", "hound, dog", "x"), CLASSES, None, [0, 1, -1]),
        (("dog",), ("domestic dog, dog", "cat"), None, [0]),
        (("hound", "dog"), CLASSES, {"hound": "dog"}, [1, 1]),
        (("a", "b"), ("b", "a"), {"a": "b"}, [0, 0]),
        (("0", "1"), ("0", "1"), None, [0, 1]),
        (("maillot, tank suit", "maillot", "tank_suit"), ("maillot", "maillot, tank suit"), None, [1, 0, -1]),
        (("maillot", "tank_suit"), ("maillot", "maillot, tank suit"), None, [0, 1]),
        (("missile", "projectile, missile"), ("projectile", "missile"), None, [1, 0]),
        # The very name first, ...
        (("a",), ("A", "a", "B"), None, [1]),
        (("a", "A"), ("A", "a"), None, [1, 0]),
        (("-1", "1"), ("-1", "0", "1"), None, [0, 2]),
        (("cafe", "caf\u00e9"), ("caf\u00e9", "cafe"), None, [1, 0]),
        # ... however its accents are written, ...
        (("cafe\u0301", "cafe"), ("caf\u00e9", "cafe"), None, [0, 1]),
        (("cafe\u0301", "x"), ("X", "caf\u00e9"), {"caf\u00e9": "X"}, [0, 0]),
        # ... then the nearest spelling, ...
        (("Sea Urchin", "sea urchin"), ("sea_urchin", "Sea_Urchin"), None, [1, 0]),
        (("A ", "x"), ("a", "A"), None, [1, -1]),
        # ... of which a sign is a part, and what parts two numbers.
        (("1", "x"), ("-1", "x"), None, [-1, 1]),
        (("A-", "A+", "x"), ("A", "B", "x"), None, [-1, -1, 2]),
        (("1-2", "12"), ("12", "1_2"), None, [1, 0]),
        # Two that are alike, on either side: neither is guessed.
        (("a", "A"), ("a", "B"), None, [0, -1]),
        (("cat", "CAT"), ("cat", "Cat"), None, [0, -1]),
        (("Sea Urchin", "SEA-URCHIN", "x"), ("sea urchin", "x"), None, [-1, -1, 1]),
        (("crane", "crane", "x"), ("crane", "x"), None, [-1, -1, 1]),
        (("crane", "x"), ("crane", "crane", "x"), None, [-1, 2]),
        (("crane, bird", "crane"), ("crane", "crane, machine"), None, [-1, 0]),
        (("Cat", "CAT", "x"), ("cat", "x"), {"Cat": "cat", "CAT": "cat"}, [0, 0, 1]),
        (("dog",), ("hound, dog", "Dog"), None, [1]),
        (("", "dog"), ("dog,", "cat"), None, [-1, 0]),
    ],
)
def test_classes_are_matched_by_name(theirs, ours, given, expected):
    labels = match_classes(theirs, ours, given)
    assert labels.tolist() == expected
    assert labels.dtype == np.int32


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "no class of the data matches a class of the run: the data has fox, ant; the run has cat, dog"),
        ({"cow": "cat"}, "names 'cow', which is not a class of the data: fox, ant"),
        ({"fox": "cow"}, "names 'cow', which is not a class of the run: cat, dog"),
    ],
)
def test_classes_that_cannot_be_matched(given, message):
    with pytest.raises(UserError, match=message):
        match_classes(("fox", "ant"), ("cat", "dog"), given)


def test_names_that_are_alike_are_said(caplog):
    match_classes(("cat", "CAT", "dog"), ("cat", "Cat", "Dog"))
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "classes are left out: ambiguous names: 'CAT' of the data, like 'cat', may be 'cat' or 'Cat' of "
        "the run. Match them with --class-map FILE"
    ]
    with pytest.raises(UserError, match=r"'Cat' of the data, like 'CAT', may be 'cat' of the run.*--class-map"):
        match_classes(("Cat", "CAT"), ("cat", "dog"))
    with caplog.at_level("INFO"):
        match_classes(("cat", "Sea_Urchin"), ("sea urchin", "cat"))
    assert caplog.messages[-1].endswith("despite different spelling: 'Sea_Urchin' is 'sea urchin'")


@pytest.mark.parametrize(
    ("theirs", "ours", "given", "message"),
    [
        (
            ("crane", "crane", "x"),
            ("y", "z"),
            {"crane": "y"},
            "names 'crane', which is more than one class of the data",
        ),
        (("x", "y"), ("crane", "crane"), {"x": "crane"}, "names 'crane', which is more than one class of the run"),
        (("caf\u00e9", "x"), ("y",), {"caf\u00e9": "y", "cafe\u0301": "y"}, "names 'cafe\u0301' of the data twice"),
    ],
)
def test_a_class_map_that_does_not_say_which(theirs, ours, given, message):
    with pytest.raises(UserError, match=message):
        match_classes(theirs, ours, given)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": "x", "b": "x", "a": "y"}', "is not a class map: it has 'a' more than once"),
        ('{"a": 1}', "is not a class map: it must be JSON"),
        ("[" * 100_000, "cannot read the class map"),
        ("{", "cannot read the class map"),
    ],
)
def test_files_that_are_no_class_map(content, message, tmp_path):
    (tmp_path / "map.json").write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_class_map(tmp_path / "map.json")
    assert "\n" not in str(error.value)


def test_a_pair_routes_each_picture_to_its_network(make_run, folder, capsys):
    color, gray = make_run("color"), make_run("grayscale", channels=1)
    assert commands.main(
        ["evaluate", str(color.folder), "--grayscale-run", str(gray.folder), "--data", "image_folder", "--folder",
         str(folder), "--json"]
    ) == 0  # fmt: skip
    (row,) = json.loads(capsys.readouterr().out).values()
    load = {"directory": str(color.folder.parent / "prepared"), "folder": folder, "image_size": 16}
    right = {True: [], False: []}
    parts = [load_data("image_folder", channels=channels, **load).splits["test"] for channels in (3, 1)]
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
    with pytest.raises(UserError, match="does not say which pictures are grayscale"):
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
    half = load_data("image_folder", directory=tmp_path, folder=folder, splits={"test": "train[:50%]"}, image_size=16)
    gray = half.splits["test"].grayscale()
    assert row["all"]["count"] + row["left_out"] == (~gray).sum()  # cut before grayscale ones are left out
    assert 0 < gray.sum() < 12 == len(gray)
    assert row["grayscale"] == {"top1": None, "top5": None, "loss": None, "count": 0}
    assert commands.main(["evaluate", str(trained.folder), "--config", str(path), "--split", "train[:4]"]) == 0
    assert "train[:4]" in capsys.readouterr().out


def test_the_table(trained, make_run, folder, capsys):
    one_channel = make_run("one", channels=1)
    arguments = ["--data", "image_folder", "--folder", str(folder)]
    assert commands.main(["evaluate", str(trained.folder), str(one_channel.folder), *arguments]) == 0
    header, first, second, *notes = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "run",
        "weights",
        "data",
        "top-1",
        "top-5",
        "loss",
        "ECE",
        "examples",
        "grayscale",
        "color",
    ]
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


@pytest.fixture(scope="module")
def without_test(make_run, folder, tmp_path_factory):
    """Two runs on data without a test split, of which one says so itself."""
    place = tmp_path_factory.mktemp("no test split")
    for split in ("train", "validation"):
        shutil.copytree(folder / ("test" if split == "validation" else split), place / split)
    runs = []
    for name in ("one", "another"):
        run = make_run(name, classes=("Cat", "DOG", "sea_urchin", "teapot"))
        config = json.loads((run.folder / "config.json").read_text())
        config["data"]["folder"] = str(place)
        if runs:
            config["data"]["splits"]["test"] = ""
        (run.folder / "config.json").write_text(json.dumps(config))
        runs.append(str(run.folder))
    return runs


def test_validation_stands_in_where_there_is_no_test_split(without_test, capsys):
    for arguments in (without_test[:1], without_test[1:], without_test, [*without_test, "--ensemble"]):
        assert commands.main(["evaluate", *arguments, "--json"]) == 0
        answer = capsys.readouterr()
        rows = json.loads(answer.out)
        assert {(row["split"], row["all"]["count"]) for row in rows.values()} == {("validation", 24)}
        assert f"{arguments[0]}: using the validation split instead of test: " in answer.err
    assert commands.main(["compare", *without_test, "--images", "0", "--json"]) == 0
    answer = capsys.readouterr()
    assert json.loads(answer.out)["split"] == "validation"
    assert f"{without_test[0]}: using the validation split instead of test: " in answer.err
    for command in (["evaluate", *without_test], ["compare", *without_test]):
        assert commands.main([*command, "--split", "test"]) == 2
        assert "test" in capsys.readouterr().err


def test_it_says_which_weights(make_run, capsys):
    run = make_run("which", classes=("Cat", "DOG", "sea_urchin", "teapot"))
    with open_checkpoints(run.folder, run.config) as checkpoints:
        template = jax.eval_shape(Experiment.of(run.config, run.inputs, steps_per_epoch=10).initial_state)
        state, _ = checkpoints.restore(7, template)
        progress = checkpoints.progress(7)
        for step, accuracy in ((12, 0.9), (15, 0.8)):
            checkpoints.save(step, state, progress, {"validation_top1": accuracy, "validation_loss": -accuracy})
    one = str(run.folder)
    for given, checkpoint, step, epoch in (("best", "best", 12, 1.2), ("latest", "latest", 15, 1.5)):
        assert commands.main(["evaluate", one, "--checkpoint", given, "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out).values()
        assert (row["checkpoint"], row["step"], row["epoch"]) == (checkpoint, step, epoch)
        assert commands.main(["evaluate", one, "--checkpoint", given]) == 0
        assert f"{checkpoint}, step {step} (epoch {epoch:g})" in capsys.readouterr().out
    assert commands.main(["compare", one, one, "--images", "0"]) == 0
    assert "best, step 12 (epoch 1.2)" in capsys.readouterr().out


def test_without_a_best_checkpoint_it_is_the_latest(trained):
    assert (trained.checkpoint, trained.step, trained.epoch) == ("latest", 7, 0.7)


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
        (["--tta", "5-crop"], "unknown test-time augmentation '5-crop'. Did you mean '1-crop'?"),
        (["--ensemble"], "--ensemble needs at least two runs"),
        (["--snapshots"], "has no snapshots: they need schedule.name='cosine' with several schedule.cycles"),
        (["another", "--snapshots"], "--snapshots needs exactly one run"),
        (["another", "--predictions", "p.npz"], "--predictions needs a single run, or --ensemble for several"),
        (["--confusion", "matrix.txt"], "matrix.txt is not allowed for a confusion matrix: it must end in .csv, .png"),
        (["--predictions", "p.json"], "p.json is not allowed for predictions: it must end in .npz or .csv"),
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
    assert "config.json is not a run's config" in capsys.readouterr().err
