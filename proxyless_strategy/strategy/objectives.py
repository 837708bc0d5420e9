"""How latency enters the search: losses for the gradient rule, rewards for REINFORCE, and the target controller.

`E` is the expected latency under the path probabilities, `T` the target, `LAT` the latency of one subnet, all in
calibrated ms (or the unit of the cost model).

An objective for the gradient rule has `coefficients(expected, task_loss)`, which returns `(dL/dCE, dL/dE)` at the
present point. One for REINFORCE has `reward(accuracy, latency, expected)`, the reward of each of `M` subnets, and
`reward_slope(expected)`: `-dE[R]/dE[LAT]` of a latency term that is linear in `LAT`, whose gradient is then taken
exactly and left out of the rewards. Both have `plan(steps)`, called before the first architecture step, `update(E)`,
called after each, and a `state_dict`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hardware.errors import ConfigError

from .gates import scalar


class _Stateless:
    """What objectives without a state share."""

    def plan(self, steps: int) -> None:
        """Do nothing: the number of steps does not matter."""

    def reward_slope(self, expected: float) -> float:
        """Return 0: latency is part of each reward."""
        return 0.0

    def update(self, expected: float) -> None:
        """Do nothing: there is no state."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: there is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: there is no state."""


@dataclass
class AccuracyOnly(_Stateless):
    """No latency term: the task loss alone, or the accuracy alone as reward."""

    def coefficients(self, expected: float, task_loss: float) -> tuple[float, float]:
        return 1.0, 0.0

    def reward(self, accuracy: Tensor, latency: Tensor, expected: float) -> Tensor:
        return accuracy


@dataclass
class AddLinear(_Stateless):
    """`CE + lambda (E - T) / T`."""

    target: float
    weight: float = 0.1

    def coefficients(self, expected: float, task_loss: float) -> tuple[float, float]:
        return 1.0, self.weight / self.target


@dataclass
class Expected(_Stateless):
    """The paper's text: `CE + lambda2 E[LAT]` (section 3.3.1; its lambda1 |w|^2 is the optimiser's weight decay)."""

    target: float
    weight: float = 0.01

    def coefficients(self, expected: float, task_loss: float) -> tuple[float, float]:
        return 1.0, self.weight


@dataclass
class MulLog(_Stateless):
    """The release's `alpha CE (ln E / ln T)^beta`; defined only where `T` and every latency exceed 1 ms."""

    target: float
    alpha: float = 0.2
    beta: float = 0.3

    def coefficients(self, expected: float, task_loss: float) -> tuple[float, float]:
        ratio = math.log(expected) / math.log(self.target)
        scale = self.alpha * ratio**self.beta
        slope = self.alpha * task_loss * self.beta * ratio ** (self.beta - 1) / (expected * math.log(self.target))
        return scale, slope


@dataclass
class PaperReward(_Stateless):
    """`ACC * (T / LAT)^w`, w > 0: MnasNet's reward (arXiv 1807.11626), which writes `ACC * (LAT / T)^w` with w < 0."""

    target: float
    exponent: float = 0.1

    def reward(self, accuracy: Tensor, latency: Tensor, expected: float) -> Tensor:
        return _not_negative(accuracy) * (self.target / latency) ** self.exponent


@dataclass
class AbsoluteReward(_Stateless):
    """TuNAS's `ACC + beta |LAT / T - 1|`, beta < 0 (arXiv 2008.06120)."""

    target: float
    beta: float = -0.07

    def reward(self, accuracy: Tensor, latency: Tensor, expected: float) -> Tensor:
        return accuracy + self.beta * (latency / self.target - 1).abs()


@dataclass
class HardReward(_Stateless):
    """`ACC * max(1, LAT / T)^w`, w < 0: only subnets over the target pay."""

    target: float
    exponent: float = -0.07

    def reward(self, accuracy: Tensor, latency: Tensor, expected: float) -> Tensor:
        return _not_negative(accuracy) * (latency / self.target).clamp(min=1.0) ** self.exponent


