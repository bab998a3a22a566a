"""Data sets: prepared once, checked once, then decoded into memory or while they are read, and cut into splits.

A published data set has a folder of its own, `<directory>/<name>/<version>/`: what TFDS wrote (ArrayRecord files, read
again by `tfds.builder_from_directory`), under `facts/` what is known of each picture, and under `decoded/` one folder
of `.npy` files for each image format asked for. Of pictures in a person's folder, which are read in place, facts and
decoded arrays are kept in `<directory>/folders/<name>-<digest of the path>/`.
"""

import contextlib
import dataclasses
import errno
import gzip
import hashlib
import inspect
import io
import json
import logging
import os
import shlex
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.registered import skip_registration

from inception_jax import files, registry
from inception_jax.data import arrays as arrays_in_hand
from inception_jax.data import digests, folders, imagenet, pictures, resident, streaming
from inception_jax.data import images as image_formats
from inception_jax.data import splits as split_notation
from inception_jax.data.builders import Cifar10, Cifar100, Digits, FashionMnist, Mnist, TinyImagenet, UcMerced
from inception_jax.data.dataset import Dataset
from inception_jax.data.folders import Listing
from inception_jax.data.images import Format
from inception_jax.data.pictures import Facts, FileSource, RecordSource, Source
from inception_jax.data.resident import Arrays
from inception_jax.errors import UserError, WriteError, unknown_name

__all__ = ["DATASETS", "Published", "changes", "from_arrays", "is_encoded", "load", "prepare", "published"]

DATASETS: dict[str, type[tfds.core.GeneratorBasedBuilder] | Callable[..., Listing]] = {
    "digits": Digits,
    "mnist": Mnist,
    "fashion_mnist": FashionMnist,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "tiny_imagenet": TinyImagenet,
    "uc_merced": UcMerced,
    "image_folder": folders.image_folder,
    "imagenet_subset": imagenet.imagenet_subset,
    "imagenet2012": imagenet.imagenet2012,
}

OURS = frozenset((digests.NAME, "undecodable.txt"))  # what lies beside TFDS's files
DECODE_CHUNK = 64  # pictures that a thread decodes at a time
NAMES_SHOWN = 3  # of pictures that a message is about
CHOICES = {
    "keep": ("all", "color", "grayscale"),
    "on_error": ("leave_out", "error"),
    "pipeline": ("auto", "memory", "streaming"),
}
AUTO_SPLITS = {"train": "auto", "validation": "auto", "test": "auto"}

logger = logging.getLogger(__name__)


