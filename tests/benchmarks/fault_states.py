"""Where a case of `tests.benchmarks.faults` starts from, and how it is judged."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tests.benchmarks.fault_subject import COMMAND, OVER, ROOT, Broken, Ended, Place, Skipped, difference

TABLE = ROOT / "tests" / "data" / "run_bc6f2f8" / "table.yml"


# ---- run folders in a given state ------------------------------------------------------------------------------


class States:
    """Run folders in the states that cases start from, each made once, when it is first asked for.

    Args:
        work: Where they are made.
        command: See `Place`.
    """

    def __init__(self, work: Path, *, command: Sequence[str] = COMMAND):
        self.work = work
        self.command = tuple(command)
        self.table = work / "table.yml"
        shutil.copy(TABLE, self.table)
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}
        self._made: dict[str, Any] = {}

    def once(self, key: str, make: Callable[[Path], Any]) -> Any:
        """Return what `make` made of a new folder, which is called once for each key."""
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
            folder = self.work / "states" / f"{len(self._locks)}"
        with lock:
            if key not in self._made:
                self._made[key] = make(folder)
            return self._made[key]

    def place(self, folder: Path, **options: Any) -> Place:
        """Return a place with the shared table, see `Place`."""
        options.setdefault("table", self.table)
        return Place(folder, command=self.command, **options)

    def finished(self, changes: Mapping[str, Any] | None = None, *, beside: Sequence[Path] = ()) -> Path:
        """Return the run folder of an undisturbed search with these changes of its settings.

        Args:
            changes: See `Place`.
            beside: Files that lie beside its config.
        """

        def make(folder: Path) -> Path:
            place = self._place(folder, changes, beside)
            ended = place.run()
            if ended.status or place.phase != OVER:
                raise Broken(f"the undisturbed search itself failed ({changes or 'as it is'}): {ended.sentence[:300]}")
            return place.out

        return self.once(f"finished {dict(changes or {})}", make)

    def stopped(self, name: str, changes: Mapping[str, Any] | None = None, *, beside: Sequence[Path] = ()) -> Path:
        """Return the run folder of a search that was killed.

        Args:
            name: `searching`: after its second checkpoint; `retraining`: after that of the first epoch.
            changes: See `Place`.
            beside: See `finished`.
        """
        file, count, before = {"searching": ("search.ckpt", 2, 3), "retraining": ("retrain.ckpt", 1, 5)}[name]

        def make(folder: Path) -> Path:
            for attempt in range(5):
                place = self._place(folder.with_name(f"{folder.name}-{attempt}"), changes, beside)
                process, written = place.start(), set[int]()
                there = process.wait_for(partial(_has_versions, place.out / file, count, written))
                process.send(signal.SIGKILL)
                ended = process.wait()
                if not there:
                    raise Broken(f"the search to be killed ended before: {ended.sentence[:300]}")
                if place.phase < before:
                    return place.out
            raise Broken(f"could not kill a search while {name}")

        return self.once(f"{name} {dict(changes or {})}", make)

    def _place(self, folder: Path, changes: Mapping[str, Any] | None, beside: Sequence[Path]) -> Place:
        folder.mkdir(parents=True)
        for path in beside:
            shutil.copy(path, folder)
        return self.place(folder, changes=changes)


def _has_versions(path: Path, count: int, seen: set[int]) -> bool:
    """Whether so many versions of a file were ever seen."""
    with contextlib.suppress(OSError):
        seen.add(path.stat().st_mtime_ns)
    return len(seen) >= count


# ---- disks -----------------------------------------------------------------------------------------------------


def other_file_system() -> Path | None:
    """Return a folder on another file system than TMPDIR's, where there is one to write to."""
    here = os.stat(tempfile.gettempdir()).st_dev
    for path in (Path("/dev/shm"), Path(f"/run/user/{os.getuid()}"), Path.home(), ROOT.parent):
        if path.is_dir() and os.access(path, os.W_OK) and path.stat().st_dev != here:
            return path
    return None


