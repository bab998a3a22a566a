"""Published archives: downloaded, or found in the user's folder, and read only if they have the published content."""

import dataclasses
import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import tensorflow_datasets as tfds

from inception_jax import downloads
from inception_jax.errors import UserError
from inception_jax.files import whole_file

NAMES = {"md5": "MD5", "sha256": "SHA-256"}
CONNECT_SECONDS = 10  # until a server counts as unreachable
MOST_BYTES = 2 * 10**9  # of a download; the largest archive has 332 MB
MOST_SECONDS = 12 * 3600.0  # of a download: 8 kB/s for the largest archive
USE_ARCHIVES = "give a folder that has them, by --archives (inception-jax data) or --config.data.archives (training)"


@dataclasses.dataclass(frozen=True)
class Content:
    """A file's expected content, after unpacking unless stated otherwise (repacking does not change it).

    Attributes:
      size: in bytes.
      digest: its SHA-256 in hexadecimal, or its MD5 if only that was published: sufficient against damage and mix-ups.
    """

    size: int
    digest: str

    @property
    def algorithm(self) -> str:
        """hashlib's name of the digest's algorithm, inferred from its length."""
        return "md5" if len(self.digest) == 32 else "sha256"


def given_folder(dl_manager: tfds.download.DownloadManager) -> Path | None:
    """The folder with archives that the user gave, or None. The builder needs MANUAL_DOWNLOAD_INSTRUCTIONS."""
    try:
        return Path(dl_manager.manual_dir)
    except AssertionError:  # raised by TFDS if there is none
        return None


def find(folder: Path, names: Sequence[str]) -> Path | None:
    """The first file with one of the `names` in `folder` or one level below."""
    return next(iter(find_all(folder, names)), None)


def find_all(folder: Path, names: Sequence[str]) -> list[Path]:
    """Like `find`, but returns all of them."""
    try:
        places = (folder, *sorted(path for path in folder.iterdir() if path.is_dir()))
        return [place / name for place in places for name in names if (place / name).is_file()]
    except OSError as error:
        raise UserError(f"cannot look for archives in {folder}: {error.strerror or error}") from error


def require(folder: Path, names: Sequence[str]) -> Path:
    """Like `find`, but raises UserError if there is no such file."""
    path = find(folder, names)
    if path is None:
        raise UserError(f"no {' or '.join(names)} in {folder} or in a folder of it: {USE_ARCHIVES}")
    return path


def download(dl_manager: tfds.download.DownloadManager, urls: dict[str, str]) -> dict[str, Path]:
    """The downloaded files, by the keys of `urls`; those that are there already are kept.

    They come through `downloads.download`, not TFDS, which would follow a redirect to an unencrypted address and read
    whatever a server sends.

    Raises:
      UserError: the server is unreachable (detected in seconds), redirects to an unencrypted URL, or sends more or for
        longer than allowed.
      WriteError: the disk is full.
    """
    for url in urls.values():
        try:
            with downloads.open_url(url, method="HEAD", seconds=CONNECT_SECONDS):
                break  # all files are on one server
        except (OSError, *downloads.FAILURES) as error:
            reason = downloads.reason(error)
            raise UserError(f"cannot download {url} ({reason}); without network access, {USE_ARCHIVES}") from error
    folder = Path(dl_manager.download_dir)
    return {key: _downloaded(url, folder) for key, url in urls.items()}


def _downloaded(url: str, folder: Path) -> Path:
    """The file of a URL in the folder of downloads. Files of several URLs may have the same name."""
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:12]}-{PurePosixPath(urlsplit(url).path).name}"
    if path.exists():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as new:
        try:
            downloads.download(url, new, most_bytes=MOST_BYTES, most_seconds=MOST_SECONDS)
        except downloads.FAILURES as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"the download failed ({reason}); try again, or {USE_ARCHIVES}") from error
    return path


def read(path: Path, content: Content) -> bytes:
    """The content of a file, gzipped or not. Raises UserError if it is not the expected `content`."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with gzip.open(path) if packed else path.open("rb") as file:
            data = file.read(content.size + 1)  # stops early if a file unpacks to more
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged ({error}): {_get_again(path)}") from error
    return _checked(data, content, path, str(path))


def read_found(folder: Path, names: Sequence[str], content: Content) -> bytes:
    """The first file with one of the `names` and the expected `content`, in `folder` or one level below.

    Names are not unique: MNIST and Fashion-MNIST use the same ones.

    Raises:
      UserError: there is none; the message says what is wrong with those that have the name.
    """
    require(folder, names)
    wrong = []
    for path in find_all(folder, names):
        try:
            return read(path, content)
        except UserError as error:
            wrong.append(str(error))
    raise UserError("; ".join(wrong))


def check_packed(path: Path, content: Content) -> None:
    """Raises UserError unless a packed archive is the expected `content`."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest = hashlib.file_digest(file, content.algorithm).hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    for what, found, published in (("size", size, content.size), (content.algorithm, digest, content.digest)):
        if found != published:
            raise UserError(
                f"{path} is not the published archive: its {NAMES.get(what, what)} is {found}, expected {published}: "
                f"{_get_again(path)}, or unpack it if it was repacked"
            )


def read_members(path: Path, contents: dict[str, Content]) -> dict[str, bytes]:
    """The files of a tar archive with the names in `contents`, in any folder; nothing is written to disk.

    Raises:
      UserError: the archive is damaged, or a file is missing or has the wrong content.
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
    digest = hashlib.new(content.algorithm, data, usedforsecurity=False).hexdigest()
    if digest != content.digest:
        raise UserError(
            f"{what} is not the published file: the {NAMES[content.algorithm]} of its unpacked bytes is {digest}, "
            f"expected {content.digest}: {_get_again(path)}"
        )
    return data


def _get_again(path: Path) -> str:
    return f"remove {path.name} and get it again"
