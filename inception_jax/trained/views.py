"""The views of an image or a picture over whose predictions test-time augmentation averages."""

import collections
import logging
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from inception_jax.data.dataset import Split
from inception_jax.data.images import FILTERS, MAX_PIXELS
from inception_jax.data.streaming import StreamingSplit
from inception_jax.errors import UserError

logger = logging.getLogger(__name__)

SHIFT_WEIGHTS = (1 / 4, 1 / 4, 1 / 8, 1 / 8, 1 / 8, 1 / 8)  # of the views of "flip-shift"
CROP = 224  # side of the crops to which these sides of pictures belong (Szegedy et al. 2015, section 7)
SIDES = (256, 288, 320, 352)

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


def views(images: np.ndarray, tta: str, image_shape: tuple[int, int, int]) -> list[np.ndarray]:
    """The views of uint8 images `(batch, height, width, channels)` for test-time augmentation.

    Args:
      tta: see `predictions`. The ten crops are those of torchvision's TenCrop, in its order: the corners (top left, top
        right, bottom left, bottom right), the center, and the same of the mirror image.
      image_shape: shape of the crops; other views have the shape of the images.
    """
    if tta == "none":
        return [images]
    mirrored = images[:, :, ::-1]
    if tta == "flip":
        return [images, mirrored]
    if tta == "flip-shift":
        shifted = (images, _shifted(images, 1), _shifted(images, -1))
        return [view for whole in shifted for view in (whole, whole[:, :, ::-1])]
    height, width, _ = image_shape
    bottom, right = images.shape[1] - height, images.shape[2] - width
    center = (round(bottom / 2), round(right / 2))
    if tta == "1-crop":
        return [images[:, center[0] : center[0] + height, center[1] : center[1] + width]]
    corners = ((0, 0), (0, right), (bottom, 0), (bottom, right), center)
    return [whole[:, top : top + height, left : left + width] for whole in (images, mirrored) for top, left in corners]


def _shifted(images: np.ndarray, pixels: int) -> np.ndarray:
    """The content moved by so many pixels down and to the right; what is uncovered mirrors what is inside."""
    around = abs(pixels)
    padded = np.pad(images, ((0, 0), (around, around), (around, around), (0, 0)), mode="reflect")
    height, width = images.shape[1:3]
    first = around - pixels
    return padded[:, first : first + height, first : first + width]


def crops(
    picture: UInt8[np.ndarray, "height width channels"], size: int, resize: str = "bilinear"
) -> UInt8[np.ndarray, "144 size size channels"]:
    """The 144 crops of a picture by which GoogLeNet was evaluated (Szegedy et al. 2015, section 7).

    The picture is resized so that its shorter side has 256, 288, 320 and 352 pixels. Each time, of each of three
    squares, see `boxes`, there are the four corners and the center of 224 pixels and the square itself, resized to 224
    pixels. After each crop comes its mirror image.

    Args:
      picture: at its own size.
      size: side of the crops; the sides to which the picture is resized are in the paper's proportion to it.
      resize: "bilinear" or "bicubic", see `images.Format`.

    Raises:
      UserError: the picture is too long to be resized.
    """
    height, width, channels = picture.shape
    image = Image.fromarray(picture.squeeze(-1) if channels == 1 else picture)
    found = []
    for side in scaled_sides(size):
        short, long = side, int(side * max(height, width) / min(height, width))  # torchvision's rounding
        if short * long > MAX_PIXELS:
            raise UserError(f"a picture of {width}x{height} pixels is too long to be resized to {side} wide")
        resized = image.resize((short, long) if width <= height else (long, short), FILTERS[resize])
        for box in boxes(*resized.size, size):
            crop = resized.crop(box)
            crop = crop if crop.size == (size, size) else crop.resize((size, size), FILTERS[resize])
            found.append(np.asarray(crop).reshape(size, size, channels))
    return np.stack([view for crop in found for view in (crop, crop[:, ::-1])])


def scaled_sides(size: int) -> list[int]:
    """The shorter sides of the pictures that crops of this side are cut out of."""
    return [max(size, round(side * size / CROP)) for side in SIDES]


def boxes(width: int, height: int, size: int) -> list[Box]:
    """The 18 boxes of a picture: of each of three squares, the corners, the center, and the square itself.

    The squares are the left, the center and the right one, or, of a picture that is higher than wide, the top, the
    center and the bottom one. The corners are in the order top left, top right, bottom left, bottom right.
    """
    side, found = min(width, height), []
    rest, margin = max(width, height) - side, side - size
    center = round(margin / 2)
    for start in (0, round(rest / 2), rest):
        left, top = (start, 0) if width > height else (0, start)
        corners = ((0, 0), (margin, 0), (0, margin), (margin, margin), (center, center))
        found += [(left + x, top + y, left + x + size, top + y + size) for x, y in corners]
        found.append((left, top, left + side, top + side))
    return found


def crops_of_pictures(split: Split, size: int) -> Iterator[UInt8[np.ndarray, "144 size size channels"] | None]:
    """The `crops` of each picture of a split, in its order, made ahead by threads; None if it cannot be decoded.

    Raises:
      UserError: the split has arrays and no pictures; or a picture cannot be decoded any more and the split does not
        leave such pictures out.
    """
    if not isinstance(split, StreamingSplit):
        raise UserError("144 crops are cut out of pictures at their own size, but these are arrays: choose 10-crop")
    threads = os.cpu_count() or 1

    def cut(position: int) -> np.ndarray:
        return crops(split.whole(position), size, split.form.resize)

    with ThreadPoolExecutor(threads, thread_name_prefix="crops") as pool:
        due: collections.deque[Future[np.ndarray]] = collections.deque()
        for position in range(len(split) + threads):
            if position < len(split):
                due.append(pool.submit(cut, position))
            if position >= threads:
                yield _result(due.popleft(), split.leave_out)


def _result(future: Future[np.ndarray], leave_out: bool) -> np.ndarray | None:
    try:
        return future.result()
    except UserError as error:
        if not leave_out:
            raise
        logger.warning("%s: left out", error)
        return None
