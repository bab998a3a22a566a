"""Errors that the user can fix: the command line prints their message without a traceback."""

import difflib
import os
import traceback
from collections.abc import Collection, Iterable
from typing import Any


class UserError(ValueError):
    """Invalid input; the message says what was given, what is allowed and what to do.

    The message is always a single line.
    """

    def __init__(self, message: str):
        lines = str(message).splitlines()
        super().__init__(" ".join(map(str.strip, lines)) if len(lines) > 1 else message)

    def _render_traceback_(self) -> list[str]:
        """What a notebook shows, in place of a traceback."""
        return [f"{type(self).__name__}: {self}"]


class UntrustedError(UserError):
    """A folder names code outside the package, and the user has not allowed it to be imported and called."""


class WriteError(UserError):
    """A file of the run could not be written: the disk is full, or permission is missing."""


class LostError(UserError):
    """Another process that this one depends on died; running the same command again may succeed."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a `name` that is not one of the `known` names of its `kind`; it suggests the closest ones."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return UserError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}")


def check_choice(kind: str, value: Any, allowed: Collection[Any]) -> None:
    """Raises UserError if the `value` of the option `kind` is not one of those `allowed`."""
    if value in allowed:
        return
    if isinstance(value, str):
        raise unknown_name(kind, value, map(str, allowed))
    raise UserError(f"{kind}={value!r} is not allowed: choose one of {', '.join(map(str, allowed))}")


def described(error: Exception) -> str:
    """What somebody else's code raised, and where, on one line: "raised ValueError: no room (mine.py, line 7)"."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split())
    return f"raised {type(error).__name__}: {said} ({os.path.basename(frame.filename)}, line {frame.lineno})"
