"""Arguments and options that several commands of `proxyless` share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from hardware.errors import ConfigError

Config = Annotated[Path, typer.Argument(metavar="CONFIG.yml", help="The search config.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Replace one setting, for example search.epochs=3."),
]

Preset = Annotated[
    str | None, typer.Option(metavar="NAME", envvar="PROXYLESS_PRESET", help="One of the config's presets.")
]


def key_values(settings: Sequence[str], *, option: str = "--set") -> dict[str, Any]:
    """Keys and their values, which are read as YAML.

    Args:
        settings: Texts of the form `key=value`.
        option: The option that they were given with, for the errors.
    """
    found = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise ConfigError(f"{option} {setting} names no value; write it as key=value")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{option} {setting}: {value!r} is not valid YAML") from error
    return found
