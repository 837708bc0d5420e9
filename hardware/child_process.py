"""How threads wait in this process, and the environment of a child process that times PyTorch.

Idle threads of OpenMP spin for a while by default, as if the machine were theirs alone: where another process wants the
same cores, a search takes ten times as long. Its runtime reads the environment once, when torch loads it, so whoever
starts a process that trains says so before. What measures a latency keeps the default, under which a deployed model
runs: another way of waiting changes the latency on several threads.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

MALLOC_TUNABLES = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=4000000000"
PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""The first is OpenMP's own; older versions of Intel's runtime need the second beside it."""
WAITING = "PROXYLESS_WAITING"
"""Environment variable that names what `wait_passively` has set, in this process or one above it.

Without it a child would take that for the user's own and measure latencies with it.
"""
_WORDS = (*PASSIVE, "GOMP_SPINCOUNT", "KMP_LIBRARY")
"""With one of these a user has chosen how threads wait."""


def wait_passively() -> None:
    """Have OpenMP's idle threads sleep in this process and its children, unless the user has chosen how they wait.

    Where torch is loaded already it is too late, and nothing is changed.
    """
    if "torch" in sys.modules or WAITING in os.environ:
        return
    chosen = any(name in os.environ for name in _WORDS)
    os.environ[WAITING] = "" if chosen else ",".join(PASSIVE)
    if not chosen:
        os.environ.update(PASSIVE)


def measuring_environment() -> dict[str, str]:
    """Return this process's environment, such that a child keeps its memory and finds this project's packages.

    By default glibc gives each large activation back to the kernel and has it faulted in again, page by page, which
    swings one net between 13 and 19 ms. glibc reads its settings when a process starts, so a child needs them from
    outside. Settings of the user's own come first; glibc takes the last of two for the same thing.

    What `wait_passively` has set is left out: latencies on several threads are those of threads that wait as they do
    in a deployed model. On one thread nothing waits.
    """
    # a child of `python -m` looks for packages in its own folder, which need not be where this project lies
    root = str(Path(__file__).resolve().parents[1])
    ours = os.environ.get(WAITING, "").split(",")
    return {
        **{name: value for name, value in os.environ.items() if name not in ours or value != PASSIVE.get(name)},
        "PYTHONPATH": _joined(os.pathsep, root, os.environ.get("PYTHONPATH")),
        "GLIBC_TUNABLES": _joined(":", os.environ.get("GLIBC_TUNABLES"), MALLOC_TUNABLES),
        WAITING: "",
    }


def _joined(separator: str, *parts: str | None) -> str:
    return separator.join(part for part in parts if part)
