"""Trained networks on a split of any data set: what they say once, and metrics from it."""

import copy
import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax.config import Config, default_config
from inception_jax.data.dataset import Dataset, eval_batches
from inception_jax.errors import UserError
from inception_jax.run import Run, load_data

NAMES_SHOWN = 5  # classes that a message lists
# Fields of config.data that say which pictures there are, not what a network is given of them.
SOURCE = (
    "name", "directory", "archives", "folder", "classes", "hold_out", "split_seed", "splits", "keep", "on_error",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a network says of a split, example by example, in the split's order.

    Attributes:
      logits: float32 `(n, classes)`.
      labels: int32 `(n,)`, in the network's classes; -1 where it does not know the example's class.
      grayscale: bool `(n,)`: which examples are stored without colours; None where nobody knows.
      decoded: bool `(n,)`: False where a picture could not be decoded any more.
    """

    logits: np.ndarray
    labels: np.ndarray
    grayscale: np.ndarray | None
    decoded: np.ndarray


def predictions(
    run: Run, dataset: Dataset, split: str, *, class_map: Mapping[str, str] | None = None, batch_size: int = 128
) -> Predictions:
    """What a run's network says of a split.

    Args:
      run: whose input has the shape of the data set's images, see `load_for`.
      class_map: the run's class for the data set's; None: by name, see `match_classes`.

    Raises:
      UserError: the split is not there, is of images of another shape, or has no class that the run has.
    """
    if split not in dataset.splits:
        raise UserError(f"{dataset.name} has no split {split!r}; it has {', '.join(dataset.splits)}")
    if dataset.image_shape != run.inputs.image_shape:
        raise UserError(f"the images of {dataset.name} are {dataset.image_shape}, not {run.inputs.image_shape}")
    labels_of = match_classes(dataset.class_names, run.class_names, class_map)
    part = dataset.splits[split]
    logits, decoded = [], []
    for images, _, mask in eval_batches(part, batch_size):
        logits.append(run.logits(images))
        decoded.append(mask)
    number = len(part)  # the last batch is filled up
    return Predictions(
        np.concatenate(logits)[:number],
        labels_of[part.all_labels()],
        part.grayscale(),
        np.concatenate(decoded)[:number],
    )


def metrics(predictions: Predictions, rows: np.ndarray | None = None) -> dict[str, float]:
    """Means over the examples whose class the network knows: top1, top5, loss (cross-entropy) and their count.

    Args:
      rows: bool `(n,)`: which examples; None: all.
    """
    counted = (predictions.labels >= 0) & predictions.decoded
    if rows is not None:
        counted &= rows
    labels, logits = predictions.labels[counted], predictions.logits[counted].astype(np.float64)
    if not len(labels):
        return {"top1": float("nan"), "top5": float("nan"), "loss": float("nan"), "count": 0}
    own = np.take_along_axis(logits, labels[:, None], axis=1)
    classes = np.arange(logits.shape[1])
    # As in training: of equal logits the first class's counts as the higher.
    ranks = ((logits > own) | ((logits == own) & (classes < labels[:, None]))).sum(axis=1)
    ranks[np.isnan(logits).any(axis=1)] = logits.shape[1]
    largest = logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(logits - largest).sum(axis=1)) + (largest - own)[:, 0]
    return {
        "top1": float((ranks < 1).mean()),
        "top5": float((ranks < min(5, logits.shape[1])).mean()),
        "loss": float(losses.mean()),
        "count": len(labels),
    }


def by_color(predictions: Predictions) -> dict[str, dict[str, float]]:
    """`metrics` over "all" examples and, where that is known, over "grayscale" and "color" ones."""
    found = {"all": metrics(predictions)}
    if predictions.grayscale is not None:
        found["grayscale"] = metrics(predictions, predictions.grayscale)
        found["color"] = metrics(predictions, ~predictions.grayscale)
    return found


def routed(color: Predictions, grayscale: Predictions) -> Predictions:
    """A pair of networks as one: what `grayscale` says of grayscale pictures, and `color` of the others.

    Both are of the same pictures, and the networks' classes are the same.

    Raises:
      UserError: they are not of the same pictures, or nobody knows which are grayscale.
    """
    if color.grayscale is None or grayscale.grayscale is None:
        raise UserError("nothing is known of which of the split's pictures are grayscale, so that none can be routed")
    same = (np.array_equal(color.labels, grayscale.labels), np.array_equal(color.grayscale, grayscale.grayscale))
    if not all(same):
        raise UserError("the two networks of a pair must be evaluated on the same pictures, in the same order")
    return Predictions(
        np.where(color.grayscale[:, None], grayscale.logits, color.logits),
        color.labels,
        color.grayscale,
        color.decoded & grayscale.decoded,
    )


def source_fields(config: Config) -> dict[str, Any]:
    """The fields of `config.data` that are set and say which pictures there are, for `load_for`."""
    return {field: config.data[field] for field in SOURCE if config.data.get(field) is not None}


def load_for(run: Run, split: str, fields: Mapping[str, Any]) -> Dataset:
    """A data set in the format of a run's input.

    Args:
      split: the one that is wanted.
      fields: of `config.data`, e.g. {"name": "cifar10"}, in place of the run's. Another name or folder drops the run's
        own splits, classes and filters.

    Raises:
      UserError: as `data.load`.
    """
    config = copy.deepcopy(run.config)
    height, width, channels = run.inputs.image_shape
    section = config.data
    for field, value in default_config().data.items():  # a field that an older run does not know was the default
        if field not in section:
            section[field] = value
    if "name" in fields or "folder" in fields:
        if height != width:
            raise UserError(f"{run.folder} takes images of {height}x{width} pixels; other data becomes squares alone")
        section.image_size = height
        for field in set(SOURCE) - {"name", "directory"}:
            section[field] = default_config().data[field]
    section.channels = channels
    section.augment.crop_originals = False
    for field, value in fields.items():
        section[field] = copy.deepcopy(value)
    section.unlock()
    if section.name == "arrays":
        raise UserError(f"{run.folder} was trained on arrays in hand: name a data set by --data")
    if not split or "." in split:  # no field can be called so
        raise UserError(f"split {split!r} is not allowed: write e.g. 'test', 'validation' or 'train[:10%]'")
    if not section.splits.get(split):
        section.splits[split] = split
    if split != "train" and fields.keys() & {"name", "folder"}:
        for name in section.splits:  # the others need not be there
            if name not in (split, "train"):
                section.splits[name] = ""
    return load_data(config)


def match_classes(theirs: Sequence[str], ours: Sequence[str], class_map: Mapping[str, str] | None = None) -> np.ndarray:
    """For each of a data set's classes the network's: int32 `(len(theirs),)`, -1 where it has none.

    Names are the same in spite of letter case, spaces, hyphens and underscores. One may be several words for the same,
    with commas between: any that agrees will do, but a class of the very name comes first ("maillot" and "maillot, tank
    suit" are two of ImageNet's).

    Args:
      class_map: names of ours by theirs, for those that are to be matched otherwise.

    Raises:
      UserError: no class is the same, or the map names one that there is not.
    """
    given = dict(class_map or {})
    for name, known, whose in (
        *((name, theirs, "the data") for name in given),
        *((name, ours, "the run") for name in given.values()),
    ):
        if name not in known:
            raise UserError(f"the class map names {name!r}, which is no class of {whose}: {_some(known)}")
    if tuple(theirs) == tuple(ours) and not given:
        return np.arange(len(ours), dtype=np.int32)
    backwards = list(enumerate(ours))[::-1]  # so that of two the first stays
    words = {word: label for label, name in backwards for word in _words(name)}
    place = words | {_plain(name): label for label, name in backwards}
    labels = [
        ours.index(given[name]) if name in given
        else next((place[word] for word in (_plain(name), *_words(name)) if word in place), -1)
        for name in theirs
    ]  # fmt: skip
    if max(labels, default=-1) < 0:
        raise UserError(
            f"no class of the data is one of the run's: the data has {_some(theirs)}; the run has {_some(ours)}. "
            "--class-map FILE says which are the same"
        )
    return np.array(labels, np.int32)


def read_class_map(path: Path) -> dict[str, str]:
    """A class map from a JSON file: {"their class": "our class"}.

    Raises:
      UserError: it is none.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the class map {path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
        raise UserError(f'{path} is no class map: it must be JSON such as {{"their class": "our class"}}')
    return content


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()


def _words(name: str) -> list[str]:
    return [word for word in _plain(name).split(",") if word]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
