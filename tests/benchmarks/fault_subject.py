"""The subject of `tests.benchmarks.faults`: a search of seconds, run as a user runs it, and what it must end with."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar

import psutil

ROOT = Path(__file__).parents[2]
COMMAND = (sys.executable, "-m", "proxyless_strategy.cli")
POLL_SECONDS = 0.01
LIMIT_SECONDS = 900.0
"""After so long a process counts as hanging. A start takes 10 to 20 s of CPU time, much more on a busy machine."""

SETTINGS: dict[str, Any] = {
    "space": {
        "name": "small_mbconv",
        "options": {
            "stem_width": 8,
            "first_width": 8,
            "stages": [{"width": 8, "depth": 2, "stride": 2}, {"width": 8, "depth": 1, "stride": 2}],
            "kernels": [3, 5],
            "expansions": [3, 6],
            "head_width": 32,
        },
    },
    "data": {"name": "digits"},
    "input_size": 16,
    "target": 0.5,
    # Nothing is measured, as two measurements never agree.
    "hardware": {"device": "other"},
    "rule": "gradient",
    "search": {
        "warmup_epochs": 1,
        "epochs": 3,
        "steps_per_update": 1,
        "architecture_learning_rate": 0.05,
        "batch_size": 128,
        "precision": "64-true",
        "accelerator": "cpu",
    },
    "retrain": {"epochs": 2, "batch_size": 128, "learning_rate": 0.1},
    "seed": 11,
}

PHASES = (
    ("preparation", None),
    ("search", "config.json"),
    ("search after a checkpoint", "search.ckpt"),
    ("retraining", "search.json"),
    ("retraining after a checkpoint", "retrain.ckpt"),
    ("ONNX", "model"),
    ("end", "model.onnx"),
    ("over", "row.json"),
)
"""Where a search is, by the last of these files that it has written."""
OVER = len(PHASES) - 1

SAME_BYTES = ("search.json", "model/model.safetensors")
SAME_WHERE_DUE = ("model/config.json", "model/subnet.json", "supernet.pt")
"""Of files that not every search leaves."""
VOLATILE = {"seconds", "starts", "folder", "onnx", "trial"}
"""Keys of a row that differ between two equal searches."""
SPARE = ("*.previous.ckpt",)
"""Files that a search may leave beyond those of an undisturbed one: a checkpoint that has served its time."""
SET_ASIDE = (*SPARE, "*.damaged*.ckpt")
"""The same after a fault: beside them, what it could not use and did not delete."""


class Broken(Exception):
    """A case did not end as it must; the message says how it ended."""


class Skipped(Exception):
    """This machine cannot play the case; the message says why."""


# ---- processes -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ended:
    """A process that has ended.

    Attributes:
        status: Its exit status; negative: the signal that killed it.
        output: What it printed.
        error: What it printed to standard error.
    """

    status: int
    output: str
    error: str

    @property
    def sentence(self) -> str:
        """The last line of its errors."""
        return (self.error.strip().splitlines() or [""])[-1]

    def why_no_sentence(self) -> str | None:
        """Say why its errors do not end with one sentence for a user; None where they do."""
        last = self.sentence
        if "Traceback" in self.error:
            return f"a traceback: {last[:300]}"
        if len(last) < 15 or last.startswith(" ") or " " not in last.strip() or last.endswith("."):
            return f"no sentence at the end: {last[:300]!r}"
        return None

    def why_no_refusal(self, names: str) -> str | None:
        """Say why this is no refusal that names what is wrong; None where it is one.

        Args:
            names: A regular expression that the sentence must contain.
        """
        if self.status <= 0:
            return f"status {self.status}: {self.sentence[:300]}"
        reason = self.why_no_sentence()
        if reason is None and not re.search(names, self.sentence, re.IGNORECASE):
            reason = f"does not name {names}: {self.sentence[:300]}"
        return reason


class Process:
    """A started command in a session of its own, with the signals of a terminal's foreground process.

    Args:
        arguments: The command.
        folder: Where it runs and its output is kept.
        environment: All of its environment.
        before: Called in the child before the command.
    """

    _running: ClassVar[set[Process]] = set()
    _over: ClassVar[bool] = False

    def __init__(
        self,
        arguments: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        before: Callable[[], object] | None = None,
    ):
        def prepare() -> None:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            if before is not None:
                before()

        if Process._over:
            raise Broken("the harness was stopped")
        self._logs = Path(tempfile.mkdtemp(prefix="log-", dir=folder))
        with (self._logs / "out").open("wb") as output, (self._logs / "err").open("wb") as error:
            self._popen = subprocess.Popen(
                arguments,
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=error,
                start_new_session=True,
                preexec_fn=prepare,
            )
        Process._running.add(self)
        self._seen = psutil.Process(self._popen.pid)
        self._name = " ".join(arguments[-2:])

    @property
    def pid(self) -> int:
        """Its id, and its session's."""
        return self._popen.pid

    @property
    def runs(self) -> bool:
        """Whether it has not ended yet."""
        return self._popen.poll() is None

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return (self._logs / "out").read_text(encoding="utf-8", errors="replace")

    def cpu(self) -> float:
        """Return the seconds of CPU time that it has taken: a clock that other processes do not slow down."""
        try:
            times = self._seen.cpu_times()
        except psutil.Error:
            return float("inf")
        return times.user + times.system

    def children(self) -> list[psutil.Process]:
        """Return the processes that it started, without multiprocessing's own tracker."""
        found = []
        with contextlib.suppress(psutil.Error):
            for child in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "resource_tracker" not in " ".join(child.cmdline()):
                        found.append(child)
        return found

    def session(self) -> list[str]:
        """Return what still runs of all that was started in its session."""
        found = []
        for process in psutil.process_iter(["cmdline", "status"]):
            with contextlib.suppress(OSError, psutil.Error):
                alive = process.info["status"] != psutil.STATUS_ZOMBIE
                if alive and process.pid != self.pid and os.getsid(process.pid) == self.pid:
                    found.append(" ".join(process.info["cmdline"] or [])[-80:])
        return [name for name in found if "resource_tracker" not in name]

    def send(self, number: int) -> None:
        """Send a signal as a user does: Ctrl-C reaches the whole session, others the process alone."""
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGINT:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

    def wait_for(self, condition: Callable[[], Any], *, limit: float = LIMIT_SECONDS) -> bool:
        """Wait until a condition holds, and return True; False where the process ends before.

        Raises:
            Broken: Neither happened.
        """
        end = time.monotonic() + limit
        while not condition():
            if not self.runs:
                return bool(condition())
            if time.monotonic() > end:
                self.end()
                raise Broken(f"{self._name} did not get there within {limit:.0f} s")
            time.sleep(POLL_SECONDS)
        return True

    def wait(self, *, limit: float = LIMIT_SECONDS) -> Ended:
        """Wait for its end.

        Raises:
            Broken: It hangs.
        """
        try:
            status = self._popen.wait(limit)
        except subprocess.TimeoutExpired:
            self.end()
            raise Broken(f"{self._name} hangs: it did not end within {limit:.0f} s") from None
        Process._running.discard(self)
        return Ended(status, self.output, (self._logs / "err").read_text(encoding="utf-8", errors="replace"))

    def end(self) -> None:
        """Kill what is left of its session, and wait for it."""
        left = self.children()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        for child in left:
            with contextlib.suppress(psutil.Error):
                child.kill()
        self._popen.wait()
        Process._running.discard(self)

    @classmethod
    def end_all(cls) -> None:
        """Kill every process, and let no other one start: the harness itself was stopped."""
        cls._over = True
        for process in list(cls._running):
            process.end()


