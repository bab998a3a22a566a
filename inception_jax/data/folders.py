"""Pictures read in place: which files of a folder are pictures, of which class, and in which published split.

Only names are looked at here; the files are read by `sources.check`.
"""

import csv
import dataclasses
import io
import logging
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from inception_jax.data.scan import PICTURES, Scan, ending, entries, is_folder
from inception_jax.data.words import read_words
from inception_jax.errors import UserError, check_choice
from inception_jax.files import regular_file

TABLES = (".csv", ".tsv")
SPLITS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "dev": "validation", "test": "test", "testing": "test",
}  # fmt: skip
# Names of a table's columns, without spaces and underscores; the first one that exists counts.
PATH_COLUMNS = ("path", "filepath", "imagepath", "file", "filename", "image")
LABEL_COLUMNS = ("classname", "class", "category", "label", "target")  # a name says more than a number
SPLIT_COLUMNS = ("split", "set", "subset")
HOLD_OUT = 0.1  # of each class, if a folder has neither a validation nor a test split
NAMES_SHOWN = 3  # of files that a message is about
CLASSES_SHOWN = 12

LAYOUTS = (
    "expected DIR/class/*.jpg, or DIR/train/class/*.jpg (and val, test), or a CSV file with the columns path and "
    "label, named in place of DIR"
)

# The paths of the pictures, by split and by class.
Found = dict[str, dict[str, list[str]]]

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Listing:
    """Pictures in folders.

    Attributes:
      root: the folder that the paths are relative to.
      class_names: by label; readable and unique.
      splits: by the names "train", "validation" and "test": POSIX paths, sorted, and labels, int32 `(n,)`.
      hold_out: how much of each class of "train" becomes the split "test" by default: a number of pictures, or a share
        below 1, or 0.
      words: what people are shown for each class, if the folder says so, see `words.read_words`.
    """

    root: Path
    class_names: tuple[str, ...]
    splits: dict[str, tuple[tuple[str, ...], np.ndarray]]
    hold_out: float = 0.0
    words: tuple[str, ...] = ()


def image_folder(folder: Path, classes: tuple[str, ...] = ()) -> Listing:
    """Pictures sorted into folders, or listed in a table.

    The layouts:

      - DIR/class/**/*.jpg: everything below a class's folder, at any depth, belongs to the class.
      - DIR/{train,val,test}/class/**: val may be called valid, validation or dev; val and test may be missing.
      - a CSV file in UTF-8 with commas, semicolons or tabs between columns. Its first line names the columns: path (or
        file, filename, image), label (or class_name, class, category, which take precedence) and, optionally, split.
        Paths are relative to the file's folder, or absolute.

    A file classes.txt beside the classes or the splits, or beside the table, has words to be shown for the classes.

    Pictures are the files with a suffix of `scan.PICTURES`, and whatever a table lists. Hidden files are ignored, and
    links are followed. Labels are in the order of the sorted names, or of the numbers if all names are integers ("2"
    before "10"; torchvision's ImageFolder has "10" first). If there is neither val nor test, 10 % of each class are
    held out as test.

    Warnings tell what is left out and what looks like a mistake: files with other suffixes, pictures outside of the
    classes, classes without pictures or with a single one, names that differ only in case.

    Args:
      folder: DIR, or the table.
      classes: which classes, in this order; (): all.

    Raises:
      UserError: the folder cannot be read, or has another layout; a class does not exist, or is in val or test but not
        in train; names of classes look the same; a table has columns or splits with other names, lists files that do
        not exist, or lists a file twice with different labels or splits.
    """
    classes = tuple(map(_normal, classes))
    if folder.is_file():
        return listing(folder.parent, _read_table(folder, classes), classes)
    folders = [entry for entry in entries(folder) if is_folder(entry)]
    scan = Scan(folder)
    places = _split_places(folder, [entry.name for entry in folders]) or {"train": ""}
    found = {}
    for split, place in places.items():
        by_class, loose = _class_folders(scan, folder / place)
        what = f"{len(loose)} pictures that are in no folder of a class" if loose else "no folders of classes"
        if by_class and loose:
            logger.warning("%s has %s and are left out: %s", folder / place, what, some(loose))
        elif not by_class and split == "train":
            raise UserError(f"{folder / place} has {what}: {LAYOUTS}")
        elif not by_class:
            logger.warning("%s has %s: there is no split %s", folder / place, what, split)
        found[split] = by_class
    scan.report()
    return listing(folder, found, classes)


