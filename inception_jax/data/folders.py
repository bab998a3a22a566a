"""Pictures in a person's folder, read in place: which files there are, of which class, in which split.

Nothing is decoded here: files are known by the endings of their names.
"""

import csv
import dataclasses
import hashlib
import io
import logging
import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from inception_jax import synsets
from inception_jax.errors import UserError

ENDINGS = frozenset(  # that Pillow reads without extras
    (".jpg", ".jpeg", ".jpe", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pnm")
)
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
# Columns of a CSV file, by what people call them.
PATH_COLUMNS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path")
LABEL_COLUMNS = ("label", "class", "class_name", "category", "target")
SPLIT_COLUMNS = ("split", "set", "subset", "fold")
NAMES_SHOWN = 3
KAGGLE = "ILSVRC/Data/CLS-LOC"  # where Kaggle's archive of ILSVRC2012 has its pictures

logger = logging.getLogger(__name__)

Labelled = list[tuple[str, str]]  # (POSIX path relative to the root, class)


@dataclasses.dataclass(frozen=True)
class Listing:
    """Which pictures a folder holds.

    Attributes:
      root: the folder.
      class_names: readable, each once, in the order of the labels.
      splits: "train" and, where the folder has them, "validation" and "test": POSIX paths relative to the root, sorted,
        and labels int32 `(n,)`.
      hold_out: how much of each class of "train" is usually held out to be "test": a count, or a share below 1; 0:
        nothing.
    """

    root: Path
    class_names: tuple[str, ...]
    splits: dict[str, tuple[tuple[str, ...], np.ndarray]]
    hold_out: float = 0.0


def image_folder(folder: Path, classes: Sequence[str] = ()) -> Listing:
    """Anybody's own pictures.

    `folder` has a folder for each class, or folders train, val (or valid, validation, dev) and test, which have; what
    is below a class's folder, at any depth, belongs to the class. Or it is a CSV file (comma, semicolon or tab; UTF-8)
    with columns for the path, relative to the file, the label and, if need be, the split. 10 % of each class are held
    out for the test where neither a validation nor a test split is there.

    Args:
      classes: which classes, in this order; (): all, in the order of their names, or of their numbers.

    Raises:
      UserError: there are no such pictures, or they contradict each other.
    """
    if folder.suffix.lower() in (".csv", ".tsv"):
        root, splits = folder.parent, _read_csv(folder)
    else:
        root, splits = folder, _class_folders(folder)
    hold_out = 0.0 if splits.keys() & {"validation", "test"} else 0.1
    return _listing(root, splits, classes, hold_out=hold_out)


def imagenet_subset(folder: Path, classes: Sequence[str] = ()) -> Listing:
    """Some of ImageNet's synsets: folders named by them, or a full ILSVRC2012 tree.

    A synset that has no folder of its own stands for those of its leaves (`synsets.leaves`). Where there are folders
    train and val, val is the test split; else 100 pictures of each class are held out for it.

    Args:
      classes: synsets, such as "n02084071"; (): the ten of Mahmud 2024, which match CIFAR-10's classes; ("all",): those
        that are there.

    Raises:
      UserError: a synset has no pictures.
    """
    splits = {
        ("test" if split == "validation" else split): files for split, files in _class_folders(_tree(folder)).items()
    }
    there = {synset for _, synset in splits["train"]}
    wanted = tuple(classes) or tuple(synsets.CIFAR10)
    if wanted == ("all",):
        wanted = tuple(sorted(there))
    parents = {synset: synset for synset in wanted}
    parents |= {leaf: parent for parent in wanted for leaf in synsets.leaves().get(parent, ()) if leaf not in parents}
    missing = [
        synset for synset in wanted if not there & {leaf for leaf, parent in parents.items() if parent == synset}
    ]
    if missing:
        raise UserError(
            f"{folder} has no pictures of {_some(missing)}; it has {_some(sorted(there))} ({len(there)} synsets): "
            "choose some by data.classes, or ('all',)"
        )
    chosen = {
        split: [(path, parents[synset]) for path, synset in files if synset in parents]
        for split, files in splits.items()
    }
    names = synsets.readable_names(wanted)
    return _listing(_tree(folder), chosen, wanted, hold_out=0.0 if "test" in chosen else 100.0, names=names)


def imagenet2012(folder: Path, classes: Sequence[str] = ()) -> Listing:
    """The full ILSVRC2012 tree: a folder for each synset in train, and val as the test split.

    val has folders for the synsets, too, as torchvision wants it, or all its pictures and, beside the tree, Kaggle's
    LOC_val_solution.csv. Labels are in the order of the synsets, as all pretrained networks have them.

    Args:
      classes: which synsets, in this order; (): all.

    Raises:
      UserError: it is no such tree.
    """
    root = _tree(folder)
    splits = {"train": _class_folder(root / "train", root)}
    if any(path.is_dir() for path in _entries(root / "val")):
        splits["test"] = _class_folder(root / "val", root)
    else:
        splits["test"] = _kaggle_validation(folder, root)
    there = tuple(sorted({synset for _, synset in splits["train"]}))
    if len(there) < len(synsets.names()) and not classes:
        logger.warning("%s has %d of the %d synsets of ILSVRC2012", folder, len(there), len(synsets.names()))
    wanted = tuple(classes) or there
    splits = {split: [(path, synset) for path, synset in files if synset in wanted] for split, files in splits.items()}
    return _listing(root, splits, wanted, hold_out=0.0, names=synsets.readable_names(wanted))


def held_out(paths: Sequence[str], labels: np.ndarray, amount: float, seed: int) -> np.ndarray:
    """Which pictures are held out: bool `(n,)`, the same whatever other pictures there are, as far as that can be.

    Args:
      paths, labels: of the pictures; labels int `(n,)`.
      amount: of each class: 1 and more is a count; a share below 1 is rounded to whole pictures, to at least one where
        the class has two.
      seed: another one holds out others.

    Raises:
      UserError: a class has not enough pictures to leave one to train on.
    """
    chosen = np.zeros(len(paths), bool)
    short = []
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        number = int(amount) if amount >= 1 else min(max(round(amount * len(rows)), 1), len(rows) - 1)
        if number >= len(rows) and amount >= 1:
            short.append(f"{Path(paths[int(rows[0])]).parent.name} ({len(rows)})")
        keys = [_key(paths[row], seed) for row in rows.tolist()]
        chosen[rows[np.argsort(keys, kind="stable")[:number]]] = True
    if short:
        raise UserError(
            f"hold_out={amount:g} pictures of each class leave none to train on of {_some(short)}: choose fewer, "
            "or a share"
        )
    return chosen


def stratified_order(paths: Sequence[str], labels: np.ndarray, seed: int) -> np.ndarray:
    """An order of pictures of which any part, from one place to another, has each class in its share: int64 `(n,)`.

    Within a class the order is that of a hash of seed and path, so that a picture more or less leaves the others in
    theirs; the classes are interleaved evenly.

    Args:
      paths, labels: of the pictures; labels int `(n,)`.
      seed: another one gives another order.
    """
    places = np.empty(len(paths))
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        keys = [_key(paths[row], seed) for row in rows.tolist()]
        places[rows[np.argsort(keys, kind="stable")]] = (np.arange(len(rows)) + 0.5) / len(rows)
    return np.lexsort((labels, places)).astype(np.int64)


def _key(path: str, seed: int) -> int:
    # In its composed form, since file systems differ in what they make of a name.
    text = f"{seed}/{unicodedata.normalize('NFC', path)}"
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=7).digest())


