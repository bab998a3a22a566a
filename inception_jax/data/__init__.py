"""Data sets: prepared once, decoded once, then memory-mapped uint8 images cut into splits.

A data set has a folder of its own, `<directory>/<name>/<version>/`: what TFDS wrote (ArrayRecord files, read again
by `tfds.builder_from_directory`), and under `decoded/` one folder of `.npy` files for each image format asked for.
"""

import contextlib
import hashlib
import inspect
import io
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import absl.logging
import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.registered import skip_registration

from inception_jax import registry
from inception_jax.data import images as image_formats
from inception_jax.data import resident
from inception_jax.data import splits as split_notation
from inception_jax.data.builders import Cifar10, Digits, Mnist
from inception_jax.data.resident import Arrays, Dataset
from inception_jax.errors import UserError

__all__ = ["DATASETS", "from_arrays", "image_and_label", "load", "prepare"]

DATASETS: dict[str, type[tfds.core.GeneratorBasedBuilder]] = {"digits": Digits, "mnist": Mnist, "cifar10": Cifar10}

DECODE_CHUNK = 256  # encoded images read at a time

logger = logging.getLogger(__name__)


def load(
    name: str,
    *,
    directory: str | Path | None = None,
    archives: str | Path | None = None,
    splits: Mapping[str, str],
    image_size: int | None = None,
    channels: int | None = None,
) -> Dataset:
    """A data set, prepared first where it is not yet.

    Args:
      name: a name from `DATASETS`, or "module:Name" from outside the package (the current folder is searched, too).
        `Name` is a TFDS builder with one image and one class label per example, which is prepared again when its
        class changes; or it is a dict, or a function without arguments that returns one, of arrays by split, as in
        {"train": (images, labels), "test": (images, labels), "class_names": ("cat", "dog")}: images uint8 (n,
        height, width, channels) or (n, height, width), labels integer (n,), the class names if one likes.
      directory: where prepared data is kept; None: $INCEPTION_JAX_DATA, else ~/.cache/inception_jax.
      archives: a folder with the original archives, or with what was in them, for machines that cannot download.
        Not looked at once the data set is prepared. Builders from outside find it as `dl_manager.manual_dir`.
      splits: for each split wanted, its examples in TFDS's notation, e.g. {"train": "train[:90%]"}; "" is no split.
      image_size, channels: what every image is converted to, see `data.images.convert`; None: as it is.

    Raises:
      UserError: an unknown data set or split, an archive that is missing or damaged, a folder that cannot be
        written, arrays that are no images and labels.
    """
    image_formats.check_format(image_size, channels)
    source = _resolve(name)
    statistics_folder = None
    if _is_builder(source):
        builder = _prepared(name, source, directory, archives)
        statistics_folder = _decoded(builder, image_size, channels)
        class_names, bases = resident.open_arrays(statistics_folder)
    else:
        arrays: Any = source() if callable(source) else source
        class_names, bases = _checked_arrays(name, arrays)
        bases = {
            base: (image_formats.convert_arrays(images, image_size, channels), labels)
            for base, (images, labels) in bases.items()
        }
    sizes = {base: len(labels) for base, (_, labels) in bases.items()}
    ranges = {split: split_notation.resolve(spec, sizes) for split, spec in splits.items() if spec}
    _warn_of_shared_examples(ranges)
    statistics_path = None
    if statistics_folder and "train" in ranges:
        key = "+".join(f"{base}-{start}-{stop}" for base, start, stop in ranges["train"])
        statistics_path = statistics_folder / f"channel_statistics-{key}.json"
    return Dataset(
        name=name,
        class_names=class_names,
        splits={split: split_notation.cut(parts, bases) for split, parts in ranges.items()},
        statistics_path=statistics_path,
    )


def prepare(name: str, *, directory: str | Path | None = None, archives: str | Path | None = None) -> Path:
    """Downloads or reads the archives, writes ArrayRecord files and decodes them, each step only if it is not done.

    Args and errors are those of `load`.

    Returns:
      The data set's folder, which `tfds.builder_from_directory` opens.
    """
    source = _resolve(name)
    if not _is_builder(source):
        raise UserError(f"data set {name!r} is arrays, which need no preparation: train on it right away")
    builder = _prepared(name, source, directory, archives)
    (_, image_feature), _ = image_and_label(builder)
    if None not in _shape(image_feature)[:2]:  # else an image size must be chosen first
        _decoded(builder, None, None)
    return Path(builder.data_dir)