def load(
    name: str,
    *,
    directory: str | Path | None = None,
    archives: str | Path | None = None,
    folder: str | Path | None = None,
    classes: Sequence[str] = (),
    hold_out: float | None = None,
    split_seed: int = 0,
    splits: Mapping[str, str] = AUTO_SPLITS,
    keep: str = "all",
    on_error: str = "leave_out",
    image_size: int | None = None,
    channels: int | None = None,
    resize: str = "bilinear",
    fit: str = "squash",
    crop_share: float = 1.0,
    pipeline: str = "auto",
    memory_gib: float = 4.0,
) -> Dataset:
    """A data set, prepared first where it is not yet.

    Args:
      name: a name from `DATASETS`, or "module:Name" from outside the package (the current folder is searched, too).
        `Name` is a TFDS builder with one image and one class label per example, which is prepared again when its
        class changes; or it is a dict, or a function without arguments that returns one, of arrays by split, as in
        {"train": (images, labels), "test": (images, labels), "class_names": ("cat", "dog")}: images uint8 (n,
        height, width, channels) or (n, height, width), labels integer (n,), the class names if one likes.
      directory: where prepared data is kept; None: $INCEPTION_JAX_DATA, else ~/.cache/inception_jax.
      archives, folder, classes, hold_out, split_seed: see `published`.
      splits: for each split wanted, its examples in TFDS's notation, e.g. {"train": "train[:90%]"}; "" is no split.
        "auto" is what is published; a validation split that is not is the last 10 % of the training split.
      keep: "color" or "grayscale" leaves out the pictures that are stored without colours, or with them; or "all". The
        splits are cut before: "train[:90%]" is those of the first 90 % of all pictures that are kept.
      on_error: "leave_out" leaves out, with a warning, pictures that cannot be decoded; or "error".
      image_size, channels, resize, fit, crop_share: what every image is converted to, see `images.Format`; image_size
        and channels None: as they are.
      pipeline: "memory" decodes all of it once, to memory-mapped files; "streaming" when it is read; "auto" chooses the
        first where the decoded set has at most `memory_gib` GiB.

    Raises:
      UserError: an unknown data set or split, an archive that is missing or damaged, a folder that cannot be
        written, arrays that are no images and labels.
    """
    for field, value in (("keep", keep), ("on_error", on_error), ("pipeline", pipeline)):
        if value not in CHOICES[field]:
            raise unknown_name(field, value, CHOICES[field])
    make_format = partial(Format, image_size, resize=resize, fit=fit, crop_share=crop_share)
    make_format(channels or 3)  # what is not allowed is answered before anything is read
    source = _resolve(name)
    if not _is_encoded(source):
        arrays: Any = _call(name, source) if callable(source) else source
        class_names, bases = arrays_in_hand.checked(name, arrays)
        own_channels = next(iter(bases.values()))[0].shape[-1]
        form = make_format(channels or own_channels) if channels or image_size else None
        ranges = split_notation.resolve_all(splits, {base: len(labels) for base, (_, labels) in bases.items()})
        _warn_of_shared_examples(ranges)
        cut = {split: split_notation.cut(parts, bases) for split, parts in ranges.items()}
        fingerprint = arrays_in_hand.fingerprint(class_names, cut)  # of what was given, whatever it is converted to
        if form:
            bases = {
                base: (image_formats.convert_arrays(images, form), labels) for base, (images, labels) in bases.items()
            }
            cut = {split: split_notation.cut(parts, bases) for split, parts in ranges.items()}
        return Dataset(name, class_names, cut, fingerprint=fingerprint)

    found = published(
        name,
        directory=directory,
        archives=archives,
        folder=folder,
        classes=classes,
        hold_out=hold_out,
        split_seed=split_seed,
    )
    found.report_errors(on_error)
    form = _whole_format(found, make_format(channels or found.channels))
    rows = {base: _kept(part, keep) for base, part in found.bases.items()}
    if keep != "all" and not any(map(len, rows.values())):
        raise UserError(f"data set {name!r} has no picture to keep: keep={keep!r} leaves all of them out")
    if splits.get("train") and "train" in rows and not len(rows["train"]):
        left = len(_kept(found.bases["train"], "all"))
        why = f"keep={keep!r} leaves all of them out" if left else "none of them can be decoded"
        raise UserError(f"data set {name!r} has no picture for training: {why}")
    # Cut before any is left out: what one choice of `keep` trains on is in no other choice's validation split.
    whole = {base: _kept(part, "all") for base, part in found.bases.items() if len(rows[base])}
    ranges = {
        split: _narrowed(f"{split} split{split_notation.by_itself(splits, split)}", parts, whole, rows, keep)
        for split, parts in split_notation.resolve_all(splits, {base: len(of) for base, of in whole.items()}).items()
    }
    _warn_of_shared_examples(ranges)
    _warn_of_duplicates(found, rows, ranges)
    streamed = _is_streamed(found, form, pipeline, memory_gib)
    make_split = partial(_streamed_split, leave_out=on_error == "leave_out")
    if not streamed:
        make_split = partial(_resident_split, arrays=_open_decoded(found, form))
    key = hashlib.sha256(found.fingerprint.encode() if found.fingerprint else b"")
    for part in ranges.get("train", []):
        key.update(f"{part.base}\0".encode() + rows[part.base][part.start : part.stop].tobytes())
    fingerprint = found.fingerprint
    if name not in DATASETS:
        fingerprint = _fingerprint(found, rows, ranges)
    return Dataset(
        name=name,
        class_names=found.class_names,
        splits={split: make_split(found, form, rows, parts) for split, parts in ranges.items()},
        statistics_path=found.cache / "statistics" / f"{form}-{key.hexdigest()[:16]}.json",
        fingerprint=fingerprint,
        cache=found.cache,
        version=found.version,
    )


@dataclasses.dataclass(frozen=True)
class Base:
    """One split as it is published.

    Attributes:
      source: its encoded pictures.
      labels: int32 `(n,)`.
      facts: what is known of each.
      order: int64: the rows that are its own, in the order in which splits are cut: all of the source's, or a part
        where a test split was held out of the training pictures.
      stored: the source's name, which such two splits share.
    """

    source: Source
    labels: np.ndarray
    facts: Facts
    order: np.ndarray
    stored: str


