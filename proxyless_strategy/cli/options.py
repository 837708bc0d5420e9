"""Arguments and options that several commands of `proxyless` share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from hardware.errors import ConfigError

from ..layout import PRESET_VARIABLE

Config = Annotated[Path, typer.Argument(metavar="CONFIG.yml", help="The search config.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace one setting, for example search.epochs=3."),
]
Preset = Annotated[
    str | None, typer.Option(metavar="NAME", envvar=PRESET_VARIABLE, help="One of the config's presets.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there.")]
Threads = Annotated[int, typer.Option(min=1, help="Threads that one inference may use.")]


def check_new(path: Path, *, force: bool, folder: bool = False) -> None:
    """Refuse a file that exists, or that cannot be written, before anything is done for it.

    Args:
        path: The file or folder to write.
        force: Whether it may replace one.
        folder: Whether it is a folder; what would be replaced in it is then the caller's to name.

    Raises:
        ConfigError: It is refused.
    """
    if not folder and path.is_dir():
        raise ConfigError(f"{path} is a folder; give the name of a file in it")
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; give another name, or --force to replace it")
    existing = path if folder else path.absolute().parent
    while not existing.exists():
        existing = existing.absolute().parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"cannot write {path}: {existing} is no folder that may be written to; choose another place")


def check_unused(folder: Path, files: Sequence[str] = (), *, force: bool) -> None:
    """Refuse a folder in which something would be replaced.

    Args:
        folder: What a command writes.
        files: The names of what it writes there; none: all that is there is replaced.
        force: Whether that is meant.

    Raises:
        ConfigError: It is refused.
    """
    found = [folder / name for name in files if (folder / name).exists()]
    if not files and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found = [folder]
    if found and not force:
        raise ConfigError(f"{found[0]} exists; give another --out, or --force to replace it")


def say_version(wanted: bool) -> None:
    """Print this project's version and end the command, where that is wanted."""
    if wanted:
        from importlib.metadata import version

        typer.echo(f"proxyless {version('proxyless-strategy')}")
        raise typer.Exit


class SpreadOptions(TyperCommand):
    """Let a repeatable option take several values at once: `--batch 1 8` is `--batch 1 --batch 8`.

    Click's options take a fixed number of values, so the option's name is put before each further one.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        repeatable = {name for option in self.params if getattr(option, "multiple", False) for name in option.opts}
        spread: list[str] = []
        option, values = "", 0
        for argument in args:
            if argument.startswith("-"):
                option, values = argument, 0
            elif option in repeatable:
                values += 1
                spread += [option] if values > 1 else []
            spread.append(argument)
        return super().parse_args(ctx, spread)
