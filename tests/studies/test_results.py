"""Measures of runs, means over seeds, and verdicts on claims."""

import json
import math

import numpy as np
import pytest
import scipy.stats
from fake_runs import fake_plan, make_study

from inception_jax.studies import Claim, Form, Minimum, Pair, Variation
from inception_jax.studies.plan import make_plan
from inception_jax.studies.results import EXTRAS, Estimate, read_table, seeds_needed


def test_intervals_are_scipys():
    first, second = np.array([0.91, 0.93, 0.90, 0.95]), np.array([0.88, 0.91, 0.90, 0.90])
    estimate = Estimate(tuple(first - second))
    expected = scipy.stats.ttest_rel(first, second).confidence_interval(0.95)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))
    assert estimate.deviation == pytest.approx(np.std(first - second, ddof=1))
    # A mean as large as half the interval's width is where the test's p is 0.05.
    shifted = Estimate(tuple(first - second - estimate.mean + estimate.half_width))
    assert scipy.stats.ttest_1samp(shifted.values, 0).pvalue == pytest.approx(0.05)


def test_one_seed_has_no_interval():
    assert math.isnan(Estimate((0.5,)).half_width)
    assert math.isnan(Estimate(()).mean)


@pytest.mark.parametrize(
    ("measure", "value"),
    [
        ("best_test_top1", 0.8), ("best_test_error", 0.2), ("final_test_top5", 0.99), ("highest_test_top1", 0.81),
        ("epoch_of_highest_test_top1", 2), ("lowest_validation_loss", 1), ("epoch_of_lowest_validation_loss", 3),
        ("train_loss_at_highest_test_top1", 1), ("train_loss_at_lowest_validation_loss", 2 / 3),
        ("test_top1_at_epoch_2", 0.81), ("test_top1_at_epoch_9", math.nan), ("unheard_of_at_epoch_2", math.nan),
        ("best_test_aux1_top1", 0.7), ("final_test_aux1_top1", math.nan),
        ("epochs_to_0.4_validation_top1", 2), ("epochs_to_0.95_validation_top1", math.nan), ("minutes", 1.5),
        ("training_minutes", 0.5), ("parameters", 1182), ("images_per_second", 1000), ("cifar10_top1", 0.25),
        ("final_validation_top1", math.nan), ("unheard_of", math.nan), ("area_train_top1", 0.25),
        ("area_unheard_of", math.nan), ("change_of_train_top1_after_epoch_1", 0.3),
        ("change_of_train_top1_after_epoch_9", math.nan), ("gap_validation_top1", -0.4), ("gap_test_top1", -0.4),
        ("gap_unheard_top1", math.nan),
    ],
)  # fmt: skip
def test_measures(tmp_path, measure, value):
    plan = fake_plan(tmp_path, narrow=(0.8, 0.8, 0.8))
    (plan.runs[0].folder / EXTRAS).write_text(json.dumps({"cifar10_top1": 0.25}))
    path = plan.runs[0].folder / "summary.json"
    summary = json.loads(path.read_text())
    summary["best"]["test"] = summary["test"] | {"aux1_top1": 0.7}
    path.write_text(json.dumps(summary))
    result = read_table(plan).results["narrow"][0]
    assert result.measure(measure) == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"best": "\\ud800"}', b"\xff", b"[]", b'{"best": 3}'])
@pytest.mark.parametrize("name", ["summary.json", "metrics.csv", EXTRAS])
def test_a_damaged_file_of_one_run_is_named_and_the_others_count(tmp_path, name, content, caplog):
    plan = fake_plan(tmp_path, narrow=(0.8, 0.7, 0.6))
    (plan.runs[0].folder / name).write_bytes(content + b"\n")
    table = read_table(plan)
    first, *others = table.results["narrow"]
    measured = "best_test_top1" if name == "summary.json" else "highest_test_top1"
    assert [result.measure(measured) for result in others] == pytest.approx(
        [0.7, 0.6] if name == "summary.json" else [0.71, 0.61]
    )
    if name == "summary.json":
        assert first.state == "begun"
        assert "summary.json is damaged" in first.failure
    elif name == "metrics.csv":
        assert math.isnan(first.measure("highest_test_top1"))
    else:
        assert math.isnan(first.measure("cifar10_top1")) or content == b'{"best": 3}'
    if (name, content) != (EXTRAS, b'{"best": 3}'):  # which may hold anything
        assert caplog.messages
        assert all(len(message.splitlines()) == 1 and name in message for message in caplog.messages)


CLOSE, APART, SPREAD = (0.80, 0.81, 0.805), (0.90, 0.92, 0.91), (0.5, 0.9, 0.8)


@pytest.mark.parametrize(
    ("wide", "narrow", "expected", "verdict"),
    [
        (APART, CLOSE, "higher", "holds"),
        (APART, CLOSE, "lower", "fails"),
        (CLOSE, APART, "higher", "fails"),
        (SPREAD, CLOSE, "higher", "undecided"),
        (CLOSE, (0.801, 0.81, 0.804), "same", "holds"),
        (APART, CLOSE, "same", "fails"),
        (SPREAD, CLOSE, "same", "undecided"),
        ((0.81, 0.85, 0.83), CLOSE, "same", "undecided"),  # leaves out 0, its mean is beyond the margin, its end is not
    ],
)
def test_verdicts_follow_the_interval(tmp_path, wide, narrow, expected, verdict):
    claim = Claim("a claim", "best_test_top1", "wide", "narrow", expected, margin=0.02)
    table = read_table(fake_plan(tmp_path, make_study(claims=(claim,)), wide=wide, narrow=narrow))
    (found,) = table.verdicts()
    assert found.verdict == verdict
    interval = scipy.stats.ttest_rel(wide, narrow).confidence_interval(0.95)
    assert (found.estimate.low, found.estimate.high) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(
    ("limits", "verdict"), [((0.7, 0.9), "holds"), ((0.85, 0.9), "fails"), ((0.805, 0.9), "undecided")]
)
def test_a_measure_is_held_against_limits(tmp_path, limits, verdict):
    claim = Claim("a claim", "best_test_top1", "narrow", expected="between", limits=limits)
    table = read_table(fake_plan(tmp_path, make_study(claims=(claim,)), narrow=CLOSE))
    assert table.verdicts()[0].verdict == verdict