@dataclasses.dataclass(frozen=True)
class Published:
    """A data set's encoded pictures, each of them checked.

    Attributes:
      bases: by split.
      channels: 1 where all pictures are gray by definition of the set; else 3.
      folder: where the pictures are.
      cache: where what was found out about them is kept, and what was decoded.
      command: that prepares it.
      fingerprint: of all names, classes and contents, of pictures in a person's folder; None of published sets.
      version: the builder's, of published sets.
    """

    name: str
    class_names: tuple[str, ...]
    bases: dict[str, Base]
    channels: int
    folder: Path
    cache: Path
    command: str
    fingerprint: str | None = None
    version: str | None = None

    @property
    def stored(self) -> dict[str, Base]:
        """One of the bases for each source."""
        return {base.stored: base for base in self.bases.values()}

    def sizes(self) -> set[tuple[int, int]]:
        """The (height, width) of all pictures that can be decoded."""
        return {
            size
            for base in self.stored.values()
            for size, error in zip(
                zip(base.facts.heights, base.facts.widths, strict=True), base.facts.errors, strict=True
            )
            if not error
        }

    def undecodable(self) -> list[tuple[str, str]]:
        """The name of every picture that cannot be decoded, and why."""
        return [
            (base.source.name(row), error)
            for base in self.stored.values()
            for row, error in enumerate(base.facts.errors)
            if error
        ]

    def verify(self) -> tuple[int, int]:
        """Reads all that is kept of the data set, and every picture of a folder, and compares it with its digests.

        Returns:
          the number of files and of bytes.

        Raises:
          UserError: something is damaged: which file, and what makes it anew.
        """
        number = size = 0
        for path in sorted(self.cache.rglob("index.json")):
            done = resident.verify(path.parent, f"rm -r {shlex.quote(str(path.parent))}; {self.command}", fully=True)
            number, size = number + done[0], size + done[1]
        if self.folder == self.cache:
            with resident.required(self.cache, f"rm -r {shlex.quote(str(self.cache))}; {self.command}"):
                done = digests.verify(self.cache, partial(_written, self.cache), fully=True)
            number, size = number + done[0], size + done[1]
        for path in sorted(self.cache.glob("statistics/*.json")):
            with resident.required(path):
                digests.read(path, lambda content: content)
            number, size = number + 1, size + path.stat().st_size
        for base in self.stored.values():
            if isinstance(base.source, FileSource):
                done = pictures.verify(base.source, base.facts)
                number, size = number + done[0], size + done[1]
        return number, size

    def report_errors(self, on_error: str) -> None:
        """Says which pictures cannot be decoded: with a warning ("leave_out") or a UserError ("error", or all)."""
        bad = self.undecodable()
        if not bad:
            return
        path = self.cache / "undecodable.txt"
        with _writing_to(path):
            files.write_text(path, "".join(f"{name}\t{error}\n" for name, error in bad))
        what = f"{len(bad)} of the pictures in {self.folder} cannot be decoded: " + _some(
            [f"{name} ({error})" for name, error in bad]
        )
        if on_error == "error":
            raise UserError(
                f"{what}; all of them are in {path}. Remove them, or leave them out by data.on_error='leave_out'"
            )
        if not any(base.facts.decodable.any() for base in self.bases.values()):
            raise UserError(f"{what}: none is left; all of them are in {path}")
        logger.warning("%s: left out; all of them are in %s", what, path)


