"""Evaluates trained networks on a split of any data set: predictions, and metrics from them."""

import copy
import csv
import dataclasses
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from clu.metrics import Metric
from jax import numpy as jnp
from scipy.special import log_softmax, logsumexp, softmax

from inception_jax import data, files, registry
from inception_jax.config import Config, default_config
from inception_jax.data import digests
from inception_jax.data.dataset import Dataset, Split, eval_batches
from inception_jax.errors import UserError, check_choice
from inception_jax.models.layers import Outputs
from inception_jax.runs.dataset import GIVEN, load_data
from inception_jax.runs.run import Run
from inception_jax.steps.metrics import metric_sums, summarize
from inception_jax.text import csv_cell
from inception_jax.trained.classes import match_classes
from inception_jax.trained.views import SHIFT_WEIGHTS, crops_of_pictures, views

logger = logging.getLogger(__name__)
_metric_sums = jax.jit(metric_sums)

SPLITS = ("test", "validation")  # if no split is named, the first of these that exists
TTA = ("none", "flip", "flip-shift", "1-crop", "10-crop", "144-crop")
LARGER = 256 / 224  # ratio of the image's side to the crop's: ImageNet's usual sizes
# Fields of config.data that select the pictures, as opposed to how they are preprocessed.
SOURCE = (
    "name", "directory", "archives", "folder", "classes", "hold_out", "split_seed", "splits", "keep", "on_error",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, repr=False)
class Predictions:
    """A network's predictions on a split, in the split's order.

    Attributes:
      logits: float32 `(n, classes)`.
      labels: int32 `(n,)`, the network's class indices; -1 where it does not know the example's class.
      grayscale: bool `(n,)`: which examples are stored in grayscale; None if unknown.
      decoded: bool `(n,)`: False where a picture could no longer be decoded.
    """

    logits: np.ndarray
    labels: np.ndarray
    grayscale: np.ndarray | None
    decoded: np.ndarray

    @property
    def counted(self) -> np.ndarray:
        """bool `(n,)`: the examples that metrics are of, decoded and of a class that the network knows."""
        return (self.labels >= 0) & self.decoded

    def __repr__(self) -> str:
        examples, classes = self.logits.shape
        return f"Predictions({examples:,} examples, {classes} classes)"

    def known(self) -> tuple[np.ndarray, np.ndarray]:
        """Labels, int64, and logits of the examples that are counted."""
        return self.labels[self.counted].astype(np.int64), self.logits[self.counted]


def predictions(
    run: Run,
    dataset: Dataset,
    split: str,
    *,
    class_map: Mapping[str, str] | None = None,
    batch_size: int = 128,
    tta: str = "none",
) -> Predictions:
    """Predictions of a run's network on a split.

    Args:
      run: a run whose input has the shape of the data set's images, see `load_for`.
      class_map: the run's class names keyed by the data set's; None: matched by name, see `match_classes`. These are
        the names of folders; without a map and without such a name in common, what people are shown, as for a synset.
      tta: test-time augmentation. Each view of an image is predicted separately, and the probabilities are averaged.
        "flip": the image and its mirror image. "flip-shift": both, with weight 1/2, and both shifted by one pixel
        to the upper left and to the lower right, with weight 1/4 each (Jordan 2024, arXiv:2404.00498).
        "10-crop": the corners and center of a larger image, and their mirror images, each of the training size
        (Krizhevsky et al. 2012, section 4.1). "1-crop": only the center. "144-crop": crops of the pictures at four
        sizes, see `views.crops`. For crops, the data set must have been loaded with the same `tta`.

    Raises:
      UserError: the split does not exist, its images have another shape, or it has no class in common with the run; or
        "144-crop" of arrays, which are not pictures at their own size.
    """
    if split not in dataset.splits:
        raise UserError(f"{dataset.name} has no split {split!r}; it has {', '.join(dataset.splits)}")
    shape = _stored_shape(run, tta)
    if dataset.image_shape != shape:
        raise UserError(f"the images of {dataset.name} are {dataset.image_shape}, not {shape}")
    names = dataset.class_names, run.inputs.class_names
    if not class_map and set(names[0]).isdisjoint(names[1]):
        names = dataset.shown_names, run.class_names
    labels_of = match_classes(*names, class_map)
    part = dataset.splits[split]
    logits, decoded = [], []
    for seen, mask in _seen(run, part, tta, batch_size):
        logits.append(seen[0] if len(seen) == 1 else _mean(seen, SHIFT_WEIGHTS if tta == "flip-shift" else None))
        decoded.append(mask)
    number = len(part)  # the last batch is padded
    return Predictions(
        np.concatenate(logits)[:number],
        labels_of[part.all_labels()],
        part.grayscale(),
        np.concatenate(decoded)[:number],
    )


