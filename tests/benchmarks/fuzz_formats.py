"""Formats of files: how the content of a real file is changed so that it stays near to a valid one.

A format is a function of a real content and a `random.Random`. Texts are parsed once for each content.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from tests.benchmarks.fuzz_mutations import (
    MARK,
    NUMBERS,
    TEXTS,
    Node,
    changed_tree,
    strange_leaf,
    tree_of,
    values_of,
)
from tests.benchmarks.fuzz_texts import changed_bytes, changed_text, cut, flipped, leaf_text, written

Format = Callable[[bytes, random.Random], bytes]

# ---- texts ---------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=256)
def _yaml_tree(content: bytes) -> Node | None:
    try:
        return tree_of(yaml.load(content, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except Exception:  # found by a fuzzer that is guided by coverage: no longer YAML, and changed as a text alone
        return None


@functools.lru_cache(maxsize=256)
def _json_tree(content: bytes) -> Node | None:
    try:
        return tree_of(json.loads(content))
    except (ValueError, RecursionError):
        return None


def yaml_text(content: bytes, rng: random.Random) -> bytes:
    tree = _yaml_tree(content)
    if tree is None or rng.random() < 0.3:
        return changed_text(content, rng)
    return written(changed_tree(tree, rng), rng, yaml=True)


def json_text(content: bytes, rng: random.Random) -> bytes:
    tree = _json_tree(content)
    if tree is None or rng.random() < 0.2:
        return changed_text(content, rng)
    return written(changed_tree(tree, rng), rng, yaml=False)


def key_text(content: bytes, rng: random.Random) -> bytes:
    """Change one line whose parts are numbers and words: an operator's key, a setting of the command line."""
    text = content.decode("utf-8", "replace")
    for _ in range(rng.choice((1, 1, 2))):
        parts = [part for separator in "-:x=.," for part in text.split(separator)]
        old = rng.choice(parts)
        new = rng.choice(
            (rng.choice(parts), leaf_text(rng.choice(NUMBERS)), rng.choice(TEXTS), leaf_text(strange_leaf(rng)))
        )
        text = rng.choice((text.replace(old, new, 1) if old else text + new, text + new, new + text))
        if len(text) > 20_000:
            break
    data = text.encode("utf-8", "surrogatepass")
    return changed_bytes(data, rng) if rng.random() < 0.2 else data


# ---- pickles and checkpoints ---------------------------------------------------------------------------------------

PAYLOADS = (
    f"cos\nsystem\n(S'touch {MARK}'\ntR.".encode(),
    f"cposix\nsystem\n(S'touch {MARK}'\ntR.".encode(),
    f"cbuiltins\nexec\n(S'open({MARK!r}, \"w\")'\ntR.".replace("'open", '"open').replace("')'", "')\"").encode(),
    b"cbuiltins\ngetattr\n(cos\npath\nS'join'\ntR.",
    b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x8c\x06system\x93.",
    b"cnumpy\nndarray\n(I1000000000000\ntR.",
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR.",
    b"(lp0\n" * 5000 + b".",
    b"]" * 5000 + b"a" * 4999 + b".",
    b"\x8a\xff.",
    b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.",
    b"N.",
    b"",
    b"I1\n.",
    b"I1\n" * 3,
    b"g0\n.",
)


