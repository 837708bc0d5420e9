"""From path probabilities to one subnet: argmax, or the most probable subnet within a latency budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from hardware.errors import TargetError

from .architecture import Edge

SLACK = 0.02
"""Share of a budget that a subnet derived for it may leave unused, unless told otherwise."""
_LOG_FLOOR = -700.0


@dataclass(frozen=True)
class Derived:
    """A derived subnet.

    Attributes:
        choice: Candidate index per edge; for edges that the subnet does not reach, the most probable one.
        cost: Its cost, the fixed part included.
        log_probability: Sum of `log p` over the edges that it reaches.
    """

    choice: tuple[int, ...]
    cost: float
    log_probability: float


class Deriver:
    """Derives subnets from one matrix of path probabilities.

    Args:
        edges: The decisions, parents before their children.
        log_p: `log p`, `L x N`; -inf in unused cells.
        costs: Each candidate's own cost, `L x N`; None where nothing is known of costs.
        fixed: Cost of what every subnet has.
    """

    def __init__(self, edges: Sequence[Edge], log_p: np.ndarray, costs: np.ndarray | None = None, fixed: float = 0.0):
        self.edges = tuple(edges)
        self.log_p = np.asarray(log_p, dtype=np.float64)
        self.costs = np.zeros_like(self.log_p) if costs is None else np.asarray(costs, dtype=np.float64)
        self.fixed = fixed
        self.sizes = [len(edge.candidates) for edge in self.edges]
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(int)

    def argmax(self) -> Derived:
        """The most probable candidate of each edge, the first on a tie."""
        return self._finish([int(self.log_p[row, :size].argmax()) for row, size in enumerate(self.sizes)])

    def fastest(self) -> Derived:
        """The subnet of least cost."""
        return self._extreme(-self.costs)

    def slowest(self) -> Derived:
        """The subnet of greatest cost."""
        return self._extreme(self.costs)

    def within(self, budget: float, *, slack: float | None = None) -> Derived:
        """The most probable subnet whose cost is at most `budget`: a multiple-choice knapsack, solved exactly.

        Args:
            budget: Greatest cost.
            slack: Share of the budget that may stay unused: the subnet costs at least `(1 - slack) budget`. Where none
                does, the slack is doubled until one does. None asks for no least cost.

        Raises:
            TargetError: No subnet is within the budget.
        """
        nested = any(edge.parent is not None for edge in self.edges)
        argmax = self.argmax()
        least = 0.0 if slack is None else (1 - slack) * budget
        if not nested and least <= argmax.cost <= budget:
            return argmax
        fastest = self.fastest()
        if fastest.cost > budget:
            raise TargetError(
                f"no subnet is within {budget:.6g}: the fastest takes {fastest.cost:.6g}; raise the target"
            )
        gain = self._flat(np.maximum(self.log_p, _LOG_FLOOR))
        while slack is not None and slack < 1:
            found = self._solve(gain, (1 - slack) * budget, budget)
            if found is not None:
                return found
            slack = 2 * slack if slack else 0.001
        return self._solve(gain, -math.inf, budget) or fastest

    def curve(self, points: int = 20) -> list[Derived]:
        """The trade-off of one search: the most probable subnet at `points` budgets from fastest to most probable."""
        low, high = self.fastest().cost, self.argmax().cost
        found: dict[tuple[int, ...], Derived] = {}
        for budget in np.linspace(low, max(low, high), points):
            derived = self.within(float(budget) * (1 + 1e-12))
            found[derived.choice] = derived
        return sorted(found.values(), key=lambda derived: derived.cost)

    def _extreme(self, gain: np.ndarray) -> Derived:
        found = self._solve(self._flat(gain), -math.inf, math.inf)
        assert found is not None
        return found

    def _flat(self, values: np.ndarray) -> np.ndarray:
        return np.concatenate([values[row, :size] for row, size in enumerate(self.sizes)])

    def _solve(self, gain: np.ndarray, least: float, most: float) -> Derived | None:
        """The choice of greatest gain whose cost is in `[least, most]`; None if there is none."""
        constraints = [self._one_each]
        bounded = math.isfinite(least) or math.isfinite(most)
        if bounded:
            constraints.append(LinearConstraint(self._flat(self.costs)[None, :], least - self.fixed, most - self.fixed))
        count = int(self._starts[-1])
        result = milp(
            -gain,
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": 0.0},
        )
        if result.x is None:
            return None
        derived = self._finish(self._choice(result.x))
        overshoot = max(derived.cost - most, least - derived.cost)
        if bounded and overshoot > 0:  # the solver's feasibility tolerance
            step = overshoot + 1e-9 * abs(most)
            return self._solve(gain, least + step, most - step) if least + step <= most - step else None
        return derived

    @cached_property
    def _one_each(self) -> LinearConstraint:
        """One candidate for each edge that is reached, none for the others."""
        rows, columns, values, right = [], [], [], []
        for row, edge in enumerate(self.edges):
            for column in range(self._starts[row], self._starts[row + 1]):
                rows.append(row)
                columns.append(column)
                values.append(1.0)
            right.append(1.0 if edge.parent is None else 0.0)
            if edge.parent is not None:
                parent, allowed = edge.parent
                for index in allowed:
                    rows.append(row)
                    columns.append(int(self._starts[parent]) + index)
                    values.append(-1.0)
        shape = (len(self.edges), int(self._starts[-1]))
        return LinearConstraint(csr_array((values, (rows, columns)), shape=shape), right, right)

    def _choice(self, x: np.ndarray) -> list[int]:
        choice = []
        for row, size in enumerate(self.sizes):
            cells = x[self._starts[row] : self._starts[row + 1]]
            choice.append(int(cells.argmax()) if cells.max() > 0.5 else int(self.log_p[row, :size].argmax()))
        return choice

    def _finish(self, choice: list[int]) -> Derived:
        cost, log_probability, reached = self.fixed, 0.0, [True] * len(self.edges)
        for row, edge in enumerate(self.edges):
            if edge.parent is not None:
                parent, allowed = edge.parent
                reached[row] = reached[parent] and choice[parent] in allowed
            if reached[row]:
                cost += float(self.costs[row, choice[row]])
                log_probability += float(self.log_p[row, choice[row]])
        return Derived(tuple(choice), cost, log_probability)
