"""What an experiment has on disk: its record, and one folder a trial; whatever NNI forgets, these know."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from hardware.errors import ConfigError, ExperimentError
from hardware.files import write_atomically, writing
from hardware.reading import DAMAGE, Kind, Unreadable, expect, is_there, json_of, read_json, reading, why

from ..layout import EXPERIMENT_FILE, FAILURE_FILE, PARAMETERS_FILE, RESULT
from .rows import check_figures
from .sweep import Sweep


@dataclass(frozen=True)
class Trial:
    """One trial as its folder tells it.

    Attributes:
        name: Its id, which is also its folder's name.
        parameters: What the sweep chose for it.
        number: Its place in the experiment, from 0.
        restarts: How often it was started again.
        row: Its result; None while there is none.
        failure: Why there is none, in one line.
        refused: Whether it refused its settings, which another start would only repeat.
    """

    name: str
    parameters: dict[str, Any]
    number: int = 0
    restarts: int = 0
    row: dict[str, Any] | None = field(default=None, compare=False)
    failure: str = field(default="", compare=False)
    refused: bool = field(default=False, compare=False)


def note_start(folder: Path, trial: Trial, experiment: str | None) -> None:
    """Write what a trial is started with, and take away how an earlier start ended."""
    values = {
        "trial": trial.name,
        "experiment": experiment,
        "parameters": trial.parameters,
        "number": trial.number,
        "restarts": trial.restarts,
    }
    write_atomically(folder / PARAMETERS_FILE, json.dumps(values, indent=2) + "\n", error=ExperimentError)
    with writing(folder / FAILURE_FILE, error=ExperimentError):
        (folder / FAILURE_FILE).unlink(missing_ok=True)


def note_failure(folder: Path, error: Exception, *, refused: bool) -> None:
    """Write why a start of a trial has failed."""
    values = {"error": type(error).__name__, "reason": " ".join(str(error).split()), "refused": refused}
    write_atomically(folder / FAILURE_FILE, json.dumps(values, indent=2) + "\n", error=ExperimentError)


def read_trials(out: Path, experiment: str) -> list[Trial]:
    """Return the trials of an experiment that were ever started, in the order in which they were."""
    found = []
    for folder in out.glob("*/"):
        path = folder / PARAMETERS_FILE
        if not os.path.lexists(path):  # a link to nothing is one that cannot be read
            continue
        try:
            values = json_of(path)
            if values["experiment"] == experiment:
                found.append(
                    Trial(path.parent.name, dict(values["parameters"]), int(values["number"]), int(values["restarts"]))
                )
        except DAMAGE as error:
            print(
                f"warning: cannot read {path} ({why(error)}), so its trial belongs to no experiment",
                file=sys.stderr,
                flush=True,
            )
    return [read_end(out, trial) for trial in sorted(found, key=lambda trial: (trial.number, trial.name))]


def read_end(out: Path, trial: Trial) -> Trial:
    """Return the trial with what its folder says about its end."""
    folder = out / trial.name
    known = asdict(trial)
    if is_there(folder / RESULT):
        try:
            row = json_of(folder / RESULT)
            _check_row(row, trial.name)
        except DAMAGE as error:
            return Trial(**{**known, "row": None, "failure": f"cannot read its {RESULT} ({why(error)})"})
        return Trial(**{**known, "row": row, "failure": "", "refused": False})
    failure, refused = "it ended without a word: killed, or stopped with the experiment", False
    try:
        values = json_of(folder / FAILURE_FILE)
        failure, refused = str(values["reason"]), bool(values["refused"])
        if not refused:
            failure = f"{values['error']}: {failure}"
    except DAMAGE as error:
        if not (isinstance(error, Unreadable) and error.missing):
            failure = f"cannot read its {FAILURE_FILE} ({why(error)})"
    return Trial(**{**known, "row": None, "failure": failure, "refused": refused})


def _check_row(row: Any, name: str) -> None:
    if not isinstance(row, Mapping):
        raise ValueError("it holds no mapping")
    needed = ("rule", "cost", "unit", "target_cost", "subnet_cost", "target_ms", "table_ms", "latency_ms", "accuracy")
    missing = [key for key in (*needed, "params", "macs", "folder") if key not in row]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    if row.get("trial") != name:
        raise ValueError(f"it is of trial {row.get('trial')}")
    for key in ("rule", "cost", "unit", "folder"):
        expect(row[key], str, key)
    check_figures(row)


@dataclass
class Record:
    """What an experiment's folder says about the whole of it.

    Attributes:
        id: The mark of its trials and processes.
        content: What it sweeps, see `Sweep.content`.
        complete: Whether every trial has its row.
        stopped_early: Trials that NNI's assessor ended, which therefore have no result.
        launcher: Host, process id and start time of the process that works on it.
    """

    id: str
    content: dict[str, Any]
    complete: bool = False
    stopped_early: list[str] = field(default_factory=list)
    launcher: dict[str, Any] = field(default_factory=dict)

    def save(self, out: Path) -> None:
        """Write it, as of the process that calls."""
        self.launcher = {"host": socket.gethostname(), "pid": os.getpid(), "started": psutil.Process().create_time()}
        write_atomically(out / EXPERIMENT_FILE, json.dumps(asdict(self), indent=2) + "\n", error=ExperimentError)


def read_record(out: Path) -> Record | None:
    """Return the record of the experiment in a folder; None where there is none.

    Raises:
        ConfigError: It cannot be read.
    """
    path = out / EXPERIMENT_FILE
    if not is_there(path):
        return None
    kind = Kind(
        "the experiment's",
        "remove it to start another experiment there, or give another folder with --out",
        ConfigError,
        sentence="cannot read {path} ({why}); {remedy}",
    )
    values = read_json(path, kind)
    with reading(path, kind):
        return Record(
            id=str(values["id"]),
            content=dict(values["content"]),
            complete=bool(values["complete"]),
            stopped_early=[str(name) for name in values["stopped_early"]],
            launcher=dict(values["launcher"]),
        )


def expected_trials(out: Path, record: Record) -> list[Trial]:
    """Return the experiment's trials that have a result or should have one."""
    found = read_trials(out, record.id)
    return [trial for trial in found if trial.row is not None or trial.name not in record.stopped_early]