def _seen(run: Run, part: Split, tta: str, batch_size: int) -> Iterator[tuple[list[np.ndarray], np.ndarray]]:
    """The logits (batch, classes) of each view of a batch of examples, and whether each example could be decoded."""
    shape = run.inputs.image_shape
    if tta != "144-crop":
        for images, _, mask in eval_batches(part, batch_size):
            yield [run.logits(np.ascontiguousarray(view)) for view in views(images, tta, shape)], mask
        return
    for crops in crops_of_pictures(part, shape[0]):  # of one picture
        if crops is None:
            yield [np.zeros((1, len(run.class_names)), np.float32)], np.zeros(1, bool)
            continue
        # Equal parts, so that one size is compiled.
        at_once = next(size for size in range(min(batch_size, len(crops)), 0, -1) if len(crops) % size == 0)
        parts = [run.logits(crops[start : start + at_once]) for start in range(0, len(crops), at_once)]
        yield list(np.concatenate(parts)[:, None]), np.ones(1, bool)


def _stored_shape(run: Run, tta: str) -> tuple[int, int, int]:
    """The shape of the images that are loaded: the network's or, for crops, a larger one."""
    check_choice("test-time augmentation", tta, TTA)
    height, width, channels = run.inputs.image_shape
    if not tta.endswith("-crop"):
        return height, width, channels
    if height != width:
        raise UserError(f"{run.folder} takes images of {height}x{width} pixels, but crops need square images")
    if tta == "144-crop":  # cut out of the pictures
        return height, width, channels
    side = max(height + 1, round(height * LARGER))
    return side, side, channels


def _mean(logits: Sequence[np.ndarray], weights: Sequence[float] | None = None) -> np.ndarray:
    """The log of the mean probabilities, which serves as logits: float32 `(n, classes)`.

    Args:
      weights: of the elements of `logits`, with the sum 1; None: equal ones.
    """
    stacked = log_softmax(np.stack(logits).astype(np.float64), axis=-1)
    shares = np.full(len(stacked), 1 / len(stacked)) if weights is None else np.asarray(weights)
    return logsumexp(stacked, axis=0, b=shares[:, None, None]).astype(np.float32)


def metrics(
    predictions: Predictions, rows: np.ndarray | None = None, own: Mapping[str, type[Metric]] | None = None
) -> dict[str, float]:
    """Means over the examples whose class the network knows: top1, top5, loss (cross-entropy), `own` and count.

    Args:
      rows: bool `(n,)`: which examples; None: all.
      own: classes of other metrics by name, see `Run.own_metrics`.
    """
    counted = predictions.counted if rows is None else predictions.counted & rows
    with jax.enable_x64(True):  # the sums of training, but in float64
        outputs = Outputs(jnp.asarray(predictions.logits, jnp.float64))
        sums = jax.jit(partial(metric_sums, own=own)) if own else _metric_sums
        means = summarize(sums(outputs, predictions.labels, counted))
    return {name: means[name] for name in ("top1", "top5", "loss", *(own or ()), "count")}


def losses(predictions: Predictions) -> np.ndarray:
    """The cross-entropy of each example, float64 `(n,)`; 0 for those that are not counted."""
    shares = log_softmax(predictions.logits.astype(np.float64), axis=1)
    own = shares[np.arange(len(shares)), np.maximum(predictions.labels, 0)]
    return np.where(predictions.counted, -own, 0.0)


