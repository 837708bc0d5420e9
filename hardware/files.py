"""Write files so that a reader never sees half of one: the one place that knows how.

Whatever the disk, the folder or its permissions refuse becomes the caller's typed error, of one sentence.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from .errors import ProxylessError, WriteError

_MARK = ".unfinished"
_UNFINISHED = re.compile(rf"\..+{re.escape(_MARK)}(\.\w+)?")
"""Names of `replacing`; the ending stays the file's own, by which writers choose a format."""
ELSEWHERE = "make room there, or choose another place"


@contextmanager
def writing(
    path: str | Path, *, error: type[ProxylessError] = WriteError, remedy: str = ELSEWHERE, what: str = "cannot write"
) -> Iterator[None]:
    """Turn what the system refuses inside the context into one sentence about `path`.

    Args:
        path: What is written, as the sentence names it.
        error: Type of the error.
        remedy: What to do about it.
        what: How the sentence begins.
    """
    try:
        yield
    except OSError as refused:
        reason = refused.strerror or " ".join(str(refused).split())[:200]
        raise error(f"{what} {path}: {reason}; {remedy}") from refused
    except Exception as refused:
        # safetensors has an error of its own for a full disk; whoever has not loaded it cannot have raised it
        safetensors = sys.modules.get("safetensors")
        if safetensors is None or not isinstance(refused, safetensors.SafetensorError):
            raise
        raise error(f"{what} {path}: {' '.join(str(refused).split())[:200]}; {remedy}") from refused


def write_atomically(
    path: str | Path, content: str | bytes, *, error: type[ProxylessError] = WriteError, remedy: str = ELSEWHERE
) -> None:
    """Write text (UTF-8) or bytes to `path`, whole or not at all, making its folder where it is missing.

    Args:
        path: The file.
        content: All of it.
        error: Type of the error.
        remedy: What to do where it cannot be written.

    Raises:
        ProxylessError: Of type `error`: the file cannot be written; an earlier one is then as it was.
    """
    with replacing(path, error=error, remedy=remedy) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)


@contextmanager
def replacing(path: str | Path, *, error: type[ProxylessError] = WriteError, remedy: str = ELSEWHERE) -> Iterator[Path]:
    """Yield a path to write to, and move what was written there to `path` at the end of the block.

    For writers that want a path (`torch.save`, a figure's `savefig`). An exception in the block leaves an earlier file
    as it was. The path yielded is an empty hidden file beside `path`, with the same ending.

    Args:
        path: The file.
        error: Type of the error.
        remedy: What to do where it cannot be written.

    Raises:
        ProxylessError: Of type `error`: the file cannot be written; an earlier one is then as it was.
    """
    path = Path(path)
    with writing(path, error=error, remedy=remedy):
        path.parent.mkdir(parents=True, exist_ok=True)
        # beside the target, because os.replace cannot move from one file system to another
        descriptor, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=f"{_MARK}{path.suffix}", dir=path.parent)
        os.close(descriptor)
        beside = Path(name)
        try:
            yield beside
            # after a power cut a renamed file may be empty, unless its content reached the disk before its name did
            sync(beside)
            # mkstemp lets the owner alone read; other users of the machine share tables and runs
            beside.chmod(0o666 & ~current_umask())
            os.replace(beside, path)
        except BaseException:
            # a second failure would hide the first
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
    # the new name is part of the folder; where folders cannot be synced (some network disks), go without
    with contextlib.suppress(OSError):
        sync(path.parent)


@contextmanager
def new_folder(path: Path, *, first_stays: bool = False) -> Iterator[Path]:
    """Yield a hidden folder beside `path`, and give it that name at the end of the block; an exception leaves nothing.

    Args:
        path: The folder, which is not there yet.
        first_stays: Whether one that another process has made in the meantime stays, in the place of an `OSError`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield beside
        beside.chmod(0o755)  # `mkdtemp` lets its owner alone in
        try:
            beside.rename(path)
        except OSError:
            if not (first_stays and path.exists()):
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def save_figure(figure: Any, path: str | Path, *, dpi: int = 120, error: type[ProxylessError] = WriteError) -> None:
    """Write a figure of matplotlib in the format that the path's ending names.

    Raises:
        ProxylessError: Of type `error`: it cannot be written, or matplotlib has no such format.
    """
    with replacing(path, error=error) as beside:
        try:
            figure.savefig(beside, dpi=dpi)
        except ValueError as refused:
            reason = " ".join(str(refused).split())[:200]
            raise error(f"cannot write {path}: {reason}; end its name with .png, .svg or .pdf") from refused


def check_writable(
    folder: Path, *, error: type[ProxylessError] = WriteError, remedy: str = "choose another folder"
) -> None:
    """Make a folder and try whether it can be written to, before anything is done for it.

    Raises:
        ProxylessError: Of type `error`: it cannot.
    """
    with writing(folder, error=error, remedy=remedy, what="cannot write to"):
        folder.mkdir(parents=True, exist_ok=True)
        # a read-only file system shows only when something is written
        with tempfile.TemporaryFile(dir=folder):
            pass


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers of `replacing` left in a folder.

    Args:
        folder: A folder that no other process writes to meanwhile.
    """
    for path in folder.iterdir():
        if path.is_file() and _UNFINISHED.fullmatch(path.name):
            with contextlib.suppress(OSError):
                path.unlink()


def current_umask() -> int:
    """Return the permissions that this process takes from every new file; there is no way to ask without setting."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unpack(archive: tarfile.TarFile, folder: Path) -> None:
    """Unpack what another machine has sent into a folder, and nothing outside of it.

    Raises:
        tarfile.TarError: The archive is damaged, or a member of it belongs elsewhere.
    """
    if hasattr(tarfile, "data_filter"):
        archive.extractall(folder, filter="data")
        return
    for member in archive:  # Python before 3.10.12 and 3.11.4, of which Debian 12's is one
        path = PurePosixPath(member.name)
        if not (member.isfile() or member.isdir()) or path.is_absolute() or ".." in path.parts:
            raise tarfile.ExtractError(f"{member.name!r} is no file or folder within")
        member.mode &= 0o755
        archive.extract(member, folder)
