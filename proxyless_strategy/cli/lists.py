"""`proxyless list`: what there is to choose from, by the names that settings and options take."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from hardware.errors import ProxylessError

from .answers import answers

Row = dict[str, Any]


class What(str, enum.Enum):
    """A kind of things that have names."""

    spaces = "spaces"
    backends = "backends"
    recipes = "recipes"
    tables = "tables"
    models = "models"


@answers
def list_command(what: Annotated[What, typer.Argument(help="What to list.")]) -> dict[str, Any]:
    """List spaces, backends, recipes, latency tables, or the models that this project adds to timm."""
    return {what.value: echo_list(what)}


def echo_list(what: What) -> list[Row]:
    """Print what there is of a kind, a line each; return it."""
    rows, more = _LISTED[what]()
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        typer.echo(f"{row['name']:{width}}  {row['about']}")
    if more:
        typer.echo(more)
    return rows


def _spaces() -> tuple[list[Row], str]:
    from search_spaces import get_space
    from search_spaces.registry import known_spaces

    rows: list[Row] = []
    for name in known_spaces():
        try:
            candidates = get_space(name).candidates()
        except (ProxylessError, TypeError, ValueError) as error:  # a function that somebody registered
            rows.append({"name": name, "about": f"cannot be made: {error}", "edges": None, "candidates": {}})
            continue
        counts = [len(options) for options in candidates.values()]
        about = f"{len(counts)} edges of {_range(counts)} candidates, 10^{sum(map(math.log10, counts)):.0f} subnets"
        rows.append({"name": name, "about": about, "edges": len(counts), "candidates": dict(candidates)})
    return rows, "and timm:MODEL, a model of timm's that may change, or module:function, a space of your own"


def _backends() -> tuple[list[Row], str]:
    from hardware.backends import backend_names, get_backend
    from hardware.backends.base import described

    rows: list[Row] = []
    for name in backend_names():
        try:
            with get_backend(name) as backend:
                place, device = backend.place, backend.device()
                dtypes, options = list(backend.dtypes), dict(backend.known_options)
        except ProxylessError as error:
            rows.append({"name": name, "about": f"not here: {error}", "usable": False, "place": None, "device": None})
            continue
        about = f"{place}: {device}; {', '.join(dtypes)}" + (f"; options {described(options)}" if options else "")
        values = {"place": place, "device": device, "dtypes": dtypes, "options": options}
        rows.append({"name": name, "about": about, "usable": True, **values})
    return rows, ""


def _recipes() -> tuple[list[Row], str]:
    from ..retraining.recipe import load_recipe, recipe_names

    rows = []
    for name in recipe_names():
        recipe = load_recipe(name)
        about = (
            f"{recipe.epochs} epochs of {recipe.optimizer}, {recipe.batch_size} images a batch, augmented by "
            f"{recipe.augment}"
        )
        rows.append({"name": name, "about": about, **recipe.model_dump(mode="json")})
    return rows, "and any YAML file of such settings"


def _tables() -> tuple[list[Row], str]:
    from hardware.tables.shipped import open_table, shipped_names

    from ..layout import cache_folder

    folder = cache_folder()
    rows = []
    for name in [*shipped_names(), *map(str, sorted(folder.glob("*.yml")))]:
        try:
            table = open_table(name)
        except ProxylessError as error:
            rows.append({"name": name, "about": f"cannot be used: {error}", "usable": False})
            continue
        header = table.header
        about = f"{len(table.entries)} operators at {header.input_size} px on {header.device} ({header.runtime()})"
        values = {"operators": len(table.entries), "input_size": header.input_size, "device": header.device}
        values |= {"dtype": header.dtype, "options": dict(header.options), "batch": header.batch}
        rows.append({"name": name, "about": about, "usable": True, "backend": header.backend, **values})
    return rows, f"and those that your searches name; one that a search does not name is kept in {folder}"


def _models() -> tuple[list[Row], str]:
    import timm

    rows = []
    for name in timm.list_models(module="timm_models"):  # of this project, which are registered with timm's import
        about = (timm.model_entrypoint(name).__doc__ or "").strip().partition("\n")[0]
        rows.append({"name": name, "about": about})
    return rows, "and local-dir:FOLDER, an export folder"


def _range(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return str(low) if low == high else f"{low} to {high}"


_LISTED: dict[What, Callable[[], tuple[list[Row], str]]] = {
    What.spaces: _spaces,
    What.backends: _backends,
    What.recipes: _recipes,
    What.tables: _tables,
    What.models: _models,
}
