"""Measures of studies in words: their names, and their values in their units."""

import math
import re

from inception_jax.studies.results import Estimate

SHARES = ("top1", "top5", "error")
WORDS = {
    "top1": "top-1", "top5": "top-5", "error": "top-1 error", "loss": "loss", "training_minutes": "training, minutes",
    "minutes": "minutes", "images_per_second": "images/s", "multiply_adds": "multiply-adds", "learning_rate": "rate",
}  # fmt: skip
SELECTED_ON_TEST = "†"
SMALLER_BY = {"parameters": 1e6, "multiply_adds": 1e6}  # shown in millions


def label(measure: str, watched_test: bool = False) -> str:
    """A measure's name in words."""
    if found := re.fullmatch(r"(best|final)_([^_]+)_(\w+)", measure):
        best = f"best by test data{SELECTED_ON_TEST}" if watched_test else "best by validation"
        return f"{label(f'{found[2]}_{found[3]}')}, {best if found[1] == 'best' else 'last weights'}"
    if found := re.fullmatch(r"(\w+)_at_epoch_(\d+)", measure):
        return f"{label(found[1])} after epoch {found[2]}"
    if found := re.fullmatch(r"(\w+)_at_((?:highest|lowest)_\w+)", measure):
        return f"{label(found[1])} at the {label(found[2])}"
    if found := re.fullmatch(r"(epoch_of_)?(highest|lowest)_([a-z]+)_(\w+)", measure):
        mark = SELECTED_ON_TEST if found[3] == "test" else ""
        what = f"{found[2]} {found[3]} {WORDS.get(found[4], found[4])}{mark}"
        return f"epoch of the {what}" if found[1] else what
    if found := re.fullmatch(r"epochs_to_([\d.]+)_([a-z]+)_(\w+)", measure):
        return f"epochs to {100 * float(found[1]):g} % {found[2]} {WORDS.get(found[3], found[3])}"
    if found := re.fullmatch(r"area_(\w+)", measure):
        return f"{label(found[1])}, mean over the epochs"
    if found := re.fullmatch(r"change_of_(\w+)_after_epoch_(\d+)", measure):
        return f"{label(found[1])}, change after epoch {found[2]}"
    if found := re.fullmatch(r"gap_([^_]+)_(\w+)", measure):
        return f"{WORDS.get(found[2], found[2])}, training minus {found[1]}, last epoch"
    if found := re.fullmatch(r"(\w+)\.(\w+)", measure):  # for a subset of the pictures
        return f"{found[1]} pictures, {WORDS.get(found[2], found[2])}"
    name, _, kind = measure.rpartition("_")
    if name and kind in WORDS and measure not in WORDS:
        return f"{name.replace('_', ' ')} {WORDS[kind]}"
    return WORDS.get(measure, measure.replace("_", " "))


def kind_of(measure: str) -> str:
    """The kind of a measure: its last word, or the whole name."""
    if measure.startswith(("epoch", "epochs")):
        return "epochs"
    what = re.sub(r"_at_.*|_after_epoch_\d+$", "", measure)
    return next((word for word in WORDS if what == word or what.endswith((f"_{word}", f".{word}"))), what)


def show(measure: str, value: float) -> str:
    """Formats a value of a measure in its unit: shares in percent."""
    kind = kind_of(measure)
    if kind in SHARES:
        return f"{100 * value:.2f} %"
    if kind in SMALLER_BY:
        return f"{value / SMALLER_BY[kind]:,.2f} M"
    return f"{value:.4g}"


def difference(measure: str, value: float) -> str:
    """Like `show`, for a difference: in percentage points if the measure is a share."""
    if not math.isfinite(value):
        return "-"
    return f"{100 * value:+.2f} points" if kind_of(measure) in SHARES else f"{value:+.4g}"


def size(images: int, epochs: float) -> str:
    """On how many images and for how many epochs the runs of a row were trained."""
    return f"{images:,} images, {epochs:.3g} epochs"


def compared(measure: str, value: float, expected: str) -> str:
    """The value that a claim is about, see `Claim.expected`: a difference, or for "between" the measure itself."""
    if not math.isfinite(value):
        return "-"
    return show(measure, value) if expected == "between" else difference(measure, value)


def mean(measure: str, estimate: Estimate) -> str:
    """Formats the mean over seeds with their standard deviation if they differ."""
    if len(set(estimate.values)) == 1:
        return show(measure, estimate.mean)
    if kind_of(measure) in SHARES:
        return f"{100 * estimate.mean:.2f} ± {100 * estimate.deviation:.2f} %"
    scale = SMALLER_BY.get(kind_of(measure), 1)
    unit = " M" if scale > 1 else ""
    return f"{estimate.mean / scale:.4g} ± {estimate.deviation / scale:.2g}{unit}"
