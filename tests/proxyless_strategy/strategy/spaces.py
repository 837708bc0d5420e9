"""Small spaces in float64, and gate gradients by autograd, for tests of what runs and what moves."""

import torch
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, Repeat
from torch import nn

from hardware.model import macs_model
from proxyless_strategy.strategy.objectives import AccuracyOnly
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from proxyless_strategy.strategy.rules import (
    Problem,
)


class Scale(nn.Module):
    """Multiplies by a weight; counts its calls."""

    def __init__(self, value):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(value)))
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return torch.tanh(x * self.weight) + x**2 * 0.1


class Chain(ModelSpace):
    """Two edges of three candidates (the last one skip), the first one right at the input, and one of a single one."""

    def __init__(self):
        super().__init__()
        self.first = LayerChoice({"a": Scale(0.5), "b": Scale(-1.5), "skip": nn.Identity()}, label="first")
        self.single = LayerChoice({"only": Scale(1.0)}, label="single")
        self.second = LayerChoice({"a": Scale(2.0), "b": Scale(0.3), "skip": nn.Identity()}, label="second")

    def forward(self, x):
        return self.second(self.single(self.first(x))).sum()


class Shared(ModelSpace):
    """Two layers that share one decision."""

    def __init__(self):
        super().__init__()
        self.one = LayerChoice({"a": Scale(0.5), "b": Scale(-1.5)}, label="shared")
        self.two = LayerChoice({"a": Scale(1.1), "b": Scale(0.7)}, label="shared")

    def forward(self, x):
        return self.two(self.one(x)).sum()


class InPlace(ModelSpace):
    """Two edges whose outputs are changed in place by what follows."""

    def __init__(self, last="b"):
        super().__init__()
        other = {"a": Scale(0.5), last: nn.Identity() if last == "skip" else Scale(-1.5)}
        self.first = LayerChoice(other, label="first")
        self.second = LayerChoice({"a": Scale(2.0), "b": Scale(0.3), "c": Scale(1.4)}, label="second")

    def forward(self, x):
        y = self.first(x * 1.5)
        y += x
        z = self.second(y * 1.0)
        z.mul_(2)
        return z.sum()


class First(nn.Module):
    """Passes on the first tensor of a list."""

    def forward(self, items):
        return items[0]


class OfList(ModelSpace):
    """A choice that runs on a list of tensors, one of which another layer uses too."""

    def __init__(self):
        super().__init__()

        class Second(nn.Module):
            def forward(self, items):
                return items[1] * 0.7

        self.first = LayerChoice({"first": First(), "second": Second()}, label="first")
        self.before = LayerChoice({"a": Scale(0.4), "b": Scale(1.2)}, label="before")

    def forward(self, x):
        a, b = self.before(x), torch.sin(x)
        return (self.first([a, b]) ** 2 + 3 * a).sum()


class Nested(ModelSpace):
    """A choice inside a candidate, an input choice, and a searched depth."""

    def __init__(self):
        super().__init__()
        inner = LayerChoice({"p": Scale(0.2), "q": Scale(1.7)}, label="inner")
        self.outer = LayerChoice({"plain": Scale(0.9), "deep": nn.Sequential(Scale(0.4), inner)}, label="outer")
        self.inputs = InputChoice(2, 1, label="input")
        self.repeat = Repeat(
            lambda index: LayerChoice({"u": Scale(0.6), "v": Scale(1.3)}, label=f"u{index}"), (1, 3), label="depth"
        )

    def forward(self, x):
        y = self.outer(x)
        return self.repeat(self.inputs([x, y])).sum()


def prepared(space, seed=0, **options):
    strategy = ProxylessStrategy(seed=seed, **options)
    network = strategy.mutate_model(space).double()
    return strategy, network, strategy.architecture


def soft_gate_gradients(network, supernet, edges, active, x):
    """<dL/dy, o_k> of every edge and candidate by autograd: the gate as a leaf in y = o_active + sum_k g_k o_k."""
    found = {}
    for row, edge in enumerate(edges):
        for k in range(len(edge.candidates)):
            gate = torch.zeros((), dtype=torch.float64, requires_grad=True)
            layers = [m for m in network.modules() if getattr(m, "edge", None) == row and hasattr(m, "names")]
            originals = [layer.forward for layer in layers]
            for layer, original in zip(layers, originals, strict=True):
                other = layer._modules[str(layer.names[k])]
                layer.forward = lambda x, original=original, other=other, gate=gate: original(x) + gate * other(x)
            with supernet.running(active):
                network(x).backward()
            for layer, original in zip(layers, originals, strict=True):
                layer.forward = original
            found[row, k] = 0.0 if gate.grad is None else gate.grad.item()
    return found


def problem_of(strategy, architecture, objective=None):
    costs, fixed = strategy.cost_matrix()
    return Problem(
        strategy.paths_of_space, architecture, costs, fixed, objective or AccuracyOnly(), strategy.options.seed
    )


def macs_of(space):
    costs = space.costs(32, num_classes=10, in_chans=1)
    return macs_model(costs.fixed, costs.edges)


def snapshot(network):
    return {name: value.clone() for name, value in network.state_dict().items()}