def _array(value: Any, rng: random.Random) -> Any:
    if isinstance(value, torch.Tensor):
        return _tensor(value, rng)
    if not isinstance(value, np.ndarray):
        return strange_leaf(rng)
    kind = rng.randrange(8)
    if kind == 0:
        return value[: len(value) // 2] if value.ndim else value
    if kind == 1:
        return value.reshape(-1)
    if kind == 2:
        return value.astype(rng.choice((np.float32, np.int64, np.bool_, np.complex64, np.uint8)), copy=True)
    if kind == 3:
        return value[None]
    if kind == 4:
        return value[..., :-1] if value.ndim else value
    if kind == 5:
        return np.zeros((0,), value.dtype)
    if kind == 6:
        return np.array([None, "x"], dtype=object)
    return value.tolist()


def _tensor(value: torch.Tensor, rng: random.Random) -> Any:
    kind = rng.randrange(10)
    if kind == 0:
        return value.reshape(-1)[:1].clone()
    if kind == 1:
        return value[None].clone()
    if kind == 2:
        return torch.zeros(0)
    if kind == 3:
        return value.to(rng.choice((torch.float64, torch.int8, torch.bool, torch.complex64, torch.float16)))
    if kind == 4:
        return torch.full_like(value, float("nan")) if value.is_floating_point() else -value.long() - 1
    if kind == 5:
        return torch.full_like(value, 3e38) if value.is_floating_point() else value.long() + 2**40
    if kind == 6:
        return value.tolist()
    if kind == 7:
        return torch.zeros(1).expand(10**10)  # a few bytes that stand for 40 GB
    if kind == 8:
        return value.to_sparse() if value.ndim and not value.is_sparse else value
    return strange_leaf(rng)


def pickled(content: bytes, rng: random.Random) -> bytes:
    """Change a pickle of plain values and arrays."""
    kind = rng.random()
    if kind < 0.15:
        return rng.choice(PAYLOADS)
    if kind < 0.4:
        return flipped(content, rng, within=rng.choice((64, 512, None)))
    if kind < 0.5:
        return changed_bytes(content, rng)
    tree = changed_tree(_unpickled(content), rng, leaf=_array)
    return pickle.dumps(values_of(tree), protocol=rng.randrange(2, 6))


class _Plain(pickle.Unpickler):
    """Makes arrays and plain values alone: an engine may want to change what was made to do harm."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in (
            "_reconstruct",
            "ndarray",
            "dtype",
            "scalar",
            "_frombuffer",
        ):
            return super().find_class(module, name)
        if (module, name) in (("_codecs", "encode"), ("collections", "OrderedDict")):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is neither an array nor a plain value")


@functools.lru_cache(maxsize=16)
def _unpickled(content: bytes) -> Node:
    return tree_of(_Plain(io.BytesIO(content)).load())


@functools.lru_cache(maxsize=16)
def _loaded(content: bytes) -> Node:
    return tree_of(torch.load(io.BytesIO(content), weights_only=True))


def checkpoint(content: bytes, rng: random.Random) -> bytes:
    """Change what `torch.save` wrote: its values, its archive, its pickle, its bytes."""
    kind = rng.random()
    if kind < 0.1:
        return changed_bytes(content, rng)
    if kind < 0.15:
        return rng.choice((*PAYLOADS, pickle.dumps({"state_dict": [1]})))
    if kind < 0.45:
        return _archive(content, rng)
    stream = io.BytesIO()
    torch.save(values_of(changed_tree(_loaded(content), rng, leaf=_array)), stream)
    return stream.getvalue()


def _archive(content: bytes, rng: random.Random) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = next(index for index, (name, _) in enumerate(members) if name.endswith("/data.pkl"))
    compression = zipfile.ZIP_STORED
    kind = rng.randrange(8)
    if kind < 3:
        members[at] = (members[at][0], flipped(members[at][1], rng, within=rng.choice((64, None))))
    elif kind == 3:
        members[at] = (members[at][0], rng.choice(PAYLOADS))
    elif kind == 4:
        del members[rng.randrange(len(members))]
    elif kind == 5:
        which = rng.randrange(len(members))
        name = rng.choice(("../" + MARK, "/" + MARK, members[which][0] * 2, "x", "archive/data/999"))
        members[which] = (name, members[which][1])
    elif kind == 6:
        which = rng.randrange(len(members))
        members[which] = (members[which][0], cut(members[which][1], rng))
    else:
        which = rng.randrange(len(members))
        compression = zipfile.ZIP_DEFLATED
        members[which] = (members[which][0], bytes(rng.choice((0, 10**6))))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, compression)
    return stream.getvalue()


def safetensors(content: bytes, rng: random.Random) -> bytes:
    """Change a safetensors file: its length, its header of JSON, its data."""
    length = struct.unpack("<Q", content[:8])[0]
    header, data = content[8 : 8 + length], content[8 + length :]
    kind = rng.random()
    if kind < 0.15:
        return changed_bytes(content, rng)
    if kind < 0.25:
        wrong = rng.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1, len(content), 100_000_001))
        return struct.pack("<Q", wrong) + header + data
    if kind < 0.35:
        return content[: 8 + length] + rng.choice((b"", data[:-1], data + b"\0", data[: len(data) // 2]))
    changed = json_text(header, rng) if kind < 0.9 else changed_text(header, rng)
    return struct.pack("<Q", len(changed)) + changed + data


# ---- IDX -----------------------------------------------------------------------------------------------------------


def idx(content: bytes, rng: random.Random) -> bytes:
    """Change an IDX file: type, number of dimensions, sizes, length."""
    kind = rng.randrange(6)
    if kind == 0:
        return changed_bytes(content, rng)
    if kind == 1:
        return flipped(content, rng, within=16)
    if kind == 2:
        return (
            content[:2]
            + bytes([rng.choice((0, 8, 9, 11, 12, 13, 14, 255)), rng.choice((0, 1, 2, 3, 4, 64, 255))])
            + content[4:]
        )
    if kind == 3:
        at = 4 + 4 * rng.randrange(max(1, content[3]))
        size = rng.choice((0, 1, 27, 29, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 39, 41))
        return content[:at] + struct.pack(">I", size) + content[at + 4 :]
    if kind == 4:
        return content + bytes(rng.choice((1, 784, 10**5)))
    return cut(content, rng)


# ---- tar -----------------------------------------------------------------------------------------------------------

_BLOCK = 512
_KINDS = b"01234567LKxgSVDNXA\0 "
_SIZES = (b"00000000000\0", b"77777777777\0", b"\x80" + bytes(10) + b"\x07", b"\xff" * 12, b"not a size!\0", bytes(12))
_NAMES = (
    b"../../up.jpg", b"/etc/passwd", b"", b".", b"a/../b.jpg", b"x" * 100, b"\xff\xfe.jpg", b"a.jpg/b.cls",
    b".hidden.jpg", b"class0/0.cls", b"-rf.jpg", b"a\nb.jpg",
)  # fmt: skip


def tar(content: bytes, rng: random.Random) -> bytes:
    """Change a tar file: a header's field under a right checksum, a member's place or content, the end."""
    kind = rng.randrange(6)
    heads = list(_heads(content))
    if kind == 0 or not heads:
        return changed_bytes(content, rng)
    if kind == 1:
        return cut(content, rng)
    at = rng.choice(heads)
    if kind == 2:
        other = rng.choice([*heads, len(content)])
        return content[:other] + content[at : at + 2 * _BLOCK] + content[other:]
    if kind == 3:
        return content[:at] + bytes(_BLOCK * rng.choice((1, 2, 3))) + content[at:]
    head = bytearray(content[at : at + _BLOCK])
    field, value = rng.choice(
        [
            (0, rng.choice(_NAMES)[:100].ljust(100, b"\0")),
            (124, rng.choice(_SIZES)),
            (156, bytes([rng.choice(_KINDS)])),
            (157, rng.choice(_NAMES)[:100].ljust(100, b"\0")),
            (257, rng.choice((b"ustar  \0", b"ustar\x0000", bytes(8), b"GNUtar \0"))),
            (345, rng.choice(_NAMES)[:100].ljust(100, b"\0")),
        ]
    )
    head[field : field + len(value)] = value
    if kind == 4:
        head[148:156] = b" " * 8
        head[148:156] = b"%06o\0 " % (sum(head) & 0o777777)
    return content[:at] + bytes(head) + content[at + _BLOCK :]


def _heads(content: bytes) -> Iterator[int]:
    """Return where members begin."""
    at = 0
    while at + _BLOCK <= len(content) and content[at : at + _BLOCK].strip(b"\0"):
        yield at
        size = int(content[at + 124 : at + 136].strip(b"\0 ") or b"0", 8)
        at += _BLOCK * (1 + -(-size // _BLOCK))


@functools.cache
def _gzip_bomb() -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    part = bytes(2**24)
    return b"".join([*(packer.compress(part) for _ in range(128)), packer.flush()])  # 2 GiB in 2 MB


def packed_idx(content: bytes, rng: random.Random) -> bytes:
    """Change a packed IDX file: what is in it, or the packing."""
    kind = rng.random()
    if kind < 0.01:
        return _gzip_bomb()
    if kind < 0.3:
        return changed_bytes(content, rng)
    return gzip.compress(idx(_unpacked(content), rng), compresslevel=1)


@functools.lru_cache(maxsize=16)
def _unpacked(content: bytes) -> bytes:
    return gzip.decompress(content)


# ---- pictures ------------------------------------------------------------------------------------------------------


@functools.cache
def pictures() -> tuple[bytes, ...]:
    """One small picture in each of Pillow's common formats and modes."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 14, 4), dtype=np.uint8)
    full = Image.fromarray(pixels)
    made: list[tuple[Image.Image, str]] = []
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = full.convert("L").convert("I").convert("I;16") if mode == "I;16" else full.convert(mode)
        made.append((image, "PNG"))
    made += [(full.convert(mode), "JPEG") for mode in ("L", "RGB", "CMYK")]
    made += [(full.convert(mode), "TIFF") for mode in ("1", "L", "I", "F", "RGB", "RGBA", "CMYK", "LAB")]
    made += [
        (full.convert("P"), "GIF"),
        (full.convert("RGB"), "BMP"),
        (full.convert("RGB"), "PPM"),
        (full.convert("L"), "PPM"),
    ]
    made += [(full.convert("RGBA"), "WEBP"), (full.convert("RGB"), "ICO"), (full.convert("RGBA"), "TGA")]
    found = [b"P3 2 1 255 1 2 3 4 5 6\n", b"P2 2 1 65535 1 60000\n", b"P1 2 2 1 0 1 0\n", b"Pf 2 1 -1.0\n" + bytes(8)]
    for image, kind in made:
        stream = io.BytesIO()
        image.save(stream, kind)
        found.append(stream.getvalue())
    return tuple(found)


_PNG = b"\x89PNG\r\n\x1a\n"


def picture(content: bytes, rng: random.Random) -> bytes:
    """Change a picture: where it is a PNG, also its chunks, with right check sums."""
    if content.startswith(_PNG) and rng.random() < 0.6:
        return _png(content, rng)
    kind = rng.randrange(4)
    if kind == 0:
        return flipped(content, rng, within=64)
    if kind == 1 and content[:1] == b"P":
        words = content[:40].split(b" ")
        words[rng.randrange(len(words))] = rng.choice(
            (b"0", b"-1", b"65536", b"100000", b"999999999", b"x", b"1.5", b"", b"nan")
        )
        return b" ".join(words) + content[40:]
    if kind == 2:
        return cut(content, rng)
    return changed_bytes(content, rng)


def _png(content: bytes, rng: random.Random) -> bytes:
    chunks, at = [], len(_PNG)
    while at + 8 <= len(content):
        length = struct.unpack(">I", content[at : at + 4])[0]
        chunks.append([content[at + 4 : at + 8], content[at + 8 : at + 8 + length]])
        at += 12 + length
    kind = rng.randrange(7)
    if kind == 0 and chunks:
        sizes = [rng.choice((0, 1, 14, 4000, 20_000, 60_000, 2**31 - 1, 2**32 - 1)) for _ in range(2)]
        chunks[0][1] = struct.pack(">II", *sizes) + chunks[0][1][8:]
    elif kind == 1 and chunks:
        chunks[0][1] = chunks[0][1][:8] + bytes(rng.choice((0, 1, 2, 3, 4, 8, 16, 255)) for _ in range(5))
    elif kind == 2:
        text = zlib.compress(bytes(rng.choice((100, 2 * 2**20, 80 * 2**20))), 9)
        chunks.insert(1, [rng.choice((b"zTXt", b"iCCP")), b"x\0\0" + text])
    elif kind == 3:
        chunks.insert(
            rng.randrange(len(chunks) + 1),
            [
                rng.choice((b"tRNS", b"PLTE", b"eXIf", b"acTL", b"fcTL", b"IDAT", b"IEND", b"IHDR", b"XXXX")),
                bytes(rng.choice((0, 1, 3, 8, 800))),
            ],
        )
    elif kind == 4 and chunks:
        del chunks[rng.randrange(len(chunks))]
    elif chunks:
        which = rng.choice(chunks)
        which[1] = changed_bytes(which[1], rng)
    out = _PNG
    for name, data in chunks:
        out += struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return out