def from_arrays(
    train: tuple[np.ndarray, np.ndarray],
    validation: tuple[np.ndarray, np.ndarray] | None = None,
    test: tuple[np.ndarray, np.ndarray] | None = None,
    class_names: Sequence[str] | None = None,
) -> Dataset:
    """A data set of arrays in hand.

    Args:
      train, validation, test: (images, labels) each: images uint8 `(n, height, width, channels)` or
        `(n, height, width)`, labels integer `(n,)`, counted from 0.
      class_names: by label; by default the labels' numbers, up to the largest one.

    Raises:
      UserError: anything else. Floating-point images are not converted, as their range is anybody's guess; the
        message says how to.
    """
    given = {"train": train, "validation": validation, "test": test}
    arrays: dict[str, Any] = {split: pair for split, pair in given.items() if pair is not None}
    if class_names is not None:
        arrays["class_names"] = class_names
    names, bases = _checked_arrays("arrays", arrays)
    return Dataset("arrays", names, {split: resident.Split(*pair) for split, pair in bases.items()})


def _resolve(name: str) -> Any:
    with skip_registration():  # a builder from outside may have the name of one of TFDS's
        return registry.resolve("data set", name, DATASETS)


def _is_builder(source: Any) -> bool:
    return isinstance(source, type) and issubclass(source, tfds.core.DatasetBuilder)


def _directory(name: str, source: type[tfds.core.DatasetBuilder], directory: str | Path | None) -> Path:
    """Where TFDS keeps the data set: people's own are kept apart by the file and the text of their class."""
    root = Path(directory or os.environ.get("INCEPTION_JAX_DATA") or "~/.cache/inception_jax").expanduser()
    if name in DATASETS:
        return root
    try:
        text = f"{inspect.getfile(source)}\n{inspect.getsource(source)}"
    except (OSError, TypeError):  # a class without a file
        text = ""
    return root / f"{source.__module__}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _prepared(
    name: str, source: type[tfds.core.DatasetBuilder], directory: str | Path | None, archives: str | Path | None
) -> tfds.core.DatasetBuilder:
    """The builder, its ArrayRecord files written."""
    directory = _directory(name, source, directory)
    builder = source(data_dir=directory)
    if _is_prepared(builder):
        return builder
    if archives is not None:
        archives = Path(archives).expanduser()
        if not archives.is_dir() or not any(archives.iterdir()):
            raise UserError(f"archives={str(archives)!r} is no folder with files in it")
    logger.info("preparing %s in %s", name, builder.data_dir)
    with _writing_to(directory):
        directory.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=directory).close()
    try:
        with _quiet():
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(manual_dir=archives, try_download_gcs=False),
                file_format="array_record",
            )
    except OSError:
        if not _is_prepared(builder):  # else another process was first, and its files are as good
            raise
    return source(data_dir=directory)


def _is_prepared(builder: tfds.core.DatasetBuilder) -> bool:
    return (Path(builder.data_dir) / "dataset_info.json").is_file()  # TFDS renames the folder when it is complete


