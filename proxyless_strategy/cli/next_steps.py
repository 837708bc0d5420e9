"""What a user may type after a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from ..layout import MODEL

if TYPE_CHECKING:
    from rich.table import Table

    from ..config import SearchConfig


def next_commands(config: SearchConfig) -> list[str]:
    """Return commands that go on with a finished search: its page, its trade-off, a longer training, a comparison.

    Args:
        config: The search that has ended.
    """
    from ..runs.next_commands import benchmark_command, derive_command, report_command, retrain_command

    out, settings = config.out, config.model_dump(mode="json")
    near = out.relative_to(Path.cwd()) if out.is_absolute() and out.is_relative_to(Path.cwd()) else out
    curve, again, compared = (near.parent / f"{near.name}-{end}" for end in ("curve", "retrained", "benchmark"))
    return [
        report_command(near),
        derive_command(near, "--curve", out=curve, space=config.space.name),
        retrain_command(near / MODEL, settings, out=again),
        benchmark_command(near / MODEL, out=compared),
    ]


def echo_result(row: Mapping[str, Any], commands: Sequence[str]) -> None:
    """Print a result's row as a table, why it may be worth little, its ONNX file, and how to go on."""
    from rich.console import Console

    from ..runs.rows import results_table, short_path

    console, table = Console(), results_table([row])
    # Nobody sees how wide a file is, and in a terminal a table that is cut says nothing.
    if not console.is_terminal or _needed(table) <= console.width:
        Console(width=None if console.is_terminal else max(console.width, 160)).print(table)
    else:
        for column in table.columns:
            typer.echo(f"{column.header!s:14}{next(iter(column.cells))}")
    for sentence in row["warnings"]:
        typer.echo(f"warning: {sentence}")
    typer.echo(f"ONNX file: {short_path(Path(row['onnx']))}")
    if row.get("int8_onnx") is not None:
        from hardware.onnx_runtime import WHERE_DEPLOYED

        judged = row["int8_accuracy"]
        said = "" if judged is None else f", {judged:.2%} of the test images right"
        typer.echo(
            f"in int8: {short_path(Path(row['int8_onnx']))}{said}; the measured ms are its own; {WHERE_DEPLOYED}"
        )
    typer.echo("next:")
    for command in commands:
        typer.echo(f"  {command}")


def _needed(table: Table) -> int:
    """Return the columns of a terminal in which no figure is cut, and the folder is not folded to single letters."""
    from rich.console import Console

    return Console(width=10_000).measure(table).minimum + 20
