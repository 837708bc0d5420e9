"""Whether what was read from a disk is still what lies there, without reading it again."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from ..config import DataConfig

FileState = tuple[int, int, int, int]
"""What changes when a file is written or replaced."""
MOST_FILES = 20_000
"""Files below a root that are asked for; of more, nothing is said."""
SETTLED_NS = 2 * 10**9
"""The coarsest clock of a file system: within so much of a change a second one may go unseen."""


def file_state(path: Path) -> FileState | None:
    """Return what tells a file from an earlier one of its name; None where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def source_state(config: DataConfig) -> str | None:
    """Return a text that changes with the files of a data set; None where nothing can be said.

    A user's function may read from anywhere.
    """
    if config.name == "digits":
        return config.name
    if config.root is None or (":" in config.name and not config.name.startswith("torchvision:")):
        return None
    digest, count, newest = hashlib.sha256(), 0, 0
    for folder, folders, names in os.walk(config.root, followlinks=False):
        folders.sort()
        for path in (folder, *(os.path.join(folder, name) for name in sorted(names))):
            state = file_state(Path(path))
            count += 1
            if state is None or count > MOST_FILES:
                return None
            newest = max(newest, *state[2:])
            digest.update(f"{path}\0{state}\0".encode("utf-8", "surrogateescape"))
        # what lies behind a link may change without any folder here that tells
        if any(os.path.islink(os.path.join(folder, name)) for name in folders):
            return None
    settled = newest < time.time_ns() - SETTLED_NS
    return digest.hexdigest() if count and settled else None
