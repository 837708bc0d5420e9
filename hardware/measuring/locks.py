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
    """Keep other measurements off this machine while one runs; wait for one's turn and say so.

    Args:
        folder: Where the lock file lies; None takes the system's folder for temporary files.
    """
    path = Path(folder or tempfile.gettempdir()) / MEASURING_LOCK
    with _held(path, "another process is measuring on this machine"):
        yield


@contextmanager
def table_lock(path: str | Path, *, wait: bool = True) -> Iterator[None]:
    """Keep other builders off one table.

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
    """Return the table at `path`; where there is none, the first to come builds and saves it, and others wait.

    Args:
        path: The table's file.
        builder: Makes the table; it may save it at `path` itself.
    """
    path = Path(path)
    if path.exists():
        return LatencyTable.load(path)
    with table_lock(path):
        # whoever held the lock before may have built it
        if not path.exists():
            table = builder()
            if not path.exists():
                table.save(path)
        return LatencyTable.load(path)


# `proxyless latency build` holds a table's lock and calls `build_table`, which takes it again. filelock counts within
# one lock object only, and each call here makes its own: without this count a process would wait for itself.
_depth: dict[tuple[int, Path], int] = {}


@contextmanager
def _held(path: Path, reason: str, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock file at `path`; a thread that holds it already may enter again."""
    # slow to import, and needed when something is measured only
    import filelock

    # by thread, as two threads of one process must still wait for each other
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
        # a moment, so that one who waits learns why
        lock.acquire(timeout=0.05)
    except filelock.Timeout:
        if not wait:
            raise TableError(f"{reason}; wait for it, or give another file") from None
        print(f"waiting: {reason} (lock {path})", file=sys.stderr, flush=True)
        lock.acquire()
    _depth[mine] = 1
    try:
        yield
    finally:
        del _depth[mine]
        lock.release()


def _make_shareable(path: Path) -> None:
    """Let every user of the machine take the lock: a file that filelock makes, its owner alone can open."""
    if not path.exists():
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o666))
            path.chmod(0o666)
        except OSError:
            return
