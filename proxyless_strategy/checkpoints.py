"""Checkpoint files of long trainings: written whole or not at all, two kept, read without running code from them.

- `search.ckpt`: the newest;
- `search.previous.ckpt`: the one before;
- `search.damaged.ckpt`: a newest one that could not be used, set aside;
- `.search.ckpt.HOST.PID.tmp`: one that is being written, or that a killed writer left.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hardware.errors import CheckpointError
from hardware.files import sync
from hardware.reading import DAMAGE, Unreadable, opened, tensors_in, why

FOREIGN_LEFTOVER_SECONDS = 24 * 3600
"""Age from which an unfinished file of another machine counts as left: whether its writer lives cannot be asked."""

Check = Callable[[Any], str | None]
"""Say why a file's content is not the wanted checkpoint; None where it is."""


class LatestCheckpoint(NamedTuple):
    """The newest checkpoint that can be used.

    Attributes:
        path: Its file.
        state: What it holds.
        warning: One sentence where it is not the newest that was written; else None.
    """

    path: Path
    state: Any
    warning: str | None


def previous_checkpoint(path: Path) -> Path:
    """Return where the checkpoint before the one at `path` lies."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def checkpoint_names(path: Path) -> str:
    """Name the checkpoints that there are: who deletes the newest alone continues from the one before."""
    files = (path, previous_checkpoint(path))
    return " and ".join(file.name for file in files if os.path.lexists(file))


def short_digest(value: Any) -> str:
    """Digest plain values, for an identity that fits into an error message."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]


# ---- writing ---------------------------------------------------------------------------------------------------


def write_checkpoint(path: Path, state: Any) -> None:
    """Write `state` to `path`; what was there becomes `previous_checkpoint(path)`.

    Killed or failing at any moment, it leaves a whole file at `path`: the new one or the old one.

    Args:
        path: The file; its folder is made where it is missing.
        state: Whatever `torch.load(weights_only=True)` reads back: tensors and plain values.

    Raises:
        CheckpointError: The disk is full, the folder cannot be written to, or something else is in the way.
    """
    content = io.BytesIO()
    torch.save(state, content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_beside_and_move(path, content.getbuffer())
    except OSError as error:
        size = content.getbuffer().nbytes / 1e6
        remedy = (
            "make room there and repeat the command, which continues from the checkpoint before"
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            else "give a path that can be written"
        )
        raise CheckpointError(
            f"cannot write the checkpoint {path} ({size:.1f} MB): {error.strerror or error}; {remedy}"
        ) from error


def _write_beside_and_move(path: Path, content: memoryview) -> None:
    # Beside the target: from TMPDIR, often another file system, a file can only be copied, and a copy that is cut short
    # has already destroyed the good one.
    beside = _unfinished(path)
    try:
        with beside.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())  # else a power cut may leave the new name with no content behind it
        _keep_as_previous(path)
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):  # a second failure would hide the first
            beside.unlink()
        raise
    with contextlib.suppress(OSError):  # some network disks cannot sync folders
        sync(path.parent)


def _keep_as_previous(path: Path) -> None:
    if not path.is_file():
        return
    older, link = previous_checkpoint(path), _unfinished(path, "link")
    link.unlink(missing_ok=True)
    try:
        # a second name for the same file: at no moment is there no checkpoint called `path`
        os.link(path, link)
    except OSError:
        os.replace(path, older)  # a file system without hard links
        return
    try:
        os.replace(link, older)
    finally:
        # POSIX: renaming a name to another name of the same file does nothing and leaves both
        link.unlink(missing_ok=True)


# ---- leftovers -------------------------------------------------------------------------------------------------


def remove_leftovers(path: Path) -> list[Path]:
    """Remove what killed writers of `path` left beside it, and return its names; call it before the first write.

    A file of a living process of this machine is left alone, and so is one of another machine until it is a day old.
    """
    removed = []
    for leftover, host, pid in _unfinished_files(path):
        if _writer_is_gone(leftover, host, pid):
            with contextlib.suppress(OSError):
                leftover.unlink()
                removed.append(leftover)
    return removed


def _unfinished(path: Path, kind: str = "tmp") -> Path:
    return path.with_name(f".{path.name}.{_host()}.{os.getpid()}.{kind}")


