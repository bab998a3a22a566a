"""Matches the classes of two data sets, by a class map or by name."""

import logging
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from inception_jax import files
from inception_jax.errors import UserError

logger = logging.getLogger(__name__)

NAMES_SHOWN = 5  # classes listed in a message


def match_classes(theirs: Sequence[str], ours: Sequence[str], class_map: Mapping[str, str] | None = None) -> np.ndarray:
    """Maps each class of a data set to the network's class: int32 `(len(theirs),)`, -1 where there is none.

    Identical names always match. The remaining classes are compared under successively looser rules: ignoring spaces,
    hyphens and underscores (but "-1" is not "1", nor "1-2" "12"); ignoring case; and, for names that list synonyms
    separated by commas, by the first or any of them. Only one-to-one matches count. If several classes on either side
    are similar, a warning names them, and the data's class is left out.

    Args:
      class_map: our class names keyed by theirs, which override matching by name; two of theirs may map to one of ours.

    Raises:
      UserError: no class matches, or the map names a class that is missing or not unique.
    """
    given = _given_classes(theirs, ours, class_map or {})
    if tuple(theirs) == tuple(ours) and not given:
        return np.arange(len(ours), dtype=np.int32)
    found, doubts = _alike_classes(theirs, ours, [place for place in range(len(theirs)) if place not in given])
    labels = [given.get(place, found.get(place, -1)) for place in range(len(theirs))]
    why = f"ambiguous names: {_some(doubts, '; ')}. Match them with --class-map FILE"
    if max(labels, default=-1) < 0:
        raise UserError(
            f"no class of the data matches a class of the run: the data has {_some(theirs)}; the run has "
            f"{_some(ours)}. " + (why if doubts else "Match them with --class-map FILE")
        )
    if doubts:
        logger.warning("classes are left out: %s", why)
    return np.array(labels, np.int32)


def _given_classes(theirs: Sequence[str], ours: Sequence[str], class_map: Mapping[str, str]) -> dict[int, int]:
    """The class map with indices instead of names."""

    def place(name: str, names: Sequence[str], whose: str) -> int:
        same = [index for index, known in enumerate(names) if known == name]
        # An accent may be a separate character, as in file names on macOS.
        same = same or [index for index, known in enumerate(names) if _canonical(known) == _canonical(name)]
        if len(same) != 1:
            what = "not a class" if not same else "more than one class"
            raise UserError(f"the class map names {name!r}, which is {what} of {whose}: {_some(names)}")
        return same[0]

    given: dict[int, int] = {}
    for name, own in class_map.items():
        label = place(name, theirs, "the data")
        if label in given:
            raise UserError(f"the class map names {name!r} of the data twice")
        given[label] = place(own, ours, "the run")
    return given


def _alike_classes(
    theirs: Sequence[str], ours: Sequence[str], places: Sequence[int]
) -> tuple[dict[int, int], list[str]]:
    """One-to-one matches at these places, {their index: our index}, and a phrase for each ambiguous class."""
    matched: dict[int, int] = {}
    doubts: dict[int, str] = {}
    by_spelling: list[str] = []
    for spelling in SPELLINGS:
        their_keys, our_keys = [spelling(name) for name in theirs], [spelling(name) for name in ours]
        their_places, our_places = _places_of_keys(their_keys, places), _places_of_keys(our_keys, range(len(ours)))
        found: dict[int, int] = {}
        for place in places:
            if place in matched or place in doubts:
                continue
            alike = {label for key in their_keys[place] for label in our_places.get(key, ())}
            if not alike:
                continue
            # Other classes of the data that are similar to these, unless already matched to something else.
            rivals = {other for label in alike for key in our_keys[label] for other in their_places.get(key, ())}
            rivals = {other for other in rivals if other not in matched or matched[other] in alike} - {place}
            if len(alike) > 1 or rivals:
                doubts[place] = _doubt(place, sorted(rivals), sorted(alike), theirs, ours)
            else:
                found[place] = alike.pop()
        if spelling not in SPELLINGS[:2]:
            by_spelling += [f"{theirs[place]!r} is {ours[label]!r}" for place, label in found.items()]
        matched |= found
    if by_spelling:
        logger.info("classes matched despite different spelling: %s", _some(by_spelling))
    return matched, list(doubts.values())


def _places_of_keys(keys: Sequence[Sequence[str]], places: Iterable[int]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for place in places:
        for key in keys[place]:
            found.setdefault(key, []).append(place)
    return found


def _doubt(place: int, rivals: Sequence[int], alike: Sequence[int], theirs: Sequence[str], ours: Sequence[str]) -> str:
    others = f", like {' and '.join(repr(theirs[rival]) for rival in rivals)}," if rivals else ""
    return f"{theirs[place]!r} of the data{others} may be {' or '.join(repr(ours[one]) for one in alike)} of the run"


def read_class_map(path: Path) -> dict[str, str]:
    """Reads a class map from a JSON file: {"their class": "our class"}.

    Raises:
      UserError: it is not a class map, or has a class of the data twice.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"{path} is not a class map: it has {_some([repr(name) for name in twice])} more than once")
        return dict(pairs)

    try:
        content = files.parse_json(path.read_bytes(), pairs=once)
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read the class map {path}: {getattr(error, 'strerror', None) or error}") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content.values()):
        raise UserError(f'{path} is not a class map: it must be JSON such as {{"their class": "our class"}}')
    return content


def _canonical(name: str) -> str:
    """The name with accents combined with their letters (Unicode NFC)."""
    return unicodedata.normalize("NFC", name)


def _joined(name: str) -> str:
    """Removes spaces, hyphens and underscores, except signs, as in -1 and A-, and separators between digits."""

    def left(found: re.Match[str]) -> str:
        before, after = name[: found.start()][-1:], name[found.end() :][:1]
        is_sign = not before or not after or (len(found[0]) > 1 and (after.isdigit() or after == "."))
        return " " * (before.isdigit() and after.isdigit()) + "-" * ("-" in found[0] and is_sign)

    name = _canonical(name)
    return re.sub(r"[\s_-]+", left, name)


def _plain(name: str) -> str:
    return _canonical(_joined(name).casefold())


def _words(name: str) -> list[str]:
    return [word for word in _plain(name).split(",") if word]


# Two names match if they share any of these keys. Strictest rule first.
SPELLINGS: tuple[Callable[[str], Sequence[str]], ...] = (
    lambda name: (name,),
    lambda name: (_canonical(name),),
    lambda name: tuple(filter(None, (_joined(name),))),
    lambda name: tuple(filter(None, (_plain(name),))),
    lambda name: _words(name)[:1],
    _words,
)


def _some(names: Sequence[str], between: str = ", ") -> str:
    return between.join(names[:NAMES_SHOWN]) + (f"{between}..." if len(names) > NAMES_SHOWN else "")
