"""Everything that a search stands on, checked and loaded once, before it starts."""

from __future__ import annotations

import math
import os
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from hardware.backends import get_backend
from hardware.errors import ConfigError, TableError, TargetError
from hardware.measuring.energy import check_energy
from hardware.measuring.locks import load_or_build
from hardware.measuring.predictor import LearnedModel
from hardware.model import CostModel, EnergyModel, LatencyModel, cost_model
from hardware.reading import cut
from hardware.tables.energy import EnergyTable
from hardware.tables.shipped import shipped_names
from hardware.tables.table import LatencyTable
from search_spaces import SpaceCosts, SpaceDeclaration, Subnet, users_space

from ..config import SearchConfig
from ..data.feeding import fed
from ..data.images import ImageData
from ..data.notice import notice
from ..data.sources import check_data, load_data
from ..data.state import FileState, file_state, source_state
from ..strategy.objectives import make_objective
from ..strategy.verdict import Code
from ..world import current
from .early_checks import check_capture, check_norms, check_phases, check_plan, check_sensitivity, check_trainer
from .playoff import check_playoff
from .quantised import check_int8, is_for_int8, without_int8_file
from .quantised_finalists import check_finalists
from .retrained import rate_of_fresh_weights
from .same_run import check_same_run
from .space_table import (
    energy_model,
    latency_model,
    measure_energies,
    measure_space,
    measured_operators,
    table_path,
)

Kind = TypeVar("Kind", LatencyTable, EnergyTable)

NAMED_EDGES = 30
"""Up to so many choices are named one by one in what a search prints; of more, each candidate's number is said."""
SEEN_SECONDS = 60.0
"""What a network disk may take to show a file that another host has written."""
TOLD: tuple[Code, ...] = ("few_steps_planned",)
"""Warnings that `prepare` gives, and the start of the training need not repeat."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a search stands on before it starts: nothing of it has to be read or checked again.

    Attributes:
        config: What was asked for.
        data: Its images.
        space: The space's declaration.
        costs: Its operators at the deployed input size.
        cost: What the search counts: the latency, or another cost.
        target: The target in the unit of `cost`; None where there is none.
        original: What the original network costs, where the space is made of one.
        latency: Calibrated latency of its choices; None where no table is used.
        table: Path of the table of latency or energy; None where none is used.
        energy: Energy of its choices; None where that is not what is searched for.
    """

    config: SearchConfig
    data: ImageData
    space: SpaceDeclaration
    costs: SpaceCosts
    cost: CostModel
    target: float | None
    original: float | None
    latency: LatencyModel | None
    table: Path | None
    energy: EnergyModel | None = None

    @property
    def target_ms(self) -> float | None:
        """The target where it is a latency."""
        return self.target if self.cost is self.latency else None

    @property
    def latency_table(self) -> LatencyTable | None:
        """The table, where one is used; it says what measured it, and how."""
        return None if self.latency is None else self.latency.table

    def table_ms(self, subnet: Subnet) -> float | None:
        """Return a subnet's latency by the table, where one is used."""
        return None if self.latency is None else self.latency.latency(subnet.choices)


class Library:
    """What the searches of one process read once between them: every table, and the latest data set.

    Earlier data sets are let go, as the images of one may fill a GiB. What has changed on the disk is read again.
    """

    def __init__(self) -> None:
        self._key: tuple[str, str | None] = ("", None)
        self._data: ImageData | None = None
        self._tables: dict[Path, tuple[FileState, LatencyTable | EnergyTable]] = {}

    def data(self, config: SearchConfig, feeding: Mapping[str, Any]) -> ImageData:
        """Return a search's images, made as `feeding` says where the config does not."""
        source = fed(config.data, feeding)
        # asked before they are read: what changes meanwhile shows as a change
        state = source_state(source)
        key = (source.model_dump_json() + config.model_dump_json(include={"input_size", "seed"}), state)
        if self._data is None or state is None or key != self._key:
            self._data = load_data(source, input_size=config.input_size, seed=config.seed)
            self._key = key
        return self._data

    def table(self, path: Path, kind: type[Kind]) -> Kind | None:
        """Return the table of a kind at a path; None where there is none yet."""
        state = file_state(path)
        if state is None:
            return None
        seen, table = self._tables.get(path, (None, None))
        if seen != state or not isinstance(table, kind):
            table = kind.load(path)
            self._tables[path] = (state, table)
        return table

    def keep(self, path: Path, table: Kind) -> Kind:
        """Remember a table that was just measured."""
        state = file_state(path)
        if state is not None:
            self._tables[path] = (state, table)
        return table


