"""Two networks on the same pictures, by counts, by formulas written out, and from the shell."""

import json
import math
import re

import numpy as np
import pytest
from PIL import Image
from runs import four_classes, untrained_run

import inception_jax
from inception_jax.commands import main
from inception_jax.errors import UserError
from inception_jax.inspection import activations
from inception_jax.trained import compare, evaluate
from inception_jax.trained.evaluate import Predictions

CLASSES = ("Cat", "DOG", "sea_urchin", "teapot")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return four_classes(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def make_run(tmp_path_factory, folder):
    def make(name, classes=CLASSES, **model):
        return untrained_run(tmp_path_factory.mktemp("runs") / name, folder, classes, **model)

    return make


@pytest.fixture(scope="module")
def pair_of_runs(make_run):
    return make_run("one"), make_run("other", stage_features=(4, 6, 8))


def said(generator, labels, quality):
    logits = generator.normal(size=(len(labels), 4)).astype(np.float32)
    logits[np.arange(len(labels)), np.maximum(labels, 0)] += quality
    return Predictions(logits, labels.astype(np.int32), None, generator.random(len(labels)) < 0.95)


def test_examples_are_counted_one_by_one():
    generator = np.random.default_rng(0)
    labels = generator.integers(-1, 4, 400)
    first, second = said(generator, labels, 1.0), said(generator, labels, 2.0)
    both = only_first = only_second = neither = agreeing = 0
    right = {name: [0, 0, 0] for name in CLASSES}
    for row, label in enumerate(labels):
        if label < 0 or not first.decoded[row] or not second.decoded[row]:
            continue
        guesses = first.logits[row].argmax(), second.logits[row].argmax()
        agreeing += guesses[0] == guesses[1]
        both += guesses == (label, label)
        only_first += guesses[0] == label != guesses[1]
        only_second += guesses[1] == label != guesses[0]
        neither += label not in guesses
        counts = right[CLASSES[label]]
        right[CLASSES[label]] = [counts[0] + (guesses[0] == label), counts[1] + (guesses[1] == label), counts[2] + 1]
    pairing, classes = compare.pair(first, second, CLASSES, CLASSES)
    assert pairing == compare.Pairing(both, only_first, only_second, neither, agreeing)
    assert pairing.difference == pytest.approx((only_second - only_first) / pairing.count)
    assert {each.name: [each.first, each.second, each.count] for each in classes} == {
        name: [pytest.approx(one / number), pytest.approx(other / number), number]
        for name, (one, other, number) in right.items()
    }


def test_classes_in_another_order_are_the_same_ones():
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 4, 100)
    first, second = said(generator, labels, 1.0), said(generator, labels, 1.0)
    expected = compare.pair(first, second, CLASSES, CLASSES)
    order = np.array([2, 0, 3, 1])  # the second's classes, by the first's numbers
    other = Predictions(second.logits[:, order], np.argsort(order)[labels].astype(np.int32), None, second.decoded)
    assert compare.pair(first, other, CLASSES, [CLASSES[label] for label in order]) == expected


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (3, 3), (1, 9), (12, 2), (25, 40), (0, 6)])
def test_the_test_is_mcnemars(only_first, only_second):
    odd, fewer = only_first + only_second, min(only_first, only_second)
    expected = min(1.0, 2 * sum(math.comb(odd, k) for k in range(fewer + 1)) / 2**odd)
    assert compare.Pairing(50, only_first, only_second, 10, 0).p_value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("counts", [(700, 100, 150, 50), (950, 10, 30, 10), (300, 220, 180, 300)])
def test_the_interval_is_near_the_bootstraps(counts):
    both, only_first, only_second, neither = counts
    generator = np.random.default_rng(0)
    drawn = generator.multinomial(sum(counts), np.array(counts) / sum(counts), size=20_000)
    expected = np.quantile((drawn[:, 2] - drawn[:, 1]) / sum(counts), (0.025, 0.975))
    assert compare.Pairing(both, only_first, only_second, neither, 0).interval == pytest.approx(expected, abs=0.003)


def test_the_interval_of_no_difference_has_a_width():
    low, high = compare.Pairing(20, 0, 0, 0, 20).interval
    assert low < 0 < high


def hsic(first, second):
    """Song et al. 2012, equation 5, from outputs `(n, units)`."""
    number, ones = len(first), np.ones(len(first))
    k, m = (x @ x.T - np.diag((x**2).sum(axis=1)) for x in (first, second))
    total = np.trace(k @ m) + ones @ k @ ones * (ones @ m @ ones) / ((number - 1) * (number - 2))
    return (total - 2 / (number - 2) * (ones @ k @ m @ ones)) / (number * (number - 3))


