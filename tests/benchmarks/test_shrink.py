"""The benchmark of shrinking: which networks it trains, and what it says of them."""

from __future__ import annotations

import doctest
import json
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from hardware.errors import ConfigError
from hardware.measuring.sampling import Measurement
from proxyless_strategy.config import parse_config
from proxyless_strategy.runs.early_checks import check_sensitivity
from proxyless_strategy.shrinking.plan import SEARCH_SETTINGS
from search_spaces import users_space

from . import shrink

SETTING = shrink.Setting(Path("out"), Path("weights"))


def test_its_examples_hold() -> None:
    assert doctest.testmod(shrink).failed == 0


def test_every_way_is_gone_at_every_share_and_seed() -> None:
    jobs = shrink.jobs_of(SETTING)
    for name in ("found", *shrink.CHEAP):
        assert {(job.seed, job.share) for job in jobs if job.name == name} == {
            (seed, share) for seed in range(3) for share in (0.6, 0.4)
        }
    for share in (0.6, 0.4):
        numbers = [job.number for job in jobs if job.name == "random" and job.share == share]
        assert sorted(numbers) == list(range(1, 21)), "20 over all seeds, none twice"
    assert {(job.seed, job.share) for job in jobs if job.name == "curve"} == {
        (seed, share) for seed in range(3) for share in (0.8, 0.4)
    }
    assert {(job.seed, job.share) for job in jobs if job.name == "supernet_weights"} == {
        (seed, 0.6) for seed in range(3)
    }
    assert len({(job.seed, job.key) for job in jobs}) == len(jobs), "results do not overwrite each other"
    assert set(shrink.WAYS) == {"shared", *(job.name for job in jobs)}


def test_what_is_close_has_more_seeds_and_all_else_stays() -> None:
    usual, more = shrink.jobs_of(SETTING), shrink.jobs_of(replace(SETTING, close_seeds=5))
    assert [replace(job, setting=SETTING) for job in more if job.seed < 3] == usual
    further = [(job.name, job.seed, job.share) for job in more if job.seed >= 3]
    names = ("found", "most_macs", "sensitivity")
    assert sorted(further) == sorted((name, seed, share) for name in names for seed in (3, 4) for share in (0.6, 0.4))
    fewer = replace(SETTING, close_seeds=2)
    assert [replace(job, setting=SETTING) for job in shrink.jobs_of(fewer)] == usual


def test_the_greatest_side_that_is_fast_enough(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shrink, "_write_onnx", lambda model, path, side: None)

    def measured(paths: list[Path], **_: Any) -> list[Measurement]:
        return [Measurement.of([float(path.stem) ** 2]) for path in paths]

    monkeypatch.setattr(shrink, "measure_model_files", measured)
    assert shrink.lower_side(nn.Identity(), 96, 0.6, tmp_path) == 72  # 72 / 96 squared is 0.5625, 76 gives 0.627
    with pytest.raises(shrink.Unreachable, match=r"on images of 16 pixels the original takes \d\.\d\dx"):
        shrink.lower_side(nn.Identity(), 96, 0.02, tmp_path)


@pytest.mark.parametrize(("weights", "epochs"), [("inherited", 3), ("supernet", 6)])
def test_a_search_from_fresh_weights_asks_no_weights_and_trains_as_long(weights: str, epochs: int) -> None:
    config = parse_config(
        {
            "space": {"name": "timm:mobilenetv2_050", "options": {"weights": "pretrained", "kernels": [3]}},
            "data": "digits",
            "input_size": 16,
            "hardware": {"cost": "macs", "device": "other"},
            "target": 0.5,
            "search": {**SEARCH_SETTINGS, "start": "sensitivity", "warmup_epochs": 1, "epochs": 2, "layer_decay": 0.8},
            "retrain": {"epochs": 6, "weights": weights, "learning_rate": 0.01},
            "out": "runs/fresh",
        }
    )
    found = shrink.fresh(config, 2)
    assert found.retrain is not None
    assert (found.search.warmup_epochs, found.search.epochs) == (3, 2), "the start's epochs are a warm-up"
    assert (found.retrain.weights, found.retrain.epochs) == ("supernet", epochs)
    assert found.retrain.learning_rate == shrink.FRESH_RATE
    assert (found.search.learning_rate, found.search.layer_decay) == (shrink.FRESH_RATE, None)
    assert found.search.weight_paths == "uniform"
    # it is a search that may begin, which the one with weights would not be without them
    space = users_space(found.space.name, **found.space.options)
    assert check_sensitivity(found, space) == []
    with pytest.raises(ConfigError, match="asks what inherited weights say"):
        check_sensitivity(config, space)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept = 1.0

    def get_classifier(self) -> nn.Module:
        return self