# --- folders ------------------------------------------------------------------------------------------------------


def _class_folders(root: Path) -> dict[str, Labelled]:
    """The pictures by split: of a folder of classes, which are all "train", or of folders for the splits."""
    entries = _entries(root)
    found = {
        SPLIT_NAMES[path.name.lower()]: path for path in entries if path.is_dir() and path.name.lower() in SPLIT_NAMES
    }
    others = [path.name for path in entries if path.is_dir() and path.name.lower() not in SPLIT_NAMES]
    if "train" not in found or others:
        return {"train": _class_folder(root, root)}
    return {split: files for split, path in found.items() if (files := _class_folder(path, root)) or split == "train"}


def _class_folder(folder: Path, root: Path) -> Labelled:
    """The pictures of a folder of classes."""
    entries = _entries(folder)
    beside = [path.name for path in entries if path.is_file() and path.suffix.lower() in ENDINGS]
    classes = [path for path in entries if path.is_dir()]
    if not classes and not beside:
        raise UserError(f"{folder} holds no pictures: it needs a folder for each class, with pictures in it")
    if not classes:
        raise UserError(
            f"{folder} holds pictures, such as {_some(beside)}, but no folders: put those of a class into a folder of "
            "that name, or name a CSV file of paths and labels"
        )
    if beside:
        logger.warning("%d pictures in %s beside the folders are of no class: %s", len(beside), folder, _some(beside))
    files: Labelled = []
    endings: Counter[str] = Counter()
    empty = []
    for path in classes:
        before = len(files)
        for file in _files(path, {os.path.realpath(path)}):
            if file.suffix.lower() in ENDINGS:
                files.append((file.relative_to(root).as_posix(), path.name))
            else:
                endings[file.suffix.lower() or "no ending"] += 1
        if len(files) == before:
            empty.append(path.name)
    if endings:
        kinds = _some([f"{number} with {ending}" for ending, number in sorted(endings.items())])
        logger.warning("files in %s that do not end as pictures do were left out: %s", folder, kinds)
    if empty:
        logger.warning("folders in %s without a picture were left out: %s", folder, _some(empty))
    return files


