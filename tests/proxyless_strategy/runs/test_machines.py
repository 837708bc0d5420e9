"""Sweeps on machines by SSH: what is refused, and whole experiments by a program `ssh` that stays on this machine."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from hardware.errors import ConfigError
from proxyless_strategy.layout import FLEET_FILE
from proxyless_strategy.runs.fleet import _packed, clear_earlier, read_errand
from proxyless_strategy.runs.machines import Machine, environment
from proxyless_strategy.runs.sweep import read_sweep
from proxyless_strategy.runs.there import _forget

from .test_experiment import Sandbox, export  # noqa: F401  # a fixture

ROOT = Path(__file__).parents[3]
FAKE_SSH = f"""#!{sys.executable}
# the options of OpenSSH's client, and then what a login shell of the host would run, in a home of its own
import os, sys
words = sys.argv[1:]
host, command = words[words.index("--") + 1 :]
home = os.path.join(os.environ["FAKE_HOSTS"], host)
if not os.path.isdir(home):
    sys.exit(print(f"ssh: connect to host {{host}} port 22: No route to host", file=sys.stderr) or 255)
os.environ["HOME"] = home
os.environ["FAKE_HOST"] = host
os.chdir(home)
os.execv("/bin/sh", ["sh", "-c", command])
"""


class Hosts(Sandbox):
    """A sandbox with hosts that a program `ssh` pretends; each has its home, and all see every file."""

    def __init__(self, folder: Path, model: Path) -> None:
        super().__init__(folder, model)
        self.hosts = folder / "hosts"
        programs = folder / "programs"
        programs.mkdir()
        (programs / "ssh").write_text(FAKE_SSH)
        (programs / "ssh").chmod(0o755)
        self.environment |= {
            "FAKE_HOSTS": str(self.hosts),
            "PATH": os.pathsep.join([str(programs), os.environ["PATH"]]),
        }
        for name in ("alpha", "beta"):
            (self.hosts / name).mkdir(parents=True)
        (folder / "code").mkdir()
        (folder / "code" / "search.yml").write_text("{target: 0.3, hardware: {cost: macs}, out: ../runs}")
        self.on("alpha", "beta")

    def on(self, *names: str, machine: dict[str, Any] | None = None, **changes: Any) -> None:
        machines = [{"host": name, "pythonPath": str(Path(sys.executable).parent), **(machine or {})} for name in names]
        self.write(
            trainingService={"platform": "remote", "machineList": machines},
            trialCodeDirectory="code",
            **{"trialConcurrency": 2, "trialCommand": "python -m proxyless_strategy.trial search.yml", **changes},
        )

    def processes(self) -> list[psutil.Process]:
        homes = {str(self.home), *(str(self.hosts / name) for name in ("alpha", "beta"))}
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("HOME") in homes:
                    found.append(process)
        return found

    def rows(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads((self.out / "summary.json").read_text())
        return found


@pytest.fixture
def hosts(tmp_path: Path, export: Path) -> Iterator[Hosts]:  # noqa: F811
    sandbox = Hosts(tmp_path, export)
    yield sandbox
    for process in sandbox.processes():
        process.kill()


# ---- what is read --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"host": "-oProxyCommand=x"}, "it takes letters, digits"),
        ({"host": "a", "user": "-l"}, "it takes letters, digits"),
        ({"host": "a b"}, "it takes letters, digits"),
        (
            {"host": "a", "password": "secret"},
            "password cannot be had: OpenSSH takes none from a file; give sshKeyFile",
        ),
        ({"host": "a", "sshPassphrase": "secret"}, "sshPassphrase cannot be had: let ssh-agent hold the key"),
        ({"host": "a", "useActiveGpu": True}, "useActiveGpu cannot be had: GPUs are taken as gpuIndices lists them"),
        ({"host": "a", "port": 0}, "port = 0: Input should be greater than or equal to 1"),
        ({"host": "a", "gpuIndices": [0, 0]}, "numbers from 0 on, each once"),
        ({"host": "a", "gpuIndices": "0, x"}, "it takes numbers, as in"),
        ({"host": "a", "pyhtonPath": "x"}, "unknown key 'pyhtonPath'; did you mean pythonPath"),
        ({"port": 22}, "host"),
        ("a", "Input should be a valid dictionary"),
    ],
)
def test_an_impossible_machine_is_refused_by_name(hosts: Hosts, values: Any, expected: str) -> None:
    hosts.write(trainingService={"platform": "remote", "machineList": [values]}, trialCodeDirectory="code")
    with pytest.raises(ConfigError, match=r"trainingService\.machineList\[0\]") as caught:
        read_sweep(hosts.config)
    assert expected in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("service", "expected"),
    [
        ({"machineList": []}, "machineList is []; list one machine or more"),
        ({}, "machineList is None"),
        ({"machineList": [{"host": "a"}, {"host": "a"}]}, "the same machine twice"),
        ({"machineList": [{"host": "a"}], "reuseMode": True}, "trainingService.reuseMode: true cannot be had"),
        ({"machineList": [{"host": "a"}], "trialGpuNumber": 1}, "trainingService.trialGpuNumber cannot be had"),
        ({"machineList": [{"host": "a", "sshKeyFile": "no/key"}]}, "but there is no such file; make a key by"),
        ({"machineList": [{"host": "a", "settings": {"rule": "x"}}]}, "the settings of a have rule, which searchSpace"),
        ({"machineList": [{"host": "a", "settings": {"out": "x"}}]}, "have out, which every trial has of its own"),
        ({"machineList": [{"host": "a", "settings": {"input_siez": 8}}]}, "settings of a: "),
        ({"machineList": [{"host": "a", "settings": {"hardware": "none"}}]}, "settings of a: "),
    ],
)
def test_an_impossible_list_of_machines_is_refused(hosts: Hosts, service: dict[str, Any], expected: str) -> None:
    command = "python -m proxyless_strategy.trial search.yml"
    hosts.write(trainingService={"platform": "remote", **service}, trialCodeDirectory="code", trialCommand=command)
    with pytest.raises(ConfigError) as caught:
        read_sweep(hosts.config)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("machine", "gpus", "there", "expected"),
    [
        ({}, None, 8, [None]),
        ({}, 0, 8, [[]]),
        ({}, 1, 2, [[0], [1]]),
        ({}, 2, 5, [[0, 1], [2, 3]]),
        ({"gpuIndices": [3, 1]}, 1, 4, [[3], [1]]),
        ({"gpuIndices": "1, 2"}, 2, 4, [[1, 2]]),
        ({"gpuIndices": 1, "maxTrialNumberPerGpu": 2}, 1, 4, [[1], [1]]),
        ({}, 4, 2, []),
    ],
)
def test_the_room_of_a_machine(machine: dict[str, Any], gpus: int | None, there: int, expected: Any) -> None:
    assert Machine.model_validate({"host": "a", **machine}).slots(gpus, there) == expected


def test_ssh_has_nothing_of_the_trial_to_hand_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its `SendEnv` may hand anything on; with the mark, whoever ends the experiment ends the connection first."""
    for name in ("NNI_PLATFORM", "PROXYLESS_EXPERIMENT"):
        monkeypatch.setenv(name, "this trial's")
    monkeypatch.setenv("SSH_AUTH_SOCK", "the user's")
    assert not [name for name in environment() if name.startswith(("NNI_", "PROXYLESS_"))]
    assert environment()["SSH_AUTH_SOCK"] == "the user's"