def limit_file_size(count: int) -> Callable[[], object]:
    """Return what makes writing beyond so many bytes of one file fail, to be called in a child."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (count, count))


# ---- one folder with a search ----------------------------------------------------------------------------------


class Place:
    """A folder with a search config and the search's `out`.

    Args:
        folder: The folder, made where it is missing.
        table: The latency table that the config names.
        out: The run folder; None: `out` beside the config.
        changes: Settings by dotted name that replace those of `SETTINGS`.
        command: What stands before `search`.
        environment: Variables beside those of this process.
    """

    def __init__(
        self,
        folder: Path,
        *,
        table: Path,
        out: Path | None = None,
        changes: Mapping[str, Any] | None = None,
        command: Sequence[str] = COMMAND,
        environment: Mapping[str, str] | None = None,
    ):
        self.folder = folder
        self.out = out or folder / "out"
        self.table = table
        self.command = tuple(command)
        self.config = folder / "search.yml"
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        self.environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(folder / "tmp"),
            # Else matplotlib builds its list of fonts anew under every other HOME.
            "MPLCONFIGDIR": str(table.parent / "matplotlib"),
            **(environment or {}),
        }
        self.changes = dict(changes or {})
        self.write(self.config, self.changes)

    def write(self, path: Path, changes: Mapping[str, Any]) -> None:
        """Write a search config with these changes beside the others."""
        values = json.loads(json.dumps(SETTINGS))
        values["out"] = str(self.out)
        values["hardware"]["table"] = str(self.table)
        for dotted, value in changes.items():
            *parents, last = dotted.split(".")
            section = values
            for parent in parents:
                section = section[parent]
            section[last] = value
        path.write_text(json.dumps(values, indent=1))  # which is YAML too

    def start(
        self,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
        before: Callable[[], object] | None = None,
    ) -> Process:
        """Start a command of `proxyless`; without arguments, the search."""
        return Process(
            [*self.command, *(arguments or ("search", str(self.config)))],
            folder=self.folder,
            environment={**self.environment, **(environment or {})},
            before=before,
        )

    def run(self, *arguments: str, **options: Any) -> Ended:
        """Run a command of `proxyless` to its end; without arguments, the search."""
        return self.start(*arguments, **options).wait()

    @property
    def phase(self) -> int:
        """Where the search is: an index into `PHASES`."""
        return next((i for i in range(OVER, 0, -1) if os.path.lexists(self.out / str(PHASES[i][1]))), 0)


# ---- results ---------------------------------------------------------------------------------------------------


def row_of(path: Path) -> dict[str, Any]:
    """Return a row without what differs between two equal searches."""
    row = json.loads(path.read_text(encoding="utf-8"))
    return {key: value for key, value in row.items() if key not in VOLATILE}


def difference(found: Path, wanted: Path, *, extra: Iterable[str] = SET_ASIDE) -> str | None:
    """Say in what a finished run folder differs from the one that it must equal; None where it does not.

    Args:
        found: The run folder.
        wanted: The run folder of the same search, undisturbed.
        extra: Patterns of files that may lie there beside those of the undisturbed one.
    """
    for name in (*SAME_BYTES, "row.json"):
        if not (found / name).is_file():
            return f"no {name}"
    for name in SAME_BYTES:
        if (found / name).read_bytes() != (wanted / name).read_bytes():
            return f"another {name}{_other_keys(found / name, wanted / name)}"
    for name in SAME_WHERE_DUE:
        if (wanted / name).is_file() and not (found / name).is_file():
            return f"no {name}"
        if (wanted / name).is_file() and (found / name).read_bytes() != (wanted / name).read_bytes():
            return f"another {name}"
    rows = [row_of(folder / "row.json") for folder in (found, wanted)]
    if rows[0] != rows[1]:
        return f"another row.json{_other_keys(found / 'row.json', wanted / 'row.json')}"
    there, due = names_in(found), names_in(wanted)
    missing = sorted(name for name in due - there if not name.endswith(".ckpt"))
    beyond = sorted(name for name in there - due if not any(fnmatch(name, pattern) for pattern in extra))
    if missing or beyond:
        return f"lacks {missing}, left {beyond}"
    return None


def names_in(folder: Path) -> set[str]:
    """Return every file below a folder, hidden ones too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def content_of(folder: Path) -> dict[str, bytes | None]:
    """Return all that a run folder holds, but for hidden files and locks, which a refused start may touch."""
    return {
        path.relative_to(folder).as_posix(): None if path.is_dir() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if not path.name.startswith(".") and "lock" not in path.name
    }


def _other_keys(found: Path, wanted: Path) -> str:
    if found.suffix != ".json":
        return ""
    a, b = (json.loads(path.read_text(encoding="utf-8")) for path in (found, wanted))
    keys = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key) and key not in VOLATILE)
    return f" ({', '.join(keys) or 'the same values, written otherwise'})"
