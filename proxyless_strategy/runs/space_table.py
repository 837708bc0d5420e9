"""The latency table of a search space: its operators, its calibration nets, and who measures them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from hardware.errors import BackendError, ConfigError, SpaceError, TableError

from ..config import key_values

if TYPE_CHECKING:
    from hardware.model import LatencyModel
    from hardware.op_spec import OpSpec
    from hardware.tables.table import LatencyTable
    from search_spaces import SpaceCosts


CALIBRATION_NETS = 24


CALIBRATION_SEED = 0


# ---- spaces ------------------------------------------------------------------------------------------------------


def _space_costs(
    space: str, options: Sequence[str] | None, input_size: int, classes: int, channels: int
) -> tuple[SpaceCosts, str]:
    """A space's operators, and its name with its options, from which `_own_space` makes it again."""
    from search_spaces import get_space

    chosen = key_values(options or [], option="--space-option")
    try:
        costs = get_space(space, **chosen).costs(input_size, num_classes=classes, in_chans=channels)
    except (TypeError, ValueError) as error:
        raise SpaceError(f"the space {space} cannot be made with these options: {error}; correct them") from error
    written = [f"{key}={json.dumps(value, separators=(',', ':'), default=str)}" for key, value in chosen.items()]
    return costs, " ".join([space, *written])


def _own_space(table: LatencyTable) -> tuple[str, list[str]] | None:
    """The space that a table's header names, and its options; None where it names none that is known."""
    from search_spaces.registry import known_spaces

    name, *options = table.header.space.split(" ")
    known = name in known_spaces() or ":" in name
    return (name, options) if known and all("=" in option for option in options) else None


def _costs_of_table(
    table: LatencyTable,
    space: str | None,
    options: Sequence[str] | None,
    input_size: int | None,
    classes: int | None,
    channels: int | None,
) -> SpaceCosts:
    """The operators of a space as the table has them, where the options do not say otherwise."""
    own = _own_space(table)
    if space is None and own is None:
        raise ConfigError(f"the table's space is {table.header.space!r}, which is unknown here; give --space")
    if own is not None and not options and space in (None, own[0]):
        space, options = own
    heads, images = _ends(table)
    size = input_size or table.header.input_size
    costs, _ = _space_costs(
        space or "",
        options,
        size,
        classes or (heads[0] if len(heads) == 1 else 1000),
        channels or (images[0] if len(images) == 1 else 3),
    )
    return costs


def _ends(table: LatencyTable) -> tuple[list[int], list[int]]:
    """Classes of the table's heads, and channels of its operators on the input image."""
    from hardware.op_spec import OpSpec

    ops = [OpSpec.from_key(key) for key in table.entries]
    heads = sorted({op.output_shape[0] for op in ops if op.kind == "head"})
    size = table.header.input_size
    images = sorted({op.input_shape[0] for op in ops if op.kind == "conv" and op.input_shape[1:] == (size, size)})
    return heads, images


def _model(table: LatencyTable, costs: SpaceCosts) -> LatencyModel:
    """Latencies of a space's choices by a table that has all of its operators."""
    from hardware.model import LatencyModel

    table.check(costs.distinct(), input_size=costs.input_size, batch=table.header.batch)
    return LatencyModel(table, fixed=costs.fixed, edges=costs.edges)


def _random_nets(costs: SpaceCosts, count: int, *, seed: int) -> list[tuple[OpSpec, ...]]:
    return [costs.chain(choices) for choices in costs.random_choices(count, seed=seed)]


def _calibration_nets(table: LatencyTable) -> int:
    return table.header.calibration.nets if table.header.calibration else 0


def _unseen(
    costs: SpaceCosts, count: int, *, seed: int, seen: set[tuple[OpSpec, ...]], depth: str = "both"
) -> list[tuple[OpSpec, ...]]:
    """Distinct random nets that are not among `seen`; `depth` is `uniform`, `varied` or `both`."""
    choices = costs.random_choices(8 * count, seed=seed, vary_depth=depth != "uniform")
    choices = choices[1::2] if depth == "varied" else choices
    nets = [net for net in dict.fromkeys(costs.chain(c) for c in choices) if net not in seen][:count]
    if len(nets) < count:
        raise SpaceError(f"the space {costs.space} has too few nets to hold {count} out; ask for fewer")
    return nets


def _choices_named(name: str, model: LatencyModel) -> Mapping[str, str]:
    if name in ("minimum", "maximum"):
        return (model.minimum() if name == "minimum" else model.maximum())[1]
    common = _common_candidates(model)
    if name not in common:
        raise ConfigError(f"--layers {name} is no net; give minimum, maximum or one of {', '.join(common)}")
    return dict.fromkeys(model.labels, name)


def _common_candidates(model: LatencyModel) -> list[str]:
    """Candidates that every edge has."""
    first, *others = model.candidates or ((),)
    return [name for name in first if all(name in options for options in others)]


def _check_same_device(table: LatencyTable) -> None:
    """Refuses to compare a table with another device than its own."""
    from hardware.backends import backend_names, get_backend

    header = table.header
    if header.backend not in backend_names():
        raise BackendError(
            f"the table was measured with {header.backend!r} on {header.device}, which this machine cannot run; "
            f"backends here are {', '.join(backend_names())}"
        )
    with get_backend(header.backend, header.place) as backend:
        here = backend.device()
    if here != header.device:
        raise TableError(
            f"the table is of {header.device!r}, but this machine is {here!r}; measure nets on the table's device"
        )
