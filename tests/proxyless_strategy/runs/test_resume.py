"""What `proxyless experiment` keeps, starts again and goes on with, whatever ends NNI or the launcher."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import pytest
import yaml

from hardware.errors import ConfigError, ExperimentError
from proxyless_strategy.layout import EXPERIMENT_FILE, FAILURE_FILE, PARAMETERS_FILE, RESULT, SUMMARY
from proxyless_strategy.runs import experiment, nni_engine, nni_server
from proxyless_strategy.runs.experiment import run_experiment
from proxyless_strategy.runs.nni_server import RunningExperiment
from proxyless_strategy.runs.sweep import read_sweep
from proxyless_strategy.runs.trials import Trial, note_failure, note_start, read_record

from .test_experiment import FAKE_SEARCH, Sandbox, _wait_for

ROOT = Path(__file__).parents[3]
POINTS = [{"rule": rule, "target": 0.3} for rule in ("gradient", "reinforce")]


def row_of(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    costs = {"cost": "latency", "unit": "ms", "target_cost": 3.0, "subnet_cost": 2.9}
    costs |= {"target_ms": 3.0, "table_ms": 2.9, "latency_ms": 2.8}
    rest = {"accuracy": 0.9, "params": 10, "macs": 20, "folder": "model", "restarts": 0}
    return {"trial": name, "rule": parameters["rule"], **costs, **rest}


class Script:
    """Stands for NNI: what its trials left on disk, what NNI says of them, and how it ends itself."""

    def __init__(self) -> None:
        self.statuses: dict[str, str] = {}
        self.parameters: dict[str, dict[str, Any]] = {}
        self.act: Callable[[Path, str], None] = lambda out, mark: None
        self.ends: BaseException | None = None
        self.sweeps: list[Any] = []

    def trial(self, out: Path, mark: str, name: str, status: str, *, result: str | None = "") -> None:
        """Leave a trial behind: with its row, with other text in its result, or without one."""
        number = len(self.statuses)
        self.statuses[name], self.parameters[name] = status, POINTS[number]
        note_start(out / name, Trial(name, POINTS[number], number), mark)
        if result is not None:
            (out / name / RESULT).write_text(result or json.dumps(row_of(name, POINTS[number])))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()

    class Scripted:
        id, port = "scripted", 1

        def __init__(self, sweep: Any, *, port: int, mark: str) -> None:
            self.sweep, self.mark = sweep, mark
            script.sweeps.append(sweep)

        def __enter__(self) -> Scripted:
            script.act(self.sweep.out, self.mark)
            return self

        def __exit__(self, kind: Any, error: Any, trace: TracebackType | None) -> None:
            pass

        def is_done(self) -> bool:
            return script.ends is None

        def trials(self) -> list[dict[str, Any]]:
            return [
                {
                    "trialJobId": name,
                    "status": status,
                    "sequenceId": number,
                    "hyperParameters": [json.dumps({"parameters": script.parameters[name]})],
                }
                for number, (name, status) in enumerate(script.statuses.items())
            ]

        def intermediate_results(self) -> dict[str, Any]:
            if script.ends is not None:
                raise script.ends
            return {}

    monkeypatch.setattr(nni_engine, "RunningExperiment", Scripted)
    monkeypatch.setattr(experiment, "_prepare", lambda *_: None)
    monkeypatch.setattr(experiment, "build_back", lambda folders: None)
    monkeypatch.setenv("FAKE_SEARCH", "1")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKE_SEARCH), os.environ.get("PYTHONPATH", "")]))
    return script


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path)
    yield sandbox
    for process in sandbox.processes():
        process.kill()


def summary(sandbox: Sandbox) -> list[tuple[str, int]]:
    return [(row["rule"], row["restarts"]) for row in json.loads((sandbox.out / SUMMARY).read_text())]


def one_finished(script: Script, status: str, *, result: str | None = None) -> None:
    """Let NNI finish the first trial, and leave the second as told."""

    def act(out: Path, mark: str) -> None:
        script.trial(out, mark, "aaaaa", "SUCCEEDED")
        script.trial(out, mark, "bbbbb", status, result=result)

    script.act = act


# ---- collecting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", ["{", "[]", "{}", json.dumps(row_of("other", POINTS[1])), "\0"])
def test_a_damaged_row_does_not_lose_the_others(script: Script, sandbox: Sandbox, result: str) -> None:
    one_finished(script, "SUCCEEDED", result=result)
    with pytest.raises(ExperimentError, match=r"1 of 2 trials have no result: bbbbb \(cannot read its result.json \("):
        run_experiment(sandbox.config, retries=0)
    assert summary(sandbox) == [("gradient", 0)]


def test_what_nni_lost_is_collected_from_disk(script: Script, sandbox: Sandbox) -> None:
    # NNI knows no final result of either, and takes the second for failed: it was killed while it reported.
    one_finished(script, "FAILED", result="")
    assert [row["trial"] for row in run_experiment(sandbox.config)] == ["aaaaa", "bbbbb"]
    assert summary(sandbox) == [("gradient", 0), ("reinforce", 0)]


@pytest.mark.parametrize(
    "ends",
    [ExperimentError("the tuner failed"), KeyboardInterrupt(), SystemExit(143), RuntimeError("a fault of ours")],
    ids=lambda error: type(error).__name__,
)
def test_the_summary_is_written_however_it_ends(
    script: Script, sandbox: Sandbox, ends: BaseException, capsys: pytest.CaptureFixture[str]
) -> None:
    one_finished(script, "RUNNING")
    script.ends = ends
    with pytest.raises(type(ends)):
        run_experiment(sandbox.config)
    assert summary(sandbox) == [("gradient", 0)]
    output = " ".join(capsys.readouterr().out.split())
    assert "1 of 2 trials have finished" in output
    assert "repeat the command with --resume" in output
    assert "trial 2 bbbbb (rule reinforce, target 0.3): it ended without a word" in output


def test_a_row_without_a_folder_that_can_be_read_is_told(
    script: Script, sandbox: Sandbox, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(out: Path, mark: str) -> None:
        script.trial(out, mark, "aaaaa", "SUCCEEDED")
        (out / "old").mkdir()
        (out / "old" / PARAMETERS_FILE).write_text("{")

    script.act = act
    run_experiment(sandbox.config)
    assert "old/parameters.json (it is no valid JSON" in capsys.readouterr().err


# ---- retries ---------------------------------------------------------------------------------------------------


def test_a_trial_that_was_lost_is_started_again(script: Script, sandbox: Sandbox) -> None:
    one_finished(script, "FAILED")
    rows = run_experiment(sandbox.config, retries=1)
    assert [(row["trial"], row["rule"], row["restarts"]) for row in rows] == [
        ("aaaaa", "gradient", 0),
        ("bbbbb", "reinforce", 1),
    ]
    assert json.loads((sandbox.out / "bbbbb" / RESULT).read_text()) == rows[1]
    seen = json.loads((sandbox.out / "bbbbb" / "seen.json").read_text())
    assert seen["cwd"] == str(sandbox.folder)
    assert [name for name in seen["environment"] if name.startswith("NNI_")] == ["NNI_TRIAL_JOB_ID"]


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_a_retry_cannot_mend_is_not_retried(
    script: Script, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    def act(out: Path, mark: str) -> None:
        script.trial(out, mark, "aaaaa", "USER_CANCELED" if cancelled else "FAILED", result=None)
        if not cancelled:
            note_failure(out / "aaaaa", ConfigError("target 9 is out of reach; choose another"), refused=True)

    script.act = act
    started: list[Any] = []
    monkeypatch.setattr(nni_engine, "run_trials", lambda sweep, trials, **_: started.extend(trials))
    with pytest.raises(ExperimentError, match="ended without" if cancelled else "target 9 is out of reach"):
        run_experiment(sandbox.config)
    assert started == []


@pytest.mark.slow
def test_a_trial_that_refuses_its_settings_is_started_once(script: Script, sandbox: Sandbox) -> None:
    one_finished(script, "FAILED")
    os.environ["FAKE_REFUSED_RULE"] = "reinforce"
    try:
        with pytest.raises(ExperimentError, match=r"bbbbb \(target 0.3 is refused; choose another; starts: 2"):
            run_experiment(sandbox.config, retries=3)
    finally:
        del os.environ["FAKE_REFUSED_RULE"]
    assert json.loads((sandbox.out / "bbbbb" / FAILURE_FILE).read_text())["error"] == "TargetError"


@pytest.mark.slow
def test_retries_end(script: Script, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    one_finished(script, "FAILED")
    monkeypatch.setenv("FAKE_FAILING_RULE", "reinforce")
    monkeypatch.setenv("FAKE_FAILURES", "2")
    with pytest.raises(ExperimentError, match=r"RuntimeError: the fake search failed .*; starts: 3; see"):
        run_experiment(sandbox.config, retries=2)
    assert [row["restarts"] for row in run_experiment(sandbox.config, retries=0, resume=True)] == [0, 3]


# ---- going on --------------------------------------------------------------------------------------------------


def test_resume_keeps_finished_rows_and_runs_the_rest(script: Script, sandbox: Sandbox) -> None:
    def act(out: Path, mark: str) -> None:
        script.trial(out, mark, "aaaaa", "SUCCEEDED")

    script.act, script.ends = act, ExperimentError("NNI's server has ended")
    with pytest.raises(ExperimentError, match="has ended"):
        run_experiment(sandbox.config)
    before = (sandbox.out / "aaaaa" / RESULT).stat()
    with pytest.raises(ConfigError, match=r"holds this experiment with 1 of 2 trials finished; .* by --resume"):
        run_experiment(sandbox.config)
    script.act = lambda out, mark: pytest.fail("NNI was started for a grid that is known")
    rows = run_experiment(sandbox.config, resume=True)
    assert [(row["rule"], row["restarts"]) for row in rows] == [("gradient", 0), ("reinforce", 0)]
    assert (sandbox.out / "aaaaa" / RESULT).stat() == before
    assert summary(sandbox) == [("gradient", 0), ("reinforce", 0)]
    # Nothing is left, so the same again is the same rows, and the next experiment may start anew.
    assert run_experiment(sandbox.config, resume=True) == rows
    script.act, script.ends = act, None
    script.statuses.clear()
    run_experiment(sandbox.config)


def test_resume_runs_unfinished_trials_with_their_own_parameters(
    script: Script, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_finished(script, "RUNNING")
    script.ends = ExperimentError("NNI's server has ended")
    with pytest.raises(ExperimentError):
        run_experiment(sandbox.config)
    todo: list[Trial] = []
    monkeypatch.setattr(nni_engine, "run_trials", lambda sweep, trials, **_: todo.extend(trials))
    with pytest.raises(ExperimentError, match="1 of 2 trials have no result: bbbbb"):
        run_experiment(sandbox.config, resume=True)
    assert todo == [Trial("bbbbb", POINTS[1], number=1, restarts=1)]


def test_what_an_assessor_ended_is_not_gone_on_with(
    script: Script, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_finished(script, "EARLY_STOPPED")
    assert len(run_experiment(sandbox.config)) == 1
    record = read_record(sandbox.out)
    assert record is not None
    assert (record.stopped_early, record.complete) == (["bbbbb"], True)
    todo: list[Trial] = []
    monkeypatch.setattr(nni_engine, "run_trials", lambda sweep, trials, **_: todo.extend(trials))
    run_experiment(sandbox.config, resume=True)
    assert todo == []


def test_resume_refuses_another_experiment(script: Script, sandbox: Sandbox) -> None:
    with pytest.raises(ConfigError, match=r"runs holds no experiment to go on with; leave --resume out"):
        run_experiment(sandbox.config, resume=True)
    one_finished(script, "RUNNING")
    script.ends = ExperimentError("NNI's server has ended")
    with pytest.raises(ExperimentError):
        run_experiment(sandbox.config)
    space = yaml.safe_load(sandbox.config.read_text())["searchSpace"]
    space["rule"]["_value"].reverse()
    sandbox.write(searchSpace=space, trialConcurrency=2)
    with pytest.raises(ConfigError, match=r"other settings \(searchSpace: rule\), which --resume cannot go on with"):
        run_experiment(sandbox.config, resume=True)
    sandbox.write()
    (sandbox.folder / "search.yml").write_text("{target: 0.3, seed: 3, out: runs}")
    with pytest.raises(ConfigError, match=r"other settings \(search.yml: seed\)"):
        run_experiment(sandbox.config, resume=True)
    (sandbox.out / EXPERIMENT_FILE).write_text("{")
    with pytest.raises(ConfigError, match=r"cannot read .*experiment.json \(it is no valid JSON"):
        run_experiment(sandbox.config, resume=True)


@pytest.mark.parametrize("resume", [False, True])
def test_an_experiment_that_runs_is_left_alone(script: Script, sandbox: Sandbox, resume: bool) -> None:
    one_finished(script, "SUCCEEDED", result="")
    run_experiment(sandbox.config)
    record = json.loads((sandbox.out / EXPERIMENT_FILE).read_text())
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as other:
        record["launcher"] |= {"pid": other.pid, "started": psutil.Process(other.pid).create_time()}
        (sandbox.out / EXPERIMENT_FILE).write_text(json.dumps(record))
        with pytest.raises(ConfigError, match=f"process {other.pid} works on the experiment in .*runs; wait"):
            run_experiment(sandbox.config, resume=resume)
        other.kill()
    assert summary(sandbox) == [("gradient", 0), ("reinforce", 0)]


def test_resume_stops_what_a_killed_launcher_left_behind(script: Script, sandbox: Sandbox) -> None:
    one_finished(script, "SUCCEEDED", result="")
    run_experiment(sandbox.config)
    mark = json.loads((sandbox.out / EXPERIMENT_FILE).read_text())["id"]
    environment = {**os.environ, "PROXYLESS_EXPERIMENT": mark}
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment) as left:
        run_experiment(sandbox.config, resume=True)
        assert left.wait(timeout=10) == -signal.SIGTERM


def test_a_tuner_that_draws_is_asked_for_the_rest(
    script: Script, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = {"rule": SPACE_OF_RULES, "target": {"_type": "uniform", "_value": [0.2, 0.4]}}
    sandbox.write(searchSpace=space, tuner={"name": "TPE"}, maxTrialNumber=2)
    script.act = lambda out, mark: script.trial(out, mark, "aaaaa", "SUCCEEDED")
    script.ends = ExperimentError("NNI's server has ended")
    with pytest.raises(ExperimentError):
        run_experiment(sandbox.config)
    script.ends, script.act = None, lambda out, mark: script.trial(out, mark, "bbbbb", "SUCCEEDED")
    assert len(run_experiment(sandbox.config, resume=True)) == 2
    assert [sweep.config["maxTrialNumber"] for sweep in script.sweeps] == [2, 1]
    assert script.sweeps[1].narrowed["trialCodeDirectory"] == str(sandbox.folder)


def test_a_grid_that_only_nni_knows_is_not_begun_again(script: Script, sandbox: Sandbox) -> None:
    space = {"rule": SPACE_OF_RULES, "target": {"_type": "quniform", "_value": [0.2, 0.4, 0.1]}}
    sandbox.write(searchSpace=space, maxTrialNumber=6)
    script.act = lambda out, mark: script.trial(out, mark, "aaaaa", "SUCCEEDED")
    script.ends = ExperimentError("NNI's server has ended")
    with pytest.raises(ExperimentError):
        run_experiment(sandbox.config)
    with pytest.raises(ExperimentError, match=r"5 trials of .* were never started, and NNI's GridSearch would begin"):
        run_experiment(sandbox.config, resume=True)


SPACE_OF_RULES = {"_type": "choice", "_value": ["gradient", "reinforce"]}


# ---- a manager that is killed or frozen ------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [True, False])
def test_a_manager_that_does_not_answer_ends_the_experiment(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, frozen: bool
) -> None:
    monkeypatch.setattr(nni_server, "PATIENCE_SECONDS", 0.5)
    monkeypatch.setattr(nni_server, "REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(nni_server, "POLL_SECONDS", 0.1)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        running = RunningExperiment(read_sweep(sandbox.config), port=deaf.getsockname()[1])
        environment = {**os.environ, "PROXYLESS_EXPERIMENT": running._mark}
        command = [sys.executable, "-c", "import time; time.sleep(60)" if frozen else ""]
        with subprocess.Popen(command, env=environment) as server:
            running._server = psutil.Process(server.pid)
            started = time.monotonic()
            with pytest.raises(ExperimentError, match="has not answered for" if frozen else "crashed, or was killed"):
                running.trials()
            assert time.monotonic() - started < 10
            server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_manager_leaves_a_summary_and_resume_completes_it(sandbox: Sandbox, number: int) -> None:
    process = sandbox.start(FAKE_ENDLESS_RULE="reinforce")
    _wait_for(sandbox.out / "endless", process)
    (manager,) = [other for other in sandbox.processes() if other.name() == "node"]
    manager.send_signal(number)
    output, error = process.communicate(timeout=90)
    assert process.returncode == 2, output + error
    assert "NNI's server on port" in error
    assert len(error.strip().splitlines()) == 1
    assert summary(sandbox) == [("gradient", 0)]
    assert sandbox.processes() == []
    (first,) = json.loads((sandbox.out / SUMMARY).read_text())
    _, output, error = sandbox.run("--resume")
    assert "timm cannot build" in error  # a fake search exports nothing
    rows = json.loads((sandbox.out / SUMMARY).read_text())
    assert rows[0] == first
    assert [(row["rule"], row["restarts"]) for row in rows] == [("gradient", 0), ("reinforce", 1)]


@pytest.mark.slow
def test_a_killed_launcher_is_gone_on_with(sandbox: Sandbox) -> None:
    process = sandbox.start(FAKE_ENDLESS_RULE="reinforce")
    _wait_for(sandbox.out / "endless", process)
    process.kill()
    process.communicate()
    sandbox.run("--resume")
    assert summary(sandbox) == [("gradient", 0), ("reinforce", 1)]


# ---- a connection that breaks ----------------------------------------------------------------------------------


class Breaker:
    """A proxy that resets every tenth connection: in turn before it is passed on, and after it was answered."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.broken = 0
        self.server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        for number in itertools.count(1):
            client, _ = self.server.accept()
            threading.Thread(target=self._pass, args=(client, number), daemon=True).start()

    def _pass(self, client: socket.socket, number: int) -> None:
        breaks = number % 10 == 0
        self.broken += breaks
        try:
            with client, socket.create_connection(("127.0.0.1", self.port)) as manager:
                client.settimeout(60)
                manager.settimeout(60)
                if breaks and number % 20:
                    return self._reset(client)
                head = self._read_message(client)
                manager.sendall(head)
                answer = self._read_message(manager)
                if breaks:
                    return self._reset(client)
                client.sendall(answer)
        except OSError:
            pass

    @staticmethod
    def _reset(client: socket.socket) -> None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    @staticmethod
    def _read_message(side: socket.socket) -> bytes:
        text = b""
        while b"\r\n\r\n" not in text:
            text += Breaker._some(side)
        head, _, body = text.partition(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
        while lengths and len(body) < int(lengths[0]):
            body += Breaker._some(side)
        return head + b"\r\n\r\n" + body

    @staticmethod
    def _some(side: socket.socket) -> bytes:
        data = side.recv(65536)
        if not data:
            raise ConnectionError("closed within a message")
        return data


@pytest.fixture
def breaker() -> Iterator[Breaker]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    breaker = Breaker(port)
    yield breaker
    breaker.server.close()


def through(breaker: Breaker) -> dict[str, str]:
    return {"FAKE_MANAGER": f"{breaker.port},{breaker.server.getsockname()[1]}"}


@pytest.mark.slow
def test_resets_between_trials_and_manager_cost_no_row_and_no_report(sandbox: Sandbox, breaker: Breaker) -> None:
    targets = [0.1, 0.2, 0.3, 0.4]
    sandbox.write(
        searchSpace={"rule": SPACE_OF_RULES, "target": {"_type": "choice", "_value": targets}}, maxTrialNumber=8
    )
    _, output, error = sandbox.run("--port", str(breaker.port), "--retries", "0", **through(breaker))
    assert breaker.broken >= 3, "too few connections to say anything"
    assert summary(sandbox) == [("gradient", 0)] * 4 + [("reinforce", 0)] * 4, output + error
    reports = [(metric["trialJobId"], metric["type"], metric["sequence"]) for metric in sandbox.metrics()]
    assert len(reports) == len(set(reports)) == 8 * 4


@pytest.mark.slow
@pytest.mark.timeout(3600)  # four whole searches, on a machine that may be busy
def test_the_quickstart_survives_a_reset_in_every_tenth_connection(tmp_path: Path, breaker: Breaker) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(FAKE_SEARCH), **through(breaker)}
    environment.pop("FAKE_SEARCH", None)
    command = [sys.executable, "-m", "proxyless_strategy.cli", "experiment", str(ROOT / "examples" / "quickstart.yml")]
    subprocess.run(
        [*command, "--out", str(tmp_path / "runs"), "--port", str(breaker.port), "--retries", "0"],
        env=environment,
        check=True,
    )
    assert breaker.broken >= 10
    assert len(json.loads((tmp_path / "runs" / SUMMARY).read_text())) == 4