def published(
    name: str,
    *,
    directory: str | Path | None = None,
    archives: str | Path | None = None,
    folder: str | Path | None = None,
    classes: Sequence[str] = (),
    hold_out: float | None = None,
    split_seed: int = 0,
) -> Published:
    """Prepares a data set where it is not yet, and checks its pictures, each once.

    Args:
      name, directory: as for `load`.
      archives: a folder with the original archives, or with what was in them, for machines that cannot download.
        Not looked at once the data set is prepared. Builders from outside find it as `dl_manager.manual_dir`.
      folder: where the pictures of image_folder, imagenet_subset and imagenet2012 are, which are read in place.
      classes: of these, which classes, in this order: names of folders or synsets; () is the set's own choice.
      hold_out: of these, how much of each class becomes the test split where none is there: a number of pictures, or a
        share below 1; None: what is usual for the set.
      split_seed: of these, decides what is held out, and the order in which splits are cut.

    Raises:
      UserError: as `load`; also a folder for a set that is not read in place, or none for one that is.
    """
    source = _resolve(name)
    command = f"inception-jax data {shlex.quote(name)}"
    for flag, value in (("--folder", folder), ("--archives", archives), ("--data-dir", directory)):
        command += f" {flag} {shlex.quote(str(value))}" if value is not None else ""
    if not _is_encoded(source):
        raise UserError(f"data set {name!r} is arrays, which need no preparation: train on it right away")
    if not _is_builder(source):
        if folder is None:
            raise UserError(f"data set {name!r} is read in place: name its folder, by --folder or --config.data.folder")
        path = files.expand(folder, "the folder of pictures")
        listing = source(path, tuple(classes))
        where = "\0".join((str(path.resolve()), *classes))
        cache = _root(directory) / "folders" / f"{name}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"
        with _writing_to(cache):
            return _from_listing(name, listing, cache, hold_out, split_seed, command)
    for field, value in (("folder", folder), ("classes", classes), ("hold_out", hold_out)):
        if value:
            raise UserError(f"{field} is for pictures that are read in place, not for data set {name!r}")
    builder = _prepared(name, source, directory, archives, command)
    (image_key, image_feature), (label_key, label_feature) = _image_and_label(builder)
    cache = Path(builder.data_dir)
    pictures.check_features(cache)
    bases = {}
    with _writing_to(cache):
        for split in builder.info.splits:
            records = RecordSource(cache, split, image_key)
            path = cache / "facts" / f"{split}_labels.json"
            with resident.required(cache, f"rm -r {shlex.quote(str(cache))}; {command}"):
                labels = _record_labels(records, label_key, path, label_feature.num_classes or 0)
            facts = pictures.check(records, cache / "facts" / f"{split}.json")
            bases[split] = Base(records, labels, facts, np.arange(len(labels)), split)
    shape: Any = image_feature.shape
    channels = 1 if shape[-1] == 1 else 3
    return Published(
        name, tuple(label_feature.names), bases, channels, cache, cache, command, version=str(builder.version)
    )


def prepare(name: str, *, directory: str | Path | None = None, archives: str | Path | None = None) -> Path:
    """Downloads or reads the archives, writes ArrayRecord files and decodes them, each step only if it is not done.

    Args and errors are those of `published`.

    Returns:
      The data set's folder, which `tfds.builder_from_directory` opens.
    """
    found = published(name, directory=directory, archives=archives)
    if len(found.sizes()) == 1:  # else an image size must be chosen first
        _decoded(found, Format(channels=found.channels))
    return found.cache


def _from_listing(
    name: str, listing: Listing, cache: Path, hold_out: float | None, seed: int, command: str
) -> Published:
    """Checks the pictures of a folder, says what changed in it, and holds out a test split where none is there."""
    bases, digest = {}, hashlib.sha256()
    now: dict[str, dict[str, str]] = {}
    for split, (paths, labels) in listing.splits.items():
        source = FileSource.of(listing.root, paths)
        facts = pictures.check(source, cache / "facts" / f"{split}.json")
        bases[split] = Base(source, labels, facts, folders.stratified_order(paths, labels, seed), split)
        now[split] = {
            path: f"{listing.class_names[label]}\0{content}"
            for path, label, content in zip(paths, labels, facts.digests, strict=True)
        }
    digest.update(json.dumps([listing.class_names, now]).encode())
    fingerprint = digest.hexdigest()[:16]
    _note_fingerprint(cache, fingerprint, now, listing.root)
    amount = listing.hold_out if hold_out is None else hold_out
    if amount and "test" not in bases:
        train = bases["train"]
        rows = np.flatnonzero(train.facts.decodable)
        paths = [train.source.name(row) for row in rows]
        out = np.zeros(len(train.labels), bool)
        out[rows] = folders.held_out(paths, train.labels[rows], amount, seed)
        for split, chosen in (("train", ~out), ("test", out)):
            # Ordered anew: what is left of a small class may all be at the end of the order of the whole.
            order = np.flatnonzero(chosen)
            paths = [train.source.name(row) for row in order]
            order = order[folders.stratified_order(paths, train.labels[order], seed)]
            bases[split] = dataclasses.replace(train, order=order)
    elif hold_out:
        raise UserError(f"hold_out={hold_out:g} is not needed: {listing.root} has a test split")
    return Published(name, listing.class_names, bases, 3, listing.root, cache, command, fingerprint)


def _note_fingerprint(cache: Path, fingerprint: str, now: dict[str, dict[str, str]], root: Path) -> None:
    """Keeps what the folder holds, and warns where that is not what it held the last time."""
    listing, last = cache / "listings" / f"{fingerprint}.json.gz", cache / "last_listing.txt"
    there = digests.is_file(listing)
    if not there or _read_listing(listing) is None:
        if there:
            logger.warning("%s is damaged: it is made again", listing)
        listing.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(listing, gzip.compress(json.dumps(now).encode(), mtime=0))
    before = last.read_bytes().decode(errors="replace") if digests.is_file(last) else None
    if before == fingerprint:
        return
    if before is not None and not os.path.lexists(cache / "listings" / f"{before}.json.gz"):
        logger.warning(
            "%s is damaged, or what it names is gone: whether %s changed since it was last used is not known",
            last,
            root,
        )
    elif before is not None:
        logger.warning("%s is not what it was when it was last used: %s", root, changes(cache, before, fingerprint))
        for old in (cache / "decoded").glob("*"):
            if old.name != fingerprint:
                shutil.rmtree(old, ignore_errors=True)
    files.write_text(last, fingerprint)


