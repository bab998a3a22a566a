"""Arrays in memory as a data set: how they are checked, what is said of mistakes, and their fingerprint."""

import logging
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from inception_jax.data import digests, folders
from inception_jax.data.dataset import Dataset
from inception_jax.data.resident import Arrays, ResidentSplit
from inception_jax.errors import UserError

CHANNELS = (1, 3)  # of gray and of color images
MOST_CLASSES = 2**20  # a larger label is not a class, but e.g. "none" as 2**32 - 1, or an ID

logger = logging.getLogger(__name__)


def from_arrays(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """A data set of arrays in memory.

    Args:
      train, validation, test: (images, labels) each: images uint8 `(n, height, width, channels)` or
        `(n, height, width)`, labels integer `(n,)` or `(n, 1)`, counted from 0. Arrays of other libraries and lists
        are accepted if NumPy converts them to such arrays.
      class_names: unique strings by label; by default the numbers of the labels, up to the largest one.

    Raises:
      UserError: anything else. Floating-point images are not converted, as their range is unknown; the message says
        how to. Images whose channels come first are not transposed.
    """
    given = {"validation": validation, "test": test}
    arrays: dict[str, Any] = {"train": train} | {split: pair for split, pair in given.items() if pair is not None}
    if class_names is not None:
        arrays["class_names"] = class_names
    names, bases = checked("arrays", arrays)
    splits = {split: ResidentSplit(*pair) for split, pair in bases.items()}
    return Dataset("arrays", names, splits, fingerprint=fingerprint(names, splits))


def checked(name: str, arrays: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, Arrays]]:
    """The class names, and images uint8 (n, h, w, c) with labels int32 (n,) by split, from what a user passed.

    Warns of classes without examples, and of names that differ only in case.

    Args:
      name: of the data set in messages.
      arrays: a pair (images, labels) by split, and possibly "class_names".

    Raises:
      UserError: anything else, see `from_arrays`.
    """
    bases = {split: _checked_pair(f"{name}, {split!r}", pair) for split, pair in by_split(name, arrays).items()}
    shapes = {images.shape[1:] for images, _ in bases.values()}
    if len(shapes) > 1:
        raise UserError(f"the images of {name!r} must have one shape, but there are {sorted(shapes)}")
    labels = {split: labels for split, (_, labels) in bases.items()}
    return names_of(name, arrays.get("class_names"), labels), bases


def by_split(name: str, given: Any) -> dict[str, Any]:
    """The value that a data set gives for each split.

    Raises:
      UserError: it gives none, or its keys are not names.
    """
    if not isinstance(given, Mapping) or not any(split != "class_names" for split in given):
        raise UserError(
            f"data set {name!r} must be a TFDS builder or give {{'train': (images, labels), ...}}, not "
            f"{type(given).__name__}"
        )
    splits = {split: pair for split, pair in given.items() if split != "class_names"}
    for split in splits:
        if not isinstance(split, str):
            raise UserError(f"data set {name!r}: the name of a split must be a string such as 'train', not {split!r}")
    return splits


def names_of(name: str, class_names: Any, labels: Mapping[str, np.ndarray]) -> tuple[str, ...]:
    """The class names; None: the numbers of the labels, int32 `(n,)` by split. Warns of classes without examples.

    Raises:
      UserError: they are not unique strings, or fewer than the labels.
    """
    largest = max(int(some.max()) for some in labels.values())
    names = tuple(map(str, range(largest + 1))) if class_names is None else _checked_names(name, class_names)
    if largest >= len(names):
        raise UserError(f"{name!r} has {len(names)} class names, but the label {largest}: they count from 0")
    shown = ["train"] if "train" in labels else list(labels)
    there = sum(np.bincount(labels[split], minlength=len(names)) for split in shown)
    missing = [names[label] for label in np.flatnonzero(there == 0)]
    if missing:
        logger.warning(
            "%s: classes without examples in %s, though labels count from 0 to %d: %s; if these are not classes, "
            "renumber the others: class_names, labels = np.unique(labels, return_inverse=True)",
            name, ", ".join(shown), len(names) - 1, folders.some(missing, folders.CLASSES_SHOWN),
        )  # fmt: skip
    return names


def fingerprint(class_names: Sequence[str], splits: Mapping[str, ResidentSplit]) -> str:
    """Of the content of the splits; `digests.differences` describes how two of them differ."""
    parts = [digests.part("class names", len(class_names), digests.of_texts(class_names))]
    for name, split in splits.items():
        height, width, channels = split.image_shape
        images = digests.of_rows(_reader(split), len(split), height * width * channels)
        labels = split.all_labels()
        parts += [
            digests.part(f"{name} images of {height}x{width}x{channels}", len(split), images),
            digests.part(
                f"{name} labels", len(split), digests.of_rows(labels.__getitem__, len(labels), labels.itemsize)
            ),
        ]
    return digests.together(parts)


def _reader(split: ResidentSplit) -> Callable[[slice], np.ndarray]:
    """Returns some images of a split: a view if possible, since copying takes as long as hashing."""
    rows = split.rows
    if isinstance(rows, slice):
        return split.images[rows].__getitem__
    return lambda part: split.images[rows[part]]


