"""CIFAR's files, which are pickles, read without running what anyone may have put into them."""

from __future__ import annotations

import io
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, ClassVar

import numpy as np
from torchvision.datasets import cifar

from hardware.reading import Unreadable, cut, expect, shown, why

_CORES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_ARRAYS = {(module, name) for module in _CORES for name in ("_reconstruct", "_frombuffer", "scalar")} | {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}
"""What a pickle of plain values and numpy's arrays names, in any version of numpy and any protocol."""
_PIXELS = 3 * 32 * 32
_LABELS, _NAMES = ("labels", "fine_labels"), ("label_names", "fine_label_names")
_lock = threading.Lock()
Labels = dict[str, list[int]]
"""By the name of the file that holds them."""


class _Class:
    """Stands for `numpy.ndarray` in a pickle, where `_empty` alone takes it: a call of it could ask for memory."""


def _empty(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """Make the array that a pickle then fills; what numpy itself writes there has no value yet."""
    if shape != (0,):
        raise Unreadable(f"it asks for an array of shape {shown(shape)} before its values")
    return np.empty(0, np.uint8)


# That of C keeps a table as long as a file says, and reads as many bytes at once.
class _Arrays(pickle._Unpickler):
    # a byte array is made as long as the file says before it is read
    dispatch: ClassVar[dict[int, Any]] = {
        key: read for key, read in pickle._Unpickler.dispatch.items() if key != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise Unreadable(
                f"it names {cut(module)}.{cut(name)}, and nothing but arrays and plain values will be unpickled"
            )
        return {"ndarray": _Class, "_reconstruct": _empty}.get(name) or super().find_class(module, name)


def _load(labels: Labels, file: BinaryIO, **options: Any) -> Any:
    name = Path(getattr(file, "name", "the file")).name
    try:
        # in memory, as a file would allocate what is asked for, and not what there is
        found = _Arrays(io.BytesIO(file.read()), **options).load()
    except Exception as error:  # whatever its bytes stand for
        raise Unreadable(f"{name} holds no plain arrays ({why(error)})") from error
    try:
        labels[name] = _checked(expect(found, dict, "content"))
    except Unreadable as error:
        raise Unreadable(f"{name} is no file of CIFAR ({error})") from error
    return found


def _checked(found: dict[Any, Any]) -> list[int]:
    """Return the labels of a file; refuse what is neither images with labels nor names, of which anything may be made.

    Raises:
        Unreadable: It is neither.
    """
    names = next((key for key in _NAMES if key in found), None)
    if names is not None:
        for number, name in enumerate(expect(found[names], list, names)):
            expect(name, str, f"{names}.{number}")
        if not found[names]:
            raise Unreadable(f"its {names} is empty")
        return []
    key = next((key for key in _LABELS if key in found), "labels")
    data = found.get("data")
    labels: list[int] = expect(found.get(key), list, key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape != (len(labels), _PIXELS):
        described = f"{data.dtype} of {data.shape}" if isinstance(data, np.ndarray) else shown(data)
        raise Unreadable(f"its data is {described}, not a row of {_PIXELS} bytes for each of {len(labels)} labels")
    for number, label in enumerate(labels):
        if not 0 <= expect(label, int, f"{key}.{number}") < 2**31:
            raise Unreadable(f"its {key}.{number} is {shown(label)}, no class number")
    return labels


def check_named(part: Any, labels: Labels) -> None:
    """Refuse a part of CIFAR with labels for which there is no name.

    Args:
        part: Torchvision's data set.
        labels: Those of its files.

    Raises:
        Unreadable: It has some.
    """
    for file, numbers in labels.items():
        for image, label in enumerate(numbers):
            if label >= len(part.classes):
                raise Unreadable(
                    f"{part.meta['filename']} names {len(part.classes)} classes, but image {image} of {file} has the "
                    f"label {label}"
                )


@contextmanager
def arrays_alone() -> Iterator[Labels]:
    """Let torchvision's CIFAR classes read arrays and plain values only, as long as the block runs.

    Yields the labels of the files that they have read.


    Their check sums keep strange files out, but not of pictures that were drawn; and md5 no longer keeps anybody out.
    """
    # Its constructor calls `pickle.load` by the module's name, and has no argument for it.
    with _lock:
        original = cifar.pickle
        labels: Labels = {}
        cifar.pickle = SimpleNamespace(load=partial(_load, labels))
        try:
            yield labels
        finally:
            cifar.pickle = original
