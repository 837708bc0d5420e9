"""The latency table of a search space: where it lies, how it is measured, and the space that a table is of.

The command line imports this module for `--help`, so whatever is slow to import (torch, timm, NNI, a backend) is
imported where it is used.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware.errors import BackendError, ConfigError, SpaceError, TableError
from hardware.reading import cut, shown
from hardware.tables import shipped
from hardware.tables.records import FLOAT32

from ..config import SearchConfig, key_values
from ..layout import cache_folder

if TYPE_CHECKING:
    from hardware.measuring.sampling import Plan
    from hardware.model import EnergyModel, LatencyModel
    from hardware.op_spec import OpSpec
    from hardware.tables.energy import EnergyTable
    from hardware.tables.table import LatencyTable
    from search_spaces import SpaceCosts

CALIBRATION_NETS = 24
CALIBRATION_SEED = 0
"""A table's calibration nets are drawn anew from their number and this seed: `check` keeps them out of its own."""


# ---- a space's table -----------------------------------------------------------------------------------------------


def table_path(config: SearchConfig) -> Path:
    """Return the path of a config's latency table: a shipped one by its name, a file, or `default_table_path`."""
    table = config.hardware.table
    if table is not None and str(table) in shipped.shipped_names():
        return Path(shipped.__file__).with_name(f"{table}.yml")
    return table or default_table_path(config)


def default_table_path(config: SearchConfig) -> Path:
    """Return where a table lies that the config does not name: in the user's cache, by space, size and hardware."""
    hardware = config.hardware
    # A space of a folder has that folder's path in its name.
    space = config.space.name.replace(":", ".").replace(os.sep, ".")
    name = f"{space}-{config.latency_input_size}px-{hardware.backend}"
    place = f"-{hardware.place.replace(':', '')}" if hardware.place else ""
    # float32 without options has the name that it had before there were others
    dtype = f"-{hardware.dtype}" if hardware.dtype not in (None, FLOAT32) else ""
    options = "".join(f"-{_in_a_name(option, value)}" for option, value in sorted(hardware.options.items()))
    of = "-energy" if hardware.cost == "energy" else ""
    return cache_folder() / f"{name}{place}{dtype}{options}-{hardware.threads}threads-batch{hardware.batch}{of}.yml"


def _in_a_name(option: str, value: bool | int | str) -> str:
    """Write an option as a part of a file's name, `graphs` or `streams.4`; `no.graphs` is one that is false."""
    said = option if value is True else f"no.{option}" if value is False else f"{option}.{value}"
    return re.sub(r"[^\w.]", "_", said)


def measure_space(
    costs: SpaceCosts,
    out: Path,
    *,
    name: str,
    backend: str,
    place: str | None,
    dtype: str | None = None,
    options: Mapping[str, Any] | None = None,
    threads: int,
    batch: int,
    nets: int = CALIBRATION_NETS,
    plan: Plan | None = None,
) -> LatencyTable:
    """Measure a space's latency table on this machine, calibrated on whole nets of the space, see `calibration_nets`.

    Args:
        costs: The space's operators.
        out: The table's file; an interrupted measurement continues from `OUT.partial`.
        name: The space's name and options, for the table's header.
        backend: What runs the operators.
        place: Which of the backend's devices; None: its own choice.
        dtype: Number format; None: its own choice.
        options: What else is chosen of its options.
        threads: Threads of one inference.
        batch: Images of one inference.
        nets: Random nets that the table is calibrated on.
        plan: How long to measure; None: the default of `build_table`.
    """
    from hardware.measuring.table import build_table

    return build_table(
        measured_operators(costs),
        calibration_nets(costs, nets),
        backend=backend,
        input_size=costs.input_size,
        batch=batch,
        threads=threads,
        place=place,
        dtype=dtype,
        options=options,
        space=name,
        out=out,
        plan=plan,
        progress=sys.stderr.isatty(),
    )


def measure_energies(
    costs: SpaceCosts,
    out: Path,
    *,
    name: str,
    backend: str,
    place: str | None,
    dtype: str | None = None,
    options: Mapping[str, Any] | None = None,
    threads: int,
    batch: int,
) -> EnergyTable:
    """Measure a space's energy table on this machine, calibrated on whole nets; see `measure_space`."""
    from hardware.measuring.energy import build_energy_table

    return build_energy_table(
        costs.distinct(),
        calibration_nets(costs, CALIBRATION_NETS),
        backend=backend,
        input_size=costs.input_size,
        batch=batch,
        threads=threads,
        place=place,
        dtype=dtype,
        options=options,
        space=name,
        out=out,
        progress=sys.stderr.isatty(),
    )


