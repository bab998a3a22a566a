"""Results of a study's runs: measures by name, means over seeds, and verdicts on claims."""

import dataclasses
import logging
import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import scipy.stats

from inception_jax.errors import UserError
from inception_jax.runs.metrics_log import Row, read_metrics
from inception_jax.runs.records import read_summary
from inception_jax.studies.definitions import Claim, Minimum
from inception_jax.studies.plan import Plan, PlannedRun, read_json, state_of

logger = logging.getLogger(__name__)

EXTRAS = "study.json"  # in a run's folder; has what was measured after training
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Result:
    """The current state of a run.

    Attributes:
      state: "complete", "begun" or "missing".
      failure: the error when it was last started; "": none.
    """

    planned: PlannedRun
    state: str
    failure: str = ""

    @cached_property
    def summary(self) -> dict[str, Any]:
        return _unless_damaged(lambda: read_summary(self.planned.folder) or {}, {})

    @cached_property
    def rows(self) -> list[Row]:
        if self.state == "missing":
            return []
        return _unless_damaged(lambda: read_metrics(self.planned.folder / "metrics.csv"), [])

    @cached_property
    def extras(self) -> dict[str, Any]:
        return _unless_damaged(lambda: read_json(self.planned.folder / EXTRAS), {})

    @property
    def images(self) -> int:
        """Training images in an epoch."""
        if not self.summary or not self.summary["epochs"]:
            return 0
        return round(self.summary["steps"] / self.summary["epochs"]) * self.planned.load_config().batch_size

    def column(self, name: str) -> dict[float, float]:
        """A column of metrics.csv by epoch, without rows that do not have it."""
        return {row["epoch"]: row[name] for row in self.rows if math.isfinite(row.get(name, math.nan))}

    def measure(self, name: str) -> float:
        """A measure by name; NaN if the run does not have it, or not yet.

        best_SPLIT_METRIC and final_SPLIT_METRIC are from summary.json, with the weights that were best by the watched
        metric and with the last ones. METRIC is top1, top5, loss, error (1 - top1), or a head's, such as aux1_top1.
        highest_COLUMN and lowest_COLUMN are over the rows of metrics.csv; epoch_of_highest_COLUMN and
        epoch_of_lowest_COLUMN are the epochs, and COLUMN_at_highest_COLUMN and COLUMN_at_lowest_COLUMN another column
        at these epochs. COLUMN_at_epoch_NUMBER is a column at an epoch, and epochs_to_VALUE_COLUMN the first epoch
        that reached a value. area_COLUMN is the mean of a column over all epochs, that is the area under its curve for
        each epoch, and change_of_COLUMN_after_epoch_NUMBER the last value minus the one at an epoch. gap_SPLIT_METRIC
        is that of training minus that of a split in the last row with both. training_minutes, minutes,
        images_per_second, epochs and parameters are known, too. All others were measured after training, such as a
        cross-evaluation's NAME_top1.
        """
        if self.state != "complete":
            return math.nan
        if found := re.fullmatch(r"(best|final)_([^_]+)_(\w+)", name):
            weights, split, metric = found.groups()
            means = (self.summary["best"] if weights == "best" else self.summary).get(split) or {}
            return 1 - means.get("top1", math.nan) if metric == "error" else means.get(metric, math.nan)
        if found := re.fullmatch(r"(epoch_of_|\w+_at_)?(highest|lowest)_(.+)", name):
            other, which, column = found.groups()
            rows = [row for row in self.rows if math.isfinite(row.get(column, math.nan))]
            if not rows:
                return math.nan
            row = (max if which == "highest" else min)(rows, key=lambda row: row[column])
            wanted = "epoch" if other == "epoch_of_" else (other or column).removesuffix("_at_")
            return row.get(wanted, math.nan)
        if found := re.fullmatch(r"(\w+)_at_epoch_(\d+)", name):
            return next((row.get(found[1], math.nan) for row in self.rows if row["epoch"] == int(found[2])), math.nan)
        if found := re.fullmatch(r"epochs_to_([\d.]+)_(.+)", name):
            value, column = float(found[1]), found[2]
            return next((row["epoch"] for row in self.rows if row.get(column, -math.inf) >= value), math.nan)
        if found := re.fullmatch(r"area_(.+)", name):
            values = list(self.column(found[1]).values())
            return statistics.fmean(values) if values else math.nan
        if found := re.fullmatch(r"change_of_(\w+)_after_epoch_(\d+)", name):
            column = self.column(found[1])
            return list(column.values())[-1] - column.get(int(found[2]), math.nan) if column else math.nan
        if found := re.fullmatch(r"gap_([^_]+)_(\w+)", name):
            ours, theirs = self.column(f"train_{found[2]}"), self.column(f"{found[1]}_{found[2]}")
            both = [epoch for epoch in ours if epoch in theirs]
            return ours[both[-1]] - theirs[both[-1]] if both else math.nan
        if name in ("training_minutes", "minutes"):
            return self.summary["training_seconds" if name == "training_minutes" else "seconds"] / 60
        if name in ("images_per_second", "epochs", "parameters"):
            value = self.summary[name]
            return math.nan if value is None else value
        value = self.extras.get(name, math.nan)
        return value if isinstance(value, int | float) else math.nan


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its confidence interval (Student's t), which is NaN for fewer than two values."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Sample standard deviation; NaN for fewer than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else math.nan

    @property
    def half_width(self) -> float:
        """Half the width of the mean's 95 % interval, also the smallest mean that as many values distinguish from 0."""
        number = len(self.values)
        if number < 2:
            return math.nan
        quantile = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, number - 1))
        return quantile * self.deviation / math.sqrt(number)

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width


