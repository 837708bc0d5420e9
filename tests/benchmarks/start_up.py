"""CPU seconds and peak memory of `proxyless --help` and of every command's help, each in a process of its own.

.venv/bin/python -m tests.benchmarks.start_up
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import typer

from proxyless_strategy.cli.main import app


def commands(command: Any, *path: str) -> Iterator[tuple[str, ...]]:
    """Yield the words of a command and of all that are under it."""
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, *path, name)


def main() -> None:
    print(f"{'command':40}{'CPU s':>8}{'MB':>8}")
    for path in commands(typer.main.get_command(app)):
        arguments = [sys.executable, "-m", "proxyless_strategy.cli", *path, "--help"]
        child = subprocess.Popen(arguments, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            raise SystemExit(f"{' '.join(arguments)} exited with status {child.returncode}")
        name = " ".join(["proxyless", *path, "--help"])
        print(f"{name:40}{usage.ru_utime + usage.ru_stime:8.2f}{usage.ru_maxrss / 1024:8.0f}")


if __name__ == "__main__":
    main()
