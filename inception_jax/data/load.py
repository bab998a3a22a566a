"""Loading a data set: prepared, checked, decoded or streamed, and cut into splits."""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from inception_jax.data import arrays, digests, items, overlaps, registry, resident, splits, streaming
from inception_jax.data.dataset import Dataset, Split
from inception_jax.data.decoded import open_decoded
from inception_jax.data.images import Format, convert_arrays
from inception_jax.data.options import Decoding, Location, Selection
from inception_jax.data.published import Base, Published, published
from inception_jax.data.resident import Arrays
from inception_jax.errors import UserError

Rows = Mapping[str, np.ndarray]  # by published split: the rows that are used, in the order in which splits are cut
Ranges = Mapping[str, list[splits.RowRange]]  # by split: its parts of these rows

logger = logging.getLogger(__name__)


def load(
    name: str,
    location: Location | None = None,
    selection: Selection | None = None,
    decoding: Decoding | None = None,
) -> Dataset:
    """A data set, which is prepared first if it is not prepared yet.

    Args:
      name: a name from `DATASETS`, or "module:Name" from outside the package (the current directory is searched, too).
        `Name` is a TFDS builder with one image and one class label per example, which is prepared again when its
        class changes; or it is a dict, or a function without arguments that returns one, of arrays by split, as in
        {"train": (images, labels), "test": (images, labels), "class_names": ("cat", "dog")}: images uint8 (n,
        height, width, channels) or (n, height, width), labels integer (n,), the class names optional. In place of
        arrays it may have data sources, see `items.Items`.
      location: where it is read from and kept; None: the defaults of `Location`. Ignored for arrays.
      selection: which examples, in which splits; None: the defaults of `Selection`, which are the published splits.
        For arrays, its splits alone count; for data sources, also keep and on_error.
      decoding: how pictures become images; None: the defaults of `Decoding`, which convert nothing.

    Raises:
      UserError: an unknown data set or split, an archive that is missing or damaged, a directory that cannot be
        written, arrays or items that are not images and labels.
    """
    location, selection, decoding = location or Location(), selection or Selection(), decoding or Decoding()
    source = registry.resolve(name)
    if not registry.has_pictures(source):
        given = registry.call(name, source) if callable(source) else source
        if not items.has_items(given):
            return _load_arrays(name, given, selection, decoding)
        return _load_published(items.published(name, given, location, selection), selection, decoding)
    return _load_published(published(name, location, selection), selection, decoding)


def from_items(
    given: Mapping[str, items.Items],
    class_names: Sequence[str] | None,
    location: Location,
    selection: Selection,
    decoding: Decoding,
) -> Dataset:
    """A data set of data sources, one for each split.

    Args:
      given: by split.
      class_names: by label; None: those of a Hugging Face `ClassLabel`, else the numbers of the labels.
      location, selection, decoding: as for `load`; the splits of the selection are ignored.

    Raises:
      UserError: as `load`.
    """
    found = items.published("sources", {**given, "class_names": class_names}, location, selection)
    return _load_published(found, dataclasses.replace(selection, splits={name: name for name in given}), decoding)


def _load_published(found: Published, selection: Selection, decoding: Decoding) -> Dataset:
    """As `load`, of pictures that were checked."""
    found.report_errors(selection.on_error)
    form = _whole_format(found, decoding.form(found.channels))
    rows = {base: _kept(part, selection.keep) for base, part in found.bases.items()}
    ranges = _cut(found, rows, selection)
    overlaps.warn_of_shared_examples(ranges)
    overlaps.warn_of_duplicates(found, rows, ranges)
    make: Callable[[list[splits.RowRange]], Split]
    if _is_streamed(found, form, decoding):
        make = partial(_streamed_split, found, form, rows, leave_out=selection.on_error == "leave_out")
    else:
        decoded = items.decoded(found, form) if items.gives_items(found) else open_decoded(found, form)
        make = partial(_resident_split, found, rows, decoded)
    return Dataset(
        name=found.name,
        class_names=found.class_names,
        splits={split: make(parts) for split, parts in ranges.items()},
        statistics_path=found.cache / "statistics" / f"{form}-{_key(found, rows, ranges)}.json",
        fingerprint=found.fingerprint if found.name in registry.DATASETS else _fingerprint(found, rows, ranges),
        cache=found.cache,
        version=found.version,
        words=found.words,
    )


def _load_arrays(name: str, given: Any, selection: Selection, decoding: Decoding) -> Dataset:
    """As `load`, of arrays by split."""
    class_names, bases = arrays.checked(name, given)
    own_channels = next(iter(bases.values()))[0].shape[-1]
    ranges = splits.resolve_all(selection.splits, {base: len(labels) for base, (_, labels) in bases.items()})
    overlaps.warn_of_shared_examples(ranges)
    cut = {split: splits.cut(parts, bases) for split, parts in ranges.items()}
    fingerprint = arrays.fingerprint(class_names, cut)  # of what was given, whatever it is converted to
    if decoding.channels or decoding.image_size or decoding.pad:
        form = decoding.form(own_channels)
        bases = {base: (convert_arrays(images, form), labels) for base, (images, labels) in bases.items()}
        cut = {split: splits.cut(parts, bases) for split, parts in ranges.items()}
    return Dataset(name, class_names, cut, fingerprint=fingerprint)


