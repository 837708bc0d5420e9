"""What the choices of a search space cost: in calibrated milliseconds, MACs, parameters or activation bytes.

Let `L` be the number of edges and `N` the largest number of candidates. `F` (`costs`, `L x N`) holds the cost of
each candidate and `mask` its used cells; a net costs `fixed + sum_l F[l, choice_l]` and its expectation under
probabilities `P` (`L x N`) is `E = fixed + sum(P * F)`: the expected latency of ProxylessNAS (arXiv 1812.00332, section
3.3.1), for any cost that is a sum over operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .cost_report import LatencyReport, ReportRow
from .errors import SpaceError, SubnetError, TableError
from .op_spec import IDENTITY, OpSpec, executed
from .operators import primitives
from .reading import shown
from .tables.energy import EnergyTable
from .tables.table import LatencyTable


class CostModel:
    """Additive cost of a space's fixed operators and of every candidate of every edge.

    >>> small, large = (OpSpec("mbconv", (8, 4, 4), (8, 4, 4), kernel=k, hidden=24, residual=True) for k in (3, 5))
    >>> skip = OpSpec("identity", (8, 4, 4), (8, 4, 4))
    >>> stem = OpSpec("conv", (3, 8, 8), (8, 4, 4), kernel=3, stride=2)
    >>> model = CostModel(primitives.macs, fixed=[stem], edges={"edge": {"k3": small, "k5": large, "skip": skip}},
    ...                   unit="MACs")
    >>> model.cost({"edge": "k3"}), model.minimum()
    (13056.0, (3456.0, {'edge': 'skip'}))
    >>> float(model.expected(np.array([[0.5, 0.25, 0.25]])))
    12192.0

    Attributes:
        labels: The `L` edges in order.
        candidates: Candidate names of each edge, in the order of the columns of `costs`.
        costs: `L x N` float64; 0 in unused cells.
        mask: `L x N` bool; True where a candidate exists.
        fixed: Cost of everything that is not chosen, constants included.
        unit: What the numbers are in.
    """

    def __init__(
        self,
        cost: Callable[[OpSpec], float],
        *,
        fixed: Sequence[OpSpec],
        edges: Mapping[str, Mapping[str, OpSpec]],
        constant: float = 0.0,
        unit: str,
    ) -> None:
        """
        Args:
            cost: From an operator to its cost; must be 0 for `identity`.
            fixed: The operators that every subnet has.
            edges: Edge label to candidate name to operator.
            constant: What every subnet costs beside its operators.
            unit: Name of the cost's unit.
        """
        for label, options in edges.items():
            if not options:
                raise SpaceError(f"edge {label!r} has no candidate, so no subnet has a cost; give it one")
        self.unit = unit
        self.labels: tuple[str, ...] = tuple(edges)
        self.candidates: tuple[tuple[str, ...], ...] = tuple(tuple(options) for options in edges.values())
        width = max((len(options) for options in self.candidates), default=1)
        self.costs: np.ndarray = np.zeros((len(self.labels), width), dtype=np.float64)
        self.mask: np.ndarray = np.zeros((len(self.labels), width), dtype=bool)
        for row, options in enumerate(edges.values()):
            for column, op in enumerate(options.values()):
                self.costs[row, column] = cost(op)
                self.mask[row, column] = True
        # summed with `fsum` here and in `cost`, so that the cost of a subnet does not depend on the order of its edges
        self.constant = float(constant)
        self._fixed_ops = tuple(fixed)
        self._fixed_costs = tuple(float(cost(op)) for op in fixed)
        self._edges = {label: dict(options) for label, options in edges.items()}
        self.fixed: float = self.constant + math.fsum(self._fixed_costs)
        self._rows = {label: row for row, label in enumerate(self.labels)}
        self._columns = [{name: i for i, name in enumerate(options)} for options in self.candidates]

    def cost(self, choices: Mapping[str, str]) -> float:
        """Return the cost of one subnet.

        Args:
            choices: Edge label to the chosen candidate's name, for every edge.
        """
        return self.fixed + math.fsum(self.costs[row, column] for row, column in self._cells(choices))

    def expected(self, probabilities: Any) -> Any:
        """Return the expected cost `fixed + sum(P * F)`; differentiable where `probabilities` is a torch tensor.

        Args:
            probabilities: `L x N` numpy array or torch tensor. With nested choices, rows already weighted by the
                probability that the edge is reached.

        Returns:
            A scalar of the same library, type and device.
        """
        if tuple(probabilities.shape) != self.costs.shape:
            raise SpaceError(
                f"probabilities have shape {tuple(probabilities.shape)}, but the costs have {self.costs.shape}; "
                "give one row per edge and one column per candidate"
            )
        # a tensor's own `new_tensor`, so that this room does without torch; type and device are then the tensor's
        costs = probabilities.new_tensor(self.costs) if hasattr(probabilities, "new_tensor") else self.costs
        return (probabilities * costs).sum() + self.fixed

    def minimum(self) -> tuple[float, dict[str, str]]:
        """Return the cheapest subnet: its cost and its choices (first candidate on a tie)."""
        # unused cells hold 0, which would be the least of all
        return self._extreme(np.where(self.mask, self.costs, np.inf).argmin(axis=1))

    def maximum(self) -> tuple[float, dict[str, str]]:
        """Return the dearest subnet: its cost and its choices (first candidate on a tie)."""
        return self._extreme(np.where(self.mask, self.costs, -np.inf).argmax(axis=1))

    def report(self, choices: Mapping[str, str]) -> LatencyReport:
        """Report where the cost of one subnet goes."""
        rows = [
            ReportRow(f"fixed {i}: {op.kind}", op.kind, op.key, cost, predicted=self._predicted(op))
            for i, (op, cost) in enumerate(zip(self._fixed_ops, self._fixed_costs, strict=True))
        ]
        for row, column in self._cells(choices):
            label = self.labels[row]
            name = self.candidates[row][column]
            op = self._edges[label][name]
            cost = float(self.costs[row, column])
            rows.append(ReportRow(label, op.kind, op.key, cost, predicted=self._predicted(op), choice=name))
        return LatencyReport(rows=tuple(rows), constant=self.constant, unit=self.unit)

    def _predicted(self, op: OpSpec) -> bool:
        return False

    def _extreme(self, columns: np.ndarray) -> tuple[float, dict[str, str]]:
        chosen = {label: self.candidates[row][columns[row]] for row, label in enumerate(self.labels)}
        return self.cost(chosen), chosen

    def _cells(self, choices: Mapping[str, str]) -> list[tuple[int, int]]:
        unknown = [label for label in choices if label not in self._rows]
        if unknown:
            raise SubnetError(f"the choice names the unknown edge {shown(unknown[0])}; edges are {_few(self.labels)}")
        cells = []
        for row, label in enumerate(self.labels):
            if label not in choices:
                raise SubnetError(f"the choice leaves out edge {label!r}; choose one of its candidates")
            column = self._columns[row].get(choices[label])
            if column is None:
                raise SubnetError(
                    f"edge {shown(label)} has no candidate {shown(choices[label])}; it has "
                    f"{', '.join(self.candidates[row])}"
                )
            cells.append((row, column))
        return cells


class LatencyModel(CostModel):
    """Calibrated latency in ms of a space's subnets on the device of one table.

    >>> from hardware.tables.shipped import open_table
    >>> table = open_table("pixel1")
    >>> blocks = [OpSpec("mbconv", (24, 56, 56), (24, 56, 56), kernel=k, hidden=72, residual=True) for k in (3, 7)]
    >>> model = LatencyModel(table, fixed=[], edges={"stage1.1": dict(zip(["small", "large"], blocks))})
    >>> round(model.latency({"stage1.1": "small"}), 3), model.unit
    (6.273, 'ms (uncalibrated)')

    A subnet takes `scale * (overhead + sum) + offset` ms; without a calibration in the table `scale` is 1, `offset`
    is 0 and `calibrated` is False.

    Raises:
        TableError: The table lacks an operator, or makes less than nothing of the fastest subnet.

    Attributes:
        table: The table behind the figures.
        calibrated: Whether the table has a calibration.
        fixed_ms: `scale * (overhead + sum of the fixed operators) + offset`.
    """

    def __init__(
        self, table: LatencyTable, *, fixed: Sequence[OpSpec], edges: Mapping[str, Mapping[str, OpSpec]]
    ) -> None:
        calibration = table.header.calibration
        self.table = table
        self.calibrated = calibration is not None
        scale = calibration.scale if calibration else 1.0
        offset = calibration.offset_ms if calibration else 0.0
        super().__init__(
            lambda op: scale * table.latency_ms(op),
            fixed=fixed,
            edges=edges,
            constant=scale * table.header.overhead_ms + offset,
            unit="ms" if calibration else "ms (uncalibrated)",
        )
        self.fixed_ms = self.fixed
        low, choices = self.minimum()
        # a space of edges alone, all of which can be skipped, has a subnet of nothing
        if low < 0 or (low == 0 and executed(fixed)):
            raise TableError(
                f"by the latency table of {shown(table.header.device)} the fastest subnet takes {low:.4g} ms "
                f"({', '.join(list(choices.values())[:5])}): scale {scale:.4g} and offset {offset:.4g} ms are of "
                "another kind of net; calibrate the table on nets of this space"
            )

    def latency(self, choices: Mapping[str, str]) -> float:
        """Return the latency of one subnet in ms; `choices` maps every edge label to a candidate's name."""
        return self.cost(choices)

    def _predicted(self, op: OpSpec) -> bool:
        return op.kind != IDENTITY and self.table.entry(op).predicted


