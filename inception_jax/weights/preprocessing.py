"""Turns pictures of any size into the inputs of pretrained networks."""

import dataclasses
import os
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from PIL import Image

from inception_jax.data import synsets
from inception_jax.data.images import MAX_PIXELS, Picture, open_picture
from inception_jax.errors import UserError

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, crop the center, scale to 0..1, subtract the mean, divide by the standard deviation.

    The pixels equal those of torchvision's `Resize` and `CenterCrop` on Pillow images, and so timm's.

    Attributes:
      resize: the shorter side, pixels; the longer one is scaled alike and rounded down.
      crop: side of the center crop, pixels; at most `resize`.
      mean, std: per channel (red, green, blue), of pixels scaled to 0..1.
      interpolation: "bilinear" or "bicubic", as in Pillow, whose filters widen when downsampling (antialiasing).
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"

    def __call__(self, picture: Picture) -> Float[np.ndarray, "crop crop 3"]:
        """Preprocesses a Pillow image, a uint8 array (height, width) or (height, width, 1 or 3), or a file.

        Pictures are opened as for training, see `data.images.open_picture`.

        Raises:
          UserError: it is not a picture, is too large, or its aspect ratio is too extreme.
        """
        image = open_picture(picture)
        short, long = sorted(image.size)
        short, long = self.resize, int(self.resize * long / short)
        size = (short, long) if image.width <= image.height else (long, short)
        if long * short > MAX_PIXELS:
            raise UserError(
                f"a picture of {image.width}x{image.height} pixels is too long to be resized to {short} wide"
            )
        if image.size != size:
            image = image.resize(size, INTERPOLATIONS[self.interpolation])
        left, top = (round((side - self.crop) / 2) for side in size)
        pixels = np.array(image.crop((left, top, left + self.crop, top + self.crop)))
        return (pixels / np.float32(255) - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def batch(self, pictures: Picture | Sequence[Picture]) -> Float[np.ndarray, "batch crop crop 3"]:
        """Preprocesses one picture or several; an array with four axes is several."""
        if isinstance(pictures, bytes | Image.Image | str | os.PathLike) or (
            isinstance(pictures, np.ndarray) and pictures.ndim < 4
        ):
            pictures = [pictures]
        return np.stack([self(picture) for picture in pictures])


def imagenet_classes() -> tuple[str, ...]:
    """The names of the 1000 ILSVRC 2012 classes, in the order of pretrained networks' outputs; see `synsets.names`."""
    return tuple(synsets.names().values())
