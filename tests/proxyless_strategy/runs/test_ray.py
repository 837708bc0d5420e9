"""`proxyless experiment --engine ray` end to end on Ray itself: on this machine, and on a cluster of two nodes."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from proxyless_strategy.layout import FAILURE_FILE, SUMMARY
from proxyless_strategy.runs.leash import LEASH_VARIABLE

from .test_experiment import Sandbox, _wait_for, export  # noqa: F401  # a fixture

ROOT = Path(__file__).parents[3]
SETTINGS = yaml.safe_load((ROOT / "tests" / "data" / "run_bc6f2f8" / "gradient.yml").read_text())
LISTENING = psutil.CONN_LISTEN
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # Ray takes its time to start where the machine is busy
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed"),
]


class RaySandbox(Sandbox):
    """A sandbox whose experiments run on Ray."""

    def __init__(self, folder: Path, model: Path) -> None:
        super().__init__(folder, model)
        # A token of Ray's lies in HOME, and a cluster of the user's is not to be joined.
        for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "OMP_NUM_THREADS"):
            self.environment.pop(name, None)
        self.environment["OPENBLAS_NUM_THREADS"] = "1"

    def start(self, *options: str, **environment: str) -> subprocess.Popen[str]:
        return super().start("--engine", "ray", *options, **environment)

    def run(self, *options: str, **environment: str) -> tuple[int, str, str]:
        process = self.start(*options, **environment)
        output, error = process.communicate(timeout=900)
        return process.returncode, output, error

    def rows(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads((self.out / SUMMARY).read_text())
        return rows


@pytest.fixture
def sandbox(tmp_path: Path, export: Path) -> Iterator[RaySandbox]:  # noqa: F811
    sandbox = RaySandbox(tmp_path, export)
    yield sandbox
    for process in sandbox.processes():
        process.kill()


def addresses(sandbox: Sandbox) -> set[str]:
    """Where the experiment's processes listen."""
    found = set()
    for process in sandbox.processes():
        try:
            connections = getattr(process, "net_connections", process.connections)()
        except psutil.Error:
            continue
        found |= {each.laddr.ip.removeprefix("::ffff:") for each in connections if each.status == LISTENING}
    return found


def told_to_ray(sandbox: RaySandbox, trial: str) -> list[dict[str, Any]]:
    """What Ray Tune has kept of a trial's reports."""
    (path,) = sandbox.out.glob(f"ray/*/{trial}/result.json")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_sweep_on_ray_ends_as_one_on_nni(sandbox: RaySandbox) -> None:
    sandbox.write(trialConcurrency=2)
    process = sandbox.start()
    heard: set[str] = set()
    while process.poll() is None:
        heard |= addresses(sandbox)
        time.sleep(1)
    output, error = process.communicate()
    assert (process.returncode, error) == (0, ""), output
    assert heard == {"127.0.0.1"}
    assert sandbox.processes() == []
    assert "Ray 2." in output
    assert "1 node: each trial gets" in output
    assert "timm built back all 2 exported models" in output
    rows = sandbox.rows()
    assert [(row["rule"], row["accuracy"], row["restarts"]) for row in rows] == [
        ("gradient", 0.3, 0),
        ("reinforce", 0.31, 0),
    ]
    for row in rows:
        folder = sandbox.out / row["trial"]
        assert row == json.loads((folder / "result.json").read_text())
        *epochs, final = told_to_ray(sandbox, row["trial"])
        assert [(each["epoch"], each["default"]) for each in epochs] == [
            (number, row["accuracy"] * number / 2) for number in range(3)
        ]
        assert (final["default"], final["latency_ms"]) == (row["accuracy"], row["latency_ms"])
        seen = json.loads((folder / "seen.json").read_text())
        assert seen["cwd"] == str(sandbox.folder)
        # Nothing of Ray's own reaches a trial, and as many threads as the experiment was started with.
        names = {name for name in seen["environment"] if not name.startswith("PROXYLESS_")}
        assert names == {"NNI_TRIAL_JOB_ID"}
    assert not list(sandbox.home.glob("ray_results")), "all of it is in the experiment's folder"


