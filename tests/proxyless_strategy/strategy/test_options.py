"""Options are checked once; former names go on working."""

import dataclasses
import inspect
import math

import pytest

from hardware.errors import ConfigError
from proxyless_strategy.strategy.options import SearchOptions, announce
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from tests.proxyless_strategy import tiny


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "darts"},
        {"estimator": "best"},
        {"paths": "some"},
        {"steps_per_update": 0},
        {"samples": 1},
        {"warmup_epochs": -1},
        {"target": 0.5},
        {"slack": 1.5},
        {"finalists": 0},
        {"weight_paths": "best"},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ConfigError):
        ProxylessStrategy(**options)


def test_impossible_targets_name_the_argument_and_its_value():
    with pytest.raises(ConfigError, match=r"target_share = 1.5; it must be in \[0, 1\]"):
        ProxylessStrategy(cost=tiny.costs(), target_share=1.5)
    with pytest.raises(ConfigError, match="target_share = nan"):
        ProxylessStrategy(cost=tiny.costs(), target_share=math.nan)
    with pytest.raises(ConfigError, match=r"target = 8.0 and target_share = 0.5 are both given"):
        ProxylessStrategy(cost=tiny.costs(), target=8.0, target_share=0.5)
    with pytest.raises(ConfigError, match=r"target_share = 0.5 needs costs; give cost="):
        ProxylessStrategy(target_share=0.5)


def test_the_strategys_defaults_are_those_of_its_options():
    assert ProxylessStrategy().options == SearchOptions()
    signature = inspect.signature(ProxylessStrategy.__init__).parameters
    names = {field.name for field in dataclasses.fields(SearchOptions)}
    assert set(signature) - {"self"} == names | {"mutation_hooks", "latency", "target_ms"}


def test_options_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ProxylessStrategy().options.seed = 3


def test_former_names_go_on_working_and_say_so_once():
    announce.cache_clear()
    costs = tiny.costs()
    with pytest.warns(FutureWarning) as said:
        strategy, _ = (ProxylessStrategy(latency=costs, target_ms=8.0) for _ in range(2))
    assert [str(warning.message) for warning in said] == [
        "latency is now called cost; latency goes on working",
        "target_ms is now called target; target_ms goes on working",
    ]
    assert {warning.filename for warning in said} == {__file__}, "the warning points at the caller's line"
    assert (strategy.cost, strategy.target) == (strategy.latency, strategy.target_ms) == (costs, 8.0)


def test_a_former_name_beside_todays_is_refused():
    with pytest.raises(ConfigError, match=r"target_ms = 8.0 and target = 7.0 are both given"):
        ProxylessStrategy(cost=tiny.costs(), target=7.0, target_ms=8.0)
    with pytest.raises(ConfigError, match=r"latency = .* and cost = .* are both given"):
        ProxylessStrategy(cost=tiny.costs(), latency=tiny.costs())
