"""Deterministic algorithms: chosen inside, put back outside, and the same numbers on a CPU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.backends import cudnn

from hardware.errors import ConfigError, TrainingError
from proxyless_strategy.config import SearchConfig, parse_config
from proxyless_strategy.determinism import WORKSPACE, deterministic, prepare_cublas
from proxyless_strategy.export.folder import load_exported
from proxyless_strategy.runs import checkpoints
from proxyless_strategy.runs.search import run_search

SETTING = "search.deterministic"
SPACE = {"name": "small_mbconv", "options": {"stages": [{"width": 8, "depth": 1, "stride": 2}], "head_width": 32}}


def chosen() -> tuple[bool, ...]:
    """Everything that the context changes."""
    memory: Any = torch.utils.deterministic
    algorithms = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    return (*algorithms, memory.fill_uninitialized_memory, cudnn.deterministic, cudnn.benchmark)


@pytest.fixture(params=[(False, False, True, False, False), (True, True, False, False, True)], ids=["usual", "other"])
def before(request: pytest.FixtureRequest) -> Any:
    """The caller's own choice."""
    memory: Any = torch.utils.deterministic

    def choose(algorithms: bool, warn_only: bool, fill: bool, of_cudnn: bool, benchmark: bool) -> None:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        memory.fill_uninitialized_memory, cudnn.deterministic, cudnn.benchmark = fill, of_cudnn, benchmark

    kept = chosen()
    choose(*request.param)
    yield request.param
    choose(*kept)


def test_only_deterministic_algorithms_run_inside_and_the_callers_choice_holds_after(before: tuple[bool, ...]) -> None:
    with deterministic(True, setting=SETTING, cuda=False):
        assert chosen() == (True, False, False, True, False)
        with deterministic(True, setting=SETTING, cuda=False):
            pass
        with deterministic(False, setting=SETTING, cuda=False):
            assert chosen() == (True, False, False, True, False)
    assert chosen() == before
    with deterministic(False, setting=SETTING, cuda=False):
        assert chosen() == before
    with pytest.raises(KeyError), deterministic(True, setting=SETTING, cuda=False):
        raise KeyError
    assert chosen() == before


def test_an_operation_without_a_deterministic_form_is_named_with_the_remedy() -> None:
    with (
        pytest.raises(TrainingError, match=rf"^{SETTING} = true, but put_ has no deterministic.*{SETTING} = false"),
        deterministic(True, setting=SETTING, cuda=False),
    ):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.ones(2))
    with pytest.raises(RuntimeError, match="another"), deterministic(True, setting=SETTING, cuda=False):
        raise RuntimeError("another")


# ---- cuBLAS ------------------------------------------------------------------------------------------------------


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A GPU that has not been used."""
    monkeypatch.delenv(WORKSPACE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    return monkeypatch


def test_cublas_is_told_before_cuda_starts(gpu: pytest.MonkeyPatch) -> None:
    prepare_cublas(None)
    assert WORKSPACE not in os.environ
    gpu.setenv(WORKSPACE, "")  # so that it is put back after the test
    del os.environ[WORKSPACE]
    prepare_cublas(SETTING)
    assert os.environ[WORKSPACE] == ":4096:8"
    gpu.setattr(torch.cuda, "is_initialized", lambda: True)
    prepare_cublas(SETTING)  # told in time


def test_a_choice_that_is_deterministic_stays(gpu: pytest.MonkeyPatch) -> None:
    gpu.setenv(WORKSPACE, ":16:8")
    prepare_cublas(SETTING)
    assert os.environ[WORKSPACE] == ":16:8"


def test_cublas_that_cannot_be_told_is_refused_before_any_work(gpu: pytest.MonkeyPatch) -> None:
    gpu.setenv(WORKSPACE, ":0:0")
    with pytest.raises(ConfigError, match=rf"{WORKSPACE} to be :4096:8 or :16:8, but the environment says ':0:0'"):
        prepare_cublas(SETTING)
    gpu.delenv(WORKSPACE)
    gpu.setattr(torch.cuda, "is_initialized", lambda: True)
    before = chosen()
    with (
        pytest.raises(ConfigError, match="has used it already; set it and start again"),
        deterministic(True, setting=SETTING, cuda=True),
    ):
        pass
    assert chosen() == before


# ---- a search ----------------------------------------------------------------------------------------------------


def settings(out: Path, *, search: bool, retrain: bool | None = None) -> SearchConfig:
    return parse_config(
        {
            "space": SPACE,
            "data": "digits",
            "input_size": 16,
            "hardware": {"cost": "macs", "device": "other"},
            "target": 0.5,
            "search": {
                "warmup_epochs": 0,
                "epochs": 2,
                "steps_per_update": 2,
                "batch_size": 128,
                "threads": 1,
                "deterministic": search,
            },
            "retrain": {"epochs": 1, "batch_size": 128, "threads": 1, "deterministic": retrain},
            "out": str(out),
        }
    )


def found(out: Path) -> tuple[Any, ...]:
    """What two searches must agree on to be the same."""
    record = json.loads((out / "search.json").read_text())
    return record["subnet"], record["probabilities"], record["history"], load_exported(out / "model").state_dict()


def assert_same(first: tuple[Any, ...], second: tuple[Any, ...]) -> None:
    assert first[:-1] == second[:-1]
    assert [name for name, value in first[-1].items() if not torch.equal(value, second[-1][name])] == []


@pytest.mark.parametrize(
    ("search", "retrain", "both"),
    [(True, None, (True, True)), (True, False, (True, False)), (False, None, (False, False))],
)
def test_retraining_is_as_the_search_is_unless_it_says_otherwise(
    search: bool, retrain: bool | None, both: tuple[bool, bool], tmp_path: Path
) -> None:
    config = settings(tmp_path, search=search, retrain=retrain)
    assert config.retraining is not None
    assert (config.search.deterministic, config.retraining.deterministic) == both
    assert config.deterministic == (SETTING if search else None)


def test_a_retraining_alone_asks_for_it_too(tmp_path: Path) -> None:
    assert settings(tmp_path, search=False, retrain=True).deterministic == "retrain.deterministic"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here, where results may differ")
def test_on_a_cpu_it_changes_no_result(tmp_path: Path) -> None:
    runs = []
    for wanted in (False, True):
        seen: set[tuple[str, bool]] = set()

        def note(row: dict[str, Any], seen: set[tuple[str, bool]] = seen) -> None:
            seen.add((row["phase"], torch.are_deterministic_algorithms_enabled()))

        run_search(settings(tmp_path / str(wanted), search=wanted), on_epoch=note)
        assert seen == {("search", wanted), ("retrain", wanted)}
        assert not torch.are_deterministic_algorithms_enabled()
        runs.append(found(tmp_path / str(wanted)))
    assert_same(*runs)


def test_a_search_without_it_is_not_gone_on_with_by_one_with_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "config.json").write_text(json.dumps(settings(out, search=False).identity()))
    with pytest.raises(ConfigError, match=r"holds a search with other settings \(search\.deterministic = false there"):
        run_search(settings(out, search=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_on_a_gpu_a_search_that_was_killed_ends_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    run_search(settings(tmp_path / "whole", search=True))

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.SearchCheckpoints, "on_train_end", killed)
        with pytest.raises(Killed):
            run_search(settings(tmp_path / "run", search=True))
    run_search(settings(tmp_path / "run", search=True))
    assert_same(found(tmp_path / "whole"), found(tmp_path / "run"))
