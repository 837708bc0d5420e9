"""`LatencyTable`: what each operator costs on one device, read from and written to YAML.

A latency is in milliseconds. An operator's entry is net of the session's own overhead, which the header keeps: a
net takes `overhead + sum of its operators` uncalibrated and `scale * (overhead + sum) + offset` calibrated.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import notebook
from ..errors import MissingOperatorError, TableError
from ..files import write_atomically
from ..op_spec import IDENTITY, OpSpec, executed
from ..reading import YAML_BYTES, Kind, cut, read_yaml, reading, shown
from ..yaml_text import dump_yaml
from .heads import between
from .plausibility import check_units
from .records import Calibration, LatencyEntry, Reference, TableHeader

FORMAT = "proxyless-latency-table"
ENERGY_FORMAT = "proxyless-energy-table"
VERSION = 1
UNIT = "ms"
FILE = Kind(
    "the latency table",
    "mend it or build it again",
    TableError,
    limit=YAML_BYTES,
    holds="",
    missing="there is no latency table at {path}; build one with `proxyless latency build`",
)
SHOWN = 10
"""Operators that a notebook shows."""
_CONTEXT = ("per_operator_ms", "per_mparam_ms")


@dataclass(frozen=True)
class LatencyTable:
    """Latencies of operators on one device, by `OpSpec.key`.

    >>> from hardware.tables.shipped import open_table
    >>> table = open_table("pixel1")
    >>> stem = OpSpec("conv", (3, 224, 224), (32, 112, 112), kernel=3, stride=2)
    >>> table.header.device, round(table.latency_ms(stem), 3)
    ('Google Pixel 1 (phone)', 4.084)
    >>> table.latency_ms(OpSpec("conv", (3, 224, 224), (64, 112, 112), kernel=3, stride=2))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    hardware.errors.MissingOperatorError: operator conv-in:3x224x224-out:64x112x112-... is not in the latency table ...

    Attributes:
        header: Where, how and of what it was measured.
        entries: Key of an operator to its latency.
    """

    header: TableHeader
    entries: Mapping[str, LatencyEntry]

    def __post_init__(self) -> None:
        _check_header(self.header, "the latency table")
        for key, entry in self.entries.items():
            check_number(entry.ms, f"the latency of {cut(key)} in the latency table")
            check_number(entry.spread, f"the spread of {cut(key)} in the latency table")
            if entry.count < 0:
                raise TableError(
                    f"the count of {cut(key)} in the latency table is {entry.count}; it must not be negative"
                )

    def _repr_html_(self) -> str:
        header, calibration = self.header, self.header.calibration
        about = {
            "device": header.device,
            "runtime": header.runtime(),
            "space": header.space,
            "input size": header.input_size,
            "operators": len(self.entries),
            "calibrated on": "nothing" if calibration is None else f"{calibration.nets} whole nets",
        }
        slowest = sorted(((key, entry.ms) for key, entry in self.entries.items()), key=lambda row: -row[1])[:SHOWN]
        slow = notebook.table(slowest, titles=("operator", "ms"), caption=f"the slowest {len(slowest)}")
        return notebook.pairs(about, caption="latency table") + slow

    @classmethod
    def load(cls, path: str | Path) -> LatencyTable:
        """Read a table.

        Raises:
            TableError: The file is no table of this format and version, or a value in it is impossible.
        """
        path = Path(path)
        document = load_yaml(path)
        if isinstance(document, dict) and document.get("format") == ENERGY_FORMAT:
            raise TableError(
                f"{path} is a table of energy in mJ, not of latency; set hardware.cost to energy in a search, or give "
                "a latency table"
            )
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise TableError(
                f"{path} is no latency table of this project (no `format: {FORMAT}`); "
                "released tables are read with `proxyless latency convert`"
            )
        with reading(path, FILE):
            return _parse(document, path)

    def save(self, path: str | Path) -> None:
        """Write the table atomically; `load` gives it back equal."""
        header = {name: value for name, value in plain(self.header).items() if value not in (None, "", {}, [])}
        entries = {}
        for key, entry in self.entries.items():
            entries[key] = {"ms": float(entry.ms), "spread": float(entry.spread), "count": int(entry.count)}
            if entry.predicted:
                entries[key]["predicted"] = True
        head = dump_yaml(
            {"format": FORMAT, "version": VERSION, "unit": UNIT, "header": header},
            sort_keys=False,
            width=1000,
        )
        body = dump_yaml({"entries": entries}, sort_keys=False, width=1000, default_flow_style=None)
        write_atomically(path, head + body, error=TableError)

    def latency_ms(self, op: OpSpec) -> float:
        """Return the uncalibrated latency of one operator in ms; 0 for `identity` by definition.

        Raises:
            MissingOperatorError: The table has no such operator; the message names the nearest that it has.
        """
        return 0.0 if op.kind == IDENTITY else self.entry(op).ms

    def entry(self, op: OpSpec) -> LatencyEntry:
        """Return the whole entry of an operator that is no `identity`; see `find`.

        Raises:
            MissingOperatorError: The table has no such operator; the message names the nearest that it has.
        """
        found = self.find(op)
        if found is None:
            nearest = ", ".join(self.nearest(op.key)) or "none, the table is empty"
            raise MissingOperatorError(
                f"operator {op.key} is not in the latency table of {shown(self.header.device)} "
                f"({cut(self.header.backend)}); nearest are: {cut(nearest, 240)}"
            )
        return found

    def find(self, op: OpSpec) -> LatencyEntry | None:
        """Return an operator's own entry, or a head's between those of fewer and of more classes; None without them."""
        return self.entries.get(op.key) or between(op, self.entries)

    def nearest(self, key: str, count: int = 3) -> list[str]:
        """Return the `count` keys of the table that resemble `key` most, of its kind where there are any."""
        kind = key.split("-", 1)[0]
        of_kind = [k for k in self.entries if k.split("-", 1)[0] == kind]
        return difflib.get_close_matches(key, of_kind or list(self.entries), n=count, cutoff=0.0)

    def check(self, ops: Iterable[OpSpec], *, input_size: int, batch: int = 1) -> None:
        """Check that the table is one of these operators at this input size and batch.

        Raises:
            TableError: The header says another input size or batch.
            MissingOperatorError: Operators are missing; the message says how many and names the first.
        """
        header = self.header
        if header.input_size != input_size:
            raise TableError(
                f"the latency table was measured at input size {header.input_size}, not {input_size}; "
                f"build one with input size {input_size}"
            )
        if header.batch != batch:
            raise TableError(
                f"the latency table was measured at batch {header.batch}, not {batch}; build one with batch {batch}"
            )
        wanted = {op.key: op for op in executed(ops)}
        missing = [key for key, op in wanted.items() if self.find(op) is None]
        if missing:
            first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            nearest = ", ".join(self.nearest(missing[0])) or "none, the table is empty"
            raise MissingOperatorError(
                f"{len(missing)} of {len(wanted)} operators are not in the latency table (space "
                f"{shown(header.space, width=60)}): {cut(first, 240)}; nearest to the first are: {cut(nearest, 240)}; "
                "build a table of this space, or predict them "
                "(`proxyless latency fit`, then `fill`)"
            )

    def calibrated_ms(self, ops: Iterable[OpSpec]) -> float:
        """Return the latency of a whole net: `scale * (overhead + sum) + offset`, uncalibrated `overhead + sum`."""
        raw = self.raw_ms(ops)
        return self.header.calibration(raw) if self.header.calibration else raw

    def raw_ms(self, ops: Iterable[OpSpec]) -> float:
        """Return the uncalibrated latency of a whole net: `overhead + sum`."""
        return self.header.overhead_ms + math.fsum(self.latency_ms(op) for op in ops)


def plain(value: Any) -> Any:
    """Return a value as YAML can hold it: dataclasses and mappings as dicts, numpy numbers as Python's."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    # a correlation of equal numbers, which no reader takes for a number
    return None if isinstance(value, float) and not math.isfinite(value) else value


