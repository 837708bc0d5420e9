"""The two update rules of the architecture parameters: two-path gradient (Proxyless-G) and REINFORCE (Proxyless-R)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hardware.errors import UnsupportedSpaceError

from . import gates
from .architecture import ArchitectureParameters
from .objectives import LeaveOneOutBaseline, MovingBaseline
from .supernet.gate import CHANGED_IN_PLACE, Passed
from .supernet.space import Supernet

Baseline = Literal["leave_one_out", "moving"]
GradientPaths = Literal["two", "all"]


@dataclass(frozen=True)
class Problem:
    """What an update works on.

    Attributes:
        supernet: Runs paths.
        architecture: Holds alpha.
        costs: Own cost of each candidate, `L x N` float64 on the host.
        fixed: Cost of what every subnet has.
        objective: A `LatencyLoss` or `LatencyReward`.
        seed: The search's seed.
        reduce: Averages a tensor over all processes; the identity on one.
    """

    supernet: Supernet
    architecture: ArchitectureParameters
    costs: Tensor
    fixed: float
    objective: Any
    seed: int
    reduce: Callable[[Tensor], Tensor] = field(default=lambda value: value)


@dataclass(frozen=True)
class Outcome:
    """What one architecture step found.

    Attributes:
        gradient: Gradient of alpha, `L x N` float64 on the host; None where it was not finite.
        expected: E[LAT] before the step.
        entropy: Mean entropy of the edges in nats.
        pairs: The pairs to be rescaled after the optimiser's step; None where no rescale applies.
        task: Task loss (gradient rule) or mean accuracy (REINFORCE) of the step; NaN where it was not transferred.
    """

    gradient: Tensor | None
    expected: float
    entropy: float
    pairs: gates.Pairs | None
    task: float


def run_task(task: Callable[[], Tensor]) -> Tensor:
    """Run a measured forward pass.

    Raises:
        UnsupportedSpaceError: It changes in place what a measured choice passes on.
    """
    try:
        return task()
    except RuntimeError as error:
        # Autograd itself refuses the change, but by the name of a function that no user has written.
        if f"of {Passed.__name__} is a view" in str(error):
            raise UnsupportedSpaceError(CHANGED_IN_PLACE) from error
        raise


class GradientUpdate:
    """Gate gradients of two sampled paths per edge (Proxyless-G).

    Args:
        estimator: `paper` or `unbiased`, see `gates.pair_weight`.
        paths: `two`, or `all`: one active path and all others measured.
    """

    def __init__(self, *, estimator: gates.Estimator = "paper", paths: GradientPaths = "two"):
        self.estimator: gates.Estimator = estimator
        self.paths = paths

    def compute(self, problem: Problem, task: Callable[[], Tensor], step: int, *, scale: Tensor | None) -> Outcome:
        """Return one architecture step's gradient of alpha, from one validation batch.

        Args:
            problem: What to work on.
            task: Runs the network on the step's batch under the plan in force and returns the task loss, a scalar
                tensor.
            step: Number of the architecture step.
            scale: Loss scale of mixed precision, a scalar on the device; None where there is none.

        Raises:
            UnsupportedSpaceError: The network changes in place what a measured choice passes on.
        """
        architecture, objective = problem.architecture, problem.objective
        alpha, mask = architecture.host_alpha(), architecture.host_mask
        p = gates.probabilities(alpha, mask)
        expected = problem.fixed + architecture.expected_cost(p, problem.costs)
        shape = tuple(alpha.shape)
        if self.paths == "two":
            pairs = gates.sample_pairs(
                alpha,
                mask,
                gates.uniforms(problem.seed, gates.Phase.PAIR, step, shape),
                gates.uniforms(problem.seed, gates.Phase.ACTIVE, step, shape[:1]),
            )
            others = [[k] if k >= 0 else [] for k in pairs.second.tolist()]
        else:
            active = gates.sample_paths(alpha, mask, gates.uniforms(problem.seed, gates.Phase.PAIR, step, shape))
            pairs = gates.Pairs(active, torch.full_like(active, -1))
            others = [
                [k for k in range(len(edge.candidates)) if k != a]
                for edge, a in zip(architecture.edges, active.tolist(), strict=True)
            ]
        with problem.supernet.running(pairs.active.tolist(), others) as plan:
            # Weights require no gradient in this step, so that the backward pass serves the taps of `gated` alone.
            loss = run_task(task)
            (loss if scale is None else loss * scale).backward()
        measured, task_loss = self._transfer(plan.differences, others, loss, scale, problem, shape)
        entropy = gates.scalar(gates.entropy(p).mean())
        # An edge inside a candidate that did not run was not measured: its pair moves no alpha.
        reached = torch.tensor([row in plan.visited for row in range(shape[0])])
        task_scale, slope = objective.coefficients(expected, task_loss)
        total = architecture.total_costs(p, problem.costs)
        # The latency term enters the same pair's gate gradients. Over all N candidates it would weigh too much beside a
        # task gradient of two: the expected gradient of a pair is a fraction of the full softmax's, another one for
        # each pair.
        if self.paths == "two":
            pairs = gates.Pairs(pairs.active, pairs.second.masked_fill(~reached, -1))
            gradient = self._two(alpha, mask, p, pairs, task_scale * measured[:, 0], slope * total, problem)
        else:
            gradient = self._all(p, pairs.active, others, task_scale * measured, slope * total, problem, reached)
        finite = bool(np.isfinite(gradient.numpy()).all() and np.isfinite(measured.numpy()).all())
        rescaled = pairs if self.paths == "two" and self.estimator == "paper" else None
        return Outcome(gradient if finite else None, expected, entropy, rescaled, task_loss)

    def _transfer(
        self,
        differences: dict[int, list[Tensor]],
        others: list[list[int]],
        loss: Tensor,
        scale: Tensor | None,
        problem: Problem,
        shape: tuple[int, ...],
    ) -> tuple[Tensor, float]:
        """Return all inner products, `L x K` with at most K others, and the loss, in one transfer from the device.

        Each transfer waits for the device, so that one for each edge would hold up the step L times.
        """
        width = max((len(options) for options in others), default=1) or 1
        measured = torch.zeros(shape[0], width, dtype=torch.float64)
        rows = sorted(differences)
        scalars = [value for row in rows for value in differences[row]]
        # Edges may run in different precisions; float64 holds them all.
        if len({value.dtype for value in scalars}) > 1:
            scalars = [value.double() for value in scalars]
        ends = [loss.detach().double()] + ([scale.double()] if scale is not None else [])
        host = torch.cat([torch.stack(scalars).double(), torch.stack(ends)] if scalars else [torch.stack(ends)]).cpu()
        # dL/dy carries the loss scale, latency does not.
        divisor = gates.scalar(host[-1]) if scale is not None else 1.0
        values, task_loss = host[: len(scalars)] / divisor, gates.scalar(host[len(scalars)])
        counts = [len(differences[row]) for row in rows]
        columns = [column for count in counts for column in range(count)]
        measured[np.repeat(rows, counts).astype(int), columns] = values
        shared = problem.reduce(torch.cat([measured.flatten(), torch.tensor([task_loss], dtype=torch.float64)]))
        return shared[:-1].view_as(measured), gates.scalar(shared[-1])

    def _two(
        self,
        alpha: Tensor,
        mask: Tensor,
        p: Tensor,
        pairs: gates.Pairs,
        difference: Tensor,
        latency: Tensor,
        problem: Problem,
    ) -> Tensor:
        rows = torch.arange(alpha.shape[0])
        if self.estimator == "paper":
            # G_a - G_b = <dL/dy, o_a - o_b> + lambda (F_a - F_b), Eq. 4 on the pair (section 3.2.1).
            gap = latency[rows, pairs.active] - latency[rows, pairs.second.clamp(min=0)]
            return gates.pair_gradient(alpha, mask, pairs, difference + gap, estimator="paper")
        # The task's pair is already unbiased, so that the latency of all candidates, which is known, can be exact.
        dense = gates.softmax_gradient(p, latency) * problem.architecture.reach(p)[:, None]
        return gates.pair_gradient(alpha, mask, pairs, difference, estimator="unbiased") + dense

    def _all(
        self,
        p: Tensor,
        active: Tensor,
        others: list[list[int]],
        measured: Tensor,
        latency: Tensor,
        problem: Problem,
        reached: Tensor,
    ) -> Tensor:
        # Gate gradients relative to the active candidate's: the softmax Jacobian removes a common constant.
        relative = torch.zeros_like(p)
        rows = np.repeat(np.arange(len(others)), [len(options) for options in others])
        candidates = [candidate for options in others for candidate in options]
        positions = [position for options in others for position in range(len(options))]
        relative[rows, candidates] = -measured[rows, positions]
        gate = relative + latency
        return gates.softmax_gradient(p, gate) * reached[:, None]

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: there is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: there is no state."""


