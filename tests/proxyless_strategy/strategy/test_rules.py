"""The update rules: gradients against closed forms, loss scale, saturation, learning rate."""

import functools

import pytest
import torch

from hardware.errors import ConfigError
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
    derived_learning_rate,
)
from proxyless_strategy.strategy.supernet.step_mode import ArchitectureStepMode
from tests.proxyless_strategy import tiny
from tests.proxyless_strategy.strategy.spaces import (
    Chain,
    prepared,
    problem_of,
    soft_gate_gradients,
)


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


@pytest.mark.parametrize(
    ("arguments", "rate"),
    [(("gradient", 700, 7), 0.04), (("reinforce", 800, 7), 0.03), (("gradient", 100_000, 7), 8 * 7 / 2e5)],
)
def test_learning_rate_is_derived_from_the_planned_steps(arguments, rate):
    assert derived_learning_rate(*arguments) == pytest.approx(rate)


def test_what_rewards_are_held_against_changes_the_search():
    alphas = {name: tiny.searched(rule="reinforce", baseline=name, epochs=3) for name in ("moving", "leave_one_out")}
    moved = [strategy.architecture.alpha for strategy in alphas.values()]
    assert not torch.equal(*moved)
    with pytest.raises(ConfigError, match="baseline = 'mean'; it must be one of leave_one_out, moving"):
        ProxylessStrategy(baseline="mean")