def image_and_label(
    builder: tfds.core.DatasetBuilder,
) -> tuple[tuple[str, tfds.features.Image], tuple[str, tfds.features.ClassLabel]]:
    """The features of the builder's examples that are the image and its class, each with its name.

    Raises:
      UserError: its `supervised_keys`, or else "image" and "label", are no such features.
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


def _shape(feature: tfds.features.Image) -> tuple[int | None, int | None, int | None]:
    """(height, width, channels), None where they differ from image to image."""
    shape: Any = feature.shape
    return shape


def _decoded(builder: tfds.core.DatasetBuilder, image_size: int | None, channels: int | None) -> Path:
    """The folder with the decoded images of this format, written unless it is there."""
    (image_key, image_feature), (label_key, label_feature) = image_and_label(builder)
    height, width, own_channels = _shape(image_feature)
    channels = channels or (1 if own_channels == 1 else 3)
    if image_size == height == width:
        image_size = None
    if image_size is None and height and width:
        size = f"{height}x{width}"
    else:
        size = f"{image_size}x{image_size}" if image_size else "as_they_are"
    folder = Path(builder.data_dir) / "decoded" / f"{size}x{channels}"
    if folder.is_dir():
        return folder

    def examples(source: Any) -> Iterator[tuple[np.ndarray, int]]:
        shape = None
        for start in range(0, len(source), DECODE_CHUNK):
            for example in source.__getitems__(range(start, min(start + DECODE_CHUNK, len(source)))):
                image = image_formats.decode(example[image_key], image_size, channels)
                shape = shape or image.shape
                if image.shape != shape:
                    raise UserError(
                        f"the images of {builder.name!r} have several sizes, {shape[:2]} and {image.shape[:2]} among "
                        "them: choose one by --config.data.image_size"
                    )
                yield image, example[label_key]

    # Decoded by Pillow alone, so that the pixels do not depend on whether OpenCV is there, too.
    sources: Any = builder.as_data_source(decoders={image_key: tfds.decode.SkipDecoding()})
    logger.info("decoding %s to %s", builder.name, folder)
    with _writing_to(folder):
        resident.write_arrays(
            folder,
            tuple(label_feature.names),
            {split: (len(source), examples(source)) for split, source in sources.items()},
        )
    return folder


@contextlib.contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot write the data set to {folder}: {error.strerror or error}; choose another folder by --data-dir "
            "(prepare), --config.data.directory (training) or $INCEPTION_JAX_DATA"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS prints what it does, to standard output and in bars: the bars are for terminals, the rest for debugging."""
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


def _warn_of_shared_examples(ranges: Mapping[str, list[split_notation.Range]]) -> None:
    for split in ranges.keys() - {"train"}:
        shared = split_notation.count_shared(ranges.get("train", []), ranges[split])
        if shared:
            logger.warning("the splits train and %s share %d examples: its results flatter the network", split, shared)


def _checked_arrays(name: str, arrays: Mapping[str, Any]) -> tuple[tuple[str, ...], dict[str, Arrays]]:
    """Class names, and images uint8 (n, h, w, c) with labels int32 (n,) by split, from what a person gave."""
    if not isinstance(arrays, Mapping) or not any(split != "class_names" for split in arrays):
        raise UserError(
            f"data set {name!r} must be a TFDS builder or give {{'train': (images, labels), ...}}, not "
            f"{type(arrays).__name__}"
        )
    bases = {
        split: _checked_pair(f"{name}, {split!r}", pair) for split, pair in arrays.items() if split != "class_names"
    }
    shapes = {images.shape[1:] for images, _ in bases.values()}
    if len(shapes) > 1:
        raise UserError(f"the images of {name!r} must have one shape, but there are {sorted(shapes)}")
    largest = max(int(labels.max()) for _, labels in bases.values())
    class_names = tuple(map(str, arrays.get("class_names", range(largest + 1))))
    if largest >= len(class_names):
        raise UserError(f"{name!r} has {len(class_names)} class names, but the label {largest}: they count from 0")
    return class_names, bases


def _checked_pair(what: str, pair: Any) -> Arrays:
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise UserError(f"{what}: expected a pair (images, labels), got {type(pair).__name__}")
    images, labels = map(np.asarray, pair)
    if images.ndim not in (3, 4) or not images.size:
        raise UserError(
            f"{what}: images must be uint8 of shape (n, height, width, channels) or (n, height, width), "
            f"not of shape {images.shape}"
        )
    if images.dtype != np.uint8:
        raise UserError(
            f"{what}: images must be uint8 from 0 to 255, not {images.dtype} from {images.min():g} to "
            f"{images.max():g}; convert them, e.g. (255 * images).round().astype('uint8') for images from 0 to 1"
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        hint = "; of one-hot rows take labels.argmax(axis=1)" if labels.ndim == 2 else ""
        raise UserError(f"{what}: labels must be integers of shape (n,), not {labels.dtype} {labels.shape}{hint}")
    if len(labels) != len(images) or labels.min() < 0:
        raise UserError(
            f"{what}: there must be as many labels as images, from 0 on; there are {len(images)} images and "
            f"{len(labels)} labels from {labels.min() if labels.size else 'none'}"
        )
    return images if images.ndim == 4 else images[..., None], labels.astype(np.int32)
