"""Read files of any origin: the one place that opens them.

Whatever is wrong with a file becomes an `Unreadable`, whose reason is a short sentence, or, where a `Kind` says what
file is wanted, the typed error that the user gets. Nothing here waits for a pipe, follows a file without end, or gives
values that a later step would fail on: numbers are finite and fit 64 bits, texts can be written as UTF-8, no key stands
twice, and no value is nested deeper than `DEEPEST`.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import reprlib
import stat
import warnings
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from .errors import ProxylessError

DEEPEST = 100
"""Lists and mappings within each other; the deepest of this project's files has 12."""
SETTINGS_BYTES = 2**20
"""Most bytes of a file that a person writes: thousands of times a config."""
YAML_BYTES = 2**22
"""Most bytes of a latency table: 40,000 operators. YAML is read at about a second per MB."""
JSON_BYTES = 2**25
"""Most bytes of a file of JSON: 100 times a long search's record, and within a few hundred MB of memory when read."""
SENTENCE = 560
"""Most characters of what another reader says, to which the file's name is added."""
ARRAY_BYTES = 2**31
"""Most bytes of arrays that are read into memory as a whole."""

_TYPES: dict[type, str] = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}
_TYPES |= {dict: "a mapping", list: "a list"}
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = _repr.maxlong = 80
_repr.maxdict = _repr.maxlist = _repr.maxtuple = _repr.maxset = _repr.maxfrozenset = 4
_repr.maxlevel = 3


def shown(value: Any, *, width: int = 100) -> str:
    """Return a value as a message shows it: as Python writes it, cut to a line.

    >>> shown("a" * 1000, width=20)
    "'aaaaaaa...aaaaaaaa'"
    """
    try:
        return cut(" ".join(_repr.repr(value).split()), width)
    except ValueError:  # Python's own limit, see `parse_json`
        return "a number of thousands of digits"


def cut(text: str, width: int = 100) -> str:
    """Cut the middle out of a text that is longer than a line; what cannot be printed is written as Python does."""
    text = text if text.isprintable() else repr(text)[1:-1]
    half = (width - 3) // 2
    return text if len(text) <= width else f"{text[:half]}...{text[-(width - 3 - half) :]}"


