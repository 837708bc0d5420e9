"""One NNI experiment from its config to a table of finished models: what `proxyless experiment` runs.

nnictl itself returns 0 when every trial failed, leaves its server behind, and serves it, without a login, to the whole
network. Here the server is bound to loopback, and every process that was started is gone afterwards, also on Ctrl-C.
Trials are judged by what they left on disk, where everything is that NNI may lose; however the experiment ends, the
rows of what finished are written.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from hardware.errors import ConfigError, ExperimentError
from hardware.files import check_writable, write_atomically, writing

from ..layout import SUMMARY
from .engines import Engine
from .fleet import Fleet, clear_earlier
from .nni_engine import NniEngine
from .nni_server import deaf, marked_processes, stop_marked, termination_as_exit
from .restarts import again_of, new_name, trial_title
from .rows import moves, results_table, say, short_path
from .sweep import Sweep, read_sweep
from .trials import (
    Record,
    Trial,
    expected_trials,
    read_record,
    refuse_other,
    refuse_running,
    refuse_unfinished,
)


def run_experiment(
    path: Path | str,
    *,
    engine: Engine | None = None,
    out: Path | None = None,
    preset: str | None = None,
    only: Mapping[str, Any] | None = None,
    retries: int = 2,
    resume: bool = False,
) -> list[dict[str, Any]]:
    """Run the experiment to its end and return one row a trial, the same as in `summary.json`.

    Args:
        path: The nnictl config.
        engine: What runs the trials; None: NNI.
        out: Folder for the results instead of the search config's `out`.
        preset: One of the search config's presets.
        only: A value for some keys of the search space; only trials that have them are run.
        retries: How often a trial that ends badly is started again from its last checkpoint.
        resume: Go on with the experiment in the folder: keep its rows, and run what is left.

    Raises:
        ConfigError: A config is wrong, the engine cannot run it, or the folder holds another experiment, or this one
            unfinished.
        ExperimentError: The engine did not start, a trial failed, or an exported model does not build back.
        SystemExit: The process was told to terminate; everything that it started has been stopped.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    sweep = read_sweep(path, out=out, preset=preset, only=only)
    engine = engine or NniEngine()
    engine.check(sweep)
    record = _record(sweep, resume=resume)
    _empty_out(sweep.out, keep_summary=resume)
    with termination_as_exit():
        fleet = Fleet(sweep, record.id) if sweep.machines else None
        if fleet is None:
            _prepare(sweep, console)
        else:
            clear_earlier(sweep, record.id)
            fleet.prepare(console)
            sweep = fleet.local(retries=retries)
        record.save(sweep.out)
        try:
            if resume:
                _go_on(sweep, record, console, engine, retries=retries)
            else:
                engine.draw(sweep, record, console, retries=retries, earlier=())
        finally:
            # However it ends: by a failure of the engine's, an exception of ours, Ctrl-C or SIGTERM.
            with deaf():
                trials, rows = _gathered(sweep, record, console)
        console.print(results_table(rows))
        for row in rows:
            for sentence in moves(row):
                say(console)(f"trial {row['trial']}: {sentence}")
        if fleet is not None and record.complete:
            fleet.clear()
        _refuse_failures(sweep, trials)
        build_back([row["folder"] for row in rows])
    console.print(f"timm built back all {len(rows)} exported models; the rows are in {short_path(sweep.out / SUMMARY)}")
    return rows


def build_back(folders: Sequence[Path | str]) -> None:
    """Build exported models with timm as their user will, in a process of its own, and run each once.

    Raises:
        ExperimentError: timm cannot build one, or its output is not one row of finite numbers.
    """
    # In this process the models' families are registered already, whatever their user would have to import.
    process = subprocess.run(
        [sys.executable, "-m", f"{__package__}.build_back", *map(str, folders)],
        capture_output=True,
        text=True,
        check=False,
    )
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise ExperimentError(f"timm cannot build an exported model back: {reason}; run that trial again")


def _prepare(sweep: Sweep, console: Console) -> None:
    """Measure the missing latency tables and check every trial's settings before the first trial starts."""
    from .prepare import Library, prepare  # torch, timm, NNI

    configs = sweep.configs()
    if sweep.trials is None:
        console.print("The search space is no small grid of choices, so every trial checks its own settings.")
    at_once = int(sweep.config.get("trialConcurrency", 1))
    if at_once > 1 and any(c.hardware.cost == "energy" and c.hardware.device != "other" for c in configs):
        raise ConfigError(
            f"trialConcurrency = {at_once}, but energy is measured while nothing else runs, as a device counts that of "
            "all its work; set it to 1"
        )
    library, told = Library(), set()
    for config in configs:
        # Trials that differ in rule and target alone have the same extremes, which are said once.
        space = config.model_dump_json(include={"space", "hardware", "data", "input_size", "deploy_input_size"})
        prepare(config, quiet=space in told, library=library)
        told.add(space)


