"""A folder of picture files, one folder a class: what counts as a class and as a picture, and what is left out."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchvision import datasets as torchvision_datasets
from torchvision.datasets.folder import IMG_EXTENSIONS

from hardware.errors import DataError

from .file_list import FileList
from .reading import open_picture
from .state import SETTLED_NS

SUFFIXES = (
    *IMG_EXTENSIONS,
    *(".apng", ".avif", ".dib", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpx", ".mpo", ".pbm", ".pcx"),
    *(".pfm", ".pnm", ".qoi", ".sgi", ".tga"),
)
"""Ends of the names that are taken for pictures."""


class ImageFolder(torchvision_datasets.ImageFolder):
    """torchvision's, of pictures in the modes that they have, without what is hidden and with links that turn back.

    It has torchvision's name, by which runs of earlier versions know their data. `samples` are a `FileList`, and
    `targets` an array.

    Attributes:
        others: How many files are no pictures by their names, by the ends of these.
        changed: When each folder that was listed had last changed, in ns.
        listed: When they were, in ns.
    """

    def __init__(self, root: str):
        self.others: Counter[str] = Counter()
        self.listed = time.time_ns()
        self.changed = {root: os.stat(root).st_mtime_ns}
        try:
            super().__init__(root, loader=open_picture)
            self.targets: Any = self.samples.labels
        except OSError as error:  # a folder that may not be listed
            if error.strerror is None:
                raise
            raise DataError(f"cannot list {error.filename}: {error.strerror}; let it be read, or remove it") from error

    def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
        classes = class_names(directory)
        return classes, {name: number for number, name in enumerate(classes)}

    # torchvision calls it of the instance; there it is a static method.
    def make_dataset(self, directory: Any, class_to_idx: dict[str, int], **_: Any) -> Any:
        empty = []

        def pairs() -> Iterator[tuple[str, int]]:
            for name, number in class_to_idx.items():
                found = [path for path in self._files(os.path.join(directory, name)) if self._is_picture(path)]
                yield from ((path, number) for path in found)
                if not found:
                    empty.append(name)

        samples = FileList(pairs())
        if empty:
            raise FileNotFoundError(
                f"Found no valid file for the classes {', '.join(empty)}. Supported extensions are: "
                f"{', '.join(SUFFIXES)}"
            )
        return samples

    def _files(self, folder: str) -> list[str]:
        files, changed = files_below(folder)
        self.changed |= changed
        return files

    def is_true(self) -> bool:
        """Say whether the folders are still as they were listed, as far as the file system's clock can tell."""
        if max(self.changed.values()) > self.listed - SETTLED_NS:
            return False
        try:
            return all(os.stat(folder).st_mtime_ns == changed for folder, changed in self.changed.items())
        except OSError:
            return False

    def _is_picture(self, path: str) -> bool:
        if is_picture(path):
            return True
        self.others[suffix_of(path)] += 1
        return False


def is_picture(path: str) -> bool:
    """Say whether a file is a picture by its name."""
    return path.lower().endswith(SUFFIXES)


def suffix_of(path: str) -> str:
    """Return the end of a file's name, in small letters."""
    return os.path.splitext(path)[1].lower()


def class_names(folder: str | Path) -> list[str]:
    """List the class folders of a part; a hidden one (`.ipynb_checkpoints`) is none."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def files_below(folder: str) -> tuple[list[str], dict[str, int]]:
    """List the files of a folder and of those in it, in torchvision's order, without hidden ones.

    A folder that is named like a picture is listed as well: whoever reads it says what it is.

    Returns:
        The files, and when each folder had last changed, in ns.
    """
    found, changed = [], {}
    top = os.stat(folder)
    above = {folder: (top, frozenset({(top.st_dev, top.st_ino)}))}
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        # Asked before the folder was listed: what is added meanwhile shows as a change.
        status, seen = above.pop(root)
        changed[root] = status.st_mtime_ns
        inner = []
        for name in folders:
            path = os.path.join(root, name)
            status = os.stat(path)
            itself = (status.st_dev, status.st_ino)
            # A link to a folder above would be followed until the path is too long.
            if not name.startswith(".") and itself not in seen:
                inner.append(name)
                above[path] = (status, seen | {itself})
        folders[:] = inner
        pictures = [name for name in inner if is_picture(name)]
        found.append((root, [name for name in (*names, *pictures) if not name.startswith(".")]))
    return [os.path.join(root, name) for root, names in sorted(found) for name in sorted(names)], changed


def _raise(error: OSError) -> None:
    raise error
