"""Pictures that cannot be read: left out before a search, or replaced while it stood still."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from hardware.errors import ConfigError, DataError, PictureError, ProxylessError
from hardware.files import write_atomically
from hardware.reading import Kind, expect, is_there, read_json, reading

from ..layout import UNREADABLE_FILE
from .datasets import ItemImages
from .digest import file_mark
from .images import PARTS, ImageData
from .notice import notice
from .picture_folder import ImageFolder
from .reading import NamedItems, Reader, item_of, name_in, picture_error

Item = tuple[int, int]
MOST_THREADS = 8
_SHOWN = 20
"""Pictures that the terminal shows; a run's record has them all."""
_NOTE = Kind(
    "the note", "remove it", ConfigError, holds="a mapping of files", sentence="cannot read {path} ({why}); {remedy}"
)


class Problem(NamedTuple):
    """A picture that is of no use as it is."""

    name: str
    error: PictureError

    def __str__(self) -> str:
        return str(self.error) if self.error.unclear else f"{self.name}: {self.error.reason}"


def problem_of(source: Any, index: int, reader: Reader | None) -> Problem | None:
    """Read one item of a data set as training would, but for resizing; None where nothing is wrong."""
    name, path = name_in(source, index)
    try:
        image = source[index][0]
        if reader is not None and isinstance(image, Image.Image):
            reader(image)
    except PictureError as error:
        return Problem(name, error)
    except ProxylessError:
        raise
    except Exception as error:  # a decoder's, of any kind
        return Problem(name, picture_error(name, error, path=path))
    return None


def problems_of(source: Any, indices: Iterable[int], reader: Reader | None) -> Iterator[Problem | None]:
    """Read many items; files side by side, as Pillow's decoders let other threads run."""

    def read(index: int) -> Problem | None:
        return problem_of(source, index, reader)

    threads = threads_for(type(source))
    if threads == 1:
        yield from map(read, indices)
        return
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(read, indices)


def threads_for(kind: type) -> int:
    """Return how many threads may read a data set at once."""
    # A user's own data set may hold a file handle, which threads would move under each other.
    return min(MOST_THREADS, os.cpu_count() or 1) if issubclass(kind, ImageFolder | NamedItems) else 1


def all_problems(data: ImageData) -> dict[Item, Problem | None]:
    """Read every picture of all parts once; what lies in memory needs no look.

    Returns:
        What is wrong, or None, by the innermost data set's identity and the index there.
    """
    asked: dict[int, tuple[Any, list[int]]] = {}
    for dataset in _files(data).values():
        for leaf, index in (item_of(dataset.source, int(index)) for index in dataset.indices):
            asked.setdefault(id(leaf), (leaf, []))[1].append(index)
    verdicts: dict[Item, Problem | None] = {}
    for leaf, indices in asked.values():
        once = list(dict.fromkeys(indices))
        verdicts |= {
            (id(leaf), index): problem
            for index, problem in zip(once, problems_of(leaf, once, data.reader), strict=True)
        }
    return verdicts


def _files(data: ImageData) -> dict[str, ItemImages]:
    parts = {part: getattr(data, part) for part in PARTS}
    return {part: dataset for part, dataset in parts.items() if isinstance(dataset, ItemImages)}


def without_unreadable(data: ImageData) -> ImageData:
    """Read every picture of a data set, and return the parts without those that cannot be read.

    The split stays as it is: which part has a picture does not depend on others that are left out.

    Raises:
        PictureError: One can be read, but a setting must say how.
        DataError: Nothing is left of a class or of a part.
    """
    verdicts = all_problems(data)
    found = [problem for problem in verdicts.values() if problem is not None]
    for problem in found:
        if problem.error.unclear:
            raise problem.error
    problems = sorted(map(str, found))
    if not problems:
        return data
    changed: dict[str, Any] = {}
    for part, dataset in _files(data).items():
        kept = []
        for number in dataset.indices:
            leaf, index = item_of(dataset.source, int(number))
            if verdicts[id(leaf), index] is None:
                kept.append(number)
        changed[part] = replace(dataset, indices=kept)
        lost = sorted(set(dataset.targets) - set(changed[part].targets)) if kept else []
        if lost:
            name = data.class_names[lost[0]] if data.class_names else lost[0]
            raise DataError(
                f"no picture of class {name!r} in the part {part!r} can be read, such as {problems[0]}; replace them"
            )
    listed = "\n".join(f"  {problem}" for problem in problems[:_SHOWN])
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    notice(f"{len(problems)} of {len(verdicts)} pictures are left out, as they cannot be read:\n{listed}{more}")
    return replace(data, **changed, left_out=tuple(problems))


# ---- replaced --------------------------------------------------------------------------------------------------


@contextmanager
def noting_unreadable(folder: Path, data: ImageData) -> Iterator[None]:
    """Note in a run's folder which picture ended it, and the file's mark, before somebody replaces the file.

    A picture that was damaged after the run's digest was made is noted as it was then: by that the run is known.
    """
    try:
        yield
    except PictureError as error:
        if error.path is not None and not error.unclear:
            path = os.path.abspath(error.path)
            marks = _noted(folder)
            if path not in marks:
                noted = {**marks, path: data.marks.get(path) or file_mark(path)}
                write_atomically(folder / UNREADABLE_FILE, json.dumps(noted, indent=2) + "\n")
        raise


def as_begun(data: ImageData, folder: Path) -> ImageData:
    """Return a run's data with the pictures marked as when it began that ended it since then.

    A picture that was replaced as the message asked is no other data set, so the run goes on with it.
    """
    marks = _noted(folder)
    replaced = {path: before for path, before in marks.items() if file_mark(path) != before}
    if not replaced:
        return data
    named = ", ".join(sorted(replaced)[:5]) + (f" and {len(replaced) - 5} more" if len(replaced) > 5 else "")
    notice(f"{folder} goes on with {named}, replaced since it could not be read")
    return replace(data, replaced=replaced)


def _noted(folder: Path) -> Mapping[str, str]:
    path = folder / UNREADABLE_FILE
    if not is_there(path):
        return {}
    marks = read_json(path, _NOTE)
    with reading(path, _NOTE):
        return {picture: expect(before, str, f"mark of {picture}") for picture, before in marks.items()}
