"""The network that a search chose in, operator by operator, with what each costs. Known without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from hardware.op_spec import OpSpec
from hardware.reading import Unreadable, cut, expect

if TYPE_CHECKING:
    from hardware.model import CostModel
    from search_spaces import SpaceCosts

MOST_COST = 1e12
"""Far above every use; larger numbers would only make a solver fail."""


@dataclass(frozen=True)
class Operator:
    """An operator and what it costs in a search.

    Attributes:
        key: `OpSpec.key`.
        cost: In the unit of the search's target.
    """

    key: str
    cost: float

    @cached_property
    def spec(self) -> OpSpec | None:
        """The operator itself; None where the key is one that a space of its own wrote in another way."""
        spec = OpSpec.named(self.key)
        return None if spec is None or spec.impossible() else spec


@dataclass(frozen=True)
class Network:
    """What a search chose in.

    Attributes:
        input_shape: `(C, H, W)` of an image.
        constant: What every subnet costs beside its operators.
        order: From input to output: an operator where nothing is chosen, a label where an edge stands.
        beside: Operators of every subnet on another branch.
        edges: By edge and candidate.
    """

    input_shape: tuple[int, ...]
    constant: float
    order: tuple[Operator | str, ...]
    beside: tuple[Operator, ...]
    edges: Mapping[str, Mapping[str, Operator]]

    @property
    def fixed(self) -> float:
        """What every subnet costs."""
        ops = (*(item for item in self.order if isinstance(item, Operator)), *self.beside)
        return self.constant + math.fsum(op.cost for op in ops)

    def cost(self, choices: Mapping[str, str]) -> float:
        """Return what a subnet costs; edges whose choice is no candidate count nothing."""
        chosen = (self.edges[label].get(name) for label, name in choices.items() if label in self.edges)
        return self.fixed + math.fsum(op.cost for op in chosen if op is not None)

    def expected(self, probabilities: Mapping[str, Sequence[float]]) -> float:
        """Return the expected cost under the probabilities of every edge, in the candidates' order."""
        terms = (
            p * op.cost
            for label, options in self.edges.items()
            for p, op in zip(probabilities[label], options.values(), strict=True)
        )
        return self.fixed + math.fsum(terms)


def network_record(costs: SpaceCosts, cost: CostModel) -> dict[str, Any]:
    """Return what `search.json` keeps of the network.

    Args:
        costs: The space's operators.
        cost: What they cost.
    """
    # `report` says what each fixed operator costs, whatever is chosen beside it.
    fixed = [[row.key, row.cost] for row in cost.report(cost.minimum()[1]).rows[: len(costs.fixed)]]
    count = len(costs.fixed) - len(costs.beside)
    chain = iter(fixed[:count])
    edges = {
        label: {
            name: [op.key, float(cost.costs[row, column])]
            for column, (name, op) in enumerate(costs.edges[label].items())
        }
        for row, label in enumerate(cost.labels)
    }
    return {
        "input_shape": list(costs.input_shape),
        "constant": cost.constant,
        "order": [item if isinstance(item, str) else next(chain) for item in costs.order],
        "beside": fixed[count:],
        "edges": edges,
    }


def read_network(values: Any, candidates: Mapping[str, Sequence[str]]) -> Network:
    """Check and return what `network_record` wrote.

    Args:
        values: Plain values of any origin.
        candidates: Names of the candidates by edge, as the search's probabilities have them.

    Raises:
        Unreadable: It is no network of these edges.
    """
    values = expect(values, dict, "network")
    edges: dict[str, dict[str, Operator]] = {}
    found = expect(values["edges"], dict, "network.edges")
    if set(found) != set(candidates):
        raise Unreadable(f"its network has {len(found)} edges, which are not the search's {len(candidates)}")
    for label, names in candidates.items():
        place = f"network.edges.{cut(label)}"
        options = expect(found[label], dict, place)
        if set(options) != set(names):
            raise Unreadable(f"its {place} has other candidates than its probabilities")
        edges[label] = {name: _operator(options[name], f"{place}.{cut(name)}") for name in names}
    order: list[Operator | str] = []
    for item in expect(values["order"], list, "network.order"):
        if isinstance(item, str) and item not in edges:
            raise Unreadable(f"its network.order names {cut(item)}, which is no edge")
        order.append(item if isinstance(item, str) else _operator(item, "network.order"))
    return Network(
        input_shape=tuple(
            expect(side, int, "network.input_shape")
            for side in expect(values["input_shape"], list, "network.input_shape")
        ),
        constant=_cost(values["constant"], "network.constant"),
        order=tuple(order),
        beside=tuple(_operator(item, "network.beside") for item in expect(values["beside"], list, "network.beside")),
        edges=edges,
    )


def _operator(values: Any, place: str) -> Operator:
    if len(expect(values, list, place)) != 2:
        raise Unreadable(f"its {place} has {len(values)} values, not a key and a cost")
    return Operator(expect(values[0], str, place), _cost(values[1], place))


def _cost(value: Any, place: str) -> float:
    if abs(expect(value, float, place)) > MOST_COST:
        raise Unreadable(f"its {place} is {value}, which nothing costs")
    return float(value)
