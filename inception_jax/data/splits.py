"""Splits in TFDS's notation: which rows of which published split they are."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from inception_jax.data.resident import Arrays, Split
from inception_jax.errors import UserError, unknown_name


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


def cut(ranges: list[Range], bases: Mapping[str, Arrays]) -> Split:
    """The examples of the `ranges`, in their order; they are copied only where they are of several published splits."""
    images, labels = bases[ranges[0].base]
    if len(ranges) == 1:
        return Split(images, labels, slice(ranges[0].start, ranges[0].stop))
    if len({part.base for part in ranges}) == 1:
        return Split(images, labels, np.concatenate([np.arange(part.start, part.stop) for part in ranges]))
    parts = [(part.base, slice(part.start, part.stop)) for part in ranges]
    return Split(*(np.concatenate([bases[base][i][rows] for base, rows in parts]) for i in (0, 1)))


def count_shared(ranges: list[Range], others: list[Range]) -> int:
    """How many examples of `ranges` are in `others`, too."""
    return sum(
        max(0, min(part.stop, other.stop) - max(part.start, other.start))
        for part in ranges
        for other in others
        if part.base == other.base
    )
