"""Splits in TFDS's notation: which rows of which published split they are."""

import logging
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from inception_jax.data.resident import Arrays, Split
from inception_jax.errors import UserError, unknown_name

logger = logging.getLogger(__name__)


class Range(NamedTuple):
    """The examples from `start` up to, but without, `stop` of a published split."""

    base: str
    start: int
    stop: int


def resolve(spec: str, sizes: Mapping[str, int]) -> list[Range]:
    """The parts of `spec`, e.g. "train", "train[:90%]", "train[45000:]", "train[:10%]+test", "all".

    TFDS reads the notation (https://www.tensorflow.org/datasets/splits): a share that is no whole number of
    examples is rounded to the closest.

    Args:
      spec: the split.
      sizes: the number of examples of each published split.

    Raises:
      UserError: it cannot be read, names no published split, goes beyond one, or holds no example.
    """
    infos = {base: tfds.core.SplitInfo(name=base, shard_lengths=[size], num_bytes=0) for base, size in sizes.items()}
    known = ", ".join(f"{base} ({size} examples)" for base, size in sizes.items())
    hint = f"write e.g. 'train[:90%]', 'train[45000:]' or 'test'; there are: {known}"
    for part in spec.split("+"):
        base = part.partition("[")[0].strip()
        if base and base not in (*sizes, "all"):
            raise unknown_name("split", base, (*sizes, "all"))
    try:
        instructions = tfds.core.ReadInstruction.from_spec(spec.strip()).to_absolute(infos)
    except Exception as error:  # TFDS raises whatever the parsing met: ValueError, AssertionError, TypeError, ...
        raise UserError(f"split {spec!r} is not allowed: {hint}") from error
    ranges = [
        Range(part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
        for part in instructions
    ]
    if any(part.start >= part.stop for part in ranges):
        raise UserError(f"split {spec!r} holds no example, or a part of it holds none: {hint}")
    return ranges


def resolve_all(specs: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, list[Range]]:
    """`resolve` for every split that is wanted; "" is none.

    "auto" is the published split of that name, in full; of validation, where it is not published, the last 10 % of the
    training split, but at least one example, which is then cut to the others; of test, where it is not published, none.
    Of a training split of one example there is no validation split, which a warning says.

    Raises:
      UserError: as `resolve`, and which split it is.
    """
    known = "validation" in sizes
    at = min(resolve("train[:90%]", sizes)[0].stop, sizes["train"] - 1) if sizes.get("train") else 0
    if not known and sizes.get("train") == 1 and specs.get("validation") == "auto":
        logger.warning("the training split has one example: there is no validation split")
        specs = {split: spec for split, spec in specs.items() if split != "validation"}
    auto = {
        "train": "train" if known or specs.get("validation") != "auto" else f"train[:{at}]",
        "validation": "validation" if known else f"train[{at}:]",
        "test": "test" if "test" in sizes else "",
    }
    chosen = {split: auto.get(split, split) if spec == "auto" else spec for split, spec in specs.items()}
    ranges = {}
    for split, spec in chosen.items():
        if spec:
            try:
                ranges[split] = resolve(spec, sizes)
            except UserError as error:
                raise UserError(f"data.splits.{split}{by_itself(specs, split)}: {error}") from error
    return ranges


def by_itself(specs: Mapping[str, str], split: str) -> str:
    """What a message adds about a split that nobody chose, and how to do without."""
    if split == "train" or specs.get(split) != "auto":
        return ""
    return f", chosen by itself (--config.data.splits.{split}= does without it)"


def cut(ranges: list[Range], bases: Mapping[str, Arrays]) -> Split:
    """The examples of the `ranges`, in their order; they are copied only where they are of several published splits."""
    return cut_rows(
        ranges,
        {base: np.arange(len(labels)) for base, (_, labels) in bases.items()},
        {base: (*arrays, None) for base, arrays in bases.items()},
    )


def cut_rows(
    ranges: list[Range],
    rows: Mapping[str, np.ndarray],
    bases: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]],
) -> Split:
    """As `cut`, where a published split is some `rows` (int64) of (images, labels, gray), in an order of its own."""
    parts = [(bases[part.base], rows[part.base][part.start : part.stop]) for part in ranges]
    (images, labels, gray), chosen = parts[0]
    if len({id(whole[0]) for whole, _ in parts}) == 1:
        chosen = np.concatenate([chosen for _, chosen in parts])
        first = int(chosen[0])
        if np.array_equal(chosen, np.arange(first, first + len(chosen))):
            return Split(images, labels, slice(first, first + len(chosen)), gray)
        return Split(images, labels, chosen, gray)
    images = np.concatenate([whole[0][chosen] for whole, chosen in parts])
    labels = np.concatenate([whole[1][chosen] for whole, chosen in parts])
    grays = [whole[2][chosen] for whole, chosen in parts if whole[2] is not None]
    return Split(images, labels, gray=np.concatenate(grays) if len(grays) == len(parts) else None)


def count_shared(ranges: list[Range], others: list[Range]) -> int:
    """How many examples of `ranges` are in `others`, too."""
    return sum(
        max(0, min(part.stop, other.stop) - max(part.start, other.start))
        for part in ranges
        for other in others
        if part.base == other.base
    )