@pytest.mark.parametrize(
    ("minimum", "reason"),
    [
        (Minimum(images=2000), "1280 training images, but at least 2000 are needed"),
        (Minimum(epochs=5), "4 epochs, but at least 5 are needed"),
        (Minimum(seeds=4), "3 seeds, but at least 4 are needed"),
    ],
)
def test_nothing_is_concluded_from_smoke_runs(tmp_path, minimum, reason):
    table = read_table(fake_plan(tmp_path, make_study(minimum=minimum), wide=APART, narrow=CLOSE))
    assert table.smoke == {"narrow": reason, "wide": reason}
    (verdict,) = table.verdicts()
    assert verdict.verdict == "none"
    assert reason in verdict.why


def test_pairs_of_seeds_that_lack_the_measure_decide_nothing(tmp_path):
    claim = Claim("a claim", "epochs_to_0.95_test_top1", "wide", "narrow", "lower")
    study = make_study(claims=(claim,), minimum=Minimum(seeds=3))
    table = read_table(fake_plan(tmp_path, study, wide=(0.96, 0.97, 0.96), narrow=(0.945, 0.945, 0.9)))
    (verdict,) = table.verdicts()
    assert verdict.estimate.values == (-1, -1)
    assert verdict.verdict == "undecided"
    assert verdict.why == "2 seed(s) have this measure, but at least 3 are needed"


def test_a_difference_of_differences_is_compared(tmp_path):
    names = {"wide": (0.90, 0.92, 0.95), "narrow": (0.80, 0.81, 0.82), "tiny": (0.75, 0.78, 0.77)}
    variations = {name: Variation({"model.stage_features": (4 + index,)}) for index, name in enumerate(names)}
    claim = Claim("x", "best_test_top1", "wide", "narrow", than=("narrow", "tiny"))
    study = make_study(variations=variations, claims=(claim,))
    (verdict,) = read_table(fake_plan(tmp_path, study, **names)).verdicts()
    wide, narrow, tiny = (np.array(values) for values in names.values())
    assert verdict.estimate.values == pytest.approx(tuple((wide - narrow) - (narrow - tiny)))
    without = make_plan("widths", study, "full", tmp_path, only=["wide", "narrow"])
    assert not read_table(without).verdicts()


@pytest.mark.parametrize(("deviation", "difference"), [(0.004, 0.0083), (0.004, -0.0023), (0.01, 0.03)])
def test_as_many_seeds_as_a_difference_needs(deviation, difference):
    def shows(number):
        half = scipy.stats.t.ppf(0.975, number - 1) * deviation / math.sqrt(number)
        return half < abs(difference)

    number = seeds_needed(deviation, difference)
    assert shows(number)
    assert number == 2 or not shows(number - 1)


@pytest.mark.parametrize(("deviation", "difference"), [(math.nan, 0.1), (0.1, math.nan), (0, 0.1), (0.1, 0), (1, 1e-9)])
def test_no_number_of_seeds_without_a_deviation_or_a_difference(deviation, difference):
    assert seeds_needed(deviation, difference) == 0


def test_an_undecided_claim_says_how_many_seeds_could_show_the_sources_difference(tmp_path):
    claim = Claim("x", "best_test_top1", "wide", "narrow", published=0.02)
    table = read_table(fake_plan(tmp_path, make_study(claims=(claim,)), wide=SPREAD, narrow=CLOSE))
    (verdict,) = table.verdicts()
    needed = seeds_needed(np.std(np.subtract(SPREAD, CLOSE), ddof=1), 0.02)
    assert verdict.verdict == "undecided"
    assert verdict.why == f"the interval includes 0; {needed} seeds are needed to show the source's +0.02"


def test_with_one_seed_the_curves_are_counted(tmp_path):
    claim = Claim("x", "area_test_top1", "wide", "narrow")
    study = make_study(claims=(claim,), forms={"full": Form(minimum=Minimum(images=1000, epochs=2))})
    (verdict,) = read_table(fake_plan(tmp_path, study, wide=(0.9,), narrow=(0.8,))).verdicts()
    assert verdict.estimate.values == pytest.approx((0.1,))
    assert verdict.verdict == "undecided"
    assert verdict.why.endswith("; with seed 0, wide is higher at 4 of 4 epochs")


def test_missing_runs_are_no_numbers(tmp_path):
    table = read_table(fake_plan(tmp_path, narrow=CLOSE))
    assert [result.state for result in table.results["wide"]] == ["missing"] * 3
    assert table.smoke == {"wide": "no run is complete"}
    assert table.verdicts()[0].verdict == "none"


def test_a_pair_is_a_row(tmp_path):
    study = make_study(pairs={"pair": Pair("wide", "narrow")})
    plan = fake_plan(tmp_path, study, wide=APART, narrow=CLOSE)
    for planned in plan.runs_of("wide"):
        (planned.folder / EXTRAS).write_text(json.dumps({"pair.top1": 0.9 + 0.01 * planned.seed}))
    assert read_table(plan).estimate("pair", "top1").mean == pytest.approx(0.91)
