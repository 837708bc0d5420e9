"""`LatencyReport`: where the latency, or another cost, of one net goes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import MissingOperatorError, TableError
from .files import save_figure
from .op_spec import IDENTITY, OpSpec

CONSTANT = "session and calibration"
CHOSEN, FIXED, PREDICTED, MISSING = "chosen", "fixed", "predicted, not measured", "not in the table"
_COLOURS = {CHOSEN: "tab:blue", FIXED: "tab:cyan", PREDICTED: "tab:orange", MISSING: "tab:red", CONSTANT: "tab:grey"}


@dataclass(frozen=True)
class ReportRow:
    """One layer of a net.

    Attributes:
        label: Its name; an edge's label where something was chosen.
        kind: Kind of its operator.
        key: Key of its operator.
        cost: What it costs; None where the table has nothing.
        predicted: Whether a learned model gave the cost.
        choice: The chosen candidate; empty where nothing is chosen.
    """

    label: str
    kind: str
    key: str
    cost: float | None
    predicted: bool = False
    choice: str = ""

    @property
    def operator(self) -> str:
        """The operator in a few words: kind, kernel, stride and shapes; its key where that is no operator's."""
        try:
            op = OpSpec.from_key(self.key)
        except TableError:
            return self.key
        start, end = ("x".join(map(str, shape)) for shape in (op.input_shape, op.output_shape))
        kernel = "" if op.kind in (IDENTITY, "head") else f" {op.kernel}x{op.kernel}/{op.stride}"
        hidden = f" via {op.hidden}" if op.hidden else ""
        squeeze = f", squeezed to {op.squeeze}" if op.squeeze else ""
        return f"{op.kind}{kernel} {start} -> {end}{hidden}{squeeze}"


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
        """Return the whole net's cost.

        Raises:
            MissingOperatorError: A layer has no cost.
        """
        missing = self.missing()
        if missing:
            raise MissingOperatorError(
                f"{len(missing)} of {len(self.rows)} layers have no cost, first {missing[0]}; "
                "measure them or fill them with a learned model"
            )
        return self.constant + math.fsum(row.cost for row in self.rows if row.cost is not None)

    def by_layer(self) -> dict[str, float]:
        """Return layer label to cost, in order, the constant part last; layers without a cost are in `missing()`."""
        layers = {row.label: row.cost for row in self.rows if row.cost is not None}
        return {**layers, CONSTANT: self.constant}

    def by_kind(self) -> dict[str, float]:
        """Return operator kind to the sum of its layers' costs, dearest first, with the constant part last."""
        kinds: dict[str, float] = {}
        for row in self.rows:
            if row.cost is not None:
                kinds[row.kind] = kinds.get(row.kind, 0.0) + row.cost
        return {**dict(sorted(kinds.items(), key=lambda item: -item[1])), CONSTANT: self.constant}

    def missing(self) -> tuple[str, ...]:
        """Return the keys of the layers that have no cost."""
        return tuple(row.key for row in self.rows if row.cost is None)

    def predicted(self) -> tuple[str, ...]:
        """Return the keys of the layers whose cost a learned model predicted."""
        return tuple(row.key for row in self.rows if row.predicted)

    def render(self) -> Any:
        """Return the report as a `rich.table.Table`."""
        # for people only; a run that writes files needs none of it
        from rich.table import Column, Table

        table = Table("layer", "choice", Column("operator", no_wrap=True))
        for title in (self.unit, "share"):
            table.add_column(title, justify="right", max_width=14)
        table.add_column("")
        known = self.constant + math.fsum(row.cost or 0.0 for row in self.rows)
        largest = max([row.cost or 0.0 for row in self.rows] + [self.constant, 1e-12])
        for row in self.rows:
            if row.cost is None:
                table.add_row(row.label, row.choice, row.operator, "missing", "", "")
                continue
            mark = " (predicted)" if row.predicted else ""
            table.add_row(row.label, row.choice, row.operator + mark, *self._cells(row.cost, known, largest))
        table.add_row(CONSTANT, "", "", *self._cells(self.constant, known, largest))
        table.add_section()
        missing = self.missing()
        table.add_row("total", "", f"{len(missing)} missing" if missing else "", f"{known:.4f}", "100 %", "")
        return table

    def plot(self, path: str | Path, *, title: str = "") -> None:
        """Write a picture with one bar per layer, in the colour of what it is, and each cost at the bar's end."""
        # slow to import, and for the picture only; `Figure` without pyplot needs no display and leaves nothing open
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        bars = [(_named(row), row.cost or 0.0, _part(row)) for row in self.rows]
        bars.append((CONSTANT, self.constant, CONSTANT))
        figure = Figure(figsize=(8.5, 0.26 * len(bars) + 1.4), layout="constrained")
        axes = figure.add_subplot()
        drawn = axes.barh(
            range(len(bars)), [cost for _, cost, _ in bars], color=[_COLOURS[part] for _, _, part in bars]
        )
        texts = ["missing" if part == MISSING else f"{cost:.3g}" for _, cost, part in bars]
        axes.bar_label(drawn, texts, padding=3, fontsize=8, color="0.3")
        axes.set_yticks(range(len(bars)), [name for name, _, _ in bars], fontsize=9)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.margins(x=0.08)
        axes.set_xlabel(self.unit)
        known = self.constant + math.fsum(row.cost or 0.0 for row in self.rows)
        axes.set_title(title or f"{known:.3f} {self.unit}", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
        present = [part for part in _COLOURS if any(part == other for _, _, other in bars) and part != CONSTANT]
        axes.legend(handles=[Patch(color=_COLOURS[part], label=part) for part in present], frameon=False, fontsize=8)
        save_figure(figure, path)

    @staticmethod
    def _cells(cost: float, total: float, largest: float) -> tuple[str, str, str]:
        share = cost / total if total else 0.0
        return f"{cost:.4f}", f"{100 * share:.1f} %", "█" * round(10 * max(cost, 0.0) / largest)


def _named(row: ReportRow) -> str:
    return f"{row.label}  {row.choice}" if row.choice else row.label


def _part(row: ReportRow) -> str:
    if row.cost is None:
        return MISSING
    return PREDICTED if row.predicted else CHOSEN if row.choice else FIXED