def refuse_running(out: Path, record: Record) -> None:
    """Refuse a folder whose experiment is being worked on.

    Raises:
        ConfigError: Its launcher is alive.
    """
    launcher = record.launcher
    if launcher.get("host") != socket.gethostname() or launcher.get("pid") == os.getpid():
        return
    try:
        started = psutil.Process(int(launcher["pid"])).create_time()
        before = float(launcher.get("started", 0))
    except (psutil.Error, KeyError, ValueError, TypeError, OverflowError):
        return
    # Another process may have got the id since.
    if abs(started - before) < 2:
        raise ConfigError(
            f"process {launcher['pid']} works on the experiment in {out}; wait for its end, or give another folder "
            "with --out"
        )


def refuse_unfinished(out: Path, record: Record, sweep: Sweep) -> None:
    """Refuse to start the same experiment anew where it was not finished: days of work would be repeated.

    Raises:
        ConfigError: It has trials without a result.
    """
    if record.complete or record.content != sweep.content():
        return
    trials = read_trials(out, record.id)
    if trials:
        done = sum(trial.row is not None for trial in trials)
        total = sweep.limit or len(trials)
        raise ConfigError(
            f"{out} holds this experiment with {done} of {total} trials finished; go on with it by --resume, or start "
            "anew in another folder with --out"
        )


def refuse_other(out: Path, record: Record, sweep: Sweep) -> None:
    """Refuse to go on with another experiment than the one in the folder.

    Raises:
        ConfigError: What decides on its trials differs.
    """
    names = _differing(record.content, sweep.content())
    if names:
        raise ConfigError(
            f"{out} holds an experiment with other settings ({', '.join(names)}), which --resume cannot go on with; "
            "put them back, or start this one in another folder with --out"
        )


def _differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> Sequence[str]:
    names = []
    for part in sorted({*before, *now}):
        a, b = before.get(part), now.get(part)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            names += [f"{part}: {key}" for key in sorted({*a, *b}) if a.get(key) != b.get(key)]
        elif a != b:
            names.append(part)
    return names
