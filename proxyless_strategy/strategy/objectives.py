"""How latency enters the search: losses for the gradient rule, rewards for REINFORCE, and the target controller.

`E` is the expected latency under the path probabilities, `T` the target, `LAT` the latency of one subnet, all in
calibrated ms (or the unit of the cost model).
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
    def plan(self, steps: int) -> None:
        """The number of steps does not matter."""

    def reward_slope(self, expected: float) -> float:
        """Latency is part of each reward."""
        return 0.0

    def update(self, expected: float) -> None:
        """Nothing to update."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


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
    """The paper's text: `CE + lambda2 E[LAT]` (Eq. 5; its lambda1 |w|^2 is the optimiser's weight decay)."""

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
    """`ACC * (T / LAT)^w` (the paper writes `ACC * (LAT / T)^w` with w = -0.1... of MnasNet)."""

    target: float
    exponent: float = 0.1

    def reward(self, accuracy: Tensor, latency: Tensor, expected: float) -> Tensor:
        return accuracy * (self.target / latency) ** self.exponent


@dataclass
class AbsoluteReward(_Stateless):
    """TuNAS's `ACC + beta |LAT / T - 1|`, beta < 0."""

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
        return accuracy * (latency / self.target).clamp(min=1.0) ** self.exponent


class TargetController:
    """An augmented Lagrangian that lands E on T without tuning, for both rules.

    `lambda_t = lambda_(t-1) + eta (E - T_t)/T`; the multiplier that applies is `lambda_t + rho (E - T_t)/T`, on `E/T`
    in the loss and on `-LAT/T` in the reward, where its gradient is taken in closed form: `LAT` is a known sum over
    edges, and sampling it would only add noise. `T_t` goes from the first step's E to `T` over the first `approach` of
    the planned steps, slowing down quadratically: with `T` from the start, a far target lets latency alone choose, and
    saturate, every edge before the task has had a say, and the last choices before `T` are those that matter most.

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
        """Tell how many architecture steps the search will take."""
        self.planned = steps

    def present_target(self, expected: float) -> float:
        """`T_t`."""
        ramp = self.approach * self.planned
        if self.step >= ramp:
            return self.target
        start = expected if self.start is None else self.start
        return self.target + (start - self.target) * (1 - self.step / ramp) ** 2

    def gap(self, expected: float) -> float:
        """`(E - T_t) / T`."""
        return (expected - self.present_target(expected)) / self.target

    def applied(self, expected: float) -> float:
        """`lambda_t + rho (E - T_t)/T`."""
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
        """The multiplier, and where the approach stands."""
        return {"multiplier": self.multiplier, "start": self.start, "step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them."""
        self.multiplier, self.start, self.step = state["multiplier"], state["start"], state["step"]


def against_the_others(rewards: Tensor) -> Tensor:
    """Each of `M` rewards less the mean of the other `M - 1`."""
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
        """`R_j - b` for each of `M` rewards; then moves the average."""
        mean = scalar(rewards.mean())
        advantages = against_the_others(rewards) if self.value is None else rewards - torch.tensor(self.value)
        self.value = mean if self.value is None else self.decay * self.value + (1 - self.decay) * mean
        return advantages

    def state_dict(self) -> dict[str, Any]:
        """The average."""
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
        """See `against_the_others`."""
        return against_the_others(rewards)

    def state_dict(self) -> dict[str, Any]:
        """Nothing to save."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


_LOSSES = {"target": TargetController, "add_linear": AddLinear, "mul_log": MulLog, "expected": Expected}
_REWARDS = {"target": TargetController, "paper": PaperReward, "absolute": AbsoluteReward, "hard": HardReward}


def make_objective(
    name: str, *, rule: str, target: float | None, minimum: float | None = None, **options: float
) -> Any:
    """The objective of a rule.

    Args:
        name: `target`, or for the gradient rule `add_linear`, `mul_log`, `expected`, and for REINFORCE `paper`,
            `absolute`, `hard`; `none` leaves latency out.
        rule: `gradient` or `reinforce`.
        target: `T`; None leaves latency out where the objective is `target` or `none`.
        minimum: Latency of the space's fastest subnet.
        **options: The objective's own coefficients.

    Raises:
        ConfigError: The objective does not exist for this rule, an option is unknown, or `mul_log` is not defined.
    """
    known: dict[str, Any] = dict(_LOSSES if rule == "gradient" else _REWARDS)
    if name == "none" or (name == "target" and target is None):
        if options:
            raise ConfigError(f"objective options {sorted(options)} have no effect without a target; give one")
        return AccuracyOnly()
    if name not in known:
        raise ConfigError(f"objective {name!r} does not exist for the {rule} rule; it has {', '.join(known)}, none")
    if target is None:
        raise ConfigError(f"objective {name!r} needs a latency target; give target_ms or target")
    if name == "mul_log" and (target <= 1 or minimum is None or minimum <= 1):
        raise ConfigError(
            f"objective mul_log takes logarithms of milliseconds and turns its sign under 1 ms, but the target is "
            f"{target:.4g} and the fastest subnet {0 if minimum is None else minimum:.4g} ms; use 'target'"
        )
    try:
        return known[name](target, **options)
    except TypeError as error:
        raise ConfigError(f"unknown option for the objective {name!r}: {error}") from error
