"""The strategy: its target, its costs, its results."""

import re

import pytest
import torch
from nni.nas.experiment import NasExperiment

from hardware.errors import ConfigError, TargetError
from proxyless_strategy.strategy.options import announce
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from search_spaces import get_space
from tests.proxyless_strategy import tiny
from tests.proxyless_strategy.strategy.spaces import macs_of
from tests.proxyless_strategy.tiny import RULES


def test_a_target_below_the_fastest_subnet_is_refused_with_that_subnet():
    space = get_space("small_mbconv")
    with pytest.raises(TargetError, match=r"stage1_block0=3x3_e3.*stage1_block1=skip"):
        ProxylessStrategy(cost=macs_of(space), target=0.01).mutate_model(space.build(num_classes=10, in_chans=1))


def test_costs_that_leave_an_edge_out_are_refused():
    space, smaller = (
        get_space("small_mbconv"),
        get_space("small_mbconv", stages=[{"width": 24, "depth": 2, "stride": 2}]),
    )
    with pytest.raises(ConfigError, match="stage2_block0"):
        ProxylessStrategy(cost=macs_of(smaller)).mutate_model(space.build(num_classes=10, in_chans=1))


@pytest.mark.parametrize("rule", RULES)
def test_two_exports_are_equal_and_within_the_target(rule):
    strategy = tiny.searched(rule=rule, target=8.0)
    assert strategy.export() == strategy.export()
    assert strategy.derive().cost <= 8.0
    assert strategy.derive(3.0).cost <= 3.0
    assert strategy.derive_curve(5)


def test_it_runs_as_an_nni_experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    strategy = ProxylessStrategy(cost=tiny.costs(), target=8.0, warmup_epochs=1, steps_per_update=2)
    experiment = NasExperiment(tiny.TinySpace(), tiny.evaluator(), strategy)
    experiment.config.experiment_working_directory = str(tmp_path)
    experiment.run()
    experiment.stop()
    (sample,) = experiment.export_top_models(formatter="dict")
    assert sample == strategy.export()
    (model,) = experiment.export_top_models(formatter="instance")
    assert model(torch.randn(2, 1, 6, 6)).shape == (2, 3)


def test_a_share_of_the_range_becomes_absolute_once_the_space_is_known():
    """The cheapest subnet takes 1 for what is fixed and 1 for the first edge, the dearest 1 + 3 x 4."""
    strategy = ProxylessStrategy(cost=tiny.costs(), target_share=0.25)
    assert strategy.target is None
    strategy.mutate_model(tiny.TinySpace())
    assert strategy.target == 2 + 0.25 * (13 - 2)
    with pytest.raises(RuntimeError, match="nothing was searched"):
        _ = strategy.searched


def test_a_target_that_may_have_been_meant_as_a_share_says_so():
    with pytest.raises(TargetError, match=r"target 0.5 ms is below .* given as target_share=0.5"):
        ProxylessStrategy(cost=tiny.costs(), target=0.5).mutate_model(tiny.TinySpace())
    with pytest.raises(TargetError) as low:
        ProxylessStrategy(cost=tiny.costs(), target=1.5).mutate_model(tiny.TinySpace())
    assert "target_share" not in str(low.value)
    small = tiny.costs()
    small.costs, small.fixed = small.costs / 100, 0.01
    strategy = tiny.searched(cost=small, target=0.5, epochs=3)
    (idle,) = [warning.sentence for warning in strategy.searched.warnings() if warning.code == "idle_target"]
    assert re.search(r"target 0.5 ms is idle: the dearest subnet costs 0.13.* given as target_share=0.5", idle)


def test_the_former_name_of_derives_target_goes_on_working():
    announce.cache_clear()
    strategy = tiny.searched(epochs=3)
    with pytest.warns(FutureWarning, match="budget_ms is now called target") as said:
        former = strategy.derive(budget_ms=3.0)
    assert said[0].filename == __file__
    assert former == strategy.derive(3.0) == strategy.derive(target=3.0)
    with pytest.raises(ConfigError, match=r"budget_ms = 3.0 and target = 4.0"):
        strategy.derive(4.0, budget_ms=3.0)
