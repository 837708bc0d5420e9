"""How far a latency table can be trusted: its predictions against whole nets that it has never seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import Backend
from ..errors import TableError
from ..files import save_figure
from ..op_spec import OpSpec
from ..tables.plausibility import check_agreement
from ..tables.table import LatencyTable
from . import statistics
from .calibration import alone_ms, calibrated
from .nets import measure_nets
from .sampling import Plan

TOGETHER = "together"
MINIMUM_HELD_OUT = 3
"""Nets that a rank correlation takes at the least."""


@dataclass(frozen=True)
class TableCheck:
    """Predicted against measured latencies of held-out nets.

    Attributes:
        table: The table with these figures in its header (and, where it had none, the calibration fitted here).
        groups: Group of each net.
        raw_ms: Overhead and sum of each net's operators, as they were measured alone.
        calibrated_ms: Its calibrated latency.
        measured_ms: Its measured latency, in the state of the machine in which the table was built.
        drift: How much slower the machine was than then (1 where the table has no reference nets).
        noisy: Entries whose spread is large.
        unordered: Pairs of entries of which the first does less work (a smaller kernel or expansion) in more time.
    """

    table: LatencyTable
    groups: tuple[str, ...]
    raw_ms: tuple[float, ...]
    calibrated_ms: tuple[float, ...]
    measured_ms: tuple[float, ...]
    drift: float
    noisy: tuple[str, ...]
    unordered: tuple[tuple[str, str], ...]

    def figures(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return group (and `together`) to `raw` and `calibrated` to RMSE, MAPE, bias, Spearman and Kendall."""
        names = list(dict.fromkeys(self.groups))
        made = {}
        for name in [*names, TOGETHER] if len(names) > 1 else [TOGETHER]:
            chosen = [i for i, group in enumerate(self.groups) if name in (group, TOGETHER)]
            made[name] = statistics.raw_and_calibrated(
                *([values[i] for i in chosen] for values in (self.raw_ms, self.calibrated_ms, self.measured_ms))
            )
        return made

    def render(self) -> Any:
        """Return the figures as a `rich.table.Table`."""
        from rich.table import Table

        table = Table("nets", "", "RMSE ms", "MAPE", "bias ms", "Spearman", "Kendall")
        for group, kinds in self.figures().items():
            for kind, f in kinds.items():
                table.add_row(
                    group,
                    kind,
                    f"{f['rmse_ms']:.4f}",
                    f"{100 * f['mape']:.2f} %",
                    f"{f['bias_ms']:+.4f}",
                    f"{f['spearman']:.3f}",
                    f"{f['kendall']:.3f}",
                )
        return table

    def plot(self, path: str | Path) -> None:
        """Draw predicted against measured latency, raw and calibrated, and the calibrated errors beside it."""
        # slow to import, and for the picture only; `Figure` without pyplot needs no display and leaves nothing open
        from matplotlib.figure import Figure

        measured = np.array(self.measured_ms)
        calibrated = np.array(self.calibrated_ms)
        figure = Figure(figsize=(10, 4.6), layout="constrained")
        left, right = figure.subplots(1, 2)
        limits = [0.95 * min(measured.min(), calibrated.min()), 1.05 * max(measured.max(), calibrated.max())]
        left.plot(limits, limits, color="0.7", linewidth=1, label="perfect prediction")
        left.scatter(measured, self.raw_ms, s=18, color="0.6", marker="x", label="raw sum")
        for group in dict.fromkeys(self.groups):
            chosen = np.array([g == group for g in self.groups])
            left.scatter(measured[chosen], calibrated[chosen], s=26, label=f"calibrated, {group}")
            errors = 100 * (calibrated / measured - 1)[chosen]
            right.scatter(measured[chosen], errors, s=26, label=group)
        left.set(xlabel="measured latency (ms)", ylabel="predicted latency (ms)", xlim=limits, ylim=limits)
        left.legend(frameon=False)
        right.axhspan(-2, 2, color="tab:green", alpha=0.12, label="within 2 %")
        right.axhline(0, color="0.7", linewidth=1)
        largest = 1.25 * max(2.4, 100 * float(np.abs(calibrated / measured - 1).max()))
        right.set(xlabel="measured latency (ms)", ylabel="error of the calibrated prediction (%)")
        right.set(xlim=limits, ylim=(-largest, largest))
        right.legend(frameon=False)
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        f = self.figures()[TOGETHER]["calibrated"]
        header = self.table.header
        figure.suptitle(
            f"{header.space or 'latency table'} on {header.device} ({header.backend}, {header.threads} thread"
            f"{'s' * (header.threads > 1)}, batch {header.batch})\n"
            f"{len(measured)} held-out nets: MAPE {100 * f['mape']:.2f} %, "
            f"Spearman {f['spearman']:.3f}, Kendall {f['kendall']:.3f}",
            fontsize=11,
        )
        save_figure(figure, Path(path), dpi=120)