def _record(sweep: Sweep, *, resume: bool) -> Record:
    """Return the record of the experiment to run: of the one in the folder, or a new one.

    Raises:
        ConfigError: The folder's experiment is running, is another one, or is this one and must be gone on with.
    """
    record = read_record(sweep.out)
    if record is not None:
        refuse_running(sweep.out, record)
    if not resume:
        if record is not None:
            refuse_unfinished(sweep.out, record, sweep)
        return Record(uuid.uuid4().hex, sweep.content())
    if record is None:
        raise ConfigError(f"{sweep.out} holds no experiment to go on with; leave --resume out")
    refuse_other(sweep.out, record, sweep)
    # A launcher that was killed could not stop them, and they would write into the folders of the same trials.
    if left := marked_processes(record.id):
        print(f"stopping {len(left)} processes of an earlier start in {sweep.out}", file=sys.stderr, flush=True)
        stop_marked(record.id)
    return record


def _go_on(sweep: Sweep, record: Record, console: Console, engine: Engine, *, retries: int) -> None:
    """Run what an experiment that was interrupted had left to do."""
    trials = expected_trials(sweep.out, record)
    for trial in trials:
        if trial.row is not None:
            console.print(f"{trial_title(trial)}: finished before")
    todo = [again_of(trial) for trial in trials if trial.row is None]
    left = max(0, _planned(sweep, record) - len(trials))
    if sweep.is_grid:
        begun = [trial.parameters for trial in trials]
        points = [point for point in sweep.trials or () if point not in begun][:left]
        numbers = itertools.count(1 + max((trial.number for trial in trials), default=-1))
        todo += [Trial(new_name(sweep.out), point, next(numbers)) for point in points]
    if todo:
        engine.run(sweep, record, console, trials=todo, retries=retries)
    if left and not sweep.is_grid:
        known = expected_trials(sweep.out, record)
        engine.draw(sweep.with_limit(left), record, console, retries=retries, earlier=known)


def _gathered(sweep: Sweep, record: Record, console: Console) -> tuple[list[Trial], list[dict[str, Any]]]:
    """Write the rows of what has finished, and say what has not; return the trials and their rows."""
    trials = expected_trials(sweep.out, record)
    rows = [trial.row for trial in trials if trial.row is not None]
    record.complete = bool(rows) and len(rows) == len(trials) >= _planned(sweep, record)
    remedy = "every trial's row is in its folder, and --resume gathers them"
    write_atomically(sweep.out / SUMMARY, json.dumps(rows, indent=2) + "\n", error=ExperimentError, remedy=remedy)
    record.save(sweep.out)
    if not record.complete:
        console.print(_standing(sweep, record, trials), markup=False)
    return trials, rows


def _planned(sweep: Sweep, record: Record) -> int:
    """Return how many trials are to have a result, as far as the config tells."""
    return 0 if sweep.limit is None else sweep.limit - len(record.stopped_early)


def _standing(sweep: Sweep, record: Record, trials: Sequence[Trial]) -> str:
    rows = sum(trial.row is not None for trial in trials)
    total = max(len(trials), _planned(sweep, record))
    lines = [
        f"{rows} of {total} trials have finished, and their rows are in {short_path(sweep.out / SUMMARY)}; repeat the "
        "command with --resume to go on"
    ]
    lines += [f"  {trial_title(trial)}: {trial.failure}" for trial in trials if trial.row is None]
    return "\n".join(lines)


def _refuse_failures(sweep: Sweep, trials: Sequence[Trial]) -> None:
    failed = [trial for trial in trials if trial.row is None]
    if failed:
        names = ", ".join(
            f"{trial.name} ({trial.failure}; starts: {trial.restarts + 1}; see {short_path(sweep.out / trial.name)})"
            for trial in failed
        )
        raise ExperimentError(
            f"{len(failed)} of {len(trials)} trials have no result: {names}; mend what they name and repeat the "
            "command with --resume"
        )


def _empty_out(out: Path, *, keep_summary: bool) -> None:
    """Make the folder, and take away an earlier experiment's summary, which would pass for this one's."""
    check_writable(out, error=ConfigError, remedy="give a folder that you may write to with --out")
    if not keep_summary:
        with writing(out / SUMMARY, error=ConfigError):
            (out / SUMMARY).unlink(missing_ok=True)
