"""Finalists that are trained before one is taken: who takes part, what is compared, and what a kill leaves."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from hardware.errors import ConfigError, DataError, TrainingError
from hardware.model import CostModel, macs_model
from proxyless_strategy.config import SearchConfig, parse_config
from proxyless_strategy.data.images import ImageData
from proxyless_strategy.report.page import write_page
from proxyless_strategy.retraining.teacher import distilled
from proxyless_strategy.runs import playoff, retrained, search, sensitivity
from proxyless_strategy.runs.finished import read_run
from proxyless_strategy.runs.playoff import (
    MOST_MACS,
    SEARCHED,
    SENSITIVITY,
    Played,
    Playoff,
    check_playoff,
    epochs_at_most,
    most_macs,
    retraining_loss,
)
from proxyless_strategy.runs.prepare import prepare
from proxyless_strategy.runs.search import run_search
from proxyless_strategy.strategy.derivation import Derived
from proxyless_strategy.strategy.edge import Edge
from search_spaces import get_space
from search_spaces.registry import known_spaces
from tests.search_spaces.from_timm.samples import with_weights

NAME = "mobilenetv2_035"


class Killed(BaseException):
    """What no handler of ours catches, as a kill."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_weights(NAME, tmp_path_factory.mktemp("weights"))[1]


def settings(weights: Path | str, out: Path | str, **changes: Any) -> SearchConfig:
    values: dict[str, Any] = {
        "space": {"name": f"timm:{NAME}", "options": {"kernels": [3], "expansions": [2], "weights": str(weights)}},
        "data": {
            "name": "imagefolder",
            "root": str(Path(out).parent / "drawn"),
            "draw": {"classes": 3, "train": 12, "val": 5, "size": 32},
            "augment": "none",
        },
        "input_size": 32,
        "hardware": {"cost": "params", "device": "other"},
        "target": "0.7x",
        "search": {
            "warmup_epochs": 0,
            "epochs": 1,
            "batch_size": 8,
            "steps_per_update": 1,
            "finalists": 3,
            "finalists_epochs": 2,
        },
        "retrain": {
            "epochs": 1,
            "batch_size": 8,
            "learning_rate": 1e-3,
            "weights": "inherited",
            "label_smoothing": 0.1,
        },
        "out": str(out),
    }
    for key, value in changes.items():
        inner = isinstance(value, dict) and isinstance(values.get(key), dict)
        values[key] = {**values[key], **value} if inner else value
    return parse_config(values)


# ---- before a search ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"retrain": None}, "retrain is null, by whose settings finalists are trained; set it to 0"),
        ({"search": {"devices": 2}}, "works in one process; set search.devices and search.nodes to 1, or it to 0"),
        ({"search": {"finalists_dtype": "int8"}}, "in float32, but search.finalists_dtype is int8"),
    ],
)
def test_a_training_of_finalists_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=f"^search.finalists_epochs = 2,? .*{words}") as refused:
        check_playoff(settings("none", "runs/x", **changes))
    assert "\n" not in str(refused.value)
    off = {**changes, "search": {**changes.get("search", {}), "finalists_epochs": 0}}
    check_playoff(settings("none", "runs/x", **off))


def test_it_is_refused_before_images_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxyless_strategy.runs.prepare.load_data", lambda *_, **__: pytest.fail("it loads images"))
    with pytest.raises(ConfigError, match=r"^search\.finalists_epochs = 2, but retrain is null"):
        prepare(settings("none", tmp_path / "run", retrain=None), quiet=True)


def test_too_few_images_for_a_batch_of_theirs_are_refused_before_the_search(tmp_path: Path) -> None:
    """Of which the retraining itself has enough."""
    batch = {"mixup": 0.2, "batch_size": 30, "weights": "supernet"}
    space = {"options": {"weights": "none"}}
    prepare(settings("none", tmp_path / "x", retrain=batch, space=space, search={"finalists_epochs": 0}), quiet=True)
    with pytest.raises(DataError, match="fewer than 1 full batch"):
        prepare(settings("none", tmp_path / "x", retrain=batch, space=space), quiet=True)


@pytest.mark.parametrize(
    ("changes", "epochs"),
    [
        ({}, 2 * 3),
        ({"search": {"start": "sensitivity"}}, 2 * 4),
        ({"search": {"finalists": 1}}, 2 * 2),
        ({"target": None}, 2 * 2),
        ({"hardware": {"cost": "macs"}}, 2 * 2),
        ({"search": {"finalists_epochs": 0}}, 0),
        ({"rule": "sensitivity"}, 0),
    ],
)
def test_the_forecast_counts_every_network_that_may_be_trained(changes: dict[str, Any], epochs: int) -> None:
    assert epochs_at_most(settings("none", "runs/x", **changes)) == epochs