def test_what_fails_is_started_again_and_what_refuses_is_not(sandbox: RaySandbox) -> None:
    status, output, error = sandbox.run("--retries", "1", FAKE_FAILING_RULE="reinforce")
    assert status == 2, output + error
    assert error.startswith("1 of 2 trials have no result: ")
    assert "(RuntimeError: the fake search failed as it was told to; starts: 2; see " in error
    assert len(error.strip().splitlines()) == 1
    assert output.count("the fake search failed as it was told to") == 3  # two starts, and the list at the end
    assert [row["rule"] for row in sandbox.rows()] == ["gradient"]
    assert sandbox.processes() == []
    # What is known needs no tuner.
    status, output, error = sandbox.run("--resume")
    assert (status, error) == (0, ""), output
    assert [(row["rule"], row["restarts"]) for row in sandbox.rows()] == [("gradient", 0), ("reinforce", 2)]


def test_a_trial_that_refuses_its_settings_is_started_once(sandbox: RaySandbox) -> None:
    space = {"rule": {"_type": "choice", "_value": ["gradient", "reinforce"]}}
    space |= {"target": {"_type": "uniform", "_value": [0.2, 0.4]}}  # no grid, so that the trial itself looks
    sandbox.write(searchSpace=space, tuner={"name": "Random", "classArgs": {"seed": 1}}, maxTrialNumber=3)
    (sandbox.folder / "search.yml").write_text("{target: 0.3, rule: reinforce, out: runs}")
    status, output, error = sandbox.run(FAKE_REFUSED_RULE="gradient")
    assert status == 2, output + error
    assert "is refused; choose another; starts: 1; see " in error
    rows = sandbox.rows()
    assert {row["rule"] for row in rows} == {"reinforce"}
    failed = [json.loads(path.read_text()) for path in sandbox.out.glob(f"*/{FAILURE_FILE}")]
    assert len(rows) + len(failed) == 3
    assert {each["error"] for each in failed} == {"TargetError"}


@pytest.mark.parametrize(
    ("number", "status", "message"),
    [(signal.SIGINT, 130, "interrupted: stopping Ray and its trials\n"), (signal.SIGTERM, 143, "SIGTERM: stopping\n")],
)
def test_an_interrupted_experiment_leaves_no_process(
    sandbox: RaySandbox, number: int, status: int, message: str
) -> None:
    process = sandbox.start(FAKE_ENDLESS_RULE="reinforce")
    _wait_for(sandbox.out / "endless", process)
    process.send_signal(number)
    output, error = process.communicate(timeout=300)
    assert (process.returncode, error) == (status, message), output
    assert sandbox.processes() == []
    assert [row["rule"] for row in sandbox.rows()] == ["gradient"]
    assert "1 of 2 trials have finished" in output
    (log,) = [path.read_text() for path in sandbox.out.glob("*/trial.log") if "SIGTERM" in path.read_text()]
    assert "SIGTERM: stopped; repeat the command to continue" in log, "a trial is asked before it is killed"


def test_a_killed_experiment_takes_ray_and_its_trials_along(sandbox: RaySandbox) -> None:
    process = sandbox.start(FAKE_ENDLESS_RULE="reinforce")
    _wait_for(sandbox.out / "endless", process)
    # What the fake trial has detached has no leash, as it is no trial.
    detached = {other for other in sandbox.processes() if "time.sleep" in " ".join(other.cmdline())}
    process.kill()
    process.communicate()
    _until(lambda: not set(sandbox.processes()) - detached)


