"""The loop over a pool of processes, on threads."""

from __future__ import annotations

import multiprocessing
import multiprocessing.dummy
import time
from types import SimpleNamespace

import pytest

pytest.importorskip("timm")

from proxyless_strategy.signals import stopped_in_order
from tests.benchmarks import pool


@pytest.fixture(autouse=True)
def _threads(monkeypatch):
    """Threads take the place of processes, which would import torch anew."""
    monkeypatch.setattr(pool, "multiprocessing", SimpleNamespace(get_context=lambda method: multiprocessing.dummy))


def waited(seconds):
    time.sleep(seconds)
    return seconds


def test_results_come_as_they_end_or_in_order():
    jobs = [0.3, 0.0, 0.1]
    assert [result for result, _ in pool.run_jobs(waited, jobs, 3)] == sorted(jobs)
    assert [result for result, _ in pool.run_jobs(waited, jobs, 3, in_order=True)] == jobs


def test_every_process_is_prepared_and_progress_is_told():
    prepared = []
    found = list(pool.run_jobs(str, [1, 2, 3], 2, prepare=lambda: prepared.append(True)))
    assert sorted(result for result, _ in found) == ["1", "2", "3"]
    assert [progress.split(",")[0] for _, progress in found] == ["1 of 3", "2 of 3", "3 of 3"]
    assert found[-1][1] == "3 of 3, 0.0 minutes left"
    assert len(prepared) == 2


def ends(job):
    raise SystemExit(f"{job} cannot be")


def test_a_job_that_ends_its_process_is_an_error():
    with pytest.raises(RuntimeError, match="a job ended its process: a job cannot be"):
        list(pool.run_jobs(ends, ["a job"], 1))


def nothing():
    pass


def fails_beside_a_search(job):
    name, begun = job
    if name == "search":
        with stopped_in_order():
            begun.touch()
            time.sleep(600)
    while not begun.exists():
        time.sleep(0.05)
    raise ValueError(f"{name} failed")


def test_an_error_is_told_at_once_though_other_jobs_end_by_signals_in_their_own_way(monkeypatch, tmp_path):
    monkeypatch.setattr(pool, "multiprocessing", multiprocessing)
    jobs = [(name, tmp_path / "begun") for name in ("search", "pruning")]
    with pytest.raises(ValueError, match="pruning failed"):
        list(pool.run_jobs(fails_beside_a_search, jobs, 2, prepare=nothing))


def test_without_jobs_no_process_starts(monkeypatch):
    monkeypatch.setattr(pool, "multiprocessing", None)
    assert list(pool.run_jobs(str, [], 2)) == []
