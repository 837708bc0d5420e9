"""`proxyless experiment` end to end on NNI itself, with a search that takes no time."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from rich.console import Console

from hardware.errors import ConfigError, ExperimentError
from proxyless_strategy.runs import nni_server
from proxyless_strategy.runs.experiment import build_back, run_experiment
from proxyless_strategy.runs.nni_engine import NniEngine
from proxyless_strategy.runs.nni_server import SERVER_SCRIPT
from proxyless_strategy.runs.rows import results_table
from proxyless_strategy.runs.sweep import read_sweep
from proxyless_strategy.world import unused_port
from tests.proxyless_strategy.test_signals import default_signals

FAKE_SEARCH = Path(__file__).parent / "fake_search"
SPACE = {
    "rule": {"_type": "choice", "_value": ["gradient", "reinforce"]},
    "target": {"_type": "choice", "_value": [0.3]},
}


class Sandbox:
    """A folder with its own HOME, an experiment of two trials, and a fake search."""

    def __init__(self, folder: Path, export: Path | None = None) -> None:
        self.folder = folder
        self.home = folder / "home"
        self.out = folder / "runs"
        self.home.mkdir()
        self.environment = {
            **os.environ,
            "HOME": str(self.home),
            "PYTHONPATH": os.pathsep.join([str(FAKE_SEARCH), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "FAKE_SEARCH": "1",
            **({"FAKE_EXPORT": str(export)} if export else {}),
        }
        (folder / "search.yml").write_text("{target: 0.3, out: runs}")
        self.config = folder / "experiment.yml"
        self.write()

    def write(self, **changes: Any) -> Path:
        command = f"{sys.executable} -m proxyless_strategy.trial search.yml"
        values = {
            "searchSpace": SPACE,
            "tuner": {"name": "GridSearch"},
            "trialConcurrency": 1,
            "maxTrialNumber": 2,
            "trialCommand": command,
            "trainingService": {"platform": "local"},
            **changes,
        }
        self.config.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        return self.config

    def start(self, *options: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "proxyless_strategy.cli", "experiment", str(self.config), *options],
            env={**self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=default_signals,
        )

    def run(self, *options: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*options, **environment)
        output, error = process.communicate(timeout=200)
        return process.returncode, output, error

    def processes(self) -> list[psutil.Process]:
        """Whatever runs with this HOME: found without the mark that the product itself looks for."""
        found = []
        for process in psutil.process_iter():
            try:
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get("HOME") == str(self.home):
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def metrics(self) -> list[dict[str, Any]]:
        """What NNI stored: trial, parameters' id, type, number and value of every report."""
        (database,) = {path.resolve() for path in self.home.glob("nni-experiments/*/db/nni.sqlite")}
        with sqlite3.connect(database) as connection:
            connection.row_factory = sqlite3.Row
            rows = [dict(row) for row in connection.execute("select * from MetricData order by timestamp, sequence")]
        return [{**row, "data": json.loads(json.loads(row["data"]))} for row in rows]


@pytest.fixture
def sandbox(tmp_path: Path) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path)
    yield sandbox
    for process in sandbox.processes():
        process.kill()


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    timm = pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("export")
    timm.models.save_for_hf(timm.create_model("test_vit", num_classes=10), folder, safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, export: Path) -> tuple[Sandbox, tuple[int, str, str]]:
    """An experiment whose server takes longer to start than NNI waits, as beside other work."""
    sandbox = Sandbox(tmp_path_factory.mktemp("finished"), export)
    late = sandbox.folder / "late.js"
    late.write_text(
        "if (/main\\.js/.test(process.argv[1])) Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, 7000)"
    )
    return sandbox, sandbox.run(NODE_OPTIONS=f"--require={late}")


