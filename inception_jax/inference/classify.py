"""The most probable classes of any number of pictures, decoded by threads while the network computes."""

import contextlib
import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import softmax

from inception_jax.data import images
from inception_jax.data.images import Picture
from inception_jax.errors import UserError
from inception_jax.text import printable

if TYPE_CHECKING:
    from inception_jax.inference.predictor import Predictor

Decoded = np.ndarray | str  # an image, or the reason why it cannot be decoded


@dataclasses.dataclass(frozen=True, repr=False)
class Prediction:
    """A network's prediction for a picture.

    Attributes:
      name: the picture's path, or "-" if its bytes, an array or a Pillow image were given.
      classes: the most probable classes in descending order; empty if there is an error.
      probabilities: those of `classes`.
      error: why the picture could not be read; None if it could.
    """

    name: str
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None

    def __repr__(self) -> str:
        shares = zip(self.classes, self.probabilities, strict=True)
        found = self.error or ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares)
        return printable(f"Prediction({self.name}: {found})")


def top_classes(
    logits: np.ndarray, class_names: Sequence[str], top: int
) -> list[tuple[tuple[str, ...], tuple[float, ...]]]:
    """The names and probabilities of the `top` most probable classes, for each row of logits (batch, classes).

    Of equally probable classes, the first one comes first.
    """
    probabilities = softmax(logits.astype(np.float64), axis=1)
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
    sorted_probabilities = np.take_along_axis(probabilities, order, axis=1).tolist()
    names = np.array(class_names, object)
    return [(tuple(names[best]), tuple(row)) for best, row in zip(order, sorted_probabilities, strict=True)]


def classify(predictor: "Predictor", pictures: Iterable[Picture], *, top: int, batch_size: int) -> Iterator[Prediction]:
    """Yields a network's predictions for pictures, see `Predictor.classify`."""
    for name, value in (("top", top), ("batch_size", batch_size)):
        if value < 1:
            raise UserError(f"{name}={value} is not allowed: it must be at least 1")
    read, smallest = predictor.transform.reader(), 1
    with contextlib.closing(_decoded_batches(pictures, read, batch_size)) as batches:
        for batch in batches:
            known = [image for _, image in batch if not isinstance(image, str)]
            found = iter(())
            if known:
                smallest = _padded_size(len(known), smallest, batch_size)
                padded = np.stack(known + [known[0]] * (smallest - len(known)))
                found = iter(top_classes(predictor.compute(padded)[: len(known)], predictor.class_names, top))
            for name, image in batch:
                yield Prediction(name, error=image) if isinstance(image, str) else Prediction(name, *next(found))


def _padded_size(number: int, smallest: int, batch_size: int) -> int:
    """The size that a batch is padded to: a power of two at first, so that one picture costs less than a batch."""
    return max(smallest, min(batch_size, 1 << (number - 1).bit_length()))


def _decoded_batches(
    pictures: Iterable[Picture], read: Callable[[Picture], np.ndarray], batch_size: int
) -> Generator[list[tuple[str, Decoded]], None, None]:
    """Yields the names and images of pictures in batches; threads decode one batch ahead."""
    remaining = iter(pictures)
    ahead: deque[list[tuple[str, Future[Decoded]]]] = deque()
    with ThreadPoolExecutor(thread_name_prefix="decode") as threads:

        def read_ahead() -> None:
            part = list(itertools.islice(remaining, batch_size))
            if part:
                ahead.append([(_name(picture), threads.submit(_decode, picture, read)) for picture in part])

        try:
            read_ahead()
            while ahead:
                read_ahead()
                yield [(name, image.result()) for name, image in ahead.popleft()]
        finally:  # the caller may stop early
            threads.shutdown(cancel_futures=True)


def _name(picture: Picture) -> str:
    if isinstance(picture, str | os.PathLike):
        return os.fsencode(picture).decode(errors="backslashreplace")  # file names need not be UTF-8
    return "-"


def _decode(picture: Picture, read: Callable[[Picture], np.ndarray]) -> Decoded:
    try:
        return read(picture)
    except Exception as error:  # Pillow may raise anything for a broken file
        return images.reason(error)
