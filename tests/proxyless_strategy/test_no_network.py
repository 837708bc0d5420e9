"""A table is measured, and a search runs to its end, on a machine without network, and neither asks for one."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SETTINGS = yaml.safe_load((ROOT / "tests" / "data" / "run_bc6f2f8" / "gradient.yml").read_text())
ELSEWHERE = re.compile(r'(connect|sendto|bind)\(.*sa_family=AF_INET6?\b(?!.*inet_addr\("127\.)(?!.*"::1")')
STRACE = ["strace", "-f", "-qq", "--seccomp-bpf", "-e", "trace=connect,bind,listen,sendto"]


def traced(log: Path, *arguments: str) -> list[str]:
    """Run the command line without a network; return its calls that reach for one."""
    alone = ["unshare", "--net"]
    without = alone if subprocess.run([*alone, "true"], capture_output=True).returncode == 0 else []
    environment = {k: v for k, v in os.environ.items() if k not in ("ORT_DISABLE_TELEMETRY", "CI")}
    done = subprocess.run(
        [*without, *STRACE, "-o", str(log), sys.executable, "-m", "proxyless_strategy.cli", *arguments],
        env={
            **environment,
            "OMP_NUM_THREADS": "1",
            "XDG_CACHE_HOME": str(log.parent / "cache"),
            "PYTHONPATH": str(ROOT),
        },
        cwd=log.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [line for line in log.read_text().splitlines() if ELSEWHERE.search(line) or " listen(" in line]


def test_what_reaches_for_the_network_is_recognised() -> None:
    lines = [
        '12 connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("192.0.2.1")}, 16) = 0',
        '12 bind(3, {sa_family=AF_INET, sin_port=htons(0), sin_addr=inet_addr("0.0.0.0")}, 16) = 0',
        '12 connect(3, {sa_family=AF_INET6, sin6_port=htons(443), inet_pton(AF_INET6, "2001:db8::1"), 28) = 0',
    ]
    fine = [
        '12 connect(3, {sa_family=AF_INET, sin_port=htons(53), sin_addr=inet_addr("127.0.0.1")}, 16) = 0',
        '12 connect(3, {sa_family=AF_UNIX, sun_path="/run/x"}, 110) = -1 ENOENT',
        "12 bind(3, {sa_family=AF_NETLINK, nl_pid=0, nl_groups=00000000}, 12) = 0",
    ]
    assert [bool(ELSEWHERE.search(line)) for line in (*lines, *fine)] == [True] * 3 + [False] * 3


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace shows what every process asks for")
def test_no_process_reaches_for_the_network(tmp_path: Path) -> None:
    options = SETTINGS["space"]["options"]
    space = [f"--space-option={key}={json.dumps(value)}" for key, value in options.items()]
    measured = ["--input-size", "16", "--classes", "10", "--channels", "1", "--nets", "8", "--seconds", "0.5"]
    build = ["latency", "build", "--space", SETTINGS["space"]["name"], *space, *measured, "--out", "table.yml"]
    assert traced(tmp_path / "build.txt", *build) == []
    settings = {**SETTINGS, "hardware": {"table": str(tmp_path / "table.yml")}, "out": str(tmp_path / "run")}
    settings["search"] = {**SETTINGS["search"], "epochs": 2}
    (tmp_path / "search.yml").write_text(yaml.safe_dump(settings))
    assert traced(tmp_path / "search.txt", "search", "search.yml") == []
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
    assert traced(tmp_path / "report.txt", "report", "run") == []
