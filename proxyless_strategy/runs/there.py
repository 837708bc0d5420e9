"""What `proxyless experiment` runs on a machine of `machineList`, by ssh: `python -m proxyless_strategy.runs.there`.

It reads one request as a line of JSON and writes its answers as such lines. Nothing listens: what it hears and says
goes through the connection that has started it, and when that is gone it stops its trial.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardware.errors import ConfigError, ProxylessError
from hardware.files import check_writable, unpack, writing
from hardware.reading import DAMAGE, json_of, parse_json, shown
from search_spaces.nni_import import silence_false_alarms

from ..layout import (
    CHECKPOINT,
    FLEET_FILE,
    MACHINE_FILE,
    MACHINES_LOG,
    PARAMETERS_FILE,
    REPORTS_FILE,
    REPORTS_VARIABLE,
    SEARCH_CHECKPOINT,
    TRIAL_LOG,
)
from .leash import LEASH_VARIABLE, leash
from .machines import MARK, MARK_PATTERN
from .nni_server import SHUTDOWN_SECONDS, stop_marked, trial_environment
from .restarts import end_earlier, start_trial
from .sweep import Sweep
from .trials import Trial

BEAT_SECONDS = 4.0
"""How often whoever has started a trial says that it is still there."""
CONTACT_SECONDS = 20.0
"""After how long without that the trial is stopped: it may have been started again elsewhere, in the same folder."""
FENCE_SECONDS = CONTACT_SECONDS + SHUTDOWN_SECONDS + 5
"""After how long without a word from a machine its trial has ended for certain."""
_POLL_SECONDS = 0.3


def main() -> int:
    """Do what the request on standard input asks for."""
    request = parse_json(sys.stdin.buffer.readline().decode())
    silence_false_alarms()
    try:
        answer = _DOES[request["do"]](request)
    except ProxylessError as error:
        _say({"error": str(error)})
        return 2
    _say(answer)
    return 0


def _say(answer: Mapping[str, Any]) -> None:
    sys.stdout.buffer.write(MARK + json.dumps(answer).encode() + b"\n")
    sys.stdout.buffer.flush()


def _of(request: Mapping[str, Any]) -> str:
    """Return the mark of the experiment's processes here: its manager may run on this machine, too."""
    return f"{request['mark']}.there"


def _probe(request: Mapping[str, Any]) -> dict[str, Any]:
    """Tell what the machine has, and whether it sees the experiment's folder."""
    from importlib.metadata import version

    work = _work(request)
    check_writable(work.parent, error=ConfigError, remedy="give another workFolder")
    shared = False
    with contextlib.suppress(*DAMAGE, OSError):
        shared = json_of(Path(request["out"]) / FLEET_FILE)["experiment"] == request["mark"]
    return {
        "version": version("proxyless-strategy") if _is_installed() else None,
        "python": sys.executable,
        "work": str(work),
        "shared": shared,
        "gpus": _gpus(),
    }


def _work(request: Mapping[str, Any]) -> Path:
    """Return the experiment's folder in the machine's `workFolder`."""
    if not re.fullmatch(MARK_PATTERN, mark := str(request["mark"])):
        raise ConfigError(f"{shown(mark)} is the mark of no experiment")
    return Path(request["work"]).expanduser().absolute() / mark


def _is_installed() -> bool:
    from importlib.metadata import PackageNotFoundError, version

    try:
        version("proxyless-strategy")
    except PackageNotFoundError:
        return False
    return True


def _gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def _receive(request: Mapping[str, Any]) -> dict[str, Any]:
    """Unpack the code folder that follows the request, in the place of an earlier one."""
    code = Path(request["code"])
    stop_marked(_of(request))  # of an experiment that is gone on with, whose launcher was killed
    fresh = code.with_name(f"{code.name}.new")
    with writing(code, error=ConfigError, remedy="make room there, or give another workFolder"):
        for folder in (fresh, code):
            shutil.rmtree(folder, ignore_errors=True)
        fresh.mkdir(parents=True)
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|gz") as archive:
            unpack(archive, fresh)
        os.replace(fresh, code)
    return {}


