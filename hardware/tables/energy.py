"""`EnergyTable`: what energy each operator takes on one device, read from and written to YAML.

It is no latency table: its file has a format, unit and names of its own, so that neither is ever taken for the other.
An energy is gross, in millijoules: all that the device's counter has counted while an operator ran, its idle power too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import MissingOperatorError, TableError
from ..files import write_atomically
from ..op_spec import IDENTITY, OpSpec, executed
from ..reading import YAML_BYTES, Kind, cut, read_yaml, reading, shown
from ..yaml_text import dump_yaml
from .table import ENERGY_FORMAT, FORMAT, VERSION, built_record, check_number, plain

UNIT = "mJ"
FILE = Kind(
    "the energy table",
    "mend it or build it again",
    TableError,
    limit=YAML_BYTES,
    holds="",
    missing="there is no energy table at {path}; a search with hardware.cost energy measures one",
)
_KEYS = {"format", "version", "unit", "header", "entries"}


@dataclass(frozen=True)
class EnergyHeader:
    """Where, how and of what a table was measured; what is not said here is as in `TableHeader`.

    Attributes:
        device: The device in words.
        meter: What told the energy (`RAPL package-0`, ...).
        backend: Name of the measuring backend.
        place: Which of the backend's devices it was.
        threads: Threads that one inference may use.
        batch: Images per inference.
        dtype: Number format.
        input_size: Side of the network's input image in pixels.
        block_seconds: Least time that an operator ran between two readings.
        overhead_mj: What one call of the runtime takes without any operator.
        scale: Factor of `overhead + sum`.
        offset_mj: Constant of a whole net.
        nets: Number of whole nets that these two were fitted on; 0: they are 1 and 0.
        mape: Mean error on these nets, relative; None without any.
        options: What else was chosen of the backend's options.
        space: The search space in words; informative.
        created: Date of the measurement, ISO 8601.
        versions: Library name to version.
        repeats: Samples per operator.
        quantile: Which quantile of the samples an entry is.
        load_average: The machine's 1-minute load while measuring, where known.
    """

    device: str
    meter: str
    backend: str
    place: str
    threads: int
    batch: int
    dtype: str
    input_size: int
    block_seconds: float
    overhead_mj: float = 0.0
    scale: float = 1.0
    offset_mj: float = 0.0
    nets: int = 0
    mape: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    space: str = ""
    created: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    repeats: int = 0
    quantile: float | None = None
    load_average: float | None = None

    def __post_init__(self) -> None:
        # torch's version is a text of a class of its own, which writers of YAML refuse
        versions = {str(name): str.__str__(version) for name, version in self.versions.items()}
        object.__setattr__(self, "versions", versions)

    def runtime(self) -> str:
        """Say what ran the operators, and what told their energy."""
        threads = f"{self.threads} thread{'s' * (self.threads > 1)}"
        return f"{self.backend}, {threads}, batch {self.batch}, {self.dtype}, energy by {self.meter}"


@dataclass(frozen=True)
class EnergyEntry:
    """One operator's energy.

    Attributes:
        mj: Energy in mJ, net of the session's overhead.
        spread: Median of the samples over their low quantile, minus 1.
        count: Samples behind the figure.
    """

    mj: float
    spread: float = 0.0
    count: int = 0


@dataclass(frozen=True)
class EnergyTable:
    """Energies of operators on one device, by `OpSpec.key`.

    >>> conv = OpSpec("conv", (3, 8, 8), (8, 4, 4), kernel=3, stride=2)
    >>> header = EnergyHeader("a board", "RAPL package-0", "onnxruntime", "cpu", 1, 1, "float32", 8, 0.3,
    ...                       overhead_mj=0.5, scale=2.0, offset_mj=0.25, nets=8)
    >>> table = EnergyTable(header, {conv.key: EnergyEntry(1.5)})
    >>> table.energy_mj(conv), table.net_mj([conv])
    (1.5, 4.25)

    Attributes:
        header: Where, how and of what it was measured.
        entries: Key of an operator to its energy.
    """

    header: EnergyHeader
    entries: Mapping[str, EnergyEntry]

    def __post_init__(self) -> None:
        _check(self, "the energy table")

    @classmethod
    def load(cls, path: str | Path) -> EnergyTable:
        """Read a table.

        Raises:
            TableError: The file is none of this format and version, or a value in it is impossible.
        """
        path = Path(path)
        document = read_yaml(path, FILE)
        where = f"the energy table {path}"
        with reading(path, FILE):
            if isinstance(document, dict) and document.get("format") == FORMAT:
                raise TableError(f"{path} is a table of latency, not of energy; set hardware.cost to latency")
            if not isinstance(document, dict) or document.get("format") != ENERGY_FORMAT:
                raise TableError(f"{path} is no energy table of this project (no `format: {ENERGY_FORMAT}`)")
            for name, wanted in (("version", VERSION), ("unit", UNIT)):
                if document.get(name) != wanted:
                    raise TableError(f"{where} has {name} {shown(document.get(name))}, not {wanted!r}; build it again")
            if unknown := sorted(map(str, set(document) - _KEYS)):
                raise TableError(f"{where} has unknown keys: {cut(', '.join(unknown))}; remove them")
            header = built_record(EnergyHeader, document.get("header"), f"the header of {where}")
            raw = document.get("entries")
            if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
                raise TableError(f"{where} has no entries by operator (perhaps truncated); build it again")
            entries = {k: built_record(EnergyEntry, v, f"the entry {cut(k)} of {where}") for k, v in raw.items()}
            try:
                return cls(header, entries)
            except TableError as error:
                raise TableError(str(error).replace("the energy table", where, 1)) from None

    def save(self, path: str | Path) -> None:
        """Write the table atomically; `load` gives it back equal."""
        header = {name: value for name, value in plain(self.header).items() if value not in (None, "", {}, [])}
        head = {"format": ENERGY_FORMAT, "version": VERSION, "unit": UNIT, "header": header}
        entries = {key: plain(dataclasses.asdict(entry)) for key, entry in self.entries.items()}
        text = dump_yaml(head, sort_keys=False, width=1000)
        text += dump_yaml({"entries": entries}, sort_keys=False, width=1000, default_flow_style=None)
        write_atomically(Path(path), text, error=TableError)

    def energy_mj(self, op: OpSpec) -> float:
        """Return the uncalibrated energy of one operator in mJ; 0 for `identity` by definition.

        Raises:
            MissingOperatorError: The table has no such operator.
        """
        if op.kind == IDENTITY:
            return 0.0
        if op.key not in self.entries:
            raise MissingOperatorError(
                f"operator {op.key} is not in the energy table of {shown(self.header.device)}; build one of this space"
            )
        return self.entries[op.key].mj

    def raw_mj(self, ops: Iterable[OpSpec]) -> float:
        """Return the uncalibrated energy of a whole net: `overhead + sum`."""
        return self.header.overhead_mj + math.fsum(self.energy_mj(op) for op in ops)

    def net_mj(self, ops: Iterable[OpSpec]) -> float:
        """Return the energy of a whole net: `scale * (overhead + sum) + offset`."""
        return self.header.scale * self.raw_mj(ops) + self.header.offset_mj

    def check(self, ops: Iterable[OpSpec], *, input_size: int, batch: int) -> None:
        """Check that the table is one of these operators at this input size and batch.

        Raises:
            TableError: The header says another input size or batch.
            MissingOperatorError: Operators are missing.
        """
        for name, there, here in (
            ("input size", self.header.input_size, input_size),
            ("batch", self.header.batch, batch),
        ):
            if there != here:
                raise TableError(f"the energy table was measured at {name} {there}, not {here}; build one with {here}")
        for op in executed(ops):
            self.energy_mj(op)


def _check(table: EnergyTable, where: str) -> None:
    header = table.header
    for name in ("threads", "batch", "input_size"):
        if getattr(header, name) < 1:
            raise TableError(f"{where} has {name} {getattr(header, name)}; it must be at least 1")
    for name in ("nets", "repeats"):
        if getattr(header, name) < 0:
            raise TableError(f"{where} has {name} {getattr(header, name)}; it must not be negative")
    check_number(header.overhead_mj, f"overhead_mj in {where}")
    check_number(header.block_seconds, f"block_seconds in {where}")
    if not (math.isfinite(header.scale) and header.scale > 0 and math.isfinite(header.offset_mj)):
        raise TableError(
            f"{where} has scale {header.scale} and offset_mj {header.offset_mj}; a scale is above 0, and "
            "both are finite"
        )
    if not table.entries:
        raise TableError(f"{where} has no entries; build it again")
    for key, entry in table.entries.items():
        check_number(entry.mj, f"the energy of {cut(key)} in {where}")
        if not entry.mj:
            raise TableError(f"{where} gives the operator {cut(key)} no energy; measure it again")