def prepare(
    config: SearchConfig,
    *,
    quiet: bool = False,
    library: Library | None = None,
    trains: bool = True,
    before_table: Callable[[ImageData, SpaceCosts], None] | None = None,
) -> Prepared:
    """Check and load everything that a search stands on; measure its latency table where that is missing.

    What cannot work is refused in the order of what it takes to find out: names and folders, the table's header, the
    images and the schedule, the target. Only then is a missing table measured. Nothing is written but that table.

    >>> from proxyless_strategy.config import parse_config
    >>> prepared = prepare(parse_config({"hardware": {"cost": "macs"}, "target": 0.5}), quiet=True)
    >>> prepared.cost.unit, len(prepared.cost.labels), prepared.table
    ('M MACs', 6, None)

    Args:
        config: The search.
        quiet: Do not print what the space's extreme subnets cost, nor what is wrong with the schedule.
        library: Where data and tables that are read already are found, for several searches of one process.
        trains: Whether this machine is to train too: a table can be measured where there is no `search.accelerator`.
        before_table: Called with images and operators when all but the target is checked, before a table is measured.

    Raises:
        ProxylessError: The space, backend, data, table, target or objective is impossible, or `out` is not writable or
            holds another search.
    """
    library = library or Library()
    hardware = config.hardware
    space = users_space(config.space.name, **config.space.options)
    ignored = check_sensitivity(config, space)
    check_data(config.data)
    _asked(space, "check_weights")
    by_energy = hardware.cost == "energy"
    if hardware.device != "other":
        get_backend(**hardware.chosen).close()
        if by_energy:
            _check_energy(config)
    _check_objective(config)
    _check_out(config)
    if trains:
        check_trainer(config)
        check_norms(config)
        check_capture(config)
    path = table_path(config) if hardware.uses_table else None
    table = None if path is None or by_energy else _existing_table(config, path, library, LatencyTable)
    energies = _existing_table(config, path, library, EnergyTable) if path is not None and by_energy else None
    check_finalists(config, table)
    check_playoff(config)
    learned = None if hardware.fill is None else LearnedModel.load(hardware.fill)

    data = library.data(config, _asked(space, "feeding") or {})
    costs = space.costs(config.latency_input_size, num_classes=data.num_classes, in_chans=data.channels)
    planned = check_plan(config, data)
    check_phases(config, data, space, costs)
    if trains and is_for_int8(config, table):
        check_int8(config, data)
    if not quiet:
        told = (without_int8_file(config, table), rate_of_fresh_weights(config, space))
        for sentence in (*(warning.sentence for warning in (*ignored, *planned)), *filter(None, told)):
            print(sentence, file=sys.stderr, flush=True)
    if before_table is not None:
        before_table(data, costs)
    if path is not None and by_energy and energies is None:
        energies = library.keep(path, _measured_table(config, path, costs, space.name, EnergyTable, quiet=quiet))
    elif path is not None and not by_energy and table is None:
        table = library.keep(path, _measured_table(config, path, costs, space.name, LatencyTable, quiet=quiet))
    if table is not None and learned is not None:
        table = learned.complete(table, costs.distinct(), input_size=config.latency_input_size)
    latency = None if table is None else latency_model(table, costs, batch=hardware.batch)
    energy = None if energies is None else energy_model(energies, costs, batch=hardware.batch)
    cost: CostModel
    if latency is not None and hardware.cost == "latency":
        cost = latency
    elif energy is not None:
        cost = energy
    else:
        cost = cost_model(hardware.cost, costs.fixed, costs.edges)
    choices = _asked(space, "original")
    original = None if choices is None else cost.cost(choices)
    target = _target(config, cost, space.name, original)
    prepared = Prepared(config, data, space, costs, cost, target, original, latency, path, energy)
    if not quiet:
        print(_summary(prepared), flush=True)
    return prepared


