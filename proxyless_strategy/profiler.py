"""Our cost models for NNI's own strategies: their filters and penalties take an `ExpressionProfiler`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nni.mutable import Categorical, MutableExpression
from nni.nas.profiler import ExpressionProfiler

from hardware.errors import ConfigError
from hardware.model import CostModel


class CostProfiler(ExpressionProfiler):
    """A cost model, for example a `LatencyModel`, as NNI's profiler: `fixed + sum over edges of the choice's cost`.

        RangeProfilerFilter(CostProfiler(model), max=80)
        ExpectationProfilerPenalty(CostProfiler(model), baseline=80)

    Args:
        model: Costs of the space's edges.
        space: The space whose mutables the expression is made of; None makes them from the model's own labels.

    Raises:
        ConfigError: The space has no choice of a label that the model has, or other candidates there.
    """

    def __init__(self, model: CostModel, space: Any = None):
        self.model = model
        known: Mapping[str, Any] = {} if space is None else space.simplify()
        expression: Any = model.fixed
        for row, (label, names) in enumerate(zip(model.labels, model.candidates, strict=True)):
            choice = Categorical(list(names), label=label) if space is None else _choice(known, label, names)
            cost = dict(zip(names, model.costs[row].tolist(), strict=False))
            costs = {value: cost[str(value)] for value in choice.values}
            expression = expression + MutableExpression.switch_case(choice, costs)
        self.expression = expression


def _choice(known: Mapping[str, Any], label: str, names: tuple[str, ...]) -> Categorical:
    choice = known.get(label)
    if choice is None:
        raise ConfigError(f"the space has no choice {label!r}, which the cost model has; it has {', '.join(known)}")
    values = [str(value) for value in choice.values]
    if set(values) != set(names):
        raise ConfigError(
            f"the choice {label!r} has {', '.join(values)}, but the cost model has {', '.join(names)} there"
        )
    return choice
