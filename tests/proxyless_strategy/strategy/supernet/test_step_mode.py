"""An architecture step changes alpha alone."""

from collections import Counter

import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from proxyless_strategy.strategy.rules import (
    GradientUpdate,
    ReinforceUpdate,
)
from proxyless_strategy.strategy.supernet.step_mode import ArchitectureStepMode
from search_spaces import get_space
from tests.proxyless_strategy import tiny
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


class Casts(TorchDispatchMode):
    """Counts how often each weight is cast."""

    def __init__(self, network):
        super().__init__()
        self.names = {parameter.data_ptr(): name for name, parameter in network.named_parameters()}
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.names:
            self.count[self.names[args[0].data_ptr()]] += 1
        return function(*args, **(kwargs or {}))


def test_an_architecture_step_sees_the_weights_of_the_weight_step_before_it_in_mixed_precision():
    """Lightning runs both within one context of autocast, which keeps its casts of the weights."""
    space = get_space("small_mbconv")
    strategy = ProxylessStrategy()
    torch.manual_seed(0)
    network = strategy.mutate_model(space.build(num_classes=10, in_chans=1)).train()
    mode, x, y = ArchitectureStepMode(network), torch.randn(8, 1, 16, 16), torch.arange(8)
    supernet = strategy.paths_of_space
    edges = len(strategy.architecture.edges)

    def differences():
        with mode.active(), supernet.running([0] * edges, [[1]] * edges) as plan:
            nn.functional.cross_entropy(network(x), y).backward()
        return [float(value) for row in sorted(plan.differences) for value in plan.differences[row]]

    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with supernet.running([1] * edges):
            nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        together = differences()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert together == differences()


@pytest.mark.parametrize("rule", tiny.RULES)
def test_mixed_precision_casts_each_weight_once_in_an_architecture_step(rule, monkeypatch):
    update = {"gradient": GradientUpdate, "reinforce": ReinforceUpdate}[rule]
    compute, found = update.compute, []

    def counted(self, problem, task, step, *, scale):
        with Casts(module.model) as casts:
            outcome = compute(self, problem, task, step, scale=scale)
        found.append(casts.count)
        return outcome

    module = tiny.Module()
    monkeypatch.setattr(update, "compute", counted)
    tiny.searched(rule=rule, module=module, epochs=3, samples=4, trainer={"precision": "bf16-mixed"})
    assert found
    assert all("stem.weight" in count for count in found)
    assert {times for count in found for times in count.values()} == {1}
