"""Locks between processes: one measurement at a time on a machine, one builder at a time of a table."""

from __future__ import annotations

import errno
import os
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, TypeVar

from ..errors import LockError, TableError

try:
    import fcntl
except ImportError:  # Windows, which has no links that anyone may plant in a shared folder either
    fcntl = None  # type: ignore[assignment]


class Savable(Protocol):
    """A table that can be written to its file."""

    def save(self, path: Path) -> None: ...


Table = TypeVar("Table", bound=Savable)

MEASURING_LOCK = "proxyless-measuring.lock"


@contextmanager
def measuring_lock(*, folder: str | Path | None = None) -> Iterator[None]:
    """Keep this user's other measurements off this machine while one runs; wait for one's turn and say so.

    Args:
        folder: Where the lock file lies; None takes `own_folder()`.

    Raises:
        LockError: There is no safe place for the lock, or a link or another user's file lies there.
    """
    path = (own_folder() if folder is None else Path(folder)) / MEASURING_LOCK
    with _held(path, "another process is measuring on this machine", own=True):
        yield


@contextmanager
def table_lock(path: str | Path, *, wait: bool = True) -> Iterator[None]:
    """Keep other builders off one table.

    Args:
        path: The table's file; the lock lies beside it, hidden.
        wait: Whether to wait for one's turn (and say so) or to refuse.

    Raises:
        TableError: Another process is building the table, and `wait` is False.
        LockError: A link lies in the lock's place, or it cannot be opened.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _held(path.with_name(f".{path.name}.lock"), f"another process is building {path}", wait=wait):
        yield


def load_or_build(path: str | Path, builder: Callable[[], Table], load: Callable[[Path], Table]) -> Table:
    """Return the table at `path`; where there is none, the first to come builds and saves it, and others wait.

    Args:
        path: The table's file.
        builder: Makes the table; it may save it at `path` itself.
        load: Reads it, and says what it is of: `LatencyTable.load`.
    """
    path = Path(path)
    if path.exists():
        return load(path)
    with table_lock(path):
        # whoever held the lock before may have built it
        if not path.exists():
            table = builder()
            if not path.exists():
                table.save(path)
        return load(path)


def own_folder() -> Path:
    """Return a folder that this user alone can write to, made where it is missing.

    The places are the user's runtime folder, a folder in the temporary one, and the cache. One that is a link, or
    another user's, or that others may write to, is passed over: whoever made it could plant what they like in it.

    Raises:
        LockError: None of them is safe.
    """
    if fcntl is None:
        return Path(tempfile.gettempdir())
    user = os.geteuid()
    # the runtime folder also where nothing names it: a cron job and a login must find the same lock
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{user}")
    if runtime.is_absolute() and _is_private(runtime):
        return runtime
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for folder in (Path(tempfile.gettempdir()) / f"proxyless-{user}", cache / "proxyless_strategy" / "locks"):
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700)
        except OSError:
            pass  # it is there already, or cannot be: what lies there is looked at next
        if _is_private(folder):
            return folder
    raise LockError(
        f"no place for the lock {MEASURING_LOCK}: {folder} is no folder of yours that you alone can write to; "
        "set XDG_RUNTIME_DIR to one"
    )


def _is_private(folder: Path) -> bool:
    try:
        found = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o022


# `proxyless latency build` holds a table's lock and calls `build_table`, which takes it again. Each call here opens the
# file anew, and a lock belongs to what was opened: without this count a process would wait for itself.
_depth: dict[tuple[int, Path], int] = {}


@contextmanager
def _held(path: Path, reason: str, *, wait: bool = True, own: bool = False) -> Iterator[None]:
    """Hold the lock file at `path`; a thread that holds it already may enter again.

    Args:
        path: The lock file.
        reason: Why one waits, in words.
        wait: Whether to wait for one's turn or to refuse.
        own: Whether the file must be this user's own.
    """
    # by thread, as two threads of one process must still wait for each other
    mine = (threading.get_ident(), path)
    if _depth.get(mine):
        _depth[mine] += 1
        try:
            yield
        finally:
            _depth[mine] -= 1
        return
    with _locked(path, reason, wait=wait, own=own):
        _depth[mine] = 1
        try:
            yield
        finally:
            del _depth[mine]


@contextmanager
def _locked(path: Path, reason: str, *, wait: bool, own: bool) -> Iterator[None]:
    if fcntl is None:
        with _locked_by_filelock(path, reason, wait=wait):
            yield
        return
    descriptor = _open_locked(path, reason, wait=wait, own=own)
    try:
        yield
    finally:
        # closing alone would leave it locked as long as a forked process has the descriptor too
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)


def _open_locked(path: Path, reason: str, *, wait: bool, own: bool) -> int:
    while True:
        descriptor = _open(path, own=own)
        try:
            _lock(descriptor, path, reason, wait=wait)
        except BaseException:
            os.close(descriptor)
            raise
        # whoever cleans temporary folders may have removed the file meanwhile, and others lock a new one
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)


def _open(path: Path, *, own: bool) -> int:
    """Open a lock file, and make it where it is missing; never through a link, and never emptied."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        try:
            # a new file and an old one apart: Linux forbids O_CREAT on others' files in shared folders
            descriptor = os.open(path, flags | os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600 if own else 0o666)
        except FileExistsError:
            try:
                descriptor = os.open(path, flags | os.O_RDWR)
            except PermissionError:
                # a table's lock that a colleague made can be locked without being written to
                descriptor = os.open(path, flags | os.O_RDONLY)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise LockError(f"the lock {path} is a link to {_target(path)}; remove the link") from None
        raise LockError(f"the lock {path} cannot be opened: {error.strerror}; remove it, or mend its folder") from None
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and (not own or found.st_uid == os.geteuid()):
        return descriptor
    os.close(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise LockError(f"the lock {path} is no plain file; remove it")
    raise LockError(f"the lock {path} belongs to user {found.st_uid}, not to you ({os.geteuid()}); remove it")


def _target(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return "elsewhere"


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except OSError:
        return False


def _lock(descriptor: int, path: Path, reason: str, *, wait: bool) -> None:
    """Lock an open file; say so where one must wait for longer than a moment."""
    try:
        for pause in (0.05, 0.0):
            try:
                return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(pause)
        if not wait:
            raise TableError(f"{reason}; wait for it, or give another file")
        print(f"waiting: {reason} (lock {path})", file=sys.stderr, flush=True)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    except OSError as error:
        raise LockError(f"the lock {path} cannot be locked: {error.strerror}; use a disk that can lock files") from None


@contextmanager
def _locked_by_filelock(path: Path, reason: str, *, wait: bool) -> Iterator[None]:
    # slow to import, and only needed without flock
    import filelock

    lock = filelock.FileLock(path)
    try:
        # a moment, so that one who waits learns why
        lock.acquire(timeout=0.05)
    except filelock.Timeout:
        if not wait:
            raise TableError(f"{reason}; wait for it, or give another file") from None
        print(f"waiting: {reason} (lock {path})", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
