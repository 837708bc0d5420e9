"""Processes of a launcher beside their training: who waits, who refuses, and who is missed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.proxyless_strategy.environments import without

ROOT = Path(__file__).parents[3]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MEMBER = """
import os, sys, time
from hardware.errors import ProxylessError
from proxyless_strategy.strategy import meeting
from proxyless_strategy.world import find_world
meeting.LOST_SECONDS, meeting.UNWIND_SECONDS = 4.0, 2.0
case, world = sys.argv[1], find_world(1, 2)
try:
    with meeting.met(world, cuda=False) as found:
        with meeting.first_before_others("work"):
            print("works at", time.time(), flush=True)
            time.sleep(1.0)
            if case == "first fails" and world.first:
                raise ProxylessError("no such table")
        table = f"table {world.rank}" if case == "other table" else "one table"
        meeting.check_alike("search", {"table": table, "size": (1, 2)})
        if case == "second fails" and not world.first:
            raise ProxylessError("no such picture")
        print("alike", flush=True)
        if case in ("second fails", "second stops"):
            time.sleep(300)
        found.wait()
        print("together", flush=True)
except ProxylessError as error:
    sys.exit(str(error))
"""


def both(case: str) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", MEMBER, case],
            cwd=ROOT,
            env={**without(os.environ), **shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, list[str], str]]:
    said = []
    for process in processes:
        out, error = process.communicate(timeout=800)
        lines = [line for line in error.splitlines() if not line.startswith("[")]  # torch's own
        said.append((process.returncode, out.splitlines(), "\n".join(lines)))
    return said


def test_the_first_one_works_before_the_others_and_all_end_together() -> None:
    first, second = ends(both("alike"))
    assert (first[0], second[0], first[1][1:], second[1][1:]) == (0, 0, ["alike", "together"], ["alike", "together"])
    begun = [float(said[1][0].removeprefix("works at ")) for said in (first, second)]
    assert begun[1] >= begun[0] + 1.0


@pytest.mark.parametrize(
    ("case", "first", "second"),
    [
        ("first fails", "no such table", "the first process of this run has ended: no such table"),
        ("second fails", "process 1 of 2 has ended: no such picture", "no such picture"),
    ],
)
def test_what_ends_one_is_said_by_all(case: str, first: str, second: str) -> None:
    found = ends(both(case))
    assert [error for _, _, error in found] == [first, second]
    assert all(status in (1, 2) for status, _, _ in found)


def test_what_differs_is_named_by_all() -> None:
    found = ends(both("other table"))
    for status, _, error in found:
        assert status == 1
        assert error.startswith("process 1 has another search than the first one (table = table 0 on ")
        assert "table 1 on" in error
        assert "size" not in error
        assert error.endswith("on a disk that they share")


def test_one_that_is_silent_is_missed() -> None:
    processes = both("second stops")
    assert processes[1].stdout is not None
    while "alike" not in processes[1].stdout.readline():
        assert processes[1].poll() is None
    processes[1].send_signal(signal.SIGSTOP)
    begun = time.monotonic()
    (first,) = ends(processes[:1])
    processes[1].kill()
    processes[1].communicate()
    assert first[0] == 2
    assert first[2].startswith("process 1 of 2 has not answered for ")
    assert time.monotonic() - begun > 4.0
