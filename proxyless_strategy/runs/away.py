"""One trial of an experiment, run on a machine by SSH: started there, followed, brought home, moved when it is lost."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hardware.errors import ExperimentError, ProxylessError
from hardware.files import unpack, write_atomically, writing
from hardware.reading import DAMAGE, cut, json_of

from ..layout import MACHINE_FILE, MACHINES_LOG, PARAMETERS_FILE, RESULT, ROW_FILE, SENT_FOLDER
from .fleet import FLEET, Errand, Place, read_errand
from .machines import MARK, Machine, answers_in, ask, environment, unanswered
from .there import BEAT_SECONDS, FENCE_SECONDS
from .trials import Trial, note_failure, note_start, read_end

PATIENCE_SECONDS = 600.0
"""How long a trial waits for a machine to answer, where none does."""
PAUSE_SECONDS = 20.0
"""How long a machine that was lost is left alone while another one has room."""
_STOP_SECONDS = 30.0
_HANDED = ("OMP_NUM_THREADS",)
"""What decides on how sums are rounded is the same on every machine."""


@dataclass(frozen=True)
class _End:
    """How a start has ended.

    Attributes:
        status: The exit status of its command; None: the machine was lost.
        reason: Why it was.
        began: Whether it had begun.
        continued: Whether it had gone on from a checkpoint.
    """

    status: int | None
    reason: str = ""
    began: bool = False
    continued: bool = False


@dataclass
class _Way:
    """Where a trial has been."""

    lost: list[dict[str, str]] = field(default_factory=list)
    quiet_until: dict[str, float] = field(default_factory=dict)
    failing: dict[str, float] = field(default_factory=dict)
    """Since when a machine has begun no start of the trial."""


def run_away(
    machines: Path, trial: Trial, folder: Path, *, on_epoch: Callable[[dict[str, Any]], None] | None = None
) -> dict[str, Any]:
    """Run a trial on a machine that has room, and again where that is lost; return its row.

    Args:
        machines: What `fleet.Fleet` has written.
        trial: The trial.
        folder: Its folder here, to which it comes home.
        on_epoch: Called with each intermediate result.

    Raises:
        ExperimentError: No machine answers.
        SystemExit: It has ended without a row; its folder says why.
    """
    errand, way = read_errand(machines), _Way()
    if not errand.places:
        raise FLEET.refusal(machines, "it lists no machine")
    while True:
        with _room(errand, machines.parent / SENT_FOLDER, way, folder) as (place, gpus):
            before = _before(folder)
            # Another table, or another place of images, is another search.
            anew = place.shared and before is not None and before["settings"] != place.machine.settings
            _note(folder, f"{place.machine.title}: start {trial.restarts + 1}")
            end = _start(errand, place, gpus, trial, folder, anew=anew, on_epoch=on_epoch)
            if end.began:
                way.failing.clear()
            if way.lost and end.began and not way.lost[-1]["then"]:
                beginning = "its last checkpoint" if end.continued else "the start"
                way.lost[-1] |= {"then": place.machine.title, "from": beginning}
            if end.status is None:
                trial = _lost(errand, way, place, trial, folder, end)
                continue
            try:
                if not place.shared:
                    _bring_home(errand, place, trial, folder)
            except ProxylessError as error:
                # What is there is whole: the next start finds the row and has nothing left to do.
                trial = _lost(errand, way, place, trial, folder, replace(end, reason=str(error)))
                continue
        return _row(trial, folder, end.status, place, way)


@contextmanager
def _room(errand: Errand, locks: Path, way: _Way, folder: Path) -> Iterator[tuple[Place, list[int] | None]]:
    """Hold room for a trial on a machine inside the context: on the one that it was on, or the emptiest."""
    while True:
        now = time.monotonic()
        places = [place for place in errand.places if way.quiet_until.get(place.key, 0.0) <= now]
        before = _before(folder) or {}
        random.shuffle(places)  # trials that start at once do not all try the same one first
        places.sort(key=lambda place: (place.key != before.get("at"), -_free(locks, errand, place)))
        for place in places:
            for number, gpus in enumerate(place.slots):
                lock = FileLock(_lock_path(locks, errand, place, number))
                with contextlib.suppress(Timeout):
                    lock.acquire(timeout=0)
                    try:
                        yield place, gpus
                    finally:
                        lock.release()
                    return
        time.sleep(1)


def _lock_path(locks: Path, errand: Errand, place: Place, number: int) -> Path:
    with writing(locks, error=ExperimentError):
        locks.mkdir(exist_ok=True, parents=True)
    return locks / f"{errand.places.index(place)}-{number}.lock"


def _free(locks: Path, errand: Errand, place: Place) -> float:
    """Return the share of a machine's room that nobody holds."""
    free = 0
    for number in range(len(place.slots)):
        lock = FileLock(_lock_path(locks, errand, place, number))
        with contextlib.suppress(Timeout):
            lock.acquire(timeout=0)
            lock.release()
            free += 1
    return free / len(place.slots)