@pytest.fixture
def cluster(sandbox: RaySandbox) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    command = [sys.executable, str(Path(__file__).with_name("ray_cluster.py"))]
    # A trial has the environment of its node.
    fake = {"FAKE_ENDLESS": "1", "FAKE_ENDLESS_STARTS": "1"}
    environment = {**sandbox.environment, **fake, "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, json.loads(next(line for line in process.stdout if line.startswith("{")))
        process.kill()


def trials_of(sandbox: RaySandbox) -> dict[int, psutil.Process]:
    """The trials that run, by the process of their node."""
    found = {}
    for process in sandbox.processes():
        try:
            leash = process.environ().get(LEASH_VARIABLE)
            # the shell is its parent, and what the fake search detaches has another program
            if leash and "proxyless_strategy.trial" in process.cmdline():
                found[psutil.Process(int(leash.split()[0])).ppid()] = process
        except psutil.Error:
            continue
    return found


def _until(holds: Callable[[], Any], *, seconds: float = 600) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def test_a_killed_trial_and_a_lost_node_cost_a_start_each(
    sandbox: RaySandbox, cluster: tuple[subprocess.Popen[str], dict[str, Any]]
) -> None:
    nodes, there = cluster
    head, second = there["raylets"]
    sandbox.write(trialConcurrency=3, trialGpuNumber=1)  # the GPUs allow two
    process = sandbox.start("--address", there["address"])
    _until(lambda: process.poll() is not None or trials_of(sandbox).keys() == {head, second})
    _until(lambda: process.poll() is not None or len(list(sandbox.out.glob("*/starts"))) == 2)
    assert process.poll() is None, process.communicate()
    trials = trials_of(sandbox)
    assert [trial.environ()["CUDA_VISIBLE_DEVICES"] for trial in trials.values()] == ["0", "0"]
    trials[head].kill()
    # Wait until its second start has ended, so that the node is lost in the middle of the other trial alone.
    _until(lambda: process.poll() is not None or list(sandbox.out.glob("*/result.json")))
    assert nodes.stdin is not None
    nodes.stdin.write("\n")
    nodes.stdin.flush()
    output, error = process.communicate(timeout=900)
    assert (process.returncode, error) == (0, ""), output
    assert sorted((row["rule"], row["restarts"]) for row in sandbox.rows()) == [("gradient", 1), ("reinforce", 1)]
    assert "2 nodes: each trial gets 4 of 8 processors and 1 of 2 GPUs" in output
    assert output.count("started again, restart 1") == 2
    assert not trials[second].is_running(), "a trial does not outlive its node"


def test_a_search_that_is_killed_goes_on_from_its_checkpoint(sandbox: RaySandbox) -> None:
    sandbox.environment = {k: v for k, v in sandbox.environment.items() if not k.startswith("FAKE_")}
    search = {**SETTINGS["search"], "epochs": 12}
    settings = {**SETTINGS, "search": search, "hardware": {"cost": "macs"}, "out": "runs"}
    (sandbox.folder / "search.yml").write_text(yaml.safe_dump(settings))
    sandbox.write(searchSpace={"rule": {"_type": "choice", "_value": ["gradient"]}}, maxTrialNumber=1)
    process = sandbox.start(OMP_NUM_THREADS="1")
    _until(lambda: process.poll() is not None or list(sandbox.out.glob("*/search.ckpt")))
    assert process.poll() is None, process.communicate()
    (trial,) = trials_of(sandbox).values()
    trial.kill()
    output, error = process.communicate(timeout=900)
    assert process.returncode == 0, output + error
    (row,) = sandbox.rows()
    assert row["restarts"] == 1
    (log,) = [path.read_text() for path in sandbox.out.glob("*/trial.log")]
    assert "continuing" in log
    history = json.loads((sandbox.out / row["trial"] / "search.json").read_text())["history"]
    assert [each["epoch"] for each in history] == list(range(1, 14))  # one of warm-up, and twelve
    # Ray has the first start's epochs too, and no epoch of the search twice.
    told = [each["epoch"] for each in told_to_ray(sandbox, row["trial"]) if each.get("phase") in ("warmup", "search")]
    assert told == sorted(set(told))


def test_a_cluster_that_cannot_be_joined_is_named(sandbox: RaySandbox) -> None:
    status, output, error = sandbox.run("--address", "127.0.0.1:1")
    assert status == 2, output + error
    assert error.startswith("--address 127.0.0.1:1: this machine cannot join a Ray cluster there (")
    assert len(error.strip().splitlines()) == 1
    assert sandbox.processes() == []


def test_more_gpus_than_there_are_is_refused(sandbox: RaySandbox) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine may have as many")
    sandbox.write(trialGpuNumber=64)
    status, output, error = sandbox.run()
    assert status == 2, output + error
    assert "a trial takes 64 GPUs, but the nodes of the Ray cluster have 0; lower trialGpuNumber, or give" in error
    assert os.listdir(sandbox.out / "ray") == [] if (sandbox.out / "ray").exists() else True