def test_a_good_experiment_ends_with_zero_and_one_row_a_trial(finished: Any, export: Path) -> None:
    sandbox, (status, output, error) = finished
    assert status == 0, output + error
    rows = json.loads((sandbox.out / "summary.json").read_text())
    assert [(row["rule"], row["accuracy"]) for row in rows] == [("gradient", 0.3), ("reinforce", 0.31)]
    for row in rows:
        assert row == json.loads((sandbox.out / row["trial"] / "result.json").read_text())
        assert row["folder"] == str(export)
    assert output.count("prepared onnxruntime") == 1
    assert "measured ms" in output
    assert "timm built back all 2 exported models" in output


def test_a_good_experiment_leaves_no_process(finished: Any) -> None:
    sandbox, _ = finished
    assert sandbox.processes() == []


def test_metrics_arrive_under_the_trial_that_reported_them(finished: Any) -> None:
    sandbox, _ = finished
    rows = json.loads((sandbox.out / "summary.json").read_text())
    metrics = sandbox.metrics()
    assert {metric["trialJobId"] for metric in metrics} == {row["trial"] for row in rows}
    for number, row in enumerate(rows):
        mine = [metric for metric in metrics if metric["trialJobId"] == row["trial"]]
        assert {metric["parameterId"] for metric in mine} == {str(number)}
        steps = [metric for metric in mine if metric["type"] == "PERIODICAL"]
        assert [step["sequence"] for step in steps] == [0, 1, 2]
        assert [step["data"]["default"] for step in steps] == [0.0, row["accuracy"] / 2, row["accuracy"]]
        (final,) = [metric["data"] for metric in mine if metric["type"] == "FINAL"]
        assert final == {
            "default": row["accuracy"],
            "latency_ms": row["latency_ms"],
            "table_ms": row["table_ms"],
            "target_ms": row["target_ms"],
        }


def test_a_failing_trial_fails_the_experiment(tmp_path: Path, export: Path) -> None:
    sandbox = Sandbox(tmp_path, export)
    status, output, error = sandbox.run("--retries", "1", FAKE_FAILING_RULE="reinforce")
    assert status == 2, output + error
    assert "RuntimeError: the fake search failed as it was told to" in output
    assert error.startswith("1 of 2 trials have no result: ")
    assert "(RuntimeError: the fake search failed as it was told to; starts: 2; see " in error
    assert "1 of 2 trials have finished" in output
    (starts,) = [path.read_text() for path in sandbox.out.glob("*/starts") if not (path.parent / "seen.json").exists()]
    assert len(starts.splitlines()) == 2
    assert len(error.strip().splitlines()) == 1
    rows = json.loads((sandbox.out / "summary.json").read_text())
    assert [row["rule"] for row in rows] == ["gradient"]
    assert sandbox.processes() == []


ANSWERS = """
import http.server, sys
class Answers(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"status": "INITIALIZED", "errors": []}')
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answers).serve_forever()
"""
WAITS = """
import subprocess, sys
from proxyless_strategy.runs.patient_nnictl import wait_for_server
port, body = sys.argv[1:]
child = subprocess.Popen([sys.executable, "-c", body, port])
try:
    wait_for_server(int(port))
    print("ours")
except OSError as error:
    print(error)
child.kill()
"""


@pytest.mark.parametrize("own", [True, False])
def test_only_its_own_server_is_sent_an_experiment(own: bool) -> None:
    """Of two that start at once on a port, one server ends, and the other one answers to both launchers."""
    port = unused_port()
    stranger = subprocess.Popen([sys.executable, "-c", "input()" if own else ANSWERS, str(port)], stdin=subprocess.PIPE)
    try:
        body = ANSWERS if own else "import time; time.sleep(3)"
        done = subprocess.run(
            [sys.executable, "-c", WAITS, str(port), body], capture_output=True, text=True, check=True, timeout=100
        )
    finally:
        stranger.kill()
    assert done.stdout.strip() == (
        "ours" if own else f"what answers on port {port} is another server; give another port"
    )


