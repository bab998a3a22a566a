"""Published archives: downloaded, or found in a person's folder, and read only if they hold what was published."""

import dataclasses
import gzip
import hashlib
import ssl
import tarfile
import urllib.request
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download.download_manager import NonMatchingChecksumError
from tensorflow_datasets.core.download.util import DownloadError

from inception_jax.errors import UserError

CONNECT_SECONDS = 10  # until a server counts as out of reach
USE_ARCHIVES = "give a folder that has them, by --archives (prepare) or --config.data.archives (training)"


@dataclasses.dataclass(frozen=True)
class Content:
    """What a file holds once unpacked: its size in bytes and its SHA-256 (packing again keeps both)."""

    size: int
    sha256: str


def given_folder(dl_manager: tfds.download.DownloadManager) -> Path | None:
    """The folder with archives that the person named, or None. The builder needs MANUAL_DOWNLOAD_INSTRUCTIONS."""
    try:
        return Path(dl_manager.manual_dir)
    except AssertionError:  # TFDS's way to say that there is none
        return None


def find(folder: Path, names: Sequence[str]) -> Path | None:
    """The first file with one of the `names` in `folder` or one level below."""
    try:
        places = (folder, *sorted(path for path in folder.iterdir() if path.is_dir()))
        return next((place / name for place in places for name in names if (place / name).is_file()), None)
    except OSError as error:
        raise UserError(f"cannot look for archives in {folder}: {error.strerror or error}") from error


def require(folder: Path, names: Sequence[str]) -> Path:
    """As `find`, but a file that is not there is a UserError."""
    path = find(folder, names)
    if path is None:
        raise UserError(f"no {' or '.join(names)} in {folder} or in a folder of it: {USE_ARCHIVES}")
    return path


def download(dl_manager: tfds.download.DownloadManager, urls: dict[str, str]) -> dict[str, Path]:
    """The downloaded files, by the keys of `urls`.

    Raises:
      UserError: the server is out of reach (found out in seconds; TFDS on its own tries for minutes), or what it
        sent is not what TFDS knows of the address.
    """
    for url in urls.values():
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=CONNECT_SECONDS):
                break  # all files are on one server
        except OSError as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLError):
                break  # TFDS brings certificates of its own
            raise UserError(f"cannot download {url} ({reason}); without a network, {USE_ARCHIVES}") from error
    try:
        paths: Any = dl_manager.download(urls)
        return {key: Path(path) for key, path in paths.items()}
    except (OSError, DownloadError, NonMatchingChecksumError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"the download failed ({reason}); try again, or {USE_ARCHIVES}") from error


def read(path: Path, content: Content) -> bytes:
    """What a file holds, gzip'ed or not; a UserError if that is not the `content`."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            data = file.read(content.size + 1)  # a file that unpacks to more is not read to its end
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): {_get_again(path)}") from error
    return _checked(data, content, path, str(path))


def read_members(path: Path, contents: dict[str, Content]) -> dict[str, bytes]:
    """The files of a tar archive that have the names in `contents`, in whatever folder; nothing is written to disk.

    Raises:
      UserError: the archive is damaged, a file is missing or does not hold what it should.
    """
    found = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                if name in contents and member.isfile():
                    file = archive.extractfile(member)
                    data = file.read(contents[name].size + 1) if file else b""
                    found[name] = _checked(data, contents[name], path, f"{name} in {path}")
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UserError(f"{path} is damaged ({error}): {_get_again(path)}") from error
    missing = [name for name in contents if name not in found]
    if missing:
        raise UserError(f"{path} lacks {', '.join(missing)}: {_get_again(path)}")
    return found


def _checked(data: bytes, content: Content, path: Path, what: str) -> bytes:
    if len(data) != content.size:
        size = f"more than {content.size}" if len(data) > content.size else len(data)
        raise UserError(f"{what} holds {size} bytes unpacked, not the published {content.size}: {_get_again(path)}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != content.sha256:
        raise UserError(
            f"{what} is not the published file: the SHA-256 of its unpacked bytes is {digest}, "
            f"expected {content.sha256}: {_get_again(path)}"
        )
    return data


def _get_again(path: Path) -> str:
    return f"remove {path.name} and get it again"
