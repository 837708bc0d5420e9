"""One search as an NNI trial: `python -m proxyless_strategy.trial CONFIG.yml`.

The trial asks NNI once for its parameters, lays them over the config (their names are the config's dotted keys),
searches, and reports every epoch and the final result. Without NNI (no `NNI_PLATFORM` in the environment) it runs the
config as it is, or with the parameters of a trial that `proxyless experiment` starts itself.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware.child_process import wait_passively
from hardware.errors import ConfigError, ExperimentError, ProxylessError
from hardware.files import write_atomically
from search_spaces.nni_import import silence_false_alarms

from . import signals
from .config import load_config
from .layout import EXPERIMENT_VARIABLE, OUT_VARIABLE, PRESET_VARIABLE, REPORTS_VARIABLE, RESULT, START_VARIABLE
from .world import claims, find_world

if TYPE_CHECKING:
    from .runs.reporting import FileReports, Reports

PARAMETERS_VARIABLE = "PROXYLESS_TRIAL_PARAMETERS"
"""Environment variable in which the launching process hands its parameters to the ranks that it starts."""


def run_trial(path: Path | str, *, preset: str | None = None, machines: Path | None = None) -> dict[str, Any]:
    """Run the trial that this process is, and return the row that it wrote to `result.json`.

    Args:
        path: The search config.
        preset: One of its presets; None: the one that `PROXYLESS_PRESET` names, if it is set.
        machines: The experiment's file of machines, to one of which the trial goes; None: it runs here.

    Raises:
        ProxylessError: A setting is impossible, or the search failed in a way that a user can mend.
    """
    wait_passively()
    import nni

    under_nni = os.environ.get("NNI_PLATFORM") is not None
    with _parameters(under_nni=under_nni) as start:
        config = load_config(path, start.parameters, preset=preset or os.environ.get(PRESET_VARIABLE))
        if OUT_VARIABLE in os.environ:
            config = config.model_copy(update={"out": Path(os.environ[OUT_VARIABLE]).absolute()})
        if start.in_experiment:
            # Trials run side by side, and each folder belongs to one search.
            config = config.model_copy(update={"out": config.out / nni.get_trial_id()})
            if config.retrain is None:
                raise ConfigError(
                    f"{path} has `retrain: null`, but NNI ranks trials by the retrained subnet's accuracy; remove that "
                    "line, or run single searches by `proxyless search`"
                )

        if machines is not None:
            return _run_away(machines, start, config.out, under_nni=under_nni)

        from .runs.reporting import FileReports, Reports
        from .runs.search import run_search  # slow: a wrong config is told before torch and NNI are imported

        # Not by NNI's NasExperiment: within a trial it takes the channel to the tuner over, and what is reported
        # afterwards arrives under another trial's parameters.
        leads = start.leads and find_world(config.search.devices, config.search.nodes).first
        file = os.environ.get(REPORTS_VARIABLE) if start.in_experiment and not under_nni else None
        reports = (FileReports(Path(file)) if file else Reports()) if leads else None
        result = run_search(config, on_epoch=partial(_report_epoch, reports) if reports else None)
        row = {"trial": nni.get_trial_id() if start.in_experiment else None, **_plain(result.row())}
        if start.in_experiment:
            row["restarts"] = start.restarts
        if reports is not None:
            final = _final_metrics(row) if start.in_experiment else {}
            write_atomically(config.out / RESULT, json.dumps(row, indent=2) + "\n", error=ExperimentError)
            # From here on nothing can be lost: a trial whose report does not arrive has succeeded all the same.
            if under_nni:
                reports.final(final)
    return row


def _run_away(machines: Path, start: _Start, folder: Path, *, under_nni: bool) -> dict[str, Any]:
    """Have another machine run the trial; report to NNI what it says."""
    import nni

    from .runs.away import run_away
    from .runs.reporting import Reports
    from .runs.trials import Trial

    if not start.in_experiment:
        raise ConfigError("--machines is for trials of an experiment; start them by `proxyless experiment`")
    reports = Reports() if under_nni else None
    number = start.number if start.number is not None else nni.get_sequence_id()
    trial = Trial(nni.get_trial_id(), start.parameters, number, start.restarts)
    row = run_away(machines, trial, folder, on_epoch=partial(_report_epoch, reports) if reports else None)
    if reports is not None:
        reports.final(_final_metrics(row))
    return row


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line of a trial; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m proxyless_strategy.trial", description="Run one search as an NNI trial."
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.yml", help="the search's own settings")
    parser.add_argument("--preset", help=f"one of the presets in it (default: {PRESET_VARIABLE} in the environment)")
    parser.add_argument("--check", action="store_true", help="only look for missing images and impossible settings")
    parser.add_argument("--machines", type=Path, metavar="FILE", help="of `proxyless experiment`: where it is to run")
    options = parser.parse_args(arguments)
    silence_false_alarms()
    try:
        if options.check:
            _look(options.config, preset=options.preset)
        else:
            from .runs.leash import hold

            with signals.stopped_in_order():
                hold()
                run_trial(options.config, preset=options.preset, machines=options.machines)
    except ProxylessError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def _look(path: Path, *, preset: str | None) -> None:
    """Refuse what is missing, as far as seconds tell; `runs.prepare` refuses the rest."""
    from .data.sources import check_data

    check_data(load_config(path, preset=preset or os.environ.get(PRESET_VARIABLE)).data, scan=False)


@dataclass(frozen=True)
class _Start:
    """With what this process starts.

    Attributes:
        parameters: The trial's parameters.
        leads: Whether it is the process that writes and reports, and no rank that it has started.
        in_experiment: Whether it is a trial of an experiment.
        restarts: How often the trial was started before.
        number: Its place in the experiment, where whoever starts it says so.
    """

    parameters: dict[str, Any]
    leads: bool
    in_experiment: bool
    restarts: int = 0
    number: int | None = None


@contextmanager
def _parameters(*, under_nni: bool) -> Iterator[_Start]:
    """Yield what this process starts with, and note it in the folder of the experiment.

    NNI hands parameters out once, so the launching process asks and leaves them in the environment for its ranks.
    """
    import nni

    trial = nni.get_trial_id()
    # Named by the trial: a trial that starts another experiment hands its environment on, which are not its parameters.
    given = json.loads(os.environ.get(START_VARIABLE, "{}"))
    given = given if given.get("trial") == trial and not under_nni else {}
    in_experiment = under_nni or bool(given)
    restarts = given.get("restarts", 0)
    handed = json.loads(os.environ.get(PARAMETERS_VARIABLE, "{}"))
    if handed.get("trial") == trial:
        yield _Start(handed["parameters"], False, in_experiment, restarts)
        return
    # A rank that asked would wait for ever: NNI answers once a trial, and rank 0 has the answer.
    launched = next(
        (claim for claim in claims(os.environ) if claim.launcher in ("torchrun", "srun") and claim.direct), None
    )
    if under_nni and launched is not None and launched.world.rank > 0:
        raise ExperimentError(
            f"rank {launched.world.rank} of trial {trial} was not started by its rank 0; let trialCommand start one "
            "process and set search.devices, which starts the other ranks"
        )
    parameters = given["parameters"] if given else _asked()
    if parameters is None:
        raise ExperimentError(f"NNI's tuner has no parameters for trial {trial}; lower maxTrialNumber")
    os.environ[PARAMETERS_VARIABLE] = json.dumps({"trial": trial, "parameters": parameters})
    try:
        with _noted(parameters, given) if in_experiment else nullcontext():
            yield _Start(parameters, True, in_experiment, restarts, given.get("number"))
    finally:
        del os.environ[PARAMETERS_VARIABLE]


def _asked() -> dict[str, Any] | None:
    from .runs.reporting import ask_parameters

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Running trial code without runtime")
        return ask_parameters()


@contextmanager
def _noted(parameters: dict[str, Any], given: Mapping[str, Any]) -> Iterator[None]:
    """Note in the experiment's folder with what the trial starts and why it fails, so that it can be started again."""
    import nni

    from .runs.trials import Trial, note_failure, note_start

    if OUT_VARIABLE not in os.environ:  # plain nnictl, which has its own ways
        yield
        return
    folder = Path(os.environ[OUT_VARIABLE]).absolute() / nni.get_trial_id()
    if not given:
        note_start(
            folder,
            Trial(nni.get_trial_id(), parameters, nni.get_sequence_id()),
            os.environ.get(EXPERIMENT_VARIABLE),
        )
    try:
        yield
    except Exception as error:
        # Where even this cannot be written, the failure itself is what has to be told.
        with suppress(ExperimentError):
            note_failure(folder, error, refused=isinstance(error, ProxylessError))
        raise


def _report_epoch(reports: Reports | FileReports, metrics: dict[str, Any]) -> None:
    reports.intermediate(_plain(metrics))


def _final_metrics(row: dict[str, Any]) -> dict[str, Any]:
    if row["accuracy"] is None:
        raise ExperimentError(
            f"trial {row['trial']} has no finite test accuracy to report; look for a diverging loss in its log"
        )
    costs = {name: row[name] for name in ("latency_ms", "table_ms", "target_ms")}
    if row["cost"] != "latency":
        costs |= {name: row.get(name) for name in ("target_cost", "subnet_cost", "energy_mj")}
    warned = {"warnings": row["warnings"]} if row.get("warnings") else {}
    return {"default": row["accuracy"], **{name: value for name, value in costs.items() if value is not None}, **warned}


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the same values as JSON types; a number that JSON lacks (nan, infinity) becomes None."""

    def plain(value: Any) -> Any:
        if hasattr(value, "item"):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            return None
        return str(value) if isinstance(value, Path) else value

    return {name: plain(value) for name, value in metrics.items()}


if __name__ == "__main__":
    sys.exit(main())