def _cut(found: Published, rows: Rows, selection: Selection) -> Ranges:
    """The parts of the rows that each split consists of.

    Raises:
      UserError: a split that cannot be read, or in which no picture is left.
    """
    keep = selection.keep
    if keep != "all" and not any(map(len, rows.values())):
        raise UserError(f"data set {found.name!r} has no picture to keep: keep={keep!r} leaves all of them out")
    if selection.splits.get("train") and "train" in rows and not len(rows["train"]):
        left = len(_kept(found.bases["train"], "all"))
        why = f"keep={keep!r} leaves all of them out" if left else "none of them can be decoded"
        raise UserError(f"data set {found.name!r} has no picture for training: {why}")
    # Cut before any picture is left out, so that what is trained on at one value of `keep` is in no validation split
    # at another.
    whole = {base: _kept(part, "all") for base, part in found.bases.items() if len(rows[base])}
    parts_of = splits.resolve_all(selection.splits, {base: len(of) for base, of in whole.items()})
    return {
        split: _narrowed(f"{split} split{splits.by_itself(selection.splits, split)}", parts, whole, rows, keep)
        for split, parts in parts_of.items()
    }


def _key(found: Published, rows: Rows, ranges: Ranges) -> str:
    """Which pictures are trained on: the name of a file with their statistics."""
    key = hashlib.sha256(found.fingerprint.encode() if found.fingerprint else b"")
    for part in ranges.get("train", []):
        key.update(f"{part.base}\0".encode() + rows[part.base][part.start : part.stop].tobytes())
    return key.hexdigest()[:16]


def _fingerprint(found: Published, rows: Rows, ranges: Ranges) -> str:
    """Of the content of what a builder from outside wrote, as its version may stay the same when that changes; or of
    what data sources gave.
    """
    parts = [digests.part("class names", len(found.class_names), digests.of_texts(found.class_names))]
    for split, pieces in ranges.items():
        chosen = [(found.bases[piece.base], rows[piece.base][piece.start : piece.stop]) for piece in pieces]
        content = [base.facts.digests[row] for base, some in chosen for row in some.tolist()]
        labels = [str(base.labels[row]) for base, some in chosen for row in some.tolist()]
        for what, texts in (("pictures", content), ("labels", labels)):
            parts.append(digests.part(f"{split} {what}", len(texts), digests.of_texts(texts)))
    return digests.together(parts)


def _kept(base: Base, keep: str) -> np.ndarray:
    """The rows of a published split that are used, in the order in which splits are cut: int64."""
    wanted = base.facts.decodable.copy()
    if keep != "all":
        wanted &= base.facts.grayscale == (keep == "grayscale")
    return base.order[wanted[base.order]]


def _narrowed(
    what: str,
    parts: list[splits.RowRange],
    whole: Mapping[str, np.ndarray],
    rows: Mapping[str, np.ndarray],
    keep: str,
) -> list[splits.RowRange]:
    """Ranges of the `whole` rows as ranges of the `rows` that are kept, which are a part of them in the same order."""
    kept = []
    for base, start, stop in parts:
        before = np.concatenate([[0], np.cumsum(np.isin(whole[base], rows[base]))])
        if before[start] < before[stop]:
            kept.append(splits.RowRange(base, int(before[start]), int(before[stop])))
    if not kept:
        raise UserError(f"the {what} has no picture to keep: keep={keep!r} leaves all of them out")
    return kept


def _whole_format(found: Published, form: Format) -> Format:
    """The format with the pictures' own size, padded, if none was chosen and all of them have the same."""
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
    if height != width:
        return form
    return dataclasses.replace(form, image_size=height + 2 * form.pad, fit="squash")


def _is_streamed(found: Published, form: Format, decoding: Decoding) -> bool:
    pipeline, memory_gib = decoding.pipeline, decoding.memory_gib
    if form.image_size is None:
        if pipeline == "streaming":
            raise UserError("pictures that are not square cannot be streamed as they are: choose data.image_size")
        return False
    number = sum(int(base.facts.decodable.sum()) for base in found.stored.values())
    gib = number * form.image_size**2 * form.channels / 2**30
    streamed = pipeline == "streaming" or (pipeline == "auto" and gib > memory_gib)
    if pipeline == "auto" and streamed:
        logger.info("data: %.1f GiB decoded are more than data.memory_gib=%g: streaming", gib, memory_gib)
    return streamed


def _streamed_split(
    found: Published, form: Format, rows: Rows, parts: list[splits.RowRange], *, leave_out: bool
) -> streaming.StreamingSplit:
    bases = [found.bases[part.base] for part in parts]
    chosen = [rows[part.base][part.start : part.stop] for part in parts]
    return streaming.StreamingSplit(
        sources=tuple(base.source for base in bases),
        source_of=np.repeat(np.arange(len(parts)), [len(part) for part in chosen]),
        rows=np.concatenate(chosen),
        labels=np.concatenate([base.labels[part] for base, part in zip(bases, chosen, strict=True)]),
        gray=np.concatenate([base.facts.grayscale[part] for base, part in zip(bases, chosen, strict=True)]),
        form=form,
        leave_out=leave_out,
    )


def _resident_split(
    found: Published, rows: Rows, decoded: Mapping[str, Arrays], parts: list[splits.RowRange]
) -> resident.ResidentSplit:
    stored, wholes = {}, {}
    for part in parts:
        base = found.bases[part.base]
        decodable = base.facts.decodable
        # Pictures that cannot be decoded have no row in the arrays.
        stored[part.base] = (np.cumsum(decodable) - 1)[rows[part.base]]
        wholes[part.base] = (*decoded[base.stored], base.facts.grayscale[decodable])
    return splits.cut_rows(parts, stored, wholes)