def changes(cache: Path | None, before: str, now: str) -> str:
    """What differs between a data set at two fingerprints, in words.

    Args:
      cache: of a folder's pictures, what was kept of them; None of arrays, whose fingerprints say it.
    """
    if digests.PART in before and digests.PART in now:
        return digests.differences(before, now)
    listings = [cache / "listings" / f"{key}.json.gz" for key in (before, now)] if cache else []
    if not listings or not all(map(os.path.lexists, listings)):
        return "what it held then is not known any more"
    old, new = map(_read_listing, listings)
    if old is None or new is None:
        damaged = listings[0] if old is None else listings[1]
        return f"what it held then is not known any more, as {damaged} is damaged"
    both = old.keys() & new.keys()
    lists = {
        "added": sorted(new.keys() - old.keys()),
        "removed": sorted(old.keys() - new.keys()),
        "changed": sorted(key for key in both if old[key] != new[key]),
    }
    return "; ".join(
        f"{len(keys)} {what}: {_some([key.partition(chr(0))[2] for key in keys])}"
        for what, keys in lists.items()
        if keys
    )


def _read_listing(path: Path) -> dict[str, str] | None:
    """Class and content of each picture that a folder held, by split and path; None where it is damaged."""
    try:
        kept: dict[str, dict[str, str]] = json.loads(gzip.decompress(path.read_bytes()))
        return {f"{split}\0{picture}": what for split, held in kept.items() for picture, what in held.items()}
    except (OSError, ValueError, EOFError, AttributeError, zlib.error, RecursionError):
        return None


def _fingerprint(
    found: Published, rows: Mapping[str, np.ndarray], ranges: Mapping[str, list[split_notation.Range]]
) -> str:
    """By which what a builder from outside wrote is known again, whatever its version says."""
    parts = [digests.part("class names", len(found.class_names), digests.of_texts(found.class_names))]
    for split, pieces in ranges.items():
        chosen = [(found.bases[piece.base], rows[piece.base][piece.start : piece.stop]) for piece in pieces]
        content = [base.facts.digests[row] for base, some in chosen for row in some.tolist()]
        labels = [str(base.labels[row]) for base, some in chosen for row in some.tolist()]
        for what, texts in (("pictures", content), ("labels", labels)):
            parts.append(digests.part(f"{split} {what}", len(texts), digests.of_texts(texts)))
    return digests.together(parts)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")


def _kept(base: Base, keep: str) -> np.ndarray:
    """The rows of a published split that are used, in the order in which splits are cut: int64."""
    wanted = base.facts.decodable.copy()
    if keep != "all":
        wanted &= base.facts.grayscale == (keep == "grayscale")
    return base.order[wanted[base.order]]


def _narrowed(
    what: str,
    parts: list[split_notation.Range],
    whole: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
    keep: str,
) -> list[split_notation.Range]:
    """Ranges of the `whole` rows as ranges of the `rows` that are kept, which are some of them in the same order."""
    kept = []
    for base, start, stop in parts:
        before = np.concatenate([[0], np.cumsum(np.isin(whole[base], rows[base]))])
        if before[start] < before[stop]:
            kept.append(split_notation.Range(base, int(before[start]), int(before[stop])))
    if not kept:
        raise UserError(f"the {what} has no picture to keep: keep={keep!r} leaves all of them out")
    return kept


def _whole_format(found: Published, form: Format) -> Format:
    """The format with the pictures' own size where none was chosen and they have but one."""
    if form.image_size is not None:
        return form
    sizes = found.sizes()
    if not sizes:
        raise UserError(f"none of the pictures of {found.name!r} can be decoded")
    if len(sizes) > 1:
        first, second = sorted(sizes)[:2]
        raise UserError(
            f"the images of {found.name!r} have several sizes, {first} and {second} among them: choose one by "
            "--config.data.image_size"
        )
    ((height, width),) = sizes
    return dataclasses.replace(form, image_size=height, fit="squash") if height == width else form


