"""One run owns a folder: the lock that it holds while it works there, and the record of its starts."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hardware.errors import ConfigError, TableError
from hardware.files import remove_unfinished, write_atomically
from hardware.measuring.locks import table_lock
from hardware.reading import DAMAGE, is_there, json_of, why

from .layout import STARTS_FILE

ORPHAN_SECONDS = 20.0
"""What the data workers of a killed run have to notice it; until then they hold its lock."""


class Start:
    """One start of a run, as the last entry of the folder's `starts.json`.

    Args:
        folder: The run folder, whose lock is held.
        changed: Settings that this start has changed, by dotted key.
        began: When it began, by `time.monotonic`; None: now.
    """

    def __init__(self, folder: Path, changed: Mapping[str, Any], *, began: float | None = None):
        self._path = folder / STARTS_FILE
        self._earlier = _read(self._path, warn=True)
        self._begun_in = _identity(folder)
        self._began = time.monotonic() if began is None else began
        self._entry = {**_me(), "began": datetime.now(timezone.utc).isoformat(timespec="seconds"), "changed": changed}

    @property
    def seconds(self) -> float:
        """Duration of all starts so far."""
        return sum(float(start["seconds"]) for start in self._earlier) + time.monotonic() - self._began

    def note(self, *, ended: bool = False) -> None:
        """Write down how long this start has worked.

        Raises:
            ConfigError: The folder cannot be written to, or is not the one that this start began in.
        """
        if self._begun_in != _identity(self._path.parent):
            raise ConfigError(
                f"{self._path.parent} was removed or replaced while the run was going on, and what was in it is lost; "
                "repeat the command, which begins anew there"
            )
        entry = {**self._entry, "seconds": round(time.monotonic() - self._began, 3), "ended": ended}
        write_atomically(self._path, json.dumps([*self._earlier, entry], indent=2) + "\n", error=ConfigError)


@contextmanager
def owned(
    folder: Path, *, check: Callable[[], Mapping[str, Any]] = dict, began: float | None = None
) -> Iterator[Start]:
    """Own a run folder inside the context; make it where it is missing.

    A lock goes with its process, however that ends, so nothing is left to be cleaned up.

    Args:
        folder: The run folder.
        check: Refuses the folder, or returns the settings that this start changes there, by dotted key, for the
            record. It is called by the owner, before anything is written: what it has seen stays so.
        began: See `Start`.

    Raises:
        ConfigError: Another process owns it.
    """
    with ExitStack() as stack:
        deadline = time.monotonic() + ORPHAN_SECONDS
        while True:
            try:
                stack.enter_context(table_lock(folder / "run", wait=False))
                break
            except TableError:
                starts = _read(folder / STARTS_FILE)
                owner = starts[-1] if starts else {}
                if time.monotonic() > deadline or not _is_dead(owner):
                    raise ConfigError(
                        f"{folder} belongs to a run that is going on (process {owner.get('pid', 'unknown')} on "
                        f"{owner.get('host', 'this machine')}); wait for its end, or choose another out"
                    ) from None
                time.sleep(0.2)
        start = Start(folder, check(), began=began)
        remove_unfinished(folder)
        start.note()
        try:
            yield start
        except BaseException:
            # The time since the last epoch is this start's too. Where the disk is full, that is what has to be told.
            with suppress(OSError, ConfigError):
                if folder.is_dir():
                    start.note()
            raise
        start.note(ended=True)


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return what tells a folder from another of the same name; None where there is none."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _is_dead(owner: Mapping[str, Any]) -> bool:
    """Whether the last one who wrote itself down is a process of this machine that is gone."""
    import psutil

    return owner.get("host") == socket.gethostname() and not psutil.pid_exists(int(owner["pid"]))


def _read(path: Path, *, warn: bool = False) -> list[dict[str, Any]]:
    if not is_there(path):
        return []
    try:
        found = json_of(path)
        if not all({"host", "pid", "seconds"} <= start.keys() for start in found):
            raise ValueError("an entry lacks its host, pid or seconds")
        return [{**start, "pid": int(start["pid"]), "seconds": float(start["seconds"])} for start in found]
    except DAMAGE as error:
        if warn:
            print(f"cannot read {path} ({why(error)}): time is counted from this start on", flush=True)
        return []
