"""A drop-in for NNI's own strategy: its hub's spaces, Repeat, Cell, refusals, and our costs as NNI's profiler.

What stock Proxyless gets wrong is shown here too, so that the README may say so.
"""

import itertools

import pytest
import torch
from nni.nas.nn.pytorch import Cell, LayerChoice, ModelSpace, Repeat
from nni.nas.strategy import Proxyless
from torch import nn

from hardware.errors import UnsupportedSpaceError
from proxyless_strategy.profiler import CostProfiler
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from proxyless_strategy.strategy.supernet.frozen import OnePath
from proxyless_strategy.strategy.supernet.step_mode import ArchitectureStepMode
from search_spaces import get_space
from tests.benchmarks.drop_in import SPACES, attempt, evaluator, search
from tests.proxyless_strategy import tiny

RULES = {"gradient": {}, "reinforce": {"rule": "reinforce", "samples": 2}}
SEARCHED = ("ProxylessNAS", "ShuffleNetSpace", "NasBench201", "DARTS", "DARTS, depth searched", "PNAS")


def strategy_of(rule):
    return ProxylessStrategy(steps_per_update=1, **RULES[rule])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SEARCHED)
def test_spaces_of_nnis_hub_are_searched_frozen_and_run(name, rule):
    strategy = strategy_of(rule)
    torch.manual_seed(0)
    search(SPACES[name](), strategy)
    assert strategy.searched.counters == {"warmup": 0, "weights": 1, "architecture": 1, "skipped": 0}


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_ours_searches_whatever_nnis_own_strategy_does(name):
    if attempt(SPACES[name], Proxyless) == "ok":
        for rule in RULES:
            assert attempt(SPACES[name], lambda rule=rule: strategy_of(rule)) == "ok"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ShuffleNetSpace, channel_search", "'channel_1' in its own arguments"),
        ("NasBench101", "'cell/final'"),
        ("DARTS, width searched", "'width' in its own arguments"),
        ("NASNet", "'normal' .* merge_op 'loose_end'"),
        ("ENAS", "loose_end"),
        ("AmoebaNet", "loose_end"),
        ("MobileNetV3Space", "'stem_ks' in its own arguments"),
        ("AutoFormer", "'embed_dim' in its own arguments"),
    ],
)
def test_what_cannot_be_searched_is_refused_by_name_before_training(name, words):
    with pytest.raises(UnsupportedSpaceError, match=words):
        ProxylessStrategy().mutate_model(SPACES[name]())


@pytest.mark.parametrize("name", ["DARTS", "ProxylessNAS"])
def test_a_space_that_nni_freezes_by_making_it_anew_is_validated_with_its_own_weights(name):
    strategy = strategy_of("gradient")
    space = SPACES[name]()
    search(space, strategy)
    network = strategy.searched.derived_network()
    assert isinstance(network, OnePath)
    assert all(torch.equal(a, b) for a, b in zip(network.network.parameters(), space.parameters(), strict=True))
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(network(x), network(x))


@pytest.mark.parametrize("make", [tiny.TinySpace, lambda: get_space("small_mbconv").build(num_classes=3, in_chans=1)])
def test_other_spaces_are_validated_as_frozen_nets_with_their_own_weights(make):
    strategy = tiny.searched(space=make, cost=None, target=None)
    network = strategy.searched.derived_network()
    assert not isinstance(network, OnePath)
    own = list(strategy.searched.model.parameters())
    for value in network.parameters():
        assert any(value.shape == o.shape and torch.equal(value, o) for o in own)


class Add(nn.Module):
    """Adds its number."""

    def __init__(self, number):
        super().__init__()
        self.number = nn.Parameter(torch.tensor(float(number)))

    def forward(self, x):
        return x + self.number


class Depths(ModelSpace):
    """Blocks that add 1, 10, 100, of which 1 to 3 are used."""

    def __init__(self):
        super().__init__()
        self.repeat = Repeat([lambda index: Add(10**index)] * 3, (1, 3), label="depth")

    def forward(self, x):
        return self.repeat(x)


def test_a_repeats_frozen_net_equals_the_trained_path_on_every_sample():
    strategy = ProxylessStrategy()
    network = strategy.mutate_model(Depths())
    x = torch.zeros(1)
    for index, (depth, value) in enumerate([(1, 1.0), (2, 11.0), (3, 111.0)]):
        with strategy.paths_of_space.running([index]):
            assert network(x).item() == value
        assert strategy.architecture.export([index]) == {"depth": depth}
        assert network.freeze({"depth": depth})(x).item() == value


def test_stock_proxyless_freezes_a_repeat_to_another_net_than_it_trained():
    torch.manual_seed(0)
    strategy = Proxyless()
    network = strategy.mutate_model(Depths())
    wrapped = strategy.mutate_evaluator(evaluator())
    wrapped.module.set_model(network)
    x, different = torch.zeros(1), 0
    for _ in range(200):
        sample = wrapped.module.resample()
        different += network(x).item() != network.freeze(sample)(x).item()
    assert different > 20


class FunctionOfDepth(ModelSpace):
    """Two Repeats whose depths are different functions of one choice."""

    def __init__(self):
        super().__init__()
        import nni

        depth = nni.choice("d", [1, 2])
        self.one = Repeat([lambda index: Add(10**index)] * 2, depth)
        self.two = Repeat([lambda index: Add(100 * 10**index)] * 4, depth * 2)

    def forward(self, x):
        return self.two(self.one(x))