def _before(folder: Path) -> dict[str, Any] | None:
    """Return on which machine an earlier start has left the trial, and with which settings; None: it is the first."""
    with contextlib.suppress(*DAMAGE, OSError):
        found = json_of(folder / MACHINE_FILE)
        return {"at": found["at"], "settings": found["settings"]}
    return None


def _start(
    errand: Errand,
    place: Place,
    gpus: list[int] | None,
    trial: Trial,
    folder: Path,
    *,
    anew: bool,
    on_epoch: Callable[[dict[str, Any]], None] | None,
) -> _End:
    """Start the trial on a machine, and follow it until it has ended or the machine is lost."""
    note_start(folder, trial, errand.mark)
    at = {"at": place.key, "settings": place.machine.settings}
    write_atomically(folder / MACHINE_FILE, json.dumps(at) + "\n", error=ExperimentError)
    out = folder.parent
    visible = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}
    request = {
        "do": "run",
        "mark": errand.mark,
        "trial": trial.name,
        "number": trial.number,
        "parameters": trial.parameters,
        "restarts": trial.restarts,
        "settings": place.machine.settings,
        "command": errand.command,
        "preset": errand.preset,
        "code": place.code(out),
        "out": place.runs(out),
        "anew": anew,
        "environment": {**{name: os.environ[name] for name in _HANDED if name in os.environ}, **visible},
    }
    began = continued = False
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            place.machine.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment(),
            start_new_session=True,
        )
        try:
            lines = _conversation(place.machine, process, request)
            for answer in lines:
                if "error" in answer:
                    return _End(None, answer["error"], began, continued)
                if "ended" in answer:
                    return _End(int(answer["ended"]), "", began, continued)
                if "begins" in answer:
                    began, continued = True, bool(answer["begins"]["continues"])
                    _note(folder, f"{place.machine.title}: {'goes on from a checkpoint' if continued else 'begins'}")
                if "report" in answer and on_epoch is not None:
                    on_epoch(answer["report"])
            status = process.wait()
            errors.seek(0)
            said = errors.read()
            if began:
                last = said.decode(errors="replace").strip().splitlines() or [f"exit status {status}"]
                return _End(None, cut(last[-1].strip().rstrip("."), 200), began, continued)
            return _End(None, unanswered(place.machine, status, said))
        finally:
            _hang_up(process)


