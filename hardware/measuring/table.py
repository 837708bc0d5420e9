"""Measure operators and whole nets, and build a calibrated latency table from both.

Operators and nets take part in the same interleaved rounds (`sampling.py`). What a call of the runtime costs without
any operator (an empty graph) is subtracted from every operator and added once per net: the sum of a few dozen operators
would count it a few dozen times. The sum is still 4 to 12 % under the whole net (ONNX Runtime on x86), as an operator
alone finds all that it needs in the caches; the nets timed along say by how much (`calibration.py`).
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..backends import Backend
from ..errors import TableError
from ..op_spec import OpSpec, executed
from ..tables.plausibility import check_units
from ..tables.records import TableHeader
from ..tables.table import LatencyTable
from .calibration import entry_alone, in_context
from .locks import measuring_lock, table_lock
from .nets import open_backend, prepare_all, sample
from .sampling import Measurement, PartialSamples, Plan

MINIMUM_NETS = 8
"""Nets that a calibration of two numbers and the context's two takes at the least."""

OVERHEAD = "overhead"


def build_table(
    ops: Iterable[OpSpec],
    nets: Sequence[Sequence[OpSpec]] = (),
    *,
    backend: str | Backend = "onnxruntime",
    input_size: int,
    batch: int = 1,
    threads: int = 1,
    place: str | None = None,
    dtype: str | None = None,
    options: Mapping[str, Any] | None = None,
    space: str = "",
    out: str | Path | None = None,
    plan: Plan | None = None,
    seed: int = 0,
    progress: bool = True,
) -> LatencyTable:
    """Measure every distinct operator and some whole nets, and calibrate the sum on the nets.

    Args:
        ops: Operators, repeated ones counted once and `identity` left out.
        nets: Whole nets in execution order, 8 or more; none gives an uncalibrated table.
        backend: A backend or its name.
        input_size: Side of the network's input image.
        batch: Images per inference.
        threads: Threads that one inference may use.
        place: Which of the backend's devices measures (`cpu`, `cuda:1`, ...); None takes the backend's own choice.
        dtype: Number format (`float32`, `int8`, ...); None takes the backend's own choice.
        options: What else is chosen of the backend's options; the header keeps all of them.
        space: The search space in words.
        out: Where to save the table; what is measured meanwhile is kept in `<out>.partial` and taken up again by
            a build with the same settings. None saves nothing.
        plan: How long to measure.
        seed: Seed of the rounds' orders.
        progress: Whether to show a progress bar.

    Raises:
        TableError: The nets are too few or have operators beside `ops`, another process is building `out`, or what was
            measured is impossible.
        BackendError: The backend is unknown, not installed, or has no such device, number format or option.
    """
    plan = plan or Plan(rounds=300, seconds=40.0)
    distinct, whole, chains = measured_chains(ops, nets)
    first = next(iter(distinct.values()))
    # two builds of one table would write one partial file; the second is refused before it measures anything
    unshared = table_lock(out, wait=False) if out is not None else contextlib.nullcontext()
    with unshared, open_backend(backend, place, dtype=dtype, options=options) as opened, measuring_lock():
        device, versions = opened.device(), opened.versions()
        settings = {
            "backend": opened.name,
            "device": device,
            "place": opened.place,
            "dtype": opened.dtype,
            "options": opened.of_options(opened.options),
            "versions": versions,
            "batch": batch,
            "threads": threads,
            "input_size": input_size,
            "sample_ms": plan.sample_ms,
        }
        partial = PartialSamples(Path(f"{out}.partial"), settings) if out is not None else None
        runnables = prepare_all(
            opened, chains, batch=batch, threads=threads, input_shape=first.input_shape, progress=progress
        )
        samples = sample(opened, runnables, plan=plan, seed=seed, progress=progress, partial=partial)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        figures = {name: Measurement.of(values, quantile=plan.quantile) for name, values in samples.items()}
        overhead = round(figures[OVERHEAD].ms, 7)
        entries = {}
        for key in distinct:
            figure = figures[f"op {key}"]
            entries[key] = entry_alone(key, figure.ms, overhead, spread=figure.spread, count=len(figure.samples))
        header = TableHeader(
            device=device,
            backend=opened.name,
            threads=threads,
            batch=batch,
            dtype=opened.dtype,
            input_size=input_size,
            space=space,
            place=opened.place,
            options=opened.of_options(opened.options),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            versions=versions,
            repeats=min(len(values) for values in samples.values()),
            quantile=plan.quantile,
            load_average=load,
            overhead_ms=overhead,
        )
        table = LatencyTable(header, entries)
        # before the calibration too: a backend that gives seconds fits its own nets as well as any other
        check_units(table, f"what backend {opened.name!r} measured")
        if whole:
            measured = [figures[name].ms for name in chains if name.startswith("net ")]
            table = in_context(table, whole, measured)
            check_units(table, f"what backend {opened.name!r} measured")
        if out is not None:
            table.save(out)
            Path(f"{out}.partial").unlink(missing_ok=True)
    return table


def measured_chains(
    ops: Iterable[OpSpec], nets: Sequence[Sequence[OpSpec]]
) -> tuple[dict[str, OpSpec], list[tuple[OpSpec, ...]], dict[str, tuple[OpSpec, ...]]]:
    """Return the distinct operators, the nets as they are executed, and all that a table measures by name.

    That is `OVERHEAD` (the empty graph), `op KEY` and, in the order of the nets, `net NUMBER DIGEST`: each name says
    all that is measured, as the samples of an interrupted build are found again by name.

    Args:
        ops: Operators, repeated ones counted once and `identity` left out.
        nets: Whole nets in execution order.

    Raises:
        TableError: The nets are too few or have operators beside `ops`.
    """
    distinct = distinct_operators(ops)
    whole = [executed(net) for net in nets]
    if whole:
        check_calibration_nets(whole)
    check_measured(whole, distinct)
    chains: dict[str, tuple[OpSpec, ...]] = {OVERHEAD: ()}
    chains |= {f"op {key}": (op,) for key, op in distinct.items()}
    chains |= {f"net {i} {_digest(net)}": net for i, net in enumerate(whole)}
    return distinct, whole, chains


def distinct_operators(ops: Iterable[OpSpec]) -> dict[str, OpSpec]:
    """Return key to operator, repeated ones once and `identity` left out.

    Raises:
        TableError: No operator is left.
    """
    distinct = {op.key: op for op in executed(ops)}
    if not distinct:
        raise TableError("there is no operator to measure; give the operators of a space")
    return distinct


def check_calibration_nets(nets: Sequence[Sequence[OpSpec]]) -> None:
    """Check that a table can be calibrated on so many nets.

    Raises:
        TableError: They are too few.
    """
    if len(nets) < MINIMUM_NETS:
        raise TableError(f"{len(nets)} whole nets are too few to calibrate on; give {MINIMUM_NETS} or more")


def check_measured(
    nets: Iterable[Sequence[OpSpec]], measured: Collection[str], *, lack: str = "are not to be measured"
) -> None:
    """Check that nets have no operators beside those with the keys `measured`.

    Args:
        nets: Whole nets.
        measured: Keys of the operators that there are.
        lack: What the error says of others.

    Raises:
        TableError: They have.
    """
    others = sorted({op.key for net in nets for op in net} - set(measured))
    if others:
        raise TableError(f"the nets use operators that {lack}, first {others[0]}; add them")


def _digest(chain: Sequence[OpSpec]) -> str:
    """Return a short text that differs between nets: a partial file of other nets must not be taken for this one's."""
    return hashlib.sha256("\n".join(op.key for op in chain).encode()).hexdigest()[:12]