def listing(root: Path, found: Found, classes: tuple[str, ...], hold_out: float = HOLD_OUT) -> Listing:
    """The listing of what was found; warnings and errors are those of `image_folder`.

    Args:
      root: the folder that the paths are relative to.
      found: paths by split and class, with "train" among the splits.
      classes: which classes, in this order; (): all, sorted.
      hold_out: the listing's, if there is no split but train.

    Raises:
      UserError: see `image_folder`.
    """
    sizes: Counter[str] = Counter()
    for by_class in found.values():
        sizes.update({name: len(paths) for name, paths in by_class.items()})
    check_names(root, list(sizes))
    check_once(classes)
    for name in classes:
        check_choice("class", name, sizes)
    empty = sorted(name for name in classes or sizes if not sizes[name])
    if empty and classes:
        raise UserError(f"{root} has no pictures of {some(empty, CLASSES_SHOWN)}")
    if empty:
        logger.warning("%s: classes without pictures are left out: %s", root, some(empty, CLASSES_SHOWN))
    chosen = classes or _sorted_classes(name for name in sizes if sizes[name])
    if not chosen:
        raise UserError(f"{root} has no pictures ({', '.join(PICTURES)}): {LAYOUTS}")
    for split, by_class in found.items():
        strange = [name for name in chosen if by_class.get(name) and not found["train"].get(name)]
        if strange:
            raise UserError(
                f"{root} has pictures for {split} of classes that have none for training: "
                f"{some(strange, CLASSES_SHOWN)}; a class has the same name in all splits"
            )
    single = [name for name in chosen if sizes[name] == 1]
    if single:
        logger.warning(
            "%s: classes with one picture, which is used for training only: %s", root, some(single, CLASSES_SHOWN)
        )
    if len(chosen) == 1 and not classes:
        below = root / chosen[0]
        hint = f": if the folders in it are the classes, name {below}" if below.is_dir() else ""
        logger.warning("%s has one class, %s%s", root, chosen[0], hint)
    splits = labelled(found, chosen)
    held_out = hold_out if splits.keys() == {"train"} else 0.0
    return Listing(root, chosen, splits, held_out, read_words(root, _sorted_classes(sizes), chosen))


def labelled(found: Found, classes: Sequence[str]) -> dict[str, tuple[tuple[str, ...], np.ndarray]]:
    """The pictures of each split, sorted by path, with their labels: int32 `(n,)`. Empty splits are left out."""
    splits = {}
    for split in ("train", "validation", "test"):
        by_class = found.get(split, {})
        rows = sorted((path, label) for label, name in enumerate(classes) for path in by_class.get(name, ()))
        if rows:
            splits[split] = (tuple(path for path, _ in rows), np.array([label for _, label in rows], np.int32))
    return splits


