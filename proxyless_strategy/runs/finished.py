"""The one reader of a run folder: for `derive`, the report, and a search that goes on after its supernet.

Only what needs the table or the space imports torch, and only when it is asked for: a report is drawn without.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardware import notebook
from hardware.errors import ConfigError, SpaceError, TableError
from hardware.reading import (
    ARRAY_BYTES,
    DAMAGE,
    Kind,
    Unreadable,
    cut,
    expect,
    is_there,
    json_of,
    read_tensors,
    reading,
    why,
)

from ..config import SearchConfig, parse_config
from ..layout import CONFIG_FILE, HUB_FILE, MODEL, ROW_FILE, SEARCH_FILE, SUPERNET_FILE, TABLE_FILE
from .film import Film, read_film
from .network import Network, read_network
from .rows import check_figures

if TYPE_CHECKING:
    from hardware.model import CostModel
    from search_spaces import SpaceDeclaration, Subnet

    from ..strategy.derivation import Derived, Deriver


EXPORT_FILE = "config.json"
EXPORT = Kind("the export's config", "put it back, or search again", ConfigError)
RECORD = Kind("the search's record", "put it back, or search again", ConfigError)


@dataclass(frozen=True)
class FinishedFinalist:
    """One of the subnets that were compared at the end of a search.

    Attributes:
        choices: Candidate by edge.
        cost: Its cost.
        log_probability: Sum of `log p` over its edges.
        loss: Its loss on architecture images; None where that was not finite.
    """

    choices: dict[str, str]
    cost: float
    log_probability: float
    loss: float | None


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """A search that has ended, read back from its folder.

    Attributes:
        folder: Where it lies.
        name: What pictures call it.
        target: Its target; None where there was none.
        unit: What target and costs are in.
        history: One row per epoch, see `EpochLog`.
        choices: Candidate by edge.
        argmax: The most probable candidate by edge; what is derived may be another one, to keep to the target or
            by the finalists' losses.
        probabilities: Probability by edge and candidate, at the end of the search.
        expected: Expected cost under them.
        row: The result's row; empty while the search has not been retrained and measured.
        settings: Its config, as `config.json` has it.
        own_space: The `module:function` of its space, as the user names it again; None: its config must do without.
        finalists: What was compared at the end, the exported subnet first; empty in folders of earlier versions.
        finalists_epochs: Epochs that each of them was trained before; 0: the supernet's weights decided.
        finalists_dtype: `int8` where their quantised networks were compared, else `float32`.
        warnings: Why its result may be worth little, in sentences; likewise.
        film: Its probabilities after each epoch; None in folders of earlier versions.
        network: What it chose in, with costs; likewise.
    """

    folder: Path
    name: str
    target: float | None
    unit: str
    history: list[dict[str, Any]]
    choices: dict[str, str]
    argmax: dict[str, str]
    probabilities: dict[str, dict[str, float]]
    expected: float
    row: dict[str, Any]
    settings: dict[str, Any]
    own_space: str | None = None
    finalists: tuple[FinishedFinalist, ...] = ()
    finalists_epochs: int = 0
    finalists_dtype: str = "float32"
    warnings: tuple[str, ...] = ()
    film: Film | None = None
    network: Network | None = None

    @property
    def kind(self) -> str:
        """Its rule, and its hardware where that has a name."""
        return ", ".join(filter(None, (self.settings["rule"], self.settings["hardware"].get("name"))))

    @property
    def is_measured(self) -> bool:
        """Whether the target's cost is a latency, and the exported subnet's was measured."""
        return self.unit.startswith("ms") and self.row.get("latency_ms") is not None

    @property
    def subnet_cost(self) -> float | None:
        """What the exported subnet costs: measured where `is_measured`, else as counted or by the table."""
        return self.row["latency_ms"] if self.is_measured else self.row.get("subnet_cost")

    def _repr_html_(self) -> str:
        from search_spaces.boxes import boxes_svg  # timm

        shown = ("target_cost", "subnet_cost", "latency_ms", "accuracy", "params", "macs")
        about = {"search": self.name, "unit": self.unit, **{name: self.row.get(name) for name in shown}}
        return f"<figure>{boxes_svg(self.choices)}</figure>{notebook.pairs(about)}"

    def curve(self, points: int) -> list[tuple[float, float]]:
        """Return its trade-off without its space or table: cost and log-probability of the most probable subnets.

        Args:
            points: Budgets between the cheapest and the most probable subnet.

        Returns:
            From cheap to dear; empty where the network is not known.
        """
        if self.network is None or not self.network.edges:
            return []
        import numpy as np

        from ..strategy.derivation import Deriver  # SciPy
        from ..strategy.edge import Edge

        edges = [Edge(label, tuple(options)) for label, options in self.network.edges.items()]
        shape = (len(edges), max(len(edge.candidates) for edge in edges))
        p, costs = np.zeros(shape), np.zeros(shape)
        for row, (label, options) in enumerate(self.network.edges.items()):
            p[row, : len(options)] = self._odds(label, list(options))
            costs[row, : len(options)] = [operator.cost for operator in options.values()]
        with np.errstate(divide="ignore"):  # log 0 = -inf marks cells that are no candidate
            deriver = Deriver(edges, np.log(p), costs, self.network.fixed)
        return [(derived.cost, derived.log_probability) for derived in deriver.curve(points)]

    # ---- what needs the space or the table, read when it is first asked for ------------------------------------

    @cached_property
    def config(self) -> SearchConfig:
        """Its settings, with its folder as `out`."""
        return parse_config({**self.settings, "out": str(self.folder)}, source=str(self.folder / CONFIG_FILE))

    @cached_property
    def export(self) -> dict[str, Any]:
        """`config.json` of its export folder."""
        from ..export.folder import read_export  # timm, torch

        return read_export(self.folder / MODEL)

    @cached_property
    def space(self) -> SpaceDeclaration:
        """Its space's declaration.

        Raises:
            SpaceError: It is unknown, or a function that its config names and the user has not.
        """
        from search_spaces import get_space, users_space  # timm, NNI

        space = self.config.space
        if self.own_space is not None:
            return users_space(self.own_space, **space.options)
        try:
            return get_space(space.name, **space.options)
        except SpaceError as error:
            raise SpaceError(f"space.name of {self.folder / CONFIG_FILE}: {error}") from error

    @cached_property
    def cost(self) -> CostModel:
        """What its choices cost, by the table of its search.

        Raises:
            ConfigError: The search has no row yet.
            TableError: That table is gone, or its latencies are others now.
        """
        from hardware.model import EnergyModel, LatencyModel, cost_model
        from hardware.tables.energy import EnergyTable
        from hardware.tables.table import LatencyTable

        from .space_table import table_path

        config = self.config
        with reading(self.folder / MODEL / EXPORT_FILE, EXPORT):
            arguments = self.export["model_args"]
            sizes = {name: expect(arguments[name], int, f"model_args.{name}") for name in ("num_classes", "in_chans")}
        costs = self.space.costs(config.latency_input_size, **sizes)
        cost: CostModel
        if config.hardware.cost in ("latency", "energy"):
            path = self.folder / TABLE_FILE if is_there(self.folder / TABLE_FILE) else table_path(config)
            if not is_there(path):
                raise TableError(f"the table {path} of the search in {self.folder} is gone; put it back there")
            shared: dict[str, Any] = {"fixed": costs.fixed, "edges": costs.edges}
            if config.hardware.cost == "energy":
                cost = EnergyModel(EnergyTable.load(path), **shared)
            else:
                cost = LatencyModel(LatencyTable.load(path), **shared)
        else:
            cost = cost_model(config.hardware.cost, costs.fixed, costs.edges)
        with reading(self.folder / SEARCH_FILE, RECORD):
            self._check_same(cost)
        return cost

    @cached_property
    def deriver(self) -> Deriver:
        """Its probabilities and costs, from which further subnets are derived."""
        import numpy as np

        from ..strategy.derivation import Deriver  # SciPy
        from ..strategy.edge import Edge

        edges = [Edge(label, names) for label, names in zip(self.cost.labels, self.cost.candidates, strict=True)]
        with np.errstate(divide="ignore"):  # log 0 = -inf marks cells that are no candidate
            log_p = np.log(self._matrix(self.cost))
        return Deriver(edges, log_p, self.cost.costs, self.cost.fixed)

    def candidates(self, derived: Derived) -> dict[str, str]:
        """Return a derived subnet's candidate by edge."""
        return {e.label: str(e.candidates[i]) for e, i in zip(self.deriver.edges, derived.choice, strict=True)}

    def _matrix(self, cost: CostModel) -> Any:
        """Return the probabilities as `L x N`, rows and columns as in the costs; 0 where there is no candidate."""
        import numpy as np

        p = np.zeros(cost.costs.shape)
        for row, (label, names) in enumerate(zip(cost.labels, cost.candidates, strict=True)):
            p[row, : len(names)] = self._odds(label, [str(name) for name in names])
        return p

    def _odds(self, label: str, names: list[str]) -> list[float]:
        # A probability that underflowed to 0 must stay a candidate that can be chosen under a tight target.
        return [max(float(self.probabilities[label][name]), 1e-300) for name in names]

    def _check_same(self, cost: CostModel) -> None:
        """Refuse costs that are not those of the search."""
        if "subnet_cost" not in self.row:
            raise ConfigError(
                f"{self.folder} holds no finished search (no cost in {ROW_FILE}); give the `out` of one that ran to "
                "its end"
            )
        now, then = cost.cost(self.choices), self.row["subnet_cost"]
        if abs(now - then) > 1e-6 * max(now, then):
            raise TableError(
                f"the subnet of {self.folder} took {then:.6g} {cost.unit} by the table of its search, but takes "
                f"{now:.6g} by today's; put the old table back, or search again"
            )
        # The expected cost sees every candidate, not only those that the search derived.
        now, then = float(cost.expected(self._matrix(cost))), self.expected
        if abs(now - then) > 1e-6 * max(now, then):
            raise TableError(
                f"the choices of {self.folder} took {then:.6g} {cost.unit} on average by the table of its search, but "
                f"take {now:.6g} by today's; put the old table back, or search again"
            )


