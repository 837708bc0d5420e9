"""The objectives' formulas, their slopes, and the controller."""

import math

import pytest
import torch

from hardware.errors import ConfigError
from proxyless_strategy.strategy.objectives import (
    AbsoluteReward,
    AddLinear,
    Expected,
    HardReward,
    LeaveOneOutBaseline,
    MovingBaseline,
    MulLog,
    PaperReward,
    TargetController,
    make_objective,
)


def losses():
    return {
        "add_linear": (AddLinear(80.0), lambda ce, e: ce + 0.1 * (e - 80.0) / 80.0),
        "expected": (Expected(80.0, 0.03), lambda ce, e: ce + 0.03 * e),
        "mul_log": (MulLog(80.0), lambda ce, e: 0.2 * ce * (torch.log(e) / math.log(80.0)) ** 0.3),
        "target": (TargetController(80.0), lambda ce, e: ce + 10.0 * (100.0 - 80.0) / 80.0 * (e - 80.0) / 80.0),
    }


@pytest.mark.parametrize("name", losses())
def test_coefficients_are_the_loss_functions_slopes(name):
    objective, loss = losses()[name]
    ce, e = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (2.3, 100.0))
    loss(ce, e).backward()
    task_scale, slope = objective.coefficients(100.0, 2.3)
    assert task_scale == pytest.approx(ce.grad.item(), rel=1e-12)
    assert slope == pytest.approx(e.grad.item(), rel=1e-12)


@pytest.mark.parametrize(("latency", "factor"), [(60.0, 0.980), (114.0, 1.024)])
def test_mul_log_is_as_weak_as_published(latency, factor):
    scale, _ = MulLog(80.0, alpha=1.0).coefficients(latency, 1.0)
    assert scale == pytest.approx(factor, abs=1e-3)


def test_rewards():
    accuracy, latency = torch.tensor([0.5, 0.5, 0.5]), torch.tensor([40.0, 80.0, 160.0])
    paper = PaperReward(80.0).reward(accuracy, latency, 0.0)
    assert paper.tolist() == pytest.approx([0.5 * 2**0.1, 0.5, 0.5 * 0.5**0.1])
    absolute = AbsoluteReward(80.0, beta=-0.2).reward(accuracy, latency, 0.0)
    assert absolute.tolist() == pytest.approx([0.4, 0.5, 0.3])
    hard = HardReward(80.0, exponent=-1.0).reward(accuracy, latency, 0.0)
    assert hard.tolist() == pytest.approx([0.5, 0.5, 0.25])


def test_controller_follows_its_equations_and_survives_a_restart():
    controller = TargetController(50.0, rho=10.0, eta=0.05)
    assert controller.applied(60.0) == pytest.approx(2.0)
    controller.update(60.0)
    assert controller.multiplier == pytest.approx(0.01)
    assert controller.applied(60.0) == pytest.approx(2.01)
    assert controller.reward(torch.tensor([0.9]), torch.tensor([75.0]), 60.0).item() == pytest.approx(0.9)
    assert controller.reward_slope(60.0) == pytest.approx(2.01 / 50.0)
    other = TargetController(50.0)
    other.load_state_dict(controller.state_dict())
    assert other.multiplier == controller.multiplier


def test_controller_slows_down_as_it_approaches_a_far_target():
    controller = TargetController(50.0, approach=0.5)
    controller.plan(8)
    targets = []
    for expected in (90.0, 80.0, 70.0, 60.0, 55.0, 50.0):
        targets.append(controller.present_target(expected))
        controller.update(expected)
    assert targets == pytest.approx([90.0, 50 + 40 * 0.75**2, 50 + 40 * 0.5**2, 50 + 40 * 0.25**2, 50.0, 50.0])


def test_first_baseline_leaves_each_sample_out_and_later_ones_use_earlier_steps_alone():
    baseline = MovingBaseline(0.9)
    first = torch.tensor([1.0, 2.0, 6.0])
    assert baseline.advantages(first).tolist() == pytest.approx([1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5])
    assert baseline.value == pytest.approx(3.0)
    assert baseline.advantages(torch.tensor([3.0, 5.0])).tolist() == pytest.approx([0.0, 2.0])
    assert baseline.value == pytest.approx(0.9 * 3.0 + 0.1 * 4.0)


def test_leave_one_out_holds_each_sample_against_the_others_and_forgets_what_they_share():
    baseline = LeaveOneOutBaseline()
    rewards = torch.tensor([1.0, 2.0, 6.0])
    for common in (0.0, 10.0):
        assert baseline.advantages(rewards + common).tolist() == pytest.approx([1.0 - 4.0, 2.0 - 3.5, 6.0 - 1.5])
    assert baseline.state_dict() == {}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "mul_log", "rule": "gradient", "target": 0.8, "minimum": 0.5}, "mul_log"),
        ({"name": "mul_log", "rule": "gradient", "target": 5.0, "minimum": 0.5}, "0.5 ms"),
        ({"name": "paper", "rule": "gradient", "target": 5.0}, "does not exist for the gradient rule"),
        ({"name": "add_linear", "rule": "reinforce", "target": 5.0}, "does not exist for the reinforce rule"),
        ({"name": "add_linear", "rule": "gradient", "target": None}, "needs a latency target"),
        ({"name": "target", "rule": "gradient", "target": 5.0, "speed": 1.0}, "speed"),
        ({"name": "target", "rule": "gradient", "target": None, "rho": 1.0}, "rho"),
    ],
)
def test_impossible_objectives_are_refused_by_name(arguments, words):
    with pytest.raises(ConfigError, match=words):
        make_objective(**arguments)


def test_without_a_target_latency_is_left_out():
    objective = make_objective("target", rule="gradient", target=None)
    assert objective.coefficients(100.0, 2.0) == (1.0, 0.0)
