"""ImageNet's photographs, read in place: any of its synsets, or all of ILSVRC2012."""

import csv
import dataclasses
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from inception_jax.data import synsets
from inception_jax.data.folders import CLASSES_SHOWN, Listing, check_once, labelled, listing, some
from inception_jax.data.scan import Scan, entries, is_folder
from inception_jax.errors import UserError

HOLD_OUT = 100  # pictures of each class (Mahmud 2024)
KAGGLE = ("ILSVRC", "Data", "CLS-LOC")  # the folders around train/ and val/ in Kaggle's archive

logger = logging.getLogger(__name__)


def imagenet_subset(folder: Path, classes: tuple[str, ...] = ()) -> Listing:
    """Some of ImageNet's synsets, each in a folder ("n02084071", or "n02084071-dog").

    The folders are in DIR, or in DIR/train with DIR/val or DIR/test for the test split (if there are both, val is the
    validation split); or DIR is a full ILSVRC2012 tree, as read by `imagenet2012`. Each of the ten `synsets.CIFAR10`
    has the pictures of its own folder and of the folders of its leaves, except for leaves that are in `classes`
    themselves. If there is no test split, 100 pictures of each class are held out.

    The classes have CIFAR-10's names if all are of those ten synsets, otherwise ILSVRC2012's; a synset that is in
    neither is named by its number.

    Args:
      folder: DIR.
      classes: synsets, in the order of the labels; () for the ten that match CIFAR-10's classes, ("all",) for all that
        exist, sorted.

    Raises:
      UserError: the folder cannot be read, or has no pictures of one of the synsets; the message names those it has.
    """
    place = _place(folder)
    split_names = ("train", "val", "test") if (place / "train").is_dir() else ("",)
    folders = {name: _synset_folders(place / name) for name in split_names if (place / name).is_dir()}
    there = sorted(set().union(*folders.values()))
    if not folders[split_names[0]]:
        raise UserError(f"{place / split_names[0]} has no folders of synsets, such as n02084071")
    chosen = tuple(there) if classes == ("all",) else classes or tuple(synsets.CIFAR10)
    # A leaf that is a class of its own does not also belong to its parent.
    parts = {
        synset: (synset, *(leaf for leaf in synsets.leaves().get(synset, ()) if leaf not in chosen))
        for synset in chosen
    }
    scan, found = Scan(folder), {}
    for name, by_folder in folders.items():
        by_synset = _pictures(scan, place / name, by_folder, [part for group in parts.values() for part in group])
        if name in ("", "train") or any(by_synset.values()):
            found[name or "train"] = {
                synset: [path for part in group for path in by_synset[part]] for synset, group in parts.items()
            }
    scan.report()
    missing = [synset for synset in chosen if not any(by_class[synset] for by_class in found.values())]
    if missing and classes != ("all",):
        known = {**synsets.CIFAR10, **synsets.names()}
        shown = [f"{synset} ({known[synset]})" if synset in known else synset for synset in there]
        raise UserError(
            f"{place / split_names[0]} has no pictures of {some(missing, CLASSES_SHOWN)}. It has "
            f"{some(shown, CLASSES_SHOWN)}: choose by classes, where ('all',) is all of them"
        )
    if "val" in found:
        found["validation" if "test" in found else "test"] = found.pop("val")
    result = listing(folder, found, () if classes == ("all",) else chosen, HOLD_OUT)
    return dataclasses.replace(result, class_names=synsets.readable_names(result.class_names))


def imagenet2012(folder: Path, classes: tuple[str, ...] = ()) -> Listing:
    """The photographs of ILSVRC2012: 1,281,167 of 1000 synsets for training, and the 50,000 of val as test split.

    Russakovsky et al. 2015, "ImageNet Large Scale Visual Recognition Challenge"; for non-commercial research and
    education.

    The layouts:

      - DIR/train/<synset>/*.JPEG and DIR/val/<synset>/*.JPEG (torchvision's layout).
      - DIR/ILSVRC/Data/CLS-LOC/{train,val} (Kaggle's), where val is flat and DIR/LOC_val_solution.csv has its classes.
      - a flat val with val.txt beside it or in it: on each line a file's name and its label (0 to 999) or synset.

    Labels are those of pretrained networks, 0 to 999 in the order of the sorted synsets, even if some of them, or one
    of train and val, are missing, with a warning. Nothing is held out.

    Args:
      folder: DIR.
      classes: synsets in the order of the labels; () for all.

    Raises:
      UserError: the folder cannot be read, or has neither train nor val; the classes of a flat val are unknown, or
        labels in its table are not 0 to 999.
    """
    names = synsets.names()
    for synset in classes:
        if synset not in names:
            raise UserError(
                f"classes: {synset!r} is not one of the 1000 synsets of ILSVRC2012, such as n02102040; "
                "imagenet_subset accepts others, too"
            )
    check_once(classes)
    chosen = classes or tuple(names)
    place = _place(folder)
    scan, found = Scan(folder), {}
    for split, name in (("train", "train"), ("test", "val")):
        if not (place / name).is_dir():
            logger.warning("%s has no folder %s", place, name)
            continue
        by_folder = _synset_folders(place / name)
        others = sorted(by_folder.keys() - names.keys())
        if others:
            logger.warning("%s: synsets that are not of ILSVRC2012 are left out: %s", place / name, some(others))
        by_class = _pictures(scan, place / name, by_folder, chosen)
        there = sum(map(bool, by_class.values()))
        if there < len(chosen):
            logger.warning("%s has pictures of %d of the %d classes", place / name, there, len(chosen))
        found[split] = by_class
    scan.report()
    splits = labelled(found, chosen)
    if not splits:
        raise UserError(
            f"{folder} has no pictures of ILSVRC2012: expected DIR/train/<synset>/*.JPEG and DIR/val, or Kaggle's "
            f"DIR/{'/'.join(KAGGLE)}/train"
        )
    return Listing(folder, tuple(names[synset] for synset in chosen), splits)


