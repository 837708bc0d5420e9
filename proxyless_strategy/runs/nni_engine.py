"""Trials under NNI, whose server is bound to loopback: what `proxyless experiment` uses unless told otherwise."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from hardware.errors import ConfigError, ExperimentError
from hardware.reading import log_of

from .engines import PROGRESS_SECONDS, progress
from .nni_server import POLL_SECONDS, RunningExperiment, is_free
from .restarts import again_of, run_trials
from .rows import say
from .sweep import Sweep
from .trials import Record, Trial, expected_trials, note_failure, note_start, read_trials


@dataclass(frozen=True)
class NniEngine:
    """NNI draws trials and starts each once; again, and what is known already, the launcher starts itself.

    Args:
        port: Port of NNI's web page on loopback; None: 8080, or a free one if that is taken.
    """

    port: int | None = None

    def check(self, sweep: Sweep) -> None:
        if self.port is not None and not is_free(self.port):
            raise ConfigError(f"port {self.port} is in use; free it, or choose another with --port")

    def draw(self, sweep: Sweep, record: Record, console: Console, *, retries: int, earlier: Sequence[Trial]) -> None:
        if earlier and str(sweep.config.get("tuner", {}).get("name")).lower() == "gridsearch":
            raise ExperimentError(
                f"{sweep.limit} trials of {sweep.path} were never started, and NNI's GridSearch would begin with the "
                "first again; go on with --engine ray, or run the rest of the search space in another folder with --out"
            )
        # It does not know the trials of before.
        with RunningExperiment(sweep, port=self.port, mark=record.id) as experiment:
            console.print(f"NNI experiment {experiment.id}: http://127.0.0.1:{experiment.port} (this machine only)")
            listed = _follow(experiment, record, console)
        if not listed:
            raise ExperimentError("the experiment ended without a single trial; look at its tuner and search space")
        ours = {trial.name for trial in read_trials(sweep.out, record.id)}
        for trial in listed:
            # One that ended before it could write anything: its command does not run, or the disk was full.
            if trial["trialJobId"] not in ours:
                known = trial.get("hyperParameters")
                parameters = json.loads(known[0])["parameters"] if known else {}
                noted = Trial(trial["trialJobId"], parameters, trial.get("sequenceId", 0))
                note_start(sweep.out / noted.name, noted, record.id)
                if not known:
                    unknown = ExperimentError("NNI does not know its parameters")
                    note_failure(sweep.out / noted.name, unknown, refused=True)
        ended = {trial["trialJobId"] for trial in listed if trial["status"] != "USER_CANCELED"}
        bad = [trial for trial in expected_trials(sweep.out, record) if trial.row is None and trial.name in ended]
        again = [again_of(trial) for trial in bad if not trial.refused]
        run_trials(sweep, again, experiment=record.id, starts=retries, say=say(console))

    def run(self, sweep: Sweep, record: Record, console: Console, *, trials: Sequence[Trial], retries: int) -> None:
        run_trials(sweep, trials, experiment=record.id, starts=1 + retries, say=say(console))


def _follow(experiment: RunningExperiment, record: Record, console: Console) -> list[dict[str, Any]]:
    """Print what happens until the experiment is done; return its trials."""
    states: dict[str, str] = {}
    printed: dict[str, tuple[int, float]] = {}
    while True:
        done = experiment.is_done()
        trials = experiment.trials()
        results = experiment.intermediate_results()
        now = time.monotonic()
        for trial in trials:
            name = trial["trialJobId"]
            if states.get(name) != trial["status"]:
                states[name] = trial["status"]
                console.print(f"{_title(trial)}: {trial['status'].lower()}")
                if trial["status"] == "FAILED":
                    console.print(_log_tail(trial), markup=False)
                if trial["status"] == "EARLY_STOPPED" and name not in record.stopped_early:
                    record.stopped_early.append(name)
                    record.save(experiment.sweep.out)
            number, metrics = results.get(name, (-1, {}))
            last_number, last_time = printed.get(name, (-1, now - PROGRESS_SECONDS))
            if number > last_number and now - last_time >= PROGRESS_SECONDS:
                console.print(f"{_title(trial)}: {progress(metrics)}")
                printed[name] = (number, now)
        if done:
            return trials
        time.sleep(POLL_SECONDS)


def _title(trial: dict[str, Any]) -> str:
    parameters = {}
    if trial.get("hyperParameters"):
        parameters = json.loads(trial["hyperParameters"][0])["parameters"]
    settings = ", ".join(f"{name} {value}" for name, value in parameters.items())
    return f"trial {trial.get('sequenceId', 0) + 1} {trial['trialJobId']} ({settings})"


def _log_tail(trial: dict[str, Any], *, lines: int = 20) -> str:
    folder = Path(trial.get("logPath", "."))
    for name in ("trial.stderr", "trial.log", "trial.stdout"):
        text = log_of(folder / name).strip()
        if text:
            return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])
    return f"    it left no log in {folder}"
