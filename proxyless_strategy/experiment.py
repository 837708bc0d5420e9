"""One NNI experiment from its config to a table of finished models: what `proxyless experiment` runs.

nnictl itself returns 0 when every trial failed, leaves its server behind, and serves it, without a login, to the whole
network. Here the server is bound to loopback, trials are judged by NNI's REST interface, and every process that was
started is gone afterwards, also on Ctrl-C.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from hardware.errors import ConfigError, ExperimentError
from hardware.files import write_atomically

from .config import SearchConfig, read_config
from .layout import OUT_VARIABLE, PRESET_VARIABLE, RESULT, SUMMARY

DEFAULT_PORT = 8080
MARK = "PROXYLESS_EXPERIMENT"
"""Environment variable by whose value the processes of one experiment are known."""

SUPERVISOR = "PROXYLESS_SUPERVISOR"
"""Environment variable with the id of the process that NNI's server must not outlive."""

SERVER_SCRIPT = """\
"use strict";
const { Server } = require("net");
const listen = Server.prototype.listen;
const isPort = (value) => typeof value === "number" || (typeof value === "string" && /^[0-9]+$/.test(value));
Server.prototype.listen = function (...args) {
  if (isPort(args[0])) {
    args.splice(1, typeof args[1] === "string" ? 1 : 0, "127.0.0.1");
  } else if (args[0] !== null && typeof args[0] === "object" && isPort(args[0].port)) {
    args[0] = { ...args[0], host: "127.0.0.1" };
  }
  return listen.apply(this, args);
};
const supervisor = Number(process.env.PROXYLESS_SUPERVISOR);
if (supervisor) {
  const watch = setInterval(() => {
    try {
      process.kill(supervisor, 0);
    } catch {
      clearInterval(watch);
      process.kill(process.pid, "SIGTERM");
    }
  }, 2000);
  watch.unref();
}
"""
"""Loaded into NNI's web server by NODE_OPTIONS.

Whatever would listen on every interface listens on loopback, and the server stops its trials and itself when its
supervisor is gone, even if that was killed.
"""

_BUILD_BACK = """\
import sys

import proxyless_strategy, timm, torch

for folder in sys.argv[1:]:
    try:
        model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
        with torch.no_grad():
            output = model(torch.zeros(1, *model.pretrained_cfg["input_size"]))
        assert output.shape == (1, model.num_classes), f"its output has the shape {tuple(output.shape)}"
        assert output.isfinite().all(), "its output is not finite"
    except Exception as error:
        sys.exit(f"{folder}: {type(error).__name__}: " + " ".join(str(error).split()))
"""

_LARGEST_CHECKED_GRID = 64
_POLL_SECONDS = 1.0
_PROGRESS_SECONDS = 5.0
_SHUTDOWN_SECONDS = 20.0
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Plan:
    """What an nnictl config asks for.

    Attributes:
        path: The nnictl config.
        search_path: The search config that `trialCommand` names.
        out: Folder that receives one folder a trial, and `summary.json`.
        trials: Parameters of every trial if the search space is a grid of choices, else None.
        preset: Which preset of the search config the trials use.
        narrowed: The nnictl config to run in the place of the file, where only a part of its sweep is wanted.
    """

    path: Path
    search_path: Path
    out: Path
    trials: tuple[dict[str, Any], ...] | None
    preset: str | None = None
    narrowed: dict[str, Any] | None = None

    def configs(self) -> list[SearchConfig]:
        """The search config of every trial, or the bare one if the trials are not known beforehand."""
        trials = self.trials or ({},)
        configs = [read_config(self.search_path, parameters, preset=self.preset) for parameters in trials]
        return [config.model_copy(update={"out": self.out}) for config in configs]