def read_run(folder: Path | str, *, space: str | None = None) -> FinishedRun:
    """Read the search in a folder that ran to its end.

    Args:
        folder: Its `out`.
        space: The `module:function` of its space, where that is the user's own: what the folder says runs no code.

    Raises:
        ConfigError: There is no such search.
    """
    folder = Path(folder)
    found = []
    for name in (SEARCH_FILE, CONFIG_FILE, ROW_FILE):
        try:
            found.append(_read_json(folder / name))
        except Unreadable as error:
            raise ConfigError(
                f"{folder} holds no finished search ({name}: {error}); give the `out` of one that ran to its end"
            ) from error
    record, settings, row = found
    return replace(_run(folder, record, settings, row), own_space=space)


def read_runs(folder: Path) -> list[FinishedRun]:
    """Read the search in `folder`, or the searches in its subfolders; they may lack their row still.

    Raises:
        ConfigError: There is none, or one cannot be read.
    """
    found = _places(folder, SEARCH_FILE)
    if not found:
        raise ConfigError(f"{folder} holds no finished search (no {SEARCH_FILE}); give the `out` of a search")
    runs = [_read_as_far_as_it_is(place) for place in found]
    return sorted(runs, key=lambda run: (run.name.split(",")[0], run.unit, run.target or 0))


