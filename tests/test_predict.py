"""Pictures of all kinds through a trained network, from the library and from the command."""

import csv
import io
import itertools
import json

import numpy as np
import pytest
from jax import numpy as jnp
from PIL import Image

import inception_jax
from inception_jax.commands import main
from inception_jax.data import images
from inception_jax.errors import UserError
from inception_jax.trained.predict import find_pictures, load_classifier


@pytest.fixture(scope="module")
def classifier(trained):
    return load_classifier(trained)


@pytest.fixture
def pictures(tmp_path):
    """Pictures of several sizes, modes and kinds, at two depths, beside one that is broken and a file that is none."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name, mode, size in (
        ("a.png", "RGB", (30, 20)), ("b.jpg", "L", (8, 8)), ("c.webp", "RGBA", (17, 33)), ("more/d.gif", "P", (9, 5)),
    ):  # fmt: skip
        pixels = random.integers(0, 256, (*size[::-1], 3), np.uint8)
        Image.fromarray(pixels).convert(mode).save(folder / name)
    (folder / "broken.png").write_bytes((folder / "a.png").read_bytes()[:100])
    (folder / "notes.txt").write_text("none")
    return folder


def test_pictures_are_read_as_for_training_and_answered_in_order(classifier, pictures):
    paths = [pictures / name for name in ("c.webp", "a.png", "more/d.gif", "b.jpg")]
    stored = np.stack([images.decode(path.read_bytes(), classifier.form) for path in paths])
    expected = classifier.predict(stored)
    for batch_size in (1, 3, 32):
        found = list(classifier.classify(paths, top=10, batch_size=batch_size))
        assert [one.name for one in found] == list(map(str, paths))
        for one, row in zip(found, expected, strict=True):
            order = [classifier.class_names.index(name) for name in one.classes]
            assert sorted(order) == list(range(10))
            np.testing.assert_allclose(one.probabilities, row[order], rtol=1e-5)
            assert list(one.probabilities) == sorted(one.probabilities, reverse=True)


def test_what_cannot_be_read_is_named_and_the_rest_done(classifier, pictures):
    sources = [pictures / "broken.png", pictures / "a.png", pictures / "gone.png", b"no picture"]
    broken, good, gone, text = classifier.classify(sources, top=2)
    assert broken.error is not None
    assert "truncated" in broken.error
    assert good.error is None
    assert len(good.classes) == 2
    assert gone.error == "No such file or directory"
    assert (text.name, text.error) == ("-", "it is not a picture of a known format")


def test_pictures_are_read_a_little_ahead_alone(classifier, pictures):
    taken = itertools.count()
    endless = (pictures / "a.png" for _ in taken)
    found = list(itertools.islice(classifier.classify(endless, batch_size=4), 6))
    assert len({one.probabilities for one in found}) == 1
    assert next(taken) <= 13


@pytest.mark.parametrize("options", [{"top": 0}, {"batch_size": 0}])
def test_wrong_numbers_are_named(classifier, options):
    with pytest.raises(UserError, match="=0 is not allowed: it must be at least 1"):
        list(classifier.classify([], **options))


def test_pictures_are_found_at_any_depth(pictures, tmp_path):
    names = [name.removeprefix(f"{pictures}/") for name in find_pictures([pictures, "other.jpg"])]
    assert names == ["a.png", "b.jpg", "broken.png", "c.webp", "more/d.gif", "other.jpg"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty contains no pictures"):
        list(find_pictures([tmp_path / "empty"]))


def test_the_command_prints_a_row_for_each_picture(trained, pictures, capsys):
    assert main(["predict", str(trained), str(pictures), "--top", "2"]) == 1
    shown = capsys.readouterr()
    header, *rows = shown.out.splitlines()
    assert header.split() == ["picture", "class"]
    likely = inception_jax.load(trained).predict(pictures / "a.png")[0]
    assert rows[0].split()[1:3] == [str(likely.argmax()), f"{likely.max():.2%}"]
    assert [row.split()[0].removeprefix(f"{pictures}/") for row in rows] == ["a.png", "b.jpg", "c.webp", "more/d.gif"]
    assert all(row.count("%") == 2 for row in rows)
    assert f"{pictures}/broken.png: " in shown.err
    assert "1 pictures could not be read" in shown.err
    assert "1 files do not end like pictures" in shown.err


def test_json_and_csv_say_the_same(trained, pictures, capsys):
    assert main(["predict", str(trained), str(pictures), "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["error" in line for line in lines] == [False, False, True, False, False]
    assert main(["predict", str(trained), str(pictures), "--csv"]) == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    known = [(line["picture"], one["name"]) for line in lines for one in line.get("classes", ())]
    assert [(row["picture"], row["class"]) for row in rows] == known
    assert [row["rank"] for row in rows[:6]] == ["1", "2", "3", "4", "5", "1"]


def test_a_picture_comes_from_standard_input(trained, pictures, capsys, monkeypatch):
    content = io.TextIOWrapper(io.BytesIO((pictures / "a.png").read_bytes()))
    monkeypatch.setattr("sys.stdin", content)
    # One by one: two rows of one batch may differ in their last digits, by the processor's instructions.
    assert [main(["predict", str(trained), name, "--json"]) for name in ("-", str(pictures / "a.png"))] == [0, 0]
    given, named = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (given.pop("picture"), named.pop("picture")) == ("-", str(pictures / "a.png"))
    assert given == named


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", jnp.bfloat16])
def test_the_network_computes_in_the_type_that_is_asked_for(trained, classifier, dtype):
    pixels = np.random.default_rng(0).integers(0, 256, (3, *classifier.inputs.image_shape), np.uint8)
    other = load_classifier(trained, dtype=dtype)
    assert other.model.dtype == jnp.dtype(dtype)
    found, wanted = other.predict(pixels), classifier.predict(pixels)
    np.testing.assert_allclose(found, wanted, atol=1e-6 if dtype == "float32" else 0.03)
    assert (found == wanted).all() == (dtype == "float32")


@pytest.mark.parametrize("dtype", ["float16", "half a byte", jnp.int8, 32])
def test_a_type_that_no_network_computes_in(trained, dtype):
    with pytest.raises(UserError, match=r"unknown dtype .*Known: bfloat16, float32"):
        load_classifier(trained, dtype=dtype)


def test_the_commands_take_a_type(trained, pictures, capsys):
    picture = str(pictures / "a.png")
    assert main(["predict", str(trained), picture, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main(["predict", str(trained), picture, "--json", "--dtype", "bfloat16"]) == 0
    rounded = json.loads(capsys.readouterr().out)
    assert rounded != plain
    for one, other in zip(rounded["classes"][:1], plain["classes"][:1], strict=True):
        assert one["name"] == other["name"]
        assert one["probability"] == pytest.approx(other["probability"], abs=0.03)
    for command in (["predict", str(trained), picture], ["evaluate", str(trained)], ["serve", str(trained)]):
        assert main([*command, "--dtype", "float16"]) == 2
        assert "unknown dtype 'float16'" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"nowhere\.onnx computes in the type it was exported with"):
        load_classifier("nowhere.onnx", dtype="float32")


def test_mistakes_are_answered_in_one_line(trained, pictures, tmp_path, capsys):
    picture = pictures / "a.png"
    for arguments, message in (
        ((tmp_path, picture), "config.json"),
        ((trained, picture, "--top", "0"), "top=0 is not allowed"),
        ((trained, picture, "--checkpoint", "first"), "choose 'best' or 'latest'"),
        ((trained,), "the following arguments are required: PICTURE"),
    ):
        assert main(["predict", *map(str, arguments)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
