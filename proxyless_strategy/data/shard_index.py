"""Where the pictures of tar files (shards) lie, and of which class each is: read once, then kept in the user's cache.

A shard is read from its start to its end for that, so that nothing in it is left out unseen: what other readers of
tar files take for the end of one (a damaged header, a file that was cut between two members) is refused here.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tarfile
import time
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from hardware.errors import DataError, ProxylessError
from hardware.files import write_atomically
from hardware.reading import DAMAGE, Unreadable, cut, opened, parse_json, why
from hardware.reading import shown as value_shown

from ..layout import cache_folder
from .file_list import FileList
from .notice import notice
from .picture_folder import SUFFIXES
from .reading import shown
from .state import SETTLED_NS, FileState, file_state

BLOCK = tarfile.BLOCKSIZE
JSON = "json."
"""Begins a label that is a field of a sample's JSON: `json.FIELD`."""
FORMAT = 1
"""Of a kept index; raise it with every change of what is kept or of what is refused."""
_PICTURES = frozenset(suffix.removeprefix(".") for suffix in SUFFIXES)
_LABEL_BYTES = 1 << 20
_CLASS = re.compile(r"\s*([0-9]{1,9})\s*", re.ASCII)
_PACKED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"\x04\x22\x4d\x18": ("lz4", "unlz4"),
}
"""First bytes of compressed files: the format, and what unpacks it."""