def unfinished(folder: Path) -> list[Path]:
    """Return the folders of searches that have settings, but have not ended."""
    return [
        place
        for place in _places(folder, CONFIG_FILE)
        if not is_there(place / SEARCH_FILE) and not is_there(place / HUB_FILE)
    ]


def read_searched(out: Path, space: SpaceDeclaration) -> tuple[Subnet, dict[str, Any]] | None:
    """Return the derived subnet of a folder and its weights in the supernet, or None before the search has ended.

    The weights are empty where it kept none: see `runs.retrained.starting_weights`.

    Raises:
        ConfigError: The record or the weights cannot be read, or the weights that it kept are gone.
    """
    from search_spaces import Subnet  # slow: torch, timm

    record, weights = out / SEARCH_FILE, out / SUPERNET_FILE
    if not is_there(record):
        return None
    kind = replace(RECORD, remedy="put it back, or remove it to search again from its checkpoint")
    with reading(record, kind):
        values = _read_json(record)
        subnet = Subnet(space, dict(values["subnet"]["choices"]))
    remedy = f"put it back, or remove {record} to search again from its checkpoint"
    if not is_there(weights):
        # Older versions do not say whether they kept them.
        if values.get("keeps_weights"):
            raise ConfigError(f"the weights {weights} of the searched subnet are gone; {remedy}")
        return subnet, {}
    found: dict[str, Any] = read_tensors(weights, Kind("the weights", remedy, ConfigError, limit=ARRAY_BYTES))
    return subnet, found


def read_warnings(out: Path) -> tuple[str, ...]:
    """Return why an ended search's result may be worth little; folders of earlier versions do not say.

    Raises:
        ConfigError: The record cannot be read.
    """
    with reading(out / SEARCH_FILE, RECORD):
        return tuple(str(sentence) for sentence in _read_json(out / SEARCH_FILE).get("warnings", ()))


def read_losses(out: Path) -> dict[str, float | None]:
    """Return `search_loss` and `knapsack_loss` of an ended search, see `SearchResult`; empty where it has none.

    Raises:
        ConfigError: The record cannot be read.
    """
    with reading(out / SEARCH_FILE, RECORD):
        known = expect(_read_json(out / SEARCH_FILE).get("sensitivity", {}), dict, "sensitivity")
        names = [name for name in ("search_loss", "knapsack_loss") if name in known]
        return {name: expect(known[name], float, f"sensitivity.{name}", none=True) for name in names}


