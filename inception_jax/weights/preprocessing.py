"""How pictures become the inputs of published weights, in the words of torchvision and timm."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from inception_jax.data import synsets
from inception_jax.data.images import Picture
from inception_jax.data.transform import Transform
from inception_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resize the shorter side, crop the center, scale to 0..1, subtract the mean, divide by the standard deviation.

    The pixels equal those of torchvision's `Resize` and `CenterCrop` on Pillow images, and so timm's.

    Attributes:
      resize: the shorter side, pixels; the longer one is scaled alike and rounded down.
      crop: side of the center crop, pixels; at most `resize`.
      mean: per channel (red, green, blue), of pixels scaled to 0..1.
      std: the same, of the standard deviation.
      interpolation: "bilinear" or "bicubic", as in Pillow, whose filters widen when downsampling (antialiasing).

    Raises:
      UserError: the crop is larger than the resized picture.
    """

    resize: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bilinear"

    def __post_init__(self):
        if not 0 < self.crop <= self.resize:
            raise UserError(f"crop={self.crop} is not allowed: it must be from 1 to resize={self.resize}")

    @property
    def transform(self) -> Transform:
        """The same as it is described for every trained network."""
        shape, share = (self.crop, self.crop, 3), self.crop / self.resize
        return Transform(shape, self.interpolation, "resize_crop", share, "mean_std", self.mean, self.std, False)

    def __call__(self, picture: Picture) -> Float[np.ndarray, "crop crop 3"]:
        """Preprocesses a Pillow image, a uint8 array (height, width) or (height, width, 1 or 3), or a file.

        Pictures are opened as for training: rotated according to their EXIF data, and 16 bits are reduced to 8.

        Raises:
          UserError: it is not a picture, is too large, or its aspect ratio is too extreme.
        """
        return self.batch([picture])[0]

    def batch(self, pictures: Picture | Sequence[Picture]) -> Float[np.ndarray, "batch crop crop 3"]:
        """Preprocesses one picture or several; an array with four axes is several."""
        transform = self.transform
        return np.asarray(transform.normalizer(jnp.float32)(jnp.asarray(transform.images(pictures))))


def imagenet_classes() -> tuple[str, ...]:
    """The names of the 1000 ILSVRC 2012 classes, in the order of pretrained networks' outputs; see `synsets.names`."""
    return tuple(synsets.names().values())