class Unreadable(ValueError):
    """A file or text is not what it should be.

    Attributes:
        reason: Why, in a sentence about "it".
        missing: Whether there is no such file at all.
        by_system: Whether the system refuses to open or to read it; the reason is then the system's.
    """

    def __init__(self, reason: str, *, missing: bool = False, by_system: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.missing = missing
        self.by_system = by_system


DAMAGE = (
    Unreadable,
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    EOFError,
    RuntimeError,
)
"""What a content of another shape than expected raises where it is used."""


@dataclass(frozen=True)
class Kind:
    """A kind of file, as the sentence about one that cannot be read names it.

    Attributes:
        name: What it is, with its article: "the search config".
        remedy: What to do about a bad one.
        error: The type of the error.
        limit: Most bytes of it.
        holds: What it must hold where that is a mapping: "a mapping of settings"; empty: anything.
        missing: The whole sentence where there is none, with `{path}`; empty: the sentence of a bad one.
        sentence: The sentence of a bad one.
        nonfinite: Keys under which numbers need not be finite: a training's own figures, which say that it diverged.
    """

    name: str
    remedy: str
    error: type[ProxylessError]
    limit: int = JSON_BYTES
    holds: str = "a mapping"
    missing: str = ""
    nonfinite: tuple[str, ...] = ()
    sentence: str = "cannot read {name} {path}: {why}; {remedy}"

    def refusal(self, path: str | Path, why: Unreadable | str) -> ProxylessError:
        """Return the error about a file of this kind."""
        if isinstance(why, Unreadable):
            if why.missing and self.missing:
                return self.error(self.missing.format(path=path))
            why = why.reason
        return self.error(self.sentence.format(name=self.name, path=path, why=cut(why, SENTENCE), remedy=self.remedy))


# ---- bytes and text ------------------------------------------------------------------------------------------------


@contextmanager
def opened(path: str | Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading; nothing else is waited for.

    Raises:
        Unreadable: There is none, it cannot be read, or it is a folder, a pipe or a device.
    """
    # opening a pipe waits for its writer, and opening a device may do anything
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    try:
        odd = _odd(os.stat(path).st_mode)
        stream = None if odd else os.fdopen(os.open(path, flags), "rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Unreadable(str(error.strerror), missing=not is_there(path), by_system=True) from None
    except (OSError, ValueError) as error:  # of a name that no file can have
        raise Unreadable(getattr(error, "strerror", None) or str(error), by_system=True) from None
    if stream is None:
        raise Unreadable(str(odd))
    with stream:
        # it may have become another thing in between
        if odd := _odd(os.fstat(stream.fileno()).st_mode):
            raise Unreadable(odd)
        yield stream


def _odd(mode: int) -> str | None:
    """Say what other than a file something is; None where it is a file."""
    if stat.S_ISREG(mode):
        return None
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return (
        "it is a folder"
        if stat.S_ISDIR(mode)
        else f"it is no regular file ({kinds.get(stat.S_IFMT(mode), 'a device')})"
    )


def check_regular(path: str | Path) -> None:
    """Refuse what a library that opens `path` itself would wait for.

    Raises:
        Unreadable: It is missing, no file, or cannot be read.
    """
    with opened(path):
        pass


def is_there(path: str | Path) -> bool:
    """Return whether anything has this name, also where the folder cannot be looked into; a bad link counts."""
    with contextlib.suppress(OSError, ValueError):
        os.lstat(path)
        return True
    return False


def bytes_of(path: str | Path, *, limit: int = ARRAY_BYTES) -> bytes:
    """Read a whole file.

    Raises:
        Unreadable: See `opened`; or it is longer than `limit`.
    """
    with opened(path) as stream:
        try:
            # asking for the limit at once would take that much memory for any file
            content = stream.read(min(os.fstat(stream.fileno()).st_size, limit) + 1)
            while len(content) <= limit and (more := stream.read(2**16)):  # it grows, or nobody knows its size
                content += more
        except OSError as error:
            raise Unreadable(error.strerror or str(error), by_system=True) from None
    if len(content) > limit:
        raise Unreadable(f"it has more than {limit / 2**20:g} MiB, the most that such a file may have")
    return content


def text_of(path: str | Path, *, limit: int = SETTINGS_BYTES) -> str:
    """Read a whole file of UTF-8 text, with or without a byte order mark.

    Raises:
        Unreadable: See `bytes_of`; or it is no such text.
    """
    try:
        return bytes_of(path, limit=limit).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Unreadable(f"it is no text in UTF-8 (at byte {error.start})") from None


def log_of(path: str | Path, *, limit: int = SETTINGS_BYTES) -> str:
    """Return the end of a log, or an empty text where there is none: whoever looks for words in it goes on."""
    with contextlib.suppress(Unreadable, OSError), opened(path) as stream:
        stream.seek(max(0, stream.seek(0, os.SEEK_END) - limit))
        return stream.read(limit).decode("utf-8", errors="replace")
    return ""


# ---- JSON and YAML -------------------------------------------------------------------------------------------------


def parse_json(text: str, *, nonfinite: Collection[str] = ()) -> Any:
    """Return what a text of JSON holds; see `Kind` for `nonfinite`.

    Raises:
        Unreadable: It is no JSON, or holds what the module's description excludes.
    """
    try:
        found = json.loads(text, object_pairs_hook=_each_once)
    except RecursionError:
        raise Unreadable("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise Unreadable(f"it is no valid JSON at line {error.lineno} (perhaps truncated)") from None
    except Unreadable:
        raise
    except ValueError:  # Python's own limit of a number's digits
        raise Unreadable("it is no valid JSON: a number has thousands of digits") from None
    check_values(found, nonfinite=nonfinite)
    return found


def json_of(path: str | Path, *, limit: int = JSON_BYTES, nonfinite: Collection[str] = ()) -> Any:
    """Read a file of JSON.

    Raises:
        Unreadable: See `text_of` and `parse_json`.
    """
    return parse_json(text_of(path, limit=limit), nonfinite=nonfinite)


def yaml_of(path: str | Path, *, limit: int = SETTINGS_BYTES) -> Any:
    """Read a file of YAML, see `hardware.yaml_text`.

    Raises:
        Unreadable: See `text_of` and `parse_yaml`.
    """
    return parse_yaml(text_of(path, limit=limit))


def parse_yaml(text: str) -> Any:
    """Return what a text of YAML holds, see `hardware.yaml_text`.

    Raises:
        Unreadable: It is no such YAML, or holds what the module's description excludes.
    """
    from . import yaml_text  # which needs this module

    _check_text(text, ())
    found = yaml_text.parse_yaml(text)
    check_values(found)
    return found


def check_values(values: Any, *, nonfinite: Collection[str] = ()) -> None:
    """Refuse plain values that a later step would fail on; see `Kind` for `nonfinite`.

    Raises:
        Unreadable: A number is not finite or beyond 64 bits, a text cannot be written as UTF-8, or the nesting is too
            deep; the reason names the key.
    """
    # a place is a chain of keys, which becomes text only where something is wrong there
    open_ones: list[tuple[Any, tuple[Any, ...], int]] = [(values, (), 0)]
    while open_ones:
        value, place, depth = open_ones.pop()
        if isinstance(value, str):
            _check_text(value, place)
        elif isinstance(value, float):
            if not math.isfinite(value) and not (place and _keys(place)[0] in nonfinite):
                raise Unreadable(f"{_named(place)} is {value}, no finite number")
        elif isinstance(value, int):
            if not -(2**63) <= value < 2**63:
                raise Unreadable(f"{_named(place)} is {shown(value)}, a number beyond 64 bits")
        elif isinstance(value, (dict, list)):
            if depth >= DEEPEST:
                raise Unreadable(f"it is nested too deeply at {_named(place)}")
            if isinstance(value, dict):
                for key, item in value.items():
                    if isinstance(key, str):
                        _check_text(key, place)
                    open_ones.append((item, (place, key), depth + 1))
            else:
                open_ones += ((item, (place, index), depth + 1) for index, item in enumerate(value))


def _check_text(text: str, place: tuple[Any, ...]) -> None:
    if "\0" in text:
        raise Unreadable(f"{_named(place)} holds the character NUL, which no text has")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise Unreadable(f"{_named(place)} holds half of a character (a lone surrogate)") from None


def _keys(place: tuple[Any, ...]) -> list[str]:
    keys: list[str] = []
    while place:
        place, key = place
        keys.append(str(key))
    return keys[::-1]


def _named(place: tuple[Any, ...]) -> str:
    return cut(ascii(".".join(_keys(place)))[1:-1], 80) or "it"


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Unreadable(f"it has the key {shown(twice)} twice")
    return found


def expect(value: Any, wanted: type, name: str, *, none: bool = False) -> Any:
    """Return a value of the wanted type; a whole number is a `float` too, but true and false are no numbers.

    Raises:
        Unreadable: It is of another type.
    """
    fits = isinstance(value, (int, float) if wanted is float else wanted)
    if (none and value is None) or (fits and isinstance(value, bool) == (wanted is bool)):
        return value
    raise Unreadable(f"its {name} is {shown(value)}, not {_TYPES[wanted]}")


# ---- whole files with their sentence -------------------------------------------------------------------------------


def read_json(path: str | Path, kind: Kind) -> Any:
    """Read a file of JSON of a kind.

    Raises:
        ProxylessError: Of the kind's type, whatever is wrong with the file.
    """
    with reading(path, kind):
        return _held(json_of(path, limit=kind.limit, nonfinite=kind.nonfinite), kind)


def read_yaml(path: str | Path, kind: Kind) -> Any:
    """Read a file of YAML of a kind.

    Raises:
        ProxylessError: Of the kind's type, whatever is wrong with the file.
    """
    with reading(path, kind):
        return _held(yaml_of(path, limit=kind.limit), kind)


def read_text(path: str | Path, kind: Kind) -> str:
    """Read a file of text of a kind.

    Raises:
        ProxylessError: Of the kind's type, whatever is wrong with the file.
    """
    with reading(path, kind):
        return text_of(path, limit=kind.limit)


def read_bytes(path: str | Path, kind: Kind) -> bytes:
    """Read a file of a kind.

    Raises:
        ProxylessError: Of the kind's type, whatever is wrong with the file.
    """
    with reading(path, kind):
        return bytes_of(path, limit=kind.limit)


def read_tensors(path: str | Path, kind: Kind, *, map_location: Any = "cpu") -> Any:
    """Read tensors and plain values that torch wrote; nothing in the file can run code.

    Raises:
        ProxylessError: Of the kind's type, whatever is wrong with the file.
    """
    with reading(path, kind), opened(path) as stream:
        found = tensors_in(stream, map_location=map_location)
        if kind.holds and not isinstance(found, dict):
            raise Unreadable(f"it must hold {kind.holds}, but holds a {type(found).__name__}")
        return found


def tensors_in(stream: BinaryIO, *, map_location: Any = "cpu", old: bool = True) -> Any:
    """Read tensors and plain values from an opened file of torch's.

    Args:
        stream: The file.
        map_location: Where tensors go.
        old: Whether it may be of torch before 1.6, which wrote no archives.

    Raises:
        Unreadable: It is empty, damaged, or of another program.
    """
    import torch  # slow, and needed for weights alone

    size = stream.seek(0, os.SEEK_END)
    if not size:
        raise Unreadable("it is empty")
    stream.seek(0)
    if not old or zipfile.is_zipfile(stream):
        _check_archive(stream, size)
    stream.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of strange pickles, on the error stream of whoever gets our sentence
            found = torch.load(stream, map_location=map_location, weights_only=True)
    except Exception:  # torch's reader raises errors of a dozen kinds on bytes of another program
        raise Unreadable("it was written by another program") from None
    left = [found]
    while left:
        value = left.pop()
        if isinstance(value, (dict, list, tuple)):
            left += value.values() if isinstance(value, dict) else value
        elif isinstance(value, torch.Tensor) and (value.layout is not torch.strided or value.is_quantized):
            raise Unreadable(f"it holds a tensor of {value.layout}, {value.dtype}, and no dense one")
    return found


def tensor_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a file's tensors, whose header must describe the bytes behind it (safetensors).

    Raises:
        Unreadable: It is no such file, or is cut short.
    """
    from safetensors import SafetensorError, safe_open  # slow: torch

    check_regular(path)
    try:
        with safe_open(str(path), framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise Unreadable(f"{Path(path).name} holds no whole tensors ({cut(str(error), 160)})") from None


def _check_archive(stream: BinaryIO, size: int) -> None:
    """Refuse an archive whose content is damaged or more than the file's own bytes: torch packs nothing."""
    try:
        stream.seek(0)
        with zipfile.ZipFile(stream) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > size:
                raise Unreadable("it is an archive that unpacks to more than its size")
            # torch writes a checksum of each tensor, but does not compare it when it reads
            damaged = archive.testzip()
    except Unreadable:
        raise
    except Exception:  # of a damaged archive zipfile raises errors of a dozen kinds
        damaged = "all"
    if damaged is not None:
        raise Unreadable(f"it is damaged: its {size} bytes are no whole checkpoint")


@contextmanager
def reading(path: str | Path, kind: Kind) -> Iterator[None]:
    """Turn whatever is wrong with a file's content inside the context into the kind's one sentence.

    A `ProxylessError` is a sentence already; where it does not name the file, it gets its name.
    """
    try:
        yield
    except ProxylessError as error:
        # What stands in the file may be part of the sentence, and be of several lines or of any length.
        sentence = cut(str(error), SENTENCE)
        if str(path) in sentence:
            if sentence == str(error):
                raise
            raise type(error)(sentence) from error
        raise type(error)(f"{kind.name} {path}: {sentence}") from error
    except DAMAGE as error:
        raise kind.refusal(path, error if isinstance(error, Unreadable) else why(error)) from error


def why(error: BaseException) -> str:
    """Say in a line about "it" why a content could not be used, of an error that using it has raised."""
    if isinstance(error, Unreadable):
        return error.reason
    if isinstance(error, KeyError):
        return f"it lacks {cut(str(error))}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"it is damaged ({type(error).__name__}: {cut(' '.join(str(error).split()), 160)})"


def _held(found: Any, kind: Kind) -> Any:
    if kind.holds and not isinstance(found, dict):
        raise Unreadable(f"it must hold {kind.holds}, but holds a {type(found).__name__}")
    return found
