"""From path probabilities to one subnet: argmax, or the most probable subnet within a target."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from hardware.errors import TargetError
from hardware.model import CostModel

from .edge import Edge

SLACK = 0.02
"""Share of a target that a subnet derived for it may leave unused, unless told otherwise."""
CHOICES = 4
"""Subnets that the slack must leave to choose from. In a small space it may leave one, and then that one would be taken
however improbable it is (`tests/benchmarks/search_quality.py`)."""
_LOG_FLOOR = -700.0
"""Least `log p` in the solver, which takes no infinite gains: about where exp() underflows in float64."""


@dataclass(frozen=True)
class Derived:
    """A derived subnet.

    Attributes:
        choice: Candidate index per edge; for edges that the subnet does not reach, the most probable one.
        cost: Its cost, the fixed part included.
        log_probability: Sum of `log p` over the edges that it reaches.
        names: The chosen candidate of every edge that it reaches, by label.
    """

    choice: tuple[int, ...]
    cost: float
    log_probability: float
    names: Mapping[str, Hashable] = field(default_factory=dict, compare=False)

    def __str__(self) -> str:
        chosen = ", ".join(f"{label}={name}" for label, name in self.names.items())
        return f"{chosen or self.choice} (cost {self.cost:.4g}, log p {self.log_probability:.4g})"


class Deriver:
    """Derives subnets from one matrix of path probabilities.

    >>> edges = [Edge("first", ("small", "large")), Edge("second", ("small", "large"))]
    >>> p = np.array([[0.2, 0.8], [0.4, 0.6]])
    >>> costs = np.array([[1.0, 3.0], [1.0, 2.0]])
    >>> deriver = Deriver(edges, np.log(p), costs, fixed=1.0)
    >>> deriver.argmax().choice, deriver.argmax().cost
    ((1, 1), 6.0)
    >>> derived = deriver.within(5.5)  # two subnets cost less: large-small 5, and small-large 4
    >>> derived.choice, derived.cost, round(math.exp(derived.log_probability), 2)
    ((1, 0), 5.0, 0.32)
    >>> print(derived)
    first=large, second=small (cost 5, log p -1.139)

    Args:
        edges: The decisions, parents before their children.
        log_p: `log p`, `L x N`; -inf in unused cells.
        costs: Each candidate's own cost, `L x N`; None where nothing is known of costs.
        fixed: Cost of what every subnet has.
        gap: Relative error of the sum of `log p` that the solver may leave: of gains that go with the costs the exact
            answer can take for ever.
    """

    def __init__(
        self,
        edges: Sequence[Edge],
        log_p: np.ndarray,
        costs: np.ndarray | None = None,
        fixed: float = 0.0,
        *,
        gap: float = 0.0,
    ):
        self.edges = tuple(edges)
        self.gap = gap
        self.log_p = np.asarray(log_p, dtype=np.float64)
        self.costs = np.zeros_like(self.log_p) if costs is None else np.asarray(costs, dtype=np.float64)
        self.fixed = fixed
        self._nested = any(edge.parent is not None for edge in self.edges)
        self.sizes = [len(edge.candidates) for edge in self.edges]
        self._starts = np.concatenate([[0], np.cumsum(self.sizes)]).astype(int)

    def of(self, choice: Sequence[int]) -> Derived:
        """Return the subnet of one candidate index per edge."""
        return self._finish(list(choice))

    def argmax(self) -> Derived:
        """Return the most probable candidate of each edge, the first on a tie."""
        return self._finish([int(self.log_p[row, :size].argmax()) for row, size in enumerate(self.sizes)])

    def most_probable(self) -> Derived:
        """Return the most probable subnet of all."""
        # An edge that is not reached adds no log p, so that a less probable outer choice may pay for itself.
        return self.finalists(1)[0] if self._nested else self.argmax()

    def cheapest(self) -> Derived:
        """Return the subnet of least cost."""
        return self._extreme(-self.costs)

    def dearest(self) -> Derived:
        """Return the subnet of greatest cost."""
        return self._extreme(self.costs)

    def within(self, target: float, *, slack: float | None = None, leaving: int = CHOICES) -> Derived:
        """Return the most probable subnet of cost at most `target`: a multiple-choice knapsack, solved exactly.

        Args:
            target: Greatest cost.
            slack: The subnet costs at least `(1 - slack) target`. Slack doubles until `leaving` subnets qualify. None
                asks for no least cost.
            leaving: Subnets that the slack must leave to choose from.

        Raises:
            TargetError: No subnet is within the target.
        """
        argmax = self.argmax()
        least = 0.0 if slack is None else (1 - slack) * target
        # Where the argmax qualifies it is the answer, and no solver need run.
        if not self._nested and least <= argmax.cost <= target:
            return argmax
        return self.finalists(1, target, slack=slack, leaving=leaving)[0]

    def finalists(
        self, count: int, target: float | None = None, *, slack: float | None = None, leaving: int = CHOICES
    ) -> list[Derived]:
        """Return the most probable subnets within a target, the most probable first.

        Args:
            count: Greatest number of them; fewer where there are no more.
            target: Greatest cost; None: any.
            slack: See `within`.
            leaving: See `within`.

        Raises:
            TargetError: No subnet is within the target.
        """
        gain = self._flat(np.maximum(self.log_p, _LOG_FLOOR))
        if target is None:
            return self._several(count, gain, -math.inf, math.inf)
        cheapest = self.cheapest()
        if cheapest.cost > target:
            raise TargetError(
                f"no subnet is within {target:.6g}: the cheapest costs {cheapest.cost:.6g}; raise the target"
            )
        while slack is not None and slack < 1:
            found = self._several(max(count, leaving), gain, (1 - slack) * target, target)
            if len(found) >= leaving:
                return found[:count]
            slack = 2 * slack if slack else 0.001
        # The solver may find nothing where the target is the cheapest subnet's cost to the last bit.
        return self._several(count, gain, -math.inf, target) or [cheapest]

    def curve(self, points: int = 20) -> list[Derived]:
        """Return one search's trade-off: the most probable subnets at `points` targets up from the cheapest."""
        low, high = self.cheapest().cost, self.argmax().cost
        found: dict[tuple[int, ...], Derived] = {}
        for target in np.linspace(low, max(low, high), points):
            # The first target is the cheapest subnet's own cost, which rounding must not put out of reach.
            derived = self.within(float(target) * (1 + 1e-12))
            found[derived.choice] = derived
        return sorted(found.values(), key=lambda derived: derived.cost)

    def _extreme(self, gain: np.ndarray) -> Derived:
        found = self._solve(self._flat(gain), -math.inf, math.inf)
        assert found is not None
        return found

    def _flat(self, values: np.ndarray) -> np.ndarray:
        return np.concatenate([values[row, :size] for row, size in enumerate(self.sizes)])

    def _several(self, count: int, gain: np.ndarray, least: float, most: float) -> list[Derived]:
        """Return up to `count` choices of greatest gain whose cost is in `[least, most]`."""
        found: list[Derived] = []
        while len(found) < count and (derived := self._solve(gain, least, most, excluded=found)) is not None:
            found.append(derived)
        return found

    def _solve(
        self, gain: np.ndarray, least: float, most: float, *, excluded: Sequence[Derived] = ()
    ) -> Derived | None:
        """Return the choice of greatest gain whose cost is in `[least, most]`, none of `excluded`; None without one.

        Variables are one 0/1 cell for each candidate of each edge.
        """
        constraints = [self._one_each]
        if excluded:
            constraints.append(self._others_than(excluded))
        bounded = math.isfinite(least) or math.isfinite(most)
        if bounded:
            constraints.append(LinearConstraint(self._flat(self.costs)[None, :], least - self.fixed, most - self.fixed))
        count = int(self._starts[-1])
        result = milp(
            -gain,
            integrality=np.ones(count),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": self.gap},  # the default stops at 0.01 % from the best
        )
        if result.x is None:
            return None
        derived = self._finish(self._choice(result.x))
        over, under = derived.cost - most, least - derived.cost
        # The solver takes constraints for met within about 1e-6, but a target is guaranteed: solve again, narrower.
        if bounded and max(over, under) > 0:
            margin = 1e-9 * abs(most)
            least, most = least + (under + margin if under > 0 else 0), most - (over + margin if over > 0 else 0)
            return self._solve(gain, least, most, excluded=excluded) if least <= most else None
        return derived

    def _others_than(self, excluded: Sequence[Derived]) -> LinearConstraint:
        """Ask that at least one of the edges that an excluded choice reaches has another candidate."""
        cells = np.zeros((len(excluded), int(self._starts[-1])))
        for number, derived in enumerate(excluded):
            rows = [row for row, on in enumerate(self._reached(derived.choice)) if on]
            cells[number, [int(self._starts[row]) + derived.choice[row] for row in rows]] = 1
        return LinearConstraint(_narrow(csr_array(cells)), -math.inf, cells.sum(1) - 1)

    @cached_property
    def _one_each(self) -> LinearConstraint:
        """One candidate for each edge that is reached, none for the others.

        Linear, though edges are nested: an edge's cells sum to those cells of its parent that lead to it.
        """
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
        return LinearConstraint(_narrow(csr_array((values, (rows, columns)), shape=shape)), right, right)

    def _choice(self, x: np.ndarray) -> list[int]:
        choice = []
        for row, size in enumerate(self.sizes):
            cells = x[self._starts[row] : self._starts[row + 1]]
            choice.append(int(cells.argmax()) if cells.max() > 0.5 else int(self.log_p[row, :size].argmax()))
        return choice

    def _reached(self, choice: Sequence[int]) -> list[bool]:
        """Return whether each edge is part of the subnet."""
        reached = [True] * len(self.edges)
        for row, edge in enumerate(self.edges):
            if edge.parent is not None:
                parent, allowed = edge.parent
                reached[row] = reached[parent] and choice[parent] in allowed
        return reached

    def _finish(self, choice: list[int]) -> Derived:
        cost, log_probability = self.fixed, 0.0
        names: dict[str, Hashable] = {}
        for row, on in enumerate(self._reached(choice)):
            if on:
                names[self.edges[row].label] = self.edges[row].candidates[choice[row]]
                cost += float(self.costs[row, choice[row]])
                log_probability += float(self.log_p[row, choice[row]])
        return Derived(tuple(choice), cost, log_probability, names)


def cells(edges: Sequence[Edge], model: CostModel) -> np.ndarray:
    """Return a model's costs of candidates as `L x N`, rows and columns as in the edges."""
    known = {
        label: dict(zip(names, model.costs[row], strict=False))
        for row, (label, names) in enumerate(zip(model.labels, model.candidates, strict=True))
    }
    found = np.zeros((len(edges), max(len(edge.candidates) for edge in edges)))
    for row, edge in enumerate(edges):
        found[row, : len(edge.candidates)] = [known[edge.label][str(name)] for name in edge.candidates]
    return found


def _narrow(matrix: csr_array) -> csr_array:
    """Return a sparse matrix whose indices have 32 bits: `milp` of SciPy 1.14 and older refuses those of 64."""
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int32), matrix.indptr.astype(np.int32)
    return matrix