def load_yaml(path: Path) -> Any:
    """Read what a YAML file holds.

    Raises:
        TableError: The file is missing, no text or no YAML, has a key twice, or holds what no table does.
    """
    return read_yaml(path, FILE)


def parse_header(values: Any, where: str) -> TableHeader:
    """Make a header from the mapping that a file holds.

    Args:
        values: The mapping.
        where: The file in words, for the error.

    Raises:
        TableError: A field is unknown or missing, or its value is of another type or impossible.
    """
    header: TableHeader = built_record(TableHeader, values, f"the header of {where}")
    _check_header(header, where)
    return header


def _parse(document: dict[str, Any], path: Path) -> LatencyTable:
    where = f"the latency table {path}"
    if document.get("version") != VERSION:
        raise TableError(
            f"{where} has format version {shown(document.get('version'))}, this release reads {VERSION}; build it again"
        )
    if document.get("unit") != UNIT:
        raise TableError(f"{where} has unit {shown(document.get('unit'))}, not {UNIT!r}; convert it to milliseconds")
    unknown = set(document) - {"format", "version", "unit", "header", "entries"}
    if unknown:
        raise TableError(f"{where} has unknown keys: {cut(', '.join(sorted(map(str, unknown))))}; remove them")
    header = built_record(TableHeader, document.get("header"), f"the header of {where}")
    raw_entries = document.get("entries")
    if not isinstance(raw_entries, dict) or not raw_entries:
        raise TableError(f"{where} has no entries (perhaps truncated); build it again")
    entries = {}
    for key, value in raw_entries.items():
        if not isinstance(key, str):
            raise TableError(f"{where} has the key {shown(key)}, which is no operator; build it again")
        entries[key] = built_record(LatencyEntry, value, f"the entry {cut(key)} of {where}")
    try:
        table = LatencyTable(header, entries)
    except TableError as error:
        raise TableError(str(error).replace("the latency table", where, 1)) from None
    check_units(table, where)
    return table


