"""The cores that this process may use, and what is said of a busy machine."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from hardware import processor
from hardware.processor import busy_sentence, cores, cpu_quota, say_if_busy, share_of_others


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, 1.5),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu.max": "garbage\n"}, None),
        ({}, None),
    ],
)
def test_the_quota_of_a_container(files: dict[str, str], quota: float | None, tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("affinity", "physical", "quota", "expected"),
    [(16, 8, None, 8), (4, 8, None, 4), (16, 8, 2.0, 2), (16, 8, 0.4, 1), (16, None, None, 16)],
)
def test_cores_are_those_that_this_process_may_use(
    affinity: int, physical: int | None, quota: float | None, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(affinity)), raising=False)
    monkeypatch.setattr(psutil, "cpu_count", lambda logical: physical)
    monkeypatch.setattr(processor, "cpu_quota", lambda: quota)
    assert cores() == expected


class Times(SimpleNamespace):
    @property
    def _fields(self) -> list[str]:
        return list(vars(self))


@pytest.mark.parametrize(
    ("machine", "mine", "share"),
    [
        ({"user": 10.0, "idle": 10.0}, 0.0, 0.5),
        ({"user": 10.0, "idle": 10.0}, 6.0, 0.2),  # a search that prepares is no other work
        ({"user": 4.0, "system": 2.0, "steal": 8.0, "idle": 4.0, "iowait": 2.0}, 0.0, 0.7),
        ({"user": 10.0, "idle": 10.0, "guest": 10.0}, 0.0, 0.5),
        ({"user": 1.0, "idle": 19.0}, 5.0, 0.0),
        ({"user": 0.0, "idle": 0.0}, 0.0, 0.0),
    ],
)
def test_other_work_is_what_is_neither_idle_nor_ours(
    machine: dict[str, float], mine: float, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    def grows(last: dict[str, float]) -> Any:
        answers = iter([Times(**dict.fromkeys(last, 0.0)), Times(**last)])
        return lambda *_: next(answers)

    process = SimpleNamespace(cpu_times=grows({"user": mine, "system": 0.0}))
    monkeypatch.setattr(psutil, "cpu_times", grows(machine))
    monkeypatch.setattr(psutil, "Process", lambda: process)
    assert share_of_others(0.0) == pytest.approx(share)


def test_a_machine_that_is_more_than_half_busy_is_said_to_be(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(processor.SILENCE, raising=False)
    assert busy_sentence(0.5) is None
    monkeypatch.setattr(processor, "share_of_others", lambda: 0.3)
    say_if_busy()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(processor, "share_of_others", lambda: 0.816)
    say_if_busy()
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith(
        "this machine is 82% busy with other work: a forecast holds while that lasts, and latencies"
    )
    assert error.count("\n") == 1
