"""How a picture of any size becomes a network's input, in one description for all trained networks."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8

from inception_jax.data import augment
from inception_jax.data.images import FILES, Format, Picture, convert_any, naming
from inception_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Transform:
    """What is done to a picture before a network sees it: resized, cropped and normalized.

    Attributes:
      image_shape: (height, width, channels) of the network's images.
      resize, fit, crop_share: how a picture becomes a square of that size, see `images.Format`.
      normalization: "none", "unit", "mean", "mean_255", "mean_std" or "per_image", see `augment.normalize`.
      mean, std: per channel, of pixels scaled to 0..1.
      stored_arrays: whether arrays are images as they are stored for training, which are not resized or cropped again.
        Otherwise they are pictures like any other.
      pad: pixels of zeros on each side of a picture, see `images.Format`.
    """

    image_shape: tuple[int, int, int]
    resize: str
    fit: str
    crop_share: float
    normalization: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stored_arrays: bool = True
    pad: int = 0

    @property
    def form(self) -> Format:
        """The part of it that is done before an image is stored.

        Raises:
          UserError: the network's images are not square.
        """
        height, width, channels = self.image_shape
        if height != width:
            raise UserError(f"the network takes images of {height}x{width} pixels; pictures become squares alone")
        return Format(height, channels, self.resize, self.fit, self.crop_share, self.pad)

    def reader(self) -> Callable[[Picture], UInt8[np.ndarray, "height width channels"]]:
        """A function that gives the image of a picture, before it is normalized; it raises as `images.convert_any`.

        It takes a file's path or bytes, a Pillow image, or an array uint8 (height, width) or (height, width, 1 or 3),
        of any size.

        Raises:
          UserError: the network's images are not square.
        """
        form = self.form

        def read(picture):
            if self.stored_arrays and isinstance(picture, np.ndarray) and picture.dtype == np.uint8:
                shapes = (self.image_shape, self.image_shape[:2])
                if picture.shape in shapes and picture.size == math.prod(self.image_shape):
                    return picture.reshape(self.image_shape)
            return convert_any(picture, form)

        return read

    def images(self, pictures: Picture | Sequence[Picture]) -> UInt8[np.ndarray, "batch height width channels"]:
        """The images of one picture or several, before they are normalized; an array with four axes is several.

        Raises:
          UserError: one is not a picture, or is too large, or the network's images are not square.
        """
        if isinstance(pictures, FILES) or (isinstance(pictures, np.ndarray) and pictures.ndim < 4):
            pictures = [pictures]
        read, images = self.reader(), []
        for picture in pictures:
            with naming(picture):
                images.append(read(picture))
        return np.array(images, np.uint8).reshape(-1, *self.image_shape)

    def normalizer(self, dtype: Any) -> Callable[[jax.Array], jax.Array]:
        """A function from uint8 images (batch, height, width, channels) to the network's inputs in `dtype`.

        It can be jitted; the images may have any height and width.
        """
        mean, std = np.asarray(self.mean, dtype), np.asarray(self.std, dtype)

        def normalize(images):
            unit = augment.to_unit(images, dtype)
            return augment.normalize(unit, normalization=self.normalization, mean=mean, std=std)

        return normalize
