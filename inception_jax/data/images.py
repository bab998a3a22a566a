"""From encoded or given images to uint8 arrays of one size and one number of channels.

All pictures from users and strangers are opened here, and nowhere else: which kinds of files are opened, how large they
may be, and how orientation, bit depth, palettes and transparency are handled is decided once, for training, for
predictions, for the server and for published weights.
"""

import contextlib
import dataclasses
import importlib
import io
import math
import os
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from typing import BinaryIO

import numpy as np
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError, features

from inception_jax.data.headers import (
    MAX_BYTES,
    MAX_PIXELS,
    PILLOWS_PIXELS,
    TooLargeError,
    check_size,
    check_tags,
    may_be_turned,
    scans,
)
from inception_jax.errors import UserError, check_choice
from inception_jax.text import printable

# Pillow's names of the formats that are opened, whatever a file is called, and the usual suffixes of such files. For
# some of its other formats Pillow starts programs, such as Ghostscript.
SUFFIXES = {
    "BMP": (".bmp",), "GIF": (".gif",), "JPEG": (".jpg", ".jpeg", ".jpe"), "PNG": (".png",),
    "PPM": (".ppm", ".pgm", ".pnm"), "TIFF": (".tif", ".tiff"), "WEBP": (".webp",), "AVIF": (".avif",),
}  # fmt: skip
for _name in ("Avif", "Bmp", "Gif", "Jpeg", "Png", "Ppm", "Tiff", "WebP"):
    importlib.import_module(f"PIL.{_name}ImagePlugin")  # registers its format
FORMATS = tuple(  # not every build of Pillow supports all
    name for name in SUFFIXES if name not in ("AVIF", "WEBP") or features.check(name.lower())
)
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
FITS = ("squash", "crop", "resize_crop")
GRAY_MODES = ("1", "L", "LA", "La", "I", "I;16", "I;16B", "I;16L", "I;16N")  # Pillow's names
ROWS_AT_ONCE = 1 << 22  # pixels that are converted from 16 bits at a time
MAX_PAD = 1024  # pixels


@dataclasses.dataclass(frozen=True)
class Format:
    """What every image is converted to.

    Attributes:
      image_size: the side of the square in pixels; None: unchanged.
      channels: 1, by Pillow's luma (0.299 R + 0.587 G + 0.114 B), or 3, with gray repeated. Converted before resizing.
      resize: "bilinear" or "bicubic": Pillow's antialiasing filters, whose support grows with the reduction.
      fit: how a picture becomes a square: "squash" changes its aspect ratio, "crop" takes the square at its center and
        resizes that, "resize_crop" resizes the picture and then takes the square at its center. The last one's pixels
        equal those of torchvision's and timm's `Resize` and `CenterCrop`, which round to whole pixels in between.
      crop_share: unless fit is "squash": the square's share of the shorter side. 0.875 is the usual 224 of 256 pixels.
      pad: pixels of zeros that are added on each side of the picture, before it is cut and resized.

    Raises:
      UserError: a value that is not allowed.
    """

    image_size: int | None = None
    channels: int = 3
    resize: str = "bilinear"
    fit: str = "squash"
    crop_share: float = 1.0
    pad: int = 0

    def __post_init__(self):
        if self.image_size is not None and self.image_size < 1:
            raise UserError(f"image_size={self.image_size} is not allowed: it must be at least 1 pixel")
        if self.channels not in (1, 3):
            raise UserError(f"channels={self.channels} is not allowed: it must be 1 (gray) or 3 (red, green, blue)")
        check_choice("resize", self.resize, FILTERS)
        check_choice("fit", self.fit, FITS)
        if not 0 < self.crop_share <= 1:
            raise UserError(f"crop_share={self.crop_share} is not allowed: it must be above 0 and at most 1")
        if not 0 <= self.pad <= MAX_PAD:
            raise UserError(f"pad={self.pad} is not allowed: it must be from 0 to {MAX_PAD} pixels")

    def __str__(self) -> str:
        size = f"{self.image_size}x{self.image_size}" if self.image_size else "as_they_are"
        more = f"-{self.resize}" if self.resize != "bilinear" else ""
        more += f"-{self.fit}{self.crop_share:g}" if self.fit != "squash" else ""
        more += f"-pad{self.pad}" if self.pad else ""
        return f"{size}x{self.channels}{more}"


Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels of the picture as it is shown
Crop = Callable[[int, int], Box]  # (height, width) of the picture as it is shown -> what is cut out of it
Picture = bytes | str | os.PathLike[str] | Image.Image | np.ndarray
FILES = (bytes, str, os.PathLike, Image.Image)  # the types of pictures that are not arrays


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The content of a picture's file.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not a regular file (a pipe would block, a device never ends), or is larger than any picture.
    """
    # O_NONBLOCK, so that opening a pipe does not wait for a writer.
    with open(path, "rb", buffering=0, opener=lambda path, flags: os.open(path, flags | os.O_NONBLOCK)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is a pipe or a device, not a file")
        if status.st_size > MAX_BYTES:
            raise TooLargeError(f"it has {status.st_size:,} bytes; at most {MAX_BYTES:,} are read")
        return file.read()


def read_stream(stream: BinaryIO) -> bytes:
    """The content of a stream, up to slightly more bytes than any picture has."""
    content = bytearray()
    while len(content) <= MAX_BYTES and (part := stream.read(1 << 20)):
        content += part
    return bytes(content)


def open_picture(picture: Picture, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture in red, green and blue, as it is shown.

    The result does not depend on the kind of file: pictures are rotated as their EXIF or XMP data says, 16 bits become
    8, the first frame of an animation is used, gray and palettes become RGB, and transparency is dropped.

    Args:
      picture: a file's path or its bytes; a Pillow image; or an array uint8 (height, width), (height, width, 1 or 3).
      max_pixels: the largest number of pixels that is decoded.

    Raises:
      UserError: it is not a picture, or too large; the message names the file.
    """
    if isinstance(picture, np.ndarray):
        return _from_array(picture).convert("RGB")
    with naming(picture):
        if isinstance(picture, Image.Image):
            return _shown(picture, max_pixels).convert("RGB")
        with _open_file(picture if isinstance(picture, bytes) else read_file(picture), max_pixels) as image:
            return _shown(image, max_pixels, ours=True).convert("RGB")