def test_ssh_takes_the_host_for_no_option_and_only_the_one_that_is_known() -> None:
    words = Machine(host="gpu-a", user="me", port=2222, sshKeyFile=Path("~/key"), pythonPath="~/a b/bin").command()
    assert words[words.index("--") + 1] == "gpu-a"
    assert words[-1] == "exec ~/'a b/bin/python' -W ignore -m proxyless_strategy.runs.there"
    assert {"-oBatchMode=yes", "-oStrictHostKeyChecking=yes", "-oForwardAgent=no"} <= set(words)
    assert words[words.index("-i") + 1] == str(Path("~/key").expanduser())
    assert (words[words.index("-l") + 1], words[words.index("-p") + 1]) == ("me", "2222")


def test_the_code_that_is_sent_is_that_of_the_folder_alone(hosts: Hosts) -> None:
    code = hosts.folder / "code"
    for name in ("tables/a.yml", ".git/config", "__pycache__/x.pyc", "runs/old/model"):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).write_text("x")
    sweep = read_sweep(hosts.config, out=code / "runs")
    with tarfile.open(fileobj=io.BytesIO(_packed(sweep))) as archive:
        assert sorted(archive.getnames()) == ["search.yml", "tables", "tables/a.yml"]
    (hosts.folder / "elsewhere.yml").write_text((code / "search.yml").read_text())
    for name, expected in (
        ("../elsewhere.yml", "not within trialCodeDirectory"),
        (str(code / "search.yml"), "no place"),
    ):
        hosts.on("alpha", trialCommand=f"python -m proxyless_strategy.trial {name}")
        with pytest.raises(ConfigError, match=expected):
            _packed(read_sweep(hosts.config))


