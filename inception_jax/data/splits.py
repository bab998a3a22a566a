"""Splits: which rows of which published split they are, in TFDS's notation; what is held out, and in which order."""

import hashlib
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from inception_jax.data.folders import some
from inception_jax.data.resident import Arrays, ResidentSplit
from inception_jax.errors import UserError, unknown_name

logger = logging.getLogger(__name__)


class RowRange(NamedTuple):
    """The examples from `start` up to, but without, `stop` of a published split."""

    base: str
    start: int
    stop: int


def resolve(spec: str, sizes: Mapping[str, int]) -> list[RowRange]:
    """The parts of `spec`, e.g. "train", "train[:90%]", "train[45000:]", "train[:10%]+test", "all".

    TFDS parses the notation (https://www.tensorflow.org/datasets/splits): a share that is not a whole number of
    examples is rounded to the nearest.

    Args:
      spec: the split.
      sizes: the number of examples of each published split.

    Raises:
      UserError: it cannot be parsed, names a split that is not published, exceeds one, or holds no example.
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
        RowRange(part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
        for part in instructions
    ]
    if any(part.start >= part.stop for part in ranges):
        raise UserError(f"split {spec!r} holds no example, or a part of it holds none: {hint}")
    return ranges


def resolve_all(specs: Mapping[str, str], sizes: Mapping[str, int]) -> dict[str, list[RowRange]]:
    """`resolve` for every split that is wanted; "" leaves a split out.

    "auto" is the published split of that name. If there is no published validation split, it is the last 10 % of the
    training split, at least one example, and the training split is the rest; if there is no published test split, there
    is none. A training split of a single example has no validation split, with a warning.

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
    """The part of a message about a split that was chosen by default, and how to do without it."""
    if split == "train" or specs.get(split) != "auto":
        return ""
    return f", chosen automatically (--config.data.splits.{split}= leaves it out)"


def cut(ranges: list[RowRange], bases: Mapping[str, Arrays]) -> ResidentSplit:
    """The examples of the `ranges`, in this order; copied only if they are from several published splits."""
    return cut_rows(
        ranges,
        {base: np.arange(len(labels)) for base, (_, labels) in bases.items()},
        {base: (*arrays, None) for base, arrays in bases.items()},
    )


def cut_rows(
    ranges: list[RowRange],
    rows: Mapping[str, np.ndarray],
    bases: Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray | None]],
) -> ResidentSplit:
    """As `cut`, for published splits that are `rows` (int64) of (images, labels, gray), in any order."""
    parts = [(bases[part.base], rows[part.base][part.start : part.stop]) for part in ranges]
    (images, labels, gray), chosen = parts[0]
    if len({id(whole[0]) for whole, _ in parts}) == 1:
        chosen = np.concatenate([chosen for _, chosen in parts])
        first = int(chosen[0])
        if np.array_equal(chosen, np.arange(first, first + len(chosen))):
            return ResidentSplit(images, labels, slice(first, first + len(chosen)), gray)
        return ResidentSplit(images, labels, chosen, gray)
    images = np.concatenate([whole[0][chosen] for whole, chosen in parts])
    labels = np.concatenate([whole[1][chosen] for whole, chosen in parts])
    grays = [whole[2][chosen] for whole, chosen in parts if whole[2] is not None]
    return ResidentSplit(images, labels, gray=np.concatenate(grays) if len(grays) == len(parts) else None)


def count_shared(ranges: list[RowRange], others: list[RowRange]) -> int:
    """The number of examples of `ranges` that are also in `others`."""
    return sum(
        max(0, min(part.stop, other.stop) - max(part.start, other.start))
        for part in ranges
        for other in others
        if part.base == other.base
    )


def held_out(paths: Sequence[str], labels: np.ndarray, amount: float, seed: int) -> np.ndarray:
    """Which pictures are held out of training: bool `(n,)`.

    In each class, those with the smallest hash of the seed and the path, so that adding or removing a picture changes
    the choice of at most one other.

    Args:
      paths: of the pictures.
      labels: int `(n,)`.
      amount: 1 or more: this number of each class. Below 1: this share of each class, rounded, but at least one if the
        class has two pictures or more, and never all of them. 0: none.
      seed: determines the choice.

    Raises:
      UserError: the amount is negative, or above 1 and not whole; or a class has too few pictures to keep one for
        training; the message names a picture of such classes.
    """
    if not (0 <= amount < 1 or float(amount).is_integer()) or amount < 0:
        raise UserError(f"hold_out={amount!r} is not allowed: it is a number of pictures of each class, or a share < 1")
    ranks, sizes = _ranks(paths, labels, seed)
    if amount >= 1:
        few = np.flatnonzero((ranks == 0) & (sizes <= amount)).tolist()
        if len(few):
            examples = some([f"{sizes[row]} as {paths[row]}" for row in few])
            raise UserError(
                f"hold_out={amount:g} of each class leaves nothing to train on of {len(few)} classes that have too few "
                f"pictures: {examples}; hold out fewer, or a share such as 0.1"
            )
        return ranks < amount
    counts = np.floor(amount * sizes + 0.5)
    return ranks < np.clip(counts, min(amount > 0, 1), sizes - 1)


def stratified_order(paths: Sequence[str], labels: np.ndarray, seed: int) -> np.ndarray:
    """An order of the pictures, int64 `(n,)`, every part of which holds the classes in proportion.

    The k pictures of a class are at (0.5, 1.5, ..., k - 0.5) / k of the way, sorted by a hash of the seed and the path.
    So the first m of n pictures hold m k / n of the class to within (1 + classes k / n) / 2 pictures, which is one if
    all classes have the same size; any other part, to within twice that. The only picture of a class is in the middle,
    and so in training.

    Adding or removing a picture moves the others of its class by at most one of k places, and the rest hardly at all.

    Args:
      paths: of the pictures.
      labels: int `(n,)`.
      seed: determines the order.
    """
    ranks, sizes = _ranks(paths, labels, seed)
    return np.lexsort((_hashes(paths, seed), (ranks + 0.5) / np.maximum(sizes, 1))).astype(np.int64)


def _ranks(paths: Sequence[str], labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The place of each picture in its class, sorted by hash, and the size of its class: int64 `(n,)`."""
    order = np.lexsort((_hashes(paths, seed), labels))
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    ranks, sizes = np.empty((2, len(labels)), np.int64)
    ranks[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    sizes[order] = np.repeat(counts, counts)
    return ranks, sizes


def _hashes(paths: Sequence[str], seed: int) -> np.ndarray:
    """uint64 `(n,)`, the same on every machine."""
    # macOS writes accented letters in a different Unicode form than other systems.
    texts = (f"{seed}/{unicodedata.normalize('NFC', path)}".encode(errors="surrogateescape") for path in paths)
    digests = (hashlib.blake2b(text, digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)
