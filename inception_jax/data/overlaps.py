"""Examples that two splits share: the results on one of them flatter a network that was trained on the other."""

import logging
from collections.abc import Iterator, Mapping

import numpy as np

from inception_jax.data import splits
from inception_jax.data.folders import some
from inception_jax.data.published import Published

logger = logging.getLogger(__name__)


def warn_of_shared_examples(ranges: Mapping[str, list[splits.RowRange]]) -> None:
    """Warns of examples that the training split shares with another split.

    Args:
      ranges: by split: its parts of the published splits.
    """
    for split in ranges.keys() - {"train"}:
        shared = splits.count_shared(ranges.get("train", []), ranges[split])
        if shared:
            logger.warning("the splits train and %s share %d examples: its results flatter the network", split, shared)


def warn_of_duplicates(
    found: Published, rows: Mapping[str, np.ndarray], ranges: Mapping[str, list[splits.RowRange]]
) -> None:
    """Warns of pictures in different splits whose files are equal, byte by byte.

    Args:
      found: the data set.
      rows: by published split: the rows that are used, in the order in which splits are cut.
      ranges: by split: its parts of these rows.
    """

    def pictures_of(split: str) -> Iterator[tuple[str, tuple[str, int]]]:
        for part in ranges.get(split, []):
            base = found.bases[part.base]
            for row in rows[part.base][part.start : part.stop].tolist():
                if base.facts.digests[row]:  # of very many items, most have none
                    yield base.facts.digests[row], (base.stored, row)

    order = sorted(ranges, key=lambda split: (split != "train", split != "validation"))
    for place, first in enumerate(order):
        known = dict(pictures_of(first))
        for split in order[place + 1 :]:
            twins = [(known[digest], other) for digest, other in pictures_of(split) if digest in known]
            if twins:  # examples that both splits have are not duplicates
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
                    some(names),
                )