# ---- who takes part ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e6])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_the_subnet_of_most_macs_is_that_of_all_enumerated_ones(share: float, scale: float) -> None:
    """Of networks of any size: the deriver takes no gains below -700."""
    space = get_space("small_mbconv")
    costs = space.costs(32)
    edges = [Edge(label, tuple(options)) for label, options in costs.edges.items()]
    generator = np.random.default_rng(3)
    drawn = {op: float(generator.uniform(1, 2)) for op in costs.distinct()}
    cost = CostModel(lambda op: drawn.get(op, 0.0), fixed=costs.fixed, edges=costs.edges, unit="x")
    macs = macs_model(costs.fixed, costs.edges)
    large = CostModel(
        lambda op: scale * macs_model([op], {}).fixed, fixed=costs.fixed, edges=costs.edges, unit="M MACs"
    )
    low, high = cost.minimum()[0], cost.maximum()[0]
    target = low + share * (high - low)
    found = most_macs(edges, cost, large, target)
    names = {label: str(name) for label, name in found.names.items()}
    feasible = [
        choices
        for values in itertools.product(*costs.edges.values())
        if cost.cost(choices := dict(zip(costs.edges, values, strict=True))) <= target
    ]
    assert cost.cost(names) <= target
    assert macs.cost(names) == pytest.approx(max(macs.cost(choices) for choices in feasible), rel=1e-3)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", known_spaces())
@pytest.mark.parametrize("noise", [0.0, 1e-3])
def test_macs_that_go_with_the_costs_do_not_hold_it_up(name: str, noise: float) -> None:
    """To fill such a target exactly is a subset sum."""
    space = get_space(name)
    costs = space.costs(32)
    generator = np.random.default_rng(0)
    drawn = {op: 1 + noise * float(generator.uniform()) for op in costs.distinct()}
    macs = macs_model(costs.fixed, costs.edges)
    cost = CostModel(
        lambda op: drawn.get(op, 1.0) * macs_model([op], {}).fixed, fixed=costs.fixed, edges=costs.edges, unit="x"
    )
    edges = [Edge(label, tuple(options)) for label, options in costs.edges.items()]
    target = (cost.minimum()[0] + cost.maximum()[0]) / 2
    assert 0.98 * target <= most_macs(edges, cost, macs, target).cost <= target


# ---- what is compared --------------------------------------------------------------------------------------------


