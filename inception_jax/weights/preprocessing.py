"""From a picture of any size to what pretrained networks read."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from inception_jax import synsets
from inception_jax.errors import UserError

INTERPOLATIONS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}

Picture = Image.Image | np.ndarray | str | Path


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, crop the centre, scale to 0..1, subtract the mean, divide by the deviation.

    The pixels are those of torchvision's `Resize` and `CenterCrop` on Pillow images, and so of timm's.

    Attributes:
      resize: the shorter side, pixels; the longer one follows, rounded down.
      crop: side of the square from the centre, pixels; at most `resize`.
      mean, std: per channel (red, green, blue), of pixels scaled to 0..1.
      interpolation: "bilinear" or "bicubic", Pillow's, whose support grows with the reduction.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"

    def __call__(self, picture: Picture) -> Float[np.ndarray, "crop crop 3"]:
        """A Pillow image, an array uint8 (height, width), (height, width, 1 or 3), or a file, to the network's input.

        Raises:
          UserError: it is no picture.
        """
        image = open_picture(picture)
        short, long = sorted(image.size)
        short, long = self.resize, int(self.resize * long / short)
        size = (short, long) if image.width <= image.height else (long, short)
        if image.size != size:
            image = image.resize(size, INTERPOLATIONS[self.interpolation])
        left, top = (round((side - self.crop) / 2) for side in size)
        pixels = np.array(image.crop((left, top, left + self.crop, top + self.crop)))
        return (pixels / np.float32(255) - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)

    def batch(self, pictures: Picture | Sequence[Picture]) -> Float[np.ndarray, "batch crop crop 3"]:
        """The inputs of one picture or several; an array of four axes is several."""
        if isinstance(pictures, Image.Image | str | Path) or (isinstance(pictures, np.ndarray) and pictures.ndim < 4):
            pictures = [pictures]
        return np.stack([self(picture) for picture in pictures])


def open_picture(picture: Picture) -> Image.Image:
    """The picture in red, green and blue; gray is repeated, transparency dropped.

    Raises:
      UserError: it is no picture.
    """
    if isinstance(picture, np.ndarray):
        shape = picture.shape
        if picture.dtype != np.uint8 or not (picture.ndim == 2 or (picture.ndim == 3 and shape[2] in (1, 3))):
            allowed = "uint8 of shape (height, width) or (height, width, 1 or 3)"
            raise UserError(f"a picture must be {allowed}, not {picture.dtype} {shape}")
        return Image.fromarray(picture.squeeze(-1) if shape[2:] == (1,) else picture).convert("RGB")
    if isinstance(picture, Image.Image):
        return picture.convert("RGB")
    try:
        with Image.open(picture) as image:
            return image.convert("RGB")
    except Exception as error:  # Pillow raises whatever a broken file makes it trip over
        raise UserError(f"cannot read the picture {picture}: {getattr(error, 'strerror', None) or error}") from error


def imagenet_classes() -> tuple[str, ...]:
    """The names of ILSVRC 2012's 1000 classes, in the order of pretrained networks' outputs; see `synsets.names`."""
    return tuple(synsets.names().values())
