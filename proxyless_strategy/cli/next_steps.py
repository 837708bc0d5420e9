"""What a user may type after a search."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from ..config import SearchConfig


def next_commands(config: SearchConfig) -> list[str]:
    """Return commands that go on with a finished search: its page, its trade-off, a longer training, a comparison.

    Args:
        config: The search that has ended.
    """
    out, data = config.out, config.data
    near = out.relative_to(Path.cwd()) if out.is_absolute() and out.is_relative_to(Path.cwd()) else out
    beside = near.parent / near.name
    space = ["--space", config.space.name] if ":" in config.space.name and not _is_of_timm(config.space.name) else []
    source = [] if data.name == "imagefolder" else ["--source", data.name]
    commands: list[list[object]] = [
        ["report", near],
        ["derive", near, "--curve", "--out", f"{beside}-curve", *space],
        ["retrain", near / "model", "--data", data.root or ".", *source, "--out", f"{beside}-retrained"],
        ["benchmark", "--models", near / "model", "--out", f"{beside}-benchmark"],
    ]
    return [shlex.join(map(str, ["proxyless", *command])) for command in commands]


def _is_of_timm(name: str) -> bool:
    return name.startswith("timm:") and not name.startswith("timm:local-dir:")


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
    typer.echo("next:")
    for command in commands:
        typer.echo(f"  {command}")


def _needed(table: Table) -> int:
    """Return the columns of a terminal in which no figure is cut, and the folder is not folded to single letters."""
    from rich.console import Console

    return Console(width=10_000).measure(table).minimum + 20
