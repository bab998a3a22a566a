"""From encoded or given images to uint8 arrays of one size and one number of channels."""

import io

import numpy as np
from PIL import Image

from inception_jax.errors import UserError


def check_format(image_size: int | None, channels: int | None) -> None:
    """Raises UserError unless the size is a positive number of pixels and there are 1 or 3 channels, where given."""
    if image_size is not None and image_size < 1:
        raise UserError(f"image_size={image_size} is not allowed: it must be at least 1 pixel")
    if channels not in (None, 1, 3):
        raise UserError(f"channels={channels} is not allowed: it must be 1 (gray) or 3 (red, green, blue)")


def convert(image: Image.Image, image_size: int | None, channels: int) -> np.ndarray:
    """An image as uint8 `(height, width, channels)`.

    Args:
      image: any mode of Pillow; transparency is dropped.
      image_size: the side of the square to which the image is resized, its aspect ratio changed if need be, by
        Pillow's bilinear filter, whose support grows with the reduction (so it is antialiased); None: as it is.
      channels: 1, by Pillow's luma (0.299 R + 0.587 G + 0.114 B), or 3, gray being repeated. Before the resize.
    """
    image = image.convert("L" if channels == 1 else "RGB")
    if image_size is not None:
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
    return np.array(image).reshape(image.height, image.width, channels)


def decode(content: bytes, image_size: int | None, channels: int) -> np.ndarray:
    """As `convert`, of an image file's bytes."""
    with Image.open(io.BytesIO(content)) as image:
        return convert(image, image_size, channels)


def convert_arrays(images: np.ndarray, image_size: int | None, channels: int | None) -> np.ndarray:
    """As `convert`, of uint8 `(n, height, width, channels)` at once; what need not change is returned as it is.

    Raises:
      UserError: the images have neither 1 nor 3 channels, and so cannot be converted.
    """
    _, height, width, given = images.shape
    if image_size in (None, height) and image_size in (None, width) and channels in (None, given):
        return images
    if given not in (1, 3):
        raise UserError(f"image_size and channels need images with 1 or 3 channels, not {given}")
    pillow = (Image.fromarray(image.squeeze(-1) if given == 1 else image) for image in images)
    return np.stack([convert(image, image_size, channels or given) for image in pillow])
