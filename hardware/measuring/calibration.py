"""From raw times to calibrated ones: what surrounds an operator, and the affine fit to whole nets.

A net takes `scale * (overhead + sum) + offset`, where the sum is over the table's entries. The two numbers are fitted
on a few whole nets that are measured in the same rounds as the operators.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence

import numpy as np

from ..errors import ProxylessError, TableError
from ..op_spec import OpSpec, executed
from ..operators import primitives
from ..tables.records import Calibration, LatencyEntry, Reference
from ..tables.table import LatencyTable
from . import statistics
from .nets import REFERENCES

RESOLUTION = 0.02
"""Of the empty graph's time or energy: the least that an operator is taken to add to it."""


def entry_alone(key: str, ms: float, overhead_ms: float, *, spread: float, count: int) -> LatencyEntry:
    """Make the entry of an operator measured alone, net of the session's overhead, see `above_overhead`."""
    entry = above_overhead(key, ms, overhead_ms, spread=spread, unit="ms", error=TableError)
    return LatencyEntry(round(entry, 7), round(spread, 4), count)


def above_overhead(
    key: str, figure: float, overhead: float, *, spread: float, unit: str, error: type[ProxylessError]
) -> float:
    """Return what an operator takes beside the empty graph.

    One that cannot be told from it, as a few thousand multiply-accumulates cannot on a busy machine, takes the least
    that can be (`RESOLUTION` of the empty graph's), and standard error says so.

    Args:
        key: The operator's.
        figure: What was measured.
        overhead: The same of the empty graph.
        spread: Of the samples, relative.
        unit: Of both.
        error: Type of the error.

    Raises:
        ProxylessError: The operator took less than the empty graph by more than the samples' spread explains.
    """
    least = RESOLUTION * overhead
    if figure < overhead * (1 - min(0.5, max(0.1, spread))):
        raise error(
            f"operator {key} took {figure:.6f} {unit}, less than the empty graph's {overhead:.6f} {unit}; "
            "measure on a quieter machine or with more rounds"
        )
    if figure - overhead < least:
        print(
            f"operator {key} took {figure:.6f} {unit} and the empty graph {overhead:.6f} {unit}, which cannot be told "
            f"apart: its entry is {least:.6f} {unit}; measure on a quieter machine for a better one",
            file=sys.stderr,
            flush=True,
        )
    return max(figure - overhead, least)


def in_context(table: LatencyTable, nets: Sequence[Sequence[OpSpec]], measured_ms: Sequence[float]) -> LatencyTable:
    """Correct a table of operators measured alone to how they behave inside a net, and calibrate it.

    Every entry becomes `ms + per_operator_ms + per_mparam_ms * params / 1e6`, so that a net still takes
    `scale * (overhead + sum) + offset`; see `hardware.measuring.statistics.context_fit`.

    Args:
        table: The table of operators alone.
        nets: Whole nets in execution order.
        measured_ms: Their measured latencies.
    """
    raw = [table.raw_ms(net) for net in nets]
    # by the number of weights, as what differs inside a net is how far away an operator's weights are
    weights = {op.key: primitives.params(op) for net in nets for op in net}
    weights |= {key: primitives.params(OpSpec.from_key(key)) for key in table.entries if key not in weights}
    fit = statistics.context_fit(
        raw,
        [len(net) for net in nets],
        [sum(weights[op.key] for op in net) for net in nets],
        measured_ms,
        least_ms=min(entry.ms for entry in table.entries.values()),
    )
    # the calibration multiplies the entries by `scale`, which the context's part of them must come through unchanged
    per_operator, per_param = fit.per_operator_ms / fit.scale, fit.per_param_ms / fit.scale
    entries = {
        key: dataclasses.replace(entry, ms=round(entry.ms + per_operator + per_param * weights[key], 7))
        for key, entry in table.entries.items()
    }
    context = {"per_operator_ms": per_operator, "per_mparam_ms": 1e6 * per_param}
    settled = LatencyTable(dataclasses.replace(table.header, context=context), entries)
    return _with_calibration(settled, nets, measured_ms, fit.scale, fit.offset_ms, raw)


def alone_ms(table: LatencyTable, ops: Iterable[OpSpec]) -> float:
    """Return the sum of a net's operators as measured alone, with overhead: `table.raw_ms` less the context's part."""
    ops = executed(ops)
    context = table.header.context
    if not context:
        return table.raw_ms(ops)
    weights = sum(primitives.params(op) for op in ops)
    part = context["per_operator_ms"] * len(ops) + context["per_mparam_ms"] * weights / 1e6
    return table.raw_ms(ops) - part


def calibrated(table: LatencyTable, nets: Sequence[Sequence[OpSpec]], measured_ms: Sequence[float]) -> LatencyTable:
    """Calibrate a table on whole nets.

    Args:
        table: The table; an earlier calibration is replaced.
        nets: Whole nets in execution order.
        measured_ms: Their measured latencies.
    """
    raw = [table.raw_ms(net) for net in nets]
    scale, offset = statistics.affine_fit(raw, measured_ms)
    return _with_calibration(table, nets, measured_ms, scale, offset, raw)


def _with_calibration(
    table: LatencyTable,
    nets: Sequence[Sequence[OpSpec]],
    measured_ms: Sequence[float],
    scale: float,
    offset: float,
    alone_ms: Sequence[float],
) -> LatencyTable:
    """Write a calibration into a table's header, with its figures and reference nets."""
    measured = np.asarray(measured_ms, dtype=np.float64)
    predicted = [scale * table.raw_ms(net) + offset for net in nets]
    figures = statistics.raw_and_calibrated(alone_ms, predicted, measured)
    # from the fastest to the slowest: one net's drift may be its own (it just fits a cache), that of three is not
    spread = np.argsort(measured)[np.linspace(0, len(nets) - 1, REFERENCES).round().astype(int)]
    references = tuple(Reference(float(measured[i]), tuple(op.key for op in nets[i])) for i in dict.fromkeys(spread))
    calibration = Calibration(scale=scale, offset_ms=offset, nets=len(nets), figures=figures, references=references)
    return dataclasses.replace(table, header=dataclasses.replace(table.header, calibration=calibration))
