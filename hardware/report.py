"""`LatencyReport`: where the latency (or another cost) of one net goes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardware.errors import MissingOperatorError

CONSTANT = "session and calibration"


@dataclass(frozen=True)
class ReportRow:
    """One layer: its label, kind, operator key, cost (None where the table has none) and whether it is predicted."""

    label: str
    kind: str
    key: str
    cost: float | None
    predicted: bool = False


@dataclass(frozen=True)
class LatencyReport:
    """Costs of one net's layers; `total()` is exactly the sum of `by_layer()` and of `by_kind()`.

    Attributes:
        rows: The layers in order.
        constant: What the net costs beside its layers (session overhead, calibration offset).
        unit: Unit of every cost.
    """

    rows: tuple[ReportRow, ...]
    constant: float = 0.0
    unit: str = "ms"

    def total(self) -> float:
        """The whole net's cost.

        Raises:
            MissingOperatorError: A layer has no cost.
        """
        missing = self.missing()
        if missing:
            raise MissingOperatorError(
                f"{len(missing)} of {len(self.rows)} layers have no cost, first {missing[0]}; "
                "measure them or fill them with a learned model."
            )
        return self.constant + math.fsum(row.cost for row in self.rows if row.cost is not None)

    def by_layer(self) -> dict[str, float]:
        """Layer label to cost, in order, with the constant part last; layers without a cost are in `missing()`."""
        layers = {row.label: row.cost for row in self.rows if row.cost is not None}
        return {**layers, CONSTANT: self.constant}

    def by_kind(self) -> dict[str, float]:
        """Operator kind to the sum of its layers' costs, dearest first, with the constant part last."""
        kinds: dict[str, float] = {}
        for row in self.rows:
            if row.cost is not None:
                kinds[row.kind] = kinds.get(row.kind, 0.0) + row.cost
        return {**dict(sorted(kinds.items(), key=lambda item: -item[1])), CONSTANT: self.constant}

    def missing(self) -> tuple[str, ...]:
        """Keys of the layers that have no cost."""
        return tuple(row.key for row in self.rows if row.cost is None)

    def predicted(self) -> tuple[str, ...]:
        """Keys of the layers whose cost a learned model predicted."""
        return tuple(row.key for row in self.rows if row.predicted)

    def render(self) -> Any:
        """The report as a `rich.table.Table`."""
        from rich.table import Table

        table = Table("layer", "operator", self.unit, "share", "")
        known = self.constant + math.fsum(row.cost or 0.0 for row in self.rows)
        largest = max([row.cost or 0.0 for row in self.rows] + [self.constant, 1e-12])
        for row in self.rows:
            if row.cost is None:
                table.add_row(row.label, row.key, "missing", "", "")
                continue
            mark = " (predicted)" if row.predicted else ""
            table.add_row(row.label, row.key + mark, *self._cells(row.cost, known, largest))
        table.add_row(CONSTANT, "", *self._cells(self.constant, known, largest))
        table.add_section()
        missing = self.missing()
        table.add_row("total", f"{len(missing)} missing" if missing else "", f"{known:.4f}", "100 %", "")
        return table

    def plot(self, path: str | Path, *, title: str = "") -> None:
        """Writes a picture with one bar per layer."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 0.28 * len(self.rows) + 1.6), layout="constrained")
        axes = figure.add_subplot()
        layers = self.by_layer()
        colours = ["tab:orange" if row.predicted else "tab:blue" for row in self.rows if row.cost is not None]
        axes.barh(list(layers), list(layers.values()), color=[*colours, "tab:grey"])
        axes.invert_yaxis()
        axes.set_xlabel(self.unit)
        axes.set_title(title or f"{sum(layers.values()):.3f} {self.unit}")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(Path(path), dpi=120)

    @staticmethod
    def _cells(cost: float, total: float, largest: float) -> tuple[str, str, str]:
        share = cost / total if total else 0.0
        return f"{cost:.4f}", f"{100 * share:.1f} %", "█" * round(20 * max(cost, 0.0) / largest)