class EnergyModel(CostModel):
    """Gross energy in mJ of a space's subnets on the device of one table: `scale * (overhead + sum) + offset`.

    Raises:
        TableError: The table lacks an operator, or makes less than nothing of the cheapest subnet.

    Attributes:
        table: The table behind the figures.
    """

    def __init__(
        self, table: EnergyTable, *, fixed: Sequence[OpSpec], edges: Mapping[str, Mapping[str, OpSpec]]
    ) -> None:
        header = table.header
        self.table = table
        super().__init__(
            lambda op: header.scale * table.energy_mj(op),
            fixed=fixed,
            edges=edges,
            constant=header.scale * header.overhead_mj + header.offset_mj,
            unit="mJ" if header.nets else "mJ (uncalibrated)",
        )
        low, _ = self.minimum()
        if low <= 0:
            raise TableError(
                f"by the energy table of {shown(header.device)} the cheapest subnet takes {low:.4g} mJ: scale "
                f"{header.scale:.4g} and offset {header.offset_mj:.4g} mJ are of another kind of net; build "
                "the table again"
            )


def given_costs(
    costs: Mapping[str, Mapping[str, float]],
    *,
    constant: float = 0.0,
    unit: str = "ms",
    kind: type[CostModel] = CostModel,
) -> CostModel:
    """Make a cost model of figures that exist.

    >>> model = given_costs({"block": {"conv": 1.2, "skip": 0.0}}, constant=0.5)
    >>> model.cost({"block": "conv"}), model.unit
    (1.7, 'ms')

    Args:
        costs: Each candidate's cost, by the label of its edge and its own name.
        constant: What every subnet costs beside them.
        unit: What the figures are in.
        kind: A subclass to make instead.

    Raises:
        SpaceError: A figure is negative, infinite or no number.
    """
    figures: dict[str, float] = {}
    edges: dict[str, dict[str, OpSpec]] = {}
    for label, options in costs.items():
        edges[label] = {}
        for name, value in options.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise SpaceError(f"the cost of {shown(name)} at {shown(label)} is {shown(value)}; give 0 or more")
            # An operator that is known by its place alone: equal ones would be one, with one cost.
            op = OpSpec(f"{label}={name}", (1, 1, 1), (1, 1, 1))
            figures[op.kind], edges[label][name] = float(value), op
    return kind(lambda op: figures[op.kind], fixed=(), edges=edges, constant=constant, unit=unit)


