"""Arguments and options that several commands of `proxyless` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(metavar="CONFIG.yml", help="The search config.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace one setting, for example search.epochs=3."),
]

Preset = Annotated[
    str | None, typer.Option(metavar="NAME", envvar="PROXYLESS_PRESET", help="One of the config's presets.")
]