def _not_negative(accuracy: Tensor) -> Tensor:
    # The factor of the latency would reward slow subnets.
    if (accuracy < 0).any():
        raise ConfigError(
            f"an accuracy of {scalar(accuracy.min()):.4g} cannot be multiplied by a latency factor; return 0..1 from "
            "architecture_accuracy, or set objective 'target'"
        )
    return accuracy


class TargetController:
    """An augmented Lagrangian that lands E on T without tuning, for both rules.

    `lambda_t = lambda_(t-1) + eta (E - T_t)/T`; the multiplier that applies is `lambda_t + rho (E - T_t)/T`, on `E/T`
    in the loss and on `-LAT/T` in the reward, where its gradient is taken in closed form: `LAT` is a known sum over
    edges, and sampling it would only add noise.

    The first term finds the multiplier at which E rests on T, whatever the scale of the task loss. Alone it would
    overshoot, as it goes on growing until E has arrived; the second term pushes back in proportion to the gap and damps
    it.

    `T_t` goes from the first step's E to `T` over the first `approach` of the planned steps, slowing down
    quadratically. With `T` from the start, a far target lets latency alone choose, and saturate, every edge before the
    task has had a say. It slows down because the last choices before `T` are those that matter most.

    >>> controller = TargetController(50.0, rho=10.0, eta=0.25, approach=0.0)
    >>> controller.applied(60.0)  # rho (60 - 50) / 50
    2.0
    >>> controller.update(60.0)
    >>> controller.multiplier  # eta (60 - 50) / 50
    0.05
    >>> controller.applied(50.0)  # the gap is closed; what was learned stays
    0.05

    Args:
        target: `T`.
        rho: Weight of the quadratic term.
        eta: Rate of the multiplier.
        approach: Share of the planned steps over which `T_t` reaches `T`; 0 sets `T_t = T` throughout.
    """

    def __init__(self, target: float, *, rho: float = 10.0, eta: float = 0.05, approach: float = 0.5):
        self.target = target
        self.rho = rho
        self.eta = eta
        self.approach = approach
        self.multiplier = 0.0
        self.start: float | None = None
        self.step = 0
        self.planned = 0

    def plan(self, steps: int) -> None:
        """Note how many architecture steps the search will take."""
        self.planned = steps

    def present_target(self, expected: float) -> float:
        """Return `T_t`."""
        ramp = self.approach * self.planned
        if self.step >= ramp:
            return self.target
        # Before the first update `T_t` is the present E itself: the first step has no gap.
        start = expected if self.start is None else self.start
        return self.target + (start - self.target) * (1 - self.step / ramp) ** 2

    def gap(self, expected: float) -> float:
        """Return `(E - T_t) / T`."""
        return (expected - self.present_target(expected)) / self.target

    def applied(self, expected: float) -> float:
        """Return `lambda_t + rho (E - T_t)/T`."""
        return self.multiplier + self.rho * self.gap(expected)

    def coefficients(self, expected: float, task_loss: float) -> tuple[float, float]:
        return 1.0, self.applied(expected) / self.target

    def reward(self, accuracy: Tensor, latency: Tensor, expected: float) -> Tensor:
        return accuracy

    def reward_slope(self, expected: float) -> float:
        return self.applied(expected) / self.target

    def update(self, expected: float) -> None:
        """Move the multiplier by the step's gap."""
        self.multiplier += self.eta * self.gap(expected)
        if self.start is None:
            self.start = expected
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the multiplier, and where the approach stands."""
        return {"multiplier": self.multiplier, "start": self.start, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.multiplier, self.start, self.step = state["multiplier"], state["start"], state["step"]


def against_the_others(rewards: Tensor) -> Tensor:
    """Return each of `M` rewards less the mean of the other `M - 1`."""
    return rewards - (rewards.sum() - rewards) / (rewards.numel() - 1)


class MovingBaseline:
    """Exponential moving average of *earlier* steps' mean reward.

    In the first step each sample is held against the mean of the others.

    Args:
        decay: Share of the old value that is kept.
    """

    def __init__(self, decay: float = 0.9):
        self.decay = decay
        self.value: float | None = None

    def advantages(self, rewards: Tensor) -> Tensor:
        """Return `R_j - b` for each of `M` rewards, then move the average."""
        mean = scalar(rewards.mean())
        # The average moves after use: a baseline that held the present rewards would shrink the gradient by 1 - 1/M.
        advantages = against_the_others(rewards) if self.value is None else rewards - torch.tensor(self.value)
        self.value = mean if self.value is None else self.decay * self.value + (1 - self.decay) * mean
        return advantages

    def state_dict(self) -> dict[str, Any]:
        """Return the average."""
        return {"value": self.value}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the average."""
        self.value = state["value"]