def named(choices: Mapping[str, str]) -> str:
    """Say the choices of a subnet: each of a few, or how often each candidate occurs."""
    if len(choices) <= NAMED_EDGES:
        return " ".join(choices.values())
    counts = Counter(choices.values())
    return f"{len(choices)} edges, " + ", ".join(f"{count} x {name}" for name, count in counts.most_common())


def _asked(space: SpaceDeclaration, name: str) -> Any:
    """Call a method that only spaces have which start from weights; None for others."""
    method = getattr(space, name, None)
    return None if method is None else method()


# ---- checks ----------------------------------------------------------------------------------------------------


def _check_objective(config: SearchConfig) -> None:
    if config.rule == "sensitivity":
        return
    # Names and options are checked before the table is read; 2.0 stands for costs that only the table tells.
    target = config.target_ms or config.target_cost or config.target
    make_objective(
        config.objective, rule=config.rule, target=2.0 if target else None, minimum=2.0, **config.objective_options
    )


def _check_out(config: SearchConfig) -> None:
    existing = config.out
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(
            f"cannot write to {config.out}: {existing} is no folder that may be written to; choose another out"
        )
    check_same_run(config)


def _check_energy(config: SearchConfig) -> None:
    """Refuse to measure energy where it cannot be read, or where other processes of the search draw some."""
    if config.search.processes > 1:
        raise ConfigError(
            f"hardware.cost energy is searched by one process, as the others' energy would count too, but "
            f"search.devices = {config.search.devices} and search.nodes = {config.search.nodes}; set both to 1, or "
            "hardware.device to other with a table that is there"
        )
    check_energy(**config.hardware.chosen)


def _existing_table(config: SearchConfig, path: Path, library: Library, kind: type[Kind]) -> Kind | None:
    """Return the table at `path`; None where it is to be measured on this machine."""
    table = library.table(path, kind)
    if table is not None:
        _check_table(config, path, table)
    elif config.hardware.device == "other" and kind is EnergyTable:
        raise TableError(f"there is no table {path} of energy of the other device; give one that was measured there")
    elif config.hardware.device == "other":
        raise TableError(
            f"there is no table {path} of the other device; give an existing one, or of {', '.join(shipped_names())}"
        )
    return table


def _check_table(config: SearchConfig, path: Path, table: LatencyTable | EnergyTable) -> None:
    hardware, header = config.hardware, table.header
    compared: list[tuple[str, Any, Any]]
    if hardware.device == "other":
        # What is not said of another device is as its table says.
        compared = [("dtype", header.dtype, hardware.dtype)] if hardware.dtype is not None else []
        compared += [(f"options.{name}", header.options.get(name), value) for name, value in hardware.options.items()]
    else:
        compared = [
            ("backend", header.backend, hardware.backend),
            ("threads", header.threads, hardware.threads),
        ]
        # A backend knows its devices under several names, of which it says which one `place` means, and its defaults.
        with get_backend(**hardware.chosen) as backend:
            compared.append(("dtype", header.dtype, backend.dtype))
            if hardware.place:
                compared.append(("device", header.place or "unknown", backend.place))
            there, here = backend.of_options(header.options), backend.of_options(hardware.options)
        compared += [(f"options.{name}", there.get(name), here.get(name)) for name in {**there, **here}]
    for name, there, here in compared:
        if there != here:
            raise TableError(
                f"the table {path} was measured with {name} {_said(there)}, but the config says {_said(here)}; "
                f"set hardware.{name} or give another table"
            )


def _said(value: Any) -> str:
    return "none" if value is None else cut(str(value).lower() if isinstance(value, bool) else str(value))


