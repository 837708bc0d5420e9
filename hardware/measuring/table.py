"""Measuring operators and whole nets, and building a calibrated latency table from both.

Everything is timed in the same interleaved rounds: a round takes one sample of each operator and each net, in a
shuffled order of its own, so that a busy spell of the machine falls on all of them alike. A figure is a low quantile
of its samples. The session's overhead (an empty graph on an input of the operator's shape) is subtracted from every
operator and added once per net (METHOD.md section 3, DESIGN.md section 4).
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..backends import Backend
from ..errors import TableError
from ..op_spec import IDENTITY, OpSpec
from ..tables.plausibility import check_units
from ..tables.records import TableHeader
from ..tables.table import LatencyTable
from .calibration import entry_alone, in_context
from .locks import measuring_lock, table_lock
from .nets import _opened, _prepare
from .sampling import Measurement, Plan, _Partial, _sample

MINIMUM_NETS = 8


_OVERHEAD = "overhead"


def build_table(
    ops: Iterable[OpSpec],
    nets: Sequence[Sequence[OpSpec]] = (),
    *,
    backend: str | Backend = "onnxruntime",
    input_size: int,
    batch: int = 1,
    threads: int = 1,
    place: str | None = None,
    space: str = "",
    out: str | Path | None = None,
    plan: Plan | None = None,
    seed: int = 0,
    progress: bool = True,
) -> LatencyTable:
    """Measures every distinct operator and some whole nets, and calibrates the sum on the nets.

    Args:
        ops: Operators, repeated ones counted once and `identity` left out.
        nets: Whole nets in execution order, 8 or more; none gives an uncalibrated table.
        backend: A backend or its name.
        input_size: Side of the network's input image.
        batch: Images per inference.
        threads: Threads that one inference may use.
        place: Which of the backend's devices measures (`cpu`, `cuda:1`, ...); None takes the backend's own choice.
        space: The search space in words.
        out: Where to save the table; what is measured meanwhile is kept in `<out>.partial` and taken up again by
            a build with the same settings. None saves nothing.
        plan: How long to measure.
        seed: Seed of the rounds' orders.
        progress: Whether to show a progress bar.
    """
    plan = plan or Plan(rounds=300, seconds=40.0)
    distinct = {op.key: op for op in ops if op.kind != IDENTITY}
    whole = [tuple(op for op in net if op.kind != IDENTITY) for net in nets]
    if not distinct:
        raise TableError("there is no operator to measure; give the operators of a space.")
    if 0 < len(whole) < MINIMUM_NETS:
        raise TableError(f"{len(whole)} whole nets are too few to calibrate on; give {MINIMUM_NETS} or more.")
    unmeasured = sorted({op.key for net in whole for op in net} - set(distinct))
    if unmeasured:
        raise TableError(f"the nets use operators that are not to be measured, first {unmeasured[0]}; add them.")
    chains: dict[str, tuple[OpSpec, ...]] = {_OVERHEAD: ()}
    chains |= {f"op {key}": (op,) for key, op in distinct.items()}
    chains |= {f"net {i} {_digest(net)}": net for i, net in enumerate(whole)}
    first = next(iter(distinct.values()))
    unshared = table_lock(out, wait=False) if out is not None else contextlib.nullcontext()
    with unshared, _opened(backend, place) as device, measuring_lock():
        name, versions = device.device(), device.versions()
        settings = {
            "backend": device.name,
            "device": name,
            "place": device.place,
            "versions": versions,
            "batch": batch,
            "threads": threads,
            "input_size": input_size,
            "sample_ms": plan.sample_ms,
        }
        partial = _Partial(Path(f"{out}.partial"), settings) if out is not None else None
        runnables = _prepare(
            device, chains, batch=batch, threads=threads, input_shape=first.input_shape, progress=progress
        )
        samples = _sample(device, runnables, plan=plan, seed=seed, progress=progress, partial=partial)
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
        figures = {name: Measurement.of(values, quantile=plan.quantile) for name, values in samples.items()}
        overhead = round(figures[_OVERHEAD].ms, 7)
        entries = {}
        for key in distinct:
            figure = figures[f"op {key}"]
            entries[key] = entry_alone(key, figure.ms, overhead, spread=figure.spread, count=len(figure.samples))
        header = TableHeader(
            device=name,
            backend=device.name,
            threads=threads,
            batch=batch,
            dtype=device.dtype,
            input_size=input_size,
            space=space,
            place=device.place,
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            versions=versions,
            repeats=min(len(values) for values in samples.values()),
            quantile=plan.quantile,
            load_average=load,
            overhead_ms=overhead,
        )
        table = LatencyTable(header, entries)
        check_units(table, f"what backend {device.name!r} measured")
        if whole:
            measured = [figures[name].ms for name in chains if name.startswith("net ")]
            table = in_context(table, whole, measured)
            check_units(table, f"what backend {device.name!r} measured")
        if out is not None:
            table.save(out)
            Path(f"{out}.partial").unlink(missing_ok=True)
    return table


def _digest(chain: Sequence[OpSpec]) -> str:
    import hashlib

    return hashlib.sha256("\n".join(op.key for op in chain).encode()).hexdigest()[:12]
