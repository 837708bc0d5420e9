"""Everything that a search stands on, loaded and checked once, before it starts."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardware.backends import get_backend
from hardware.errors import ConfigError, TableError, TargetError
from hardware.measuring.locks import load_or_build
from hardware.measuring.predictor import LearnedModel
from hardware.measuring.table import build_table
from hardware.model import CostModel, LatencyModel, cost_model
from hardware.tables import shipped
from hardware.tables.shipped import shipped_names
from hardware.tables.table import LatencyTable
from search_spaces import SpaceCosts, SpaceDeclaration, Subnet, get_space

from ..config import SearchConfig
from ..data.images import ImageData
from ..data.sources import check_data, load_data
from ..layout import CONFIG_FILE
from .space_table import CALIBRATION_NETS

NAMED_EDGES = 30
"""Up to so many choices are named one by one in what a search prints; of more, each candidate's number is said."""


@dataclass(frozen=True)
class Prepared:
    """What a search stands on before it starts.

    Attributes:
        space: The space's declaration.
        costs: Its operators at the deployed input size.
        cost: What the search counts: the latency, or another cost.
        target: The target in the unit of `cost`; None where there is none.
        latency: Calibrated latency of its choices; None where no table is used.
        table: Path of the latency table; None where none is used.
    """

    space: SpaceDeclaration
    costs: SpaceCosts
    cost: CostModel
    target: float | None
    latency: LatencyModel | None
    table: Path | None

    @property
    def target_ms(self) -> float | None:
        """The target where it is a latency."""
        return self.target if self.cost is self.latency else None

    def table_ms(self, subnet: Subnet) -> float | None:
        """A subnet's latency by the table, where one is used."""
        return None if self.latency is None else self.latency.latency(subnet.choices)


def default_table_path(config: SearchConfig) -> Path:
    """Where a table lies that the config does not name: in the user's cache, by space, size and backend."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    hardware = config.hardware
    name = f"{config.space.name.replace(':', '.')}-{config.latency_input_size}px-{hardware.backend}"
    place = f"-{hardware.place.replace(':', '')}" if hardware.place else ""
    return cache / "proxyless_strategy" / f"{name}{place}-{hardware.threads}threads-batch{hardware.batch}.yml"


def table_path(config: SearchConfig) -> Path:
    """The config's latency table: a shipped one by its name, a file, or `default_table_path`."""
    table = config.hardware.table
    if table is not None and str(table) in shipped_names():
        return Path(shipped.__file__).with_name(f"{table}.yml")
    return table or default_table_path(config)


def check(config: SearchConfig) -> None:
    """Refuse what cannot work, before any work is done.

    Raises:
        ProxylessError: The space, backend, data, table, target or objective is impossible, or `out` is not writable or
            holds another search.
    """
    space = get_space(config.space.name, **config.space.options)
    check_data(config.data)
    if config.hardware.device != "other":
        get_backend(config.hardware.backend, config.hardware.place).close()
    _check_objective(config)
    _check_out(config)
    path = table_path(config)
    table = None
    if config.hardware.uses_table:
        if config.hardware.device == "other" and not path.exists():
            raise TableError(
                f"there is no table {path} of the other device; give an existing one, or of "
                f"{', '.join(shipped_names())}"
            )
        if path.exists():
            table = LatencyTable.load(path)
            _check_table(config, table)
        if config.hardware.fill is not None:
            LearnedModel.load(config.hardware.fill)
    if table is not None or not config.hardware.uses_table:
        data = load_data(config.data, input_size=config.input_size, seed=config.seed)
        _prepared(config, space, data, table)


def prepare(config: SearchConfig, *, data: ImageData | None = None, quiet: bool = False) -> Prepared:
    """Build the latency table if one is needed and missing, and say what the space's extreme subnets cost.

    Args:
        config: The search.
        data: Its data, where they are loaded already.
        quiet: Print nothing.
    """
    space = get_space(config.space.name, **config.space.options)
    data = data or load_data(config.data, input_size=config.input_size, seed=config.seed)
    path = table_path(config)
    costs = _costs(config, space, data)
    table = None

    def build() -> LatencyTable:
        if not quiet:
            print(
                f"no latency table at {path}: measuring {len(costs.distinct())} operators of {space.name}", flush=True
            )
        nets = [costs.chain(choices) for choices in costs.random_choices(CALIBRATION_NETS, seed=0)]
        return build_table(
            costs.distinct(),
            nets,
            backend=config.hardware.backend,
            input_size=config.latency_input_size,
            batch=config.hardware.batch,
            threads=config.hardware.threads,
            place=config.hardware.place,
            space=space.name,
            out=path,
            progress=sys.stderr.isatty(),
        )

    if config.hardware.uses_table:
        table = load_or_build(path, build)
        _check_table(config, table)
    prepared = _prepared(config, space, data, table)
    if not quiet:
        print(_summary(config, prepared), flush=True)
    return prepared


# ---- checks ----------------------------------------------------------------------------------------------------


