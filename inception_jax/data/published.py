"""A data set as it is published: its encoded pictures, each of them checked, and what is known of them."""

import dataclasses
import hashlib
import json
import logging
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax import files
from inception_jax.data import array_records, digests, listings, registry, resident, sources, splits, storage
from inception_jax.data.folders import Listing, some
from inception_jax.data.options import Location, Selection
from inception_jax.data.sources import FileSource, PictureFacts, RecordSource, Source
from inception_jax.errors import UserError

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Base:
    """One split as it is published.

    Attributes:
      source: the encoded pictures.
      labels: of the source's pictures, int32 `(n,)`.
      facts: what is known of each picture of the source.
      order: the rows of the source that belong to the split, in the order in which splits are cut, int64: all of them,
        or a part if a test split was held out of the training pictures.
      stored: the name of the source, which two such splits share.
    """

    source: Source
    labels: np.ndarray
    facts: PictureFacts
    order: np.ndarray
    stored: str


@dataclasses.dataclass(frozen=True)
class Published:
    """A data set's encoded pictures, each of them checked.

    Attributes:
      name: of the data set.
      class_names: in the order of the labels.
      bases: by split.
      channels: 1 if all pictures are gray by definition of the data set, else 3.
      folder: where the pictures are; of data sources, the name of the data set.
      cache: where what is known about them, and their decoded images, are kept.
      command: prepares the data set; messages name it.
      fingerprint: for pictures in a user's folder, of all names, classes and contents; None for a builder's.
      version: of a builder's data set.
      words: see `Dataset`.
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
    words: tuple[str, ...] = ()

    @property
    def stored(self) -> dict[str, Base]:
        """One of the bases for each source, by the name of the source."""
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
        """Reads everything that is kept of the data set, and every picture of a folder, and verifies the digests.

        Returns:
          the number of files and of bytes.

        Raises:
          UserError: something is damaged; the message names the file and how to make it again.
        """
        number = size = 0
        for path in sorted(self.cache.rglob("index.json")):
            done = resident.verify(path.parent, f"rm -r {shlex.quote(str(path.parent))}; {self.command}", fully=True)
            number, size = number + done[0], size + done[1]
        if self.folder == self.cache:
            with resident.required(self.cache, f"rm -r {shlex.quote(str(self.cache))}; {self.command}"):
                done = digests.verify(self.cache, partial(array_records.written, self.cache), fully=True)
            number, size = number + done[0], size + done[1]
        for path in sorted(self.cache.glob("statistics/*.json")):
            with resident.required(path):
                digests.read(path, lambda content: content)
            number, size = number + 1, size + path.stat().st_size
        for base in self.stored.values():
            if isinstance(base.source, FileSource):
                done = sources.verify(base.source, base.facts)
                number, size = number + done[0], size + done[1]
        return number, size

    def report_errors(self, on_error: str) -> None:
        """Names the pictures that cannot be decoded, in a file and in a warning.

        Raises:
          UserError: there are some and on_error is "error", or all pictures are among them.
        """
        bad = self.undecodable()
        if not bad:
            return
        path = self.cache / "undecodable.txt"
        with storage.writing_to(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(path, "".join(f"{name}\t{error}\n" for name, error in bad))
        what = f"{len(bad)} of the pictures in {self.folder} cannot be decoded: " + some(
            [f"{name} ({error})" for name, error in bad]
        )
        if on_error == "error":
            raise UserError(
                f"{what}; all of them are in {path}. Remove them, or leave them out by data.on_error='leave_out'"
            )
        if not any(base.facts.decodable.any() for base in self.bases.values()):
            raise UserError(f"{what}: none is left; all of them are in {path}")
        logger.warning("%s: left out; all of them are in %s", what, path)


def published(name: str, location: Location | None = None, selection: Selection | None = None) -> Published:
    """Prepares a data set if it is not prepared yet, and checks its pictures, each once.

    Args:
      name: as for `load`.
      location: where it is; None: the defaults.
      selection: its classes, hold_out and split_seed; its other fields, which cut splits, are ignored. None: the
        defaults.

    Raises:
      UserError: as `load`; also a folder for a data set that is not read in place, or none for one that is; or a data
        set of arrays.
    """
    location, selection = location or Location(), selection or Selection()
    source = registry.resolve(name)
    command = f"inception-jax data {shlex.quote(name)}"
    for flag, value in (
        ("--folder", location.folder), ("--archives", location.archives), ("--data-dir", location.directory),
    ):  # fmt: skip
        command += f" {flag} {shlex.quote(str(value))}" if value is not None else ""
    if not registry.has_pictures(source):
        raise UserError(f"data set {name!r} is arrays, which need no preparation: train on it right away")
    if registry.is_builder(source):
        return _from_builder(name, source, location, selection, command)
    if location.folder is None:
        raise UserError(f"data set {name!r} is read in place: name its folder, by --folder or --config.data.folder")
    path = files.expand(location.folder, "the folder of pictures")
    listing = source(path, tuple(selection.classes))
    where = "\0".join((str(path.resolve()), *selection.classes))
    digest = hashlib.sha256(where.encode()).hexdigest()[:8]
    cache = storage.root(location.directory) / "folders" / f"{name}-{digest}"
    with storage.writing_to(cache):
        return _from_listing(name, listing, cache, selection, command)


def _from_builder(name: str, source: Any, location: Location, selection: Selection, command: str) -> Published:
    """Prepares the data set of a TFDS builder and checks its pictures."""
    given = {"folder": location.folder, "classes": selection.classes, "hold_out": selection.hold_out}
    for field, value in given.items():
        if value:
            raise UserError(f"{field} is for pictures that are read in place, not for data set {name!r}")
    builder = array_records.prepared(name, source, location, command)
    (image_key, image_feature), (label_key, label_feature) = array_records.image_and_label(builder)
    cache = Path(builder.data_dir)
    sources.check_features(cache)
    bases = {}
    with storage.writing_to(cache):
        for split in builder.info.splits:
            stored = RecordSource(cache, split, image_key)
            path = cache / "facts" / f"{split}_labels.json"
            with resident.required(cache, f"rm -r {shlex.quote(str(cache))}; {command}"):
                labels = array_records.record_labels(stored, label_key, path, label_feature.num_classes or 0)
            facts = sources.check(stored, cache / "facts" / f"{split}.json")
            bases[split] = Base(stored, labels, facts, np.arange(len(labels)), split)
    shape: Any = image_feature.shape
    channels = 1 if shape[-1] == 1 else 3
    return Published(
        name, tuple(label_feature.names), bases, channels, cache, cache, command, version=str(builder.version)
    )


def _from_listing(name: str, listing: Listing, cache: Path, selection: Selection, command: str) -> Published:
    """Checks the pictures of a folder, warns of what changed in it, and holds out a test split if it has none."""
    seed, bases = selection.split_seed, {}
    now: dict[str, dict[str, str]] = {}
    for split, (paths, labels) in listing.splits.items():
        source = FileSource.of(listing.root, paths)
        facts = sources.check(source, cache / "facts" / f"{split}.json")
        bases[split] = Base(source, labels, facts, splits.stratified_order(paths, labels, seed), split)
        now[split] = {
            path: f"{listing.class_names[label]}\0{content}"
            for path, label, content in zip(paths, labels, facts.digests, strict=True)
        }
    fingerprint = hashlib.sha256(json.dumps([listing.class_names, now]).encode()).hexdigest()[:16]
    listings.note(cache, fingerprint, now, listing.root)
    amount = listing.hold_out if selection.hold_out is None else selection.hold_out
    if amount and "test" not in bases:
        bases |= _hold_out(bases["train"], amount, seed)
    elif selection.hold_out:
        raise UserError(f"hold_out={selection.hold_out:g} is not needed: {listing.root} has a test split")
    return Published(
        name, listing.class_names, bases, 3, listing.root, cache, command, fingerprint, words=listing.words
    )


def _hold_out(train: Base, amount: float, seed: int) -> dict[str, Base]:
    """The training pictures as a training and a test split."""
    rows = np.flatnonzero(train.facts.decodable)
    out = np.zeros(len(train.labels), bool)
    out[rows] = splits.held_out([train.source.name(row) for row in rows.tolist()], train.labels[rows], amount, seed)
    bases = {}
    for split, chosen in (("train", ~out), ("test", out)):
        # In a new order: what is left of a small class may all be at the end of the order of the whole.
        order = np.flatnonzero(chosen)
        paths = [train.source.name(row) for row in order.tolist()]
        order = order[splits.stratified_order(paths, train.labels[order], seed)]
        bases[split] = dataclasses.replace(train, order=order)
    return bases