def _is_streamed(found: Published, form: Format, pipeline: str, memory_gib: float) -> bool:
    if form.image_size is None:
        if pipeline == "streaming":
            raise UserError("pictures that are no squares cannot be streamed as they are: choose data.image_size")
        return False
    number = sum(int(base.facts.decodable.sum()) for base in found.stored.values())
    gib = number * form.image_size**2 * form.channels / 2**30
    streamed = pipeline == "streaming" or (pipeline == "auto" and gib > memory_gib)
    if pipeline == "auto" and streamed:
        logger.info("data: %.1f GiB decoded are more than data.memory_gib=%g: streaming", gib, memory_gib)
    return streamed


def _streamed_split(
    found: Published,
    form: Format,
    rows: Mapping[str, np.ndarray],
    parts: list[split_notation.Range],
    *,
    leave_out: bool,
) -> streaming.Split:
    bases = [found.bases[part.base] for part in parts]
    chosen = [rows[part.base][part.start : part.stop] for part in parts]
    return streaming.Split(
        sources=tuple(base.source for base in bases),
        source_of=np.repeat(np.arange(len(parts)), [len(part) for part in chosen]),
        rows=np.concatenate(chosen),
        labels=np.concatenate([base.labels[part] for base, part in zip(bases, chosen, strict=True)]),
        gray=np.concatenate([base.facts.grayscale[part] for base, part in zip(bases, chosen, strict=True)]),
        form=form,
        leave_out=leave_out,
    )


def _resident_split(
    found: Published,
    form: Format,
    rows: Mapping[str, np.ndarray],
    parts: list[split_notation.Range],
    *,
    arrays: Mapping[str, Arrays],
) -> resident.Split:
    stored, wholes = {}, {}
    for part in parts:
        base = found.bases[part.base]
        decodable = base.facts.decodable
        # What cannot be decoded has no row among the arrays.
        stored[part.base] = (np.cumsum(decodable) - 1)[rows[part.base]]
        wholes[part.base] = (*arrays[base.stored], base.facts.grayscale[decodable])
    return split_notation.cut_rows(parts, stored, wholes)


def from_arrays(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """A data set of arrays in hand.

    Args:
      train, validation, test: (images, labels) each: images uint8 `(n, height, width, channels)` or
        `(n, height, width)`, labels integer `(n,)` or `(n, 1)`, counted from 0. Arrays of other libraries and lists
        are taken where NumPy makes such arrays of them.
      class_names: by label, different texts; by default the labels' numbers, up to the largest one.

    Raises:
      UserError: anything else. Floating-point images are not converted, as their range is anybody's guess; the
        message says how to. Images with their channels first are not turned round.
    """
    given = {"validation": validation, "test": test}
    arrays: dict[str, Any] = {"train": train} | {split: pair for split, pair in given.items() if pair is not None}
    if class_names is not None:
        arrays["class_names"] = class_names
    names, bases = arrays_in_hand.checked("arrays", arrays)
    splits = {split: resident.Split(*pair) for split, pair in bases.items()}
    return Dataset("arrays", names, splits, fingerprint=arrays_in_hand.fingerprint(names, splits))


def _resolve(name: str) -> Any:
    with skip_registration():  # a builder from outside may have the name of one of TFDS's
        return registry.resolve("data set", name, DATASETS)


def _call(name: str, source: Callable[..., Any]) -> Any:
    rule = f"data set {name!r} must be a function that can be called without arguments, written in Python"
    if not registry.is_function(source):  # looked at, not called: it may be anything
        raise UserError(f"{rule}, a TFDS builder, or a dict of arrays")
    try:
        inspect.signature(source).bind()
    except TypeError as error:
        raise UserError(f"{rule}: {error}") from error
    return source()


def _is_builder(source: Any) -> bool:
    return isinstance(source, type) and issubclass(source, tfds.core.DatasetBuilder)


def is_encoded(name: str) -> bool:
    """Whether a data set is of pictures that are decoded, so that `published` knows of it, and not of arrays."""
    return _is_encoded(_resolve(name))


def _is_encoded(source: Any) -> bool:
    return _is_builder(source) or source in (value for value in DATASETS.values() if not _is_builder(value))


def _root(directory: str | Path | None) -> Path:
    return files.expand(directory or os.environ.get("INCEPTION_JAX_DATA") or "~/.cache/inception_jax")


def _directory(name: str, source: type[tfds.core.DatasetBuilder], directory: str | Path | None) -> Path:
    """Where TFDS keeps the data set: people's own are kept apart by the file and the text of their class."""
    root = _root(directory)
    if name in DATASETS:
        return root
    try:
        text = f"{inspect.getfile(source)}\n{inspect.getsource(source)}"
    except (OSError, TypeError):  # a class without a file
        text = ""
    return root / f"{source.__module__}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _prepared(
    name: str,
    source: type[tfds.core.DatasetBuilder],
    directory: str | Path | None,
    archives: str | Path | None,
    command: str,
) -> tfds.core.DatasetBuilder:
    """The builder, its ArrayRecord files written."""
    directory = _directory(name, source, directory)
    folder = _folder_of(source, directory)
    if folder.exists():
        return _opened(source, directory, command)
    if archives is not None:
        archives = files.expand(archives, "archives")
        if not archives.is_dir() or not any(archives.iterdir()):
            raise UserError(f"archives={str(archives)!r} is no folder with files in it")
    logger.info("preparing %s in %s", name, folder)
    with _writing_to(directory):
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    with files.locked(directory / f".{source.name}.lock"):  # one process prepares, the others wait for it
        if folder.exists():
            return _opened(source, directory, command)
        for left in folder.parent.glob("incomplete.*"):  # by one that was killed
            shutil.rmtree(left, ignore_errors=True)
        builder = source(data_dir=directory)
        with _room_for(folder), _quiet():
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(manual_dir=archives, try_download_gcs=False),
                file_format="array_record",
            )
        with _writing_to(folder):
            digests.seal(folder, _written(folder))
    return source(data_dir=directory)