def _checked_names(name: str, class_names: Any) -> tuple[str, ...]:
    """The class names: unique strings."""
    if isinstance(class_names, Mapping):
        raise UserError(
            f"{name}: class_names must be strings in the order of the labels, not a mapping: "
            "[names[label] for label in range(len(names))]"
        )
    if isinstance(class_names, str | bytes | Set) or not isinstance(class_names, Iterable):
        raise UserError(
            f"{name}: class_names must be a list of strings in the order of the labels, such as ['cat', 'dog'], not "
            f"{type(class_names).__name__}"
        )
    names = list(class_names)
    for label, text in enumerate(names):
        if not isinstance(text, str) or not text.strip():
            raise UserError(
                f"{name}: class names must be strings, but that of label {label} is {text!r}: "
                f"{'name it' if isinstance(text, str) else 'list(map(str, class_names))'}"
            )
        if not folders.is_utf8(text):
            raise UserError(f"{name}: the name of the class {label}, {text!a}, is not UTF-8: give it another one")
    by_look: dict[str, list[int]] = {}
    for label, text in enumerate(names):
        by_look.setdefault(unicodedata.normalize("NFC", text.strip()), []).append(label)
    for text, labels in by_look.items():
        if len(labels) > 1:
            raise UserError(
                f"{name}: class names must be different, but the labels {', '.join(map(str, labels[:3]))} are all "
                f"{text!r}: give each class a name of its own, or its examples one label"
            )
    folders.check_names(name, names)
    return tuple(map(str, names))


def _checked_pair(what: str, pair: Any) -> Arrays:
    if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
        raise UserError(
            f"{what}: expected a pair (images, labels), or a data source with __len__ and __getitem__, got "
            f"{type(pair).__name__}{f' of {len(pair)}' if isinstance(pair, Sequence) else ''}"
        )
    images, labels = _checked_images(what, pair[0]), _checked_labels(what, pair[1])
    if len(labels) != len(images) or labels.min() < 0:
        raise UserError(
            f"{what}: there must be as many labels as images, from 0 on; there are {len(images)} images and "
            f"{len(labels)} labels from {labels.min() if labels.size else 'none'}"
        )
    if labels.max() >= MOST_CLASSES:
        raise UserError(
            f"{what}: labels count the classes from 0 on, and there may be {MOST_CLASSES:,} of them, but one is "
            f"{labels.max()}. For other numbers: class_names, labels = np.unique(labels, return_inverse=True)"
        )
    return images, labels.astype(np.int32)


def _checked_images(what: str, given: Any) -> np.ndarray:
    """uint8 (n, h, w, c)."""
    images = _array(what, "images", given, "give uint8 in NumPy, all of one height, width and number of channels")
    if images.ndim not in (3, 4) or not images.size:
        raise UserError(
            f"{what}: images must be uint8 of shape (n, height, width, channels) or (n, height, width), "
            f"not of shape {images.shape}"
        )
    if images.dtype != np.uint8:
        raise UserError(f"{what}: images must be uint8 from 0 to 255, not {_range(images)}; {_advice(images)}")
    if images.ndim == 4 and images.shape[1] in CHANNELS and images.shape[3] not in CHANNELS:
        raise UserError(
            f"{what}: images of shape {images.shape} seem to have their channels first: move the channels last: "
            "images.transpose(0, 2, 3, 1)"
        )
    return images if images.ndim == 4 else images[..., None]


def _range(images: np.ndarray) -> str:
    if images.dtype.kind not in "iuf":
        return str(images.dtype)
    return f"{images.dtype} from {images.min():g} to {images.max():g}"


def _advice(images: np.ndarray) -> str:
    """How to convert images that are not uint8."""
    if images.dtype.kind == "b":
        return "convert them: 255 * images.astype('uint8')"
    if images.dtype.kind in "iu" and images.min() >= 0 and images.max() <= 255:
        return "convert them: images.astype('uint8')"
    return "convert them, e.g. (255 * images).round().astype('uint8') for images from 0 to 1"


def _checked_labels(what: str, given: Any) -> np.ndarray:
    """Integers (n,)."""
    labels = _array(what, "labels", given, "give integers in NumPy, one for each image")
    if labels.ndim == 2 and labels.shape[1] == 1:  # as Keras has them
        labels = labels[:, 0]
    if labels.ndim == 1 and np.issubdtype(labels.dtype, np.integer):
        return labels
    expected = f"{what}: labels must be integers of shape (n,), not {labels.dtype} {labels.shape}"
    if labels.ndim == 2 and _one_hot(labels):
        raise UserError(f"{expected}; for one-hot rows use labels.argmax(axis=1)")
    if labels.ndim != 1 or not labels.size:
        raise UserError(f"{expected}: one number for each image, from 0 on, which is its class")
    if labels.dtype.kind in "US" or all(isinstance(label, str) for label in labels.tolist()):
        raise UserError(f"{expected}; for names: class_names, labels = np.unique(labels, return_inverse=True)")
    if all(isinstance(label, int | float) and label == label // 1 for label in labels.tolist()):
        raise UserError(f"{expected}; for whole numbers: labels.astype('int32')")
    raise UserError(f"{expected}: whole numbers from 0 on, each the class of an image")


def _one_hot(labels: np.ndarray) -> bool:
    if labels.dtype.kind not in "biuf" or not labels.size:
        return False
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all())


def _array(what: str, kind: str, given: Any, advice: str) -> np.ndarray:
    """As a NumPy array, also from arrays of other libraries and lists."""
    if given is None:
        raise UserError(f"{what}: there are no {kind}: None is given")
    if isinstance(given, Mapping | Set | str | bytes):
        raise UserError(f"{what}: {kind} must be an array, not {type(given).__name__}")
    if np.ma.is_masked(given):
        raise UserError(f"{what}: {kind} have masked entries, which have no value: leave these examples out")
    try:
        array = np.asarray(given)
    except Exception as error:  # other libraries may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{what}: {kind} cannot be made into one array ({reason}): {advice}") from error
    if array.dtype == object and kind == "images":
        raise UserError(f"{what}: images are objects, not numbers in one array: {advice}")
    return array