class LeaveOneOutBaseline:
    """For each sample the mean reward of the *other* samples of its step.

    All samples of a step see the same batch: what that batch is worth to all of them drops out, where a moving average
    leaves it in. A sample's baseline does not depend on the sample, so that the gradient stays unbiased.
    """

    def advantages(self, rewards: Tensor) -> Tensor:
        """Return `against_the_others`."""
        return against_the_others(rewards)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: there is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: there is no state."""


MOST_WEIGHT, MOST_EXPONENT = 1e6, 100.0
"""Far above every use; beyond them a loss overflows, or the latency alone is left of it."""
_BOUNDS = {
    "target": {"rho": (0.0, MOST_WEIGHT), "eta": (0.0, MOST_WEIGHT), "approach": (0.0, 1.0)},
    "add_linear": {"weight": (0.0, MOST_WEIGHT)},
    "expected": {"weight": (0.0, MOST_WEIGHT)},
    "mul_log": {"alpha": (1 / MOST_WEIGHT, MOST_WEIGHT), "beta": (0.0, MOST_EXPONENT)},
    "paper": {"exponent": (0.0, MOST_EXPONENT)},
    "absolute": {"beta": (-MOST_WEIGHT, 0.0)},
    "hard": {"exponent": (-MOST_EXPONENT, 0.0)},
}
"""Of each option. On the other side of 0, slow subnets would be rewarded for being slow."""

_LOSSES = {"target": TargetController, "add_linear": AddLinear, "mul_log": MulLog, "expected": Expected}
_REWARDS = {"target": TargetController, "paper": PaperReward, "absolute": AbsoluteReward, "hard": HardReward}


def make_objective(
    name: str, *, rule: str, target: float | None, minimum: float | None = None, **options: float
) -> Any:
    """Build the objective of a rule.

    Args:
        name: `target`, or for the gradient rule `add_linear`, `mul_log`, `expected`, and for REINFORCE `paper`,
            `absolute`, `hard`; `none` leaves latency out.
        rule: `gradient` or `reinforce`.
        target: `T`; None leaves latency out where the objective is `target` or `none`.
        minimum: Cost of the space's cheapest subnet.
        **options: The objective's own coefficients.

    Raises:
        ConfigError: The objective does not exist for this rule, an option is unknown or impossible, or `mul_log` is not
            defined.
    """
    known: dict[str, Any] = dict(_LOSSES if rule == "gradient" else _REWARDS)
    if name == "none" or (name == "target" and target is None):
        if options:
            raise ConfigError(f"objective options {sorted(options)} have no effect without a target; give one")
        return AccuracyOnly()
    if name not in known:
        raise ConfigError(f"objective {name!r} does not exist for the {rule} rule; it has {', '.join(known)}, none")
    if target is None:
        raise ConfigError(f"objective {name!r} needs a latency target, but there is none; give one")
    if name == "mul_log" and (target <= 1 or minimum is None or minimum <= 1):
        raise ConfigError(
            f"objective mul_log takes logarithms of milliseconds and turns its sign under 1 ms, but the target is "
            f"{target:.4g} and the cheapest subnet {0 if minimum is None else minimum:.4g} ms; use 'target'"
        )
    for option, (low, high) in _BOUNDS[name].items():
        value = options.get(option, low)
        if not low <= value <= high:
            raise ConfigError(
                f"objective_options.{option} = {value:g} of the objective {name!r}; it must be {low:g} to {high:g}"
            )
    try:
        return known[name](target, **options)
    except TypeError as error:
        raise ConfigError(f"unknown option for the objective {name!r}: {error}; remove it") from error