def read_plan(
    path: Path | str,
    *,
    out: Path | None = None,
    preset: str | None = None,
    only: Mapping[str, Any] | None = None,
) -> Plan:
    """Reads an nnictl config and the search config that it names.

    Args:
        path: The nnictl config, a YAML file.
        out: Folder for the results instead of the search config's `out`.
        preset: One of the search config's presets, unless `trialCommand` names one by `--preset`.
        only: A value for some keys of the search space; only trials that have them are run.

    Raises:
        ConfigError: A file is missing or malformed, or the experiment is not one of local `proxyless` trials.
    """
    path = Path(path).absolute()
    config = _mapping(path)
    service = config.get("trainingService")
    platform = service.get("platform") if isinstance(service, dict) else service
    if platform != "local":
        raise ConfigError(
            f"{path}: trainingService.platform is {platform!r}, but only the results of local trials can be gathered "
            "here; set it to local, or start the experiment with nnictl"
        )
    command = str(config.get("trialCommand", ""))
    try:
        words = shlex.split(command)
        arguments = words[words.index("proxyless_strategy.trial") + 1 :]
        name = arguments[0]
        preset = arguments[arguments.index("--preset") + 1] if "--preset" in arguments else preset
    except (ValueError, IndexError):
        raise ConfigError(
            f"{path}: trialCommand is {command!r}; it must run `python -m proxyless_strategy.trial CONFIG.yml "
            "[--preset NAME]`"
        ) from None
    search_path = path.parent / Path(str(config.get("trialCodeDirectory", "."))).expanduser() / name
    space = config.get("searchSpace")
    if space is None and "searchSpaceFile" in config:
        space = _mapping(path.parent / Path(str(config["searchSpaceFile"])).expanduser())
    if not isinstance(space, dict):
        raise ConfigError(f"{path}: searchSpace is {space!r}; it must name the settings that the trials sweep")
    if "out" in space:
        raise ConfigError(f"{path}: searchSpace sweeps `out`; leave it out, every trial has its own folder anyway")
    narrowed = _narrowed(path, config, space, only) if only else None
    trials = _grid(space if narrowed is None else narrowed["searchSpace"])
    first = read_config(search_path, trials[0] if trials else {}, preset=preset)
    return Plan(path, search_path, first.out if out is None else out.absolute(), trials, preset, narrowed)


