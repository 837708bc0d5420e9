"""Trials that the launcher starts itself: again after a bad end, or what an experiment that died had left to do.

NNI starts a trial once. What it is to do is on disk, so the same command in the same folder goes on from the last
checkpoint, without NNI.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import psutil

from hardware.errors import ExperimentError
from hardware.files import writing

from ..layout import RESULT, START_VARIABLE, TRIAL_LOG
from .nni_server import SHUTDOWN_SECONDS, deaf, marked_processes, stop_marked, trial_environment
from .sweep import Sweep
from .trials import Trial, note_start, read_end

_POLL_SECONDS = 0.2


@dataclass
class _Running:
    trial: Trial
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    starts: int


def run_trials(
    sweep: Sweep, trials: Sequence[Trial], *, experiment: str, starts: int, say: Callable[[str], None]
) -> list[Trial]:
    """Run trials to their end, and return them as they ended.

    Args:
        sweep: What they are trials of.
        trials: The trials; one with a folder goes on in it.
        experiment: The mark of their processes.
        starts: How often each is started until it has a result.
        say: Called with each sentence of progress.
    """
    waiting = [(trial, 1) for trial in trials if starts > 0]
    ended = {trial.name: trial for trial in trials}
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and len(running) < sweep.side_by_side:
                trial, number = waiting.pop(0)
                running.append(_Running(trial, *start_trial(sweep, trial, experiment), number))
                again = f"started again, restart {trial.restarts}" if trial.restarts else "started"
                say(f"{trial_title(trial)}: {again}; its log is {Path(running[-1].log.name)}")
            time.sleep(_POLL_SECONDS)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                one.log.close()
                trial = ended[one.trial.name] = ended_trial(sweep.out, one.trial, one.process.returncode)
                say(f"{trial_title(trial)}: {'finished' if trial.row is not None else trial.failure}")
                if trial.row is None and not trial.refused and one.starts < starts:
                    waiting.append((again_of(trial), one.starts + 1))
    except BaseException as error:
        with deaf():
            if isinstance(error, KeyboardInterrupt):
                print("interrupted: stopping the trials", file=sys.stderr, flush=True)
            stop_marked(experiment)
        raise
    finally:
        for one in running:
            one.log.close()
    return [ended[trial.name] for trial in trials]


def again_of(trial: Trial) -> Trial:
    """Return the trial as it is to be started once more."""
    return replace(trial, restarts=trial.restarts + 1, row=None, failure="", refused=False)


def new_name(out: Path) -> str:
    """Return an id, as NNI makes them, that no folder has."""
    while (out / (name := uuid.uuid4().hex[:5])).exists():
        pass
    return name


def trial_title(trial: Trial) -> str:
    """Return what the console calls the trial."""
    settings = ", ".join(f"{name} {value}" for name, value in trial.parameters.items())
    return f"trial {trial.number + 1} {trial.name} ({settings})"


def start_trial(
    sweep: Sweep,
    trial: Trial,
    experiment: str,
    *,
    command: str | None = None,
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    """Start a trial in its folder, and return its process and its log.

    Args:
        sweep: What it is a trial of.
        trial: The trial.
        experiment: The mark of its processes.
        command: The shell command; None: the sweep's.
        settings: What is laid over the search config on this machine, beside the trial's parameters.
        environment: What the process gets; None: what this one has, and the sweep's settings.
    """
    folder = sweep.out / trial.name
    note_start(folder, trial, experiment)
    # One that cannot be read would pass for the result of this start, if it failed.
    with writing(folder / RESULT, error=ExperimentError):
        (folder / RESULT).unlink(missing_ok=True)
    parameters = {**trial.parameters, **(settings or {})}
    handed = {"trial": trial.name, "parameters": parameters, "number": trial.number, "restarts": trial.restarts}
    # An experiment may run within another one's trial, whose manager must not hear of ours.
    environment = trial_environment(sweep, experiment) if environment is None else environment
    environment = {name: value for name, value in environment.items() if not name.startswith("NNI_")}
    with writing(folder / TRIAL_LOG, error=ExperimentError):
        log = (folder / TRIAL_LOG).open("ab")
    process = subprocess.Popen(
        sweep.command if command is None else command,
        shell=True,
        executable="/bin/bash" if os.path.exists("/bin/bash") else None,
        cwd=sweep.code_directory,
        env={
            **environment,
            START_VARIABLE: json.dumps(handed),
            "NNI_TRIAL_JOB_ID": trial.name,
        },
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        # Ctrl-C is for the launcher, which then ends its trials so that they keep a checkpoint.
        start_new_session=True,
    )
    return process, log


def ended_trial(out: Path, trial: Trial, status: int) -> Trial:
    """Return a trial as its folder, and the exit status of its process, say that it has ended."""
    trial = read_end(out, trial)
    if trial.row is None and status > 0 and trial.failure.startswith("it ended without a word"):
        # 2 stands for what a user has to mend, here and in argparse.
        return replace(trial, failure=f"it ended with exit status {status}", refused=status == 2)
    return trial


def end_earlier(mark: str, name: str) -> None:
    """End what an earlier start of a trial has left on this machine, with the time that a checkpoint takes.

    Args:
        mark: Of the experiment.
        name: The trial's.
    """
    for action, seconds in ((psutil.Process.terminate, SHUTDOWN_SECONDS), (psutil.Process.kill, 3.0)):
        deadline = time.monotonic() + seconds
        left = _processes(mark, name)
        for process in left:
            with suppress(psutil.Error):
                action(process)
        while left and time.monotonic() < deadline:
            time.sleep(0.1)
            left = _processes(mark, name)


def _processes(mark: str, name: str) -> list[psutil.Process]:
    found = []
    for process in marked_processes(mark):
        with suppress(psutil.Error, OSError):
            if process.environ().get("NNI_TRIAL_JOB_ID") == name:
                found.append(process)
    return found