def _measured_table(
    config: SearchConfig, path: Path, costs: SpaceCosts, space: str, kind: type[Kind], *, quiet: bool
) -> Kind:
    hardware = config.hardware
    by_energy = kind is EnergyTable
    count = len(costs.distinct() if by_energy else measured_operators(costs))

    def build() -> Any:
        if not quiet:
            what = "energy" if by_energy else "latency"
            print(f"no {what} table at {path}: measuring {count} operators of {space}", flush=True)
        measure = measure_energies if by_energy else measure_space
        return measure(
            costs,
            path,
            name=space,
            backend=hardware.backend,
            place=hardware.place,
            dtype=hardware.dtype,
            options=hardware.options,
            threads=hardware.threads,
            batch=hardware.batch,
        )

    world = current()
    if world.launched and not world.first:
        _wait_for(path)
    table: Kind = load_or_build(path, build, kind.load)
    # Another process may have measured it meanwhile, with other settings.
    _check_table(config, path, table)
    return table


def _wait_for(path: Path) -> None:
    """Wait until this host sees the table that the first process has: one measured here would take its place.

    Raises:
        ConfigError: It does not.
    """
    deadline = time.monotonic() + SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise ConfigError(
                f"{path} is not there on {socket.gethostname()}, where process {current().rank} runs, though the first "
                "process has it; let hardware.table lie on a disk that all hosts share"
            )
        time.sleep(0.2)


def _target(config: SearchConfig, cost: CostModel, space: str, original: float | None) -> float | None:
    """Return the target in the unit of `cost`, checked against the space's extremes and by the objective."""
    low, choices = cost.minimum()
    high, _ = cost.maximum()
    name, cheapest, dearest = (
        ("target_ms", "fastest", "slowest")
        if config.hardware.cost == "latency"
        else ("target_cost", "cheapest", "dearest")
    )
    target = config.target_cost or config.target_ms
    if isinstance(config.target, float):
        target = low + config.target * (high - low)
    if config.share is not None and original is not None:
        target = config.share * original
        if target < low:
            raise TargetError(
                f"target = {config.target} of the original of {space} ({original:.4g} {cost.unit}) is below the "
                f"{cheapest} subnet; the least share is {math.ceil(1000 * low / original) / 1000:g}x, or name more "
                "kernels and expansions in space.options"
            )
    if target is not None and target < low:
        raise TargetError(
            f"{name} = {target:g} is below the {cheapest} subnet of {space}, {low:.4g} {cost.unit} "
            f"({named(choices)}); raise the target or choose a smaller space"
        )
    if target is not None and target > high:
        notice(f"{name} = {target:g} is above the {dearest} subnet of {space}, {high:.4g} {cost.unit}: it is idle")
    if config.rule != "sensitivity":
        make_objective(config.objective, rule=config.rule, target=target, minimum=low, **config.objective_options)
    return target


def _summary(prepared: Prepared) -> str:
    """Say what the space's extreme subnets cost, and the target between them."""
    cost, latency, fill, energy = prepared.cost, prepared.latency, prepared.config.hardware.fill, prepared.energy
    low, cheapest = cost.minimum()
    high, dearest = cost.maximum()
    title, words = prepared.space.name, ("cheapest", "dearest")
    if latency is not None and cost is latency:
        title, words = (
            f"{title} on {latency.table.header.device} ({latency.table.header.runtime()})",
            ("fastest", "slowest"),
        )
    elif energy is not None:
        title = f"{title} on {energy.table.header.device} ({energy.table.header.runtime()})"
    lines = [
        title,
        f"  {words[0]} subnet {low:.4g} {cost.unit}: {named(cheapest)}",
        f"  {words[1]} subnet {high:.4g} {cost.unit}: {named(dearest)}",
    ]
    if prepared.original is not None:
        lines.append(f"  original {prepared.original:.4g} {cost.unit}")
    if prepared.target is not None:
        share = "" if prepared.original is None else f", {prepared.target / prepared.original:.3g}x of the original"
        lines.append(f"  target {prepared.target:.4g} {cost.unit}{share}")
    note = _asked(prepared.space, "note")
    if note:
        lines.append(f"  {note}")
    if fill is not None and latency is not None:
        ops = prepared.costs.distinct()
        predicted = sum(latency.table.entry(op).predicted for op in ops)
        lines.append(f"  {predicted} of {len(ops)} operators predicted by {fill}")
    return "\n".join(lines)