def built_record(kind: type, value: Any, where: str) -> Any:
    """Make a dataclass from a mapping, refusing unknown and missing fields and values of another type."""
    if not isinstance(value, dict):
        raise TableError(f"{where} is missing or no mapping (perhaps truncated); build the table again")
    fields = {f.name: f for f in dataclasses.fields(kind)}
    for name in value:
        if name not in fields:
            raise TableError(f"{where} has an unknown field {shown(name)}; remove it")
    for name, f in fields.items():
        required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
        if required and name not in value:
            raise TableError(f"{where} has no field {name!r} (perhaps truncated); build the table again")
    made = {name: _convert(str(fields[name].type), v, f"the field {name!r} of {where}") for name, v in value.items()}
    return kind(**made)


def _convert(annotation: str, value: Any, where: str) -> Any:
    """Return a value as a field's annotation wants it, refusing what YAML has read as another type."""
    if value is None and "None" in annotation:
        return None
    if annotation.startswith("tuple"):
        _expect(isinstance(value, list), value, "a list", where)
        if "Reference" in annotation:
            return tuple(built_record(Reference, item, where) for item in value)
        return tuple(_convert("str", item, where) for item in value)
    if "Calibration" in annotation:
        return built_record(Calibration, value, where)
    if annotation.startswith("Mapping"):
        _expect(isinstance(value, dict), value, "a mapping", where)
        if annotation.startswith("Mapping[str, Any]"):
            _check_figures(value, where)
        if annotation.startswith("Mapping[str, float]"):
            return {str(name): _convert("float", item, f"{cut(str(name))} in {where}") for name, item in value.items()}
        if annotation.startswith("Mapping[str, str]"):
            return {str(name): str(item) for name, item in value.items()}
    elif annotation.startswith("bool"):
        _expect(isinstance(value, bool), value, "true or false", where)
    elif annotation.startswith("int"):
        # for Python, True is an int
        _expect(isinstance(value, int) and not isinstance(value, bool), value, "a whole number", where)
    elif annotation.startswith("float"):
        _expect(isinstance(value, (int, float)) and not isinstance(value, bool), value, "a number", where)
        return float(value)
    elif not isinstance(value, str):
        # a date that somebody wrote without quotes is read as a date
        _expect(re.match(r"\d{4}-\d{2}-\d{2}", str(value)) is not None, value, "a text", where)
        return str(value)
    return value


def _check_figures(values: Mapping[Any, Any], where: str, deepest: int = 3) -> None:
    """Refuse what is no number or text, alone or in mappings; a figure that could not be computed is null."""
    for name, value in values.items():
        if isinstance(value, dict) and deepest:
            _check_figures(value, f"{cut(str(name))} in {where}", deepest - 1)
        else:
            _expect(
                value is None or isinstance(value, (int, float, str)), value, "a figure", f"{cut(str(name))} in {where}"
            )


def _expect(fits: bool, value: Any, what: str, where: str) -> None:
    if not fits:
        raise TableError(f"{where} is {shown(value)}, not {what}; correct it or build the table again")


def _check_header(header: TableHeader, where: str) -> None:
    for name in ("threads", "batch", "input_size"):
        if getattr(header, name) < 1:
            raise TableError(f"{where} has {name} {getattr(header, name)}; it must be at least 1")
    if header.repeats < 0:
        raise TableError(f"{where} has repeats {header.repeats}; it must not be negative")
    if header.quantile is not None and not 0 <= header.quantile <= 1:
        raise TableError(f"{where} has quantile {header.quantile}; it must be a share between 0 and 1")
    if header.load_average is not None:
        check_number(header.load_average, f"load_average in {where}")
    for option, value in header.options.items():
        if not isinstance(value, (bool, int, str)):
            raise TableError(
                f"the option {cut(str(option))} in {where} is {shown(value)}; it must be true, false, a "
                "whole number or a text"
            )
    if header.context:
        _check_context(header.context, where)
    check_number(header.overhead_ms, f"overhead_ms in {where}")
    calibration = header.calibration
    if calibration is not None:
        if not (math.isfinite(calibration.scale) and calibration.scale > 0):
            raise TableError(f"the calibration's scale in {where} is {calibration.scale}; it must be positive")
        if not math.isfinite(calibration.offset_ms):
            raise TableError(f"the calibration's offset in {where} is {calibration.offset_ms}; it must be finite")
        if calibration.nets < 1:
            raise TableError(f"the calibration in {where} is of {calibration.nets} nets; it must be of 1 or more")
        for reference in calibration.references:
            check_number(reference.ms, f"the latency of a reference net in {where}")
            if not reference.ms or not reference.ops:
                raise TableError(
                    f"a reference net in {where} has {len(reference.ops)} operators and takes {reference.ms} ms; both "
                    "must be above 0"
                )


def _check_context(context: Mapping[str, float], where: str) -> None:
    for name in _CONTEXT:
        value = context.get(name)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise TableError(f"the context's {name} in {where} is {value!r}; it must be a finite number")
    if others := sorted(map(str, set(context) - set(_CONTEXT))):
        raise TableError(f"the context in {where} has an unknown part {shown(others[0])}; remove it")


def check_number(value: float, what: str) -> None:
    if not math.isfinite(value) or value < 0:
        raise TableError(f"{what} is {value}; it must be finite and not negative")