def test_depths_that_are_functions_of_one_choice_share_it():
    strategy = ProxylessStrategy()
    network = strategy.mutate_model(FunctionOfDepth())
    assert strategy.architecture.labels == ("d",)
    for index, value in ((0, 1101.0), (1, 111111.0)):
        with strategy.paths_of_space.running([index]):
            assert network(torch.zeros(1)).item() == value
        assert network.freeze({"d": index + 1})(torch.zeros(1)).item() == value


class Cells(ModelSpace):
    """Two cells that share their choices; operators depend on the input that they get."""

    def __init__(self, nodes=2):
        super().__init__()

        def scale(factor):
            return lambda node, index, source: Scale(factor * (1 + (source or 0)), node + index)

        self.cells = nn.ModuleList(
            Cell({"a": scale(0.5), "b": scale(-0.8)}, nodes, 1, 2, "all", label="cell") for _ in range(2)
        )

    def forward(self, x):
        y = self.cells[0]([x, x * 2])
        return self.cells[1]([y, y * 0.5]).sum()


class Scale(nn.Module):
    """`x w + b`."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.tensor(float(v))) for v in (weight, bias))

    def forward(self, x):
        return x * self.weight + self.bias


def test_a_cells_frozen_net_equals_the_trained_path_on_every_sample():
    strategy = ProxylessStrategy()
    network = strategy.mutate_model(Cells()).double()
    x = torch.linspace(0.1, 1, 6, dtype=torch.float64).view(1, 2, 3) ** 2
    outputs = set()
    for choice in itertools.product(*(range(len(e.candidates)) for e in strategy.architecture.edges)):
        with strategy.paths_of_space.running(choice):
            trained = network(x)
        assert torch.equal(network.freeze(strategy.architecture.export(choice))(x), trained)
        outputs.add(trained.item())
    assert len(outputs) > 20


@pytest.mark.parametrize("edge", [0, 1])
def test_a_cells_measured_differences_are_those_of_whole_networks(edge):
    class Single(ModelSpace):
        def __init__(self):
            super().__init__()
            self.cell = Cells(nodes=1).cells[0]

        def forward(self, x):
            return self.cell([x, x * 2]).sum()

    strategy = ProxylessStrategy()
    network = strategy.mutate_model(Single()).double()
    x = torch.linspace(0.1, 1, 6, dtype=torch.float64).view(1, 2, 3) ** 2
    for active in itertools.product(range(2), range(2)):
        others = [[], []]
        others[edge] = [1 - active[edge]]
        with ArchitectureStepMode(network).active(), strategy.paths_of_space.running(active, others) as plan:
            loss = network(x)
            loss.backward()
        other = [1 - k if row == edge else k for row, k in enumerate(active)]
        with strategy.paths_of_space.running(other):
            expected = (loss - network(x)).item()
        assert plan.differences[edge][0].item() == pytest.approx(expected, abs=1e-12)
        assert abs(expected) > 1e-3


class Keywords(nn.Module):
    """Takes a list and a keyword; returns a list, of whose items the network uses only the last."""

    def __init__(self, factor):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(float(factor)))

    def forward(self, items, *, shift):
        return [items[0], items[1] * self.weight + shift]


class Lists(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = LayerChoice({"a": Keywords(2.0), "b": Keywords(-1.0)}, label="layer")

    def forward(self, x):
        return self.layer([x, x + 1], shift=0.5)[1].sum()


@pytest.mark.parametrize("others", [[1], [0, 1]])
def test_candidates_may_take_keywords_and_return_lists_that_are_used_in_part(others):
    strategy = ProxylessStrategy()
    network = strategy.mutate_model(Lists()).double()
    x = torch.linspace(0, 1, 5, dtype=torch.float64)
    with ArchitectureStepMode(network).active(), strategy.paths_of_space.running([0], [others]) as plan:
        network(x).backward()
    assert plan.differences[0][-1].item() == pytest.approx(3 * (x + 1).sum().item())


# ---- NNI's penalties and filters ---------------------------------------------------------------------------------


def stock_alphas(scale):
    """Stock Proxyless's alphas after a short search with a latency penalty of the given scale."""
    torch.manual_seed(0)
    penalty = {"profiler": CostProfiler(tiny.costs()), "baseline": 5.0, "scale": scale}
    strategy = Proxyless(penalty=penalty)
    network = strategy.mutate_model(tiny.TinySpace())
    made = tiny.evaluator(epochs=1)
    torch.manual_seed(1)
    strategy.mutate_evaluator(made).evaluate(network)
    return [p.detach().clone() for p in strategy._arch_parameters.values()]


def test_stock_proxyless_latency_penalty_has_no_gradient():
    alphas = [stock_alphas(scale) for scale in (0.0, 1.0, 100.0)]
    assert all(a.abs().max() > 0 for a in alphas[0])
    for other in alphas[1:]:
        assert all(torch.equal(a, b) for a, b in zip(alphas[0], other, strict=True))


def test_stock_proxyless_export_is_a_random_draw_and_ours_is_not():
    torch.manual_seed(0)
    strategy = Proxyless()
    network = strategy.mutate_model(tiny.TinySpace())
    wrapped = strategy.mutate_evaluator(tiny.evaluator())
    wrapped.module.set_model(network)
    assert len({str(wrapped.module.export()) for _ in range(20)}) > 1
    ours = tiny.searched()
    assert len({str(ours.export()) for _ in range(20)}) == 1
