"""Pictures that a server offers on its page: of the data that the network was tested on."""

import dataclasses
import io

import numpy as np
from PIL import Image

from inception_jax.runs.run import Run
from inception_jax.trained.evaluate import load_split
from inception_jax.trained.report.findings import spread


@dataclasses.dataclass(frozen=True)
class Offered:
    """A picture as a PNG file, and its class."""

    label: str
    png: bytes


def load_examples(run: Run, number: int) -> tuple[Offered, ...]:
    """Pictures of the test split, or of validation if there is no test split, from as many classes as possible.

    Raises:
      UserError: the data is no longer available.
    """
    split, dataset = load_split(run, None, {})
    part = dataset.splits[split]
    images, labels = part.gather(spread(part.all_labels(), number))
    return tuple(Offered(run.class_names[label], _png(image)) for image, label in zip(images, labels, strict=True))


def _png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(content, "PNG")
    return content.getvalue()
