"""Looking for pictures in folders: by their names alone, following links, passing over hidden files."""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from inception_jax.data.images import FORMATS, SUFFIXES
from inception_jax.errors import UserError

PICTURES = tuple(suffix for name in FORMATS for suffix in SUFFIXES[name])
# Left by the file managers of macOS, Synology and Windows; names that start with a dot are hidden, too.
HIDDEN = frozenset(("__MACOSX", "@eaDir", "Thumbs.db", "desktop.ini"))
ENDINGS_SHOWN = 12  # of files that are left out

logger = logging.getLogger(__name__)


class Scan:
    """Finds the pictures below folders of `root`, and counts the other files."""

    def __init__(self, root: Path):
        self.root = root
        self.others: Counter[str] = Counter()

    def pictures(self, folder: Path | str) -> Iterator[str]:
        """The paths of the pictures below a folder, relative to the root; a folder with several links counts once."""
        place = Path(folder).relative_to(self.root).as_posix()
        seen = set() if place == "." else {_identity(self.root)}
        return self._walk(folder, "" if place == "." else f"{place}/", seen)

    def _walk(self, folder: Path | str, prefix: str, seen: set[tuple[int, int]]) -> Iterator[str]:
        identity = _identity(folder)
        if identity in seen:  # a link to a folder above
            return
        seen.add(identity)
        for entry in entries(folder):
            if is_folder(entry):
                yield from self._walk(entry.path, f"{prefix}{entry.name}/", seen)
            elif self._is_picture(entry):
                yield prefix + entry.name

    def _is_picture(self, entry: os.DirEntry[str]) -> bool:
        suffix = ending(entry.name)
        if suffix in PICTURES and _is_readable(entry):
            return True
        self.others[suffix or "none"] += 1
        return False

    def report(self) -> None:
        """Warns of the files that are not pictures by their names."""
        if self.others:
            endings = ", ".join(f"{suffix} ({count})" for suffix, count in self.others.most_common(ENDINGS_SHOWN))
            logger.warning(
                "%s: %d files do not end like pictures and are left out: %s", self.root, self.others.total(), endings
            )


def entries(folder: Path | str) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden, sorted by name.

    Raises:
      UserError: it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            shown = [entry for entry in entries if not (entry.name.startswith(".") or entry.name in HIDDEN)]
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror or error}") from error
    return sorted(shown, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one."""
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()  # is_dir() raises for a link to itself


def ending(name: str) -> str:
    """What a file's name ends in, in lower case, e.g. ".jpg"."""
    return os.path.splitext(name)[1].lower()


def _is_readable(entry: os.DirEntry[str]) -> bool:
    """False for a pipe, which would block forever. A dangling link counts as a picture that is damaged."""
    if entry.is_symlink():
        return os.path.isfile(entry.path) or not os.path.exists(entry.path)
    return entry.is_file()


def _identity(folder: Path | str) -> tuple[int, int]:
    try:
        status = os.stat(folder)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror or error}") from error
    return status.st_dev, status.st_ino