def test_the_shipped_sweep_is_read(hosts: Hosts) -> None:
    """But for the key, which is the user's."""
    values = yaml.safe_load((ROOT / "examples" / "imagenet_remote.yml").read_text())
    for number, machine in enumerate(values["trainingService"]["machineList"]):
        machine["sshKeyFile"] = str(hosts.folder / f"key{number}")
        Path(machine["sshKeyFile"]).touch()
    (hosts.folder / "imagenet_search.yml").write_text((ROOT / "examples" / "imagenet_search.yml").read_text())
    hosts.config.write_text(yaml.safe_dump(values))
    sweep = read_sweep(hosts.config)
    assert [machine.settings["data.root"] for machine in sweep.machines] == ["/data/imagenet", "/scratch/imagenet"]
    assert [len(machine.slots(1, 2)) for machine in sweep.machines] == [2, 2]
    local = sweep.locally("true")
    assert local.config["trainingService"] == {"platform": "local"}
    assert "trialGpuNumber" not in local.config
    assert local.side_by_side == 4
    assert local.content() == sweep.content()


MARK = "ab" * 16


def _planted(hosts: Hosts, **place: Any) -> None:
    """Leave in the experiment's folder what another experiment might have, or a stranger."""
    hosts.out.mkdir(parents=True, exist_ok=True)
    machine = {"host": "alpha", "workFolder": "/somewhere", "pythonPath": "/a/trap"}
    place = {"machine": machine, "work": "/somewhere/else", "shared": False, "slots": [None], **place}
    values = {"experiment": MARK, "command": "true", "preset": None, "retries": 0, "places": [place]}
    (hosts.out / FLEET_FILE).write_text(json.dumps(values))


def test_what_an_earlier_experiment_left_is_removed_where_the_sweep_says_and_nowhere_else(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Machine, Any]] = []
    monkeypatch.setattr("proxyless_strategy.runs.fleet.ask", lambda machine, request: asked.append((machine, request)))
    sweep = read_sweep(hosts.config)
    _planted(hosts)
    clear_earlier(sweep, "0" * 32)
    assert asked == [(sweep.machines[0], {"do": "forget", "work": "~/proxyless", "mark": MARK})]
    clear_earlier(sweep, MARK)  # this one's own is gone on with
    _planted(hosts, machine={"host": "a-strangers"})
    clear_earlier(sweep, "0" * 32)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("request_", "gone"),
    [
        ({"work": "~/proxyless", "mark": MARK}, {MARK}),
        ({"work": "~/proxyless", "mark": MARK, "trial": "first"}, {f"{MARK}/runs/first"}),
        ({"work": "~/proxyless", "mark": MARK, "trial": "../../../thesis"}, None),
        ({"work": "~", "mark": "thesis"}, None),
        ({"work": "~/proxyless", "mark": "."}, None),
        ({"work": "~/proxyless", "mark": f"{MARK}/../../thesis"}, None),
    ],
)
def test_a_machine_forgets_an_experiment_and_nothing_else(
    request_: dict[str, str], gone: set[str] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    kept = [f"{MARK}/runs/first", f"{MARK}/runs/second", "cd" * 16]
    for folder in (*(f"proxyless/{name}" for name in kept), "thesis"):
        (tmp_path / folder).mkdir(parents=True)
    if gone is None:
        with pytest.raises(ConfigError, match=r"(experiment|trial)$"):
            _forget(request_)
    else:
        assert _forget(request_) == {}
    left = {name for name in kept if (tmp_path / "proxyless" / name).exists()}
    assert left == {name for name in kept if not any(name.startswith(each) for each in gone or ())}
    assert (tmp_path / "thesis").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"slots": []}, "places.0.slots = []"),
        ({"slots": [[-1]]}, "places.0.slots.0"),
        ({"shared": "yes"}, "places.0.shared = 'yes'"),
        ({"work": 3}, "places.0.work = 3"),
        ({"machine": {"host": "-oProxyCommand=x"}}, "places.0.machine.host = '-oProxyCommand=x'"),
    ],
)
def test_a_damaged_list_of_an_experiments_machines_is_refused(hosts: Hosts, changes: Any, expected: str) -> None:
    _planted(hosts, **changes)
    with pytest.raises(ConfigError, match=re.escape(expected)) as raised:
        read_errand(hosts.out / FLEET_FILE)
    assert "repeat the command with --resume" in str(raised.value)


# ---- whole experiments ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sweep_ends_as_a_local_one(hosts: Hosts) -> None:
    status, output, error = hosts.run()
    assert (status, error) == (0, ""), output
    rows = hosts.rows()
    assert sorted((row["rule"], row["accuracy"], row["restarts"]) for row in rows) == [
        ("gradient", 0.3, 0),
        ("reinforce", 0.31, 0),
    ]
    assert sorted(row["machine"] for row in rows) == ["alpha", "beta"]
    metrics = hosts.metrics()
    assert [each["type"] for each in metrics].count("PERIODICAL") == 6
    told = sorted(each["data"]["default"] for each in metrics if each["type"] == "FINAL")
    assert told == [0.3, 0.31]
    for row in rows:
        seen = json.loads((hosts.out / row["trial"] / "seen.json").read_text())
        assert seen["environment"]["NNI_TRIAL_JOB_ID"] == row["trial"]
        assert "NNI_PLATFORM" not in seen["environment"]
        assert "CUDA_VISIBLE_DEVICES" not in seen["environment"]
    assert hosts.processes() == []
    assert [list((hosts.hosts / name / "proxyless").iterdir()) for name in ("alpha", "beta")] == [[], []]
    assert not (hosts.out / ".sent").exists()