def convert_any(picture: Picture, form: Format, crop: Crop | None = None) -> np.ndarray:
    """As `decode`, for a picture of any kind, see `open_picture`; raises as `decode` and `read_file`."""
    if isinstance(picture, np.ndarray):
        picture = _from_array(picture)
    if isinstance(picture, Image.Image):
        return convert(picture, form, crop)
    return decode(picture if isinstance(picture, bytes) else read_file(picture), form, crop)


def _from_array(pixels: np.ndarray) -> Image.Image:
    shape = pixels.shape
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and shape[2] in (1, 3))):
        allowed = "uint8 of shape (height, width) or (height, width, 1 or 3)"
        raise UserError(f"a picture must be {allowed}, not {pixels.dtype} {shape}")
    return Image.fromarray(pixels.squeeze(-1) if shape[2:] == (1,) else pixels)


@contextlib.contextmanager
def naming(picture: Picture) -> Iterator[None]:
    """Context for opening a picture, in which whatever is raised becomes a UserError that names the picture's file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Pillow raises anything on a broken file
        name = printable(os.fspath(picture)) if isinstance(picture, str | os.PathLike) else "given"
        raise UserError(f"cannot read the picture {name}: {reason(error)}") from error


def reason(error: BaseException) -> str:
    """Why a picture cannot be decoded, in a few words."""
    text = str(getattr(error, "strerror", None) or error).splitlines()
    if isinstance(error, UnidentifiedImageError):
        return "it is not a picture of a known format"
    return printable(text[0][:200]) if text else type(error).__name__


def decode(content: bytes, form: Format, crop: Crop | None = None, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """An image file's bytes as uint8 `(height, width, channels)`.

    Pixels equal Pillow's: JPEGs are decoded by simplejpeg, which contains the same libjpeg-turbo and gives the same
    bytes in less time. Pictures are rotated as their EXIF data says; the first frame of an animation is used;
    transparency is dropped; 16 bits become 8.

    Args:
      content: the file's bytes.
      form: what the picture is converted to.
      crop: what is cut out of the padded picture and resized to the square, instead of `form.fit`. A JPEG that is not
        padded is decoded at 1/2, 1/4 or 1/8 of its size if the crop is then still at least as large as the square: as
        good for training, and faster.
      max_pixels: the largest number of pixels that is decoded.

    Raises:
      TooLargeError: it has more pixels, or a side is too long; nothing was decoded.
      OSError, ValueError, SyntaxError and others: whatever Pillow raises for a file that it cannot decode.
    """
    header = _jpeg_header(content, max_pixels)
    if header and crop is None and _fits(header, form):
        with contextlib.suppress(ValueError):  # Pillow tolerates more damage
            return simplejpeg.decode_jpeg(content, "GRAY" if form.channels == 1 else "RGB")
    image, box = _open(content, header, None if form.pad else crop, form.image_size, max_pixels)
    return _formed(image, box, form, crop if form.pad else None, max_pixels)


def convert(image: Image.Image, form: Format, crop: Crop | None = None, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """As `decode`, for a Pillow image."""
    return _formed(_shown(image, max_pixels), None, form, crop, max_pixels)


def convert_arrays(images: np.ndarray, form: Format) -> np.ndarray:
    """As `convert`, for uint8 `(n, height, width, channels)`; images in the format already are returned unchanged.

    Raises:
      UserError: the images need conversion, and have neither 1 nor 3 channels.
    """
    _, height, width, channels = images.shape
    same_size = form.image_size in (None, height) and form.image_size in (None, width) and not form.pad
    if same_size and form.channels == channels:
        return images
    if channels not in (1, 3):
        raise UserError(f"image_size, pad and channels need images with 1 or 3 channels, not {channels}")
    return np.stack([convert(_from_array(image), form) for image in images])


def verify(content: bytes) -> tuple[int, int, str]:
    """The (height, width, mode) of an image file that can be decoded to its end; the mode is Pillow's.

    Raises:
      TooLargeError: it has more pixels than are decoded, or a side is too long.
      OSError, ValueError, SyntaxError and others: whatever Pillow raises for a file that it cannot decode.
    """
    header = _jpeg_header(content, MAX_PIXELS)
    if header:
        height, width, mode = header
        with contextlib.suppress(ValueError):  # Pillow tolerates more damage
            # Reads every coefficient at a fraction of the work.
            simplejpeg.decode_jpeg(content, "GRAY", min_height=-(-height // 8), min_width=-(-width // 8))
            return height, width, mode
    with _open_file(content, MAX_PIXELS) as image:
        mode = image.mode
        shown = _shown(image, MAX_PIXELS, ours=True)
        shown.convert("RGB")
        return shown.height, shown.width, mode


def effort(content: bytes, *, max_pixels: int = MAX_PIXELS) -> int:
    """The work of decoding an image file: its pixels, times the scans of a JPEG. Nothing is decoded.

    Raises:
      As `decode`, for what the file's header tells.
    """
    passes = scans(content)
    header = _jpeg_header(content, max_pixels)
    if header:
        return header[0] * header[1] * passes
    with _open_file(content, max_pixels) as image:
        return image.width * image.height * passes


def _open_file(content: bytes, max_pixels: int) -> Image.Image:
    """Pillow's image of a file of which only the header was read.

    As Image.open with `formats`, except for Pillow's own bound, whose warning does not name the file.
    """
    check_tags(content, max_pixels)
    scans(content)
    for name in FORMATS:
        make, accepts = Image.OPEN[name]
        try:
            if accepts is not None and not accepts(content[:16]):
                continue
            image = make(io.BytesIO(content), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # as in Image.open: another format may fit
            continue
        try:
            check_size(*image.size, max_pixels)
        except TooLargeError:
            image.close()
            raise
        return image
    raise UnidentifiedImageError


def _jpeg_header(content: bytes, max_pixels: int) -> tuple[int, int, str] | None:
    """(height, width, mode) of a JPEG that simplejpeg decodes as Pillow does; None for any other file."""
    if content[:2] != b"\xff\xd8" or may_be_turned(content):
        return None
    scans(content)
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(content)
    except ValueError:
        return None
    check_size(int(width), int(height), max_pixels)
    return (int(height), int(width), "L" if colors == "Gray" else "RGB") if colors in ("Gray", "YCbCr") else None


def _fits(header: tuple[int, int, str], form: Format) -> bool:
    """Whether a JPEG is in the format already, gray or not, so that it need not go through Pillow."""
    height, width, mode = header
    whole = form.fit == "squash" or (form.crop_share == 1 and height == width)
    same_size = form.image_size is None or form.image_size == height == width
    return whole and same_size and not form.pad and (form.channels == 3 or mode == "L")


def _open(
    content: bytes, header: tuple[int, int, str] | None, crop: Crop | None, wanted: int | None, max_pixels: int
) -> tuple[Image.Image, Box | None]:
    """The picture, or the part of it that is cut out, and the box within that.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size if the box then still has the wanted pixels per side.
    """
    if header:
        height, width, mode = header
        box = crop(height, width) if crop else None
        largest = min(box[2] - box[0], box[3] - box[1]) / wanted if box and wanted else 1.0
        factor = next(factor for factor in (8, 4, 2, 1) if factor <= max(largest, 1.0))
        with contextlib.suppress(ValueError):  # Pillow tolerates more damage
            pixels = simplejpeg.decode_jpeg(
                content,
                "GRAY" if mode == "L" else "RGB",
                min_height=-(-height // factor),
                min_width=-(-width // factor),
            )
            pixels = pixels.squeeze(-1) if mode == "L" else pixels
            return _part(pixels, box, factor) if box else (Image.fromarray(pixels), None)
    with _open_file(content, max_pixels) as image:
        image = _shown(image, max_pixels, ours=True)
        if crop is None:
            return image, None
        pixels = np.asarray(image.convert("RGB") if image.mode not in ("L", "RGB") else image)
        return _part(pixels, crop(image.height, image.width), 1)


def _part(pixels: np.ndarray, box: Box, factor: int) -> tuple[Image.Image, Box]:
    """The whole pixels that a box of a picture touches, and the box within them; `pixels` were reduced by the factor.

    As in torchvision, resampling then sees no pixel from outside the box; and less is copied.
    """
    left, top, right, bottom = (side / factor for side in box)
    right, bottom = min(right, pixels.shape[1]), min(bottom, pixels.shape[0])
    x, y = math.floor(left), math.floor(top)
    part = np.ascontiguousarray(pixels[y : math.ceil(bottom), x : math.ceil(right)])
    return Image.fromarray(part), (left - x, top - y, right - x, bottom - y)


def _shown(image: Image.Image, max_pixels: int, *, ours: bool = False) -> Image.Image:
    """The picture as it is shown, in a mode of 8 bits per channel; if it is `ours`, it may be changed in place."""
    check_size(*image.size, max_pixels)
    exif = image.info.get("exif", b"")
    if isinstance(exif, bytes):
        check_tags(exif.removeprefix(b"Exif\0\0"), MAX_PIXELS)
    with _without_pillows_bound(image):
        image.load()
        if ours:
            ImageOps.exif_transpose(image, in_place=True)
        else:
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        return _to_8_bits(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range: save it with 8 or 16 bits")
    # Pillow warns of transparent palette entries unless they are converted to RGBA first; alpha is dropped later.
    return image.convert("RGBA") if "transparency" in image.info else image


_one_at_a_time = threading.Lock()


@contextlib.contextmanager
def _without_pillows_bound(image: Image.Image) -> Iterator[None]:
    """Lifts Pillow's bound, since ours was checked before. Huge pictures are decoded one at a time."""
    if image.width * image.height <= PILLOWS_PIXELS:
        yield
        return
    with _one_at_a_time:
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 bits, scaled to 8, which Pillow would clip."""
    values = np.asarray(image)
    pixels = np.empty(values.shape, np.uint8)
    rows = max(1, ROWS_AT_ONCE // image.width)  # a part at a time, since wider numbers take several times the memory
    for start in range(0, len(values), rows):
        part = values[start : start + rows].astype(np.int64)
        if part.min() < 0 or part.max() > 65535:
            raise ValueError("pixels of 32 bits have no known range: save it with 8 or 16 bits")
        pixels[start : start + rows] = (part * 255 + 32767) // 65535
    return Image.fromarray(pixels)


def _padded(image: Image.Image, pad: int, max_pixels: int) -> Image.Image:
    """The picture with `pad` pixels of zeros on each side."""
    check_size(image.width + 2 * pad, image.height + 2 * pad, max_pixels)
    return ImageOps.expand(image, pad) if pad else image


def _formed(image: Image.Image, box: Box | None, form: Format, crop: Crop | None, max_pixels: int) -> np.ndarray:
    mode = "L" if form.channels == 1 else "RGB"
    image = _padded(image if image.mode == mode else image.convert(mode), form.pad, max_pixels)
    if crop:
        image, box = _part(np.asarray(image), crop(image.height, image.width), 1)
    return _to_square(image, form, box)


def _to_square(image: Image.Image, form: Format, box: Box | None) -> np.ndarray:
    size = form.image_size
    if size is not None:
        if box is None and form.fit == "resize_crop":
            image = _resize_and_crop(image, size, form)
        else:
            if box is None and form.fit == "crop":
                side = min(image.size) * form.crop_share
                left, top = ((length - side) / 2 for length in image.size)
                box = (left, top, left + side, top + side)
            image = image.resize((size, size), FILTERS[form.resize], box=box)
    return np.array(image).reshape(image.height, image.width, form.channels)


def _resize_and_crop(image: Image.Image, crop: int, form: Format) -> Image.Image:
    """The center of the resized picture, rounded as in torchvision's functional.resize and center_crop."""
    resize = round(crop / form.crop_share)
    short, long = sorted(image.size)
    short, long = resize, int(resize * long / short)
    size = (short, long) if image.width <= image.height else (long, short)
    if long * short > MAX_PIXELS:
        shape = f"{image.width}x{image.height} pixels"
        raise TooLargeError(f"a picture of {shape} is too long to be resized to {short} wide")
    if image.size != size:
        image = image.resize(size, FILTERS[form.resize])
    left, top = (round((side - crop) / 2) for side in size)
    return image.crop((left, top, left + crop, top + crop))
