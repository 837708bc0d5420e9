"""How many threads train: which number is taken, that a run keeps it, and who wants more cores than there are."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from hardware.errors import ConfigError
from hardware.processor import SILENCE
from proxyless_strategy import threads as module
from proxyless_strategy.config import parse_config
from proxyless_strategy.layout import CONFIG_FILE, SEARCH_CHECKPOINT, THREADS_FILE
from proxyless_strategy.retraining.recipe import load_recipe
from proxyless_strategy.runs import search
from proxyless_strategy.threads import (
    AS_FAST,
    ROUNDS,
    SECONDS,
    Threads,
    candidates,
    crowded,
    fewest_of_the_fastest,
    keep_threads,
    read_threads,
    settle,
    time_threads,
    training_step,
)


class Machine:
    """A machine on which a step takes what a test says, by the number of threads."""

    def __init__(self, seconds: Callable[[int, int], float]) -> None:
        self.seconds = seconds
        self.now, self.number = 0.0, 0
        self.steps: list[int] = []

    def use(self, number: int) -> None:
        self.number = number

    def step(self) -> None:
        self.now += self.seconds(self.number, len(self.steps))
        self.steps.append(self.number)

    def clock(self) -> float:
        return self.now


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine of eight cores whose user has said nothing of threads; torch is left as it was."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "cores", lambda: 8)
    counted = 8

    def set_number(number: int) -> None:
        nonlocal counted
        counted = number

    monkeypatch.setattr(torch, "get_num_threads", lambda: counted)
    monkeypatch.setattr(torch, "set_num_threads", set_number)
    return monkeypatch


def tried(monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float]) -> None:
    monkeypatch.setattr(module, "time_threads", lambda step, numbers: {n: seconds[n] for n in numbers})


def no_step() -> Any:
    raise AssertionError("nothing is to be tried here")


# ---- trying ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "numbers"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (64, [1, 2, 32, 64])]
)
def test_one_two_half_and_all_are_tried(most: int, numbers: list[int]) -> None:
    assert candidates(most) == numbers


@pytest.mark.parametrize(
    ("seconds", "number"),
    [
        ({1: 1.0, 2: 0.5, 4: 0.25, 8: 0.125}, 8),
        ({1: 0.24, 2: 2.27}, 1),
        ({1: 1.0, 2: 0.5, 4: 0.49, 8: 0.49}, 2),
        ({1: 1.0, 2: 1.0 / (AS_FAST + 0.01)}, 2),
    ],
)
def test_the_fewest_threads_are_taken_that_are_about_as_fast_as_the_fastest(
    seconds: dict[int, float], number: int
) -> None:
    machine = Machine(lambda number, _: seconds[number] / 10)
    found = time_threads(machine.step, list(seconds), use=machine.use, clock=machine.clock)
    assert found == pytest.approx({number: value / 10 for number, value in seconds.items()})
    assert fewest_of_the_fastest(found) == number


def test_a_busy_spell_and_a_first_step_decide_nothing() -> None:
    # two threads are faster, but their first step starts them, and one later step meets another process
    machine = Machine(lambda number, steps: 5.0 if steps == 1 else 2.0 if steps == 3 else 0.1 / number)
    found = time_threads(machine.step, [1, 2], use=machine.use, clock=machine.clock)
    assert machine.steps[3] == 2
    assert fewest_of_the_fastest(found) == 2


def test_numbers_take_turns_forwards_and_backwards() -> None:
    machine = Machine(lambda *_: 0.01)
    time_threads(machine.step, [1, 2, 4], use=machine.use, clock=machine.clock)
    assert machine.steps[:9] == [1, 2, 4, 1, 2, 4, 4, 2, 1]
    assert len(machine.steps) == 3 * (1 + ROUNDS)


def test_slow_steps_are_tried_in_one_round() -> None:
    machine = Machine(lambda *_: SECONDS)
    time_threads(machine.step, [1, 2], use=machine.use, clock=machine.clock)
    assert machine.steps == [1, 2, 1, 2]


def test_a_step_to_time_leaves_the_callers_random_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "_most", lambda: 2)
    network: list[torch.nn.Module] = []

    def build() -> torch.nn.Module:
        made = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 3), torch.nn.Dropout(), torch.nn.Flatten(), torch.nn.Linear(144, 3)
        )
        network.append(made)
        return made

    before, number = torch.get_rng_state(), torch.get_num_threads()
    shape: dict[str, Any] = {"images": 4, "channels": 1, "size": 8, "classes": 3, "channels_last": True}
    found = settle("search", tmp_path, None, step=lambda: training_step(build, precision=torch.bfloat16, **shape))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_num_threads() == number
    assert found.tried.keys() == {1, 2}
    assert network[0][0].weight.grad is not None


# ---- what decides ----------------------------------------------------------------------------------------------------


def test_the_fastest_is_kept_and_taken_again(free: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tried(free, {1: 0.4, 2: 0.21, 4: 0.2, 8: 3.0})
    found = settle("search", tmp_path, None, step=no_step_needed)
    assert found.number == 2
    assert found.sentence() == (
        "2 threads: the fastest that was tried (a step takes 0.4 s on 1, 0.21 s on 2, 0.2 s on 4, 3 s on 8)"
    )
    assert json.loads((tmp_path / THREADS_FILE).read_text()) == {"search": 2}
    # another machine, another load, another wish in the environment: it goes on as it began
    free.setenv("OMP_NUM_THREADS", "8")
    free.setattr(module, "cores", lambda: 1)
    for begun in (False, True):
        again = settle("search", tmp_path, None, step=no_step, begun=begun)
        assert again.number == 2
        assert f"as it began, by {tmp_path / THREADS_FILE}, though there are 1 cores here" in again.sentence()


def no_step_needed() -> Any:
    return None  # `tried` answers


def test_settings_come_first_then_the_environment(free: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free.setenv("OMP_NUM_THREADS", "8")
    assert settle("search", tmp_path, 3, step=no_step).sentence() == "3 threads: search.threads"
    assert settle("retrain", tmp_path, None, step=no_step).sentence() == "8 threads: as OMP_NUM_THREADS says"
    assert read_threads(tmp_path) == {"search": 3, "retrain": 8}


def test_processes_share_the_cores(free: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = settle("search", tmp_path, None, step=no_step, processes=3)
    assert found.sentence() == "2 threads: 8 cores among 3 processes"
    assert settle("retrain", tmp_path, None, step=no_step, processes=99).number == 1


def test_further_processes_write_nothing(free: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert settle("search", tmp_path, None, step=no_step, processes=2, first=False).number == 4
    assert not (tmp_path / THREADS_FILE).exists()


def test_a_caller_who_has_lowered_torchs_number_gets_no_more(free: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    assert settle("search", tmp_path, None, step=no_step).sentence() == "1 thread: there is one core"
    torch.set_num_threads(2)
    tried(free, {1: 1.0, 2: 0.5})
    assert settle("retrain", tmp_path, None, step=no_step_needed).number == 2


def test_a_gpu_leaves_the_number_to_torch(free: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert settle("search", tmp_path, None, step=no_step, on_gpu=True).sentence() == "8 threads: a GPU does the work"
    assert settle("retrain", tmp_path, None, step=no_step, on_gpu=True, processes=4).number == 2


def test_a_run_of_an_earlier_version_goes_on_with_torchs_own_number_untouched(
    free: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = settle("search", tmp_path, None, step=no_step, begun=True)
    assert found.number == 8
    free.setattr(torch, "set_num_threads", no_step)
    with found.used():
        assert "OMP_NUM_THREADS" not in os.environ
    assert not (tmp_path / THREADS_FILE).exists(), "or the next start would set what this one left alone"
    assert settle("search", tmp_path, 3, step=no_step, begun=True).sentence() == "3 threads: search.threads"


def test_a_machine_with_fewer_cores_than_all_processes_took_is_told(free: pytest.MonkeyPatch, tmp_path: Path) -> None:
    keep_threads(tmp_path, {"search": 4})
    for processes, told in ((2, False), (3, True)):
        sentence = settle("search", tmp_path, None, step=no_step, processes=processes).sentence()
        assert ("though there are 8 cores here" in sentence) == told


def test_a_number_that_the_checkpoint_will_refuse_does_not_replace_the_one_it_needs(
    free: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keep_threads(tmp_path, {"retrain": 2})
    settle("retrain", tmp_path, 3, step=no_step, begun=True)
    assert read_threads(tmp_path) == {"retrain": 2}
    settle("retrain", tmp_path, 3, step=no_step)
    assert read_threads(tmp_path) == {"retrain": 3}


@pytest.mark.parametrize("content", ["", "[2]", '{"search": 0}', '{"search": "2"}', '{"search": true}', "garbage"])
def test_a_damaged_file_is_refused_and_not_replaced(content: str, tmp_path: Path) -> None:
    (tmp_path / THREADS_FILE).write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"{THREADS_FILE}.*; remove it, after which the run goes on"):
        settle("search", tmp_path, 2, step=no_step)
    assert (tmp_path / THREADS_FILE).read_text(encoding="utf-8") == content


def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / THREADS_FILE).mkdir()
    with pytest.raises(ConfigError, match="remove it"):
        read_threads(tmp_path)


@pytest.mark.parametrize("variable", [None, "5"])
def test_the_caller_has_its_own_number_back(variable: str | None, free: pytest.MonkeyPatch) -> None:
    if variable:
        free.setenv("OMP_NUM_THREADS", variable)
    with Threads(3, "a test").used():
        assert torch.get_num_threads() == 3
        assert os.environ["OMP_NUM_THREADS"] == "3", "Lightning counts for itself, and ranks inherit"
    assert torch.get_num_threads() == 8
    assert os.environ.get("OMP_NUM_THREADS") == variable


# ---- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 1.5, 10**6, "many"])
def test_impossible_numbers_are_refused(value: Any) -> None:
    for section in ("search", "retrain"):
        with pytest.raises(ConfigError, match=f"{section}.threads = "):
            parse_config({section: {"threads": value}})
    with pytest.raises(ConfigError, match="threads = "):
        load_recipe("quick", {"threads": value})


def test_folders_without_the_settings_are_of_the_same_search() -> None:
    config = parse_config({})
    assert "threads" not in config.identity()["search"]
    assert "threads" not in config.identity()["retrain"]
    assert parse_config({"retrain": None}).identity()["retrain"] is None
    assert parse_config({"search": {"threads": 2}}).identity()["search"]["threads"] == 2
    assert load_recipe("quick", {"threads": 2}).settings.threads == 2


# ---- data workers ----------------------------------------------------------------------------------------------------


class Counted(Dataset):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        return torch.get_num_threads()


def test_a_data_worker_has_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert [int(batch) for batch in DataLoader(Counted(), num_workers=1)] == [1]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("workers", "number", "processes", "on_gpu", "words"),
    [
        (0, 8, 2, False, None),  # images in memory
        (6, 2, 1, False, None),
        (7, 2, 1, False, "7 and 2 threads of training want 9 cores.*set data.workers = 6 or search.threads = 1"),
        (4, 1, 2, False, "4 and 1 thread of training in each of 2 processes want 10.*set data.workers = 3"),
        (
            2,
            8,
            1,
            False,
            "2 and 8 .*10 cores, but there are 8, so that they wait for each other; set search.threads = 6",
        ),
        (9, 8, 1, False, "9 and 8 .*set data.workers = 7 and search.threads = 1"),
        (7, 8, 1, True, None),
        (8, 8, 1, True, "8 and 1 thread of training want 9 cores.*set data.workers = 7"),
    ],
)
def test_workers_and_training_that_want_more_cores_than_there_are_are_said_to(
    workers: int, number: int, processes: int, on_gpu: bool, words: str | None, free: pytest.MonkeyPatch
) -> None:
    told = crowded(
        workers,
        Threads(number, "a test"),
        settings=("data.workers", "search.threads"),
        processes=processes,
        on_gpu=on_gpu,
    )
    if words is None:
        assert told is None
    else:
        assert told is not None
        assert re.fullmatch(f"data.workers = {words}", told)


# ---- a search --------------------------------------------------------------------------------------------------------

SPACE = {"stages": [{"width": 16, "depth": 1, "stride": 2}, {"width": 16, "depth": 1, "stride": 1}], "head_width": 32}


def test_a_search_trains_with_the_number_that_was_tried_and_goes_on_with_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Stopped after its warm-up, and gone on with where another number would be the fastest."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module, "_most", lambda: 2)
    monkeypatch.setattr(module, "cores", lambda: 2)
    monkeypatch.delenv(SILENCE, raising=False)
    monkeypatch.setattr("hardware.processor.share_of_others", lambda: 0.9)
    tried(monkeypatch, {1: 1.0, 2: 0.5})
    seen: list[tuple[str, int]] = []
    stop_after = "search"  # by then there is the checkpoint of the warm-up

    def report(metrics: dict[str, Any]) -> None:
        seen.append((metrics["phase"], torch.get_num_threads()))
        if metrics["phase"] == stop_after:
            raise KeyboardInterrupt

    config = parse_config(
        {
            "space": {"name": "small_mbconv", "options": SPACE},
            "input_size": 16,
            "hardware": {"cost": "macs", "device": "other"},
            "target": 0.5,
            "search": {"warmup_epochs": 1, "epochs": 2, "batch_size": 256, "steps_per_update": 1},
            "retrain": {"epochs": 1, "batch_size": 256},
            "out": str(tmp_path / "run"),
        }
    )
    before = torch.get_num_threads()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        search.run_search(config, on_epoch=report)
    assert torch.get_num_threads() == before
    told = capsys.readouterr()
    assert "; 2 threads: the fastest that was tried (a step takes 1 s on 1, 0.5 s on 2)" in told.out
    assert "1 x 2 CPU threads" in told.out
    assert "this machine is 90% busy" in told.err
    assert read_threads(config.out) == {"search": 2, "retrain": 2}
    assert "threads" not in json.loads((config.out / CONFIG_FILE).read_text())["search"]
    tried(monkeypatch, {1: 0.1, 2: 0.5})
    stop_after = "retrain"
    assert (config.out / SEARCH_CHECKPOINT).exists()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        search.run_search(config, on_epoch=report)
    assert {number for _, number in seen} == {2}
    told = capsys.readouterr()
    assert "; 2 threads: as it began, by " in told.out
    assert "retraining on 2 threads: as it began, by " in told.out