def _entries(folder: Path) -> list[Path]:
    """What a folder has that is not hidden, sorted."""
    try:
        return sorted(path for path in folder.iterdir() if not _is_hidden(path.name))
    except NotADirectoryError as error:
        raise UserError(f"{folder} is no folder") from error
    except OSError as error:
        raise UserError(f"cannot read {folder}: {error.strerror or error}") from error


def _files(folder: Path, above: set[str]) -> Iterator[Path]:
    """The files below a folder, links followed, but not to a folder that is `above` (as real paths)."""
    for path in _entries(folder):
        if path.is_dir():
            real = os.path.realpath(path)
            if real not in above:
                yield from _files(path, above | {real})
        elif path.is_file() or path.is_symlink():  # a link to nothing is found out when it is read
            yield path


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "@eaDir")) or name == "__MACOSX"


def _tree(folder: Path) -> Path:
    """Where an ImageNet tree has its train folder: in the folder itself, or where Kaggle's archive has it."""
    return next((path for path in (folder / KAGGLE, folder / "Data/CLS-LOC") if (path / "train").is_dir()), folder)


def _kaggle_validation(folder: Path, root: Path) -> Labelled:
    solution = next(
        (
            path / "LOC_val_solution.csv"
            for path in (folder, *root.parents)
            if (path / "LOC_val_solution.csv").is_file()
        ),
        None,
    )
    if solution is None:
        raise UserError(
            f"{root / 'val'} has no folders for the synsets, and there is no LOC_val_solution.csv in {folder}: one of "
            "the two says what the pictures are of"
        )
    # A row is ImageId,PredictionString; the string is the synset and its boxes, for each object.
    rows = csv.reader(solution.read_text().splitlines()[1:])
    synset_of = {row[0]: row[1].split()[0] for row in rows if len(row) > 1 and row[1].strip()}
    names = [path for path in _entries(root / "val") if path.suffix.lower() in ENDINGS]
    unknown = [path.name for path in names if path.stem not in synset_of]
    if unknown:
        raise UserError(
            f"{solution} does not say what {len(unknown)} pictures of {root / 'val'} are of: {_some(unknown)}"
        )
    return [(path.relative_to(root).as_posix(), synset_of[path.stem]) for path in names]


# --- CSV files ----------------------------------------------------------------------------------------------------