def _unfinished_files(path: Path) -> Iterator[tuple[Path, str, int]]:
    if not path.parent.is_dir():
        return
    for entry in sorted(path.parent.iterdir()):
        if entry.name.startswith(f".{path.name}.") and entry.suffix in (".tmp", ".link"):
            host, _, pid = entry.stem.removeprefix(f".{path.name}.").rpartition(".")
            if host and pid.isdecimal():
                yield entry, host, int(pid)


def _writer_is_gone(leftover: Path, host: str, pid: int) -> bool:
    if host != _host():
        with contextlib.suppress(OSError):
            return time.time() - leftover.stat().st_mtime > FOREIGN_LEFTOVER_SECONDS
        return False
    if pid == os.getpid():
        return True  # in a container a restarted program often gets its old number back
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _host() -> str:
    return socket.gethostname().replace("/", "-") or "localhost"


# ---- reading ---------------------------------------------------------------------------------------------------


def read_checkpoint(path: Path, *, what: str, check: Check | None = None, map_location: Any = "cpu") -> Any:
    """Read one checkpoint, of tensors and plain values alone: nothing in the file can run code.

    Args:
        path: The file.
        what: Whose it should be, for the error: "a search".
        check: Says why a readable content is not it.
        map_location: Where tensors go.

    Raises:
        CheckpointError: The file is missing, damaged, or not such a checkpoint.
    """
    state, reason = _read(path, check, map_location)
    if reason is not None:
        raise CheckpointError(f"{path} is no checkpoint of {what}; delete it to start anew ({reason})")
    return state


def latest_checkpoint(
    path: Path, *, what: str, check: Check | None = None, map_location: Any = "cpu", set_aside: bool = True
) -> LatestCheckpoint | None:
    """Read the newest checkpoint, or the one before where that cannot be used; None where there is neither.

    Args:
        path: The newest one's file.
        what: See `read_checkpoint`.
        check: See `read_checkpoint`.
        map_location: See `read_checkpoint`.
        set_aside: Rename a newest one that cannot be used, lest the next write keep it in place of the good one; of
            several processes one should.

    Raises:
        CheckpointError: There are checkpoints, but none can be used.
    """
    older = previous_checkpoint(path)
    there, older_there = os.path.lexists(path), os.path.lexists(older)
    if not there and not older_there:
        return None
    state, reason = _read(path, check, map_location) if there else (None, "it is missing")
    if reason is None:
        return LatestCheckpoint(path, state, None)
    if not older_there:
        raise CheckpointError(f"{path} is no checkpoint of {what}; delete it to start anew ({reason})")
    state, older_reason = _read(older, check, map_location)
    if older_reason is not None:
        raise CheckpointError(
            f"{path} is no checkpoint of {what} ({reason}), nor is {older.name} ({older_reason}); delete "
            f"{checkpoint_names(path)} to start anew"
        )
    warning = f"cannot continue from {path}, {reason}; {older.name} is used, and what came after it is done again"
    if there and set_aside:
        with contextlib.suppress(FileNotFoundError):
            warning += f" (set aside as {_set_aside(path).name})"
    return LatestCheckpoint(older, state, warning)


def _set_aside(path: Path) -> Path:
    names = [f"{path.stem}.damaged{path.suffix}", *(f"{path.stem}.damaged-{n}{path.suffix}" for n in range(2, 100))]
    place = next((path.with_name(name) for name in names if not os.path.lexists(path.with_name(name))), None)
    if place is None:
        raise CheckpointError(f"{path.parent} holds 99 damaged checkpoints; delete {path.stem}.damaged*")
    try:
        path.rename(place)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise CheckpointError(f"cannot set {path} aside: {error.strerror or error}; delete it") from error
    return place


def _read(path: Path, check: Check | None, map_location: Any) -> tuple[Any, str | None]:
    """Return the content, or why it cannot be used."""
    try:
        with opened(path) as stream:
            state = tensors_in(stream, map_location=map_location, old=False)
        return state, None if check is None else check(state)
    except Unreadable as error:
        return None, f"it cannot be read: {error}" if error.by_system else error.reason
    except DAMAGE as error:
        return None, why(error)
