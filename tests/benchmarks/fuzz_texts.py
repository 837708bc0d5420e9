"""Trees written as JSON or YAML, and texts and bytes with something wrong in them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from tests.benchmarks.fuzz_mutations import Map, Node, Raw, nested, strange_leaf

# ---- writing -------------------------------------------------------------------------------------------------------


def leaf_text(value: Any) -> str:
    if isinstance(value, Raw):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        # Python refuses to write whole numbers of more than 4300 digits
        return str(value) if abs(value) < 10**4000 else "1" + "0" * 5000
    if isinstance(value, (str, float, bool)) or value is None:
        return json.dumps(value)
    return json.dumps(str(value))


def flow(node: Node, *, yaml: bool = True) -> str:
    """Write a tree as JSON, which is YAML's flow style too; only the keys of YAML may be anything."""
    if isinstance(node, Map):
        return "{" + ", ".join(f"{_key(key, yaml)}: {flow(item, yaml=yaml)}" for key, item in node) + "}"
    if isinstance(node, list):
        return "[" + ", ".join(flow(item, yaml=yaml) for item in node) + "]"
    return leaf_text(node)


def _key(key: Any, yaml: bool) -> str:
    if isinstance(key, str) and not isinstance(key, Raw):
        return json.dumps(key)
    text = flow(key, yaml=yaml)
    return text if yaml or isinstance(key, Raw) else json.dumps(text)


def block(node: Node, indent: int = 0) -> str:
    """Write a tree in YAML's block style."""
    start = "\n" + " " * indent
    if isinstance(node, Map) and node:
        return "".join(f"{start}{_bare(key)}: {block(item, indent + 2)}" for key, item in node)
    if type(node) is list and node:
        return "".join(f"{start}- {flow(item)}" for item in node)
    return flow(node)


def _bare(key: Any) -> str:
    return key if isinstance(key, str) and key.isidentifier() else _key(key, True)


# ---- changes of bytes ----------------------------------------------------------------------------------------------


def flipped(data: bytes, rng: random.Random, *, most: int = 8, within: int | None = None) -> bytes:
    """Change some bytes, within the first ones if asked."""
    changed = bytearray(data)
    for _ in range(rng.randrange(1, most + 1)):
        if changed:
            at = rng.randrange(min(len(changed), within or len(changed)))
            changed[at] = rng.choice((0, 255, 127, 128, changed[at] ^ (1 << rng.randrange(8)), rng.randrange(256)))
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _removed(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice((1, 2, 4, 16, 256)) :]


def _repeated(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data) + 1)
    part = data[start : start + rng.choice((1, 2, 4, 16, 256))]
    return data[:start] + part * rng.choice((2, 3, 100)) + data[start:]


def _inserted(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + bytes(rng.randrange(256) for _ in range(rng.choice((1, 2, 4, 8)))) + data[at:]


BYTE_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    flipped,
    flipped,
    cut,
    _removed,
    _repeated,
    _inserted,
)


def changed_bytes(data: bytes, rng: random.Random) -> bytes:
    return rng.choice(BYTE_CHANGES)(data, rng)


# ---- changes of a text ---------------------------------------------------------------------------------------------


def alias_bomb(levels: int = 9, width: int = 9) -> str:
    """Write less than a kB of YAML that stands for `width ** levels` values."""
    lines = ["a0: &a0 [" + ", ".join(["lol"] * width) + "]"]
    lines += [f"a{n}: &a{n} [" + ", ".join([f"*a{n - 1}"] * width) + "]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def _lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.split(b"\n")
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    kind = rng.randrange(6)
    if kind == 0:
        del lines[first]
    elif kind == 1:
        lines.insert(second, lines[first])
    elif kind == 2:
        lines[first], lines[second] = lines[second], lines[first]
    elif kind == 3:
        lines[first] = b" " * rng.randrange(1, 4) + lines[first]
    elif kind == 4:
        lines[first] = lines[first].lstrip()
    else:
        start, _, _ = lines[first].partition(b":")
        lines[first] = start + b": " + _encoded(leaf_text(strange_leaf(rng)))
    return b"\n".join(lines)


_SNIPPETS = (
    *(
        "\t",
        "\0",
        "\r",
        "\u2028",
        "\x85",
        "&a ",
        "*a",
        "<<: *a\n",
        "---\n",
        "...\n",
        "%YAML 9.9\n---\n",
        "%TAG ! x\n",
        "? ",
        ": ",
    ),
    *(
        ": : ",
        "- - - ",
        "[",
        "]",
        "{",
        "}",
        '"',
        "'",
        ",",
        "#",
        "!!python/object/apply:os.system ",
        "\ufeff",
        "|2\n",
        ">9\n",
    ),
    *("NaN", "Infinity", "-", "1e999", "\\u0000", "\\ud800", "\\", "//", "/*", "&a [*a]", "!<tag:yaml.org,2002:int> "),
)


def _snippet(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + _encoded(rng.choice(_SNIPPETS)) + data[at:]


def _recoded(data: bytes, rng: random.Random) -> bytes:
    text = data.decode("utf-8", "replace")
    kind = rng.randrange(5)
    if kind == 0:
        return text.encode("utf-16")
    if kind == 1:
        return b"\xef\xbb\xbf" + data
    if kind == 2:
        return text.replace("\n", "\r\n").encode()
    if kind == 3:
        return text.encode("utf-32")
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80")) + data[at:]


def _bombed(data: bytes, rng: random.Random) -> bytes:
    bomb = alias_bomb(rng.choice((2, 9, 30))).encode()
    kind = rng.randrange(5)
    if kind == 0:
        return bomb
    if kind == 1:
        return data + b"\n" + bomb
    if kind == 2:
        return bomb + data
    return _encoded(nested(rng.choice((500, 5000, 50_000)), as_list=kind == 3))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


_TEXT_CHANGES = (_lines, _lines, _lines, _snippet, _snippet, changed_bytes, changed_bytes, _recoded)


def changed_text(data: bytes, rng: random.Random) -> bytes:
    """Return a text with one to three changes."""
    if rng.random() < 0.01:
        return _bombed(data, rng)
    for _ in range(rng.choice((1, 1, 2, 3))):
        data = rng.choice(_TEXT_CHANGES)(data, rng)
    return data


def written(tree: Node, rng: random.Random, *, yaml: bool) -> bytes:
    """Write a tree, as YAML in either style, now and then with something wrong in the text too."""
    try:
        text = _encoded(block(tree).lstrip("\n") if yaml and rng.random() < 0.5 else flow(tree, yaml=yaml))
    except RecursionError:
        text = _encoded(nested(1000, as_list=True))
    return changed_text(text, rng) if rng.random() < 0.1 else text


def shrunk(data: bytes, still: Callable[[bytes], bool], *, tries: int = 200) -> bytes:
    """Remove what can be removed while `still` holds: lines first, then ever shorter parts."""
    for separator in (b"\n", b", ", b""):
        parts: Sequence[Any] = data.split(separator) if separator else [data[i : i + 1] for i in range(len(data))]
        size = max(1, len(parts) // 2)
        while size and tries > 0 and len(parts) > 1:
            at = 0
            while at < len(parts) and tries > 0:
                fewer = [*parts[:at], *parts[at + size :]]
                tries -= 1
                if fewer and still(separator.join(fewer)):
                    parts = fewer
                else:
                    at += size
            size //= 2
        data = separator.join(parts)
    return data
