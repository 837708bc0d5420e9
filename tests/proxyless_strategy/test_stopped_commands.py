"""SIGTERM and Ctrl-C in each command that works for long: status, sentence, no process left, and a checkpoint."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from proxyless_strategy.layout import ROW_FILE, SEARCH_CHECKPOINT
from tests.proxyless_strategy.runs.test_early_checks import settings
from tests.proxyless_strategy.test_signals import default_signals

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")

EXPORT = Path(__file__).parents[1] / "data" / "run_bc6f2f8" / "gradient"


def config_file(folder: Path, **changes: object) -> Path:
    path = folder / "search.yml"
    path.write_text(yaml.safe_dump(settings(folder / "run", **{"hardware.device": "other", **changes})))
    return path


def stopped(command: list[str], number: int, *, when: Callable[[], bool]) -> tuple[int, str]:
    """Start a command, send it a signal when it has come so far, and return its status and what it said."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=default_signals,
        start_new_session=True,
    )
    try:
        while not when():
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        assert _session(process.pid) == []
    finally:
        for left in (process.pid, *_session(process.pid)):
            if psutil.pid_exists(left):
                os.kill(left, signal.SIGKILL)
    return process.returncode, error


def _session(leader: int) -> list[int]:
    def ids() -> Iterator[int]:
        for process in psutil.process_iter():
            try:
                if process.status() != psutil.STATUS_ZOMBIE and os.getsid(process.pid) == leader:
                    yield process.pid
            except (OSError, psutil.Error):
                continue

    return [pid for pid in ids() if pid != leader]


CASES = [
    pytest.param("search", signal.SIGTERM, 143, {}, id="search"),
    pytest.param("search", signal.SIGINT, 130, {}, id="search, Ctrl-C", marks=pytest.mark.slow),
    pytest.param("search", signal.SIGTERM, 143, {"search.devices": 2}, id="search on two", marks=pytest.mark.slow),
    pytest.param(
        "search",
        signal.SIGTERM,
        143,
        {"search.finalists": 1000, "search.steps_per_update": 1},
        id="while finalists are compared",
        marks=pytest.mark.slow,
    ),
    pytest.param("trial", signal.SIGTERM, 143, {}, id="trial", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("command", "number", "status", "changes"), CASES)
def test_a_stopped_search_says_so_and_goes_on(
    command: str, number: int, status: int, changes: dict[str, object], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    epochs = 2 if "search.finalists" in changes else 100_000
    path = config_file(tmp_path, **{**changes, "search.epochs": epochs, "search.batch_size": 512})
    arguments = [f"proxyless_strategy.{'trial' if command == 'trial' else 'cli'}", *[command][: command != "trial"]]
    written = (out / SEARCH_CHECKPOINT).exists
    found, error = stopped([*arguments, str(path)], number, when=written)
    assert found == status
    assert error.splitlines()[-1].endswith("stopped; repeat the command to continue")
    assert "Traceback" not in error
    assert written()
    assert not (out / ROW_FILE).exists()


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_a_stopped_retraining(devices: int, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yml"
    recipe.write_text(yaml.safe_dump({"epochs": 100_000, "batch_size": 64, "learning_rate": 0.01}))
    command = ["retrain", str(EXPORT / "model"), "--data", str(tmp_path), "--source", "digits", "--recipe", str(recipe)]
    command += ["--out", str(tmp_path / "out"), "--devices", str(devices)]
    begun = (tmp_path / "out" / "retrain.ckpt").exists
    status, error = stopped(["proxyless_strategy.cli", *command], signal.SIGTERM, when=begun)
    assert (status, error) == (143, "SIGTERM: stopped; repeat the command to continue\n")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_build_of_a_table(number: int, status: int, tmp_path: Path) -> None:
    table = tmp_path / "table.yml"
    command = ["latency", "build", "--space", "small_mbconv", "--input-size", "32", "--out", str(table)]
    partial = Path(f"{table}.partial").exists
    found, error = stopped(["proxyless_strategy.cli", *command], number, when=partial)
    assert found == status
    assert "stopped; repeat the command to continue" in error
    assert "Traceback" not in error
    assert partial()


@pytest.mark.slow
def test_a_stopped_derivation(tmp_path: Path) -> None:
    begun = time.monotonic()
    command = ["derive", str(EXPORT), "--curve", "--points", "100000", "--out", str(tmp_path / "curve")]
    status, error = stopped(
        ["proxyless_strategy.cli", *command], signal.SIGTERM, when=lambda: time.monotonic() > begun + 5
    )
    assert status == 143
    assert error.endswith("SIGTERM: stopped; nothing is half written; repeat the command\n")
