"""Files of MNIST's format (IDX): 2 zero bytes, type, number of dimensions, their sizes (big-endian), then bytes."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from pathlib import Path

import numpy as np

from hardware.reading import ARRAY_BYTES, Unreadable, bytes_of, is_there, shown

_HEADER = 4 + 4 * 255
"""Bytes of the longest header."""


def idx_file(folder: Path, name: str) -> Path | None:
    """Return the file of this name, or the packed one; None where there is neither."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if is_there(path) and not path.is_dir()), None)


def read_idx(folder: Path, name: str) -> np.ndarray:
    """Read a file of bytes.

    Raises:
        FileNotFoundError: There is none.
        Unreadable: It is no such file, or its header says another size.
    """
    path = idx_file(folder, name)
    if path is None:
        raise FileNotFoundError(f"{name} (or {name}.gz) is missing")
    try:
        content = bytes_of(path)
        if path.suffix == ".gz":
            # as much as its header says, and one more to see that there is more: two gigabytes can be packed in two
            # megabytes
            start, shape = _shape(unpacked(content, cut_at=_HEADER))
            content = unpacked(content, cut_at=min(start + math.prod(shape), ARRAY_BYTES) + 1)
        start, shape = _shape(content)
        if start + math.prod(shape) != len(content):
            raise Unreadable(f"its header says {shown(shape)} values, but {_others(content, start, shape)} follow")
        return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()
    except Unreadable as error:
        raise Unreadable(f"{path}: {error}") from None


def _shape(content: bytes) -> tuple[int, list[int]]:
    """Return where the values begin, and their shape."""
    if content[:3] != b"\0\0\x08" or len(content) < 4:
        raise Unreadable("it is no IDX file of bytes (its first three are not 0, 0, 8)")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise Unreadable(f"it is cut short: {len(content)} bytes do not hold its header")
    shape = [int(side) for side in np.frombuffer(content, ">u4", content[3], 4)]
    if not shape:
        raise Unreadable("its header names no dimension")
    return start, shape


def _others(content: bytes, start: int, shape: list[int]) -> str:
    more = len(content) > start + math.prod(shape)
    return "more" if more else str(len(content) - start)


def unpacked(content: bytes, *, cut_at: int) -> bytes:
    """Unpack what gzip has packed, at most so many bytes.

    Raises:
        Unreadable: It is no gzip, or is cut short.
    """
    parts, left = [], cut_at
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as stream:
            while left and (part := stream.read(min(left, 2**20))):
                parts.append(part)
                left -= len(part)
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable(f"it is no whole file of gzip ({error})") from None
    return b"".join(parts)
