"""Our errors on their way out of a process that reads images."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from torch.utils.data import get_worker_info

from hardware import errors

Key = TypeVar("Key")
Batch = TypeVar("Batch")


class _Carried(Exception):
    """A typed error in a text that survives the way.

    torch hands on an error of a worker as its class and the traceback's text, and calls the class with that text: a
    sentence for the user would come out as a page, and the error's fields would be lost. This class has that call give
    the error itself.
    """

    def __new__(cls, text: str) -> Any:
        # The traceback ends with the class's name, a colon and the text.
        _, _, content = text.rstrip().rpartition("\n")[2].partition(": ")
        values = json.loads(content)
        error = getattr(errors, values.pop("class"))(values.pop("message"))
        error.__dict__.update(values)
        return error


def read_batch(read: Callable[[Key], Batch], key: Key) -> Batch:
    """Read a batch, in a worker with typed errors as `carried` has them."""
    try:
        return read(key)
    except errors.ProxylessError as error:
        if get_worker_info() is None:
            raise
        raise carried(error) from error


def carried(error: errors.ProxylessError) -> Exception:
    """Return what a worker raises in the place of a typed error, so that the error reaches whoever reads the loader."""
    kind = next(c.__name__ for c in type(error).__mro__ if getattr(errors, c.__name__, None) is c)
    fields = {name: value for name, value in vars(error).items() if isinstance(value, str | int | None)}
    parcel: Exception = Exception.__new__(_Carried)
    parcel.args = (json.dumps({"class": kind, "message": str(error), **fields}),)
    return parcel
