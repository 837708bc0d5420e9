"""A sweep on two hosts that have nothing in common but a cable: namespaces with an sshd each, and real searches."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests import namespaces
from tests.ssh_hosts import ROOT, SshHosts, ssh_hosts, why_not

SEARCH = {
    "space": {
        "name": "small_mbconv",
        "options": {
            "stages": [{"width": 16, "depth": 2, "stride": 2}, {"width": 24, "depth": 1, "stride": 2}],
            "head_width": 64,
        },
    },
    "data": {"name": "digits", "augment": "none"},
    "input_size": 16,
    "hardware": "first",
    "platforms": {"first": {"cost": "macs", "device": "other"}, "second": {"cost": "params", "device": "other"}},
    "target": 0.5,
    "search": {"warmup_epochs": 1, "epochs": 2, "batch_size": 128, "steps_per_update": 2, "accelerator": "cpu"},
    "retrain": {"epochs": 1, "batch_size": 128},
    "out": "runs",
}
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
NOTICED_SECONDS = 60


class Remote:
    """A sweep of two trials in a folder of the first host, which starts it.

    Args:
        hosts: Both.
        folder: Where its files are.
    """

    def __init__(self, hosts: SshHosts, folder: Path) -> None:
        self.hosts, self.folder = hosts, folder
        self.out = folder / "runs"
        folder.mkdir()

    def write(self, *, epochs: int = 2, settings: tuple[dict[str, Any], ...] = ({}, {})) -> None:
        values = {**SEARCH, "search": {**SEARCH["search"], "epochs": epochs}}  # type: ignore[dict-item]
        (self.folder / "search.yml").write_text(yaml.safe_dump(values))
        machines = [
            {
                "host": address,
                "user": "root",
                "sshKeyFile": str(self.hosts.key),
                "pythonPath": str(Path(sys.executable).parent),
                "settings": settings[number],
            }
            for number, address in enumerate(namespaces.ADDRESSES)
        ]
        sweep = {
            "searchSpace": {"target": {"_type": "choice", "_value": [0.4, 0.6]}},
            "tuner": {"name": "GridSearch"},
            "maxTrialNumber": 2,
            "trialConcurrency": 2,
            "trialCommand": "python -m proxyless_strategy.trial search.yml",
            "nniManagerIp": namespaces.ADDRESSES[0],
            "trainingService": {"platform": "remote", "machineList": machines},
        }
        (self.folder / "sweep.yml").write_text(yaml.safe_dump(sweep))

    def start(self, *options: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "proxyless_strategy.cli", "experiment", str(self.folder / "sweep.yml")]
        return subprocess.Popen(
            self.hosts.inside(0, "OMP_NUM_THREADS=1", *command, *options),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((self.out / "summary.json").read_text())
        return found


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[SshHosts]:
    if reason := why_not():
        pytest.skip(reason)
    (tmp_path / "hosts").mkdir()
    with ssh_hosts(tmp_path / "hosts") as found:
        yield found


def until(holds: Callable[[], Any], process: subprocess.Popen[str], *, seconds: float = 400) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.2)


def listening(host: int) -> set[str]:
    """The addresses of a host on which something listens, with the port where it is not loopback."""
    told = subprocess.run(namespaces.inside(host, "ss", "-Hltn"), capture_output=True, text=True, check=True).stdout
    places = [line.split()[3] for line in told.splitlines()]
    return {"127.0.0.1" if place.startswith("127.0.0.1:") else place for place in places}


def notes(out: Path) -> str:
    return "".join(path.read_text() for path in out.glob("*/machines.log"))


def test_trials_of_both_hosts_come_home(hosts: SshHosts) -> None:
    """Each has another platform, and sees nothing of the other's files."""
    remote = Remote(hosts, hosts.own[0] / "sweep")
    remote.write(settings=({}, {"hardware": "second"}))
    process = remote.start()
    heard: list[set[str]] = [set(), set()]
    while process.poll() is None:
        for host in range(2):
            heard[host] |= listening(host)
        time.sleep(1)
    output, error = process.communicate()
    assert (process.returncode, error) == (0, ""), output
    first, second = namespaces.ADDRESSES
    assert heard == [{"127.0.0.1", f"{first}:22"}, {f"{second}:22"}]
    said = " ".join(output.split())  # the console breaks lines
    assert f"{first}: room for 1 trials at a time; its folder is this one's" in said
    assert f"{second}: room for 1 trials at a time; its folder {hosts.home(1)}/proxyless/" in said
    rows = remote.rows()
    assert sorted((row["machine"], row["hardware"], row["cost"]) for row in rows) == [
        (first, "first", "macs"),
        (second, "second", "params"),
    ]
    for row in rows:
        folder = remote.out / row["trial"]
        assert Path(row["folder"]) == folder / "model"
        assert row == json.loads((folder / "result.json").read_text())
        assert (folder / "model" / "config.json").is_file()
        assert json.loads((folder / "row.json").read_text())["folder"] == row["folder"]
        assert "retrain" in (folder / "trial.log").read_text()
        assert json.loads((folder / "parameters.json").read_text())["parameters"].keys() == {"target"}
    assert [list((hosts.home(host) / "proxyless").iterdir()) for host in range(2)] == [[], []]


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "apart"])
def test_a_trial_whose_host_is_cut_off_goes_on_on_the_other(hosts: SshHosts, shared: bool) -> None:
    remote = Remote(hosts, (hosts.shared if shared else hosts.own[0]) / "sweep")
    remote.write(epochs=40)
    process = remote.start()
    second = namespaces.ADDRESSES[1]
    # of both, where both can be seen from here: a folder of the other host alone cannot
    until(lambda: len(list(remote.out.glob("*/search.ckpt"))) == (2 if shared else 1), process)
    if not shared:
        until(lambda: f"{second}: begins" in notes(remote.out), process)
    cut = time.monotonic()
    namespaces.link("down")
    until(lambda: f"{second}: lost: " in notes(remote.out), process, seconds=NOTICED_SECONDS)
    assert time.monotonic() - cut < NOTICED_SECONDS
    until(lambda: not trials_on(hosts, 1), process, seconds=NOTICED_SECONDS)
    output, error = process.communicate(timeout=800)
    namespaces.link("up")
    assert (process.returncode, error) == (0, ""), output
    moved, stayed = sorted(remote.rows(), key=lambda row: -row["restarts"])
    assert (moved["restarts"], stayed["restarts"]) == (1, 0)
    assert "lost" not in stayed
    (loss,) = moved["lost"]
    beginning = "its last checkpoint" if shared else "the start"
    assert (loss["machine"], loss["then"], loss["from"]) == (second, namespaces.ADDRESSES[0], beginning)
    assert f"trial {moved['trial']}: {second} was lost ({loss['reason']}); it went on on " in " ".join(output.split())
    history = json.loads((remote.out / moved["trial"] / "search.json").read_text())["history"]
    assert [each["epoch"] for each in history] == list(range(1, 42))


