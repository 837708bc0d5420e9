"""The environment of a child process that times PyTorch."""

from __future__ import annotations

import os
from pathlib import Path

MALLOC_TUNABLES = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4000000000"


def measuring_environment() -> dict[str, str]:
    """Return this process's environment, such that a child keeps its memory and finds this project's packages.

    By default glibc gives each large activation back to the kernel and has it faulted in again, page by page, which
    swings one net between 13 and 19 ms. glibc reads its settings when a process starts, so a child needs them from
    outside. Settings of the user's own come first; glibc takes the last of two for the same thing.
    """
    # a child of `python -m` looks for packages in its own folder, which need not be where this project lies
    root = str(Path(__file__).resolve().parents[1])
    return {
        **os.environ,
        "PYTHONPATH": _joined(os.pathsep, root, os.environ.get("PYTHONPATH")),
        "GLIBC_TUNABLES": _joined(":", os.environ.get("GLIBC_TUNABLES"), MALLOC_TUNABLES),
    }


def _joined(separator: str, *parts: str | None) -> str:
    return separator.join(part for part in parts if part)