def _sorted_classes(names: Iterable[str]) -> tuple[str, ...]:
    names = list(names)
    if all(re.fullmatch("-?[0-9]+", name) for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def check_names(root: Path | str, names: list[str]) -> None:
    """Warns of class names that differ only in case.

    Raises:
      UserError: a name is not UTF-8.
    """
    for name in names:
        if not is_utf8(name):
            raise UserError(f"the name of the class {os.fsencode(name)!r} in {root} is not UTF-8: rename it")
    by_letters: dict[str, list[str]] = {}
    for name in sorted(names):
        by_letters.setdefault(name.casefold(), []).append(name)
    alike = [" and ".join(group) for group in by_letters.values() if len(group) > 1]
    if alike:
        logger.warning("%s: classes differ only in upper and lower case: %s", root, some(alike))


def check_once(classes: Sequence[str]) -> None:
    """Raises UserError if a class is named more than once."""
    twice = [name for name, count in Counter(classes).items() if count > 1]
    if twice:
        raise UserError(f"classes names {some(twice)} more than once")


def is_utf8(name: str) -> bool:
    """Whether a name, as the file system gives it, is UTF-8."""
    return not any("\ud800" <= letter <= "\udfff" for letter in name)  # surrogates stand for other bytes


def _normal(name: str) -> str:
    """The name of a class, in the same Unicode form whichever system wrote it."""
    return unicodedata.normalize("NFC", name.strip())


def some(names: Sequence[str], number: int = NAMES_SHOWN) -> str:
    """The first of the names for a message, and how many there are if not all are shown."""
    return ", ".join(names[:number]) + (f", ... ({len(names)} in all)" if len(names) > number else "")


def _split_places(folder: Path, names: list[str]) -> dict[str, str]:
    """The name of the folder of each split if the folders are splits; empty if they are classes."""
    splits: dict[str, list[str]] = {}
    for name in names:
        if name.casefold() in SPLITS:
            splits.setdefault(SPLITS[name.casefold()], []).append(name)
    if not splits:
        return {}
    named = ", ".join(name for group in splits.values() for name in group)
    others = [
        name
        for name in names
        if name.casefold() not in SPLITS and next(Scan(folder).pictures(folder / name), None) is not None
    ]
    if others and "train" in splits and len(splits) > 1:
        raise UserError(
            f"{folder} has folders of splits, {named}, and others with pictures: {some(others)}; move these elsewhere"
        )
    if others:
        logger.warning("%s: %s is used as a class, since %s is one", folder, named, others[0])
        return {}
    if "train" not in splits:
        raise UserError(f"{folder} has {named}, but no train: {LAYOUTS}")
    for split, group in splits.items():
        if len(group) > 1:
            raise UserError(f"{folder} has {' and '.join(group)}, which both mean {split}: keep one of them")
    return {split: group[0] for split, group in splits.items()}


def _class_folders(scan: Scan, folder: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The paths of the pictures by class, and the names of those that are in no folder of a class."""
    by_class: dict[str, list[str]] = {}
    spelled: dict[str, str] = {}
    loose = []
    for entry in entries(folder):
        if is_folder(entry):
            name = _normal(entry.name)
            if name in by_class:
                raise UserError(
                    f"two folders in {folder} have names that look the same, {spelled[name]!a} and {entry.name!a}: put "
                    "their pictures into one, or rename it"
                )
            spelled[name] = entry.name
            by_class[name] = list(scan.pictures(entry.path))
        elif ending(entry.name) in PICTURES:
            loose.append(entry.name)
    return by_class, loose


def _read_table(path: Path, classes: tuple[str, ...]) -> Found:
    """The paths that a CSV file lists, by split and class."""
    if path.suffix.lower() not in TABLES:
        raise UserError(f"{path} is neither a directory nor a table that ends in {' or '.join(TABLES)}: {LAYOUTS}")
    try:
        text = regular_file(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not in UTF-8 ({error.reason} at byte {error.start}): save it as CSV UTF-8"
        ) from error
    rows, (path_column, label_column, split_column) = _columns(path, text)
    at: dict[str, tuple[str, str]] = {}
    bad, missing, twice = [], [], []
    for number, row in rows:
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        file, label = (cells[column] if column < len(cells) else "" for column in (path_column, label_column))
        split = "train"
        if split_column is not None:
            split = SPLITS.get(cells[split_column].casefold() if split_column < len(cells) else "", "")
        if not (file and label and split):
            bad.append(f"line {number}")
            continue
        label = _normal(label)
        if classes and label not in classes:
            continue
        there = _existing(path.parent, file)
        if there is None:
            missing.append(file)
        elif there not in at:
            at[there] = (split, label)
        elif at[there] == (split, label):
            twice.append(file)
        else:
            first = at[there]
            raise UserError(
                f"{path} lists {file} twice: as {first[1]} for {first[0]} and as {label} for {split}: remove one"
            )
    if bad:
        split_words = f", and a split out of {', '.join(SPLITS)}" if split_column is not None else ""
        raise UserError(f"each line of {path} needs a path and a label{split_words}: {some(bad)}")
    if missing:
        raise UserError(
            f"{len(missing)} of the files that {path} lists are not there: {some(missing)}; paths are relative to "
            f"{path.parent}"
        )
    if twice:
        logger.warning("%s lists %d files more than once; they count once: %s", path, len(twice), some(twice))
    found: Found = {"train": {}}
    for file, (split, label) in at.items():
        found.setdefault(split, {}).setdefault(label, []).append(file)
    return found


def _columns(path: Path, text: str) -> tuple[list[tuple[int, list[str]]], tuple[int, int, int | None]]:
    """The rows below a table's header, each with its line number, and the columns of path, label and split."""
    names = [""]
    for delimiter in ",;\t":
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        try:
            names = [re.sub(r"[\s_-]", "", name).casefold() for name in next(reader, [""])]
            columns = [
                next((names.index(name) for name in known if name in names), None)
                for known in (PATH_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS)
            ]
            if columns[0] is not None and columns[1] is not None:
                return [(reader.line_num, row) for row in reader], (columns[0], columns[1], columns[2])
        except csv.Error as error:
            raise UserError(f"{path} cannot be read as CSV: line {reader.line_num}: {error}") from error
    header = text.partition("\n")[0].strip()[:100]
    raise UserError(
        f"the first line of {path} does not name columns path and label (or {', '.join(PATH_COLUMNS[1:])} and "
        f"{', '.join(name for name in LABEL_COLUMNS if name != 'label')}): it is {header!r}"
    )


def _existing(root: Path, file: str) -> str | None:
    """The path of a file as the file system spells it, which the table may spell differently; None if there is none."""
    for spelled in (file, file.replace("\\", "/")):
        for form in ("", "NFC", "NFD"):
            path = Path(unicodedata.normalize(form, spelled) if form else spelled)
            if os.path.isfile(root / path):
                return path.as_posix()
    return None
