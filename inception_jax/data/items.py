"""Data sources: what gives its examples one by one, from other libraries or from users' own classes.

Their pictures go through the same pipeline as files do. Nothing here needs JAX, so that worker processes start fast.
"""

import dataclasses
import hashlib
import json
import operator
import pickle
import sys
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeGuard

import numpy as np
from PIL import Image

from inception_jax.data import images, sources, storage
from inception_jax.data.arrays import CHANNELS, MOST_CLASSES, by_split, names_of
from inception_jax.data.dataset import STATISTICS_EXAMPLES, STATISTICS_OF_ALL
from inception_jax.data.options import Location, Selection
from inception_jax.data.published import Base, Published
from inception_jax.data.resident import Arrays
from inception_jax.data.sources import PictureFacts
from inception_jax.errors import UserError

IMAGE_KEYS = ("image", "img")
LABEL_KEY = "label"
READ_TWICE = 8  # items of each split, evenly spaced

# The data sources are written for one thread, such as those that seek in a file.
_one_at_a_time = threading.Lock()


class Items(Protocol):
    """A data source: a Grain `MapDataset`, a Hugging Face or PyTorch `Dataset`, or any class with these methods.

    An item is a pair (image, label), or a dict with "image" (or "img") and "label". An image is a uint8 array (height,
    width, channels) or (height, width), a Pillow image, or the bytes of a picture's file; a label is an integer from 0
    on. The same index gives the same item each time: random augmentation is that of `config.data.augment`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def is_items(given: Any) -> TypeGuard[Items]:
    """Whether it is a data source, and not a pair of arrays."""
    if isinstance(given, tuple | list | str | bytes | Mapping) or hasattr(given, "__array__"):
        return False
    return hasattr(type(given), "__len__") and hasattr(type(given), "__getitem__")


def has_items(given: Any) -> bool:
    """Whether a data set from outside the package has data sources, and not arrays."""
    return isinstance(given, Mapping) and any(is_items(value) for key, value in given.items() if key != "class_names")


@dataclasses.dataclass(frozen=True)
class ItemSource:
    """The pictures of a data source, a `sources.Source`; `split` is its name in messages."""

    split: str
    items: Any

    def __len__(self) -> int:
        return len(self.items)

    def item(self, row: int) -> tuple[bytes | Image.Image | np.ndarray, int]:
        """The picture, not decoded yet, and its label.

        Raises:
          ValueError: there is none; the message says what is wrong with the item.
        """
        try:
            with _one_at_a_time:
                item = self.items[row]
        except Exception as error:  # it may raise anything
            raise ValueError(f"cannot be read: {_said(error)}") from error
        image, label = _parts(item)
        return _picture(image), _label(label)

    def read(self, row: int) -> bytes | Image.Image | np.ndarray:
        return self.item(row)[0]

    def name(self, row: int) -> str:
        return f"{self.split}[{row}]"

    def __getstate__(self) -> dict[str, Any]:
        advice = "define its classes and functions in a module of their own, or set data.num_workers=0"
        try:
            content = pickle.dumps(self.items)
        except Exception as error:  # it may raise anything
            raise UserError(f"{self.split!r} cannot be sent to other processes ({_said(error)}): {advice}") from error
        if b"__main__" in content and not hasattr(sys.modules["__main__"], "__file__"):  # they would not find them
            raise UserError(f"{self.split!r} was defined interactively, which other processes cannot read: {advice}")
        return {"split": self.split, "items": self.items}


def published(name: str, given: Mapping[str, Any], location: Location, selection: Selection) -> Published:
    """Reads the items, and checks their pictures and labels.

    Of more than `STATISTICS_OF_ALL` items of a split only `STATISTICS_EXAMPLES`, evenly spaced, are looked at, unless
    pictures are chosen by their colors; of the others, the labels alone are read.

    Args:
      name: of the data set.
      given: a data source by split, and possibly "class_names".
      location: where the pixels' statistics are kept.
      selection: its `keep`.

    Raises:
      UserError: a split is not a data source, or has no length or no end; an item is not a picture and a label, cannot
        be read, or is another one when it is read again; the class names are not unique strings, differ between splits,
        or are fewer than the labels.
    """
    checked, named = {}, {}
    for split, value in by_split(name, given).items():
        if not is_items(value):
            raise UserError(
                f"{name}, {split!r}: expected a data source with __len__ and __getitem__, as for the other splits, got "
                f"{type(value).__name__}"
            )
        if names := _class_names(value):
            named[split] = names
        source = ItemSource(split, _with_files(value))
        checked[split] = source, *_check(name, source, _number(name, split, value), everything=selection.keep != "all")
    class_names = given.get("class_names")
    if class_names is None and named:
        class_names, *others = named.values()
        if any(other != class_names for other in others):
            raise UserError(f"{name}: the splits have different class names: give one list of class_names")
    class_names = names_of(name, class_names, {split: labels for split, (_, labels, _) in checked.items()})
    bases = {
        split: Base(source, labels, facts, np.arange(len(labels)), split)
        for split, (source, labels, facts) in checked.items()
    }
    gray = all(base.facts.grayscale[base.facts.decodable].all() for base in bases.values())
    content = [[split, base.facts.digests, base.labels.tolist()] for split, base in bases.items()]
    fingerprint = hashlib.sha256(json.dumps([class_names, content]).encode()).hexdigest()[:16]
    cache = storage.root(location.directory) / "sources" / fingerprint
    return Published(name, class_names, bases, 1 if gray else 3, Path(name), cache, "", fingerprint)


def gives_items(found: Published) -> bool:
    """Whether a data set is one that `published` returned."""
    return any(isinstance(base.source, ItemSource) for base in found.bases.values())


def decoded(found: Published, form: images.Format) -> dict[str, Arrays]:
    """The images of this format in memory, and their labels, by the name of the source.

    Raises:
      UserError: a picture that could be decoded before cannot be decoded any more.
    """
    arrays = {}
    for stored, base in found.stored.items():
        rows = np.flatnonzero(base.facts.decodable)
        whole: np.ndarray | None = None
        pictures = sources.in_chunks(rows.tolist(), lambda part, base=base: sources.decode_all(base.source, part, form))
        for place, image in enumerate(pictures):
            if whole is None:
                whole = np.empty((len(rows), *image.shape), np.uint8)
            whole[place] = image
        if whole is not None:
            arrays[stored] = whole, base.labels[rows]
    return arrays


def _number(name: str, split: str, items: Items) -> int:
    try:
        number = len(items)
    except Exception as error:  # it may raise anything
        raise UserError(f"{name}, {split!r}: its length cannot be read: {_said(error)}") from error
    if number == sys.maxsize:
        raise UserError(f"{name}, {split!r}: it has no end: leave out repeat(), since config.num_epochs counts epochs")
    if not number:
        raise UserError(f"{name}, {split!r}: it has no examples")
    return number


def _check(name: str, source: ItemSource, number: int, *, everything: bool) -> tuple[np.ndarray, PictureFacts]:
    """The labels, int32 `(n,)`, and what is known of the pictures, see `published`."""
    looked_at = np.ones(number, bool)
    if number > STATISTICS_OF_ALL and not everything:
        looked_at[:] = False
        looked_at[np.linspace(0, number - 1, STATISTICS_EXAMPLES).astype(np.int64)] = True

    def read(rows: Iterable[int]) -> list[tuple[int, list[Any] | None]]:
        found = []
        for row in rows:
            try:
                picture, label = source.item(row)
            except ValueError as error:
                raise UserError(f"{name}, {source.name(row)} {error}") from error
            found.append((label, [*_facts(picture), ""] if looked_at[row] else None))
        return found

    column = _label_column(source.items)
    rows = range(number) if column is None else np.flatnonzero(looked_at).tolist()
    read_rows = dict(zip(rows, sources.in_chunks(rows, read), strict=True))
    for row in np.linspace(0, number - 1, min(number, READ_TWICE)).astype(int).tolist():
        if row in read_rows and read([row]) != [read_rows[row]]:
            raise UserError(
                f"{name}, {source.name(row)} is another one when it is read again, so that no run could be repeated or "
                "resumed: leave out what is random, and augment by config.data.augment"
            )
    if column is None:
        column = [label for label, _ in read_rows.values()]
    labels = np.array([_known_label(name, source, row, label) for row, label in enumerate(column)], np.int32)
    known = [facts for _, facts in read_rows.values() if facts is not None]
    alike = ["", *next((facts for facts in known if not facts[4]), known[0])[1:]]
    table = [read_rows[row][1] or alike if row in read_rows else alike for row in range(number)]
    return labels, PictureFacts(*map(list, zip(*table, strict=True)))


def _known_label(name: str, source: ItemSource, row: int, given: Any) -> int:
    try:
        return _label(given)
    except ValueError as error:
        raise UserError(f"{name}, {source.name(row)} {error}") from error


def _facts(picture: bytes | Image.Image | np.ndarray) -> tuple[str, int, int, str, str]:
    """As `sources.look`."""
    if isinstance(picture, bytes):
        return sources.look(lambda: picture)
    try:
        pixels = np.asarray(images.open_picture(picture))
    except UserError as error:
        return "", 0, 0, "", str(error)
    gray = picture.shape[2:] in ((), (1,)) if isinstance(picture, np.ndarray) else picture.mode in images.GRAY_MODES
    height, width, _ = pixels.shape
    digest = hashlib.blake2b(f"{height} {width} {gray}".encode() + pixels.tobytes(), digest_size=16).hexdigest()
    return digest, height, width, "L" if gray else "RGB", ""


def _parts(item: Any) -> Sequence[Any]:
    """The image and the label of an item."""
    if item is None:
        raise ValueError("is None: of a filtered source, select the examples instead")
    if isinstance(item, Mapping):
        there = {key: value for key, value in item.items() if value is not None}
        image = next((there[key] for key in IMAGE_KEYS if key in there), None)
        if image is None or LABEL_KEY not in there:
            names = ", ".join(map(repr, there)) or "nothing"
            raise ValueError(f"has {names}: it needs 'image' (or 'img') and 'label'")
        return image, there[LABEL_KEY]
    if isinstance(item, tuple | list) and len(item) == 2:
        return item
    number = f" of {len(item)}" if isinstance(item, tuple | list) else ""
    raise ValueError(f"is {type(item).__name__}{number}: expected (image, label), or a dict with 'image' and 'label'")


def _picture(image: Any) -> bytes | Image.Image | np.ndarray:
    if isinstance(image, Mapping) and image.keys() >= {"bytes", "path"}:  # Hugging Face's, not decoded
        try:
            image = images.read_file(image["path"]) if image["bytes"] is None else image["bytes"]
        except OSError as error:
            raise ValueError(f"cannot be read: {_said(error)}") from error
    if isinstance(image, bytes | Image.Image):
        return image
    expected = "expected a uint8 array (height, width, channels) or (height, width), a Pillow image, or a file's bytes"
    if not hasattr(image, "__array__"):
        raise ValueError(f"has an image that is {type(image).__name__}: {expected}")
    try:
        pixels = np.asarray(image)
    except Exception as error:  # other libraries may raise anything
        raise ValueError(f"has an image that NumPy cannot read ({_said(error)}): {expected}") from error
    if pixels.dtype == np.uint8 and pixels.size and (pixels.ndim == 2 or pixels.shape[2:] in ((1,), (3,))):
        return pixels
    advice = ""
    if pixels.dtype != np.uint8:
        advice = "; give the pixels as they are stored, 0 to 255, which are normalized later"
    elif pixels.ndim == 3 and pixels.shape[0] in CHANNELS:
        advice = "; move the channels last"
    raise ValueError(f"has an image of {pixels.dtype} {pixels.shape}: {expected}{advice}")


def _label(given: Any) -> int:
    try:
        label = operator.index(given)
    except TypeError as error:
        raise ValueError(f"has the label {given!r:.40}, which is not a whole number") from error
    if not 0 <= label < MOST_CLASSES:
        raise ValueError(f"has the label {label}, which is not a class: they are counted from 0")
    return label


def _is_plain(items: Any) -> bool:
    """Whether it is Hugging Face's, and gives its columns as they are stored."""
    return hasattr(items, "cast_column") and items.format["type"] is None


def _with_files(items: Any) -> Any:
    """Hugging Face's data set with its pictures as files, to be decoded as all files are; others as they are."""
    for key in IMAGE_KEYS if _is_plain(items) else ():
        feature = items.features.get(key)
        if getattr(feature, "decode", False) and getattr(feature, "mode", "") is None:
            items = items.cast_column(key, type(feature)(decode=False))
    return items


def _label_column(items: Any) -> list[Any] | None:
    """All labels of Hugging Face's data set, in a fraction of the time; None: they are read with the pictures."""
    return list(items[LABEL_KEY][:]) if _is_plain(items) and LABEL_KEY in items.features else None


def _class_names(items: Any) -> list[str] | None:
    """Those of Hugging Face's `ClassLabel`."""
    features = getattr(items, "features", None)
    return getattr(features.get(LABEL_KEY), "names", None) if isinstance(features, Mapping) else None


def _said(error: BaseException) -> str:
    """What an error of someone else's code says, in a few words."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
