"""Results of searches as a table for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hardware.reading import expect


def results_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Build the table that a terminal shows of searches' rows, a `rich.table.Table`."""
    table = Table()
    named = len({row.get("hardware") for row in rows}) > 1
    for title in (*(("hardware",) if named else ()), "rule"):
        table.add_column(title, no_wrap=True)
    counted = any(row["cost"] != "latency" for row in rows)
    others = ("cost", "target", "subnet") if counted else ()
    energies = ("measured mJ",) if any("energy_mj" in row for row in rows) else ()
    for title in (*others, "target ms", "table ms", "measured ms", *energies, "accuracy", "params", "MACs"):
        table.add_column(title, justify="right", no_wrap=True)
    away = any(row.get("machine") for row in rows)
    if away:
        table.add_column("machine", no_wrap=True)
    table.add_column("folder", overflow="fold")
    for row in rows:
        costs = (row["unit"], *(_number(row[key], ".4g") for key in ("target_cost", "subnet_cost")))
        table.add_row(
            *((str(row["hardware"]),) if named else ()),
            str(row["rule"]),
            *(costs if counted else ()),
            *(_number(row[key], ".4g") for key in ("target_ms", "table_ms", "latency_ms")),
            *(_number(row.get("energy_mj"), ".4g") for _ in energies),
            _number(row["accuracy"], ".2%"),
            *(_number(row[key], ",") for key in ("params", "macs")),
            *((str(row.get("machine", "this one")),) if away else ()),
            short_path(Path(row["folder"])),
        )
    return table


def _number(value: Any, spec: str) -> str:
    return "none" if value is None else format(value, spec)


def short_path(path: Path) -> str:
    """Return the path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def say(console: Console) -> Callable[[str], None]:
    """Return what prints a sentence on the console as it is, whatever stands in it."""
    return lambda sentence: console.print(sentence, markup=False)


def check_figures(row: Mapping[str, Any]) -> None:
    """Refuse a row whose figures are none, or that says in another form where its trial was.

    Raises:
        Unreadable: A value is of another type.
        KeyError: A lost machine lacks one.
    """
    costs = ("target_cost", "subnet_cost", "original_cost", "target_ms", "table_ms", "latency_ms", "energy_mj")
    for key in (*costs, "accuracy", "params", "macs", "seconds"):
        expect(row.get(key), float, key, none=True)
    expect(row.get("machine"), str, "machine", none=True)
    for lost in expect(row.get("lost", []), list, "lost"):
        for key in ("machine", "reason", "then", "from"):
            expect(expect(lost, dict, "lost")[key], str, f"lost.{key}")


def moves(row: Mapping[str, Any]) -> Iterator[str]:
    """Say which machines a row's trial has lost, and where it went on."""
    for lost in row.get("lost") or ():
        yield f"{lost['machine']} was lost ({lost['reason']}); it went on on {lost['then']} from {lost['from']}"