def trials_on(hosts: SshHosts, host: int) -> list[psutil.Process]:
    """The trials that run on a host, found by its home."""
    found = []
    for process in psutil.process_iter():
        try:
            here = process.environ().get("HOME") == str(hosts.home(host))
            if here and "proxyless_strategy.trial" in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def test_an_unreachable_host_and_a_missing_folder_are_said_before_any_trial(hosts: SshHosts) -> None:
    remote = Remote(hosts, hosts.own[0] / "sweep")
    remote.write(settings=({}, {"data": {"name": "imagefolder", "root": "/no/such/images"}}))
    output, error = (process := remote.start()).communicate(timeout=400)
    assert process.returncode == 2, output + error
    assert len(error.strip().splitlines()) == 1
    assert error.startswith(f"{namespaces.ADDRESSES[1]}: ")
    assert "/no/such/images" in error
    namespaces.link("down")
    output, error = (process := remote.start()).communicate(timeout=400)
    namespaces.link("up")
    assert process.returncode == 2, output + error
    assert error.startswith(f"{namespaces.ADDRESSES[1]} cannot be reached by ssh: ")
    assert len(error.strip().splitlines()) == 1
    (hosts.home(0) / ".ssh" / "known_hosts").write_text("")
    output, error = (process := remote.start()).communicate(timeout=400)
    assert process.returncode == 2, output + error
    assert "cannot be reached by ssh: Host key verification failed; try `ssh " in error
    assert not list(remote.out.glob("*/parameters.json"))