def cost_model(name: str, fixed: Sequence[OpSpec], edges: Mapping[str, Mapping[str, OpSpec]]) -> CostModel:
    """Make the cost that needs no device, by its name: `macs`, `params` or `activation_memory`.

    >>> stem = OpSpec("conv", (3, 8, 8), (8, 4, 4), kernel=3, stride=2)
    >>> model = cost_model("params", [stem], {})
    >>> model.cost({}), model.unit
    (0.000232, 'M params')

    Raises:
        SpaceError: There is no such cost.
    """
    if name not in _MODELS:
        raise SpaceError(
            f"cost {name!r} is unknown; known are {', '.join(_MODELS)}, and latency and energy with a table"
        )
    return _MODELS[name](fixed, edges)


def macs_model(fixed: Sequence[OpSpec], edges: Mapping[str, Mapping[str, OpSpec]]) -> CostModel:
    """Count multiply-accumulates, in millions."""
    return CostModel(lambda op: primitives.macs(op) / 1e6, fixed=fixed, edges=edges, unit="M MACs")


def params_model(fixed: Sequence[OpSpec], edges: Mapping[str, Mapping[str, OpSpec]]) -> CostModel:
    """Count trained parameters in millions, as an exported model has them."""
    return CostModel(lambda op: primitives.params(op) / 1e6, fixed=fixed, edges=edges, unit="M params")


def activation_model(fixed: Sequence[OpSpec], edges: Mapping[str, Mapping[str, OpSpec]]) -> CostModel:
    """Count the bytes of all activations of one float32 image, in MB (1e6 bytes)."""
    return CostModel(lambda op: primitives.activation_bytes(op) / 1e6, fixed=fixed, edges=edges, unit="MB")


_MODELS = {"macs": macs_model, "params": params_model, "activation_memory": activation_model}


def chain_report(table: LatencyTable, chain: Iterable[OpSpec]) -> LatencyReport:
    """Report where the calibrated latency of a net goes that is given by its operators.

    Operators that the table lacks are listed by `missing()`, and `total()` then refuses to give a number.
    """
    calibration = table.header.calibration
    scale, offset = (calibration.scale, calibration.offset_ms) if calibration else (1.0, 0.0)
    rows = []
    for index, op in enumerate(chain):
        entry = None if op.kind == IDENTITY else table.find(op)
        cost = 0.0 if op.kind == IDENTITY else None if entry is None else scale * entry.ms
        predicted = entry is not None and entry.predicted
        rows.append(ReportRow(f"{index}: {op.kind}", op.kind, op.key, cost, predicted=predicted))
    return LatencyReport(
        rows=tuple(rows),
        constant=scale * table.header.overhead_ms + offset,
        unit="ms" if calibration else "ms (uncalibrated)",
    )


def _few(names: Sequence[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
