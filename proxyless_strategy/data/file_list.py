"""Paths and class numbers of a million files in three arrays."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np


class FileList(Sequence[tuple[str, int]]):
    """Pairs of a path and a class number, as torchvision's `samples`, which are made when they are asked for.

    A process that reads images shares memory with the one that started it until one of them writes there. Python counts
    references in every object, so that looking at a list of a million pairs copies all of them into each process, and
    they take ten times the memory of the text. Arrays are only read.

    >>> files = FileList([("a/1.png", 0), ("b/2.png", 1)])
    >>> len(files), files[-1], files.labels.tolist()
    (2, ('b/2.png', 1), [0, 1])

    Args:
        pairs: Read once.

    Attributes:
        labels: `B` class numbers, int64.
    """

    def __init__(self, pairs: Iterable[tuple[str, int]]):
        text, ends, labels = bytearray(), array("q", [0]), array("q")
        for path, label in pairs:
            text += os.fsencode(path)
            ends.append(len(text))
            labels.append(label)
        self._fill(np.frombuffer(bytes(text), dtype=np.uint8), np.array(ends), np.array(labels))

    @classmethod
    def of_arrays(cls, text: np.ndarray, ends: np.ndarray, labels: np.ndarray) -> FileList:
        """Return the list that `arrays` were taken from."""
        files = cls(())
        files._fill(text, ends, labels)
        return files

    def _fill(self, text: np.ndarray, ends: np.ndarray, labels: np.ndarray) -> None:
        self._text = text
        self._ends = ends.astype(np.int64, copy=False)
        self.labels = labels.astype(np.int64, copy=False)

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all that the list holds: bytes of all paths, where each begins and the last one ends, labels."""
        return {"text": self._text, "ends": self._ends, "labels": self.labels}

    def __len__(self) -> int:
        return len(self.labels)

    @overload
    def __getitem__(self, index: int) -> tuple[str, int]: ...

    @overload
    def __getitem__(self, index: slice) -> list[tuple[str, int]]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]  # IndexError beyond the end, by which iteration ends too
        return self.path(number), int(self.labels[number])

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return (self[number] for number in range(len(self)))

    def path(self, number: int) -> str:
        """Return the path of a file."""
        return os.fsdecode(self._text[self._ends[number] : self._ends[number + 1]].tobytes())
