"""Published image files in a folder, or in a zip archive that is read in place."""

import dataclasses
import itertools
import os
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from inception_jax.data import archives, images
from inception_jax.data.archives import Content
from inception_jax.errors import UserError

NAMES_SHOWN = 3  # names shown for missing files


@dataclasses.dataclass(frozen=True)
class Files:
    """Files of a folder, or of a folder in an archive.

    Attributes:
      where: the folder or the archive.
      names: POSIX paths.
      content: name -> the file's content; raises OSError and other errors if it cannot be read.
    """

    where: Path
    names: frozenset[str]
    content: Callable[[str], bytes]

    def require(self, names: Iterable[str]) -> None:
        """Raises UserError with the missing names unless all files exist."""
        missing = [name for name in names if name not in self.names]
        if missing:
            shown = ", ".join(missing[:NAMES_SHOWN]) + (", ..." if len(missing) > NAMES_SHOWN else "")
            raise UserError(f"{self.where} lacks {len(missing)} of the published files: {shown}: get it again")

    def read(self, name: str) -> bytes:
        """The content of a file. Raises UserError if it is missing or cannot be read."""
        self.require([name])
        try:
            return self.content(name)
        except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
            raise UserError(f"{name} in {self.where} cannot be read ({error}): get it again") from error

    def read_rows(self, name: str, columns: int) -> list[list[str]]:
        """The lines of a text file, split at tabs. Raises UserError if one has fewer columns."""
        rows = [line.split("\t") for line in self.read(name).decode(errors="replace").splitlines() if line.strip()]
        for row in rows:
            if len(row) < columns:
                raise UserError(f"{name} in {self.where} is not the published file: it has a line {row}: get it again")
        return rows

    def read_picture(self, name: str) -> tuple[bytes, tuple[int, int]]:
        """An image file's bytes and the image's (height, width). Raises UserError if it cannot be decoded."""
        content = self.read(name)
        try:
            height, width, _ = images.verify(content)
        except Exception as error:  # Pillow raises many error types for broken files
            why = images.reason(error) if content else "it is empty"
            raise UserError(f"{name} in {self.where} cannot be decoded ({why}): get it again") from error
        return content, (height, width)


def in_folder(root: Path) -> Files:
    """The files below a folder."""
    found = (
        Path(folder, name).relative_to(root).as_posix()
        for folder, _, names in os.walk(root, followlinks=True)
        for name in names
    )
    return Files(root, frozenset(found), lambda name: images.read_file(root / name))


def in_zip(path: Path, content: Content, root: str) -> Files:
    """The files below a folder in a zip archive; nothing is written to disk.

    Args:
      path: the archive.
      content: expected content of the packed archive; otherwise a UserError is raised.
      root: the folder, with a trailing slash.
    """
    archives.check_packed(path, content)
    archive = zipfile.ZipFile(path)  # closed when it is no longer referenced
    names = (name.removeprefix(root) for name in archive.namelist() if name.startswith(root))
    return Files(path, frozenset(names), lambda name: archive.read(root + name))


def in_rounds(classes: Sequence[Sequence[str]]) -> list[tuple[str, int]]:
    """(name, label) for all files: the first file of each class, then the second of each, and so on.

    Hence every slice of a split, such as its last 10 %, contains the classes in proportion; sorted by class it would
    contain only some of them.
    """
    rounds = itertools.zip_longest(*classes)
    return [(name, label) for names in rounds for label, name in enumerate(names) if name is not None]
