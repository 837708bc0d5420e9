"""Measure the energy of operators and whole nets, and build a table of energy from both.

An energy is that of a block of runs back to back, divided by their number. It is gross: idle power is not subtracted.
While an inference runs, the device is awake for its sake, so a slower net costs more of that power too; and a
difference of two noisy figures would be negative for the smallest operators. All else that runs on the device meanwhile
is counted too, so a machine that is busy is refused. Blocks of all operators take turns in rounds of shuffled order,
as latencies do (`sampling.py`); the estimate is a low quantile, as what disturbs a block mostly adds to it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import Backend, Runnable, SharedBackend, get_backend
from ..errors import BackendError, EnergyError
from ..op_spec import OpSpec
from ..processor import SILENCE, share_of_others
from ..tables.energy import EnergyEntry, EnergyHeader, EnergyTable
from . import statistics
from .calibration import above_overhead
from .energy_meters import EnergyMeter, meter_of
from .locks import measuring_lock, table_lock
from .nets import open_backend, prepare_all
from .sampling import Measurement, PartialSamples, Plan, interleaved
from .table import OVERHEAD, measured_chains

TABLE_PLAN = Plan(rounds=20, minimum_rounds=5, seconds=240.0, extra_rounds=0)
NET_PLAN = Plan(rounds=20, minimum_rounds=10, seconds=10.0, extra_rounds=0)
BUSY_CORES = 0.5
"""From so many cores at other work on, their energy is too large a part of what is counted."""
_WARM = 0.1
"""Share of a block that runs before it and does not count: caches are filled, and clocks are up."""


def check_energy(**chosen: Any) -> None:
    """Check that the energy of a backend's device can be read on this machine.

    Args:
        **chosen: What `get_backend` makes the backend of.

    Raises:
        EnergyError: It cannot.
        BackendError: There is no such backend.
    """
    with get_backend(**chosen) as backend:
        meter_of(backend).check()


def energy_of(
    chain: Sequence[OpSpec],
    *,
    backend: Backend,
    file: Path | None = None,
    batch: int = 1,
    threads: int = 1,
    plan: Plan | None = None,
) -> float:
    """Return the energy of one inference of a whole net now, in mJ, gross.

    Args:
        chain: Its operators in execution order.
        backend: What runs it.
        file: Its model file, for a backend that runs such files; it takes the place of `chain`.
        batch: Images per inference.
        threads: Threads that one inference may use.
        plan: How long to measure.

    Raises:
        EnergyError: The energy cannot be read, or other work keeps the machine busy.
    """
    plan = plan or NET_PLAN
    meter = meter_of(backend)
    check_quiet()
    with measuring_lock():
        if file is None:
            runnable = backend.prepare(chain, batch=batch, threads=threads)
        elif isinstance(backend, SharedBackend):
            shape = chain[0].input_shape
            runnable = backend.prepare_model_file(file, batch=batch, threads=threads, input_shape=shape)
        else:
            raise BackendError(f"backend {backend.name!r} cannot run a model file; use 'onnxruntime'")
        samples = interleaved({"net": _joules_of(backend, runnable, meter)}, plan=plan, repeats=1)
    return Measurement.of(samples["net"], quantile=plan.quantile).ms


def build_energy_table(
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
) -> EnergyTable:
    """Measure the energy of every distinct operator and of some whole nets, and calibrate the sum on the nets.

    A net takes `scale * (overhead + sum) + offset` mJ. The arguments are those of `hardware.measuring.table`'s
    `build_table`.

    Raises:
        EnergyError: The energy cannot be read, other work keeps the machine busy, or an operator took far
            less than the empty graph.
        TableError: The nets are too few or have operators beside `ops`, or another process is building `out`.
        BackendError: The backend is unknown, not installed, or has no such device, number format or option.
    """
    plan = plan or TABLE_PLAN
    distinct, whole, chains = measured_chains(ops, nets)
    first = next(iter(distinct.values()))
    unshared = table_lock(out, wait=False) if out is not None else contextlib.nullcontext()
    with unshared, open_backend(backend, place, dtype=dtype, options=options) as opened:
        meter = meter_of(opened)
        meter.check()
        check_quiet()
        header = EnergyHeader(
            device=opened.device(),
            meter=meter.name,
            backend=opened.name,
            place=opened.place,
            threads=threads,
            batch=batch,
            dtype=opened.dtype,
            input_size=input_size,
            block_seconds=meter.block_seconds,
            options=opened.of_options(opened.options),
            space=space,
            versions=opened.versions(),
            quantile=plan.quantile,
        )
        partial = None if out is None else PartialSamples(Path(f"{out}.partial"), dataclasses.asdict(header))
        with measuring_lock():
            runnables = prepare_all(
                opened, chains, batch=batch, threads=threads, input_shape=first.input_shape, progress=progress
            )
            timers = {name: _joules_of(opened, runnable, meter) for name, runnable in runnables.items()}
            samples = interleaved(timers, plan=plan, seed=seed, repeats=1, progress=progress, partial=partial)
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    figures = {name: Measurement.of(values, quantile=plan.quantile) for name, values in samples.items()}
    header = dataclasses.replace(
        header,
        overhead_mj=figures[OVERHEAD].ms,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        repeats=min(len(values) for values in samples.values()),
        load_average=load,
    )
    table = EnergyTable(header, {key: _entry(key, figures[f"op {key}"], header.overhead_mj) for key in distinct})
    if whole:
        table = _calibrated(table, whole, [figures[name].ms for name in chains if name.startswith("net ")])
    if out is not None:
        table.save(out)
        Path(f"{out}.partial").unlink(missing_ok=True)
    return table


def check_quiet() -> None:
    """Check that this machine is quiet, as a device counts the energy of all that runs on it.

    Raises:
        EnergyError: Other work keeps more than `BUSY_CORES` busy.
    """
    if os.environ.get(SILENCE):
        return
    busy = share_of_others() * (os.cpu_count() or 1)
    if busy > BUSY_CORES:
        raise EnergyError(
            f"other work keeps {busy:.1f} cores of this machine busy, whose energy would count as the network's; end "
            "that work and start again"
        )


def _joules_of(backend: Backend, runnable: Runnable, meter: EnergyMeter) -> Callable[[int], float]:
    """Return what takes one sample: a block of runs, and the joules of one of them."""

    def joules(_: int) -> float:
        backend.run_for(runnable, _WARM * meter.block_seconds)
        then = meter.read()
        runs = backend.run_for(runnable, meter.block_seconds)
        return meter.between(then, meter.read()) / runs

    return joules


def _entry(key: str, figure: Measurement, overhead_mj: float) -> EnergyEntry:
    # of a measurement of energies, all figures are in mJ
    mj = above_overhead(key, figure.ms, overhead_mj, spread=figure.spread, unit="mJ", error=EnergyError)
    return EnergyEntry(mj, round(figure.spread, 4), len(figure.samples))


def _calibrated(table: EnergyTable, nets: Sequence[Sequence[OpSpec]], measured_mj: Sequence[float]) -> EnergyTable:
    """Fit `scale` and `offset` to whole nets, by the relative error."""
    raw = [table.raw_mj(net) for net in nets]
    scale, offset = statistics.affine_fit(raw, measured_mj)
    predicted = scale * np.asarray(raw) + offset
    mape = float(np.mean(np.abs(predicted / np.asarray(measured_mj) - 1)))
    header = dataclasses.replace(table.header, scale=scale, offset_mj=offset, nets=len(nets), mape=mape)
    return dataclasses.replace(table, header=header)
