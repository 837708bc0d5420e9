"""Arguments and options that several commands of `proxyless` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from ..layout import PRESET_VARIABLE

Config = Annotated[Path, typer.Argument(metavar="CONFIG.yml", help="The search config.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace one setting, for example search.epochs=3."),
]
Preset = Annotated[
    str | None, typer.Option(metavar="NAME", envvar=PRESET_VARIABLE, help="One of the config's presets.")
]
Threads = Annotated[int, typer.Option(min=1, help="Threads that one inference may use.")]


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
