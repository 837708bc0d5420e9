"""Commands about a search's pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hardware.errors import ConfigError, DataError

from ..config import DataConfig, key_values
from .answers import Answer, answers
from .options import Preset, Settings

app = typer.Typer(help="Pictures of a search.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def commands() -> None:
    """Pictures of a search."""


@app.command()
@answers
def check(
    what: Annotated[
        Path, typer.Argument(metavar="FOLDER_OR_CONFIG", help="A folder of pictures, or a search's YAML file.")
    ],
    settings: Settings = None,
    preset: Preset = None,
) -> Answer:
    """Read every picture once and list all that cannot be used; for a FOLDER, --set takes keys of `data`."""
    from ..data.checking import check_any, check_folder

    if what.is_dir():
        if preset is not None:
            raise ConfigError(f"--preset {preset} is of a search's YAML file, but {what} is a folder; leave it out")
        given = {key.removeprefix("data."): value for key, value in key_values(settings or []).items()}
        folder = _folder_config(what, given)
        checked = check_folder(folder) if folder.name == "imagefolder" else check_any(folder, input_size=224, seed=0)
    else:
        from ..config import load_config

        config = load_config(what, key_values(settings or []), preset=preset)
        checked = check_any(config.data, input_size=config.input_size, seed=config.seed)
    for line in checked.problems:
        typer.echo(line.encode("utf-8", "backslashreplace").decode())
    for line in checked.remarks:
        typer.echo(line)
    error = None
    if checked.problems:
        error = DataError(
            f"{len(checked.problems)} problems with the {checked.pictures} pictures of {what}: mend what is listed, or "
            "let a search leave out what cannot be read, by data.skip_unreadable: true"
        )
    return Answer({"pictures": checked.pictures, "problems": checked.problems, "remarks": checked.remarks}, error)


def _folder_config(folder: Path, given: dict[str, object]) -> DataConfig:
    from ..config import parse_config

    values: dict[str, object] = {"name": "imagefolder", "root": str(folder)}
    options: dict[str, object] = {}
    for key, value in given.items():
        if key.startswith("options."):
            options[key.removeprefix("options.")] = value
        else:
            values[key] = value
    return parse_config({"data": {"options": options, **values}}, source="--set").data
