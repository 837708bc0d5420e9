"""Which files go to the GPU's decoder, by kinds of files that Pillow writes and by bytes that are changed in them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from proxyless_strategy.data.jpeg_header import plain_jpeg


def encoded(mode: str = "RGB", kind: str = "JPEG", *, size: tuple[int, int] = (40, 24), **options: Any) -> bytes:
    width, height = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def with_segment(content: bytes, marker: int, body: bytes) -> bytes:
    """Put a segment behind the start of the picture."""
    return content[:2] + segment(marker, body) + content[2:]


def exif(orientation: int) -> bytes:
    data = Image.Exif()
    data[0x0112] = orientation
    return data.tobytes()


def xmp(orientation: int) -> bytes:
    text = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r tiff:Orientation="{orientation}"/></x:xmpmeta>'
    return b"http://ns.adobe.com/xap/1.0/\0" + text.encode()


def frame_of(content: bytes) -> int:
    """Where the frame header's marker stands."""
    return next(place for marker in (b"\xff\xc0", b"\xff\xc2") if (place := content.find(marker)) > 0)


def changed(content: bytes, place: int, value: int) -> bytes:
    return content[:place] + bytes([value]) + content[place + 1 :]


ADOBE = b"Adobe\0\x64\0\0\0\0"

PLAIN = {
    "4:2:0": (encoded(), 3),
    "4:2:2": (encoded(subsampling=1), 3),
    "4:4:4": (encoded(subsampling=0), 3),
    "progressive": (encoded(progressive=True), 3),
    "grey": (encoded("L"), 1),
    "progressive grey": (encoded("L", progressive=True), 1),
    "restart intervals": (encoded(restart_marker_blocks=2), 3),
    "a comment and a profile": (encoded(comment=b"a", icc_profile=b"profile"), 3),
    "EXIF that says upright": (encoded(exif=exif(1)), 3),
    "XMP that says upright": (with_segment(encoded(), 0xE1, xmp(1)), 3),
    "Adobe's YCbCr": (with_segment(encoded(), 0xEE, ADOBE + b"\1"), 3),
}
OTHER = {
    "PNG": encoded(kind="PNG"),
    "GIF": encoded("P", "GIF"),
    "WebP": encoded(kind="WEBP"),
    "TIFF": encoded(kind="TIFF"),
    "CMYK": encoded("CMYK"),
    "RGB without a transform": encoded(keep_rgb=True),
    "Adobe's RGB": with_segment(encoded(), 0xEE, ADOBE + b"\0"),
    "a damaged Adobe segment": with_segment(encoded(), 0xEE, b"Adobe"),
    "several pictures": with_segment(encoded(), 0xE2, b"MPF\0rest"),
    "MPO": encoded(kind="MPO", save_all=True, append_images=[Image.new("RGB", (40, 24))]),
    "arithmetic coding": changed(encoded(), frame_of(encoded()) + 1, 0xC9),
    "extended sequential": changed(encoded(), frame_of(encoded()) + 1, 0xC1),
    "12 bits": changed(encoded(), frame_of(encoded()) + 4, 12),
    "no rows": changed(changed(encoded(), frame_of(encoded()) + 5, 0), frame_of(encoded()) + 6, 0),
    "two components": changed(encoded(), frame_of(encoded()) + 9, 2),
    "odd sampling": changed(encoded(), frame_of(encoded()) + 11, 0x41),
    "odd sampling of grey": changed(encoded("L"), frame_of(encoded("L")) + 11, 0x22),
    "components by letters": changed(encoded(), frame_of(encoded()) + 10, ord("R")),
    "a first scan of one component": changed(encoded(), encoded().find(b"\xff\xda") + 4, 1),
    "16-bit quantisation": with_segment(encoded(), 0xDB, b"\x10" + b"\0\1" * 64),
    "truncated": encoded()[:-40],
    "without its end": encoded()[:-2],
    "truncated, with an end": encoded()[:400],
    "something behind its end": encoded() + b"\0",
    "another picture behind its end": encoded() + encoded(),
    "nothing": b"",
    "the start alone": b"\xff\xd8\xff\xd9",
    "a segment longer than the file": b"\xff\xd8\xff\xe0\xff\xff\xff\xd9",
    "more pixels than are converted": changed(
        changed(encoded(), frame_of(encoded()) + 5, 0xFF), frame_of(encoded()) + 7, 0xFF
    ),
    **{f"EXIF orientation {turn}": encoded(exif=exif(turn)) for turn in range(2, 9)},
    "XMP orientation": with_segment(encoded(), 0xE1, xmp(6)),
}


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_files_are_known_by_their_size(kind: str) -> None:
    content, components = PLAIN[kind]
    assert plain_jpeg(content) == (24, 40, components)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.height, image.width, len(image.getbands())) == (24, 40, components)


@pytest.mark.parametrize("kind", OTHER)
def test_what_decoders_may_differ_in_is_left_to_pillow(kind: str) -> None:
    assert plain_jpeg(OTHER[kind]) is None


def test_every_beginning_of_a_file_is_left_to_pillow() -> None:
    content = encoded(exif=exif(1))
    assert plain_jpeg(content) is not None
    assert all(plain_jpeg(content[:length]) is None for length in range(len(content)))