def pruner(network: Net, _: Any, *, pruning_ratio: float, iterative_steps: int, **options: Any) -> Any:
    assert options["ignored_layers"] == [network]

    def step() -> None:
        network.kept -= pruning_ratio / iterative_steps

    return types.SimpleNamespace(step=step)


@pytest.mark.parametrize("share", [0.6, 0.4])
def test_a_network_is_pruned_until_it_is_as_fast_and_no_further(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = types.ModuleType("torch_pruning")
    module.pruner = types.SimpleNamespace(BasePruner=pruner)
    module.importance = types.SimpleNamespace(GroupMagnitudeImportance=lambda **_: None)
    monkeypatch.setitem(sys.modules, "torch_pruning", module)
    found = shrink.pruned_to(Net, share, 32, lambda network: network.kept, tries=10)
    assert share - 0.002 <= found.kept <= share
    with pytest.raises(shrink.Unreachable, match=r"no network within 0\.01x"):
        shrink.pruned_to(Net, 0.01, 32, lambda network: network.kept)


def test_a_pruned_network_is_kept_for_the_training_that_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    setting = shrink.Setting(tmp_path, Path("weights"))
    job = shrink.Job(setting, "torch_pruning", 0, 0.6)
    pruned = [nn.Linear(3, 2), nn.Linear(3, 1)]  # a repeated measurement leads to another
    trained: list[int] = []
    monkeypatch.setattr(shrink, "pruned_to", lambda *_: pruned.pop(0))
    monkeypatch.setattr(shrink, "_trained", lambda job, ready, build: trained.append(build().out_features))
    ready: Any = types.SimpleNamespace(config=types.SimpleNamespace(out=tmp_path))
    for _ in range(2):
        shrink._torch_pruning(job, ready)
    assert trained == [2, 2]


def test_the_last_line_is_of_all_seeds(tmp_path: Path) -> None:
    setting = shrink.Setting(tmp_path, Path("weights"), seeds=2, close_seeds=3, randoms=2, shares=(0.6,), curve=(0.4,))
    jobs = shrink.jobs_of(setting)
    shared = [shrink.Job(setting, "shared", seed, 0.6) for seed in range(3)]
    for seed in range(3):
        own = [job for job in [*shared, *jobs] if job.seed == seed]
        for job in own:
            job.result.parent.mkdir(parents=True, exist_ok=True)
            row = {"accuracy": 0.8 + 0.1 * seed, "params": 10}
            row = {"missing": "too slow"} if job.name == "lower_resolution" else row
            row |= {"found_by": "search" if seed else "most_macs"} if job.name == "found" else {}
            job.result.write_text(json.dumps({**row, "minutes": 1.5}))
        ms = {job.key: 2.0 if job.name == "shared" else 1.0 for job in own if job.name != "lower_resolution"}
        (setting.folder(seed) / "ms.json").write_text(json.dumps(ms))
    last = shrink.summary(setting, jobs)
    assert last["original"] == {
        "accuracy": 0.9,
        "ci": [0.65159, 1.14841],
        "ms": 2.0,
        "measured_share": 1.0,
        "params": 10,
        "count": 3,
    }
    assert last["rows"][0]["ahead_of_original"] == {"mean": 0.0, "ci": [0.0, 0.0]}
    assert last["fresh"]["0.6"]["found_ahead"] == {"mean": 0.0, "ci": [0.0, 0.0]}
    rows = [(row["share"], row["measured_share"], row["count"]) for row in last["rows"]]
    assert rows == [(0.6, 0.5, 3), (0.4, 0.5, 2)]
    assert last["rows"][0]["found_by"] == {"most_macs": 1, "search": 2}
    assert (last["most_macs"]["0.6"]["count"], last["uniform"]["0.6"]["count"]) == (3, 2)
    assert last["rows"][1]["derived_from"] == 0.6
    assert last["random"]["0.6"]["mean"] == 0.85
    assert last["lower_resolution"] == {"0.6": {"accuracy": None, "missing": "too slow"}}
    assert last["minutes"] == 1.5 * (len(jobs) + 3)
    assert set(last) == {"original", "rows", "random", *shrink.CHEAP, "supernet_weights", "minutes"}