@dataclasses.dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one class. Precision is NaN if the class was never predicted, recall if it has no examples.

    Attributes:
      precision: fraction of the predictions of the class that are correct.
      recall: fraction of the class's examples that were predicted as it: its accuracy.
      count: number of its examples.
    """

    name: str
    precision: float
    recall: float
    count: int


def confusion_matrix(predictions: Predictions) -> np.ndarray:
    """int64 `(classes, classes)`: how many examples of class i (row) were predicted as class j (column)."""
    labels, logits = predictions.known()
    classes = predictions.logits.shape[1]
    pairs = labels * classes + logits.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def per_class(predictions: Predictions, class_names: Sequence[str]) -> list[ClassMetrics]:
    """Precision and recall of each class, in the order of the names."""
    matrix = confusion_matrix(predictions)
    right, counts, predicted = np.diag(matrix).astype(float), matrix.sum(axis=1), matrix.sum(axis=0)
    with np.errstate(invalid="ignore"):
        precision, recall = right / predicted, right / counts
    columns = zip(class_names, precision.tolist(), recall.tolist(), counts.tolist(), strict=True)
    return [ClassMetrics(*values) for values in columns]


def calibration_error(predictions: Predictions, bins: int = 15) -> float:
    """The expected calibration error of the top class's probability, with `bins` bins of equal width.

    The mean over examples of |accuracy - confidence| of their bin (Guo et al. 2017, equation 3).
    """
    labels, logits = predictions.known()
    if not len(labels):
        return float("nan")
    shares = confidence(logits)
    right = logits.argmax(axis=1) == labels
    interval = np.minimum((shares * bins).astype(int), bins - 1)
    gaps = np.bincount(interval, right - shares, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def confidence(logits: np.ndarray) -> np.ndarray:
    """The probability of the top class for logits `(n, classes)`: float64 `(n,)`."""
    return softmax(logits.astype(np.float64), axis=1).max(axis=1)


def by_color(predictions: Predictions, own: Mapping[str, type[Metric]] | None = None) -> dict[str, dict[str, float]]:
    """`metrics` over "all" examples, with `own`, and, if that is known, over "grayscale" and "color" ones."""
    found = {"all": metrics(predictions, own=own)}
    if predictions.grayscale is not None:
        found["grayscale"] = metrics(predictions, predictions.grayscale)
        found["color"] = metrics(predictions, ~predictions.grayscale)
    return found


def routed(color: Predictions, grayscale: Predictions) -> Predictions:
    """Combines two networks: predictions of `grayscale` for grayscale pictures, of `color` for the others.

    Both must be for the same pictures and the same classes.

    Raises:
      UserError: they are not for the same pictures, or it is not known which are grayscale.
    """
    if color.grayscale is None or grayscale.grayscale is None:
        raise UserError("the split does not say which pictures are grayscale")
    same = (np.array_equal(color.labels, grayscale.labels), np.array_equal(color.grayscale, grayscale.grayscale))
    if not all(same):
        raise UserError("the two networks of a pair must be evaluated on the same pictures, in the same order")
    return Predictions(
        np.where(color.grayscale[:, None], grayscale.logits, color.logits),
        color.labels,
        color.grayscale,
        color.decoded & grayscale.decoded,
    )


def ensemble(members: Sequence[Predictions]) -> Predictions:
    """Combines several networks by the mean of their probabilities.

    All must be for the same pictures and the same classes.

    Raises:
      UserError: they are not for the same pictures, or the numbers of classes differ.
    """
    first = members[0]
    for other in members[1:]:
        if other.logits.shape != first.logits.shape or not np.array_equal(other.labels, first.labels):
            raise UserError("the networks of an ensemble must be evaluated on the same pictures, for the same classes")
    decoded = np.logical_and.reduce([member.decoded for member in members])
    return Predictions(_mean([member.logits for member in members]), first.labels, first.grayscale, decoded)


def save_predictions(predictions: Predictions, class_names: Sequence[str], path: str | Path) -> None:
    """Writes the prediction for each example, in the split's order.

    Args:
      path: .npz for the arrays of `Predictions` and class_names, which `numpy.load` reads; or .csv for one line per
        example: index, class (empty if the network does not know it), predicted class and its probability (both empty
        if the picture could not be decoded). In .csv, names that a spreadsheet would take for formulas, or that begin
        with a quote, are prefixed with a quote, see `text.csv_cell`.

    Raises:
      UserError: the suffix is neither of these.
      WriteError: the file cannot be written.
    """
    path = files.expand(path)
    check_predictions_file(path)
    if path.suffix.lower() == ".npz":
        known, arrays = {key: value for key, value in vars(predictions).items() if value is not None}, io.BytesIO()
        np.savez_compressed(arrays, **known, class_names=np.array(class_names))
        files.write_bytes(path, arrays.getvalue())
        return
    shares, predicted = confidence(predictions.logits), predictions.logits.argmax(axis=1)
    names = list(map(csv_cell, class_names))
    lines = io.StringIO()
    writer = csv.writer(lines)
    writer.writerow(["index", "class", "predicted", "probability"])
    columns = zip(predictions.labels.tolist(), predicted, shares, predictions.decoded, strict=True)
    for index, (label, guess, probability, decoded) in enumerate(columns):
        said = [names[guess], f"{probability:.6f}"] if decoded else ["", ""]
        writer.writerow([index, names[label] if label >= 0 else "", *said])
    files.write_text(path, lines.getvalue())


def check_predictions_file(path: Path) -> None:
    """Raises UserError if `save_predictions` does not support the suffix."""
    if path.suffix.lower() not in (".npz", ".csv"):
        raise UserError(f"{path} is not allowed for predictions: it must end in .npz or .csv")


def source_fields(config: Config) -> dict[str, Any]:
    """The fields of `config.data` that are set and select the pictures, for `load_for`."""
    return {field: config.data[field] for field in SOURCE if config.data.get(field) is not None}


def own_source_fields(run: Run) -> dict[str, Any]:
    """`source_fields` of a run's own data, for use with another run.

    Raises:
      UntrustedError: the run's folder names a data set that is code and not trusted.
    """
    registry.check_trusted("data set", run.config.data.name, run.folder, run.trusts_data)
    return source_fields(run.config)


def load_for(run: Run, split: str, fields: Mapping[str, Any], *, tta: str = "none") -> Dataset:
    """Loads a data set in the format of a run's input.

    Args:
      split: the requested split.
      fields: fields of `config.data`, e.g. {"name": "cifar10"}, that replace the run's; a name that is code,
        "module:Name", is trusted. Another name or folder drops the run's own splits, classes and filters.
      tta: for crops, images are 256/224 times as large as the network's, made anew from the pictures: squashed in the
        same way, or with as much more around the center as there is. The corners are those of that square, not of the
        whole picture as after torchvision's Resize, which keeps the aspect ratio. "144-crop" reads the pictures later.

    Warns if the run's own data is not what it was trained on.

    Raises:
      UserError: as `data.load`; or crops are requested of images that are not square.
      UntrustedError: the run's own data set is code and not trusted.
    """
    if "name" not in fields:
        registry.check_trusted("data set", run.config.data.name, run.folder, run.trusts_data)
    side, _, _ = _stored_shape(run, tta)
    config = copy.deepcopy(run.config)
    height, width, channels = run.inputs.image_shape
    section = config.data
    for field, value in default_config().data.items():  # fields missing from older runs had the default
        if field not in section:
            section[field] = value
    if "name" in fields or "folder" in fields:
        if height != width:
            raise UserError(f"{run.folder} takes images of {height}x{width} pixels, but other data needs square images")
        section.image_size = height
        for field in set(SOURCE) - {"name", "directory"}:
            section[field] = default_config().data[field]
    section.channels = channels
    section.augment.crop_originals = False
    if side != height:
        section.image_size, section.crop_share = side, min(1.0, section.crop_share * side / height)
    for field, value in fields.items():
        section[field] = copy.deepcopy(value)
    if tta == "144-crop":
        section.pipeline = "streaming"
    section.unlock()
    if section.name in GIVEN:
        raise UserError(f"{run.folder} was trained on {GIVEN[section.name]}: give a data set with --data")
    if not split or "." in split:  # not allowed as the name of a field
        raise UserError(f"split {split!r} is not allowed: write e.g. 'test', 'validation' or 'train[:10%]'")
    if not section.splits.get(split):
        section.splits[split] = split
    if split != "train" and fields.keys() & {"name", "folder"}:
        for name in section.splits:  # the others need not exist, e.g. ImageNet's train beside its val
            if name != split:
                section.splits[name] = ""
    dataset = load_data(config)
    if not fields.keys() & (set(SOURCE) - {"directory"}):
        _warn_of_changes(run, dataset)
    return dataset


def _warn_of_changes(run: Run, dataset: Dataset) -> None:
    """Warns if the run's own data is not what it was trained on."""
    if run.fingerprint and dataset.fingerprint:
        before, now = digests.in_both(run.fingerprint, dataset.fingerprint)
        if before != now:
            changes = data.changes(dataset.cache, before, now)
            logger.warning("%s: the data has changed since training: %s", run.folder, changes)


def load_split(run: Run, split: str | None, fields: Mapping[str, Any], *, tta: str = "none") -> tuple[str, Dataset]:
    """The name of a split that has examples, and the data set, see `load_for`.

    Args:
      split: None: test, or validation if there is no test split, which is logged.

    Raises:
      UserError: as `load_for`, or the split has no examples.
    """
    errors = []
    for name in (split,) if split is not None else SPLITS:
        try:
            dataset = load_for(run, name, fields, tta=tta)
            if not len(dataset.splits.get(name, ())):
                raise UserError(f"{dataset.name} has no split {name!r}; it has {', '.join(dataset.splits) or 'none'}")
        except UserError as error:
            errors.append(error)
            continue
        if errors:
            logger.info("%s: using the %s split instead of %s: %s", run.folder, name, SPLITS[0], errors[0])
        return name, dataset
    raise errors[0]