def seeds_needed(deviation: float, difference: float, most: int = 1000) -> int:
    """How many seeds make a mean difference of that size leave out 0 at a deviation between seeds.

    0 if either is unknown or none, or if it takes more than `most`.
    """
    if not (math.isfinite(deviation) and math.isfinite(difference)) or not deviation or not difference:
        return 0
    for number in range(2, most + 1):
        quantile = float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, number - 1))
        if quantile * deviation / math.sqrt(number) < abs(difference):
            return number
    return 0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the runs say about a claim.

    Attributes:
      verdict: "holds", "fails", "undecided", or "none" if one of the rows is a smoke run or is missing.
      estimate: of the difference for each seed; for "between", of the measure itself.
      why: the reason in words.
    """

    claim: Claim
    verdict: str
    estimate: Estimate
    why: str


@dataclasses.dataclass(frozen=True)
class StudyResults:
    """A study's results.

    Attributes:
      results: of all runs, by variation, in the order of the seeds; also those of pairs.
      smoke: variations from which nothing may be concluded, with the reason.
    """

    plan: Plan
    results: Mapping[str, Sequence[Result]]
    smoke: Mapping[str, str]

    def estimate(self, variation: str, measure: str) -> Estimate:
        """Estimates a measure from the seeds for which it is known."""
        values = (result.measure(measure) for result in self.results.get(variation, ()))
        return Estimate(tuple(value for value in values if math.isfinite(value)))

    def verdicts(self) -> list[Verdict]:
        """Verdicts on all claims whose variations are in the plan."""
        known = self.results.keys()
        return [
            self._judge(claim)
            for claim in self.plan.study.claims
            if set(claim.variations) <= known
        ]  # fmt: skip

    def _judge(self, claim: Claim) -> Verdict:
        estimate = Estimate(self._compared(claim))
        for name in claim.variations:
            if name in self.smoke:
                return Verdict(claim, "none", estimate, f"{name} is a smoke run: {self.smoke[name]}")
        needed = max(2, self.plan.minimum.seeds)
        if len(estimate.values) < needed:  # for example, if some never reached a value: the others do not represent all
            why = f"{len(estimate.values)} seed(s) have this measure, but at least {needed} are needed"
            return Verdict(claim, "undecided", estimate, why + self._epochs_apart(claim))
        verdict = self._judge_interval(claim, estimate)
        needed = seeds_needed(estimate.deviation, claim.published)
        if verdict.verdict == "undecided" and needed:
            more = f"{needed} seeds are needed to show the source's {claim.published:+g}"
            verdict = dataclasses.replace(verdict, why=f"{verdict.why}; {more}")
        return verdict

    def _epochs_apart(self, claim: Claim) -> str:
        """For the area under two curves of one seed: at how many epochs the first is higher; "" for other measures."""
        if not claim.measure.startswith("area_") or not claim.second or claim.than:
            return ""
        column = claim.measure.removeprefix("area_")
        for result in self.results[claim.first]:
            for other in self.results[claim.second]:
                one, two = result.column(column), other.column(column)
                both = [epoch for epoch in one if epoch in two]
                if result.planned.seed == other.planned.seed and both:
                    higher = sum(one[epoch] > two[epoch] for epoch in both)
                    return (
                        f"; with seed {result.planned.seed}, {claim.first} is higher at {higher} of {len(both)} epochs"
                    )
        return ""

    def _judge_interval(self, claim: Claim, estimate: Estimate) -> Verdict:
        low, high = estimate.low, estimate.high
        if claim.expected == "between":
            least, most = claim.limits
            if least <= low and high <= most:
                return Verdict(claim, "holds", estimate, "the interval is within the limits")
            outside = high < least or low > most
            return Verdict(
                claim,
                "fails" if outside else "undecided",
                estimate,
                "the interval is outside the limits" if outside else "the interval crosses a limit",
            )
        if claim.expected == "same":
            if -claim.margin < low and high < claim.margin:
                return Verdict(claim, "holds", estimate, "the whole interval is within the margin")
            if low >= claim.margin or high <= -claim.margin:
                return Verdict(claim, "fails", estimate, "the whole interval is beyond the margin")
            return Verdict(claim, "undecided", estimate, "the interval crosses the margin")
        if low <= 0 <= high:
            return Verdict(claim, "undecided", estimate, "the interval includes 0")
        right = low > 0 if claim.expected == "higher" else high < 0
        return Verdict(claim, "holds" if right else "fails", estimate, "the interval excludes 0")

    def _compared(self, claim: Claim) -> tuple[float, ...]:
        columns = [self._by_seed(name, claim.measure) for name in claim.variations]
        seeds = [seed for seed in columns[0] if all(seed in column for column in columns)]
        signs = (1, -1, -1, 1)  # (first - second) - (third - fourth)
        return tuple(sum(sign * column[seed] for sign, column in zip(signs, columns, strict=False)) for seed in seeds)

    def _by_seed(self, variation: str, measure: str) -> dict[int, float]:
        found = {result.planned.seed: result.measure(measure) for result in self.results[variation]}
        return {seed: value for seed, value in found.items() if math.isfinite(value)}


def _unless_damaged(read: Callable[[], Any], default: Any) -> Any:
    """Reads a file of one run; if it is damaged, warns and returns the default, so that other runs are shown."""
    try:
        return read()
    except UserError as error:
        logger.warning("left out: %s", error)
        return default


def read_table(plan: Plan, failures: Mapping[Path, str] | None = None) -> StudyResults:
    """Reads the results of a plan's runs; damaged files are reported in a warning and left out."""
    failures = failures or {}
    results: dict[str, list[Result]] = {}
    for planned in plan.runs:
        result = Result(planned, state_of(planned), failures.get(planned.folder, ""))
        if result.state == "complete" and not {"steps", "epochs", "best"} <= result.summary.keys():
            damage = f"{planned.folder / 'summary.json'} is damaged"
            logger.warning("%s: this run is left out", damage)
            result = Result(planned, "begun", damage)
        results.setdefault(planned.variation, []).append(result)
    for name, pair in plan.study.pairs.items():
        if pair.color in results and pair.grayscale in results:
            results[name] = [_PairResult(result.planned, result.state, name=name) for result in results[pair.color]]
    smoke = {name: reason for name, found in results.items() if (reason := _smoke(found, plan.minimum))}
    return StudyResults(plan, results, smoke)


@dataclasses.dataclass(frozen=True)
class _PairResult(Result):
    """A pair's result, which is saved with its color network's run, under the pair's name."""

    name: str = ""

    def measure(self, name: str) -> float:
        value = self.extras.get(f"{self.name}.{name}", math.nan)
        return value if isinstance(value, int | float) else math.nan


def _smoke(found: Sequence[Result], minimum: Minimum) -> str:
    """Why a row is a smoke run; "": it is not."""
    done = [result for result in found if result.state == "complete"]
    if not done:
        return "no run is complete"
    for what, least, value in (
        ("training images", minimum.images, min(result.images for result in done)),
        ("epochs", minimum.epochs, min(_epochs_meant(result) for result in done)),
        ("seeds", minimum.seeds, len(done)),
    ):
        if value < least:
            return f"{value:g} {what}, but at least {least:g} are needed"
    return ""


def _epochs_meant(result: Result) -> float:
    """The number of epochs, as configured if the run stopped early."""
    if result.summary.get("stopped") in ("early", "target", "callback"):
        return result.planned.load_config().num_epochs
    return result.summary["epochs"]
