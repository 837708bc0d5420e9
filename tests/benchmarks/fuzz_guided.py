"""The engine that is guided by coverage: libFuzzer, by way of atheris, with the changes of the plain one.

libFuzzer counts on a process of its own, which it ends itself. Each chunk is one, and hands what it has gathered of
interesting inputs to the next chunk of its target.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.fuzz_cases import Case, Judge, specials
from tests.benchmarks.fuzz_workers import At, Chunk, note

PACKAGES = ("hardware", "search_spaces", "proxyless_strategy")
LARGEST = 2_000_000
"""Bytes of an input; libFuzzer would stay at the length of its first ones."""


class _WithoutProgress:
    """Standard error without what atheris says of each module."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return len(text) if text.startswith("INFO: Instrumenting") else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def instrumented() -> Iterator[None]:
    """Have what this project imports in the block made so that its coverage is seen.

    Raises:
        SystemExit: atheris is not installed.
    """
    try:
        import atheris
    except ImportError:
        sys.exit("--engine atheris needs atheris; install the extra `fuzz`, or take --engine plain")
    original, sys.stderr = sys.stderr, _WithoutProgress(sys.stderr)  # type: ignore[assignment]
    try:
        with atheris.instrument_imports(include=list(PACKAGES), enable_loader_override=False):
            yield
    finally:
        sys.stderr = original


def guidedly(chunk: Chunk, place: Path, seed: int, at: At) -> None:
    """Carry out as many cases as a chunk has, whose inputs libFuzzer chooses; what is no content comes first."""
    import atheris

    target = chunk.target
    judge = Judge(target, chunk.good, place / "case")
    known: dict[str, int] = {}
    stream = (place / "found").open("a", encoding="utf-8")
    number = chunk.start
    corpus = place.parent / f"corpus-{chunk.good.name}"
    corpus.mkdir(exist_ok=True)
    for index, content in enumerate(chunk.seeds):
        (corpus / f"seed{index}").write_bytes(content)

    def judged(case: Case, *, good: bool = False) -> None:
        nonlocal number
        at(number)
        fault = judge(case, good=good)
        if fault is not None:
            note(stream, fault, case, number, known)
        number += 1
        at(number, idle=True)

    if chunk.start == 0:
        judged(Case(chunk.seeds[0]), good=True)
        for case in specials(target):
            judged(case)

    def one(content: bytes) -> None:
        if number < chunk.stop:
            # Should the process die, this is what it died of.
            (place / "current").write_bytes(content)
            judged(Case(content))

    def change(content: bytes, largest: int, number: int) -> bytes:
        rng = random.Random(number)
        if rng.random() < 0.3:
            return atheris.Mutate(content, largest)
        try:
            return target.format(content, rng)[:largest]
        except Exception:  # a format changes what is nearly valid, and coverage has led elsewhere
            return atheris.Mutate(content, largest)

    # What libFuzzer says of its progress would drown the rest.
    for descriptor in (1, 2):
        os.dup2(os.open(place / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    # Time and memory are watched from outside.
    settings = ["-timeout=0", "-rss_limit_mb=0", "-malloc_limit_mb=0", f"-max_len={LARGEST}", "-len_control=0"]
    settings += [f"-runs={chunk.stop - number}", f"-seed={seed + 1 + chunk.start}", "-handle_term=0", "-handle_int=0"]
    if number < chunk.stop:
        at(number, idle=True)
        atheris.Setup(["fuzz", *settings, str(corpus)], one, custom_mutator=change, internal_libfuzzer=True)
        atheris.Fuzz()
