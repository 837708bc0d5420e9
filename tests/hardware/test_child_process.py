"""How threads wait in each process of ours, and what a measuring child process is told by its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hardware
from hardware.child_process import MALLOC_TUNABLES, PASSIVE, WAITING, measuring_environment, wait_passively

WORDS = ("OMP_WAIT_POLICY", "KMP_BLOCKTIME", "GOMP_SPINCOUNT", "KMP_LIBRARY")
ROOT = str(Path(hardware.__file__).parents[1])


def test_it_finds_this_project_and_keeps_its_memory(monkeypatch):
    for name in ("PYTHONPATH", "GLIBC_TUNABLES", *WORDS, WAITING):
        monkeypatch.delenv(name, raising=False)
    expected = {**os.environ, "PYTHONPATH": ROOT, "GLIBC_TUNABLES": MALLOC_TUNABLES, WAITING: ""}
    assert measuring_environment() == expected


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    environment = measuring_environment()
    assert environment["PYTHONPATH"].split(os.pathsep) == [ROOT, "/mine"]
    assert environment["GLIBC_TUNABLES"] == f"glibc.malloc.check=1:{MALLOC_TUNABLES}"


# ---- how threads wait ------------------------------------------------------------------------------------------------


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of a process that has not imported torch, and in which nobody has chosen anything."""
    for name in (*WORDS, WAITING):
        monkeypatch.setenv(name, "")  # so that it is put back, whatever the test sets
        monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    return monkeypatch


def words() -> dict[str, str]:
    return {name: os.environ[name] for name in WORDS if name in os.environ}


def test_threads_wait_passively(early: pytest.MonkeyPatch) -> None:
    wait_passively()
    assert words() == PASSIVE
    assert PASSIVE["OMP_WAIT_POLICY"] == "PASSIVE"


@pytest.mark.parametrize("name", WORDS)
def test_a_user_who_has_chosen_how_threads_wait_is_obeyed_here_and_where_latencies_are_measured(
    name: str, early: pytest.MonkeyPatch
) -> None:
    early.setenv(name, "PASSIVE")
    wait_passively()
    assert words() == {name: "PASSIVE"}
    assert measuring_environment()[name] == "PASSIVE"


def test_nothing_changes_once_torch_is_loaded(early: pytest.MonkeyPatch) -> None:
    early.setitem(sys.modules, "torch", sys)
    before = dict(os.environ)
    wait_passively()
    assert dict(os.environ) == before


def test_latencies_are_measured_as_deployed_also_by_a_process_that_inherited_passive_waiting(
    early: pytest.MonkeyPatch,
) -> None:
    wait_passively()  # in an experiment
    wait_passively()  # in its trial
    measuring = measuring_environment()
    assert not set(WORDS) & measuring.keys()
    early.setattr(os, "environ", measuring)
    wait_passively()  # in the process that measures
    assert not set(WORDS) & measuring.keys()


def test_what_a_user_sets_below_one_of_our_processes_is_the_users(early: pytest.MonkeyPatch) -> None:
    wait_passively()
    early.setenv("OMP_WAIT_POLICY", "ACTIVE")
    wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == measuring_environment()["OMP_WAIT_POLICY"] == "ACTIVE"


# Stands for torch: what OpenMP's runtime would find in the environment as it is loaded.
TORCH = """
import os
print("waits", os.environ.get("OMP_WAIT_POLICY"), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("command", "measures"),
    [
        (("-m", "proxyless_strategy.cli", "search", "search.yml"), False),
        (("-m", "proxyless_strategy.cli", "latency", "prepare", "search.yml"), False),
        (("-m", "proxyless_strategy.cli", "retrain", "x", "--data", "x", "--out", "x"), False),
        (("-m", "proxyless_strategy.cli", "derive", "x", "--out", "x", "--curve"), False),
        (("-m", "proxyless_strategy.trial", "search.yml"), False),
        (("-c", "from proxyless_strategy import load_config, run_search"), False),
        (("-c", "import proxyless_strategy, torch"), True),  # as a deployed model is loaded
        (("-c", "import tests.conftest, torch"), False),
        (("-m", "tests.benchmarks.step_cost"), False),
        (("-m", "hardware.backends.torch_worker"), True),
        (("-m", "proxyless_strategy.benchmark.worker", "job.json", "result.json"), True),
    ],
    ids=lambda value: " ".join(value[:3]) if isinstance(value, tuple) else None,
)
def test_every_process_says_how_threads_wait_before_it_imports_torch(
    command: tuple[str, ...], measures: bool, early: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text(TORCH, encoding="utf-8")
    (tmp_path / "search.yml").write_text("{}", encoding="utf-8")
    early.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), ROOT]))
    if measures and command[0] == "-m":
        wait_passively()  # in the process that starts it
        environment = measuring_environment()
        environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    else:
        environment = dict(os.environ)
    done = subprocess.run(
        [sys.executable, *command], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == f"waits {None if measures else 'PASSIVE'}\n", done.stderr[-2000:]
