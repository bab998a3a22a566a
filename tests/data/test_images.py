"""Decoding, against Pillow: pictures as people have them, in every mode, and what is no picture."""

import ast
import io
import os
import struct
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from inception_jax.data import headers, images, scan, sources
from inception_jax.data.images import Format
from inception_jax.errors import UserError
from inception_jax.weights import Preprocessing

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
    monkeypatch.setattr(images, "_open_file", None)
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


FORMS = [Format(pad=3), Format(20, pad=5), Format(96, 1, "bicubic", pad=3), Format(16, 3, "bilinear", "crop", 0.75, 7)]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("name", ["jpeg", "gray jpeg", "png", "turned, EXIF 6"])
def test_padding(name, form):
    """NumPy pads the picture as it is shown, and Pillow cuts and resizes it."""
    pixels = pillow(PLAIN[name], "L" if form.channels == 1 else "RGB")
    padded = np.pad(pixels, ((form.pad, form.pad), (form.pad, form.pad), (0, 0))[: pixels.ndim])
    height, width = padded.shape[:2]
    half, box = min(height, width) * form.crop_share / 2, None
    if form.fit == "crop":
        box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
    expected = padded
    if form.image_size:
        size, resampling = (form.image_size, form.image_size), images.FILTERS[form.resize]
        expected = np.asarray(Image.fromarray(padded).resize(size, resampling, box))
    expected = expected.reshape(*expected.shape[:2], form.channels)
    np.testing.assert_array_equal(images.decode(PLAIN[name], form), expected)
    with Image.open(io.BytesIO(PLAIN[name])) as image:
        np.testing.assert_array_equal(images.convert(image, form), expected)


def test_a_crop_is_cut_out_of_the_padded_picture():
    padded, box, sizes = np.pad(pillow(PLAIN["jpeg"]), ((8, 8), (8, 8), (0, 0))), (2, 4, 50, 40), []

    def crop(height, width):
        sizes.append((height, width))
        return box

    expected = np.asarray(Image.fromarray(padded).crop(box).resize((12, 12), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(images.decode(PLAIN["jpeg"], Format(12, pad=8), crop), expected)
    assert sizes == [(56, 72)]


def test_a_padded_digit_is_enlarged_as_by_keras():
    """MNIST's 28 pixels, padded to 32 and enlarged bilinearly to 224: between the centers of pixels, edges repeated."""
    digit = RNG.integers(0, 256, (28, 28), np.uint8)
    places = (np.arange(224) + 0.5) * (32 / 224) - 0.5
    expected = np.pad(digit, 2).astype(float)
    for _ in range(2):  # along the columns, then along the rows
        expected = np.array([np.interp(places, np.arange(32), line) for line in expected]).T
    found = images.convert(Image.fromarray(digit), Format(224, 3, pad=2))
    assert found.shape == (224, 224, 3)
    assert np.abs(found - expected[..., None]).max() <= 1  # Pillow rounds to whole levels, after either axis


def test_padding_does_not_make_a_picture_too_large():
    with pytest.raises(headers.TooLargeError):
        images.decode(PLAIN["png"], Format(8, pad=100), max_pixels=50_000)


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
        ({"pad": -1}, "pad=-1"),
        ({"pad": 1025}, "pad=1025 is not allowed: it must be from 0 to 1024 pixels"),
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


# One opener: the same bounds, formats and decisions, whatever a picture comes as.

PACKAGE = Path(images.__file__).parent.parent
MARKED = [*PLAIN, "16 bits", "16-bit tiff", "by XMP", "palette with alpha"]


def marked(name: str) -> bytes:
    if name == "16 bits":
        return encoded(Image.fromarray(np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)), "PNG")
    if name == "16-bit tiff":
        return encoded(Image.fromarray(np.linspace(0, 65535, 600).astype(np.uint16).reshape(20, 30)), "TIFF")
    if name == "by XMP":
        return encoded(RGB, "JPEG", xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><d tiff:Orientation="6"/></x:xmpmeta>')
    if name == "palette with alpha":
        return encoded(RGB.quantize(16), "PNG", transparency=bytes(range(16)))
    return PLAIN[name]


@pytest.mark.parametrize("name", MARKED)
def test_files_bytes_and_images_in_hand_become_the_same(name, tmp_path):
    content = marked(name)
    (tmp_path / "picture").write_bytes(content)
    expected = images.decode(content, Format())
    with Image.open(io.BytesIO(content)) as lazy, Image.open(io.BytesIO(content)) as loaded:
        loaded.load()
        before = loaded.size, loaded.mode, dict(loaded.info)
        for given in (content, tmp_path / "picture", str(tmp_path / "picture"), lazy, loaded):
            np.testing.assert_array_equal(images.open_picture(given), expected)
        for given in (lazy, loaded):
            np.testing.assert_array_equal(images.convert(given, Format()), expected)
        assert before == (loaded.size, loaded.mode, dict(loaded.info))  # it is its owner's
    inputs = Preprocessing(20, 16, (0.0,) * 3, (1.0,) * 3)
    np.testing.assert_array_equal(inputs(tmp_path / "picture"), inputs(expected))


@pytest.mark.parametrize("pixels", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 70_000, np.int32)])
def test_pixels_without_a_known_range_are_refused(pixels):
    image = Image.fromarray(pixels)
    for given in (image, encoded(image, "TIFF")):
        with pytest.raises(UserError, match="no known range: save it with 8 or 16 bits"):
            images.open_picture(given)


