"""One NNI experiment from its config to a table of finished models: what `proxyless experiment` runs.

nnictl itself returns 0 when every trial failed, leaves its server behind, and serves it, without a login, to the whole
network. Here the server is bound to loopback, trials are judged by NNI's REST interface, and every process that was
started is gone afterwards, also on Ctrl-C.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hardware.errors import ConfigError, ExperimentError
from hardware.files import write_atomically

from ..layout import SUMMARY
from .finished import read_trial
from .nni_server import POLL_SECONDS, RunningExperiment, free_port, is_free, termination_as_exit
from .sweep import Sweep, read_sweep

_PROGRESS_SECONDS = 5.0


def run_experiment(
    path: Path | str,
    *,
    port: int | None = None,
    out: Path | None = None,
    preset: str | None = None,
    only: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Run the experiment to its end and return one row a trial, the same as in `summary.json`.

    Args:
        path: The nnictl config.
        port: Port of NNI's web page on loopback; None: 8080, or a free one if that is taken.
        out: Folder for the results instead of the search config's `out`.
        preset: One of the search config's presets.
        only: A value for some keys of the search space; only trials that have them are run.

    Raises:
        ConfigError: A config is wrong, or the port is taken.
        ExperimentError: NNI did not start, a trial failed, or an exported model does not build back.
        SystemExit: The process was told to terminate; everything that it started has been stopped.
    """
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    sweep = read_sweep(path, out=out, preset=preset, only=only)
    if port is not None and not is_free(port):
        raise ConfigError(f"port {port} is in use; free it, or choose another with --port")
    _empty_out(sweep.out)
    with termination_as_exit():
        _prepare(sweep, console)
        with RunningExperiment(sweep, port=port or free_port()) as experiment:
            console.print(f"NNI experiment {experiment.id}: http://127.0.0.1:{experiment.port} (this machine only)")
            trials = _follow(experiment, console)
        rows = [read_trial(sweep.out, trial["trialJobId"]) for trial in trials if trial["status"] == "SUCCEEDED"]
        write_atomically(sweep.out / SUMMARY, json.dumps(rows, indent=2) + "\n")
        console.print(_table(rows))
        _refuse_failures(trials)
        build_back([row["folder"] for row in rows])
    console.print(f"timm built back all {len(rows)} exported models; the rows are in {_short(sweep.out / SUMMARY)}")
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
    library, told = Library(), set()
    for config in configs:
        # Trials that differ in rule and target alone have the same extremes, which are said once.
        space = config.model_dump_json(include={"space", "hardware", "data", "input_size", "deploy_input_size"})
        prepare(config, quiet=space in told, library=library)
        told.add(space)


def _follow(experiment: RunningExperiment, console: Console) -> list[dict[str, Any]]:
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
            number, metrics = results.get(name, (-1, {}))
            last_number, last_time = printed.get(name, (-1, now - _PROGRESS_SECONDS))
            if number > last_number and now - last_time >= _PROGRESS_SECONDS:
                console.print(f"{_title(trial)}: {_progress(metrics)}")
                printed[name] = (number, now)
        if done:
            return trials
        time.sleep(POLL_SECONDS)


def _refuse_failures(trials: Sequence[dict[str, Any]]) -> None:
    if not trials:
        raise ExperimentError("the experiment ended without a single trial; look at its tuner and search space")
    failed = [trial for trial in trials if trial["status"] not in ("SUCCEEDED", "EARLY_STOPPED")]
    silent = [trial for trial in trials if trial["status"] == "SUCCEEDED" and not trial.get("finalMetricData")]
    if failed or silent:
        names = ", ".join(
            f"{trial['trialJobId']} ({trial['status'].lower()}, log in {trial.get('logPath', 'no folder')})"
            for trial in [*failed, *silent]
        )
        raise ExperimentError(
            f"{len(failed) + len(silent)} of {len(trials)} trials have no result: {names}; mend what their logs name "
            "and run the experiment again"
        )


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table()
    named = any(row.get("hardware") for row in rows)
    for title in (*(("hardware",) if named else ()), "rule"):
        table.add_column(title, no_wrap=True)
    counted = any(row["cost"] != "latency" for row in rows)
    others = ("cost", "target", "subnet") if counted else ()
    for title in (*others, "target ms", "table ms", "measured ms", "accuracy", "params", "MACs"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for row in rows:
        costs = (row["unit"], *(_number(row[key], ".4g") for key in ("target_cost", "subnet_cost")))
        table.add_row(
            *((str(row["hardware"]),) if named else ()),
            str(row["rule"]),
            *(costs if counted else ()),
            *(_number(row[key], ".4g") for key in ("target_ms", "table_ms", "latency_ms")),
            _number(row["accuracy"], ".2%"),
            *(_number(row[key], ",") for key in ("params", "macs")),
            _short(Path(row["folder"])),
        )
    return table


def _number(value: Any, spec: str) -> str:
    return "none" if value is None else format(value, spec)


def _short(path: Path) -> str:
    """Return the path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _title(trial: dict[str, Any]) -> str:
    parameters = {}
    if trial.get("hyperParameters"):
        parameters = json.loads(trial["hyperParameters"][0])["parameters"]
    settings = ", ".join(f"{name} {value}" for name, value in parameters.items())
    return f"trial {trial.get('sequenceId', 0) + 1} {trial['trialJobId']} ({settings})"


def _progress(metrics: dict[str, Any]) -> str:
    parts = [f"{metrics.get('phase', 'epoch')} {metrics.get('epoch', '')}".strip()]
    for name, label, spec in (
        ("default", "accuracy", ".3f"),
        ("loss", "loss", ".3f"),
        ("expected", f"expected {metrics.get('unit', 'cost')}", ".4g"),
    ):
        if metrics.get(name) is not None:
            parts.append(f"{label} {metrics[name]:{spec}}")
    return ", ".join(parts)


def _log_tail(trial: dict[str, Any], *, lines: int = 20) -> str:
    folder = Path(trial.get("logPath", "."))
    for name in ("trial.stderr", "trial.log", "trial.stdout"):
        with contextlib.suppress(OSError):
            text = (folder / name).read_text(encoding="utf-8", errors="replace").strip()
            if text:
                return "\n".join(f"    {line}" for line in text.splitlines()[-lines:])
    return f"    it left no log in {folder}"


def _empty_out(out: Path) -> None:
    """Make the folder, and take away an earlier experiment's summary, which would pass for this one's."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / SUMMARY).unlink(missing_ok=True)
        # A read-only file system shows only when something is written.
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot write to {out}: {error.strerror}; give a folder that you may write to with --out"
        ) from error
