"""Costs of candidates that are timed themselves: what is summed, what is left out, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from nni.nas.nn.pytorch import Cell, InputChoice, LayerChoice, ModelSpace, Repeat
from torch import nn

from hardware.errors import ConfigError, SpaceError, UnsupportedSpaceError
from hardware.measuring.sampling import Plan
from hardware.model import given_costs
from proxyless_strategy import ProxylessStrategy, measure_modules
from proxyless_strategy.benchmark import module_costs

QUICK = Plan(rounds=2, minimum_rounds=2, seconds=0.0, sample_ms=0.01, extra_rounds=0)
IMAGE = torch.zeros(1, 2, 8, 8)


class Work(nn.Module):
    """Takes `units` of the clock below."""

    now = 0.0

    def __init__(self, units: float):
        super().__init__()
        self.units = units

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        Work.now += self.units / 1e3
        return x


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count units of work in place of seconds: sums are then exact."""
    monkeypatch.setattr(time, "thread_time", lambda: Work.now)
    monkeypatch.setattr(time, "perf_counter", lambda: Work.now)


class Nested(ModelSpace):
    """Two shared choices, a nested one, a depth, and 10 units beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Work(10)
        self.first = LayerChoice({"a": Work(1), "b": Work(2)}, label="shared")
        self.second = LayerChoice({"a": Work(3), "b": Work(5)}, label="shared")
        inner = LayerChoice({"x": Work(7), "y": Work(11)}, label="inner")
        self.outer = LayerChoice({"skip": nn.Identity(), "deep": nn.Sequential(Work(13), inner)}, label="outer")
        self.depth = Repeat(lambda index: Work(2 * (index + 1)), (1, 3), label="depth")
        self.source = InputChoice(2, n_chosen=1, label="source")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.second(self.first(self.stem(x)))
        return self.source([self.depth(self.outer(x)), x])


def rows(model: Any) -> dict[str, dict[str, float]]:
    return {
        label: {name: round(float(ms), 6) for name, ms in zip(names, model.costs[row], strict=False)}
        for row, (label, names) in enumerate(zip(model.labels, model.candidates, strict=True))
    }


EXPECTED = {
    "shared": {"a": 4.0, "b": 7.0},
    "outer": {"skip": 0.0, "deep": 13.0},
    "inner": {"x": 7.0, "y": 11.0},
    "depth": {"1": 2.0, "2": 6.0, "3": 12.0},
    "source": {"0": 0.0, "1": 0.0},
}


@pytest.mark.usefixtures("clock")
def test_costs_are_those_of_the_parts() -> None:
    model = measure_modules(Nested(), IMAGE, plan=QUICK)
    assert rows(model) == EXPECTED
    assert model.constant == pytest.approx(10)
    assert model.error == pytest.approx(0, abs=1e-9)
    assert (model.nets, model.unit) == (module_costs.NETS, "ms")


@pytest.mark.usefixtures("clock")
def test_given_figures_stand_and_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[Any] = []
    original = module_costs.interleaved

    def noting(timers: Mapping[Any, Callable[[int], float]], **options: Any) -> Any:
        timed.extend(timers)
        return original(timers, **options)

    monkeypatch.setattr(module_costs, "interleaved", noting)
    model = measure_modules(Nested(), IMAGE, plan=QUICK, costs={"outer": {"deep": 2.5}, "shared": {"a": 1.0}})
    assert rows(model) == {
        **EXPECTED,
        "outer": {"skip": 0.0, "deep": 2.5},
        "shared": {"a": 1.0, "b": 7.0},
    }
    assert ("outer.deep", None) not in timed
    assert ("first.a", None) not in timed
    assert ("first.b", None) in timed


@pytest.mark.usefixtures("clock")
def test_a_wrong_sum_shows_in_the_error() -> None:
    honest = measure_modules(Nested(), IMAGE, plan=QUICK)
    wrong = measure_modules(Nested(), IMAGE, plan=QUICK, costs={"shared": {"a": 40.0}})
    assert wrong.error > honest.error + 0.1


def test_the_space_stays_as_it_is() -> None:
    space = Nested().train()
    measure_modules(space, IMAGE, plan=QUICK)
    assert type(space.first) is LayerChoice
    assert space.training


def test_a_strategy_takes_the_costs() -> None:
    strategy = ProxylessStrategy(cost=measure_modules(Nested(), IMAGE, plan=QUICK), target_share=0.5)
    strategy.mutate_model(Nested())
    assert strategy.target is not None


class Small(ModelSpace):
    def __init__(self) -> None:
        super().__init__()
        self.choice = LayerChoice({"one": nn.Conv2d(2, 2, 1), "three": nn.Conv2d(2, 2, 3, padding=1)}, label="conv")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.choice(x).mean((2, 3))


@pytest.mark.slow
def test_candidates_are_timed_as_they_are_deployed() -> None:
    model = measure_modules(Small(), IMAGE, backend="onnxruntime", plan=QUICK)
    assert model.labels == ("conv",)
    assert (model.costs >= 0).all()
    assert model.constant >= 0


@pytest.mark.parametrize(
    ("costs", "words"),
    [
        ({"no": {"a": 1.0}}, "unknown label 'no'; the space has conv"),
        ({"conv": {"two": 1.0}}, "unknown candidate 'two' of conv; it has one, three"),
        ({"conv": {"one": -1.0}}, "costs of conv, one: -1.0; give ms, 0 or more"),
        ({"conv": {"one": float("nan")}}, "costs of conv, one: nan"),
    ],
)
def test_impossible_figures_are_refused(costs: Any, words: str) -> None:
    with pytest.raises(SpaceError, match=words):
        measure_modules(Small(), IMAGE, costs=costs, plan=QUICK)


def test_a_backend_without_onnx_files_is_refused() -> None:
    with pytest.raises(ConfigError, match="runs no ONNX files"):
        measure_modules(Small(), IMAGE, backend="inductor", plan=QUICK)


def test_a_cell_without_figures_is_refused() -> None:
    class WithCell(ModelSpace):
        def __init__(self) -> None:
            super().__init__()
            operators = {"a": lambda *_: nn.Identity(), "b": lambda *_: nn.Identity()}
            self.cell = Cell(operators, 1, 1, 1, "all", label="cell")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.cell([x])

    with pytest.raises(UnsupportedSpaceError, match=r"Cell at cell.*give its figures as costs"):
        measure_modules(WithCell(), IMAGE, plan=QUICK)


def test_equal_figures_at_different_places_stay_apart() -> None:
    model = given_costs({"first": {"a": 1.0, "b": 2.0}, "second": {"a": 3.0}}, constant=0.5)
    assert model.cost({"first": "a", "second": "a"}) == 4.5
    assert model.minimum() == (4.5, {"first": "a", "second": "a"})
    with pytest.raises(SpaceError, match="the cost of 'a' at 'first' is inf; give 0 or more"):
        given_costs({"first": {"a": float("inf")}})
