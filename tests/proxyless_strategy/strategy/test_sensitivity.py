"""What each candidate alone does to the loss: closed forms on spaces of a few numbers, and the knapsack on them."""

from __future__ import annotations

import itertools
import json
import math
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn
from torch.nn import functional

from hardware.errors import ConfigError, TargetError, TrainingError
from proxyless_strategy.strategy.architecture import ArchitectureParameters, Edge
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from proxyless_strategy.strategy.recalibration import recalibrate
from proxyless_strategy.strategy.rules import LOGIT_SPAN
from proxyless_strategy.strategy.sensitivity import (
    START_SPAN,
    Sensitivity,
    fit_classifier,
    measure,
)
from search_spaces import get_space
from tests.search_spaces.from_timm.samples import with_weights

OWN = {"first": "one", "second": "one"}


class Scale(nn.Module):
    """Multiplies one of two channels, images `B x 2 x 1 x 1`."""

    def __init__(self, channel: int, factor: float):
        super().__init__()
        factors = torch.ones(1, 2, 1, 1)
        factors[0, channel] = factor
        self.register_buffer("factors", factors)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factors


class Scaled(ModelSpace):
    """Two edges, each of which scales a channel of its own; logits are the channels' sum and 0."""

    def __init__(self, *, norm: bool = False, factors: dict[str, float] | None = None):
        super().__init__()
        factors = factors or {"one": 1.0, "two": 2.0, "none": 0.0}
        names = [dict(factors), {k: v for k, v in factors.items() if k != "none"}]
        self.first, self.second = (
            LayerChoice(OrderedDict((name, Scale(channel, value)) for name, value in found.items()), label=label)
            for channel, (label, found) in enumerate(zip(("first", "second"), names, strict=True))
        )
        self.norm = nn.BatchNorm2d(2, eps=1e-12) if norm else nn.Identity()
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(2, 2, bias=False)
        self.classifier.weight.data = torch.tensor([[1.0, 1.0], [0.0, 0.0]])

    def chain(self) -> list[nn.Module]:
        return [self.first, self.second, self.norm, self.flatten, self.classifier]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for module in self.chain():
            x = module(x)
        return x


def gated(space: Any) -> tuple[Any, Any]:
    strategy = ProxylessStrategy()
    return strategy.mutate_model(space), strategy.paths_of_space


