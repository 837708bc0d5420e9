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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from hardware.errors import ExperimentError
from hardware.files import writing

from ..layout import RESULT, START_VARIABLE, TRIAL_LOG
from .nni_server import deaf, stop_marked, trial_environment
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
                running.append(_start(sweep, trial, experiment, number))
                again = f"started again, restart {trial.restarts}" if trial.restarts else "started"
                say(f"{trial_title(trial)}: {again}; its log is {Path(running[-1].log.name)}")
            time.sleep(_POLL_SECONDS)
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                one.log.close()
                trial = ended[one.trial.name] = _ended(sweep.out, one)
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


def _start(sweep: Sweep, trial: Trial, experiment: str, number: int) -> _Running:
    folder = sweep.out / trial.name
    note_start(folder, trial, experiment)
    # One that cannot be read would pass for the result of this start, if it failed.
    with writing(folder / RESULT, error=ExperimentError):
        (folder / RESULT).unlink(missing_ok=True)
    handed = {"trial": trial.name, "parameters": trial.parameters, "number": trial.number, "restarts": trial.restarts}
    # An experiment may run within another one's trial, whose manager must not hear of ours.
    environment = trial_environment(sweep, experiment)
    environment = {name: value for name, value in environment.items() if not name.startswith("NNI_")}
    with writing(folder / TRIAL_LOG, error=ExperimentError):
        log = (folder / TRIAL_LOG).open("ab")
    process = subprocess.Popen(
        sweep.command,
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
    return _Running(trial, process, log, number)


def _ended(out: Path, one: _Running) -> Trial:
    trial = read_end(out, one.trial)
    if trial.row is None and one.process.returncode > 0 and trial.failure.startswith("it ended without a word"):
        # 2 stands for what a user has to mend, here and in argparse.
        status = one.process.returncode
        return replace(trial, failure=f"it ended with exit status {status}", refused=status == 2)
    return trial
