"""Findings on a trained network: per-class metrics, most confident mistakes and Grad-CAM on a split."""

import dataclasses
import logging
from pathlib import Path

import numpy as np

from inception_jax.data.dataset import Dataset
from inception_jax.errors import UserError
from inception_jax.inspection.features import grad_cam
from inception_jax.inspection.pictures import overlay
from inception_jax.runs.run import Run, load_run
from inception_jax.trained import evaluate

logger = logging.getLogger(__name__)

MISTAKES = 18
SAMPLE = 8  # pictures shown with their Grad-CAM


@dataclasses.dataclass(frozen=True)
class Example:
    """A picture, its class, and the predicted class with its probability.

    Attributes:
      image: uint8 (height, width, channels).
      heat: the picture overlaid with its Grad-CAM for the predicted class, uint8 (height, width, 3), or None.
    """

    image: np.ndarray
    label: str
    predicted: str
    probability: float
    heat: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Findings:
    """A network's findings on a split.

    Attributes:
      checkpoint, step: the weights that were used.
      metrics: see `evaluate.metrics`.
      confusion: see `evaluate.confusion_matrix`.
      mistakes: the most confident first.
      sample: examples with Grad-CAM, from as many classes as possible.
      no_sample: why there is no sample, for a network that does not support Grad-CAM.
    """

    split: str
    checkpoint: str
    step: int
    metrics: dict[str, float]
    calibration_error: float
    classes: list[evaluate.ClassMetrics]
    confusion: np.ndarray
    mistakes: list[Example]
    sample: list[Example]
    no_sample: str = ""


def examine(
    folder: str | Path,
    *,
    split: str | None = None,
    checkpoint: str = "best",
    batch_size: int = 128,
    trust_code: bool = False,
) -> Findings:
    """Evaluates a run's network on a split of its own data.

    Args:
      split: None: test, or validation if there is no test split.
      trust_code: see `run.load_run`.

    Raises:
      UserError: the run has no checkpoint, or the data is no longer available.
    """
    run = load_run(folder, checkpoint, trust_code=trust_code)
    split, dataset = evaluate.load_split(run, split, {})
    logger.info("%s: %s examples of the %s split", folder, f"{len(dataset.splits[split]):,}", split)
    return examine_on(run, dataset, split, checkpoint=checkpoint, batch_size=batch_size)


def examine_on(run: Run, dataset: Dataset, split: str, *, checkpoint: str = "best", batch_size: int = 128) -> Findings:
    """As `examine`, for a network and data that are loaded already; `checkpoint` is a name for the weights."""
    found = evaluate.predictions(run, dataset, split, batch_size=batch_size)
    known = np.flatnonzero(found.counted)
    predicted, confidence = found.logits.argmax(axis=1), evaluate.confidence(found.logits)
    wrong = known[predicted[known] != found.labels[known]]
    mistakes = wrong[np.argsort(-confidence[wrong], kind="stable")][:MISTAKES]
    sample = known[spread(found.labels[known], SAMPLE)]

    def examples(rows: np.ndarray) -> list[Example]:
        if not len(rows):
            return []
        images, _ = dataset.splits[split].gather(rows)
        names = run.class_names
        columns = zip(images, found.labels[rows], predicted[rows], confidence[rows], strict=True)
        return [Example(image, names[label], names[guess], float(p)) for image, label, guess, p in columns]

    shown, why_not = examples(sample), ""
    try:
        shown = _with_heat(run, shown)
    except UserError as error:  # a user's own network may have no feature maps
        shown, why_not = [], str(error)
    return Findings(
        split,
        checkpoint,
        run.step,
        evaluate.metrics(found),
        evaluate.calibration_error(found),
        evaluate.per_class(found, run.class_names),
        evaluate.confusion_matrix(found),
        examples(mistakes),
        shown,
        why_not,
    )


def _with_heat(run: Run, examples: list[Example]) -> list[Example]:
    if not examples:
        return []
    images = np.stack([example.image for example in examples])
    heats = np.asarray(grad_cam(run.model, run.variables, run.normalize(images)), np.float32)
    return [
        dataclasses.replace(example, heat=overlay(example.image, heat).array)
        for example, heat in zip(examples, heats, strict=True)
    ]


def spread(labels: np.ndarray, number: int) -> np.ndarray:
    """Positions of examples from as many classes as possible; of more classes than `number`, evenly spaced ones."""
    order = np.argsort(labels, kind="stable")
    place_in_class = np.arange(len(labels)) - np.searchsorted(labels[order], labels[order])
    order = order[np.argsort(place_in_class, kind="stable")]
    classes = len(np.unique(labels))
    if classes > number:
        order = order[np.linspace(0, classes - 1, number).round().astype(int)]
    return order[:number]