def images(*values: tuple[float, float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, :, None, None]


def tables(space: Any, x: torch.Tensor, **changes: Any) -> Sensitivity:
    network, supernet = gated(space)
    labels = torch.zeros(len(x), dtype=torch.long)
    options = {"calibration": [x], "evaluation": [(x, labels)], "seed": 0, **changes}
    return measure(network.chain(), supernet, OWN, **options)


def softplus(value: float) -> float:
    """Cross-entropy of the first of two classes, whose logit is `-value` and the other's 0."""
    return math.log1p(math.exp(value))


def test_differences_are_those_of_the_closed_form() -> None:
    table = tables(Scaled(), images((0.7, 0.0), (1.5, 0.0)))
    own = (softplus(-0.7) + softplus(-1.5)) / 2
    two = (softplus(-1.4) + softplus(-3.0)) / 2 - own
    assert table.loss == pytest.approx(own, abs=1e-7)
    assert table.differences.dtype == np.float64
    # The second channel is 0 in these images, so that its scale changes nothing.
    wanted = [[0.0, two, math.log(2) - own], [0.0, 0.0, math.nan]]
    np.testing.assert_allclose(table.differences, wanted, atol=1e-7)
    assert table.differences[0, 0] == 0.0, "the original's own candidate is no measurement"
    assert table.images == 2


def test_losses_of_edges_that_share_no_image_add_up() -> None:
    x = images((0.7, 0.0), (0.0, 0.4), (0.0, -2.0))
    labels = torch.zeros(3, dtype=torch.long)
    table = tables(Scaled(), x)
    network, supernet = gated(Scaled())
    for choice in itertools.product(range(3), range(2)):
        with supernet.running(choice), torch.no_grad():
            whole = float(functional.cross_entropy(network(x).double(), labels))
        assert table.additive_loss(choice) == pytest.approx(whole, abs=1e-7)


def test_batches_of_unequal_size_count_by_their_images() -> None:
    x = images((0.7, 0.0), (1.5, 0.0), (-3.0, 0.0))
    labels = torch.tensor([0, 0, 1])
    whole = tables(Scaled(), x, evaluation=[(x, labels)])
    parts = tables(Scaled(), x, evaluation=[(x[:1], labels[:1]), (x[1:], labels[1:])])
    np.testing.assert_allclose(parts.differences, whole.differences, atol=1e-7)


def test_norms_are_estimated_anew_for_each_candidate() -> None:
    x = images((0.7, 0.2), (1.5, -0.4), (-0.3, 1.0))
    # The norm's own statistics are of other images, and undo a scale only where they are estimated anew.
    table = tables(Scaled(norm=True), x)
    assert table.differences[0, 1] == pytest.approx(0.0, abs=1e-5)
    network, supernet = gated(Scaled(norm=True))
    network.eval()
    losses = []
    for choice in ((0, 0), (1, 0)):
        with supernet.running(choice), torch.no_grad():
            losses.append(float(functional.cross_entropy(network(x), torch.zeros(3, dtype=torch.long))))
    assert abs(losses[1] - losses[0]) > 0.01


def test_candidates_without_a_finite_loss_are_infinitely_worse_and_never_chosen_for_nothing() -> None:
    table = tables(Scaled(factors={"one": 1.0, "two": math.inf}), images((0.7, 0.0)))
    assert table.differences[0, 1] == math.inf
    assert table.to_dict()["differences"]["first"] == {"one": 0.0, "two": None}
    costs = np.array([[5.0, 1.0], [1.0, 1.0]])
    assert table.knapsack(costs, 0.0, 9.0).choice[0] == 0
    assert table.knapsack(costs, 0.0, 3.0).choice[0] == 1, "the only one within the target"
    assert table.start()["first"] == {"one": 0.0, "two": -START_SPAN}


def test_an_original_without_a_finite_loss_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"original network has a loss of nan .*look at its weights and images$"):
        tables(Scaled(), images((math.nan, 0.0)))