class ReinforceUpdate:
    """REINFORCE over sampled subnets (Proxyless-R).

    Args:
        samples: Subnets per step, `M`.
        baseline: `moving` (the paper's) or `leave_one_out`, see `MovingBaseline` and `LeaveOneOutBaseline`.
        baseline_decay: Decay of the moving one.
    """

    def __init__(self, *, samples: int = 10, baseline: Baseline = "leave_one_out", baseline_decay: float = 0.9):
        self.samples = samples
        self.baseline = LeaveOneOutBaseline() if baseline == "leave_one_out" else MovingBaseline(baseline_decay)

    def compute(self, problem: Problem, task: Callable[[], Tensor], step: int, *, scale: Tensor | None) -> Outcome:
        """Return one architecture step's gradient of alpha, as `GradientUpdate.compute` does.

        Here `task` returns the accuracy in 0..1, a scalar tensor; nothing runs backwards, so `scale` has no effect.
        """
        architecture, objective = problem.architecture, problem.objective
        alpha, mask = architecture.host_alpha(), architecture.host_mask
        p = gates.probabilities(alpha, mask)
        expected = problem.fixed + architecture.expected_cost(p, problem.costs)
        drawn = torch.stack(
            [
                gates.sample_paths(
                    alpha,
                    mask,
                    gates.uniforms(problem.seed, gates.Phase.REINFORCE, step, tuple(alpha.shape), sample=index),
                )
                for index in range(self.samples)
            ]
        )
        accuracies = []
        with torch.no_grad():
            for paths in drawn:
                with problem.supernet.running(paths.tolist()):
                    accuracies.append(task().double())
        accuracy = problem.reduce(torch.stack(accuracies).cpu())
        active = architecture.reached(drawn)
        cells = problem.costs.expand(self.samples, -1, -1).gather(2, drawn[:, :, None])[:, :, 0]
        latency = problem.fixed + (cells if active is None else cells * active).sum(1)
        rewards = objective.reward(accuracy, latency, expected)
        entropy = gates.scalar(gates.entropy(p).mean())
        if not np.isfinite(rewards.numpy()).all():
            return Outcome(None, expected, entropy, None, float("nan"))
        gradient = gates.reinforce_gradient(p, drawn, self.baseline.advantages(rewards), active)
        total = architecture.total_costs(p, problem.costs)
        # -dE[R]/dalpha of a latency term that is linear in LAT: exact, instead of from M samples.
        latency_gradient = gates.softmax_gradient(p, objective.reward_slope(expected) * total)
        gradient = gradient + latency_gradient * architecture.reach(p)[:, None]
        return Outcome(gradient, expected, entropy, None, gates.scalar(accuracy.mean()))

    def state_dict(self) -> dict[str, Any]:
        """Return the baseline's state."""
        return self.baseline.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the baseline."""
        self.baseline.load_state_dict(state)


LOGIT_SPAN = 6.0
"""Largest distance in logits between candidates: a probability ratio of about 400. An edge that is nearly one-hot has
no gradient left, so that E could no longer be moved back to its target."""


def apply_outcome(
    architecture: ArchitectureParameters,
    optimizer: torch.optim.Optimizer,
    outcome: Outcome,
    *,
    span: float = LOGIT_SPAN,
) -> None:
    """Move alpha by the optimiser's step on the outcome's gradient, keep it from saturating, and rescale its pairs.

    Args:
        architecture: Holds alpha.
        optimizer: Alpha's optimiser.
        outcome: What the step found; without a gradient nothing moves.
        span: See `LOGIT_SPAN`; for pairs, within the pair.
    """
    alpha = architecture.alpha
    if outcome.gradient is None:
        return
    before = alpha.detach().clone()
    # By hand, as no graph leads to alpha; and gone after it, so that no other step of Lightning's finds it.
    alpha.grad = outcome.gradient.to(device=alpha.device, dtype=alpha.dtype)
    optimizer.step()
    alpha.grad = None
    with torch.no_grad():
        if outcome.pairs is None:
            # Every candidate has moved: whatever is too far under the edge's best is brought back.
            top = gates.logits(alpha, architecture.mask).amax(-1, keepdim=True)
            alpha.copy_(torch.where(architecture.mask, alpha.clamp(min=top - span), alpha))
        else:
            pairs = gates.Pairs(outcome.pairs.active.to(alpha.device), outcome.pairs.second.to(alpha.device))
            alpha.copy_(gates.rescale_pairs(before, gates.limit_pairs(alpha, pairs, span), pairs))


def alpha_optimizer(architecture: ArchitectureParameters, learning_rate: float) -> torch.optim.Optimizer:
    """Return Adam with betas (0.0, 0.999), no weight decay: an alpha with zero gradient must not move.

    With the usual beta1 = 0.9, an alpha outside of a step's pairs would go on moving by momentum.
    """
    return torch.optim.Adam([architecture.alpha], lr=learning_rate, betas=(0.0, 0.999))


def derived_learning_rate(rule: str, steps: int, candidates: int, *, dense: bool = False) -> float:
    """Return Adam's rate such that an alpha can travel far enough over the search.

    Adam with beta1 = 0 moves an alpha by at most the rate at each of its updates. With pairs an alpha takes part in
    about `2 S / N` of `S` steps, otherwise in all of them. The gradient rule is given 8 logits of travel
    (`rate = 8 N / (2 S)`, or `8 / S`), REINFORCE, whose estimate from a few subnets is noisier, 24
    (`tests/benchmarks/target.py`).

    Args:
        rule: `gradient` or `reinforce`.
        steps: Planned architecture steps, `S`.
        candidates: `N`.
        dense: Whether each gradient step moves every candidate (`paths="all"`, or the unbiased estimator's latency).
    """
    if rule == "reinforce":
        return 24.0 / steps
    return 8.0 / (steps if dense else max(1.0, 2 * steps / candidates))