def _prepare(request: Mapping[str, Any]) -> dict[str, Any]:
    """Check every trial that may come here, as a local experiment does; no table is measured."""
    from ..config import load_config
    from .prepare import Library, prepare
    from .space_table import table_path

    os.chdir(request["code"])  # as a trial's: relative paths of a machine's settings count from there
    # What it prints is for people, and standard output is not.
    with contextlib.redirect_stdout(sys.stderr):
        library, told = Library(), set()
        for parameters in request["trials"]:
            config = load_config(Path(request["search"]), parameters, preset=request["preset"])
            config = config.model_copy(update={"out": Path(request["out"])})
            table = table_path(config) if config.hardware.uses_table else None
            if table is not None and not table.is_file():
                raise ConfigError(
                    f"there is no latency table {table} of this kind of machine; measure one there by `proxyless "
                    "latency build`, put it into trialCodeDirectory, and name it in the machine's settings "
                    "(hardware.table, or hardware: one of the platforms)"
                )
            space = config.model_dump_json(include={"space", "hardware", "data", "input_size", "deploy_input_size"})
            prepare(config, quiet=space in told, library=library)
            told.add(space)
    return {}


def _run(request: Mapping[str, Any]) -> dict[str, Any]:
    """Run a trial to its end and hand its reports on."""
    trial = Trial(request["trial"], request["parameters"], request["number"], request["restarts"])
    out, mark = Path(request["out"]), request["mark"]
    code = Path(request["code"])
    if not code.is_dir():
        raise ConfigError(f"{code} is gone; repeat the command with --resume, which brings it back")
    config = {"trialCommand": request["command"], "trialCodeDirectory": str(code)}
    sweep = Sweep(code / "sweep.yml", code, out, None, request["preset"], config=config)
    folder = out / trial.name
    end_earlier(_of(request), trial.name)
    if request["anew"]:
        _empty(folder)
    held = [name for name in (SEARCH_CHECKPOINT, CHECKPOINT) if (folder / name).is_file()]
    reports = folder / REPORTS_FILE
    with writing(reports, error=ConfigError):
        reports.unlink(missing_ok=True)
    environment = {
        **trial_environment(sweep, _of(request)),
        **request["environment"],
        REPORTS_VARIABLE: str(reports),
        LEASH_VARIABLE: leash(),
    }
    process, log = start_trial(sweep, trial, mark, settings=request["settings"], environment=environment)
    _Contact(_of(request), trial.name).start()
    _say({"begins": {"continues": bool(held)}})
    told = 0
    with log:
        while True:
            status = process.poll()
            found: list[dict[str, Any]] = []
            with contextlib.suppress(*DAMAGE):
                found = json_of(reports)
            for metrics in found[told:]:
                _say({"report": metrics})
            told = max(told, len(found))
            if status is not None:
                return {"ended": status}
            time.sleep(_POLL_SECONDS)


class _Contact(threading.Thread):
    """Ends the trial and this program when nobody speaks to them any more."""

    def __init__(self, mark: str, trial: str) -> None:
        super().__init__(daemon=True, name="contact")
        self._of = mark, trial
        self._heard = time.monotonic()
        self._closed = False

    def run(self) -> None:
        threading.Thread(target=self._listen, daemon=True, name="beats").start()
        while not self._closed and time.monotonic() - self._heard < CONTACT_SECONDS:
            time.sleep(_POLL_SECONDS)
        end_earlier(*self._of)
        # The main thread may hang in what it says to nobody.
        os._exit(3)

    def _listen(self) -> None:
        while sys.stdin.buffer.readline():
            self._heard = time.monotonic()
        self._closed = True


def _empty(folder: Path) -> None:
    """Take away what another kind of machine has left of the trial, but for what it was started with."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif path.name not in (PARAMETERS_FILE, MACHINE_FILE, MACHINES_LOG, TRIAL_LOG):
                path.unlink(missing_ok=True)


def _send(request: Mapping[str, Any]) -> dict[str, Any]:
    """Write the trial's folder after an answer, as a tar archive."""
    folder = Path(request["out"]) / request["trial"]
    _say({"there": folder.is_dir()})
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        if folder.is_dir():
            archive.add(folder, arcname=".")
    sys.stdout.buffer.flush()
    os._exit(0)  # nothing may follow the archive


def _forget(request: Mapping[str, Any]) -> dict[str, Any]:
    """Remove a trial's folder, or all that the experiment has here."""
    work, trial = _work(request), request.get("trial")
    if trial is not None and Path(trial).name != trial:
        raise ConfigError(f"{shown(trial)} is the name of no trial")
    shutil.rmtree(work / "runs" / trial if trial else work, ignore_errors=True)
    return {}


_DOES = {
    "probe": _probe, "receive": _receive, "prepare": _prepare, "run": _run, "send": _send, "forget": _forget
}  # fmt: skip

if __name__ == "__main__":
    sys.exit(main())