def run_experiment(
    path: Path | str,
    *,
    port: int | None = None,
    out: Path | None = None,
    preset: str | None = None,
    only: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Runs the experiment to its end and returns one row a trial, the same as in `summary.json`.

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
    plan = read_plan(path, out=out, preset=preset, only=only)
    if port is not None and not _is_free(port):
        raise ConfigError(f"port {port} is in use; free it, or choose another with --port")
    _empty_out(plan.out)
    with _termination_as_exit():
        _prepare(plan, console)
        with RunningExperiment(plan, port=port or _free_port()) as experiment:
            console.print(f"NNI experiment {experiment.id}: http://127.0.0.1:{experiment.port} (this machine only)")
            trials = _follow(experiment, console)
        rows = [_read_row(plan.out, trial["trialJobId"]) for trial in trials if trial["status"] == "SUCCEEDED"]
        write_atomically(plan.out / SUMMARY, json.dumps(rows, indent=2) + "\n")
        console.print(_table(rows))
        _refuse_failures(trials)
        build_back([row["folder"] for row in rows])
    console.print(f"timm built back all {len(rows)} exported models; the rows are in {_short(plan.out / SUMMARY)}")
    return rows


class RunningExperiment:
    """An nnictl experiment bound to loopback, from entering this context to leaving it; then no process is left."""

    def __init__(self, plan: Plan, *, port: int) -> None:
        self.plan = plan
        self.port = port
        self.id = ""
        self._server: psutil.Process | None = None
        self._tuner_log = Path()
        self._mark = uuid.uuid4().hex
        self._folder = tempfile.TemporaryDirectory(prefix="proxyless-")

    def __enter__(self) -> RunningExperiment:
        try:
            self._create()
            metadata = self._get("/experiment-metadata")
            self.id = metadata["id"]
            self._server = psutil.Process(metadata["pid"])
            self._tuner_log = Path(metadata["logDir"], self.id, "log", "dispatcher.log")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is KeyboardInterrupt:
            print("interrupted: stopping NNI and its trials", file=sys.stderr, flush=True)
        self.stop()

    def is_done(self) -> bool:
        """Whether every trial has ended and the tuner wants no more.

        Raises:
            ExperimentError: The tuner failed.
        """
        answer = self._get("/check-status")
        reasons = [str(error) for error in answer["errors"]] or self._tuner_errors()
        if answer["status"] == "ERROR" or reasons:
            reason = " ".join(" ".join(reasons).split()) or "NNI gives no reason"
            raise ExperimentError(
                f"the tuner of {self.plan.path} failed: {reason}; mend `tuner` or `searchSpace` (its log is "
                f"{self._tuner_log})"
            )
        return answer["status"] in ("DONE", "STOPPED")

    def _tuner_errors(self) -> list[str]:
        """Exceptions that ended one of the tuner's threads; NNI logs them and then waits for ever."""
        if not self._tuner_log.exists():
            return []
        log = self._tuner_log.read_text(encoding="utf-8", errors="replace")
        return re.findall(r" ERROR \(nni\.runtime\.msg_dispatcher_base/.*?\) (.*)", log)

    def trials(self) -> list[dict[str, Any]]:
        """Every trial as NNI describes it, in the order in which they were started."""
        return sorted(self._get("/trial-jobs"), key=lambda trial: trial.get("sequenceId", -1))

    def intermediate_results(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """The latest intermediate result of every trial that has one: its number and what was reported."""
        latest = {}
        for metric in self._get("/metric-data-latest"):
            if metric["type"] == "PERIODICAL":
                latest[metric["trialJobId"]] = (metric["sequence"], json.loads(json.loads(metric["data"])))
        return latest

    def processes(self) -> list[psutil.Process]:
        """The processes that this experiment started and that still run."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get(MARK) == self._mark:
                    found.append(process)
        return found

    def stop(self) -> None:
        """Stops the server and every trial: by NNI's own request first, then by signal; deaf to a second Ctrl-C."""
        with _deaf():
            if self.id:
                with contextlib.suppress(OSError, ValueError):
                    self._request("/experiment", method="DELETE")
                    self._wait_for_end([self._server] if self._server else [], _SHUTDOWN_SECONDS)
            for action in (psutil.Process.terminate, psutil.Process.kill, psutil.Process.kill):
                for process in self.processes():
                    with contextlib.suppress(psutil.Error):
                        action(process)
                self._wait_for_end(self.processes(), 3)
            self._folder.cleanup()

    def _wait_for_end(self, processes: Sequence[psutil.Process], seconds: float) -> None:
        """Waits until they are gone or zombies; `psutil.wait_procs` waits for another process's zombie in vain."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and set(processes) & set(self.processes()):
            time.sleep(0.1)

    def _create(self) -> None:
        script = Path(self._folder.name) / "server.js"
        script.write_text(SERVER_SCRIPT, encoding="utf-8")
        log = self.plan.out / "nnictl.log"
        config = self.plan.path
        if self.plan.narrowed is not None:
            config = Path(self._folder.name) / self.plan.path.name
            config.write_text(yaml.safe_dump(self.plan.narrowed), encoding="utf-8")
        command = [sys.executable, "-m", "nni.tools.nnictl.nnictl", "create"]
        with log.open("w", encoding="utf-8") as stream:
            status = subprocess.run(
                [*command, "--config", str(config), "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=self._environment(script),
                start_new_session=True,
                check=False,
            ).returncode
        if status:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
            raise ExperimentError(
                f"nnictl could not start {self.plan.path}: {lines[-1].strip()} (its output is in {log})"
            )

    def _environment(self, script: Path) -> dict[str, str]:
        """Of nnictl, and by inheritance of NNI's server, its tuner and every trial."""
        options = [os.environ.get("NODE_OPTIONS", ""), f'--require="{script}"']
        proxies = [os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")), "127.0.0.1", "localhost"]
        without_proxy = ",".join(filter(None, proxies))
        return {
            **os.environ,
            MARK: self._mark,
            SUPERVISOR: str(os.getpid()),
            OUT_VARIABLE: str(self.plan.out),
            **({PRESET_VARIABLE: self.plan.preset} if self.plan.preset else {}),
            "NODE_OPTIONS": " ".join(filter(None, options)),
            "NO_PROXY": without_proxy,
            "no_proxy": without_proxy,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        }

    def _get(self, path: str) -> Any:
        """The JSON answer; a server that is busy is asked again, one that has died is an error."""
        for attempt in itertools.count():
            try:
                return json.loads(self._request(path))
            except (OSError, ValueError) as error:
                if attempt >= 20 or not self.processes():
                    raise ExperimentError(
                        f"NNI's server on port {self.port} does not answer any more ({error}); see "
                        f"{self.plan.out / 'nnictl.log'} and the experiment's log folder"
                    ) from error
                time.sleep(_POLL_SECONDS)
        raise AssertionError("unreachable")

    def _request(self, path: str, *, method: str = "GET") -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/v1/nni{path}", method=method)
        with _LOCAL.open(request, timeout=10) as answer:
            return answer.read().decode("utf-8")


def build_back(folders: Sequence[Path | str]) -> None:
    """Builds exported models with timm as their user will, in a process of its own, and runs each once.

    Raises:
        ExperimentError: timm cannot build one, or its output is not one row of finite numbers.
    """
    process = subprocess.run(
        [sys.executable, "-c", _BUILD_BACK, *map(str, folders)], capture_output=True, text=True, check=False
    )
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["it gave no reason"])[-1]
        raise ExperimentError(f"timm cannot build an exported model back: {reason}; run that trial again")


def _prepare(plan: Plan, console: Console) -> None:
    """Builds the missing latency tables and checks every trial's settings before the first trial starts."""
    from . import search

    configs = plan.configs()
    if plan.trials is None:
        console.print("The search space is no small grid of choices, so every trial checks its own settings.")
    prepared = set()
    for config in configs:
        needs = config.model_dump_json(include={"space", "hardware", "data", "input_size", "deploy_input_size"})
        if needs not in prepared:
            search.prepare(config)
            prepared.add(needs)
        search.check(config)


def _follow(experiment: RunningExperiment, console: Console) -> list[dict[str, Any]]:
    """Prints what happens until the experiment is done; returns its trials."""
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
        time.sleep(_POLL_SECONDS)


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


def _read_row(out: Path, trial: str) -> dict[str, Any]:
    path = out / trial / RESULT
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExperimentError(
            f"trial {trial} succeeded but left no readable {path} ({error}); run the experiment again"
        ) from error


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
    """The path as one would type it here."""
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


def _mapping(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}; give an existing YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, but holds {type(values).__name__}")
    return values


def _grid(space: dict[str, Any]) -> tuple[dict[str, Any], ...] | None:
    """Every combination of the space's choices; None if it has other types, or too many to check beforehand."""
    choices = []
    size = 1
    for entry in space.values():
        values = entry.get("_value") if isinstance(entry, dict) and entry.get("_type") == "choice" else None
        if not isinstance(values, list) or any(isinstance(value, dict) for value in values):
            return None
        choices.append(values)
        size *= len(values)
    if size > _LARGEST_CHECKED_GRID:
        return None
    return tuple(dict(zip(space, values, strict=True)) for values in itertools.product(*choices))


def _narrowed(path: Path, config: dict[str, Any], space: dict[str, Any], only: Mapping[str, Any]) -> dict[str, Any]:
    """The nnictl config with one value for some keys, and with paths that hold wherever it is written."""
    space = dict(space)
    for key, value in only.items():
        entry = space.get(key)
        values = entry.get("_value") if isinstance(entry, dict) and entry.get("_type") == "choice" else None
        if not isinstance(values, list) or value not in values:
            offered = ", ".join(map(str, values)) if isinstance(values, list) else "no choice"
            raise ConfigError(f"--only {key}={value}: {path} sweeps {', '.join(space)}, and {key} over {offered}")
        space[key] = {"_type": "choice", "_value": [value]}

    def absolute(value: Any) -> str:
        return str(path.parent / Path(str(value)).expanduser())

    changed = {key: value for key, value in config.items() if key != "searchSpaceFile"}
    changed |= {"searchSpace": space, "trialCodeDirectory": absolute(config.get("trialCodeDirectory", "."))}
    if "experimentWorkingDirectory" in config:
        changed["experimentWorkingDirectory"] = absolute(config["experimentWorkingDirectory"])
    for algorithm in ("tuner", "assessor", "advisor"):
        if isinstance(config.get(algorithm), dict) and "codeDirectory" in config[algorithm]:
            directory = absolute(config[algorithm]["codeDirectory"])
            changed[algorithm] = {**config[algorithm], "codeDirectory": directory}
    grid = _grid(space)
    if grid is not None:
        changed["maxTrialNumber"] = min(len(grid), config.get("maxTrialNumber", len(grid)))
    return changed


def _empty_out(out: Path) -> None:
    """Makes the folder, and takes away an earlier experiment's summary, which would pass for this one's."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / SUMMARY).unlink(missing_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise ConfigError(
            f"cannot write to {out}: {error.strerror}; give a folder that you may write to with --out"
        ) from error


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_port() -> int:
    if _is_free(DEFAULT_PORT):
        return DEFAULT_PORT
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def _termination_as_exit() -> Iterator[None]:
    """SIGTERM and a closed terminal unwind the stack, as Ctrl-C does, so that everything is stopped on the way."""

    def leave(number: int, frame: FrameType | None) -> None:
        print(f"{signal.Signals(number).name}: stopping", file=sys.stderr, flush=True)
        raise SystemExit(128 + number)

    with _handlers(dict.fromkeys(("SIGTERM", "SIGHUP"), leave)):
        yield


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    with _handlers(dict.fromkeys(("SIGINT", "SIGTERM", "SIGHUP"), signal.SIG_IGN)):
        yield


@contextlib.contextmanager
def _handlers(wanted: dict[str, Any]) -> Iterator[None]:
    """Installs signal handlers where the platform has the signal; only the main thread may."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name, handler in wanted.items():
            if hasattr(signal, name):
                number = getattr(signal, name)
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