def _conversation(
    machine: Machine, process: subprocess.Popen[bytes], request: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """Send the request and then a beat every few seconds; yield the answers until the connection ends."""
    assert process.stdin is not None
    assert process.stdout is not None
    sent = process.stdin
    over = threading.Event()

    def beat() -> None:
        with contextlib.suppress(OSError, ValueError):
            sent.write(json.dumps(request).encode() + b"\n")
            sent.flush()
            while not over.wait(BEAT_SECONDS):
                sent.write(b"beat\n")
                sent.flush()

    threading.Thread(target=beat, daemon=True, name="beats").start()
    try:
        yield from answers_in(machine, process.stdout)
    finally:
        over.set()


def _hang_up(process: subprocess.Popen[bytes]) -> None:
    """End the connection; a trial that still runs is stopped by that, and is given the time that a checkpoint takes."""
    with contextlib.suppress(OSError, ValueError):
        assert process.stdin is not None
        process.stdin.close()
    try:
        process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _lost(errand: Errand, way: _Way, place: Place, trial: Trial, folder: Path, end: _End) -> Trial:
    """Note that a machine was lost; return the trial as it is to be started on another one.

    Raises:
        SystemExit: It has lost too many.
    """
    name = place.machine.title
    way.quiet_until[place.key] = time.monotonic() + PAUSE_SECONDS
    _note(folder, f"{name}: lost: {end.reason}")
    now = time.monotonic()
    way.failing.setdefault(place.key, now)
    # One that other trials work on has not been asked, and is waited for.
    everywhere = len(way.failing) == len(errand.places)
    if not end.began:
        if everywhere and now - max(way.failing.values()) > PATIENCE_SECONDS:
            raise ExperimentError(f"no machine has begun trial {trial.name} for {PATIENCE_SECONDS:.0f} s: {end.reason}")
        return trial
    way.lost.append({"machine": name, "reason": end.reason, "then": "", "from": ""})
    if len(way.lost) > errand.retries:
        error = ExperimentError(f"{name} was lost: {end.reason}")
        note_failure(folder, error, refused=False)
        print(error, file=sys.stderr, flush=True)
        raise SystemExit(1)
    if place.shared:
        # Cut off, it may still write into the folder that the next start works in.
        time.sleep(FENCE_SECONDS)
    return replace(trial, restarts=trial.restarts + 1)


def _bring_home(errand: Errand, place: Place, trial: Trial, folder: Path) -> None:
    """Copy the trial's folder here, its result last, and remove it there.

    Raises:
        ExperimentError: The connection broke on the way, or the disk refuses it.
    """
    request = {"do": "send", "out": place.runs(folder.parent), "trial": trial.name}
    with (
        writing(folder, error=ExperimentError),
        tempfile.TemporaryDirectory(prefix=".home-", dir=folder.parent) as name,
    ):
        # One deeper, so that it never passes for a trial of the experiment.
        way = Path(name) / "arrived"
        way.mkdir()
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                place.machine.command(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment()
            )
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(request).encode() + b"\n")
                    process.stdin.flush()
                answered = any(line.startswith(MARK) for line in iter(process.stdout.readline, b""))
                errors.seek(0)
                if not answered:
                    raise ExperimentError(unanswered(place.machine, process.wait(), errors.read()))
                with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                    unpack(archive, way)
            except (tarfile.TarError, EOFError) as error:
                raise ExperimentError(
                    f"the folder of trial {trial.name} did not come whole from {place.machine.title} ({error})"
                ) from error
            finally:
                _hang_up(process)
        _settle(way, folder, place.runs(folder.parent))
    with contextlib.suppress(ProxylessError):
        ask(
            place.machine,
            {"do": "forget", "work": place.machine.workFolder, "mark": errand.mark, "trial": trial.name},
        )


def _settle(arrived: Path, folder: Path, there: str) -> None:
    """Move what has arrived into the trial's folder, with the paths of here; the result is the last to appear."""
    for name in (RESULT, ROW_FILE):
        path = arrived / name
        with contextlib.suppress(*DAMAGE, OSError):
            row = json_of(path)
            inside = Path(row["folder"]).relative_to(Path(there) / folder.name)
            write_atomically(path, json.dumps({**row, "folder": str(folder / inside)}, indent=2) + "\n")
    # The parameters of here are the sweep's alone.
    (arrived / PARAMETERS_FILE).unlink(missing_ok=True)
    names = sorted((path.name for path in arrived.iterdir()), key=lambda name: (name == RESULT, name))
    for name in names:
        target = folder / name
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        os.replace(arrived / name, target)


def _row(trial: Trial, folder: Path, status: int, place: Place, way: _Way) -> dict[str, Any]:
    """Return the row of a trial that has ended, with where it was; it is written to its folder.

    Raises:
        SystemExit: It has none.
    """
    ended = read_end(folder.parent, trial)
    if ended.row is None:
        reason, refused = ended.failure, ended.refused
        if reason.startswith("it ended without a word"):
            reason, refused = f"it ended with exit status {status}", status == 2
            note_failure(folder, ExperimentError(reason), refused=refused)
        print(f"on {place.machine.title}: {reason}", file=sys.stderr, flush=True)
        raise SystemExit(2 if refused else 1)
    where = {"machine": place.machine.title, **({"lost": way.lost} if way.lost else {})}
    with contextlib.suppress(*DAMAGE, OSError):  # what reports are made of; a trial of the user's own may leave none
        shown = {**json_of(folder / ROW_FILE), **where}
        write_atomically(folder / ROW_FILE, json.dumps(shown, indent=2) + "\n", error=ExperimentError)
    row = {**ended.row, **where}
    write_atomically(folder / RESULT, json.dumps(row, indent=2) + "\n", error=ExperimentError)
    return row


def _note(folder: Path, sentence: str) -> None:
    """Add a line to what the trial's folder says of machines."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {sentence}\n"
    print(line, end="", flush=True)
    with writing(folder / MACHINES_LOG, error=ExperimentError):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / MACHINES_LOG).open("a", encoding="utf-8") as log:
            log.write(line)