@contextlib.contextmanager
def small_disk(folder: Path, kilobytes: int = 8192) -> Any:
    """Mount a disk of this size at a folder.

    Raises:
        Skipped: This user may not.
    """
    if os.getuid() != 0:
        raise Skipped("mounting a small disk takes root")
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Skipped(f"no disk can be mounted: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(disk: Path, *, leave: int = 0) -> Path:
    """Fill a disk but for so many bytes, and return the file that does."""
    filler = disk / "filler"
    free = os.statvfs(disk)
    count = free.f_bavail * free.f_frsize - leave
    with filler.open("wb") as stream, contextlib.suppress(OSError):
        os.posix_fallocate(stream.fileno(), 0, max(count, 1))
    return filler


# ---- one case --------------------------------------------------------------------------------------------------


class Case:
    """One fault in the making: its folder, and the judgement of how it ended.

    Args:
        states: The run folders to start from.
        folder: A folder of its own.

    Attributes:
        place: Where the search runs; made by `begin`.
        said: The sentence with which the fault was refused.
    """

    def __init__(self, states: States, folder: Path):
        self.states = states
        self.folder = folder
        self.said = ""
        self._stack = contextlib.ExitStack()
        self._wanted: Callable[[], Path] = states.finished
        folder.mkdir(parents=True)

    def close(self) -> None:
        """Undo what the case did to the machine."""
        self._stack.close()

    def begin(
        self,
        state: str = "nothing",
        changes: Mapping[str, Any] | None = None,
        *,
        out: Path | None = None,
        own_table: bool = False,
        without: Sequence[str] = (),
        beside: Sequence[Path] = (),
        **options: Any,
    ) -> Place:
        """Make the place, with a run folder in a state.

        Args:
            state: `nothing`, `searching`, `retraining` (see `States.stopped`) or `finished`.
            changes: See `Place`; the undisturbed result is that of the same changes.
            out: See `Place`.
            own_table: Give the search a table of its own, to be broken.
            without: What of the run folder is deleted.
            beside: Files that lie beside the config.
            options: See `Place`.
        """
        table = self.states.table
        if own_table:
            table = Path(shutil.copy(table, self.folder / "own_table.yml"))
        for path in beside:
            shutil.copy(path, self.folder)
        self.place = self.states.place(self.folder, changes=changes, out=out, table=table, **options)
        self._wanted = partial(self.states.finished, changes, beside=beside)
        if state != "nothing":
            made = self._wanted() if state == "finished" else self.states.stopped(state, changes, beside=beside)
            shutil.copytree(made, self.place.out)
            for name in without:
                remove(self.place.out / name)
        settings = self.place.out / "config.json"
        if own_table and settings.exists():
            saved = json.loads(settings.read_text())
            saved["hardware"]["table"] = str(table)
            settings.write_text(json.dumps(saved, indent=2) + "\n")
        return self.place

    def disk(self) -> Path:
        """Mount a small disk until the case is over."""
        return self._stack.enter_context(small_disk(self.folder / "disk"))

    def on_close(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function when the case is over."""
        self._stack.callback(function, *arguments)

    # ---- judgement ---------------------------------------------------------------------------------------------

    def must_be_undisturbed(self, what: str = "the result", **options: Any) -> None:
        """Compare the result with that of an undisturbed search.

        Raises:
            Broken: It is another one.
        """
        wrong = difference(self.place.out, self._wanted(), **options)
        if wrong is not None:
            raise Broken(f"{what}: {wrong}")

    def must_refuse(self, ended: Ended, names: str) -> str:
        """Return `refused`.

        Raises:
            Broken: It was not refused in one sentence with `names` in it.
        """
        wrong = ended.why_no_refusal(names)
        if wrong is not None:
            raise Broken(wrong)
        self.said = ended.sentence
        return "refused"

    def must_finish(self, what: str, **options: Any) -> None:
        """Search to the end, and compare the result.

        Raises:
            Broken: The search failed, or its result is another one.
        """
        ended = self.place.run()
        if ended.status:
            raise Broken(f"{what} the search fails with status {ended.status}: {ended.sentence[:300]}")
        self.must_be_undisturbed(f"{what} the result", **options)

    def outcome(self, ended: Ended, names: str, *, well: str = "survived", repair: Callable[[], Any]) -> str:
        """Judge how a search ended: with the right result, or refused with nothing lost.

        Args:
            ended: The search with the fault.
            names: See `must_refuse`.
            well: What it is called where the result is right.
            repair: Removes the cause.
        """
        if ended.status == 0:
            self.must_be_undisturbed()
            return well
        self.must_refuse(ended, names)
        repair()
        self.must_finish("after the repair")
        return "refused"


def remove(path: Path) -> None:
    """Delete a file or a folder."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def changed(path: Path) -> tuple[int, int] | None:
    """Return what changes when a file is written anew."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime_ns, path.stat().st_ino
    return None