def measured_operators(costs: SpaceCosts) -> tuple[OpSpec, ...]:
    """Return what a latency table of a space measures: its operators, and its head at several numbers of classes."""
    from hardware.tables.heads import at_several_classes

    return at_several_classes(costs.distinct())


# ---- spaces ------------------------------------------------------------------------------------------------------


def space_costs(
    space: str,
    options: Sequence[str] | None,
    input_size: int,
    classes: int,
    channels: int,
    *,
    by_user: bool = False,
) -> tuple[SpaceCosts, str]:
    """Return a space's operators, and its name with its options, from which `own_space` makes it again.

    Args:
        space: Its name.
        options: Texts of the form `key=value`.
        input_size: Side of an image.
        classes: Outputs of the classifier.
        channels: Channels of an image.
        by_user: Whether the user named it, who may also name a function; else a file did.
    """
    from search_spaces import get_space, users_space

    chosen = key_values(options or [], option="--space-option")
    try:
        make = users_space if by_user else get_space
        costs = make(space, **chosen).costs(input_size, num_classes=classes, in_chans=channels)
    except (TypeError, ValueError) as error:
        raise SpaceError(f"the space {space} cannot be made with these options: {error}; correct them") from error
    written = [f"{key}={json.dumps(value, separators=(',', ':'), default=str)}" for key, value in chosen.items()]
    return costs, " ".join([space, *written])


def own_space(table: LatencyTable) -> tuple[str, list[str]] | None:
    """Return the space that a table's header names, and its options; None where it names none that is known."""
    from search_spaces.registry import known_spaces

    name, *options = table.header.space.split(" ")
    known = name in known_spaces() or ":" in name
    return (name, options) if known and all("=" in option for option in options) else None


def costs_of_table(
    table: LatencyTable,
    space: str | None,
    options: Sequence[str] | None,
    input_size: int | None,
    classes: int | None,
    channels: int | None,
    *,
    file: Path | str,
) -> SpaceCosts:
    """Return the operators of a space as the table has them, where the options do not say otherwise.

    Args:
        table: The table.
        space: The space that the user names; None: the table's own.
        options: Its options; None: the table's own.
        input_size: Side of an image; None: the table's own.
        classes: Outputs of the classifier; None: the table's own.
        channels: Channels of an image; None: the table's own.
        file: Where the table was read, for the errors.
    """
    own, by_user = own_space(table), space is not None
    if space is None and own is None:
        raise ConfigError(f"the table's space is {shown(table.header.space)}, which is unknown here; give --space")
    if own is not None and not options and space in (None, own[0]):
        space, options = own
    head, image = _ends(table)
    size = input_size or table.header.input_size
    try:
        costs, _ = space_costs(
            space or "",
            options,
            size,
            classes or head,
            channels or image,
            by_user=by_user,
        )
    except SpaceError as error:
        if by_user:
            raise
        raise SpaceError(f"header.space of the latency table {file}: {error}") from error
    return costs


def _ends(table: LatencyTable) -> tuple[int, int]:
    """Return the classes and the image channels of the nets that a table is of; where it does not say, the usual."""
    from hardware.op_spec import OpSpec
    from hardware.tables.heads import ends_in_classes

    calibration = table.header.calibration
    nets = {key for reference in calibration.references for key in reference.ops} if calibration else set()
    ops = [OpSpec.from_key(key) for key in table.entries]
    heads = {op.output_shape[0] for op in ops if ends_in_classes(op)}
    # a table has heads of other classes beside those of its own nets
    own = {op.output_shape[0] for op in ops if ends_in_classes(op) and op.key in nets} or heads
    size = table.header.input_size
    images = {op.input_shape[0] for op in ops if op.kind == "conv" and op.input_shape[1:] == (size, size)}
    return (own.pop() if len(own) == 1 else 1000), (images.pop() if len(images) == 1 else 3)


