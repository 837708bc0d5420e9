"""Which files a name with braces or wildcards stands for."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path

from hardware.errors import DataError
from hardware.reading import cut

MOST_SHARDS = 100_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


def shard_paths(root: Path, given: str | Sequence[str], *, option: str) -> list[str]:
    """Return the files that names below a root stand for, in their order.

    Args:
        root: What the names count from; all files lie below it.
        given: One name or several. `{0000..0999}` counts, `{a,b}` lists, `*` and `?` match what is there, sorted.
        option: The option that gives them, for messages.

    Raises:
        DataError: A name is none of a file below the root, stands for nothing or for too many, or one that is counted
            or listed is missing.
    """
    names = [given] if isinstance(given, str) else list(given) if isinstance(given, list | tuple) else []
    if not names or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{option} = {given!r}; give the name of a shard, such as train-{{0000..0999}}.tar, or a list")
    paths: list[str] = []
    for name in names:
        _check_name(name, option)
        for one in expanded(name, option):
            if glob.has_magic(one):
                found = sorted(glob.glob(os.path.join(glob.escape(str(root)), one)))
                if not found:
                    raise DataError(f"{root} has no file {one}; put shards there, or set data.root or {option}")
                paths += found
            else:
                paths.append(os.path.join(root, one))
    missing = [path for path in paths if not os.path.exists(path)]
    if missing:
        more = f" and {len(missing) - 1} more of {len(paths)} are" if len(missing) > 1 else " is"
        raise DataError(f"{missing[0]}{more} missing; copy what {option} names to data.root, or correct it")
    return paths


def expanded(name: str, option: str = "a name") -> list[str]:
    """Write a name out once for each number or text in its braces.

    >>> expanded("{train,extra}-{08..10}.tar")[2:5]
    ['train-10.tar', 'extra-08.tar', 'extra-09.tar']

    Raises:
        DataError: Its braces hold something else, or stand for too many.
    """
    done = [""]
    position = 0
    for match in _BRACES.finditer(name):
        between, position = name[position : match.start()], match.end()
        texts = _texts(match.group(1), name, option, room=MOST_SHARDS // len(done))
        done = [f"{start}{between}{text}" for start in done for text in texts]
    rest = name[position:]
    if "{" in _BRACES.sub("", name) or "}" in _BRACES.sub("", name):
        raise DataError(
            f"{option} = {cut(name)} has braces that do not close, or within each other; write {{000..999}}"
        )
    return [f"{start}{rest}" for start in done]


def _texts(inner: str, name: str, option: str, *, room: int) -> Sequence[str]:
    match = _RANGE.fullmatch(inner)
    if match is None:
        texts = inner.split(",")
        if len(texts) < 2 or ".." in inner:
            raise DataError(f"{option} = {cut(name)}: {{{cut(inner)}}} is neither {{000..999}} nor {{a,b}}; write one")
    else:
        first, last = match.groups()
        low, high = int(first[:18]), int(last[:18])
        if max(len(first), len(last)) > 18 or not low <= high:
            raise DataError(f"{option} = {cut(name)}: {{{cut(inner)}}} counts down or too far; write {{000..999}}")
        if high - low >= room:
            raise DataError(f"{option} = {cut(name)} stands for more than {MOST_SHARDS} shards; write fewer")
        # as in a shell: where one of both has zeros before it, all have as many digits as the longer
        padded = any(len(text) > 1 and text[0] == "0" for text in (first, last))
        width = max(len(first), len(last)) if padded else 1
        texts = [f"{number:0{width}d}" for number in range(low, high + 1)]
    if len(texts) > room:
        raise DataError(f"{option} = {cut(name)} stands for more than {MOST_SHARDS} shards; write fewer")
    return texts


def _check_name(name: str, option: str) -> None:
    if name.lower().startswith("pipe:"):
        raise DataError(
            f"{option} = {cut(name)} would run a command, whose output cannot be read at any place; let the command "
            "write the shards to a disk, and give their names"
        )
    if _SCHEME.match(name) or "::" in name:
        raise DataError(
            f"{option} = {cut(name)} is no file's name, and only files are read at any place, which order, split and "
            "resuming need; copy the shards to a disk, or mount the bucket as a folder, and set data.root to it"
        )
    if os.path.isabs(name) or ".." in re.split(r"[/\\]", name):
        raise DataError(f"{option} = {cut(name)} leads out of data.root; set data.root to a folder above all shards")
