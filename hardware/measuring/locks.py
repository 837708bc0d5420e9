"""Locks between processes: one measurement at a time on a machine, one builder at a time of a table."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import TableError
from ..tables.table import LatencyTable

MEASURING_LOCK = "proxyless-measuring.lock"


@contextmanager
def measuring_lock(*, folder: str | Path | None = None) -> Iterator[None]:
    """Keeps other measurements off this machine while one runs; waits for its turn and says so.

    Args:
        folder: Where the lock file lies; None takes the system's folder for temporary files.
    """
    path = Path(folder or tempfile.gettempdir()) / MEASURING_LOCK
    with _held(path, "another process is measuring on this machine"):
        yield


@contextmanager
def table_lock(path: str | Path, *, wait: bool = True) -> Iterator[None]:
    """Keeps other builders off one table.

    Args:
        path: The table's file; the lock lies beside it, hidden.
        wait: Whether to wait for one's turn (and say so) or to refuse.

    Raises:
        TableError: Another process is building the table, and `wait` is False.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _held(path.with_name(f".{path.name}.lock"), f"another process is building {path}", wait=wait):
        yield


def load_or_build(path: str | Path, builder: Callable[[], LatencyTable]) -> LatencyTable:
    """The table at `path`; where there is none, whoever comes first builds and saves it, and others wait.

    Args:
        path: The table's file.
        builder: Makes the table; it may save it at `path` itself.
    """
    path = Path(path)
    if path.exists():
        return LatencyTable.load(path)
    with table_lock(path):
        if not path.exists():
            table = builder()
            if not path.exists():
                table.save(path)
        return LatencyTable.load(path)


_depth: dict[tuple[int, Path], int] = {}


@contextmanager
def _held(path: Path, reason: str, *, wait: bool = True) -> Iterator[None]:
    """Holds the lock file at `path`; a thread that holds it already may enter again."""
    import filelock

    mine = (threading.get_ident(), path)
    if _depth.get(mine):
        _depth[mine] += 1
        try:
            yield
        finally:
            _depth[mine] -= 1
        return
    _make_shareable(path)
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0.05)
    except filelock.Timeout:
        if not wait:
            raise TableError(f"{reason}; wait for it, or give another file.") from None
        print(f"waiting: {reason} (lock {path})", file=sys.stderr, flush=True)
        lock.acquire()
    _depth[mine] = 1
    try:
        yield
    finally:
        del _depth[mine]
        lock.release()


def _make_shareable(path: Path) -> None:
    """Lets every user of the machine take the lock."""
    if not path.exists():
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o666))
            path.chmod(0o666)
        except OSError:
            return
