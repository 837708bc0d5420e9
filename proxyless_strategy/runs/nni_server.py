"""NNI's experiment as a child process bound to loopback, and its end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil

from hardware.errors import ExperimentError
from hardware.files import write_atomically, writing
from hardware.reading import log_of
from hardware.yaml_text import dump_yaml

from ..layout import EXPERIMENT_VARIABLE, NNICTL_LOG, OUT_VARIABLE, PRESET_VARIABLE, REPORTS_VARIABLE
from ..world import unused_port
from .sweep import Sweep

DEFAULT_PORT = 8080
SUPERVISOR = "PROXYLESS_SUPERVISOR"
"""Environment variable with the id of the process that NNI's server must not outlive."""

SERVER_SCRIPT = Path(__file__).with_name("nni_loopback.js")
"""What NODE_OPTIONS loads into NNI's web server: it binds it to loopback, and ends it with its supervisor."""

START_TRIES = 3
"""How often a port of our own choice is given up for another because somebody else has taken it meanwhile."""
POLL_SECONDS = 1.0
SHUTDOWN_SECONDS = 20.0
REQUEST_SECONDS = 10.0
PATIENCE_SECONDS = 120.0
"""How long a server is asked that runs but does not answer: on a busy machine it may be slow, frozen it never will."""
# A proxy of the user's must not be asked for 127.0.0.1.
_LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class RunningExperiment:
    """An nnictl experiment bound to loopback, from entering this context to leaving it; then no process is left."""

    def __init__(self, sweep: Sweep, *, port: int | None = None, mark: str | None = None) -> None:
        self.sweep = sweep
        self.port = port or free_port()
        self._tries = 1 if port else START_TRIES
        self.id = ""
        self._server: psutil.Process | None = None
        self._tuner_log = Path()
        self._mark = mark or uuid.uuid4().hex
        self._folder = tempfile.TemporaryDirectory(prefix="proxyless-")

    def __enter__(self) -> RunningExperiment:
        try:
            while not self._starts():
                # Another experiment has taken the port meanwhile: nobody asked for this one.
                stop_marked(self._mark)
                self.port = unused_port()
        except BaseException:
            self.stop()
            raise
        return self

    def _starts(self) -> bool:
        """Start NNI, and return whether it is this experiment's server that answers on the port.

        Raises:
            ExperimentError: NNI does not start, or another's server answers and there are no further tries.
        """
        self._tries -= 1
        try:
            self._create()
        except ExperimentError:
            # Of two servers that start at once on a port that both have found free, one ends.
            if self._tries and not is_free(self.port):
                return False
            raise
        metadata = self._get("/experiment-metadata")
        server = psutil.Process(metadata["pid"])
        if server.environ().get(EXPERIMENT_VARIABLE) != self._mark:
            if self._tries:
                return False
            raise ExperimentError(
                f"another experiment's server answers on port {self.port}; choose another port with --port"
            )
        self.id = metadata["id"]
        self._server = server
        self._tuner_log = Path(metadata["logDir"], self.id, "log", "dispatcher.log")
        return True

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
                f"the tuner of {self.sweep.path} failed: {reason}; mend `tuner` or `searchSpace` (its log is "
                f"{self._tuner_log})"
            )
        return answer["status"] in ("DONE", "STOPPED")

    def _tuner_errors(self) -> list[str]:
        """Return the exceptions that ended one of the tuner's threads; NNI logs them and then waits for ever."""
        found = re.findall(r" ERROR \(nni\.runtime\.msg_dispatcher_base/.*?\) (.*)", log_of(self._tuner_log))
        return [str(reason) for reason in found]

    def trials(self) -> list[dict[str, Any]]:
        """Return every trial as NNI describes it, in the order in which they were started."""
        return sorted(self._get("/trial-jobs"), key=lambda trial: trial.get("sequenceId", -1))

    def intermediate_results(self) -> dict[str, tuple[int, dict[str, Any]]]:
        """Return the latest intermediate result of every trial that has one: its number and what was reported."""
        latest = {}
        for metric in self._get("/metric-data-latest"):
            if metric["type"] == "PERIODICAL":
                # NNI stores JSON within JSON.
                latest[metric["trialJobId"]] = (metric["sequence"], json.loads(json.loads(metric["data"])))
        return latest

    def processes(self) -> list[psutil.Process]:
        """Return the processes that this experiment started and that still run."""
        return marked_processes(self._mark)

    def stop(self) -> None:
        """Stop the server and every trial: by NNI's own request first, then by signal; deaf to a second Ctrl-C."""
        # A second Ctrl-C in here would leave NNI's server behind, which nobody looks for.
        with deaf():
            if self.id and self._server_runs():
                with contextlib.suppress(OSError, ValueError):
                    self._request("/experiment", method="DELETE")
                    _wait_for_end(self._mark, [self._server] if self._server else [], SHUTDOWN_SECONDS)
            stop_marked(self._mark)
            self._folder.cleanup()

    def _server_runs(self) -> bool:
        with contextlib.suppress(psutil.Error):
            # A child that has ended stays as a zombie until someone asks for its status.
            return self._server is None or (self._server.is_running() and self._server.status() != psutil.STATUS_ZOMBIE)
        return False

    def _create(self) -> None:
        log = self.sweep.out / NNICTL_LOG
        config = self.sweep.path
        if self.sweep.narrowed is not None:
            config = Path(self._folder.name) / self.sweep.path.name
            write_atomically(config, dump_yaml(self.sweep.narrowed), error=ExperimentError)
        command = [sys.executable, "-m", f"{__package__}.patient_nnictl", "create"]
        with writing(log, error=ExperimentError), log.open("w", encoding="utf-8") as stream:
            status = subprocess.run(
                [*command, "--config", str(config), "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                # Ctrl-C reaches the whole group of the terminal's process: NNI would end before `stop` asks it to.
                start_new_session=True,
                check=False,
            ).returncode
        if status:
            lines = log_of(log).strip().splitlines() or ["it said nothing"]
            raise ExperimentError(
                f"nnictl could not start {self.sweep.path}: {lines[-1].strip()} (its output is in {log})"
            )

    def _environment(self) -> dict[str, str]:
        """Return the environment of nnictl, which NNI's server, its tuner and every trial inherit."""
        options = [os.environ.get("NODE_OPTIONS", ""), f'--require="{SERVER_SCRIPT}"']
        proxies = [os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")), "127.0.0.1", "localhost"]
        without_proxy = ",".join(filter(None, proxies))
        return {
            **trial_environment(self.sweep, self._mark),
            SUPERVISOR: str(os.getpid()),
            "NODE_OPTIONS": " ".join(filter(None, options)),
            # nnictl asks its own server through `requests`, which honours a proxy.
            "NO_PROXY": without_proxy,
            "no_proxy": without_proxy,
        }

    def _get(self, path: str) -> Any:
        """Return the JSON answer; a server that is busy is asked again, one that has died or is frozen is an error."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = json.loads(self._request(path))
                if not self._server_runs():
                    raise OSError("another one answers in its place")
                return answer
            except (OSError, ValueError) as error:
                if not self._server_runs() or not self.processes():
                    state = "has ended before the experiment was done: it crashed, or was killed"
                elif time.monotonic() > deadline:
                    state = f"runs, but has not answered for {PATIENCE_SECONDS:.0f} s"
                else:
                    time.sleep(POLL_SECONDS)
                    continue
                raise ExperimentError(
                    f"NNI's server on port {self.port} {state} ({error}); see {self.sweep.out / NNICTL_LOG} and the "
                    "experiment's log folder, and repeat the command with --resume"
                ) from error

    def _request(self, path: str, *, method: str = "GET") -> str:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/api/v1/nni{path}", method=method)
        with _LOCAL.open(request, timeout=REQUEST_SECONDS) as answer:
            return answer.read().decode("utf-8")


def trial_environment(sweep: Sweep, mark: str) -> dict[str, str]:
    """Return the environment in which a trial of the sweep runs, whoever starts it."""
    return {
        # A trial that starts an experiment of its own hands its environment on, and its reports are no one else's.
        **{name: value for name, value in os.environ.items() if name != REPORTS_VARIABLE},
        EXPERIMENT_VARIABLE: mark,
        OUT_VARIABLE: str(sweep.out),
        **({PRESET_VARIABLE: sweep.preset} if sweep.preset else {}),
        # `python` in trialCommand is this one, also where the environment is not activated.
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }


def marked_processes(mark: str) -> list[psutil.Process]:
    """Return the processes of an experiment that still run."""
    # A tree of parents and children would miss what a trial detached; the environment is inherited all the same.
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            alive = process.status() != psutil.STATUS_ZOMBIE
            if alive and process.environ().get(EXPERIMENT_VARIABLE) == mark and process.pid != os.getpid():
                found.append(process)
    return found


def stop_marked(mark: str) -> None:
    """End every process of an experiment, and give its trials the time that a checkpoint takes."""
    # The second kill is for what was started between the list of processes and the first.
    for action, seconds in (
        (psutil.Process.terminate, SHUTDOWN_SECONDS),
        (psutil.Process.kill, 3.0),
        (psutil.Process.kill, 3.0),
    ):
        for process in marked_processes(mark):
            with contextlib.suppress(psutil.Error):
                action(process)
        _wait_for_end(mark, marked_processes(mark), seconds)


def _wait_for_end(mark: str, processes: Sequence[psutil.Process], seconds: float) -> None:
    """Wait until they are gone or zombies; `psutil.wait_procs` waits for another process's zombie in vain."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and set(processes) & set(marked_processes(mark)):
        time.sleep(0.1)


def is_free(port: int) -> bool:
    """Whether nothing listens on a port of this machine."""
    with socket.socket() as probe:
        # A port that a server left a moment ago is free for NNI. On Windows the option would allow one in use.
        if os.name == "posix":
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """Return NNI's usual port, or where that is taken another that is free."""
    return DEFAULT_PORT if is_free(DEFAULT_PORT) else unused_port()


@contextlib.contextmanager
def termination_as_exit() -> Iterator[None]:
    """Let SIGTERM and a closed terminal unwind the stack, as Ctrl-C does: everything is stopped on the way."""

    def leave(number: int, frame: FrameType | None) -> None:
        print(f"{signal.Signals(number).name}: stopping", file=sys.stderr, flush=True)
        raise SystemExit(128 + number)

    with _handlers(dict.fromkeys(("SIGTERM", "SIGHUP"), leave)):
        yield


@contextlib.contextmanager
def deaf() -> Iterator[None]:
    """Let no signal interrupt what has to be done at the end."""
    with _handlers(dict.fromkeys(("SIGINT", "SIGTERM", "SIGHUP"), signal.SIG_IGN)):
        yield


@contextlib.contextmanager
def _handlers(wanted: dict[str, Any]) -> Iterator[None]:
    """Install signal handlers where the platform has the signal; only the main thread may."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name, handler in wanted.items():
            # What the parent has set to be ignored stays so, as by nohup.
            if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
                number = getattr(signal, name)
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
