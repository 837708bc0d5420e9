"""An architecture step changes alpha alone."""

import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from proxyless_strategy.strategy.rules import (
    GradientUpdate,
    ReinforceUpdate,
)
from proxyless_strategy.strategy.supernet.step_mode import ArchitectureStepMode
from search_spaces import get_space
from tests.proxyless_strategy.strategy.spaces import macs_of, problem_of, snapshot


def test_an_architecture_step_touches_nothing_but_alpha_and_restores_every_flag():
    space = get_space("small_mbconv")
    strategy = ProxylessStrategy(cost=macs_of(space), target_share=0.5)
    network = strategy.mutate_model(space.build(num_classes=10, in_chans=1)).train()
    network.blocks[0][0].bn1.eval()
    before, flags = snapshot(network), [m.training for m in network.modules()]
    mode, x, y = ArchitectureStepMode(network), torch.randn(4, 1, 32, 32), torch.tensor([1, 2, 3, 4])
    for update in (GradientUpdate(), GradientUpdate(paths="all"), ReinforceUpdate()):
        with mode.active():
            outcome = update.compute(
                problem_of(strategy, strategy.architecture),
                lambda: nn.functional.cross_entropy(network(x), y),
                0,
                scale=None,
            )
        assert outcome.gradient.abs().max() > 0
    after = snapshot(network)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(p.grad is None for p in network.parameters())
    assert all(p.requires_grad for p in network.parameters())
    assert flags == [m.training for m in network.modules()]
    assert all(m.track_running_stats for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    with pytest.raises(ZeroDivisionError), mode.active():
        raise ZeroDivisionError
    assert flags == [m.training for m in network.modules()]


def test_batch_statistics_without_tracking_give_bit_equal_outputs():
    space = get_space("small_mbconv")
    strategy = ProxylessStrategy()
    network = strategy.mutate_model(space.build(num_classes=10, in_chans=1)).train()
    x, paths = torch.randn(4, 1, 32, 32), [0] * len(strategy.architecture.edges)
    with ArchitectureStepMode(network).active(), strategy.paths_of_space.running(paths):
        untracked = network(x)
    with strategy.paths_of_space.running(paths):
        tracked = network(x)
    assert torch.equal(untracked, tracked)


def test_a_candidate_that_fails_in_an_architecture_step_leaves_every_flag_as_it_was():
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(1)

        def forward(self, x):
            assert not self.norm.weight.requires_grad
            assert not self.norm.track_running_stats
            raise KeyError("on purpose")

    class Space(ModelSpace):
        def __init__(self):
            super().__init__()
            self.layer = LayerChoice([Failing(), Failing()], label="edge")

        def forward(self, x):
            return self.layer(x)

    strategy = ProxylessStrategy()
    network = strategy.mutate_model(Space()).train()
    mode = ArchitectureStepMode(network)
    with mode.active(), strategy.paths_of_space.running([0], [[1]]), pytest.raises(KeyError):
        network(torch.zeros(1, 1, 2, 2))
    for module in network.modules():
        assert module.training
        assert all(parameter.requires_grad for parameter in module.parameters())
        assert getattr(module, "track_running_stats", True)
    assert strategy.paths_of_space.selector.mode is None