def test_progress_counts_every_network_once() -> None:
    seen: list[tuple[int, int]] = []
    tables(Scaled(), images((0.7, 0.0)), moved=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_chain_must_have_each_edge_once() -> None:
    network, supernet = gated(Scaled())
    x = images((0.7, 0.0))
    with pytest.raises(ValueError, match="each of 2 once"):
        measure(network.chain()[1:], supernet, OWN, calibration=[x], evaluation=[(x, x)], seed=0)


# ---- what is made of the table -----------------------------------------------------------------------------------


def random_table(seed: int, edges: int = 4, candidates: int = 4) -> Sensitivity:
    draw = np.random.default_rng(seed)
    sizes = [int(draw.integers(2, candidates + 1)) for _ in range(edges)]
    found = np.full((edges, candidates), math.nan)
    for row, size in enumerate(sizes):
        found[row, :size] = draw.exponential(0.3, size) - 0.05
        found[row, 0] = 0.0
    made = tuple(Edge(f"edge{row}", tuple(f"c{index}" for index in range(size))) for row, size in enumerate(sizes))
    return Sensitivity(made, (0,) * edges, 1.0, found, 100)


@pytest.mark.parametrize("seed", range(6))
def test_the_knapsack_is_the_least_sum_within_the_target(seed: int) -> None:
    table = random_table(seed)
    costs = np.random.default_rng(100 + seed).uniform(1, 3, table.differences.shape)
    subnets = list(itertools.product(*(range(len(edge.candidates)) for edge in table.edges)))

    def cost(choice: tuple[int, ...]) -> float:
        return 0.5 + float(sum(costs[row, column] for row, column in enumerate(choice)))

    for share in (0.05, 0.3, 0.6, 1.0):
        low, high = min(map(cost, subnets)), max(map(cost, subnets))
        target = low + share * (high - low)
        wanted = min((s for s in subnets if cost(s) <= target), key=table.additive_loss)
        found = table.knapsack(costs, 0.5, target)
        assert found.choice == wanted
        assert found.cost == pytest.approx(cost(wanted))
    assert table.knapsack(costs, 0.5, None).choice == min(subnets, key=table.additive_loss)
    with pytest.raises(TargetError):
        table.knapsack(costs, 0.5, 1.0)


def test_log_probabilities_rank_subnets_as_the_sums_do() -> None:
    table = random_table(3)
    log_p = table.log_probabilities()
    assert np.exp(log_p).sum(1) == pytest.approx(np.ones(4))
    assert np.isneginf(log_p[np.isnan(table.differences)]).all()
    subnets = list(itertools.product(*(range(len(edge.candidates)) for edge in table.edges)))
    by_loss = sorted(subnets, key=table.additive_loss)
    by_probability = sorted(subnets, key=lambda s: -sum(log_p[row, column] for row, column in enumerate(s)))
    assert by_loss == by_probability
    spans = [row[np.isfinite(row)].max() - row[np.isfinite(row)].min() for row in log_p]
    assert max(spans) == pytest.approx(LOGIT_SPAN)


@pytest.mark.parametrize("temperature", [None, 1e-9, 0.1, 1e9])
def test_no_edge_starts_nearly_frozen(temperature: float | None) -> None:
    table = random_table(5)
    start = table.start(temperature)
    p = ArchitectureParameters(table.edges, start=start).probabilities().numpy()
    for row, edge in enumerate(table.edges):
        size = len(edge.candidates)
        values = table.differences[row, :size]
        assert p[row, :size].max() / p[row, :size].min() <= math.exp(START_SPAN) * (1 + 1e-9)
        assert (np.diff(p[row, np.argsort(values)]) <= 1e-15).all(), "the less the loss grows, the more probable"
    if temperature == 0.1:
        inside = (table.differences[1, 0] - table.differences[1, 1]) / 0.1
        assert start["edge1"]["c1"] - start["edge1"]["c0"] == pytest.approx(inside)


def test_half_of_the_edges_start_within_the_span() -> None:
    table = random_table(5)
    widths = np.nanmax(table.differences, 1) - np.nanmin(table.differences, 1)
    assert (widths / table.start_temperature() <= START_SPAN * (1 + 1e-12)).sum() >= 2


def test_where_nothing_matters_all_candidates_start_alike() -> None:
    edges = (Edge("a", ("x", "y")),)
    table = Sensitivity(edges, (0,), 1.0, np.zeros((1, 2)), 4)
    assert table.start() == {"a": {"x": 0.0, "y": 0.0}}
    assert np.exp(table.log_probabilities()).tolist() == [[0.5, 0.5]]


def test_a_table_survives_its_file() -> None:
    table = random_table(1)
    table.differences[2, 1] = math.inf
    again = Sensitivity.from_dict(json.loads(json.dumps(table.to_dict())))
    assert again.edges == table.edges
    assert (again.original, again.loss, again.images) == (table.original, table.loss, table.images)
    np.testing.assert_array_equal(again.differences, table.differences)
    assert again.start() == table.start()


# ---- the start and the contender ---------------------------------------------------------------------------------


def test_alpha_starts_from_the_logits_exactly() -> None:
    start = {"first": {"one": 0.0, "two": -1.5, "none": -3.0}, "second": {"one": -0.25, "two": 0.0}}
    strategy = ProxylessStrategy(start=start)
    strategy.mutate_model(Scaled())
    assert strategy.architecture is not None
    assert strategy.architecture.host_alpha().tolist() == [[0.0, -1.5, -3.0], [-0.25, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("start", "words"),
    [
        ({"first": {"one": 0, "two": 0, "none": 0}}, "the edge 'second'"),
        ({"first": {"one": 0, "two": 0}, "second": {"one": 0, "two": 0}}, "candidate 'none' of first"),
        ({"first": {"one": 0, "two": math.nan, "none": 0}, "second": {"one": 0, "two": 0}}, "not finite"),
        ({"first": {"one": 0, "two": 9, "none": 0}, "second": {"one": 0, "two": 0}}, "spans 9 logits at first"),
    ],
)
def test_impossible_starts_are_refused(start: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ProxylessStrategy(start=start).mutate_model(Scaled())


@pytest.mark.parametrize("contender", [{"first": "one"}, {"first": "three", "second": "one"}])
def test_a_contender_must_be_a_subnet(contender: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="contender is no subnet of the space"):
        ProxylessStrategy(contender=contender).mutate_model(Scaled())


# ---- a timm space -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A timm space in which one block adds nothing to what it is given, and the next one much."""
    from safetensors.torch import load_file, save_file

    name = "mobilenetv2_035"
    path = with_weights(name, tmp_path_factory.mktemp("weights"), num_classes=4)[1]
    values = load_file(path)
    values["blocks.3.1.bn3.weight"].zero_()
    values["blocks.3.1.bn3.bias"].zero_()
    save_file(values, path)
    return get_space(f"timm:{name}", kernels=[5], expansions=[3], weights=str(path))


def drawn(count: int, seed: int, side: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, side, side, generator=generator)
    return x, torch.arange(count) % 4


def test_candidates_of_a_timm_space_are_measured_as_networks_of_their_own(space: Any) -> None:
    calibration = [drawn(8, 1)[0], drawn(8, 2)[0]]
    evaluation = [drawn(8, 3), drawn(5, 4)]
    network, supernet = gated(space.build(num_classes=4))
    assert network.loaded == "everything"
    table = measure(network.chain(), supernet, space.original(), calibration=calibration, evaluation=evaluation, seed=0)
    assert [edge.label for edge in table.edges] == list(space.candidates())

    def loss(choices: dict[str, str]) -> float:
        alone = space.build(num_classes=4).freeze(choices)
        recalibrate(alone, calibration, alone, count=2, seed=0)
        alone.eval()
        with torch.no_grad():
            sums = [float(functional.cross_entropy(alone(x).double(), y, reduction="sum")) for x, y in evaluation]
        return sum(sums) / 13

    original = space.original()
    own = loss(original)
    assert table.loss == pytest.approx(own, abs=1e-6)
    for label, candidate in (
        ("stage0_block0", "5x5_e1"),
        ("stage3_block1", "skip"),
        ("stage3_block2", "skip"),
        ("stage6_block0", "3x3_e3"),
        ("stage2_block1", "5x5_e3"),
    ):
        row = [edge.label for edge in table.edges].index(label)
        column = table.edges[row].candidates.index(candidate)
        wanted = loss({**original, label: candidate}) - own
        assert table.differences[row, column] == pytest.approx(wanted, abs=1e-5), (label, candidate)

    def difference(label: str, candidate: str) -> float:
        row = [edge.label for edge in table.edges].index(label)
        return float(table.differences[row, table.edges[row].candidates.index(candidate)])

    assert difference("stage3_block1", "skip") == pytest.approx(0.0, abs=1e-6), "it adds nothing"
    assert abs(difference("stage3_block2", "skip")) > 1e-4
    assert difference("stage3_block1", "5x5_e6") == pytest.approx(0.0, abs=1e-6), "zeros around a kernel change nothing"
    assert difference("stage4_block1", "5x5_e6") == pytest.approx(0.0, abs=1e-6)


def test_a_table_is_the_same_every_time(space: Any) -> None:
    found = []
    for _ in range(2):
        network, supernet = gated(space.build(num_classes=4))
        x, y = drawn(4, 1)
        found.append(measure(network.chain(), supernet, space.original(), calibration=[x], evaluation=[(x, y)], seed=0))
    np.testing.assert_array_equal(found[0].differences, found[1].differences)


def test_a_new_classifier_learns_the_classes_and_nothing_else_changes(space: Any) -> None:
    torch.manual_seed(0)
    network, supernet = gated(space.build(num_classes=3))
    assert network.loaded == "features"
    y = torch.arange(48) % 3
    # Classes that the colour tells.
    x = 0.3 * torch.randn(48, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    x[torch.arange(48), y] += 2.0
    before = {name: value.clone() for name, value in network.named_parameters()}
    loss = fit_classifier(network.chain(), supernet, space.original(), calibration=[x], batches=[(x, y)], seed=0)
    assert loss < math.log(3) / 2
    changed = [name for name, value in network.named_parameters() if not torch.equal(before[name], value)]
    assert changed == ["classifier.weight", "classifier.bias"]
    table = measure(network.chain(), supernet, space.original(), calibration=[x], evaluation=[(x, y)], seed=0)
    assert table.loss < math.log(3) / 2
