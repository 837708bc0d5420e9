"""What runs, what moves and what must not: on small networks in float64 and on the real space."""

import functools
import itertools

import pytest
import torch
from nni.nas.nn.pytorch import InputChoice, LayerChoice, ModelSpace, Repeat
from torch import nn

from hardware.errors import ConfigError, TargetError, UnsupportedSpaceError
from hardware.model import macs_model
from proxyless_strategy.strategy import gates
from proxyless_strategy.strategy.objectives import AccuracyOnly, TargetController
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from proxyless_strategy.strategy.rules import (
    GradientUpdate,
    Outcome,
    Problem,
    ReinforceUpdate,
    alpha_optimizer,
    apply_outcome,
)
from proxyless_strategy.strategy.supernet.frozen import frozen_copy
from proxyless_strategy.strategy.supernet.layers import BinaryGateLayer
from proxyless_strategy.strategy.supernet.step_mode import ArchitectureStepMode
from search_spaces import get_space


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
        GradientUpdate._loss(lambda: network(x)).backward()


def problem_of(strategy, architecture, objective=None):
    costs, fixed = strategy.cost_matrix()
    return Problem(strategy.paths_of_space, architecture, costs, fixed, objective or AccuracyOnly(), strategy.seed)


@pytest.mark.parametrize(
    "update", [GradientUpdate(), GradientUpdate(estimator="unbiased"), GradientUpdate(paths="all"), ReinforceUpdate()]
)
def test_gradients_of_an_edge_sum_to_zero(update):
    strategy, network, architecture = prepared(Chain())
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)
    with ArchitectureStepMode(network).active():
        outcome = update.compute(problem_of(strategy, architecture), lambda: network(x), 3, scale=None)
    assert outcome.gradient.abs().max() > 0
    assert outcome.gradient.sum(-1).abs().max() < 1e-12
    assert (outcome.gradient[1] == 0).all()


