"""One trial on a node of a Ray cluster: Ray's worker starts its command, hands its reports on, and waits."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

from hardware.errors import ExperimentError
from hardware.files import writing
from hardware.reading import DAMAGE, json_of

from ..layout import PARAMETERS_FILE, REPORTS_FILE, REPORTS_VARIABLE
from .leash import LEASH_VARIABLE, leash
from .nni_server import trial_environment
from .restarts import end_earlier, ended_trial, start_trial
from .sweep import Sweep
from .trials import Trial, note_failure, read_record

_POLL_SECONDS = 0.2
_OF_RAY = ("RAY_", "TUNE_", "SPT_NOENV")


def run_here(settings: Mapping[str, Any], *, sweep: Sweep, mark: str, threads: str | None) -> None:
    """Run a trial to its end, in Ray Tune's worker.

    Args:
        settings: The trial, as `as_settings` describes it.
        sweep: What it is a trial of.
        mark: Of the experiment.
        threads: `OMP_NUM_THREADS` where the experiment was started, which decides on how sums are rounded.

    Raises:
        ExperimentError: It has ended without a result; another start may help.
    """
    from ray import tune

    _check_shared(sweep, mark)
    trial = _next_start(sweep, settings)
    end_earlier(mark, trial.name)
    reports = sweep.out / trial.name / REPORTS_FILE
    with writing(reports, error=ExperimentError):
        reports.unlink(missing_ok=True)
    environment = {**_environment(sweep, mark, threads), REPORTS_VARIABLE: str(reports), LEASH_VARIABLE: leash()}
    # The shell must not become the trial: Ray kills a worker's children, and a trial is to keep a checkpoint.
    process, log = start_trial(sweep, trial, mark, command=f"{sweep.command}\nexit $?", environment=environment)
    told = 0
    with log:
        while True:
            status = process.poll()
            found = _reports(sweep, trial)
            for metrics in found[told:]:
                tune.report({name: value for name, value in metrics.items() if value is not None})
            told = max(told, len(found))
            if status is not None:
                break
            time.sleep(_POLL_SECONDS)
    trial = ended_trial(sweep.out, trial, status)
    if trial.row is None and trial.failure.startswith("it ended with exit status"):
        note_failure(sweep.out / trial.name, ExperimentError(trial.failure), refused=trial.refused)
    if trial.row is None and not trial.refused:
        raise ExperimentError(trial.failure)
    # What it refuses it would refuse again, so Ray is told that nothing is to be repeated.
    row = trial.row or {"refused": trial.failure}
    plain = {name: value for name, value in row.items() if isinstance(value, (int, float, str)) and name != "trial"}
    tune.report({**plain, **({"default": row["accuracy"]} if trial.row else {})})


def as_settings(trial: Trial) -> dict[str, Any]:
    """Return what Ray's worker is told of a trial."""
    return {
        "name": trial.name,
        "parameters": trial.parameters,
        "number": trial.number,
        "restarts": trial.restarts,
    }


def as_trial(settings: Mapping[str, Any]) -> Trial:
    """Return the trial that `as_settings` describes."""
    return Trial(settings["name"], dict(settings["parameters"]), settings["number"], settings["restarts"])


def _check_shared(sweep: Sweep, mark: str) -> None:
    """Refuse a node that sees another folder: its results would be gathered by nobody."""
    record = read_record(sweep.out)
    if record is None or record.id != mark or not sweep.code_directory.is_dir():
        raise ExperimentError(
            f"{socket.gethostname()} does not see the experiment in {sweep.out} with the code in "
            f"{sweep.code_directory}; keep both on a disk that all nodes have at the same place"
        )


def _next_start(sweep: Sweep, settings: Mapping[str, Any]) -> Trial:
    """Return the trial with the number of this start: Ray starts the same settings again."""
    trial = as_trial(settings)
    with suppress(*DAMAGE):
        before = json_of(sweep.out / trial.name / PARAMETERS_FILE)
        return replace(trial, restarts=max(trial.restarts, int(before["restarts"]) + 1))
    return trial


def _environment(sweep: Sweep, mark: str, threads: str | None) -> dict[str, str]:
    """Return what this node has, without what Ray has added for itself."""
    found = {name: value for name, value in trial_environment(sweep, mark).items() if not name.startswith(_OF_RAY)}
    if "rpdb" in found.get("PYTHONBREAKPOINT", ""):
        del found["PYTHONBREAKPOINT"]
    # Ray sets it to the trial's processors.
    found.pop("OMP_NUM_THREADS", None)
    return found | ({"OMP_NUM_THREADS": threads} if threads is not None else {})


def _reports(sweep: Sweep, trial: Trial) -> list[dict[str, Any]]:
    """Return what the trial has reported so far; nothing where that cannot be read."""
    with suppress(*DAMAGE):
        return [dict(metrics) for metrics in json_of(sweep.out / trial.name / REPORTS_FILE)]
    return []
