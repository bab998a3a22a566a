"""What a study measures after training: costs, accuracy on other data, gradient norms, unlabeled pictures."""

import csv
import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax import files, inspection
from inception_jax.data.scan import Scan
from inception_jax.errors import UserError
from inception_jax.experiment import initial_key, variables_of
from inception_jax.runs import run
from inception_jax.studies.definitions import CrossEvaluation
from inception_jax.studies.plan import matches, read_json
from inception_jax.studies.results import EXTRAS, Result, StudyResults
from inception_jax.text import csv_cell
from inception_jax.trained import evaluate

logger = logging.getLogger(__name__)

GRADIENT_IMAGES = 128  # for measuring gradient norms
PREDICTIONS = "predictions.csv"  # in a run's folder


def measure_all(table: StudyResults) -> dict[Path, str]:
    """Adds missing measures to every complete run; returns the errors, by the run's folder."""
    study, failures = table.plan.study, {}
    for name, results in table.results.items():
        if name in study.pairs:
            continue
        for result in results:
            if result.state != "complete":
                continue
            try:
                _measure(result, table)
            except UserError as error:
                failures[result.planned.folder] = str(error)
                logger.warning("%s, seed %d: %s", name, result.planned.seed, error)
    return failures


def _measure(result: Result, table: StudyResults) -> None:
    """Measures one run; the file is written after each part, so that nothing is repeated after an interruption."""
    study, folder = table.plan.study, result.planned.folder
    parts: dict[str, Callable[[run.Run], Mapping[str, Any]]] = {"multiply_adds": _costs}
    if study.gradient_norms:
        parts["gradient_norms"] = _gradients
    for evaluation in study.evaluations:
        if not matches(result.planned.variation, evaluation.variations):
            continue
        parts[f"{evaluation.name}_count"] = lambda trained, evaluation=evaluation: _metrics(
            f"{evaluation.name}_", evaluate.metrics(_cross_evaluate(trained, evaluation))
        )
    pictures = _unlabeled(result, study.predict)
    if pictures:  # otherwise nothing is recorded, so that pictures added later are found
        parts["predicted_pictures"] = lambda trained: _predict(trained, pictures)
    if study.pairs:
        parts["count"] = lambda trained: _by_color("", _predictions(trained, "test", _all_pictures(trained)))
    for name, pair in study.pairs.items():
        other = _same_seed(table, pair.grayscale, result)
        if pair.color == result.planned.variation and other:
            parts[f"{name}.count"] = lambda trained, name=name, other=other: _pair(name, trained, other)
    known = read_json(folder / EXTRAS)
    missing = {key: part for key, part in parts.items() if key not in known}
    if not missing:
        return
    trained = run.load_run(folder, own=result.planned.load_config())
    for part in missing.values():
        known |= part(trained)
        files.write_json(folder / EXTRAS, known)


def _same_seed(table: StudyResults, variation: str, result: Result) -> Result | None:
    found = (other for other in table.results.get(variation, ()) if other.planned.seed == result.planned.seed)
    return next((other for other in found if other.state == "complete"), None)


def _costs(trained: run.Run) -> dict[str, Any]:
    height, width, channels = trained.inputs.image_shape
    table = inspection.layer_table(trained.model, (height, width), channels)
    return {"multiply_adds": table.total.multiply_adds}


def _gradients(trained: run.Run) -> dict[str, Any]:
    """Gradient norms of the initial and the best weights, on the first pictures of the training split."""
    dataset = evaluate.load_for(trained, "train", {})
    split = dataset.splits["train"]
    images, labels = split.gather(np.arange(min(GRADIENT_IMAGES, len(split))))
    inputs, weight = trained.normalize(images), trained.config.loss.aux_weight
    key = initial_key(trained.config, trained.named_streams)
    initial = variables_of(trained.config, trained.model, trained.inputs, key)
    at = {"start": initial, "end": trained.variables}
    return {
        "gradient_norms": {
            when: inspection.gradient_norms(trained.model, variables, inputs, labels, aux_weight=weight)
            for when, variables in at.items()
        }
    }


def _predictions(trained: run.Run, split: str, fields: dict[str, Any]) -> evaluate.Predictions:
    dataset = evaluate.load_for(trained, split, fields)
    return evaluate.predictions(trained, dataset, split)


def _cross_evaluate(trained: run.Run, evaluation: CrossEvaluation) -> evaluate.Predictions:
    # For other data the run's own paths are dropped, but the folder of archives may serve several data sets.
    place = {"archives": trained.config.data.archives} if trained.config.data.archives else {}
    fields = place | dict(evaluation.fields) if evaluation.fields else {}
    dataset = evaluate.load_for(trained, evaluation.split, fields, tta=evaluation.tta)
    known = {
        theirs: ours
        for theirs, ours in evaluation.class_map.items()
        if theirs in dataset.class_names and ours in trained.inputs.class_names
    }
    return evaluate.predictions(trained, dataset, evaluation.split, class_map=known, tta=evaluation.tta)


def _metrics(prefix: str, means: Mapping[str, float]) -> dict[str, Any]:
    # JSON has no NaN, which is the mean of no examples.
    finite = {key: value for key, value in means.items() if math.isfinite(value)}
    return {f"{prefix}{key}": value for key, value in ({"count": 0} | finite).items()}


def _pair(name: str, color: run.Run, other: Result) -> dict[str, Any]:
    """Evaluates both networks as one, on all pictures of the first one's test split, whatever each was trained on."""
    fields = _all_pictures(color)
    gray = run.load_run(other.planned.folder, own=other.planned.load_config())
    routed = evaluate.routed(_predictions(color, "test", fields), _predictions(gray, "test", fields))
    return _by_color(f"{name}.", routed)


def _all_pictures(trained: run.Run) -> dict[str, Any]:
    """The run's own data, without leaving out color or grayscale pictures."""
    return evaluate.own_source_fields(trained) | {"keep": "all"}


def _by_color(prefix: str, predictions: evaluate.Predictions) -> dict[str, Any]:
    found = {}
    for kind, means in evaluate.by_color(predictions).items():
        found |= _metrics(prefix if kind == "all" else f"{prefix}{kind}.", means)
    return found


def _unlabeled(result: Result, below: str) -> list[Path]:
    """The unlabeled pictures that are available."""
    section = result.planned.load_config().data
    roots = [files.expand(root) / below for root in (section.folder, section.archives) if root and below]
    folder = next((root for root in roots if root.is_dir()), None)
    return [folder / name for name in Scan(folder).pictures(folder)] if folder else []


def _predict(trained: run.Run, pictures: Sequence[Path]) -> dict[str, Any]:
    """Predicts the classes of unlabeled pictures and writes them to a file, one line each."""
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["picture", "class", "probability"])
    for found in trained.classify(pictures, top=1):
        if found.error is None:
            cells = csv_cell(Path(found.name).name), csv_cell(found.classes[0])
            writer.writerow([*cells, f"{found.probabilities[0]:.6f}"])
    files.write_text(trained.folder / PREDICTIONS, lines.getvalue())
    return {"predicted_pictures": len(pictures)}
