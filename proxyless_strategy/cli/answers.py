"""`--json`: what a command found as one JSON object, alone on standard output."""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Annotated, Any

import typer

from hardware.errors import ProxylessError

Json = Annotated[bool, typer.Option("--json", help="One JSON object on standard output, all else on standard error.")]


@dataclass(frozen=True)
class Answer:
    """What a command found, where it ends otherwise than well, or another process says it.

    Attributes:
        values: What `--json` prints.
        error: Raised after that; None: nothing is.
        status: The exit status where there is no error.
        spoken: Whether `--json` prints them; of several processes the first one's alone are.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    error: ProxylessError | None = None
    status: int = 0
    spoken: bool = True


def answers(command: Callable[..., Mapping[str, Any] | Answer]) -> Callable[..., None]:
    """Give a command the option `--json`, which prints what the function returns.

    What the function itself prints is for people, and goes to standard error then.
    """

    @functools.wraps(command)
    def wrapped(*args: Any, as_json: bool = False, **options: Any) -> None:
        with _set_aside(wanted=as_json):
            found = command(*args, **options)
        answer = found if isinstance(found, Answer) else Answer(found)
        if as_json and answer.spoken:
            typer.echo(json.dumps(plain(answer.values), indent=2, allow_nan=False))
        if answer.error is not None:
            raise answer.error
        if answer.status:
            raise typer.Exit(answer.status)

    # typer reads parameters and their types from these two; texts would be looked up in this module. `get_type_hints`
    # would hide, on Python 3.10, what typer is told of a parameter whose default is None.
    signature = inspect.signature(command, eval_str=True)
    parameters = list(signature.parameters.values())
    option = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)
    wrapped.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*parameters, option], return_annotation=None
    )
    wrapped.__annotations__ = {p.name: p.annotation for p in (*parameters, option)} | {"return": None}
    return wrapped


def plain(value: Any) -> Any:
    """Return the same as JSON types: a path as text, a number that JSON lacks as null.

    >>> plain({"a": Path("b"), 1: (float("nan"), 2.5)})
    {'a': 'b', '1': [None, 2.5]}
    """
    if hasattr(value, "item") and not isinstance(value, Mapping):
        value = value.item()  # of NumPy or torch
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


@contextmanager
def _set_aside(*, wanted: bool) -> Iterator[None]:
    """Send to standard error what this process, its libraries and its children print."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