def test_similarity_is_cka_of_its_definition(pair_of_runs):
    first, second = pair_of_runs
    dataset = evaluate.load_for(first, "test", {})
    found = compare.compare_layers(first, second, dataset, dataset, "test")
    assert found.images == 24
    images, _ = dataset.splits["test"].gather(np.arange(24))
    outputs = [
        {
            name: np.asarray(value, np.float64).reshape(24, -1)
            for name, value in activations(run.model, run.variables, run.normalize(images)).items()
        }
        for run in (first, second)
    ]
    assert (found.first_layers, found.second_layers) == tuple(map(tuple, outputs))
    expected = [
        [hsic(one, other) / math.sqrt(hsic(one, one) * hsic(other, other)) for other in outputs[1].values()]
        for one in outputs[0].values()
    ]
    np.testing.assert_allclose(found.cka, expected, atol=1e-4)
    same = set(found.first_layers) & set(found.second_layers)
    assert found.namesakes.keys() == same


def test_a_network_is_like_itself_in_any_number_of_batches(pair_of_runs, monkeypatch):
    first, _ = pair_of_runs
    dataset = evaluate.load_for(first, "test", {})
    monkeypatch.setattr(compare, "BATCH", 7)
    found = compare.compare_layers(first, first, dataset, dataset, "test", layers="conv*")
    np.testing.assert_allclose(np.diag(found.cka), 1, rtol=1e-6)
    assert found.first_layers == found.second_layers


def test_runs_are_compared_at_the_repl(pair_of_runs):
    first, second = pair_of_runs
    found = inception_jax.compare_runs(first, second, images=0)
    assert found.similarity is None
    dataset = evaluate.load_for(first, "test", {})
    tops = [evaluate.metrics(evaluate.predictions(run, dataset, "test"))["top1"] for run in (first, second)]
    assert found.pairing.difference == pytest.approx(tops[1] - tops[0])
    assert found.pairing.count == 24


def test_the_command(pair_of_runs, tmp_path, capsys):
    first, second = (str(run.folder) for run in pair_of_runs)
    chart = tmp_path / "layers.png"
    assert main(["compare", first, second, "--json", "--chart", str(chart)]) == 0
    record = json.loads(capsys.readouterr().out)
    expected = inception_jax.compare_runs(*pair_of_runs)
    assert re.fullmatch(
        r"Comparison\(.*, test: second minus first .* points .*, CKA of \d+ x \d+ layers\)", repr(expected)
    )
    assert record["only_second"] == expected.pairing.only_second
    assert record["interval"] == pytest.approx(expected.pairing.interval)
    assert record["mcnemar_p_value"] == pytest.approx(expected.pairing.p_value)
    assert [each["name"] for each in record["per_class"]] == list(CLASSES)
    assert np.shape(record["layers"]["cka"]) == (len(record["layers"]["first"]), len(record["layers"]["second"]))
    with Image.open(chart) as picture:
        assert picture.format == "PNG"
    assert main(["compare", first, second, "--images", "0", "--per-class"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("24 examples of image_folder, test\n")
    assert "McNemar's exact test: p = " in text
    assert all(name in text for name in CLASSES)
    assert "layer" not in text


def test_the_second_sees_the_firsts_pictures(make_run, folder, tmp_path, capsys):
    elsewhere = make_run("trained elsewhere")
    config = json.loads((elsewhere.folder / "config.json").read_text())
    config["data"] |= {"folder": str(tmp_path / "gone"), "split_seed": 7}
    (elsewhere.folder / "config.json").write_text(json.dumps(config))
    assert main(["compare", str(make_run("here").folder), str(elsewhere.folder), "--images", "0", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert sum(record[key] for key in ("both", "only_first", "only_second", "neither")) == 24


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", "tset"], "tset"),
        (["--images", "3"], "images=3 is not allowed"),
        (["--chart", "layers.txt"], "layers.txt is not allowed for a chart: it must end in .png, .pdf, .svg"),
        (["--chart", "layers.png", "--images", "0"], "--chart compares layers: give --images greater than 0"),
        (["--layers", "inception_9z"], "inception_9z"),
        (["--batch-size", "0"], "--batch-size=0 is not allowed"),
        (["--data", "cifar11"], "unknown data set 'cifar11'"),
    ],
)
def test_mistakes_are_answered_in_one_line(arguments, message, pair_of_runs, capsys):
    assert main(["compare", *(str(run.folder) for run in pair_of_runs), *arguments]) == 2
    answer = capsys.readouterr()
    assert message in answer.err
    assert (answer.err.count("\n"), answer.out) == (1, "")


def test_networks_without_a_common_class_are_not_compared(make_run, folder):
    with pytest.raises(UserError, match="no example has a class that both networks have"):
        inception_jax.compare_runs(make_run("cats", ("Cat", "x")), make_run("dogs", ("DOG", "y")), images=0)