def check_table(
    table: LatencyTable,
    nets: Mapping[str, Sequence[Sequence[OpSpec]]],
    *,
    calibration_nets: Sequence[Sequence[OpSpec]] = (),
    backend: str | Backend | None = None,
    plan: Plan | None = None,
    seed: int = 0,
    progress: bool = True,
) -> TableCheck:
    """Measure held-out whole nets and compare them with the table.

    Args:
        table: The table.
        nets: Group name (`uniform`, `varied depth`, ...) to whole nets that the table was not calibrated on.
        calibration_nets: Other nets, measured along, on which the calibration is fitted anew; none keeps the table's.
        backend: A backend or its name; None takes the table's.
        plan: How long to measure.
        seed: Seed of the rounds' orders.
        progress: Whether to show a progress bar.

    Raises:
        TableError: The nets are too few, the table is uncalibrated without `calibration_nets`, or the nets' latencies
            are of another order of magnitude than the table's.
    """
    groups = tuple(group for group, members in nets.items() for _ in members)
    held_out = [tuple(net) for members in nets.values() for net in members]
    check_held_out(held_out)
    if table.header.calibration is None and not calibration_nets:
        raise TableError("the latency table is uncalibrated; give calibration_nets to fit a calibration on")
    header = table.header
    plan = plan or Plan(rounds=200, seconds=30.0)
    timed = measure_nets(
        [*calibration_nets, *held_out],
        backend=backend or header.backend,
        batch=header.batch,
        threads=header.threads,
        table=table,
        plan=plan,
        group=len(calibration_nets) + len(held_out),
        seed=seed,
        progress=progress,
    )
    settled = [figure.settled_ms for figure in timed]
    by_table = [table.raw_ms(net) for net in (*calibration_nets, *held_out)]
    check_agreement([now / then for now, then in zip(settled, by_table, strict=True)], "the latency table")
    if calibration_nets:
        table = calibrated(table, calibration_nets, settled[: len(calibration_nets)])
    return compare(table, held_out, settled[len(calibration_nets) :], groups=groups, drift=timed[0].drift)


def check_held_out(nets: Sequence[object]) -> None:
    """Check that a table can be judged by so many nets.

    Raises:
        TableError: They are too few.
    """
    if len(nets) < MINIMUM_HELD_OUT:
        raise TableError(f"{len(nets)} held-out nets are too few to judge a table by; give {MINIMUM_HELD_OUT} or more")


def compare(
    table: LatencyTable,
    nets: Sequence[Sequence[OpSpec]],
    measured_ms: Sequence[float],
    *,
    groups: Sequence[str],
    drift: float = 1.0,
) -> TableCheck:
    """Compare a table with latencies that are there already, and write the figures into its header.

    Args:
        table: The table.
        nets: Whole nets that it was not calibrated on.
        measured_ms: Their latencies, in the state of the machine in which the table was built.
        groups: Group of each net.
        drift: How much slower the machine was than then.
    """
    check = TableCheck(
        table=table,
        groups=tuple(groups),
        raw_ms=tuple(alone_ms(table, net) for net in nets),
        calibrated_ms=tuple(table.calibrated_ms(net) for net in nets),
        measured_ms=tuple(measured_ms),
        drift=drift,
        noisy=noisy_entries(table),
        unordered=unordered_entries(table),
    )
    checks = {"nets": len(nets), "drift": drift, **check.figures()}
    checked = dataclasses.replace(table, header=dataclasses.replace(table.header, checks=checks))
    return dataclasses.replace(check, table=checked)


def noisy_entries(table: LatencyTable, *, spread: float = 0.3) -> tuple[str, ...]:
    """Return the keys of the entries whose spread exceeds `spread`, noisiest first."""
    noisy = [(entry.spread, key) for key, entry in table.entries.items() if entry.spread > spread]
    return tuple(key for _, key in sorted(noisy, reverse=True))


def unordered_entries(table: LatencyTable, *, tolerance: float = 0.03) -> tuple[tuple[str, str], ...]:
    """Return pairs of blocks alike but for kernel and hidden width, of which the smaller takes longer by `tolerance`.

    On some devices that is a fact (a kernel size that the runtime has no fast code for), on others a bad entry.
    """
    families: dict[OpSpec, list[tuple[int, int, str, float]]] = {}
    for key, entry in table.entries.items():
        op = OpSpec.from_key(key)
        family = dataclasses.replace(op, kernel=0, hidden=min(op.hidden, 1))
        families.setdefault(family, []).append((op.kernel, op.hidden, key, entry.ms))
    return tuple(
        (small[2], large[2])
        for members in families.values()
        for small in members
        for large in members
        if small != large and small[0] <= large[0] and small[1] <= large[1] and small[3] > (1 + tolerance) * large[3]
    )