@dataclass(frozen=True)
class Wanted:
    """Which members of a sample are its picture and its label.

    Attributes:
        label: The ending of the label's member, whose text is the class number; or `json.FIELD`.
        image: The ending of the picture's member; None: the one member with a picture's ending.
    """

    label: str = "cls"
    image: str | None = None

    @property
    def label_ending(self) -> str:
        """The ending of the member that holds the label."""
        return "json" if self.label.startswith(JSON) else self.label

    def is_picture(self, ending: str) -> bool:
        """Say whether a member is a sample's picture by the ending of its name."""
        return ending in _PICTURES if self.image is None else ending == self.image


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """Pictures in tar files, in the order of these and within each in its own.

    Attributes:
        shards: Path of each of `S` shards.
        starts: `S + 1` numbers of the first picture of each shard, and behind the last, int64.
        files: Name within its shard, and class number, of each of `B` pictures.
        offsets: `B` places of the pictures' first bytes, int64.
        sizes: `B` numbers of bytes, int64.
        checks: `B` CRC-32 of the tar header before each, by which a shard that was changed is known, uint32.
    """

    shards: tuple[str, ...]
    starts: np.ndarray
    files: FileList
    offsets: np.ndarray
    sizes: np.ndarray
    checks: np.ndarray

    def __len__(self) -> int:
        return len(self.files)

    def shard_of(self, number: int) -> str:
        """Return the path of the shard that holds a picture."""
        return self.shards[int(np.searchsorted(self.starts, number, side="right")) - 1]

    def name(self, number: int) -> str:
        """Return how a message names a picture: by its shard, and its name there."""
        return f"{shown(self.shard_of(number))}: {shown(self.files.path(number))}"

    def content(self, number: int, *, most: int | None = None) -> bytes:
        """Read a picture's bytes, or the first `most` of them.

        The file is opened for it, so no process shares one with another.

        Raises:
            DataError: The shard is gone, or is no longer what it was when it was indexed.
            OSError: The disk fails.
        """
        shard, size = self.shard_of(number), int(self.sizes[number])
        wanted = size if most is None else min(size, most)
        try:
            with opened(shard) as stream:
                stream.seek(int(self.offsets[number]) - BLOCK)
                found = stream.read(BLOCK + wanted)
        except Unreadable as error:
            raise DataError(
                f"cannot read the shard {shown(shard)}: {error.reason}; put it back, or mount it"
            ) from error
        if len(found) < BLOCK + wanted or zlib.crc32(found[:BLOCK]) != self.checks[number]:
            raise DataError(
                f"the shard {shown(shard)} is another one than when it was read first: {self.files.path(number)!r} is "
                "no longer at its place; put the earlier file back, or start again"
            )
        return found[BLOCK:]

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all that the index holds beside the paths of the shards."""
        places = {"starts": self.starts, "offsets": self.offsets, "sizes": self.sizes, "checks": self.checks}
        return {**places, **self.files.arrays()}


def index_of(shards: Sequence[str], wanted: Wanted) -> ShardIndex:
    """Return the index of shards: the one that was kept, where they are still the same files, else a new one.

    Args:
        shards: Their paths.
        wanted: What of a sample is its picture and its label.

    Raises:
        DataError: A shard cannot be read to its end, is compressed, holds no picture, holds what is no file or leads
            out of it; or a sample lacks its picture or its label, or has one of them twice.
    """
    states = [_state(shard) for shard in shards]
    key = {"format": FORMAT, "label": wanted.label, "image": wanted.image, "shards": list(shards)}
    key["states"] = [list(state) for state in states]
    place = _kept_at(shards, wanted)
    kept = None if place is None else _kept(place, key, tuple(shards))
    if kept is not None:
        return kept
    if len(shards) > 1:
        notice(f"looking for the pictures of {len(shards)} shards, from {shown(shards[0])} on; this is done once")
    begun = time.time_ns()
    index = _read(shards, wanted)
    if [file_state(Path(shard)) for shard in shards] != states:
        changed = next(s for s, state in zip(shards, states, strict=True) if file_state(Path(s)) != state)
        raise DataError(f"{shown(changed)} was changed while it was read; start again when it is written")
    # Within the clock's coarseness of a change a second one would go unseen.
    if place is not None and max(max(state[2:]) for state in states) < begun - SETTLED_NS:
        _keep(place, key, index)
    return index


def _state(shard: str) -> FileState:
    state = file_state(Path(shard))
    if state is None:
        raise DataError(f"the shard {shown(shard)} is missing; put it there, or correct data.root")
    return state


# ---- kept ----------------------------------------------------------------------------------------------------------


def _kept_at(shards: Sequence[str], wanted: Wanted) -> Path | None:
    text = json.dumps([list(shards), wanted.label, wanted.image])
    try:
        return cache_folder() / "shards" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"
    except RuntimeError:  # nobody's home
        return None


def _keep(place: Path, key: dict[str, Any], index: ShardIndex) -> None:
    stream = io.BytesIO()
    held: dict[str, Any] = {"key": np.frombuffer(json.dumps(key).encode(), dtype=np.uint8), **index.arrays()}
    np.savez(stream, **held)
    # without it the shards are read again, which costs time alone
    with contextlib.suppress(ProxylessError):
        write_atomically(place, stream.getvalue())


def _kept(place: Path, key: dict[str, Any], shards: tuple[str, ...]) -> ShardIndex | None:
    """Read an index that was kept; None where it is of other files, of another version, or damaged."""
    try:
        with opened(place) as file, np.load(file) as held:
            if held["key"].tobytes() != json.dumps(key).encode():
                return None
            arrays = {name: held[name] for name in held.files if name != "key"}
        files = FileList.of_arrays(*(arrays.pop(name) for name in ("text", "ends", "labels")))
        return ShardIndex(shards, files=files, **arrays)
    except Exception:  # np.load and zipfile raise errors of a dozen kinds on damaged files
        return None


# ---- read ----------------------------------------------------------------------------------------------------------


@dataclass
class _Columns:
    """What is known of the pictures so far, a column each."""

    shards: list[str] = field(default_factory=list)
    starts: array = field(default_factory=lambda: array("q", [0]))
    offsets: array = field(default_factory=lambda: array("q"))
    sizes: array = field(default_factory=lambda: array("q"))
    checks: array = field(default_factory=lambda: array("L"))


def _read(shards: Sequence[str], wanted: Wanted) -> ShardIndex:
    columns, others = _Columns(), Counter[str]()

    def pairs() -> Iterator[tuple[str, int]]:
        for shard in shards:
            samples = _Samples(shard, wanted)
            try:
                with opened(shard) as stream:
                    for member in _members(stream, shard):
                        samples.add(member, stream)
            except Unreadable as error:
                raise DataError(f"cannot read the shard {shown(shard)}: {error.reason}; put it there again") from error
            for picture in samples.complete():
                columns.offsets.append(picture.offset)
                columns.sizes.append(picture.size)
                columns.checks.append(picture.check)
                yield picture.name, samples.labels[picture.key]
            columns.starts.append(len(columns.offsets))
            others.update(samples.others)

    files = FileList(pairs())
    if others:
        kinds = ", ".join(f"{count} {shown(ending) or 'without an ending'}" for ending, count in others.most_common(5))
        notice(f"{shown(os.path.dirname(shards[0]))}: {others.total()} members belong to no picture ({kinds})")
    return ShardIndex(
        tuple(shards),
        starts=np.array(columns.starts, dtype=np.int64),
        files=files,
        offsets=np.array(columns.offsets, dtype=np.int64),
        sizes=np.array(columns.sizes, dtype=np.int64),
        checks=np.array(columns.checks, dtype=np.uint32),
    )


def _members(stream: BinaryIO, shard: str) -> Iterator[tarfile.TarInfo]:
    """Give the members of a tar file one by one, to its very end.

    Raises:
        DataError: It is compressed, no tar file, or ends or is damaged before its end.
    """
    size = os.fstat(stream.fileno()).st_size
    start = stream.read(6)
    stream.seek(0)
    again = "write it again, or copy it again where it was copied"
    for magic, (packing, unpack) in _PACKED.items():
        if start.startswith(magic):
            raise DataError(
                f"the shard {shown(shard)} is compressed ({packing}), so that no place in it can be read alone; unpack "
                f"it with `{unpack}`, and name the tar file"
            )
    try:
        with tarfile.open(fileobj=stream, mode="r:", encoding="utf-8", errors="surrogateescape") as tar:
            # of none Python 3.10 would seek before the beginning
            while tar.offset and (member := tar.next()) is not None:
                tar.__dict__["members"] = []  # it would keep all
                if member.size < 0:
                    raise tarfile.ReadError(f"a member has {member.size} bytes")
                if member.offset_data + member.size > size:
                    raise DataError(
                        f"the shard {shown(shard)} ends within {shown(member.name)} (it has {size} bytes); {again}"
                    )
                yield member
            end = tar.offset
    except (tarfile.TarError, *DAMAGE) as error:
        raise DataError(f"the shard {shown(shard)} is no whole tar file: {_reason(error)}; {again}") from error
    stream.seek(end)
    if (mark := stream.read(BLOCK)) != bytes(BLOCK):
        what = "it ends without the mark of its end" if not mark else f"there is no header of a member at byte {end}"
        raise DataError(f"the shard {shown(shard)} is no whole tar file: {what}; {again}")
    while rest := stream.read(1 << 20):
        if rest.count(0) < len(rest):
            raise DataError(
                f"the shard {shown(shard)} goes on behind its end at byte {end}, as tar files that were joined by "
                "`cat` do; name them one by one, or write it again with one call of tar"
            )


def _reason(error: BaseException) -> str:
    if isinstance(error, tarfile.TarError):
        return cut(" ".join(str(error).split()), 160)
    return why(error)


@dataclass(frozen=True)
class _Picture:
    key: str
    name: str
    ending: str
    offset: int
    size: int
    check: int


class _Samples:
    """The samples of one shard: members whose names are alike up to the first dot of the last part."""

    def __init__(self, shard: str, wanted: Wanted):
        self.labels: dict[str, int] = {}
        self.others: Counter[str] = Counter()
        self._shard = shown(shard)
        self._wanted = wanted
        self._pictures: dict[str, _Picture] = {}
        self._other_endings: dict[str, list[str]] = {}
        self._seen: set[tuple[str, str]] = set()

    def add(self, member: tarfile.TarInfo, stream: BinaryIO) -> None:
        """Take in a member.

        Raises:
            DataError: It is neither file nor folder, leads out of the shard, or is there twice; or its label is none.
        """
        parts = member.name.split("/")
        if member.name.startswith("/") or ".." in parts:
            raise DataError(
                f"{self._shard}: the member {shown(member.name)} leads out of it; write it with plain names"
            )
        if member.isdir():
            return
        if not member.isreg() or member.issparse():
            kind = "a link" if member.issym() or member.islnk() else "no plain file"
            raise DataError(
                f"{self._shard}: the member {shown(member.name)} is {kind}, of which there is no content to be read; "
                "write files (`tar --dereference --hard-dereference`)"
            )
        parts = [part for part in parts if part not in ("", ".")]
        if not parts or _is_hidden(parts):
            return
        stem, _, ending = parts[-1].partition(".")
        key, ending = "/".join((*parts[:-1], stem)), ending.lower()
        if (key, ending) in self._seen:
            raise DataError(
                f"{self._shard}: the sample {shown(key)} has the member {shown(ending)} twice; give each its own name"
            )
        self._seen.add((key, ending))
        if ending == self._wanted.label_ending:
            self.labels[key] = self._label(member, key, stream)
        elif self._wanted.is_picture(ending):
            if key in self._pictures:
                raise DataError(
                    f"{self._shard}: the sample {shown(key)} has two pictures, {self._pictures[key].ending} and "
                    f"{ending}; set data.options.image to one of these"
                )
            stream.seek(member.offset_data - BLOCK)
            check = zlib.crc32(stream.read(BLOCK))
            name = "/".join(parts)
            self._pictures[key] = _Picture(key, name, ending, member.offset_data, member.size, check)
        else:
            self._other_endings.setdefault(key, []).append(ending)

    def complete(self) -> list[_Picture]:
        """Return the pictures, each with its label, in their order.

        Raises:
            DataError: There is none, or a picture or a label is alone.
        """
        label = self._wanted.label_ending
        lone = next((key for key in self._pictures if key not in self.labels), None)
        if lone is not None:
            beside = self._other_endings.get(lone, [])
            other = "to the ending that has it" if "json" not in beside else "to json.FIELD"
            raise DataError(
                f"{self._shard}: the sample {shown(lone)} has no label: there is no {shown(lone)}.{label} with its "
                f"class number{_besides(beside)}; write one, or set data.options.label {other}"
            )
        unseen = next((key for key in self.labels if key not in self._pictures), None)
        dotted = (
            key
            for key, endings in self._other_endings.items()
            if key not in self._pictures and any(ending.rpartition(".")[2] in _PICTURES for ending in endings)
        )
        unseen = next(dotted, None) if unseen is None else unseen
        if unseen is not None:
            asked = "picture" if self._wanted.image is None else f"picture {self._wanted.image}"
            has = _besides(self._other_endings.get(unseen, []))
            raise DataError(
                f"{self._shard}: the sample {shown(unseen)} has no {asked}{has}; "
                "a sample's name ends at its first dot: rename it, or set data.options.image to the picture's ending"
            )
        if not self._pictures:
            raise DataError(f"the shard {self._shard} holds no picture; write KEY.jpg and KEY.{label} for each")
        for key, endings in self._other_endings.items():
            if key not in self._pictures:
                self.others.update(endings)
        return list(self._pictures.values())

    def _label(self, member: tarfile.TarInfo, key: str, stream: BinaryIO) -> int:
        name = f"{self._shard}: the label of {shown(key)}"
        if member.size > _LABEL_BYTES:
            raise DataError(f"{name} has {member.size} bytes; write a class number, 0 or more")
        stream.seek(member.offset_data)
        content = stream.read(member.size)
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{name} is no text; write a class number, 0 or more") from error
        if not self._wanted.label.startswith(JSON):
            match = _CLASS.fullmatch(text)
            if match is None:
                raise DataError(f"{name} is {value_shown(text)}; write a class number, 0 or more")
            return int(match.group(1))
        wanted = self._wanted.label.removeprefix(JSON)
        try:
            found = parse_json(text)
        except Unreadable as error:
            raise DataError(f"{name}.json cannot be read: {error.reason}; write it again") from error
        if not isinstance(found, dict) or wanted not in found:
            has = f"has {cut(', '.join(map(str, found)))}" if isinstance(found, dict) else "is no mapping"
            raise DataError(f"{name}: its JSON {has}, and no {shown(wanted)}; set data.options.label to json.FIELD")
        value = found[wanted]
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 10**9:
            raise DataError(f"{name} is {value_shown(value)} ({shown(wanted)}); write a class number, 0 or more")
        return value


def _is_hidden(parts: Sequence[str]) -> bool:
    """Say whether a member is what a system or a writer hides among the files: `._a.jpg`, `__MACOSX/`, `__meta__`."""
    own = len(parts) == 1 and parts[0].startswith("__") and parts[0].endswith("__")
    return own or parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts)


def _besides(endings: list[str]) -> str:
    return f" (it has {cut(', '.join(endings))})" if endings else ""
