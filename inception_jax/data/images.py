"""From encoded or given images to uint8 arrays of one size and one number of channels."""

import contextlib
import dataclasses
import io
import math
from collections.abc import Callable

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from inception_jax.errors import UserError, unknown_name

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
FITS = ("squash", "crop")
GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's
START_OF_SCAN, APP1 = b"\xda", b"\xe1"  # of the JPEG standard; EXIF and XMP data are APP1


@dataclasses.dataclass(frozen=True)
class Format:
    """What every image is converted to.

    Attributes:
      image_size: the side of the square, pixels; None: as it is.
      channels: 1, by Pillow's luma (0.299 R + 0.587 G + 0.114 B), or 3, gray being repeated. Before the resize.
      resize: "bilinear" or "bicubic": Pillow's filters, whose support grows with the reduction (so it is antialiased).
      fit: how a picture becomes a square: "squash" changes its aspect ratio, "crop" takes the square at its centre.
      crop_share: of fit "crop": the square's share of the shorter side. 0.875 is the usual 224 from 256 pixels.

    Raises:
      UserError: a value that is not allowed.
    """

    image_size: int | None = None
    channels: int = 3
    resize: str = "bilinear"
    fit: str = "squash"
    crop_share: float = 1.0

    def __post_init__(self):
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"image_size={self.image_size} is not allowed: it must be at least 1 pixel")
        if self.channels not in (1, 3):
            raise UserError(f"channels={self.channels} is not allowed: it must be 1 (gray) or 3 (red, green, blue)")
        if self.resize not in FILTERS:
            raise unknown_name("resize", self.resize, FILTERS)
        if self.fit not in FITS:
            raise unknown_name("fit", self.fit, FITS)
        if not 0 < self.crop_share <= 1:
            raise UserError(f"crop_share={self.crop_share} is not allowed: it must be above 0 and at most 1")

    def __str__(self) -> str:
        size = f"{self.image_size}x{self.image_size}" if self.image_size else "as_they_are"
        more = f"-{self.resize}" if self.resize != "bilinear" else ""
        more += f"-crop{self.crop_share:g}" if self.fit == "crop" else ""
        return f"{size}x{self.channels}{more}"


Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the picture as it is shown


Crop = Callable[[int, int], Box]  # (height, width) of the picture as it is shown -> what is cut out of it


def decode(content: bytes, form: Format, crop: Crop | None = None) -> np.ndarray:
    """An image file's bytes as uint8 `(height, width, channels)`.

    Pixels are Pillow's: JPEGs go through simplejpeg, which holds the same libjpeg-turbo and gives the same bytes in
    less time. Pictures are turned as their EXIF data says; of an animation the first frame counts; transparency is
    dropped; 16 bits become 8.

    Args:
      crop: what is cut out and resized to the square, instead of `form.fit`. Of a JPEG it is decoded at 1/2, 1/4 or 1/8
        of its size if that leaves it at least as large as the square: as good for training, and faster.

    Raises:
      OSError, ValueError, SyntaxError and others: what Pillow says of a file that it cannot decode.
    """
    header = _jpeg_header(content)
    if header and crop is None and _fits(header, form):
        with contextlib.suppress(ValueError):  # Pillow forgives more
            return simplejpeg.decode_jpeg(content, "GRAY" if form.channels == 1 else "RGB")
    image, box = _open(content, header, crop, form.image_size)
    mode = "L" if form.channels == 1 else "RGB"
    return _to_square(image if image.mode == mode else image.convert(mode), form, box)


def convert(image: Image.Image, form: Format) -> np.ndarray:
    """As `decode`, of an image in hand."""
    return _to_square(_to_bytes(image).convert("L" if form.channels == 1 else "RGB"), form, None)


def convert_arrays(images: np.ndarray, form: Format) -> np.ndarray:
    """As `convert`, of uint8 `(n, height, width, channels)` at once; what need not change is returned as it is.

    Raises:
      UserError: the images have neither 1 nor 3 channels, and so cannot be converted.
    """
    _, height, width, channels = images.shape
    if form.image_size in (None, height) and form.image_size in (None, width) and form.channels == channels:
        return images
    if channels not in (1, 3):
        raise UserError(f"image_size and channels need images with 1 or 3 channels, not {channels}")
    pillow = (Image.fromarray(image.squeeze(-1) if channels == 1 else image) for image in images)
    return np.stack([convert(image, form) for image in pillow])