def _place(folder: Path) -> Path:
    """The folder that contains train and val: this one, or the one within Kaggle's archive."""
    entries(folder)  # raises UserError
    places = [folder.joinpath(*KAGGLE[start:]) for start in reversed(range(len(KAGGLE) + 1))]
    return next((place for place in places if (place / "train").is_dir() or (place / "val").is_dir()), folder)


def _synset_folders(folder: Path) -> dict[str, list[str]]:
    """The folders of each synset."""
    found: dict[str, list[str]] = {}
    for entry in entries(folder):
        synset = re.match(r"n\d{8}(?![0-9A-Za-z])", entry.name)
        if synset and is_folder(entry):
            found.setdefault(synset[0], []).append(entry.path)
    return found


def _pictures(
    scan: Scan, place: Path, folders: Mapping[str, Sequence[str]], wanted: Iterable[str]
) -> dict[str, list[str]]:
    """The paths of the pictures of each wanted synset in a split; `folders` is empty if val is flat."""
    if place.name == "val" and not folders:
        by_synset = _flat_pictures(scan, place)
        return {synset: by_synset.get(synset, []) for synset in wanted}
    return {synset: [path for folder in folders.get(synset, ()) for path in scan.pictures(folder)] for synset in wanted}


def _flat_pictures(scan: Scan, place: Path) -> dict[str, list[str]]:
    """The paths of the pictures of each synset if all are in one folder and a table has their classes."""
    there = {Path(path).stem: path for path in scan.pictures(place)}
    if not there:
        return {}
    places = [place, place.parent]
    if place.parts[-len(KAGGLE) - 1 : -1] == KAGGLE:
        places.append(place.parents[len(KAGGLE)])
    readers: dict[str, Callable[[Path], dict[str, str]]] = {
        "LOC_val_solution.csv": _read_kaggle_solution,
        "val.txt": _read_caffe_labels,
    }
    tables = [(path / name, read) for path in places for name, read in readers.items() if (path / name).is_file()]
    if not tables:
        raise UserError(
            f"{place} has {len(there)} pictures whose classes are not known: put {' or '.join(readers)} into "
            f"{places[-1]}, or the pictures into folders of synsets"
        )
    table, read = tables[0]
    try:
        synset_of = read(table)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"cannot read {table}: {error}") from error
    strange, missing = len(there.keys() - synset_of.keys()), len(synset_of.keys() - there.keys())
    if strange:
        logger.warning("%s: %d pictures that are not in %s are left out", place, strange, table)
    if missing:
        logger.warning("%s lacks %d of the pictures in %s", place, missing, table)
    found: dict[str, list[str]] = {}
    for stem, path in there.items():
        if stem in synset_of:
            found.setdefault(synset_of[stem], []).append(path)
    return found


def _read_kaggle_solution(path: Path) -> dict[str, str]:
    """The synset by a picture's name without suffix, from lines such as "ILSVRC2012_val_00048981,n03995372 85 1"."""
    rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))[1:]
    for row in rows:
        if len(row) < 2 or not re.match(r"n\d{8}\b", row[1]):
            raise UserError(f"{path} is not Kaggle's: it has a line {','.join(row)!r}")
    return {row[0]: row[1][:9] for row in rows}


def _read_caffe_labels(path: Path) -> dict[str, str]:
    """The synset by a picture's name without suffix, from lines such as "ILSVRC2012_val_00000001.JPEG 65"."""
    numbered = list(synsets.names())
    found = {}
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        words = line.split()
        if not words:
            continue
        label = words[-1]
        if re.fullmatch("[0-9]{1,3}", label):
            label = numbered[int(label)]
        if len(words) != 2 or not re.fullmatch(r"n\d{8}", label):
            raise UserError(
                f"{path} has a line {line!r}: expected a file's name and its label, 0 to 999 in the order of the "
                "sorted synsets, or its synset"
            )
        found[Path(words[0]).stem] = label
    return found