def test_all_paths_gradient_equals_the_softmax_jacobian_times_gate_gradients():
    strategy, network, architecture = prepared(Chain())
    x = torch.linspace(-1, 1, 7, dtype=torch.float64)
    with torch.no_grad():
        architecture.alpha.copy_(torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    p = architecture.probabilities()
    for step in range(4):
        with ArchitectureStepMode(network).active():
            outcome = GradientUpdate(paths="all").compute(
                problem_of(strategy, architecture), lambda: network(x), step, scale=None
            )
        u = gates.uniforms(0, gates.Phase.PAIR, step, (3, 3))
        active = gates.sample_paths(architecture.host_alpha(), architecture.host_mask, u).tolist()
        gate = torch.zeros(3, 3, dtype=torch.float64)
        for (row, k), value in soft_gate_gradients(
            network, strategy.paths_of_space, architecture.edges, active, x
        ).items():
            gate[row, k] = value
        assert torch.allclose(outcome.gradient, gates.softmax_gradient(p, gate), atol=1e-12)


@pytest.mark.parametrize("rule", ["two", "all"])
def test_loss_scale_changes_nothing_with_latency_on(rule):
    class Weighted(AccuracyOnly):
        def coefficients(self, expected, task_loss):
            return 1.0, 0.7

    results = []
    for scale in (None, torch.tensor(65536.0)):
        strategy, network, architecture = prepared(Chain())
        problem = problem_of(strategy, architecture, Weighted())
        problem = Problem(
            problem.supernet,
            architecture,
            torch.arange(9.0).double().view(3, 3) * architecture.mask,
            1.0,
            problem.objective,
            0,
        )
        x = torch.linspace(-1, 1, 7, dtype=torch.float64)
        with ArchitectureStepMode(network).active():
            task = functools.partial(network, x)
            results.append(GradientUpdate(paths=rule).compute(problem, task, 0, scale=scale).gradient)
    assert torch.allclose(results[0], results[1], rtol=1e-10)


def test_a_gradient_that_is_not_finite_is_reported_as_none():
    strategy, network, architecture = prepared(Chain())
    x = torch.full((3,), float("nan"), dtype=torch.float64)
    with ArchitectureStepMode(network).active():
        assert (
            GradientUpdate().compute(problem_of(strategy, architecture), lambda: network(x), 0, scale=None).gradient
            is None
        )


def test_the_network_refuses_to_run_without_paths():
    _, network, _ = prepared(Chain())
    with pytest.raises(RuntimeError, match="'first'"):
        network(torch.ones(3, dtype=torch.float64))


def test_only_the_active_path_runs_in_a_weight_step():
    strategy, network, _ = prepared(Chain())
    with strategy.paths_of_space.running([1, 0, 2]):
        network(torch.ones(3, dtype=torch.float64)).backward()
    calls = {name: m.calls for name, m in network.named_modules() if isinstance(m, Scale)}
    assert calls == {"first.a": 0, "first.b": 1, "single.only": 1, "second.a": 0, "second.b": 0}


def test_nested_choices_are_weighted_by_their_reach():
    _, _, architecture = prepared(Nested())
    labels = architecture.labels
    p = architecture.probabilities()
    reach = dict(zip(labels, architecture.reach(p).tolist(), strict=True))
    at = labels.index
    assert reach["outer"] == reach["depth"] == reach["input"] == reach["u0"] == 1
    assert reach["inner"] == pytest.approx(p[at("outer"), 1].item())
    assert reach["u1"] == pytest.approx(p[at("depth"), 1:].sum().item())
    assert reach["u2"] == pytest.approx(p[at("depth"), 2].item())


def test_expected_cost_of_nested_choices_equals_enumeration():
    _, _, architecture = prepared(Nested())
    p = architecture.probabilities()
    costs = torch.rand(p.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * architecture.mask
    samples = torch.tensor(list(itertools.product(*(range(len(e.candidates)) for e in architecture.edges))))
    reached = architecture.reached(samples)
    weight = torch.stack([p[row, samples[:, row]] for row in range(len(architecture.edges))]).prod(0)
    each = torch.stack([costs[row, samples[:, row]] for row in range(len(architecture.edges))], 1)
    expected = (weight * (each * reached).sum(1)).sum().item()
    assert architecture.expected_cost(p, costs) == pytest.approx(expected, rel=1e-12)
    leaf = architecture.host_alpha().requires_grad_()
    q = gates.probabilities(leaf, architecture.host_mask)
    total = (
        torch.stack([q[r, samples[:, r]] for r in range(samples.shape[1])]).prod(0) * (each * reached).sum(1)
    ).sum()
    total.backward()
    gradient = gates.softmax_gradient(p, architecture.total_costs(p, costs)) * architecture.reach(p)[:, None]
    assert torch.allclose(gradient, leaf.grad, atol=1e-12)


def test_frozen_network_equals_the_trained_path_on_every_sample():
    strategy, network, architecture = prepared(Nested())
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    for choice in itertools.product(*(range(len(e.candidates)) for e in architecture.edges)):
        with strategy.paths_of_space.running(choice):
            trained = network(x)
        assert torch.equal(network.freeze(architecture.export(choice))(x), trained)


def test_an_inactive_outer_candidates_inner_choice_gets_no_gradient():
    strategy, network, architecture = prepared(Nested())
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    others = [[] if len(e.candidates) < 2 else [1] for e in architecture.edges]
    with ArchitectureStepMode(network).active(), strategy.paths_of_space.running([0] * len(others), others) as plan:
        network(x).backward()
    at = architecture.labels.index
    assert plan.visited == {at("outer"), at("input"), at("depth"), at("u0")}
    assert at("outer") not in plan.differences, "the loss does not depend on an input that was not chosen"


class ThreeInputs(ModelSpace):
    def __init__(self):
        super().__init__()
        self.inputs = InputChoice(3, 2, label="several")

    def forward(self, x):
        return self.inputs([x, x, x])


class Fixed(ModelSpace):
    def __init__(self):
        super().__init__()
        self.layer = Scale(1.0)

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize(("space", "words"), [(ThreeInputs, "several"), (Fixed, "nothing to choose")])
def test_unsearchable_spaces_are_refused_by_name(space, words):
    with pytest.raises(UnsupportedSpaceError, match=words):
        ProxylessStrategy().mutate_model(space())


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


def macs_of(space):
    costs = space.costs(32, num_classes=10, in_chans=1)
    return macs_model(costs.fixed, costs.edges)


def test_a_target_below_the_fastest_subnet_is_refused_with_that_subnet():
    space = get_space("small_mbconv")
    with pytest.raises(TargetError, match=r"stage1_block0=3x3_e3.*stage1_block1=skip"):
        ProxylessStrategy(latency=macs_of(space), target_ms=0.01).mutate_model(space.build(num_classes=10, in_chans=1))


def test_costs_that_leave_an_edge_out_are_refused():
    space, smaller = (
        get_space("small_mbconv"),
        get_space("small_mbconv", stages=[{"width": 24, "depth": 2, "stride": 2}]),
    )
    with pytest.raises(ConfigError, match="stage2_block0"):
        ProxylessStrategy(latency=macs_of(smaller)).mutate_model(space.build(num_classes=10, in_chans=1))


def snapshot(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_an_architecture_step_touches_nothing_but_alpha_and_restores_every_flag():
    space = get_space("small_mbconv")
    strategy = ProxylessStrategy(latency=macs_of(space), target=0.5)
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


def test_reinforce_under_a_target_has_the_exact_latency_gradient():
    class Constant(TargetController):
        def reward_slope(self, expected):
            return 0.3

    strategy, network, architecture = prepared(Chain())
    p = architecture.probabilities()
    costs = torch.arange(9.0).double().view(3, 3) * architecture.mask
    problem = Problem(strategy.paths_of_space, architecture, costs, 1.0, Constant(4.0), 0)
    with ArchitectureStepMode(network).active():
        outcome = ReinforceUpdate().compute(problem, lambda: torch.tensor(0.5), 0, scale=None)
    assert torch.allclose(outcome.gradient, gates.softmax_gradient(p, 0.3 * costs), atol=1e-12)


@pytest.mark.parametrize("rule", ["pairs", "dense"])
def test_no_edge_saturates(rule):
    _, _, architecture = prepared(Chain())
    optimizer = alpha_optimizer(architecture, 1.0)
    gradient = torch.zeros(3, 3, dtype=torch.float64)
    gradient[0, 0], gradient[0, 1] = -1.0, 1.0
    pairs = gates.Pairs(torch.tensor([0, 0, 0]), torch.tensor([1, -1, -1])) if rule == "pairs" else None
    for _ in range(30):
        apply_outcome(architecture, optimizer, Outcome(gradient, 1.0, 1.0, pairs, 0.0))
    alpha = architecture.host_alpha()
    assert (alpha[0, 0] - alpha[0, 1]).item() == pytest.approx(6.0, abs=1e-9)


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


class Deep(ModelSpace):
    """A choice inside a candidate, and nothing but layers to choose."""

    def __init__(self):
        super().__init__()
        inner = LayerChoice({"p": Scale(0.2), "q": Scale(1.7)}, label="inner")
        self.outer = LayerChoice({"plain": Scale(0.9), "deep": nn.Sequential(Scale(0.4), inner)}, label="outer")


def cells():
    return get_space("cifar_tree", blocks=1, stem_width=4, alpha=4, bottleneck=2, cell_depth=2).build()


@pytest.mark.parametrize("build", [Chain, Shared, Deep, Nested, cells])
def test_a_frozen_copy_is_what_nni_freezes(build):
    """The same weights under the same keys and the same layers, in memory of its own, with nothing left to choose."""
    strategy = ProxylessStrategy()
    network = strategy.mutate_model(build())
    for seed in range(8):
        generator = torch.Generator().manual_seed(seed)
        choice = [int(torch.randint(len(e.candidates), (), generator=generator)) for e in strategy.architecture.edges]
        sample = strategy.architecture.export(choice)
        frozen, copied = network.freeze(sample), frozen_copy(network, sample)
        assert [type(module) for module in copied.modules()] == [type(module) for module in frozen.modules()]
        assert not any(isinstance(module, BinaryGateLayer) for module in copied.modules())
        expected, found = frozen.state_dict(), copied.state_dict()
        assert list(found) == list(expected)
        own = {value.data_ptr() for value in network.state_dict().values() if value.numel()}
        for key, value in found.items():
            assert torch.equal(value, expected[key])
            assert value.data_ptr() not in own
        assert isinstance(next(iter(network.modules())), type(copied))
    assert any(isinstance(module, BinaryGateLayer) for module in network.modules())