def _check_objective(config: SearchConfig) -> None:
    from ..objectives import make_objective

    target = config.target_ms or config.target_cost or config.target
    make_objective(
        config.objective, rule=config.rule, target=2.0 if target else None, minimum=2.0, **config.objective_options
    )


def _check_processes(config: SearchConfig) -> None:
    from ..processes import launched

    if config.search.devices > 1 and launched():
        raise ConfigError(
            f"search.devices = {config.search.devices}, but this script has already run a search on several processes; "
            "run each of them in a script of its own"
        )


def _check_out(config: SearchConfig) -> None:
    existing = config.out
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(
            f"cannot write to {config.out}: {existing} is no folder that may be written to; choose another out"
        )
    saved = config.out / CONFIG_FILE
    if saved.exists():
        found = json.loads(saved.read_text(encoding="utf-8"))
        if found != _identity(config):
            differing = sorted(key for key in found if found[key] != _identity(config).get(key))
            raise ConfigError(
                f"{config.out} holds a search with other settings ({', '.join(differing)}); "
                "choose another out or remove it"
            )


def _identity(config: SearchConfig) -> dict[str, Any]:
    return json.loads(config.model_dump_json(exclude={"out"}))


def _check_table(config: SearchConfig, table: LatencyTable) -> None:
    hardware, header = config.hardware, table.header
    if hardware.device == "other":
        return
    compared: list[tuple[str, Any, Any]] = [
        ("backend", header.backend, hardware.backend),
        ("threads", header.threads, hardware.threads),
    ]
    if hardware.place:
        with get_backend(hardware.backend, hardware.place) as backend:
            compared.append(("device", header.place or "unknown", backend.place))
    for name, there, here in compared:
        if there != here:
            raise TableError(
                f"the table {table_path(config)} was measured with {name} {there}, but the config says {here}; "
                f"set hardware.{name} or give another table"
            )


def _costs(config: SearchConfig, space: SpaceDeclaration, data: ImageData) -> SpaceCosts:
    return space.costs(config.latency_input_size, num_classes=data.num_classes, in_chans=data.channels)


def _prepared(config: SearchConfig, space: SpaceDeclaration, data: ImageData, table: LatencyTable | None) -> Prepared:
    costs = _costs(config, space, data)
    latency = None
    if table is not None:
        if config.hardware.fill is not None:
            model = LearnedModel.load(config.hardware.fill)
            table = model.complete(table, costs.distinct(), input_size=config.latency_input_size)
        table.check(costs.distinct(), input_size=config.latency_input_size, batch=config.hardware.batch)
        latency = LatencyModel(table, fixed=costs.fixed, edges=costs.edges)
    cost: CostModel
    if latency is not None and config.hardware.cost == "latency":
        cost, (name, cheapest, dearest) = latency, ("target_ms", "fastest", "slowest")
    else:
        cost = cost_model(config.hardware.cost, costs.fixed, costs.edges)
        name, cheapest, dearest = "target_cost", "cheapest", "dearest"
    low, choices = cost.minimum()
    high, _ = cost.maximum()
    target = config.target_cost or config.target_ms
    if config.target is not None:
        target = low + config.target * (high - low)
    if target is not None and target < low:
        raise TargetError(
            f"{name} = {target:g} is below the {cheapest} subnet of {space.name}, {low:.4g} {cost.unit} "
            f"({_named(choices)}); raise the target or choose a smaller space"
        )
    if target is not None and target > high:
        warnings.warn(
            f"{name} = {target:g} is above the {dearest} subnet of {space.name}, {high:.4g} {cost.unit}: it is idle",
            stacklevel=2,
        )
    return Prepared(space, costs, cost, target, latency, None if latency is None else table_path(config))


def _named(choices: Mapping[str, str]) -> str:
    if len(choices) <= NAMED_EDGES:
        return " ".join(choices.values())
    counts = Counter(choices.values())
    return f"{len(choices)} edges, " + ", ".join(f"{count} x {name}" for name, count in counts.most_common())


def _summary(config: SearchConfig, prepared: Prepared) -> str:
    cost, latency = prepared.cost, prepared.latency
    low, cheapest = cost.minimum()
    high, dearest = cost.maximum()
    title, words = prepared.space.name, ("cheapest", "dearest")
    if latency is not None and cost is latency:
        title, words = (
            f"{title} on {latency.table.header.device} ({latency.table.header.backend})",
            ("fastest", "slowest"),
        )
    lines = [
        title,
        f"  {words[0]} subnet {low:.4g} {cost.unit}: {_named(cheapest)}",
        f"  {words[1]} subnet {high:.4g} {cost.unit}: {_named(dearest)}",
    ]
    if prepared.target is not None:
        lines.append(f"  target {prepared.target:.4g} {cost.unit}")
    if config.hardware.fill is not None and latency is not None:
        ops = prepared.costs.distinct()
        predicted = sum(latency.table.entry(op).predicted for op in ops)
        lines.append(f"  {predicted} of {len(ops)} operators predicted by {config.hardware.fill}")
    return "\n".join(lines)
