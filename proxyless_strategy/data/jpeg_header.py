"""Which JPEG files every decoder reads alike: 8-bit grey or YCbCr, upright, whole."""

from __future__ import annotations

import io
from typing import NamedTuple

from PIL import Image

from .reading import MOST_CONVERTED, is_turned

_START, _END = b"\xff\xd8\xff", b"\xff\xd9"
_BASELINE, _PROGRESSIVE = 0xC0, 0xC2
_SCAN, _TABLES, _ADOBE, _EXIF_OR_XMP, _MORE_PICTURES = 0xDA, 0xDB, 0xEE, 0xE1, 0xE2
_HARMLESS = {0xC4, _TABLES, 0xDD, 0xFE, *range(0xE0, 0xF0)}
"""Huffman and quantisation tables, restart intervals, comments, application data."""
_SAMPLING = ((1, 1), (2, 1), (2, 2), (1, 2))
"""Of the luma against one sample of each chroma: 4:4:4, 4:2:2, 4:2:0, 4:4:0."""


class PlainJpeg(NamedTuple):
    """What a header says of such a file; `components` is 1 (grey) or 3 (YCbCr)."""

    height: int
    width: int
    components: int


def plain_jpeg(content: bytes) -> PlainJpeg | None:
    """Return what the header of a plain JPEG file says; None for every other file.

    Whatever decoders may differ in makes a file another one: RGB, CMYK or YCCK channels, 12 bits, arithmetic coding, a
    baseline file of several scans, unusual sampling, an orientation in EXIF or XMP, several pictures, a missing end,
    something behind the end, and more pixels than are converted.

    Args:
        content: The whole file.
    """
    if not content.startswith(_START) or not content.endswith(_END):
        return None
    found: PlainJpeg | None = None
    baseline = described = False
    place = 2
    while place + 4 <= len(content):
        if content[place] != 0xFF:
            return None
        marker = content[place + 1]
        length = int.from_bytes(content[place + 2 : place + 4], "big")
        body = content[place + 4 : place + 2 + length]
        if length < 2 or len(body) != length - 2:
            return None
        place += 2 + length
        if marker in (_BASELINE, _PROGRESSIVE):
            baseline = marker == _BASELINE
            if found is not None or (found := _frame(body)) is None:
                return None
        elif marker == _SCAN:
            if found is None or not body or (baseline and body[0] != found.components):
                return None
            # Coded data have no such two bytes before their end: what follows an earlier end is another picture.
            if content.find(_END, place) != len(content) - 2 or (described and _is_turned(content)):
                return None
            return found
        elif (
            marker not in _HARMLESS
            or (marker == _ADOBE and body.startswith(b"Adobe") and (len(body) < 12 or body[11] != 1))
            or (marker == _MORE_PICTURES and body.startswith(b"MPF\0"))
            or (marker == _TABLES and not _has_8_bits(body))
        ):
            return None
        described = described or marker == _EXIF_OR_XMP
    return None


def _frame(body: bytes) -> PlainJpeg | None:
    """Read a frame header: precision, height, width, and each component's number and sampling."""
    if len(body) < 6 or len(body) != 6 + 3 * body[5] or body[0] != 8 or body[5] not in (1, 3):
        return None
    height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
    numbers = tuple(body[6::3])
    luma, *chroma = [(value >> 4, value & 15) for value in body[7::3]]
    if not 0 < height * width <= MOST_CONVERTED:
        return None
    # The letters R, G, B as numbers say that the channels are those.
    plain = luma == (1, 1) if not chroma else numbers == (1, 2, 3) and luma in _SAMPLING and set(chroma) == {(1, 1)}
    return PlainJpeg(height, width, body[5]) if plain else None


def _has_8_bits(body: bytes) -> bool:
    """Whether all quantisation tables of a segment have 8 bits a value: each is 65 bytes then."""
    return len(body) % 65 == 0 and all(value >> 4 == 0 for value in body[::65])


def _is_turned(content: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(content)) as image:
            return image.format != "JPEG" or is_turned(image)
    except Exception:  # whoever decodes it says what is wrong with it
        return True
