"""Headers of picture files, read before anything is decoded: what a file may ask of its decoder, and its orientation.

A small file can make a decoder take any amount of time and memory: by its number of pixels, of scans (JPEG), or of
strips, tiles and tags (TIFF, EXIF). The bounds are checked here.
"""

import struct
from collections.abc import Iterator

from PIL import ExifTags, Image

# The most pixels that are decoded: twice Pillow's own bound, where it refuses, too: 179 million, such as 13,377x13,377.
MAX_PIXELS = 2 * 89_478_485
PILLOWS_PIXELS = 89_478_485  # above, Pillow warns; such a picture takes up to 2 GB to decode
MAX_SIDE = 65_535  # pixels; the limit of JPEG. Pillow keeps a pointer per row, whatever the width
MAX_SCANS = 100  # of a JPEG; encoders write about ten. Thousands fit into a few bytes, and each passes over all pixels
MAX_BYTES = 8 * MAX_PIXELS  # of a file: four uncompressed channels of 16 bits
MAX_PIECES = 65_536  # strips or tiles of a TIFF; each takes Pillow 0.3 KB and 8 us
MAX_TAGS = 4096  # of a TIFF or of EXIF data
MAX_SHARING = 8  # bytes of tag values per byte of the file; more than 1 is damage that Pillow tolerates
# Markers of the JPEG standard. EXIF and XMP data are in APP1; frames that are not progressive may have one scan.
START_OF_SCAN, APP1, ONE_SCAN, WITHOUT_SEGMENT = 0xDA, 0xE1, (0xC0, 0xC1, 0xC9), (0x01, *range(0xD0, 0xD9))
# TIFF and EXIF: bytes of a value by its type, and numbers of tags; MORE_TAGS point to further directories of tags.
TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
TILE_WIDTH, TILE_LENGTH, STRIPS, TILES, MORE_TAGS = 322, 323, 273, 324, (34665, 34853, 40965)


class TooLargeError(ValueError):
    """A picture is larger than what is decoded, in pixels, width, height or bytes."""


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises TooLargeError for more than `max_pixels`, or a side above MAX_SIDE."""
    if width * height > max_pixels:
        raise TooLargeError(f"it has {width}x{height} pixels; at most {max_pixels / 1e6:.4g} million are allowed")
    if max(width, height) > MAX_SIDE:
        raise TooLargeError(f"it has {width}x{height} pixels; at most {MAX_SIDE:,} on a side are allowed")


def check_tags(content: bytes, max_pixels: int) -> None:
    """Raises ValueError if the tags of a TIFF, or of EXIF data, would make Pillow allocate far more than its bytes.

    Tiles must be within the bounds of pictures, the number of tiles or strips is limited, and so is the total size of
    the values, since any number of tags may point to the same bytes.
    """
    if content[:2] not in (b"II", b"MM"):
        return
    order = "<" if content[:2] == b"II" else ">"
    big = content[2:4] in (b"+\0", b"\0+")  # BigTIFF
    pointer, head, entry = (struct.Struct(order + form) for form in (("Q", "Q", "HHQ") if big else ("L", "H", "HHL")))
    size = entry.size + pointer.size
    waiting, seen, values = [pointer.size], set(), 0  # offsets of pointers to directories of tags
    while waiting:
        place = waiting.pop()
        place = pointer.unpack_from(content, place)[0] if place + pointer.size <= len(content) else len(content)
        if place in seen or place + head.size > len(content):
            continue
        seen.add(place)
        (number,) = head.unpack_from(content, place)
        if number > MAX_TAGS or len(seen) > MAX_TAGS:
            raise ValueError(f"it has more than {MAX_TAGS} tags")
        first, tile = place + head.size, [1, 1]
        for place in range(first, min(first + number * size, len(content) - size + 1), size):
            tag, kind, count = entry.unpack_from(content, place)
            values += min(TYPE_BYTES.get(kind, 1) * count, len(content))
            if values > MAX_SHARING * len(content):
                raise ValueError("its tags have far more values than it has bytes")
            if tag in (STRIPS, TILES) and count > MAX_PIECES:
                raise ValueError(f"it is in {count:,} pieces; at most {MAX_PIECES:,} are allowed")
            if tag in (TILE_WIDTH, TILE_LENGTH):
                number_form = order + ("H" if kind == 3 else "L")
                (tile[tag - TILE_WIDTH],) = struct.unpack_from(number_form, content, place + entry.size)
            if tag in MORE_TAGS:
                waiting.append(place + entry.size)
        check_size(tile[0], tile[1], max_pixels)


def segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """The markers of a JPEG and the content of their segments, up to that of the first scan."""
    place, marker = 2, None
    while marker != START_OF_SCAN and content[place : place + 1] == b"\xff" and place + 4 <= len(content):
        marker = content[place + 1]
        if marker == 0xFF:  # a marker may start with several of these
            place += 1
        elif marker in WITHOUT_SEGMENT:
            place += 2
        else:
            end = place + 2 + int.from_bytes(content[place + 2 : place + 4])
            yield marker, content[place + 4 : end]
            place = end


def scans(content: bytes) -> int:
    """The number of passes over the pixels: the scans of a JPEG, else 1. Raises ValueError if there are too many."""
    if content[:2] != b"\xff\xd8":
        return 1
    components = None
    for marker, segment in segments(content):
        if marker in ONE_SCAN:
            components = segment[5:6]
        elif marker == START_OF_SCAN and segment[:1] == components:  # the first scan has all components
            return 1
    number = content.count(b"\xff\xda")
    if number > MAX_SCANS:
        raise ValueError(f"it has {number} scans; at most {MAX_SCANS} are allowed")
    return max(number, 1)


def may_be_turned(content: bytes) -> bool:
    """Whether a JPEG's EXIF or XMP data asks for it to be rotated or mirrored, or may do so."""
    for marker, segment in segments(content):
        if marker == APP1:
            if b"tiff:Orientation" in segment:  # XMP, which Pillow also follows
                return True
            if segment.startswith(b"Exif"):
                exif = Image.Exif()
                try:
                    check_tags(segment[6:], MAX_PIXELS)
                    exif.load(segment)
                    if exif.get(ExifTags.Base.Orientation, 1) != 1:
                        return True
                except Exception:  # damaged; Pillow decides what to make of it
                    return True
    return False