def _folder_of(source: type[tfds.core.DatasetBuilder], directory: Path) -> Path:
    """Where TFDS writes the data set: it renames the folder when it is complete."""
    nowhere = directory / ".nowhere"  # since a builder reads what is there, damaged or not
    return directory / Path(source(data_dir=nowhere).data_dir).relative_to(nowhere)


def _written(folder: Path) -> list[str]:
    """The files that TFDS wrote."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in OURS)


def _opened(source: type[tfds.core.DatasetBuilder], directory: Path, command: str) -> tfds.core.DatasetBuilder:
    """The builder of a data set that is prepared; its files are compared with their digests first."""
    folder = _folder_of(source, directory)
    with resident.required(folder, f"rm -r {shlex.quote(str(folder))}; {command}"):
        digests.verify(folder, partial(_written, folder))
        builder = source(data_dir=directory)
        if not builder.info.splits:
            raise ValueError("it names no splits")
        return builder


def _image_and_label(
    builder: tfds.core.DatasetBuilder,
) -> tuple[tuple[str, tfds.features.Image], tuple[str, tfds.features.ClassLabel]]:
    """The features of the builder's examples that are the image and its class, each with its name.

    Raises:
      UserError: its `supervised_keys`, or else "image" and "label", are no such features.
    """
    features: Any = builder.info.features
    keys: Any = builder.info.supervised_keys or ("image", "label")
    found = [
        (key, features[key])
        for key, kind in zip(keys, (tfds.features.Image, tfds.features.ClassLabel), strict=False)
        if isinstance(key, str) and key in features and isinstance(features[key], kind)
    ]
    if len(found) != 2:
        raise UserError(
            f"data set {builder.name!r} has no image and class label: its supervised_keys must name a "
            "tfds.features.Image and a tfds.features.ClassLabel, or these must be called 'image' and 'label'"
        )
    return found[0], found[1]


def _record_labels(records: RecordSource, key: str, path: Path, num_classes: int) -> np.ndarray:
    """The labels of a split that TFDS wrote: int32 `(n,)`, kept in a file."""

    def check(content: Any) -> np.ndarray:
        labels = np.array(content)
        if (
            labels.shape != (len(records),)
            or labels.dtype.kind != "i"
            or np.any((labels < 0) | (labels >= num_classes))
        ):
            raise ValueError("no labels of the split")
        return labels.astype(np.int32)

    kept = digests.read_or_none(path, check)
    if kept is not None:
        return kept
    chunks = range(0, len(records), DECODE_CHUNK)
    read = records.records.__getitems__  # several at a time, which is faster
    labels = [
        int(example[key]) for start in chunks for example in read(range(start, min(start + DECODE_CHUNK, len(records))))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    digests.write(path, labels)
    return check(labels)


def _open_decoded(found: Published, form: Format) -> dict[str, Arrays]:
    """The decoded images of this format and their labels, by the source's name."""
    folder = _decoded(found, form)
    again = f"rm -r {shlex.quote(str(folder))}; {found.command}"
    _, arrays = resident.open_arrays(folder, again)
    with resident.required(folder, again):
        for stored, base in found.stored.items():
            labels = base.labels[base.facts.decodable]
            if len(labels) and not np.array_equal(arrays[stored][1], labels):
                raise ValueError(f"{stored}_labels.npy holds other labels than the pictures have")
    return arrays


