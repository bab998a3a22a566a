"""Decoding, against Pillow: pictures as people have them, in every mode, and what is no picture."""

import io
import warnings

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from inception_jax.data import images
from inception_jax.data.images import Format
from inception_jax.errors import UserError

RNG = np.random.default_rng(0)
# Smooth enough for JPEG to be faithful, different along both axes.
ROWS, COLUMNS = np.mgrid[:40, :56]
COLORS = np.stack([ROWS * 6, COLUMNS * 4, 255 - ROWS * 3 - COLUMNS], -1).astype(np.uint8)
GRAY = COLORS[..., 0]


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pillow(content: bytes, mode: str = "RGB") -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert(mode))


def turned(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(Image.fromarray(COLORS), "JPEG", exif=exif)


RGB = Image.fromarray(COLORS)
PLAIN = {
    "jpeg": encoded(RGB, "JPEG", quality=90),
    "jpeg, no subsampling": encoded(RGB, "JPEG", subsampling=0),
    "progressive jpeg": encoded(RGB, "JPEG", progressive=True),
    "gray jpeg": encoded(Image.fromarray(GRAY), "JPEG"),
    "cmyk jpeg": encoded(RGB.convert("CMYK"), "JPEG"),
    "png": encoded(RGB, "PNG"),
    "gray png": encoded(Image.fromarray(GRAY), "PNG"),
    "gray png with alpha": encoded(Image.fromarray(GRAY).convert("LA"), "PNG"),
    "png of two colours": encoded(Image.fromarray(GRAY).convert("1"), "PNG"),
    "palette png": encoded(RGB.quantize(16), "PNG"),
    "gif": encoded(RGB.quantize(64), "GIF"),
    "animated gif": encoded(RGB.quantize(64), "GIF", save_all=True, append_images=[Image.new("P", (56, 40))]),
    "bmp": encoded(RGB, "BMP"),
    "webp": encoded(RGB, "WEBP", lossless=True),
    "tiff": encoded(RGB, "TIFF"),
    "tiff, cmyk": encoded(RGB.convert("CMYK"), "TIFF"),
    "a line": encoded(RGB.crop((0, 0, 56, 1)), "PNG"),
} | {f"turned, EXIF {orientation}": turned(orientation) for orientation in range(1, 9)}


@pytest.mark.parametrize("content", PLAIN.values(), ids=PLAIN)
def test_pixels_are_pillows(content):
    expected = pillow(content)
    np.testing.assert_array_equal(images.decode(content, Format()), expected)
    assert images.verify(content)[:2] == expected.shape[:2]
    gray = images.decode(content, Format(channels=1))
    np.testing.assert_array_equal(gray[..., 0], np.asarray(Image.fromarray(expected).convert("L")))
    for resize, resampling in (("bilinear", Image.Resampling.BILINEAR), ("bicubic", Image.Resampling.BICUBIC)):
        small = images.decode(content, Format(12, resize=resize))
        np.testing.assert_array_equal(small, np.asarray(Image.fromarray(expected).resize((12, 12), resampling)))


def test_transparency_is_dropped_without_a_word():
    rgba = Image.fromarray(np.dstack([COLORS, GRAY]))
    for content in (encoded(rgba, "PNG"), encoded(rgba, "WEBP", lossless=True, exact=True)):
        np.testing.assert_array_equal(images.decode(content, Format()), COLORS)
    content = encoded(RGB.quantize(16), "PNG", transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(images.decode(content, Format()), np.asarray(RGB.quantize(16).convert("RGB")))


def test_exif_data_that_says_something_else_costs_nothing(monkeypatch):
    exif = Image.Exif()
    exif[ExifTags.Base.Artist] = "somebody"
    plain = encoded(RGB, "JPEG", exif=exif)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    turned_by_xmp = encoded(RGB, "JPEG", xmp=xmp)
    for content in (plain, turned(1), turned_by_xmp):
        np.testing.assert_array_equal(images.decode(content, Format()), pillow(content))
    assert images.decode(turned_by_xmp, Format()).shape == (56, 40, 3)
    monkeypatch.setattr(images.Image, "open", None)
    for content in (plain, turned(1)):
        images.decode(content, Format())


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bits_become_8(kind):
    wide = np.linspace(0, 65535, 40 * 56).astype(np.uint16).reshape(40, 56)
    content = encoded(Image.fromarray(wide), kind)
    expected = np.rint(wide / 257).astype(np.uint8)
    for channel in np.moveaxis(images.decode(content, Format()), -1, 0):
        np.testing.assert_array_equal(channel, expected)
    assert images.verify(content)[2] in images.GRAY_MODES


@pytest.mark.parametrize(
    ("name", "mode"), [("jpeg", "RGB"), ("gray jpeg", "L"), ("cmyk jpeg", "CMYK"), ("palette png", "P"), ("png", "RGB")]
)
def test_modes_are_told(name, mode):
    assert images.verify(PLAIN[name]) == (40, 56, mode)


def test_a_square_from_the_centre():
    # As torchvision's Resize(32) and CenterCrop(28) do it, up to the resampling's rounding of places.
    content = PLAIN["png"]
    cropped = images.decode(content, Format(28, fit="crop", crop_share=28 / 32))
    box = (28 - 17.5, 20 - 17.5, 28 + 17.5, 20 + 17.5)
    expected = np.asarray(RGB.resize((28, 28), Image.Resampling.BILINEAR, box=box))
    np.testing.assert_array_equal(cropped, expected)
    resized = RGB.resize((int(32 * 56 / 40), 32), Image.Resampling.BILINEAR)
    left = round((resized.width - 28) / 2)
    np.testing.assert_allclose(cropped, np.asarray(resized.crop((left, 2, left + 28, 30))), atol=4)


@pytest.mark.parametrize("box", [(0, 0, 56, 40), (3, 5, 30, 37), (10, 2, 17, 9)])
@pytest.mark.parametrize("name", ["jpeg", "gray jpeg", "png", "turned, EXIF 6"])
def test_boxes(name, box):
    content = PLAIN[name]
    picture = Image.fromarray(pillow(content))
    box = tuple(min(side, limit) for side, limit in zip(box, picture.size * 2, strict=True))
    expected = np.asarray(picture.crop(box).resize((16, 16), Image.Resampling.BILINEAR)).astype(int)
    # A JPEG may be decoded at a fraction of its size: here, to 20x28.
    difference = np.abs(images.decode(content, Format(16), lambda height, width: box) - expected)
    assert difference.mean() < 2
    assert difference.max() == 0 or name.endswith("jpeg")


def test_a_jpeg_is_decoded_at_the_scale_that_its_box_allows(monkeypatch):
    large = encoded(Image.fromarray(COLORS).resize((1120, 800)), "JPEG")
    sizes = []
    decode = images.simplejpeg.decode_jpeg

    def noted(*args, **options):
        pixels = decode(*args, **options)
        sizes.append(pixels.shape)
        return pixels

    monkeypatch.setattr(images.simplejpeg, "decode_jpeg", noted)
    for side in (800, 447, 224, 112, 10):
        images.decode(large, Format(112), lambda height, width, side=side: (0, 0, side, side))
    images.decode(large, Format(112))
    quarter, half, whole = (200, 280), (400, 560), (800, 1120)
    assert [shape[:2] for shape in sizes] == [quarter, half, half, whole, whole, whole]


BROKEN = {
    "empty": b"",
    "text": b"this is no picture",
    "half a jpeg": PLAIN["jpeg"][: len(PLAIN["jpeg"]) // 2],
    "half a gray jpeg": PLAIN["gray jpeg"][: len(PLAIN["gray jpeg"]) // 2],
    "half a turned jpeg": PLAIN["turned, EXIF 3"][: len(PLAIN["turned, EXIF 3"]) * 3 // 4],
    "half a png": PLAIN["png"][: len(PLAIN["png"]) // 2],
    "a jpeg's first bytes": PLAIN["jpeg"][:20],
    "floating-point tiff": encoded(Image.fromarray(GRAY.astype(np.float32)), "TIFF"),
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_what_is_no_picture_is_noticed(content):
    for read in (images.verify, lambda content: images.decode(content, Format(8))):
        with pytest.raises((OSError, ValueError, SyntaxError)):
            read(content)


def test_what_pillow_forgives_is_forgiven():
    content = PLAIN["jpeg"] + b"\0" * 10
    np.testing.assert_array_equal(images.decode(content, Format()), pillow(PLAIN["jpeg"]))
    assert images.verify(content) == (40, 56, "RGB")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size=0"),
        ({"channels": 2}, "channels=2"),
        ({"resize": "bilinaer"}, "Did you mean 'bilinear'"),
        ({"fit": "stretch"}, "unknown fit 'stretch'"),
        ({"crop_share": 0}, "crop_share=0"),
    ],
)
def test_formats_that_there_are_not(options, message):
    with pytest.raises(UserError, match=message):
        Format(**options)


def test_real_photographs(originals):
    """The 70 photographs at full size, six of them gray, and a crop of each at the scale that it allows."""
    folder = originals / "imagenet-originals"
    if not folder.is_dir():
        pytest.skip("no folder imagenet-originals among the originals")
    modes = []
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        expected = pillow(content)
        np.testing.assert_array_equal(images.decode(content, Format()), expected)
        modes.append(images.verify(content)[2])
        height, width = expected.shape[:2]
        box = (width // 8, height // 8, width, height)
        crop = np.asarray(Image.fromarray(expected).crop(box).resize((96, 96), Image.Resampling.BILINEAR)).astype(int)
        assert np.abs(images.decode(content, Format(96), lambda height, width, box=box: box) - crop).mean() < 4
    assert len(modes) == 70
    assert modes.count("L") == 6