def verify(content: bytes) -> tuple[int, int, str]:
    """The (height, width, mode) of an image file that can be decoded to its end; the mode is Pillow's.

    Raises:
      OSError, ValueError, SyntaxError and others: what Pillow says of one that cannot.
    """
    header = _jpeg_header(content)
    if header:
        height, width, mode = header
        with contextlib.suppress(ValueError):  # Pillow forgives more
            # Every coefficient is read, at a fraction of the work.
            simplejpeg.decode_jpeg(content, "GRAY", min_height=-(-height // 8), min_width=-(-width // 8))
            return height, width, mode
    with Image.open(io.BytesIO(content)) as image:
        mode = image.mode
        shown = _to_bytes(image)
        shown.convert("RGB")
        return shown.height, shown.width, mode


def _jpeg_header(content: bytes) -> tuple[int, int, str] | None:
    """(height, width, mode) of a JPEG that simplejpeg decodes as Pillow does; None of any other file."""
    if content[:2] != b"\xff\xd8" or _may_be_turned(content):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    return (int(height), int(width), "L" if colors == "Gray" else "RGB") if colors in ("Gray", "YCbCr") else None


def _may_be_turned(content: bytes) -> bool:
    """Whether a JPEG says that it is to be shown turned or mirrored, or one cannot tell from here."""
    place = 2
    while content[place : place + 1] == b"\xff" and content[place + 1 : place + 2] != START_OF_SCAN:
        end = place + 2 + int.from_bytes(content[place + 2 : place + 4])
        if content[place + 1 : place + 2] == APP1:
            segment = content[place + 4 : end]
            if b"tiff:Orientation" in segment:  # XMP, which Pillow heeds, too
                return True
            if segment.startswith(b"Exif"):
                exif = Image.Exif()
                try:
                    exif.load(segment)
                    if exif.get(ExifTags.Base.Orientation, 1) != 1:
                        return True
                except Exception:  # whatever Pillow then makes of it
                    return True
        place = end
    return False


def _fits(header: tuple[int, int, str], form: Format) -> bool:
    """Whether a JPEG is in the format already, gray or not: it then need not go through Pillow."""
    height, width, mode = header
    whole = form.fit == "squash" or (form.crop_share == 1 and height == width)
    return (
        whole
        and form.image_size in (None, height)
        and form.image_size in (None, width)
        and (form.channels == 3 or mode == "L")
    )


def _open(
    content: bytes, header: tuple[int, int, str] | None, crop: Crop | None, wanted: int | None
) -> tuple[Image.Image, Box | None]:
    """The picture, or the part of it that is cut out, and the box in that.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size where the box then keeps the pixels per side that are wanted.
    """
    if header:
        height, width, mode = header
        box = crop(height, width) if crop else None
        largest = min(box[2] - box[0], box[3] - box[1]) / wanted if box and wanted else 1.0
        factor = next(factor for factor in (8, 4, 2, 1) if factor <= max(largest, 1.0))
        with contextlib.suppress(ValueError):  # Pillow forgives more
            pixels = simplejpeg.decode_jpeg(
                content,
                "GRAY" if mode == "L" else "RGB",
                min_height=-(-height // factor),
                min_width=-(-width // factor),
            )
            pixels = pixels.squeeze(-1) if mode == "L" else pixels
            return _part(pixels, box, factor) if box else (Image.fromarray(pixels), None)
    with Image.open(io.BytesIO(content)) as image:
        image = _to_bytes(image)
        if crop is None:
            return image, None
        pixels = np.asarray(image.convert("RGB") if image.mode not in ("L", "RGB") else image)
        return _part(pixels, crop(image.height, image.width), 1)


def _part(pixels: np.ndarray, box: Box, factor: int) -> tuple[Image.Image, Box]:
    """The whole pixels that a box of a picture touches, and the box in them; their sides were reduced by a factor.

    As in torchvision, the resampling then sees no pixel from outside the box; and less is copied.
    """
    left, top, right, bottom = (side / factor for side in box)
    right, bottom = min(right, pixels.shape[1]), min(bottom, pixels.shape[0])
    x, y = math.floor(left), math.floor(top)
    part = np.ascontiguousarray(pixels[y : math.ceil(bottom), x : math.ceil(right)])
    return Image.fromarray(part), (left - x, top - y, right - x, bottom - y)


def _to_bytes(image: Image.Image) -> Image.Image:
    """The picture as it is to be shown, in a mode of 8 bits per channel."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of gray, which Pillow would clip instead of scaling
        values = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    # With transparent palette entries Pillow warns unless it is RGBA first; alpha is dropped after it.
    return image.convert("RGBA") if "transparency" in image.info else image


def _to_square(image: Image.Image, form: Format, box: Box | None) -> np.ndarray:
    size = form.image_size
    if size is not None:
        if box is None and form.fit == "crop":
            side = min(image.size) * form.crop_share
            left, top = ((length - side) / 2 for length in image.size)
            box = (left, top, left + side, top + side)
        image = image.resize((size, size), FILTERS[form.resize], box=box)
    return np.array(image).reshape(image.height, image.width, form.channels)
