"""What runs and what is measured: differences against autograd's gate gradients."""

import itertools

import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

from hardware.errors import UnsupportedSpaceError
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from proxyless_strategy.strategy.rules import (
    run_task,
)
from proxyless_strategy.strategy.supernet.step_mode import ArchitectureStepMode
from search_spaces import get_space
from tests.proxyless_strategy.strategy.spaces import (
    Chain,
    InPlace,
    Nested,
    OfList,
    Scale,
    Shared,
    prepared,
    snapshot,
    soft_gate_gradients,
)


@pytest.mark.parametrize("space", [Chain, Shared, InPlace, OfList])
@pytest.mark.parametrize("eager", [True, False])
def test_measured_differences_equal_autograds_gate_gradients(space, eager):
    strategy, network, architecture = prepared(space())
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)
    sizes = [len(edge.candidates) for edge in architecture.edges]
    mode = ArchitectureStepMode(network)
    for active in itertools.product(*map(range, sizes)):
        expected = soft_gate_gradients(network, strategy.paths_of_space, architecture.edges, active, x)
        wanted = [[k for k in range(size) if k != a] for size, a in zip(sizes, active, strict=True)]
        choices = itertools.product(*([[k] for k in w] or [[]] for w in wanted)) if eager else [wanted]
        for others in choices:
            with mode.active(), strategy.paths_of_space.running(active, others) as plan:
                network(x).backward()
            for row, options in enumerate(others):
                for position, k in enumerate(options):
                    found = plan.differences[row][position].item()
                    assert found == pytest.approx(expected[row, active[row]] - expected[row, k], abs=1e-10)
                if not options:
                    assert row not in plan.differences


class ChangedInput(InPlace):
    """An edge whose input is changed in place after it ran."""

    def forward(self, x):
        x = x * 1.0
        y = self.second(x)
        x += 1.0
        return (y + self.first(y * 1.0)).sum()


@pytest.mark.parametrize(
    ("space", "active", "others"),
    [(lambda: InPlace("skip"), [1, 0], [[0], [1]]), (ChangedInput, [0, 0], [[1], [1, 2]])],
)
def test_an_in_place_change_that_would_lose_a_gate_gradient_is_refused(space, active, others):
    strategy, network, _ = prepared(space())
    x = torch.linspace(-1, 1, 7, dtype=torch.float64, requires_grad=True)
    running = strategy.paths_of_space.running(active, others)
    with pytest.raises(UnsupportedSpaceError, match="in place"), ArchitectureStepMode(network).active(), running:
        run_task(lambda: network(x)).backward()


def test_only_the_active_path_runs_in_a_weight_step():
    strategy, network, _ = prepared(Chain())
    with strategy.paths_of_space.running([1, 0, 2]):
        network(torch.ones(3, dtype=torch.float64)).backward()
    calls = {name: m.calls for name, m in network.named_modules() if isinstance(m, Scale)}
    assert calls == {"first.a": 0, "first.b": 1, "single.only": 1, "second.a": 0, "second.b": 0}


def test_the_network_refuses_to_run_without_paths():
    _, network, _ = prepared(Chain())
    with pytest.raises(RuntimeError, match="'first'"):
        network(torch.ones(3, dtype=torch.float64))


def test_an_inactive_outer_candidates_inner_choice_gets_no_gradient():
    strategy, network, architecture = prepared(Nested())
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    others = [[] if len(e.candidates) < 2 else [1] for e in architecture.edges]
    with ArchitectureStepMode(network).active(), strategy.paths_of_space.running([0] * len(others), others) as plan:
        network(x).backward()
    at = architecture.labels.index
    assert plan.visited == {at("outer"), at("input"), at("depth"), at("u0")}
    assert at("outer") not in plan.differences, "the loss does not depend on an input that was not chosen"


def test_a_weight_step_moves_sampled_candidates_alone():
    space = get_space("small_mbconv")
    strategy = ProxylessStrategy()
    network = strategy.mutate_model(space.build(num_classes=10, in_chans=1)).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1)
    x, y = torch.randn(8, 1, 32, 32), torch.arange(8)
    edges = strategy.architecture.edges
    for paths in ([0] * len(edges), [len(e.candidates) - 1 for e in edges]):
        before = snapshot(network)
        optimizer.zero_grad(set_to_none=True)
        with strategy.paths_of_space.running(paths):
            nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
        after = snapshot(network)
        layers = {m.edge: name for name, m in network.named_modules() if hasattr(m, "edge")}
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        for row, edge in enumerate(edges):
            for k, candidate in enumerate(edge.candidates):
                mine = [name for name in before if name.startswith(f"{layers[row]}.{candidate}.")]
                if k == paths[row]:
                    assert candidate == "skip" or any(name in moved for name in mine)
                else:
                    assert not moved.intersection(mine)


class Convolutions(ModelSpace):
    """An edge of three convolutions, which autocast runs in 16 bits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = LayerChoice([nn.Conv2d(2, 2, 3, padding=1) for _ in range(3)], label="layer")

    def forward(self, x):
        return self.layer(x).float().square().mean()


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("outside", [False, True])
def test_candidates_that_run_in_the_backward_pass_run_in_the_precision_of_the_forward_pass(precision, outside):
    """The backward pass may run outside of autocast, or in a thread that knows another type."""
    strategy = ProxylessStrategy()
    network = strategy.mutate_model(Convolutions())
    seen = []
    for layer in network.layer.children():
        layer.register_forward_hook(lambda module, given, output: seen.append(output.dtype))
    x = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(1))
    other = torch.float16 if precision is torch.bfloat16 else torch.bfloat16
    with ArchitectureStepMode(network).active(), strategy.paths_of_space.running([0], [[1, 2]]):
        with torch.autocast("cpu", dtype=precision):
            loss = network(x)
        with torch.autocast("cpu", dtype=other, enabled=not outside):
            loss.backward()
            assert torch.is_autocast_enabled("cpu") is not outside
    assert seen == [precision] * 3