@pytest.mark.slow
def test_two_that_start_at_once_run_their_own_trials(tmp_path: Path, export: Path) -> None:
    sandboxes = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        sandboxes.append(Sandbox(tmp_path / name, export))
    processes = [sandbox.start() for sandbox in sandboxes]
    for sandbox, process in zip(sandboxes, processes, strict=True):
        output, error = process.communicate(timeout=200)
        assert (process.returncode, error) == (0, ""), output
        rows = json.loads((sandbox.out / "summary.json").read_text())
        assert sorted(row["rule"] for row in rows) == ["gradient", "reinforce"]
        assert {row["trial"] for row in rows} == {path.name for path in sandbox.out.glob("*/")}
        assert sandbox.processes() == []


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [
        pytest.param(signal.SIGINT, 130, "interrupted: stopping NNI and its trials\n", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, 143, "SIGTERM: stopping\n", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_experiment_leaves_no_process(sandbox: Sandbox, number: int, status: int, message: str) -> None:
    process = sandbox.start(FAKE_ENDLESS="1")
    _wait_for(sandbox.out / "endless", process)
    running = sandbox.processes()
    assert len(running) >= 4, "the command, NNI's server, its tuner, the trial and the trial's own child"
    listening = {
        connection.laddr.ip
        for process_ in running
        for connection in getattr(process_, "net_connections", process_.connections)()
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {"127.0.0.1"}
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (status, message)
    assert sandbox.processes() == []


@pytest.mark.slow
def test_a_killed_experiment_takes_the_server_and_its_trial_along(sandbox: Sandbox) -> None:
    process = sandbox.start(FAKE_ENDLESS="1")
    _wait_for(sandbox.out / "endless", process)
    own_children = {process_ for process_ in sandbox.processes() if "time.sleep" in " ".join(process_.cmdline())}
    assert len(own_children) == 1, "what a trial detaches, NNI does not stop"
    process.kill()
    process.communicate()
    while set(sandbox.processes()) - own_children:
        time.sleep(0.5)


@pytest.mark.slow
def test_a_tuner_that_crashes_fails_the_experiment(sandbox: Sandbox) -> None:
    (sandbox.folder / "broken.py").write_text(
        "from nni.tuner import Tuner\n"
        "class Broken(Tuner):\n"
        "    def update_search_space(self, space): pass\n"
        "    def generate_parameters(self, *_, **__): raise ValueError('broken on purpose')\n"
    )
    sandbox.write(tuner={"codeDirectory": str(sandbox.folder), "className": "broken.Broken"})
    status, output, error = sandbox.run()
    assert status == 2, output + error
    assert f"the tuner of {sandbox.config} failed: broken on purpose; mend `tuner`" in error
    assert len(error.strip().splitlines()) == 1
    assert sandbox.processes() == []


@pytest.mark.slow
def test_plain_nnictl_runs_the_same_trials(sandbox: Sandbox) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nnictl = [sys.executable, "-m", "nni.tools.nnictl.nnictl", "create", "--foreground"]
    subprocess.run(
        [*nnictl, "--config", str(sandbox.config), "--port", str(port)],
        env=sandbox.environment,
        check=True,
        timeout=120,
        capture_output=True,
    )
    assert len(list(sandbox.out.glob("*/result.json"))) == 2
    assert sandbox.processes() == []


def test_what_nni_refuses_is_told_in_one_sentence(sandbox: Sandbox) -> None:
    sandbox.write(trialConcurency=1)
    status, _, error = sandbox.run()
    assert status == 2
    assert len(error.strip().splitlines()) == 1
    assert "trialconcurency" in error
    assert "nnictl.log" in error
    assert sandbox.processes() == []


def test_settings_of_every_trial_are_checked_before_nni_starts(sandbox: Sandbox) -> None:
    (sandbox.out).mkdir()
    (sandbox.out / "summary.json").write_text("an earlier experiment's")
    status, _, error = sandbox.run(FAKE_REFUSED_RULE="reinforce")
    assert (status, error) == (2, "target 0.3 is refused; choose another\n")
    assert list(sandbox.out.iterdir()) == []


def test_a_port_that_somebody_takes_meanwhile_is_given_up_for_another(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        monkeypatch.setattr(nni_server, "free_port", lambda: taken)
        for name, value in sandbox.environment.items():
            monkeypatch.setenv(name, value)
        sandbox.out.mkdir()
        with nni_server.RunningExperiment(read_sweep(sandbox.config)) as running:
            assert running.port != taken
            assert running.id
        assert not sandbox.processes()
        with pytest.raises(ExperimentError, match=f"{taken}"):
            nni_server.RunningExperiment(read_sweep(sandbox.config), port=taken).__enter__()


def test_the_server_of_another_experiment_is_not_taken_for_ones_own(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in sandbox.environment.items():
        monkeypatch.setenv(name, value)
    sandbox.out.mkdir()
    with nni_server.RunningExperiment(read_sweep(sandbox.config)) as first:
        second = nni_server.RunningExperiment(read_sweep(sandbox.config), port=first.port)
        # As if its own server had come second to the port: nnictl sees the first one's answer and is content.
        monkeypatch.setattr(second, "_create", lambda: None)
        with pytest.raises(ExperimentError, match=f"another experiment's server answers on port {first.port}"):
            second.__enter__()
        assert first.processes()


def test_an_occupied_port_is_refused(sandbox: Sandbox) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is in use; free it, or choose another with --port"):
            run_experiment(sandbox.config, engine=NniEngine(port))
    assert not sandbox.out.exists()


def test_a_folder_that_cannot_be_written_is_refused(sandbox: Sandbox) -> None:
    blocked = sandbox.folder / "file"
    blocked.touch()
    with pytest.raises(ConfigError, match=r"cannot write to .*file.runs: .* --out"):
        run_experiment(sandbox.config, out=blocked / "runs")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainingService": {"platform": "openpai"}}, "trainingService.platform is 'openpai'"),
        ({"trainingService": None}, "trainingService.platform is None"),
        ({"trainingService": [{"platform": "local"}]}, r"trainingService.platform is \[{'platform': 'local'}\]"),
        ({"trialCommand": "python train.py"}, "trialCommand is 'python train.py'; it must run"),
        ({"trialCommand": "python -m proxyless_strategy.trial"}, "trialCommand is"),
        ({"trialCommand": "python -m 'proxyless_strategy.trial"}, "trialCommand is"),
        ({"trialCommand": "python -m proxyless_strategy.trial none.yml"}, "cannot read the search config .*none.yml"),
        ({"searchSpace": None}, "searchSpace is None"),
        ({"searchSpace": None, "searchSpaceFile": "none.json"}, "cannot read .*none.json"),
        ({"searchSpace": {"out": {"_type": "choice", "_value": ["a"]}}}, "searchSpace sweeps `out`"),
        (
            {"searchSpace": {"search.nodes": {"_type": "choice", "_value": [1, 2]}}},
            "experiment.yml: search.nodes = 2, but a trial of an experiment has one host; remove it",
        ),
        (
            {"searchSpace": {"search.nodes": {"_type": "randint", "_value": [1, 3]}}},
            "experiment.yml: searchSpace sweeps search.nodes, but a trial of an experiment has one host",
        ),
        ({"searchSpace": {"rul": {"_type": "choice", "_value": ["a"]}}}, "unknown key 'rul'"),
    ],
)
def test_an_impossible_experiment_is_refused_by_name(sandbox: Sandbox, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_sweep(sandbox.write(**changes))


def test_a_trial_on_several_hosts_is_refused_before_anything_starts(sandbox: Sandbox) -> None:
    (sandbox.folder / "search.yml").write_text("{target: 0.3, out: runs, search: {nodes: 2}}")
    with pytest.raises(ConfigError, match=r"search.nodes = 2, but a trial of an experiment has one host; remove it"):
        run_experiment(sandbox.config)
    assert not sandbox.out.exists()


@pytest.mark.parametrize(
    ("text", "message"), [("[1]", "must hold a mapping"), ("a: [", "no valid YAML"), (None, "cannot read")]
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "experiment.yml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_sweep(path)


def test_a_grid_names_every_trial_beforehand(sandbox: Sandbox) -> None:
    sweep = read_sweep(sandbox.config)
    assert sweep.trials == ({"rule": "gradient", "target": 0.3}, {"rule": "reinforce", "target": 0.3})
    assert [config.rule for config in sweep.configs()] == ["gradient", "reinforce"]
    assert sweep.out == sandbox.out
    assert read_sweep(sandbox.config, out=sandbox.folder / "other").out == sandbox.folder / "other"


@pytest.mark.parametrize(
    "entry",
    [
        {"_type": "uniform", "_value": [0.1, 0.9]},
        {"_type": "choice", "_value": [{"_name": "nested"}]},
        {"_type": "choice", "_value": list(range(65))},
    ],
)
def test_other_search_spaces_leave_the_check_to_the_trials(sandbox: Sandbox, entry: dict[str, Any]) -> None:
    sweep = read_sweep(sandbox.write(searchSpace={"seed": entry}))
    assert sweep.trials is None
    assert len(sweep.configs()) == 1


def test_the_quickstart_is_four_trials_in_the_checkout() -> None:
    root = Path(__file__).parents[3]
    sweep = read_sweep(root / "examples" / "quickstart.yml")
    assert sweep.trials is not None
    assert {(trial["rule"], trial["target"]) for trial in sweep.trials} == {
        ("gradient", 0.3),
        ("gradient", 0.6),
        ("reinforce", 0.3),
        ("reinforce", 0.6),
    }
    assert sweep.out == root / "runs" / "quickstart"
    assert [config.space.name for config in sweep.configs()] == ["small_mbconv"] * 4


@pytest.mark.parametrize(
    "listen",
    ["listen(0)", "listen('0')", "listen(0, '0.0.0.0')", "listen({port: 0, host: '::'})", "listen(0, () => {})"],
)
def test_the_web_server_can_only_listen_on_loopback(tmp_path: Path, listen: str) -> None:
    import nni_node

    script = shutil.copy(SERVER_SCRIPT, tmp_path / "with space.js")
    program = (
        f"const s = require('http').createServer(); s.{listen};"
        "s.on('listening', () => { console.log(s.address().address); s.close(); });"
    )
    output = subprocess.check_output(
        [str(Path(nni_node.__path__[0]) / "node"), "-e", program],
        env={**os.environ, "NODE_OPTIONS": f'--require="{script}"'},
        text=True,
    )
    assert output.strip() == "127.0.0.1"


def test_a_folder_without_a_model_does_not_build_back(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=f"timm cannot build an exported model back: {tmp_path}: "):
        build_back([tmp_path])


def test_a_model_with_a_broken_weight_does_not_build_back(tmp_path: Path, export: Path) -> None:
    import timm
    import torch

    model = timm.create_model("test_vit", num_classes=10)
    with torch.no_grad():
        next(iter(model.parameters())).fill_(float("nan"))
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    with pytest.raises(ExperimentError, match=f"{tmp_path}: AssertionError: its output is not finite"):
        build_back([export, tmp_path])


def _wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    while not path.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)


def test_the_summary_names_the_unit_of_another_cost() -> None:
    row: dict[str, Any] = {"rule": "gradient", "accuracy": 0.9, "params": 10, "macs": 20, "folder": "m"}
    row |= {"cost": "latency", "unit": "ms", "target_cost": 4.0, "subnet_cost": 3.9}
    row |= {"target_ms": 4.0, "table_ms": 3.9, "latency_ms": 3.8}
    macs = {**row, "cost": "macs", "unit": "M MACs", "target_cost": 2.0, "target_ms": None, "table_ms": None}
    for rows, words in (([row], ()), ([row, macs], ("M MACs", "2", "subnet"))):
        console = Console(file=io.StringIO(), width=200, record=True)
        console.print(results_table(rows))
        page = console.export_text()
        assert all(word in page for word in ("target ms", "3.9", *words))
        assert ("subnet" in page) == bool(words)
