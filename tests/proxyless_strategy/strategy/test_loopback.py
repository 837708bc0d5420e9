"""Processes of one machine: nobody else can reach them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import proxyless_strategy
from proxyless_strategy.world import unused_port
from tests.proxyless_strategy.sockets import listening

ROOT = Path(proxyless_strategy.__file__).parents[1]
MEMBER = """
import sys
import torch
from proxyless_strategy.strategy.loopback import join
from tests.proxyless_strategy.sockets import listening
rank, port = map(int, sys.argv[1:])
join("gloo", rank=rank, world_size=2, port=port)
total = torch.ones(1)
torch.distributed.all_reduce(total)
print(int(total), *listening(), flush=True)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


def test_processes_of_one_machine_listen_on_its_loopback_alone():
    port = unused_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("GLOO_", "MASTER_"))}
    members = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", MEMBER, str(rank), str(port)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    said = [member.communicate(timeout=120)[0].split() for member in members]
    assert [total for total, *_ in said] == ["2", "2"]
    assert said[0][1:].count("127.0.0.1") >= 2, "the store's and gloo's"
    assert {address for _, *found in said for address in found} == {"127.0.0.1"}


def test_what_the_test_calls_listening_is():
    import socket

    with socket.socket() as everywhere, socket.socket(socket.AF_INET6) as six:
        everywhere.bind(("0.0.0.0", 0))
        six.bind(("::1", 0))
        assert listening() == []
        everywhere.listen()
        six.listen()
        assert listening() == ["0.0.0.0", "::1"]


def test_groups_are_made_in_one_place():
    """Another call would listen on every interface again."""
    calls = [
        path.relative_to(ROOT).as_posix()
        for package in ("hardware", "search_spaces", "proxyless_strategy")
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in ("init_process_group", "TCPStore")
    ]
    assert sorted(calls) == [
        "proxyless_strategy/strategy/loopback.py",
        "proxyless_strategy/strategy/loopback.py",
        "proxyless_strategy/strategy/meeting.py",
        "proxyless_strategy/strategy/meeting.py",
    ]