def _read_csv(path: Path) -> dict[str, Labelled]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    first = text.partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    rows = list(csv.reader(io.StringIO(text), delimiter=delimiter))
    header = [column.strip().lower() for column in rows[0]] if rows else []
    columns = {}
    for what, known in (("path", PATH_COLUMNS), ("label", LABEL_COLUMNS), ("split", SPLIT_COLUMNS)):
        columns[what] = next((header.index(name) for name in known if name in header), None)
        if columns[what] is None and what != "split":
            raise UserError(
                f"the first line of {path} names no column for the {what}: it has {', '.join(header) or 'none'}; call "
                f"it one of {', '.join(known)}"
            )
    seen: dict[str, tuple[str, str]] = {}
    twice = []
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        if len(row) < len(header):
            raise UserError(f"line {number} of {path} has {len(row)} columns, not {len(header)}")
        file, label = (row[columns[what]].strip() for what in ("path", "label"))
        word = row[columns["split"]].strip() if columns["split"] is not None else "train"
        if word.lower() not in SPLIT_NAMES:
            raise UserError(f"line {number} of {path} has the split {word!r}: it must be train, val or test")
        entry = label, SPLIT_NAMES[word.lower()]
        if not label:
            raise UserError(f"line {number} of {path} has no label")
        if seen.get(file, entry) != entry:
            both = " and as ".join(f"{label!r} of {split}" for label, split in (seen[file], entry))
            raise UserError(f"{path} lists {file} twice, as {both}")
        if file in seen:
            twice.append(file)
        seen[file] = entry
    if twice:
        logger.warning("%s lists %d pictures twice, which count once: %s", path, len(twice), _some(twice))
    missing = [file for file in seen if not (path.parent / file).is_file()]
    if missing:
        raise UserError(f"{len(missing)} of the files that {path} lists are not there: {_some(missing)}")
    splits: dict[str, Labelled] = defaultdict(list)
    for file, (label, split) in seen.items():
        splits[split].append((file, label))
    return dict(splits)


# --- both ---------------------------------------------------------------------------------------------------------


def _listing(
    root: Path,
    splits: dict[str, Labelled],
    classes: Sequence[str],
    *,
    hold_out: float,
    names: Sequence[str] | None = None,
) -> Listing:
    """The listing of labelled pictures; `names` are the classes' readable ones."""
    if not splits.get("train"):
        raise UserError(f"{root} holds no pictures to train on")
    there = {label for _, label in splits["train"]}
    unknown = [name for name in classes if name not in there]
    if unknown:
        raise UserError(
            f"{root} has no pictures of {_some(unknown)} to train on; its classes are {_some(sorted(there))}"
        )
    ordered = tuple(classes) or tuple(sorted(there, key=_natural if all(map(str.isdecimal, there)) else str))
    for split, files in splits.items():
        strange = sorted({label for _, label in files} - there)
        if strange:
            raise UserError(
                f"the split {split} of {root} has classes that there is nothing to train on of: {_some(strange)}"
            )
    _warn_of_twins(root, ordered)
    label_of = {name: label for label, name in enumerate(ordered)}
    arrays = {}
    for split, files in splits.items():
        chosen = sorted((path, label_of[name]) for path, name in files if name in label_of)
        if chosen:
            arrays[split] = tuple(path for path, _ in chosen), np.array([label for _, label in chosen], np.int32)
    counts = np.bincount(arrays["train"][1])
    single = [ordered[label] for label in np.flatnonzero(counts == 1)]
    if single and hold_out and hold_out < 1:
        logger.warning("classes of one picture are trained on and not tested: %s", _some(single))
    return Listing(root, tuple(names or ordered), arrays, hold_out)


def _warn_of_twins(root: Path, classes: Iterable[str]) -> None:
    """Says which classes differ in letter case or in the way that accents are written alone."""
    twins = defaultdict(list)
    for name in classes:
        twins[unicodedata.normalize("NFC", name).casefold()].append(name)
    alike = [" and ".join(map(repr, names)) for names in twins.values() if len(names) > 1]
    if alike:
        logger.warning(
            "classes in %s have names that are nearly the same, and count as different: %s", root, _some(alike)
        )


def _natural(name: str) -> tuple[int, str]:
    return int(name), name


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
