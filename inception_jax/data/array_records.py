"""Data sets that TFDS builders write as ArrayRecord files: prepared once, verified, and opened again."""

import contextlib
import errno
import hashlib
import inspect
import io
import logging
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.registered import skip_registration

from inception_jax import files
from inception_jax.data import digests, resident, storage
from inception_jax.data.options import Location
from inception_jax.data.registry import DATASETS
from inception_jax.data.sources import RecordSource
from inception_jax.errors import UserError

OURS = frozenset((digests.NAME, "undecodable.txt"))  # files beside those that TFDS wrote
READ_CHUNK = 64  # records that are read at a time

logger = logging.getLogger(__name__)


def prepared(
    name: str, source: type[tfds.core.DatasetBuilder], location: Location, command: str
) -> tfds.core.DatasetBuilder:
    """A builder whose ArrayRecord files are written; one process writes them, and others wait for it.

    Args:
      name: of the data set.
      source: the builder's class.
      location: its directory and archives; the folder is ignored.
      command: prepares the data set; messages name it.

    Raises:
      UserError: the archives are missing or damaged, the directory cannot be written, or what was written is damaged.
    """
    directory = _directory(name, source, location.directory)
    source = _as_prepared(source, directory)
    folder = _folder_of(source, directory)
    if folder.exists():
        return _opened(source, directory, command)
    archives = None
    if location.archives is not None:
        archives = files.expand(location.archives, "archives")
        if not archives.is_dir() or not any(archives.iterdir()):
            raise UserError(f"archives={str(archives)!r} is not a directory with files in it")
    logger.info("preparing %s in %s", name, folder)
    with storage.writing_to(directory):
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    with files.locked(directory / f".{source.name}.lock"):
        if folder.exists():
            return _opened(source, directory, command)
        for left in folder.parent.glob("incomplete.*"):  # from a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        builder = source(data_dir=directory)
        with _room_for(folder), _quiet():
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(manual_dir=archives, try_download_gcs=False),
                file_format="array_record",
            )
        with storage.writing_to(folder):
            digests.seal(folder, written(folder))
    return source(data_dir=directory)


def written(folder: Path) -> list[str]:
    """The names of the files that TFDS wrote, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name not in OURS)


def image_and_label(
    builder: tfds.core.DatasetBuilder,
) -> tuple[tuple[str, tfds.features.Image], tuple[str, tfds.features.ClassLabel]]:
    """The features of the builder's examples that are the image and its class, each with its name.

    Raises:
      UserError: its `supervised_keys`, or else "image" and "label", are not such features.
    """
    features: Any = builder.info.features
    keys: Any = builder.info.supervised_keys or ("image", "label")
    found = [
        (key, features[key])
        for key, kind in zip(keys, (tfds.features.Image, tfds.features.ClassLabel), strict=False)
        if isinstance(key, str) and key in features and isinstance(features[key], kind)
    ]
    if len(found) != 2:
        raise UserError(
            f"data set {builder.name!r} has no image and class label: its supervised_keys must name a "
            "tfds.features.Image and a tfds.features.ClassLabel, or these must be called 'image' and 'label'"
        )
    return found[0], found[1]


def record_labels(records: RecordSource, key: str, path: Path, num_classes: int) -> np.ndarray:
    """The labels of a split that TFDS wrote: int32 `(n,)`, kept in the file `path`."""

    def check(content: Any) -> np.ndarray:
        labels = np.array(content)
        if (
            labels.shape != (len(records),)
            or labels.dtype.kind != "i"
            or np.any((labels < 0) | (labels >= num_classes))
        ):
            raise ValueError("not the labels of the split")
        return labels.astype(np.int32)

    kept = digests.read_or_none(path, check)
    if kept is not None:
        return kept
    chunks = range(0, len(records), READ_CHUNK)
    read = records.records.__getitems__  # several at a time is faster
    labels = [
        int(example[key]) for start in chunks for example in read(range(start, min(start + READ_CHUNK, len(records))))
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    digests.write(path, labels)
    return check(labels)


def _directory(name: str, source: type[tfds.core.DatasetBuilder], directory: str | Path | None) -> Path:
    """Where TFDS keeps the data set. A builder from outside has a directory per file and source code of its class."""
    root = storage.root(directory)
    if name in DATASETS:
        return root
    try:
        text = f"{inspect.getfile(source)}\n{inspect.getsource(source)}"
    except (OSError, TypeError):  # a class without a source file
        text = ""
    return root / f"{source.__module__}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _as_prepared(source: type[tfds.core.DatasetBuilder], directory: Path) -> type[tfds.core.DatasetBuilder]:
    """The builder, by the name that it had in earlier versions if the data set was prepared under that name."""
    name = getattr(source, "EARLIER_NAME", None)
    if name is None or _folder_of(source, directory).exists():
        return source
    with skip_registration():
        common = {"__doc__": source.__doc__, "__module__": source.__module__}
        # The metaclass makes a class of these arguments, which pyright does not know.
        earlier = type(source)(source.__name__, (source,), {"name": name, **common})  # pyright: ignore[reportCallIssue]
    folder = _folder_of(earlier, directory)
    return earlier if folder.exists() and not _is_of_tfds(folder) else source


def _is_of_tfds(folder: Path) -> bool:
    """Whether TFDS's own builder of that name wrote a data set."""
    with contextlib.suppress(UserError, AttributeError):  # what is damaged is reported when it is opened
        return files.read_json(folder / "dataset_info.json").get("moduleName", "").startswith(f"{tfds.__name__}.")
    return False


def _folder_of(source: type[tfds.core.DatasetBuilder], directory: Path) -> Path:
    """Where TFDS writes the data set; the folder gets this name when it is complete."""
    nowhere = directory / ".nowhere"  # a builder reads what exists already, damaged or not
    return directory / Path(source(data_dir=nowhere).data_dir).relative_to(nowhere)


def _opened(source: type[tfds.core.DatasetBuilder], directory: Path, command: str) -> tfds.core.DatasetBuilder:
    """The builder of a prepared data set, after its files were compared with their digests."""
    folder = _folder_of(source, directory)
    with resident.required(folder, f"rm -r {shlex.quote(str(folder))}; {command}"):
        digests.verify(folder, partial(written, folder))
        builder = source(data_dir=directory)
        if not builder.info.splits:
            raise ValueError("it names no splits")
        return builder


@contextlib.contextmanager
def _room_for(folder: Path) -> Iterator[None]:
    """As `storage.writing_to`, for a full disk only, which the writer of ArrayRecord files reports in its message."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not files.no_room(error):
            raise
        code = (error.errno if isinstance(error, OSError) else None) or errno.ENOSPC
        with storage.writing_to(folder):
            raise OSError(code, os.strerror(code)) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS's progress bars are shown on terminals only; what it prints to standard output is logged for debugging."""
    tfds.display_progress_bar(sys.stderr.isatty())
    verbosity = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.WARNING)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)
        logger.debug("TFDS: %s", printed.getvalue())