def latency_model(table: LatencyTable, costs: SpaceCosts, *, batch: int | None = None) -> LatencyModel:
    """Return the latencies of a space's choices by a table that has all of its operators.

    Args:
        table: The table.
        costs: The space's operators.
        batch: Images of one inference that the table must be of; None: whichever it is of.

    Raises:
        TableError: It is of another input size or batch.
        MissingOperatorError: It lacks an operator.
    """
    from hardware.model import LatencyModel

    table.check(costs.distinct(), input_size=costs.input_size, batch=batch or table.header.batch)
    return LatencyModel(table, fixed=costs.fixed, edges=costs.edges)


def energy_model(table: EnergyTable, costs: SpaceCosts, *, batch: int) -> EnergyModel:
    """Return the energies of a space's choices by a table that has all of its operators.

    Raises:
        TableError: It is of another input size or batch.
        MissingOperatorError: It lacks an operator.
    """
    from hardware.model import EnergyModel

    table.check(costs.distinct(), input_size=costs.input_size, batch=batch)
    return EnergyModel(table, fixed=costs.fixed, edges=costs.edges)


def random_nets(costs: SpaceCosts, count: int, *, seed: int) -> list[tuple[OpSpec, ...]]:
    """Draw whole nets of a space, as a device executes them."""
    return [costs.chain(choices) for choices in costs.random_choices(count, seed=seed)]


def calibration_nets(costs: SpaceCosts, count: int) -> list[tuple[OpSpec, ...]]:
    """Return the distinct whole nets that a space's table is calibrated on: random ones and the ends of the space.

    Its ends are the net of least multiply-accumulates, and in a space of a model that model: few random nets are near
    them, and what a line fitted to others says of them can be wrong by a third.

    Args:
        costs: The space's operators.
        count: How many random ones.
    """
    from hardware.model import macs_model

    _, smallest = macs_model(costs.fixed, costs.edges).minimum()
    ends = [smallest, *([] if costs.original is None else [costs.original])]
    return list(dict.fromkeys([*random_nets(costs, count, seed=CALIBRATION_SEED), *map(costs.chain, ends)]))


def calibrated_on(table: LatencyTable) -> int:
    """Return on how many whole nets a table is calibrated."""
    return table.header.calibration.nets if table.header.calibration else 0


def unseen_nets(
    costs: SpaceCosts, count: int, *, seed: int, seen: set[tuple[OpSpec, ...]], depth: str = "both"
) -> list[tuple[OpSpec, ...]]:
    """Draw distinct random nets that are not among `seen`; `depth` is `uniform`, `varied` or `both`."""
    # Of the draws every second one, from the second on, is of varied depth; small spaces repeat themselves.
    choices = costs.random_choices(8 * count, seed=seed, vary_depth=depth != "uniform")
    choices = choices[1::2] if depth == "varied" else choices
    nets = [net for net in dict.fromkeys(costs.chain(c) for c in choices) if net not in seen][:count]
    if len(nets) < count:
        raise SpaceError(f"the space {costs.space} has too few nets to hold {count} out; ask for fewer")
    return nets


def choices_named(name: str, model: LatencyModel) -> Mapping[str, str]:
    """Return the net that `--layers` names: the cheapest, the dearest, or one candidate at every edge."""
    if name in ("minimum", "maximum"):
        return (model.minimum() if name == "minimum" else model.maximum())[1]
    common = common_candidates(model)
    if name not in common:
        raise ConfigError(f"--layers {name} is no net; give minimum, maximum or one of {', '.join(common)}")
    return dict.fromkeys(model.labels, name)


def common_candidates(model: LatencyModel) -> list[str]:
    """Return the candidates that every edge has."""
    first, *others = model.candidates or ((),)
    return [name for name in first if all(name in options for options in others)]


def check_same_device(table: LatencyTable) -> None:
    """Refuse to compare a table with another device than its own."""
    from hardware.backends import backend_names, get_backend

    header = table.header
    if header.backend not in backend_names():
        raise BackendError(
            f"the table was measured with {shown(header.backend)} on {cut(header.device)}, which this machine cannot "
            "run; "
            f"backends here are {', '.join(backend_names())}"
        )
    with get_backend(**header.chosen) as backend:
        here = backend.device()
    if here != header.device:
        raise TableError(
            f"the table is of {shown(header.device)}, but this machine is {here!r}; measure nets on the table's device"
        )
