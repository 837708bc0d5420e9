"""CIFAR's files, which are pickles, read without running what anyone may have put into them."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

from torchvision.datasets import cifar

from hardware.reading import Unreadable, why

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
        self.name = Path(getattr(file, "name", "the file")).name

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise Unreadable(f"it names {module}.{name}, and nothing but arrays and plain values will be unpickled")
        return super().find_class(module, name)


def _load(file: BinaryIO, **options: Any) -> Any:
    arrays = _Arrays(file, **options)
    try:
        return arrays.load()
    except Exception as error:  # whatever its bytes stand for
        raise pickle.UnpicklingError(f"{arrays.name} holds no plain arrays ({why(error)})") from error


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