def _decoded(found: Published, form: Format) -> Path:
    """The folder with the decoded images of this format, written unless it is there."""
    place = found.cache / "decoded" / (found.fingerprint or "")
    first = next(base for base in found.stored.values() if base.facts.decodable.any())
    row = int(np.argmax(first.facts.decodable))
    # Named by the size that it gives, so that asking for the pictures' own size finds it, too.
    own = (first.facts.heights[row], first.facts.widths[row])
    name = str(form) if form.image_size else str(form).replace("as_they_are", f"{own[0]}x{own[1]}")
    folder = place / name
    if folder.is_dir():
        return folder

    def examples(base: Base, rows: np.ndarray, pool: ThreadPoolExecutor) -> Iterator[tuple[np.ndarray, int]]:
        def decode(chunk: np.ndarray) -> list[tuple[np.ndarray, int]]:
            images = pictures.decode_all(base.source, chunk.tolist(), form)
            return list(zip(images, base.labels[chunk], strict=True))

        # Several to a thread, since small pictures take less time than handing them over; not all at once, since they
        # take memory.
        chunks = [rows[start : start + DECODE_CHUNK] for start in range(0, len(rows), DECODE_CHUNK)]
        at_once = os.cpu_count() or 1
        for start in range(0, len(chunks), at_once):
            for decoded in pool.map(decode, chunks[start : start + at_once]):
                yield from decoded

    logger.info("decoding %s to %s", found.name, folder)
    with _writing_to(folder), ThreadPoolExecutor(os.cpu_count()) as pool:
        parts = {stored: (base, np.flatnonzero(base.facts.decodable)) for stored, base in found.stored.items()}
        resident.write_arrays(
            folder,
            found.class_names,
            {stored: (len(rows), examples(base, rows, pool)) for stored, (base, rows) in parts.items()},
        )
    return folder


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, WriteError) as error:
        cause: Any = error.__cause__ if isinstance(error, WriteError) else error
        kind = WriteError if files.no_room(cause) else UserError
        raise kind(
            f"cannot write the data set to {folder}: {cause.strerror or cause}; choose another folder by --data-dir, "
            "--config.data.directory (training) or $INCEPTION_JAX_DATA"
        ) from error


@contextlib.contextmanager
def _room_for(folder: Path) -> Iterator[None]:
    """As `_writing_to`, but for a full disk alone, which the writer of ArrayRecord files names in its message."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not files.no_room(error):
            raise
        code = (error.errno if isinstance(error, OSError) else None) or errno.ENOSPC
        with _writing_to(folder):
            raise OSError(code, os.strerror(code)) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS prints what it does, to standard output and in bars: the bars are for terminals, the rest for debugging."""
    tfds.display_progress_bar(sys.stderr.isatty())
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.WARNING)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)
        logger.debug("TFDS: %s", printed.getvalue())


def _warn_of_shared_examples(ranges: Mapping[str, list[split_notation.Range]]) -> None:
    for split in ranges.keys() - {"train"}:
        shared = split_notation.count_shared(ranges.get("train", []), ranges[split])
        if shared:
            logger.warning("the splits train and %s share %d examples: its results flatter the network", split, shared)


def _warn_of_duplicates(
    found: Published, rows: Mapping[str, np.ndarray], ranges: Mapping[str, list[split_notation.Range]]
) -> None:
    """Says which pictures are, byte by byte, in two splits."""

    def pictures_of(split: str) -> Iterator[tuple[str, tuple[str, int]]]:
        for part in ranges.get(split, []):
            base = found.bases[part.base]
            for row in rows[part.base][part.start : part.stop].tolist():
                yield base.facts.digests[row], (base.stored, row)

    order = sorted(ranges, key=lambda split: (split != "train", split != "validation"))
    for place, first in enumerate(order):
        known = dict(pictures_of(first))
        for split in order[place + 1 :]:
            twins = [(known[digest], other) for digest, other in pictures_of(split) if digest in known]
            if twins:  # of which those are none that both splits have
                own = {picture for _, picture in pictures_of(first)}
                twins = [(one, other) for one, other in twins if other not in own]
            if twins:
                sources = {stored: base.source for stored, base in found.stored.items()}
                names = [" = ".join(sources[stored].name(row) for stored, row in pair) for pair in twins]
                logger.warning(
                    "%d pictures of the split %s are the same as one of %s: its results flatter the network: %s",
                    len(twins),
                    split,
                    first,
                    _some(names),
                )
