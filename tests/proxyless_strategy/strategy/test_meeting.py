"""Processes of a launcher beside their training: who waits, who refuses, and who is missed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from proxyless_strategy.strategy.meeting import _unlike
from tests import namespaces
from tests.proxyless_strategy.environments import without

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.timeout(900)
MEMBER = """
import os, signal, sys, time
from hardware.errors import ProxylessError
from proxyless_strategy.strategy import meeting
from proxyless_strategy.world import find_world
meeting.LOST_SECONDS, meeting.UNWIND_SECONDS = 4.0, 2.0
case, world = sys.argv[1], find_world(1, 2)
if case == "other version" and not world.first:
    meeting.metadata.version = lambda name: "0.0"
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
        if case == "second is signalled" and not world.first:
            raise SystemExit(128 + signal.SIGUSR1)
        print("alike", flush=True)
        if case in ("second fails", "second stops", "second is signalled"):
            time.sleep(300)
        found.wait()
        print("together", flush=True)
except ProxylessError as error:
    sys.exit(str(error))
"""


def started(
    case: str, *, address: str = "127.0.0.1", ranks: Sequence[int] = (0, 1), separate: bool = False
) -> list[subprocess.Popen[str]]:
    """Start processes of a run by their ranks, on one host or each on its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", MEMBER, case]
    return [
        subprocess.Popen(
            namespaces.inside(rank, *command) if separate else command,
            cwd=ROOT,
            env={**without(os.environ), **shared, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, list[str], str]]:
    said = []
    for process in processes:
        out, error = process.communicate(timeout=800)
        lines = [line for line in error.splitlines() if not line.startswith("[")]  # torch's own
        said.append((process.returncode, out.splitlines(), "\n".join(lines)))
    return said


@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "localhost"])
def test_the_first_one_works_before_the_others_and_all_end_together(address: str) -> None:
    first, second = ends(started("alike", address=address))
    assert (first[0], second[0], first[1][1:], second[1][1:]) == (0, 0, ["alike", "together"], ["alike", "together"])
    begun = [float(said[1][0].removeprefix("works at ")) for said in (first, second)]
    assert begun[1] >= begun[0] + 1.0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "first", "second"),
    [
        ("first fails", "no such table", "the first process of this run has ended: no such table"),
        ("second fails", "process 1 of 2 has ended: no such picture", "no such picture"),
        ("second is signalled", "process 1 of 2 has ended: stopped by SIGUSR1", ""),
    ],
)
def test_what_ends_one_is_said_by_all(case: str, first: str, second: str) -> None:
    found = ends(started(case))
    assert [error for _, _, error in found] == [first, second]
    assert all(status in (1, 2, 138) for status, _, _ in found)


@pytest.mark.slow
def test_what_differs_is_named_by_all() -> None:
    found = ends(started("other table"))
    for status, _, error in found:
        assert status == 1
        assert error.startswith("process 1 has another search than the first one (table = table 0 on ")
        assert "table 1 on" in error
        assert "size" not in error
        assert error.endswith("on a disk that they share")


@pytest.mark.slow
def test_one_that_is_silent_is_missed() -> None:
    processes = started("second stops")
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


@pytest.mark.slow
def test_hosts_of_other_versions_are_refused_by_all() -> None:
    found = ends(started("other version"))
    assert found[0][2] == found[1][2]
    assert "(process 1) has proxyless-strategy 0.0, " in found[0][2]
    assert [status for status, _, _ in found] == [1, 1]


@pytest.mark.slow
def test_a_process_of_another_run_at_the_same_port_is_refused_and_harms_nothing() -> None:
    first, *seconds = ends(started("alike", ranks=(0, 1, 1)))
    assert first[0] == 0, first
    seconds.sort()
    assert [status for status, _, _ in seconds] == [0, 1]
    assert "(process 1 of another run has come there before; give each run its own port)" in seconds[1][2]


ALIKE = {"host": "a", "device": "GPUs", "lacks": None, "torch": "2.9.0"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"device": "the CPU"}, "b (process 1) has device the CPU, a GPUs; train on hosts with GPUs alone"),
        ({"torch": "2.8.0"}, "b (process 1) has torch 2.8.0, a 2.9.0; install the same version on all hosts"),
        ({"lacks": "process 1 of 2 sees 0 GPUs"}, "process 1 of 2 sees 0 GPUs (b); give every host a GPU for each"),
    ],
)
def test_what_cannot_train_together_is_named_before_it_begins(changes: dict[str, Any], message: str | None) -> None:
    said = _unlike([ALIKE, {**ALIKE, "host": "b", **changes}])
    assert said == message if message is None or said is None else said.startswith(message)


@pytest.mark.cluster
def test_a_first_host_whose_name_is_its_own_loopback_is_reached() -> None:
    """As Debian's installer writes it into /etc/hosts; the others look the name up elsewhere."""
    reason = namespaces.why_not()
    if reason is not None:
        pytest.skip(reason)
    with namespaces.two_hosts():
        namespaces.call(0, {"proxyless-first": "127.0.1.1"})
        namespaces.call(1, {"proxyless-first": namespaces.ADDRESSES[0]})
        found = ends(started("alike", address="proxyless-first", separate=True))
    assert [(status, out[1:]) for status, out, _ in found] == [(0, ["alike", "together"])] * 2, found