def tiff(width, height, *more, pieces=1):
    """A gray TIFF with a tag for each (number, type, count, value), and room for as many offsets of pieces."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), *more]
    head = b"II*\0" + struct.pack("<LH", 8, len(tags))
    return head + b"".join(struct.pack("<HHLL", *tag) for tag in tags) + bytes(4) + bytes(4 * pieces)


def png(width, height, *chunks):
    parts = [(b"IHDR", struct.pack(">LLBBBBB", width, height, 8, 0, 0, 0, 0)), *chunks, (b"IDAT", zlib.compress(b""))]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body)) for kind, body in parts
    )


def with_bytes(content, place, new):
    return content[:place] + new + content[place + len(new) :]


def head(kind, width, height):
    """A file whose head says that it has that size, and hardly any more."""
    if kind == "PNG":
        return png(width, height)
    if kind == "JPEG":
        return with_bytes(PLAIN["jpeg"], PLAIN["jpeg"].index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))
    if kind == "turned JPEG":
        content = turned(6)
        return with_bytes(content, content.index(b"\xff\xc0") + 5, struct.pack(">HH", height, width))
    if kind == "GIF":
        return with_bytes(PLAIN["gif"], 6, struct.pack("<HH", width, height))
    if kind == "BMP":
        return with_bytes(PLAIN["bmp"], 18, struct.pack("<LL", width, height))
    if kind == "TIFF":
        return tiff(width, height, (273, 4, 1, 0), (279, 4, 1, 0))
    return b"P6 %d %d 255\n" % (width, height) + bytes(10)


@pytest.mark.parametrize("size", [(14_000, 14_000), (60, 65_536), (65_536, 60)], ids=str)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "turned JPEG", "GIF", "BMP", "TIFF", "PPM"])
def test_one_bound_for_every_kind_before_anything_is_decoded(kind, size, monkeypatch):
    if "JPEG" in kind or kind == "GIF":  # whose sides cannot be longer
        size = min(size[0], 65_535), min(size[1], 65_535)
        monkeypatch.setattr(headers, "MAX_SIDE", 65_534)
    monkeypatch.setattr(ImageFile.ImageFile, "load", None)
    monkeypatch.setattr(images.simplejpeg, "decode_jpeg", None)
    content = head(kind, *size)
    for read in (images.verify, images.effort, lambda content: images.decode(content, Format(8))):
        with pytest.raises(images.TooLargeError, match=f"it has {size[0]}x{size[1]} pixels; at most"):
            read(content)
    with pytest.raises(UserError, match=r"picture given: it has .* pixels; at most 0.00\d* million"):
        images.open_picture(head(kind, 56, 40), max_pixels=2000)


def test_webp_is_bounded_before_its_decoder_is_made():
    canvas = b"VP8X" + struct.pack("<L", 10) + bytes(4) + (16_382).to_bytes(3, "little") * 2
    body = b"WEBP" + canvas + PLAIN["webp"][12:]
    with pytest.raises((images.TooLargeError, Image.DecompressionBombError)):
        images.verify(b"RIFF" + struct.pack("<L", len(body)) + body)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "GIF", "JPEG"])
def test_pillows_own_warning_is_not_shown(kind, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    monkeypatch.setattr(images, "PILLOWS_PIXELS", 2000)
    content = encoded(RGB, kind) if kind != "JPEG" else turned(3)
    images.decode(content, Format(8))  # a warning is an error here
    assert Image.MAX_IMAGE_PIXELS == 2000
    (tmp_path / "large.jpg").write_bytes(content)
    sources.check(sources.FileSource.of(tmp_path, ["large.jpg"]), tmp_path / "facts")
    assert "take long to decode, such as large.jpg" in caplog.text


SHOWING = (345, 4, 1, 0)  # a tag of no consequence


@pytest.mark.parametrize(
    "content",
    [
        tiff(2000, 2000, (322, 4, 1, 1), (323, 4, 1, 1), (324, 4, 100_000, 94), pieces=100_000),
        tiff(10, 10, (322, 4, 1, 40_000), (323, 4, 1, 12_000), (324, 4, 1, 94), (325, 4, 1, 4)),
        tiff(10, 10, *((40_000 + number, 1, 100_000, 8) for number in range(100)), pieces=25_000),
        tiff(10, 10, *[SHOWING] * 5000),
        png(10, 10, (b"eXIf", tiff(1, 1, *((40_000 + number, 1, 60_000, 8) for number in range(100)), pieces=15_000))),
        png(10, 10, (b"iCCP", b"x\0\0" + zlib.compress(bytes(30_000_000)))),
        png(10, 10, (b"zTXt", b"x\0\0" + zlib.compress(bytes(30_000_000)))),
    ],
    ids=["small tiles", "large tile", "tags that share bytes", "many tags", "EXIF data", "profile", "text"],
)
def test_what_would_become_far_more_than_it_has_bytes_is_refused(content):
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, SyntaxError, OSError)):
            images.verify(content)
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


def test_a_jpeg_of_many_scans_is_refused():
    progressive, plain = PLAIN["progressive jpeg"], PLAIN["jpeg"]
    more = b"\xff\xda\x00\x02" * 200
    frame = progressive.index(b"\xff\xc2")
    filled = progressive[:frame] + b"\xff\xff" + progressive[frame:]
    for content in (progressive[:-2] + more, filled[:-2] + more, turned(6).replace(b"\xff\xc0", b"\xff\xc2") + more):
        for read in (images.verify, images.effort, lambda content: images.decode(content, Format(8))):
            with pytest.raises(ValueError, match="scans; at most 100 are allowed"):
                read(content)
    assert images.effort(plain) == images.effort(plain + more) == 40 * 56  # they are behind its end
    assert images.effort(progressive) == 40 * 56 * progressive.count(b"\xff\xda")


@pytest.mark.parametrize("kind", ["EPS", "ICO", "JPEG2000", "PCX", "TGA", "SGI", "ICNS", "DDS", "PDF"])
def test_other_kinds_are_refused_and_named(kind, tmp_path):
    content = encoded(RGB.resize((32, 32)), kind)
    path = tmp_path / "cat.jpg"
    path.write_bytes(content)
    for read in (images.verify, lambda content: images.decode(content, Format(8))):
        with pytest.raises(UnidentifiedImageError):
            read(content)
    with pytest.raises(UserError, match=r"cannot read the picture .*cat.jpg: it is not a picture of a known format"):
        Preprocessing(8, 8, (0.0,) * 3, (1.0,) * 3)(path)
    facts = sources.check(sources.FileSource.of(tmp_path, ["cat.jpg"]), tmp_path / "facts")
    assert facts.errors == ["it is not a picture of a known format"]


def test_nothing_else_opens_pictures():
    for path in PACKAGE.rglob("*.py"):
        if path.name == "images.py":
            continue
        text = path.read_text()
        assert "import simplejpeg" not in text, path
        for node in ast.walk(ast.parse(text)) if "PIL" in text else ():
            opens = (
                isinstance(node, ast.Attribute) and node.attr == "open" and ast.unparse(node.value).endswith("Image")
            )
            assert not opens, f"{path}:{node.lineno} opens a picture by itself"


def test_names_and_formats_agree(tmp_path):
    assert set(scan.PICTURES) == {suffix for kind in images.FORMATS for suffix in images.SUFFIXES[kind]}
    for kind in images.FORMATS:
        for suffix in images.SUFFIXES[kind]:
            RGB.save(tmp_path / f"picture{suffix}", kind)
            assert images.open_picture(tmp_path / f"picture{suffix}").size == RGB.size


def test_pipes_devices_and_folders_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere")
    with (tmp_path / "sparse.jpg").open("wb") as file:
        file.truncate(images.MAX_BYTES + 1)
    names = ["pipe.jpg", "folder.jpg", "zero.jpg", "loop.jpg", "gone.jpg", "sparse.jpg"]
    facts = sources.check(sources.FileSource.of(tmp_path, names), tmp_path / "facts")
    reasons = [
        "a pipe or a device",
        "directory",
        "a pipe or a device",
        "symbolic links",
        "No such file",
        "bytes; at most",
    ]
    for name, why, expected in zip(names, facts.errors, reasons, strict=True):
        assert expected in why
        with pytest.raises(UserError, match=f"{name}: .*{expected}"):
            images.open_picture(tmp_path / name)


def test_a_picture_too_long_for_its_width_is_refused():
    with pytest.raises(UserError, match="1x60000 pixels is too long to be resized to 256 wide"):
        Preprocessing(256, 224, (0.0,) * 3, (1.0,) * 3)(np.zeros((60_000, 1), np.uint8))
