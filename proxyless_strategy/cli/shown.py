"""What the commands about latency tables print of a table, and its figures for `--json`.

As in `main`, what is slow to import is imported where it is used.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from ..runs.space_table import common_candidates

if TYPE_CHECKING:
    from hardware.measuring.validation import TableCheck
    from hardware.model import LatencyModel
    from hardware.tables.table import LatencyTable
    from search_spaces import SpaceCosts

NAMED_ENTRIES = 8
"""Noisy entries that `check` names; it counts the others."""


def table_values(table: LatencyTable) -> dict[str, Any]:
    """Return what a table is of and how good it is."""
    header = dataclasses.asdict(table.header)
    predicted = sum(entry.predicted for entry in table.entries.values())
    return {"operators": len(table.entries), "predicted": predicted, "header": header}


def echo_header(name: str, table: LatencyTable) -> None:
    """Print what a table is of."""
    header = table.header
    predicted = sum(entry.predicted for entry in table.entries.values())
    count = f"{len(table.entries)} operators" + (f" ({predicted} predicted)" if predicted else "")
    load = "" if header.load_average is None else f", load {header.load_average:.2f}"
    versions = ", ".join(f"{library} {version}" for library, version in header.versions.items())
    rows = {
        "table": f"{name}: {count} of {header.space or 'an unnamed space'} at {header.input_size} px",
        "device": header.device + (f" ({header.place})" if header.place not in ("", "cpu") else ""),
        "runtime": header.runtime(),
        "versions": versions,
        "measured": f"{header.created or 'date unknown'}, {header.repeats} samples or more of each operator{load}",
        "source": header.source,
    }
    for label, text in rows.items():
        if text:
            typer.echo(f"{label:14}{text}")


def echo_calibration(table: LatencyTable) -> None:
    """Print a table's calibration."""
    calibration = table.header.calibration
    if calibration is None:
        typer.echo(f"{'calibration':14}none: its sums are uncalibrated")
        return
    figures = calibration.figures.get("calibrated")
    quality = f"; {said_figures(figures)} on them" if isinstance(figures, dict) else ""
    typer.echo(
        f"{'calibration':14}{calibration.scale:.4f} x sum {calibration.offset_ms:+.4f} ms, "
        f"from {calibration.nets} whole nets{quality}"
    )


def echo_checks(table: LatencyTable) -> None:
    """Print how a table did on nets that it had not seen."""
    together = (table.header.checks or {}).get("together")
    if isinstance(together, dict) and isinstance(calibrated := together.get("calibrated"), dict):
        typer.echo(f"{'checked':14}{said_figures(calibrated)} on {table.header.checks.get('nets', '?')} held-out nets")


def said_figures(figures: Mapping[str, float]) -> str:
    """Say how close predictions are to measurements."""
    found = [figures.get(name) for name in ("rmse_ms", "mape", "spearman", "kendall")]
    rmse, mape, *ranks = (value if isinstance(value, (int, float)) else math.nan for value in found)
    return f"RMSE {rmse:.4f} ms, MAPE {100 * mape:.2f} %, Spearman {ranks[0]:.3f}, Kendall {ranks[1]:.3f}"


def sums_of(model: LatencyModel) -> dict[str, float]:
    """Return what the fixed parts, the nets of one candidate, the extremes and the average net of a space take."""
    # At alpha = 0 every candidate that an edge has is equally probable.
    used = model.mask.sum(axis=1, keepdims=True)
    rows = {"fixed parts": model.fixed_ms}
    rows |= {f"all {name}": model.latency(dict.fromkeys(model.labels, name)) for name in common_candidates(model)}
    return rows | {
        "minimum": model.minimum()[0],
        "maximum": model.maximum()[0],
        "E[LAT] at alpha = 0": float(model.expected(model.mask / used)),
    }


def echo_sums(model: LatencyModel, costs: SpaceCosts) -> dict[str, Any]:
    """Print what a space's nets take, see `sums_of`; return it with its unit."""
    rows = sums_of(model)
    typer.echo(f"\n{costs.space} at {costs.input_size} px, {model.unit}")
    for label, value in rows.items():
        typer.echo(f"  {label:20}{value:12.4f}")
    return {"space": costs.space, "input_size": costs.input_size, "unit": model.unit, "nets": rows}


def echo_check(check: TableCheck) -> None:
    """Print how far predictions are from what was measured, and which entries look wrong."""
    from rich.console import Console

    Console(width=100).print(check.render())
    typer.echo(f"the machine was {check.drift:.3f} x as slow as when the table was built")
    spreads: dict[str, Any] = {key: check.table.entries[key].spread for key in check.noisy}
    echo_some("noisy", [f"{key} (spread {100 * spread:.0f} %)" for key, spread in spreads.items()])
    pairs = [
        f"{small} takes {check.table.entries[small].ms:.4f} ms, more than {large} ({check.table.entries[large].ms:.4f})"
        for small, large in check.unordered
    ]
    echo_some("non-monotone", pairs)


def echo_some(title: str, lines: Sequence[str]) -> None:
    """Print the first lines of a list, and how many there are."""
    typer.echo(f"{title} entries: {len(lines) or 'none'}")
    for line in lines[:NAMED_ENTRIES]:
        typer.echo(f"  {line}")
    if len(lines) > NAMED_ENTRIES:
        typer.echo(f"  ... and {len(lines) - NAMED_ENTRIES} more")
