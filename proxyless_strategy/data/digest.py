"""Which images a run stands on, in one line that changes when they do."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from hardware.reading import Unreadable, opened

from .file_list import FileList
from .images import ImageData

SIZED_FILES = 10_000
"""So many files, evenly spread over the list, are asked for their sizes: a million would take minutes on a network."""
HASHED_BYTES = 1 << 30
"""Of a larger array evenly spread rows of about so many bytes are hashed."""

CONTENT_FILES = 1000
"""Of so many files, evenly spread over those, what is in them is hashed: pictures without compression have one size."""
CONTENT_BYTES = 1 << 20
"""Of each, at most so many."""

_ARRAYS = ("images", "data", "tensors", "labels", "_labels", "indices")
_FILES = ("samples", "_samples", "_image_files")
_WITHIN = ("source", "dataset", "datasets")


def data_digest(data: ImageData) -> str:
    """Say how many images and classes there are, and give a digest of what they are.

    It covers the split, labels, class names, arrays' bytes, files' paths (from the data set's root) and sizes, and what
    is in up to `CONTENT_FILES` of them. Of a user's own data set class it covers its length, what lies under the names
    that torchvision uses (`data`, `targets`, `samples`, ...), and any list of one path for each image; where a user's
    function returned it, also its labels, whatever it holds for each image, and a few of its items.

        >>> data_digest(load_data(DataConfig(name="digits"), input_size=8, seed=0))
        '1004 + 434 + 359 images of 10 classes, 227ee2af4640'
    """
    digest = _Digest(data.replaced, data.marks)
    parts = (data.weights, data.architecture, data.test)
    digest.add_text(data.num_classes, data.channels, *(data.class_names or ()))
    for part in parts:
        digest.add_dataset(part)
    counts = " + ".join(str(len(part)) for part in parts)  # type: ignore[arg-type]
    return f"{counts} images of {data.num_classes} classes, {digest.hexdigest()}"


class _Digest:
    """A running hash of data sets; what several parts share is hashed once."""

    def __init__(self, replaced: Mapping[str, Any], marks: dict[str, str]) -> None:
        self._replaced = replaced
        self._marks = marks
        self._hash = hashlib.sha256()
        self._seen: dict[int, Any] = {}

    def hexdigest(self) -> str:
        return self._hash.hexdigest()[:12]

    def add_text(self, *values: Any) -> None:
        self._hash.update("".join(f"{value}\0" for value in values).encode("utf-8", "surrogateescape"))

    def add_dataset(self, dataset: Any) -> None:
        if id(dataset) in self._seen:
            return
        self._seen[id(dataset)] = dataset
        self.add_text(type(dataset).__name__, len(dataset))
        held = getattr(dataset, "__dict__", {})
        for name in _ARRAYS:
            self._add_arrays(held.get(name))
        if "indices" not in held:  # else they are a cached selection, there or not there
            self._add_arrays(held.get("targets"))
        for name in _FILES:
            self._add_files(held.get(name), str(held.get("root", "")))
        for name in sorted(held.keys() - {*_FILES, *_WITHIN}):
            if _is_paths(held[name], len(dataset)):
                self._add_files(held[name], str(held.get("root", "")))
        if isinstance(held.get("fingerprint"), str):
            self.add_text(held["fingerprint"])
        for name in _WITHIN:
            inner = held.get(name)
            for part in inner if isinstance(inner, list | tuple) else [inner]:
                if hasattr(part, "__len__") and hasattr(part, "__getitem__"):
                    self.add_dataset(part)

    def _add_arrays(self, value: Any) -> None:
        if value is None or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        if isinstance(value, tuple | list) and value and isinstance(value[0], torch.Tensor | np.ndarray):
            for item in value:
                self._add_arrays(item)
            return
        try:
            array = value.detach().cpu() if isinstance(value, torch.Tensor) else np.asarray(value)
            step = max(1, -(-array.nbytes // HASHED_BYTES))
            rows: Any = array[::step] if array.ndim else array
            if isinstance(rows, torch.Tensor):  # NumPy has no bfloat16
                content = rows.contiguous().reshape(-1).view(torch.uint8).numpy()
            elif rows.dtype.kind in "biufc":
                content = np.ascontiguousarray(rows).reshape(-1).view(np.uint8)
            else:
                return
        except (RuntimeError, TypeError, ValueError):
            return  # no numbers: text, mappings, lists of different lengths, sparse tensors
        self.add_text(array.dtype, tuple(array.shape))
        self._hash.update(content.data)

    def add_value(self, value: Any) -> None:
        """Hash plain values, arrays, pictures, and lists and mappings of them; of anything else its type alone."""
        if value is None or isinstance(value, str | bytes | bool | int | float | os.PathLike):
            self.add_text(type(value).__name__, value)
        elif isinstance(value, Image.Image):
            self.add_text(value.mode, value.size)
            self._hash.update(value.tobytes())
        elif isinstance(value, torch.Tensor | np.ndarray):
            self._add_arrays(value)
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                self.add_text(key)
                self.add_value(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                self.add_value(inner)
        else:
            self.add_text(type(value).__name__)

    def _add_files(self, value: Any, root: str) -> None:
        if not isinstance(value, list | tuple | FileList) or id(value) in self._seen:
            return
        self._seen[id(value)] = value
        # One after the other: of a million the text alone takes half a GB.
        for sample in value:
            self.add_text(_path_of(sample).removeprefix(root))
        for sample in value:
            self.add_text(*(sample[1:] if isinstance(sample, tuple | list) else ()))
        for most, mark in ((SIZED_FILES, _size), (CONTENT_FILES, file_mark)):
            chosen = value[:: max(1, -(-len(value) // most))]
            self.add_text(*(self._mark(_path_of(sample), mark) for sample in chosen))

    def _mark(self, path: str, mark: Callable[[str], Any]) -> Any:
        """What is known of a file: its size, or its size and content; of a replaced one what was known before."""
        itself = os.path.abspath(path)
        if itself in self._replaced:
            before = str(self._replaced[itself])
            return before.partition(" ")[0] if mark is _size else before
        found = mark(path)
        if mark is file_mark:
            self._marks[itself] = found
        return found


def _path_of(sample: Any) -> str:
    path = sample[0] if isinstance(sample, tuple | list) else sample
    return os.fspath(path) if isinstance(path, str | os.PathLike) else str(path)


def file_mark(path: str) -> str:
    """Return what the digest knows of a file beside its path: a plain value, which changes with the file."""
    digest = hashlib.sha256()
    try:
        with opened(path) as file:
            digest.update(file.read(CONTENT_BYTES))
            return f"{os.fstat(file.fileno()).st_size} {digest.hexdigest()[:12]}"
    except (OSError, Unreadable):
        return f"{_size(path)} unreadable"  # the loader names it when it comes to it


def rows_digest(dataset: Any) -> str:
    """Digest all that a data set holds one of for each image, under whatever name."""
    digest = _Digest({}, {})
    for name, value in sorted(getattr(dataset, "__dict__", {}).items()):
        if hasattr(value, "__len__") and len(value) == len(dataset):
            digest.add_text(name)
            digest.add_value(value)
    return digest.hexdigest()


def item_digest(items: Sequence[Any]) -> str:
    """Digest some items, whatever a data set gives."""
    digest = _Digest({}, {})
    digest.add_value(items)
    return digest.hexdigest()


def _is_paths(value: Any, length: int) -> bool:
    """Whether a value is a list of one path, or one tuple that begins with a path, for each image."""
    if not isinstance(value, list | tuple) or not value or len(value) != length:
        return False
    firsts = (entry[0] if isinstance(entry, tuple | list) and entry else entry for entry in value)
    return all(isinstance(first, str | os.PathLike) for first in firsts)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1  # the loader names it when it comes to it