class Fixed(nn.Module):
    """The same outputs whatever the image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(x), -1)


class TwoLabels:
    """Six images, of which the first four are of class 0."""

    def loader(self, part: str, *, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        assert part == "test"
        # a smaller last batch counts by its images
        yield torch.zeros(4, 1, 2, 2), torch.tensor([0, 0, 0, 0])
        yield torch.zeros(2, 1, 2, 2), torch.tensor([1, 1])


def test_the_loss_is_the_retrainings_without_its_label_smoothing() -> None:
    model, recipe = Fixed(1.0, -1.0).eval(), settings("none", "runs/x").retraining
    assert recipe is not None
    data: Any = TwoLabels()
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    by_labels = (4 * right + 2 * wrong) / 6
    assert retraining_loss(model, data, recipe, None) == pytest.approx(by_labels)
    weight, temperature = recipe.teacher_weight, recipe.teacher_temperature
    assert retraining_loss(model, data, recipe, Fixed(1.0, -1.0)) == pytest.approx((1 - weight) * by_labels)
    teacher = Fixed(-1.0, 0.5)
    taught = distilled(
        torch.tensor(by_labels), model.logits[None], teacher.logits[None], temperature=temperature, weight=weight
    )
    assert retraining_loss(model, data, recipe, teacher) == pytest.approx(float(taught))
    assert functional.cross_entropy(model.logits[None], torch.tensor([0])).item() == pytest.approx(right)


def played(loss: float, *sources: str) -> Played:
    return Played(Derived((0,), 1.0, -1.0, {"edge": "a"}), sources, loss)


@pytest.mark.parametrize(
    ("networks", "beaten_by"),
    [
        ([played(0.5, SEARCHED), played(0.6, SENSITIVITY), played(0.7, MOST_MACS)], []),
        ([played(0.5, SENSITIVITY), played(0.6, SEARCHED), played(0.7, MOST_MACS)], ["knapsack"]),
        ([played(0.5, MOST_MACS), played(0.6, SEARCHED), played(0.7, SEARCHED)], ["most MACs"]),
        ([played(0.5, SEARCHED, SENSITIVITY, MOST_MACS)], ["knapsack", "most MACs"]),
        ([played(0.5, SENSITIVITY), played(math.nan, SEARCHED)], ["knapsack"]),
        ([played(0.5, SEARCHED), played(math.nan, MOST_MACS)], []),
    ],
)
def test_a_search_that_a_cheaper_way_equals_says_so(networks: list[Played], beaten_by: list[str]) -> None:
    found = Playoff(2, tuple(networks)).warnings()
    assert [warning.code for warning in found] == ["not_better"] * len(beaten_by)
    for warning, name in zip(found, beaten_by, strict=True):
        assert name in warning.sentence
        assert "both after 2 epochs of training each" in warning.sentence


# ---- a whole search ----------------------------------------------------------------------------------------------


Noted = list[dict[str, Any]]


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Noted:
    """What every training of a finalist was given."""
    found: Noted = []
    train = playoff.train

    def noted(build: Any, data: ImageData, recipe: Any, **others: Any) -> Any:
        given = {"data": data, "recipe": recipe, "start": build().state_dict(), "threads": torch.get_num_threads()}
        found.append({**given, **others})
        return train(build, data, recipe, **others)

    monkeypatch.setattr(playoff, "train", noted)
    return found


def losses(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    left = iter(values)
    monkeypatch.setattr(playoff, "retraining_loss", lambda *_: next(left))


def test_the_one_of_least_loss_is_exported_and_finalists_are_trained_as_it_will_be(
    weights: Path, tmp_path: Path, trainings: Noted, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    losses(monkeypatch, 0.9, 0.8, 0.4)
    config = settings(weights, tmp_path / "run", search={"threads": 1}, retrain={"threads": 3})
    result = run_search(config)
    assert len(trainings) == 3
    for given in trainings:
        assert given["threads"] == 3
        data, recipe = given["data"], given["recipe"]
        seen, judged = set(data.training.indices), set(data.test.indices)
        assert seen == set(data.weights.indices)
        assert judged == set(data.architecture.indices)
        assert not seen & judged
        assert config.retraining is not None
        assert recipe == config.retraining.model_copy(update={"epochs": 2})
    record = json.loads((tmp_path / "run" / "search.json").read_text())
    assert record["finalists_epochs"] == 2
    assert [finalist["loss"] for finalist in record["finalists"]] == [0.4, 0.8, 0.9]
    assert record["finalists"][0]["found_by"] == [MOST_MACS]
    assert record["finalists"][0]["choices"] == dict(result.subnet.choices)
    assert "did not beat the subnet of most MACs" in " ".join(record["warnings"])
    assert "did not beat the subnet of most MACs" in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("finalist-*"))
    run = read_run(tmp_path / "run")
    assert (run.finalists_epochs, run.finalists[0].loss) == (2, 0.4)
    write_page(tmp_path / "run", tmp_path / "page.html")
    assert "after 2 epochs of training each" in (tmp_path / "page.html").read_text()


@pytest.mark.parametrize("kept", ["supernet", "inherited"])
def test_finalists_start_from_the_weights_that_the_subnet_will_start_from(
    kept: str, weights: Path, tmp_path: Path, trainings: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses(monkeypatch, 0.4, 0.8, 0.9)
    starts: list[dict[str, torch.Tensor]] = []
    train = retrained.train

    def noted(build: Any, *given: Any, **others: Any) -> Any:
        starts.append(build().state_dict())
        return train(build, *given, **others)

    monkeypatch.setattr(retrained, "train", noted)
    run_search(settings(weights, tmp_path / "run", retrain={"weights": kept}))
    first, own = trainings[0]["start"], starts[0]
    assert list(first) == list(own)
    for name, value in first.items():
        torch.testing.assert_close(value, own[name], rtol=0, atol=0)


def finalists_of(out: Path) -> Any:
    return json.loads((out / "search.json").read_text())["finalists"]


@pytest.fixture(scope="module")
def undisturbed(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The finalists of a search that nothing has ended."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    run_search(settings(weights, out))
    return finalists_of(out)


def test_a_killed_comparison_goes_on_with_what_was_trained(
    weights: Path, undisturbed: Any, tmp_path: Path, trainings: Noted, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = playoff.write_atomically

    def killed(*given: Any, **others: Any) -> None:
        write(*given, **others)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(playoff, "write_atomically", killed)
        with pytest.raises(Killed):
            run_search(settings(weights, tmp_path / "run"))
    assert len(trainings) == 1
    run_search(settings(weights, tmp_path / "run"))
    assert len(trainings) == 3
    assert finalists_of(tmp_path / "run") == undisturbed
    # the first one's checkpoint was there when its loss was written
    assert not list((tmp_path / "run").glob("finalist-*"))


def test_one_that_is_killed_in_its_training_goes_on_from_its_checkpoint(
    weights: Path, undisturbed: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, places = playoff.train, []

    def killed(*given: Any, on_place: Any, **others: Any) -> Any:
        def placed(place: float) -> None:
            places.append(place)
            # in the second epoch of the first one
            if place > 1:
                raise Killed

        return train(*given, on_place=placed, **others)

    with monkeypatch.context() as patch:
        patch.setattr(playoff, "train", killed)
        with pytest.raises(Killed):
            run_search(settings(weights, tmp_path / "run"))
    assert list((tmp_path / "run").glob("finalist-*.ckpt"))
    run_search(settings(weights, tmp_path / "run"))
    assert finalists_of(tmp_path / "run") == undisturbed
    assert not list((tmp_path / "run").glob("finalist-*"))


def test_what_finalists_were_trained_by_is_the_subnets_recipe_too(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(search, "trained_subnet", killed)
        with pytest.raises(Killed):
            run_search(settings(weights, tmp_path / "run"))
    other = settings(weights, tmp_path / "run", retrain={"learning_rate": 1e-4})
    with pytest.raises(
        ConfigError, match=r"other settings \(retrain.learning_rate = 0.001 there, .*; choose another out or"
    ):
        run_search(other)


def diverges(*which: int) -> Callable[..., Any]:
    train, calls = playoff.train, itertools.count()

    def maybe(*given: Any, **others: Any) -> Any:
        if next(calls) in which:
            raise TrainingError("the loss is no longer finite")
        return train(*given, **others)

    return maybe


def test_one_whose_loss_is_no_number_ranks_last(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses(monkeypatch, math.nan, 0.8, 0.4)
    run_search(settings(weights, tmp_path / "run"))
    record = json.loads((tmp_path / "run" / "search.json").read_text())
    assert [finalist["loss"] for finalist in record["finalists"]] == [0.4, 0.8, None]


def test_one_whose_training_diverges_ranks_last(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(playoff, "train", diverges(0))
    run_search(settings(weights, tmp_path / "run"))
    record = json.loads((tmp_path / "run" / "search.json").read_text())
    assert [finalist["loss"] is None for finalist in record["finalists"]] == [False, False, True]
    assert "a finalist ranks last: the loss is no longer finite" in capsys.readouterr().err


def test_a_search_all_of_whose_finalists_diverge_is_refused(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playoff, "train", diverges(0, 1, 2))
    with pytest.raises(TrainingError, match=r"none of 3 finalists .* after 2 epochs; lower retrain.learning_rate"):
        run_search(settings(weights, tmp_path / "run"))


def test_a_start_from_sensitivities_is_held_against_the_trained_knapsack(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses(monkeypatch, 0.9, 0.8, 0.4, 0.7)
    options: Noted = []
    strategy = search.ProxylessStrategy
    monkeypatch.setattr(search, "ProxylessStrategy", lambda **given: options.append(given) or strategy(**given))
    for name in ("CALIBRATION_IMAGES", "EVALUATION_IMAGES", "PROBE_IMAGES"):
        monkeypatch.setattr(sensitivity, name, 64)
    run_search(settings(weights, tmp_path / "run", search={"start": "sensitivity"}))
    record = json.loads((tmp_path / "run" / "search.json").read_text())
    own, knapsack = record["sensitivity"]["search_loss"], record["sensitivity"]["knapsack_loss"]
    by_source = {source: f["loss"] for f in record["finalists"][::-1] for source in f["found_by"]}
    assert (own, knapsack) == (by_source[SEARCHED], by_source[SENSITIVITY])
    row = json.loads((tmp_path / "run" / "row.json").read_text())
    assert (row["search_loss"], row["knapsack_loss"], row["finalists_epochs"]) == (own, knapsack, 2)
    # which is no contender under the supernet's weights then, nor said to have won there
    assert "start" in options[0]
    assert "contender" not in options[0]
