"""Errors that the person at the keyboard can mend: the shell prints their message, without a traceback."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something given from outside is wrong; the message says what was given, what is allowed, what to do.

    It is one line, whatever was given.
    """

    def __init__(self, message: str):
        lines = str(message).splitlines()
        super().__init__(" ".join(map(str.strip, lines)) if len(lines) > 1 else message)


class UntrustedError(UserError):
    """A folder names code outside the package, and nobody has said that it may be imported and called."""


class WriteError(UserError):
    """A file of the run could not be written: there is no room left, or no permission."""


class LostError(UserError):
    """Another process that this one needs died; the same command may work again."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a `name` that is none of the `known` names of its `kind`, with the nearest of them."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return UserError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(known)}")
