"""CIFAR's files, which are pickles, read without running what anyone may have put into them."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, BinaryIO

from torchvision.datasets import cifar

_ARRAYS = {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
    for name in ("_reconstruct", "_frombuffer", "scalar")
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
"""What a pickle of plain values and numpy's arrays names, in any version of numpy and any protocol."""
_lock = threading.Lock()


class _Arrays(pickle.Unpickler):
    def __init__(self, file: BinaryIO, **options: Any) -> None:
        super().__init__(file, **options)
        self._name = getattr(file, "name", "the file")

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(
                f"{self._name} names {module}.{name}, and nothing but arrays and plain values will be unpickled"
            )
        return super().find_class(module, name)


def _load(file: BinaryIO, **options: Any) -> Any:
    return _Arrays(file, **options).load()


@contextmanager
def arrays_alone() -> Iterator[None]:
    """Let torchvision's CIFAR classes read arrays and plain values only, as long as the block runs.

    Their check sums keep strange files out, but not of pictures that were drawn; and md5 no longer keeps anybody out.
    """
    # Its constructor calls `pickle.load` by the module's name, and has no argument for it.
    with _lock:
        original = cifar.pickle
        cifar.pickle = SimpleNamespace(load=_load)
        try:
            yield
        finally:
            cifar.pickle = original
