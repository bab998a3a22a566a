"""The words by which people know a class whose folder is named otherwise: from classes.txt, or ImageNet's for a synset.

A class is identified by the name of its folder. Words are only shown.
"""

import logging
import unicodedata
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from inception_jax.data import synsets
from inception_jax.files import regular_file

NAME = "classes.txt"

logger = logging.getLogger(__name__)


def shown_names(class_names: Sequence[str], words: Sequence[str] = ()) -> tuple[str, ...]:
    """A unique name for people for each class: its words, or else those of `synsets.readable_names`."""
    return tuple(words) or synsets.readable_names(class_names)


def read_words(folder: Path, known: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """The words of the classes in a folder's `classes.txt`; () if it has none, or one that does not fit (a warning).

    A line of the file is the name of a class, a space or a tab, and words; other lines are ignored. Or each line is
    the words of a class, and there are as many as classes.

    Args:
      folder: with the file, in UTF-8.
      known: the names of all classes, sorted as their labels are.
      classes: which of them are used, in the order of the labels. Those that the file does not name have the name that
        they have without the file.
    """
    path = folder / NAME
    if not path.is_file():
        return ()
    try:
        text = unicodedata.normalize("NFC", regular_file(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        logger.warning("%s is not used: %s", path, getattr(error, "strerror", None) or "it is not in UTF-8")
        return ()
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if set(lines) <= set(known):  # a list of the folders
        return ()
    words = dict(pair for line in lines if (pair := _named(line, set(known))))
    if not words:
        elsewhere = [line for line, name in zip(lines, known, strict=False) if line in known and line != name]
        if len(lines) != len(known) or elsewhere:
            logger.warning(
                "%s is not used: no line begins with the name of a class, and its %d lines are not those of the %d "
                "classes in the order of their names", path, len(lines), len(known),
            )  # fmt: skip
            return ()
        words = dict(zip(known, lines, strict=True))
    chosen = [words.get(name, other) for name, other in zip(classes, synsets.readable_names(classes), strict=True)]
    counts = Counter(chosen)
    return tuple(word if counts[word] == 1 else f"{word} {name}" for word, name in zip(chosen, classes, strict=True))


def _named(line: str, known: Collection[str]) -> tuple[str, str] | None:
    """The class and the words of a line; None if it does not begin with the name of a class, which may have spaces."""
    ends = [place for place, letter in enumerate(line) if letter.isspace()]
    for end in reversed(ends):
        name = line[:end].rstrip()
        if name in known:
            return name, " ".join(line[end:].split())
    return None
