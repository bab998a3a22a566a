"""Predictions for pictures by trained networks, from runs or exported files."""

import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from inception_jax import files
from inception_jax.data import images
from inception_jax.data.images import Format
from inception_jax.data.scan import Scan
from inception_jax.errors import UserError


class Classifier(Protocol):
    """The interface of a trained network, implemented by `run.Run` and by exported files."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Class names in the order of the logits."""
        ...

    @property
    def form(self) -> Format:
        """How a picture is converted to an input image."""
        ...

    def logits(self, images: np.ndarray) -> np.ndarray:
        """uint8 images (batch, height, width, channels) to float32 logits (batch, classes)."""
        ...


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A network's prediction for a picture.

    Attributes:
      name: the picture's path, or "-" if its bytes or a Pillow image were given.
      classes, probabilities: the most probable classes in descending order; empty if there is an error.
      error: why the picture could not be read; None if it could.
    """

    name: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None


def load_classifier(
    source: str | Path, checkpoint: str = "best", *, dtype: Any = None, trust_code: bool = False
) -> Classifier:
    """Loads the network of a run's folder (`dtype`, `trust_code`: see `run.load_run`) or of an exported file.

    Raises:
      UserError: it is neither, or cannot be read.
    """
    source = files.expand(source, "RUN")
    if source.suffix in (".stablehlo", ".onnx"):
        from inception_jax.trained.export import load_exported

        if dtype is not None:
            raise UserError(
                f"dtype={dtype} is for a run's folder: {source} computes in the type that it was exported in"
            )
        return load_exported(source)
    from inception_jax.runs.run import load_run

    return load_run(source, checkpoint, dtype=dtype, trust_code=trust_code)


def find_pictures(places: Iterable[str | Path]) -> Iterator[str]:
    """Yields files as they are and, for folders, all files below them with an image suffix, sorted by name.

    Raises:
      UserError: a folder cannot be read, or has no picture.
    """
    for place in places:
        folder = files.expand(place, "the path of a picture")
        if not folder.is_dir():
            yield str(place if folder == Path(place) else folder)  # as it was given
            continue
        scan = Scan(folder)
        names = scan.pictures(folder)
        first = next(names, None)
        if first is None:
            raise UserError(f"{folder} has no pictures")
        yield from (str(folder / name) for name in itertools.chain([first], names))
        scan.report()


def predict(
    classifier: Classifier, sources: Iterable[str | Path | bytes | Image.Image], *, top: int = 5, batch_size: int = 32
) -> Iterator[Prediction]:
    """Yields a network's predictions for pictures, in their order; memory is bounded however many there are.

    Threads decode pictures, exactly as for training, while the network computes the previous ones. A picture that
    cannot be read yields its error, and the others are processed.

    Args:
      sources: paths, the bytes of pictures, or Pillow images.
      top: number of classes per prediction.
      batch_size: pictures per batch. The last batch is padded, so that hardly any other size is compiled.

    Raises:
      UserError: top or batch_size is below 1, or the network's images are not square.
    """
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name}={value} is not allowed: it must be at least 1")
    form, names = classifier.form, np.array(classifier.class_names, object)
    remaining, smallest = iter(sources), 1

    def batch_of(decoded: list[np.ndarray | str]) -> Iterator[tuple[tuple[str, ...], tuple[float, ...], str | None]]:
        nonlocal smallest
        known = [image for image in decoded if not isinstance(image, str)]
        if known:
            # A power of two at first, so that one picture does not cost as much as a batch.
            size = max(smallest, min(batch_size, 1 << (len(known) - 1).bit_length()))
            smallest = size
            padded = np.stack(known + [known[0]] * (size - len(known)))
            logits = classifier.logits(padded)[: len(known)].astype(np.float64)
            odds = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares = odds / odds.sum(axis=1, keepdims=True)
            order = np.argsort(-shares, axis=1, kind="stable")[:, :top]
            rows = zip(order, np.take_along_axis(shares, order, axis=1).tolist(), strict=True)
        else:
            rows = iter(())
        for image in decoded:
            if isinstance(image, str):
                yield (), (), image
            else:
                best, probabilities = next(rows)
                yield tuple(names[best]), tuple(probabilities), None

    with ThreadPoolExecutor(thread_name_prefix="decode") as threads:
        ahead: deque[list[tuple[str, Future]]] = deque()

        def read_ahead() -> None:
            part = list(itertools.islice(remaining, batch_size))
            if part:
                ahead.append([(_name(source), threads.submit(_decode, source, form)) for source in part])

        try:
            read_ahead()
            while ahead:
                read_ahead()
                batch = ahead.popleft()
                answers = batch_of([future.result() for _, future in batch])
                for (name, _), answer in zip(batch, answers, strict=True):
                    yield Prediction(name, *answer)
        finally:  # the caller may stop early
            threads.shutdown(cancel_futures=True)


def _name(source: str | Path | bytes | Image.Image) -> str:
    if isinstance(source, bytes | Image.Image):
        return "-"
    return os.fsencode(source).decode(errors="backslashreplace")  # file names need not be UTF-8


def _decode(source: str | Path | bytes | Image.Image, form: Format) -> np.ndarray | str:
    """The image, or the reason why it cannot be decoded."""
    try:
        if isinstance(source, Image.Image):
            return images.convert(source, form)
        return images.decode(source if isinstance(source, bytes) else images.read_file(source), form)
    except Exception as error:  # Pillow may raise anything for a broken file
        return images.reason(error)