@pytest.mark.slow
def test_what_fails_is_started_again_and_what_is_left_is_gone_on_with(hosts: Hosts) -> None:
    status, output, error = hosts.run("--retries", "1", FAKE_FAILING_RULE="reinforce")
    assert status == 2, output + error
    assert "(RuntimeError: the fake search failed as it was told to; starts: 2; see " in error
    assert len(error.strip().splitlines()) == 1
    assert [row["rule"] for row in hosts.rows()] == ["gradient"]
    status, output, error = hosts.run("--resume")
    assert (status, error) == (0, ""), output
    assert sorted((row["rule"], row["restarts"]) for row in hosts.rows()) == [("gradient", 0), ("reinforce", 2)]


@pytest.mark.slow
def test_a_lost_host_costs_a_start_and_is_named(hosts: Hosts) -> None:
    process = hosts.start(FAKE_ENDLESS_RULE="reinforce", FAKE_ENDLESS_STARTS="1")

    def connections() -> list[psutil.Process]:
        """To the hosts: what the loss of one leaves is what a cut cable leaves."""
        return [each for each in hosts.processes() if "proxyless_strategy.runs.there" in each.cmdline()]

    # the other trial has ended, and with it its connection
    _until(
        lambda: (
            process.poll() is not None
            or ((hosts.out / "endless").exists() and list(hosts.out.glob("*/result.json")) and len(connections()) == 1)
        )
    )
    assert process.poll() is None, process.communicate()
    connections()[0].kill()
    output, error = process.communicate(timeout=280)
    assert (process.returncode, error) == (0, ""), output
    (lost,) = [row for row in hosts.rows() if row["rule"] == "reinforce"]
    assert lost["restarts"] == 1
    (loss,) = lost["lost"]
    assert {loss["machine"], loss["then"]} <= {"alpha", "beta"}
    assert loss["from"] == "the start"
    assert f"trial {lost['trial']}: {loss['machine']} was lost (" in " ".join(output.split())
    assert hosts.processes() == []


@pytest.mark.slow
def test_ctrl_c_ends_the_trials_of_the_hosts(hosts: Hosts) -> None:
    process = hosts.start(FAKE_ENDLESS="1")
    _until(lambda: process.poll() is not None or len(list(hosts.out.glob("*/starts"))) == 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode != 0
    _until(lambda: not [each for each in hosts.processes() if "sleep" not in " ".join(each.cmdline())], seconds=60)


@pytest.mark.parametrize(
    ("names", "machine", "changes", "expected"),
    [
        (
            ("alpha", "gone"),
            {},
            {},
            "gone cannot be reached by ssh: ssh: connect to host gone port 22: No route to host",
        ),
        (("alpha",), {"pythonPath": "/no/such"}, {}, "alpha cannot run this project with the python of /no/such ("),
        (("alpha",), {"workFolder": "/proc/x"}, {}, "alpha: cannot write to /proc/x: "),
        (("alpha",), {}, {"trialConcurrency": 3}, "trialConcurrency is 3, but the machines have room for 1 trials"),
        (("alpha",), {}, {"trialGpuNumber": 99}, "alpha has 0 GPUs, but a trial takes 99; mend gpuIndices"),
        (("alpha",), {}, {"trialGpuNumber": "x"}, "trialGpuNumber is 'x'; give a whole number"),
        (
            ("alpha",),
            {"settings": {"hardware": {"backend": "onnxruntime", "table": "none.yml"}}},
            {},
            "/code/none.yml of this kind of machine; measure one there by `proxyless latency build`",
        ),
    ],
)
def test_what_cannot_work_is_said_before_any_trial_starts(
    hosts: Hosts, names: tuple[str, ...], machine: dict[str, Any], changes: dict[str, Any], expected: str
) -> None:
    hosts.on(*names, machine=machine, **{"trialConcurrency": len(names), **changes})
    status, output, error = hosts.run()
    assert status == 2, output + error
    assert expected in error
    assert len(error.strip().splitlines()) == 1, error
    assert not list(hosts.out.glob("*/parameters.json"))
    assert hosts.processes() == []


def _until(holds: Callable[[], Any], *, seconds: float = 250) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.3)