def _read_json(path: Path) -> dict[str, Any]:
    """Read a mapping.

    Raises:
        Unreadable: There is none.
    """
    # what a search that diverged has logged is no number
    values = json_of(path, nonfinite=("history",))
    if not isinstance(values, dict):
        raise Unreadable(f"it holds a {type(values).__name__}, not a mapping")
    return values


def _places(folder: Path, name: str) -> list[Path]:
    """Return `folder` and its subfolders, as far as they have a file of this name."""
    return [path.parent for path in (folder / name, *sorted(folder.glob(f"*/{name}"))) if is_there(path)]


def _read_as_far_as_it_is(place: Path) -> FinishedRun:
    def read(name: str) -> Any:
        try:
            return _read_json(place / name)
        except Unreadable as error:
            raise ConfigError(f"cannot read {place / name}: {error}; remove {place} or search again") from error

    record, settings = read(SEARCH_FILE), read(CONFIG_FILE)
    return _run(place, record, settings, read(ROW_FILE) if is_there(place / ROW_FILE) else {})


def _run(place: Path, record: dict[str, Any], settings: dict[str, Any], row: dict[str, Any]) -> FinishedRun:
    with _of_search(place / ROW_FILE):
        check_figures(row)
    with _of_search(place / CONFIG_FILE):
        _check_settings(settings)
    with _of_search(place / SEARCH_FILE):
        _check_record(record)
        unit, goal = record["unit"], record["target"]
        target = "no target" if goal is None else f"target {goal:.4g} {unit}"
        candidates = {label: list(odds) for label, odds in record["probabilities"].items()}
        return FinishedRun(
            folder=place,
            name=", ".join(filter(None, (settings["rule"], settings["hardware"].get("name"), target))),
            target=goal,
            unit=unit,
            history=record["history"],
            choices=record["subnet"]["choices"],
            argmax={label: str(choice) for label, choice in record["argmax"].items()},
            probabilities=record["probabilities"],
            expected=record["expected"],
            row=row,
            settings=settings,
            finalists=tuple(_finalist(values) for values in expect(record.get("finalists", []), list, "finalists")),
            finalists_epochs=expect(record.get("finalists_epochs", 0), int, "finalists_epochs"),
            finalists_dtype=expect(record.get("finalists_dtype", "float32"), str, "finalists_dtype"),
            warnings=tuple(
                expect(sentence, str, "warnings") for sentence in expect(record.get("warnings", []), list, "warnings")
            ),
            film=read_film(record["film"], candidates) if "film" in record else None,
            network=read_network(record["network"], candidates) if "network" in record else None,
        )


def _finalist(values: Any) -> FinishedFinalist:
    values = expect(values, dict, "finalists")
    return FinishedFinalist(
        {label: str(choice) for label, choice in expect(values["choices"], dict, "finalists.choices").items()},
        expect(values["cost"], float, "finalists.cost"),
        expect(values["log_probability"], float, "finalists.log_probability"),
        expect(values.get("loss"), float, "finalists.loss", none=True),
    )


@contextmanager
def _of_search(path: Path) -> Iterator[None]:
    """Name the file of a search in which something is missing, or is another thing than a search writes."""
    try:
        yield
    except KeyError as error:
        raise ConfigError(
            f"{path} lacks {cut(str(error))}, so another version of this project wrote it; search again"
        ) from error
    except DAMAGE as error:
        raise ConfigError(f"{path} is no file of a search ({why(error)}); search again") from error


def _check_record(record: dict[str, Any]) -> None:
    expect(record["unit"], str, "unit")
    expect(record["target"], float, "target", none=True)
    expect(record["expected"], float, "expected")
    for number, epoch in enumerate(expect(record["history"], list, "history")):
        expect(epoch, dict, f"history.{number}")
        for key, value in epoch.items():
            expect(value, str if key in ("phase", "unit") else float, f"history.{number}.{cut(key)}", none=True)
        expect(epoch["epoch"], float, f"history.{number}.epoch")
    for label, choice in expect(record["subnet"]["choices"], dict, "subnet.choices").items():
        expect(choice, str, f"subnet.choices.{cut(label)}")
    expect(record["argmax"], dict, "argmax")
    for label, odds in expect(record["probabilities"], dict, "probabilities").items():
        for name, value in expect(odds, dict, f"probabilities.{cut(label)}").items():
            place = f"probabilities.{cut(label)}.{cut(name)}"
            if not 0 <= expect(value, float, place) <= 1:
                raise Unreadable(f"its {place} is {value}, no probability")


def _check_settings(settings: dict[str, Any]) -> None:
    expect(settings["rule"], str, "rule")
    for section in ("space", "data", "hardware"):
        expect(settings[section], dict, section)
        expect(settings[section].get("name"), str, f"{section}.name", none=section == "hardware")
