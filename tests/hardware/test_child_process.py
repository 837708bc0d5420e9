"""What a measuring child process is told by its environment."""

from __future__ import annotations

import os
from pathlib import Path

import hardware
from hardware.child_process import MALLOC_TUNABLES, measuring_environment

ROOT = str(Path(hardware.__file__).parents[1])


def test_it_finds_this_project_and_keeps_its_memory(monkeypatch):
    for name in ("PYTHONPATH", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert measuring_environment() == {**os.environ, "PYTHONPATH": ROOT, "GLIBC_TUNABLES": MALLOC_TUNABLES}


def test_what_the_user_has_set_stays(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    environment = measuring_environment()
    assert environment["PYTHONPATH"].split(os.pathsep) == [ROOT, "/mine"]
    assert environment["GLIBC_TUNABLES"] == f"glibc.malloc.check=1:{MALLOC_TUNABLES}"
