"""Time whole nets and model files, and correct for the drift of the machine since its table was built."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..backends import Backend, Runnable, SharedBackend, get_backend
from ..errors import BackendError, TableError
from ..op_spec import OpSpec
from ..progress import progress_bar
from ..reading import shown
from ..tables.plausibility import check_agreement
from ..tables.table import LatencyTable
from .locks import measuring_lock
from .sampling import Measurement, PartialSamples, Plan, interleaved, timers_of

REFERENCES = 3
"""Nets that are kept with a table, and timed again with every later measurement."""


def measure(
    chains: Mapping[str, Sequence[OpSpec]],
    *,
    backend: str | Backend = "onnxruntime",
    batch: int = 1,
    threads: int = 1,
    rounds: int | None = None,
    seconds: float | None = None,
    dtype: str | None = None,
    options: Mapping[str, Any] | None = None,
    plan: Plan | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Measurement]:
    """Time chains of operators, overhead included.

    Args:
        chains: Name to operators in execution order.
        backend: A backend or its name.
        batch: Images per inference.
        threads: Threads that one inference may use.
        rounds: Rounds; None takes the plan's.
        seconds: Time limit; None takes the plan's.
        dtype: Number format; None takes the backend's own choice.
        options: What else is chosen of the backend's options.
        plan: How long to measure otherwise.
        seed: Seed of the rounds' orders.
        progress: Whether to show a progress bar.

    Returns:
        Name to measurement.
    """
    plan = plan or Plan()
    if rounds is not None:
        plan = dataclasses.replace(plan, rounds=rounds, minimum_rounds=min(rounds, plan.minimum_rounds))
    if seconds is not None:
        plan = dataclasses.replace(plan, seconds=seconds)
    # locked while preparing too: compiling graphs would disturb whoever measures
    with open_backend(backend, dtype=dtype, options=options) as opened, measuring_lock():
        runnables = prepare_all(opened, chains, batch=batch, threads=threads, progress=progress)
        samples = sample(opened, runnables, plan=plan, seed=seed, progress=progress)
    return {name: Measurement.of(values, quantile=plan.quantile) for name, values in samples.items()}


def measure_model_file(path: str | Path, **options: Any) -> Measurement:
    """Time one model file; see `measure_model_files`."""
    return measure_model_files([path], **options)[0]


def measure_model_files(
    paths: Sequence[str | Path],
    *,
    input_shape: tuple[int, ...] | None = None,
    batch: int = 1,
    threads: int = 1,
    backend: str | Backend = "onnxruntime",
    table: LatencyTable | None = None,
    plan: Plan | None = None,
    progress: bool = False,
) -> list[Measurement]:
    """Time model files as they are deployed, side by side, by the loop that times operators.

    With a table, its reference nets are timed in the same rounds: the ratio of their latencies now and then is the
    measurements' `drift`, and `settled_ms` is to be compared with the table's predictions.

    Args:
        paths: The model files, each once.
        input_shape: `(C, H, W)`; None takes it from the file.
        batch: Images per inference.
        threads: Threads that one inference may use.
        backend: A backend or its name; it must be able to load model files.
        table: The table that predicted the nets, measured with the same backend, threads and batch.
        plan: How long to measure.
        progress: Whether to show a progress bar.

    Raises:
        BackendError: The backend cannot load model files, or not these.
        TableError: The table was measured in another setting.
    """
    plan = plan or Plan(rounds=2000, seconds=4.0 * len(paths))
    with open_backend(backend, table=table) as opened, measuring_lock():
        if not isinstance(opened, SharedBackend):
            raise BackendError(f"backend {opened.name!r} cannot time a model file; use 'onnxruntime'")
        runnables = {
            str(path): opened.prepare_model_file(path, batch=batch, threads=threads, input_shape=input_shape)
            for path in paths
        }
        references = _references(table, opened, batch=batch, threads=threads) if table else {}
        runnables |= {name: r for name, (_, r) in references.items()}
        samples = sample(opened, runnables, plan=plan, seed=0, progress=progress)
    drift = _drift(references, samples, plan)
    figures = [Measurement.of(samples[str(path)], quantile=plan.quantile) for path in paths]
    return [dataclasses.replace(figure, drift=drift) for figure in figures]


def _references(
    table: LatencyTable, backend: Backend, *, batch: int, threads: int
) -> dict[str, tuple[float, Runnable]]:
    """Prepare a table's reference nets; return each with its latency then.

    Raises:
        TableError: The table was measured in another setting, so that its latencies are no reference here.
    """
    header = table.header
    compared: tuple[tuple[str, Any, Any], ...] = (
        ("backend", header.backend, backend.name),
        ("place", header.place or backend.place, backend.place),
        ("dtype", header.dtype, backend.dtype),
        ("options", backend.of_options(header.options), backend.of_options(backend.options)),
        ("batch", header.batch, batch),
        ("threads", header.threads, threads),
    )
    for name, there, here in compared:
        if there != here:
            raise TableError(
                f"the latency table has {name} {shown(there)}, but this measurement {here!r}; use the table's"
            )
    nets = header.calibration.references if header.calibration else ()
    prepared = {}
    for index, net in enumerate(nets):
        chain = [OpSpec.from_key(key) for key in net.ops]
        prepared[f"reference {index}"] = (net.ms, backend.prepare(chain, batch=batch, threads=threads))
    return prepared


def _drift(
    references: Mapping[str, tuple[float, Runnable]], samples: Mapping[str, Sequence[float]], plan: Plan
) -> float:
    """Return how much slower the machine is than then: the median over the reference nets, or 1 where there are none.

    A net that is timed long after a table was built differs from it through the machine alone (its clocks, its
    temperature, its neighbours), often by more than the table's own error.
    """
    ratios = [Measurement.of(samples[name], quantile=plan.quantile).ms / ms for name, (ms, _) in references.items()]
    check_agreement(ratios, "the latency table")
    return float(np.median(ratios)) if ratios else 1.0


def measure_nets(
    nets: Sequence[Sequence[OpSpec]],
    *,
    backend: str | Backend = "onnxruntime",
    batch: int = 1,
    threads: int = 1,
    table: LatencyTable | None = None,
    plan: Plan | None = None,
    group: int = 32,
    seed: int = 0,
    progress: bool = True,
) -> list[Measurement]:
    """Time many whole nets, a group at a time, each with the drift of the machine while its group was timed.

    Args:
        nets: Whole nets in execution order.
        backend: A backend or its name.
        batch: Images per inference.
        threads: Threads that one inference may use.
        table: Its reference nets are timed with every group, and `drift` is relative to the time of its building;
            without a table, three of the nets play that part and `drift` is relative to the first group.
        plan: How long to measure each group.
        group: Nets that are prepared at once.
        seed: Seed of the rounds' orders.
        progress: Whether to show a progress bar.

    Returns:
        A measurement for each net; `settled_ms` is its latency in the state of the machine that `drift` is relative to.
    """
    plan = plan or Plan(rounds=100, minimum_rounds=15, seconds=8.0, extra_rounds=0)
    figures: list[Measurement] = []
    anchors = {f"anchor {i}": tuple(net) for i, net in enumerate(nets[:REFERENCES])} if table is None else {}
    then: dict[str, float] = {}
    with open_backend(backend, table=table) as opened, measuring_lock():
        for first in range(0, len(nets), group):
            part = {f"net {i}": tuple(net) for i, net in enumerate(nets[first : first + group])}
            references = _references(table, opened, batch=batch, threads=threads) if table else {}
            runnables = prepare_all(opened, {**part, **anchors}, batch=batch, threads=threads, progress=progress)
            runnables |= {name: runnable for name, (_, runnable) in references.items()}
            samples = sample(opened, runnables, plan=plan, seed=seed + first, progress=progress)
            now = {name: Measurement.of(values, quantile=plan.quantile) for name, values in samples.items()}
            if table is None:
                # the first group's times are the state of the machine that all are brought to
                then = then or {name: now[name].ms for name in anchors}
                references = {name: (then[name], runnables[name]) for name in anchors}
            drift = _drift(references, samples, plan)
            figures += [dataclasses.replace(now[name], drift=drift) for name in part]
    return figures


@contextmanager
def open_backend(
    backend: str | Backend,
    place: str | None = None,
    *,
    dtype: str | None = None,
    options: Mapping[str, Any] | None = None,
    table: LatencyTable | None = None,
) -> Iterator[Backend]:
    """Yield a backend that is closed at the end where its name was given, and left to the caller otherwise.

    Args:
        backend: A backend or its name.
        place: Which of its devices measures; None takes the one that a table was measured on, where one is given.
        dtype: Number format; None likewise.
        options: What else is chosen of its options; None likewise.
        table: That table.
    """
    if isinstance(backend, Backend):
        if place:
            backend.use(place)
        if dtype is not None or options:
            backend.choose(dtype=dtype, options=options)
        yield backend
        return
    chosen = {} if table is None else {**table.header.chosen, "name": backend}
    given = {"name": backend, "place": place, "dtype": dtype, "options": options}
    with get_backend(**{**chosen, **{name: value for name, value in given.items() if value}}) as opened:
        yield opened


def prepare_all(
    backend: Backend,
    chains: Mapping[str, Sequence[OpSpec]],
    *,
    batch: int,
    threads: int,
    progress: bool,
    input_shape: tuple[int, ...] | None = None,
) -> dict[str, Runnable]:
    """Prepare all chains; `input_shape` is that of an empty one."""
    runnables = {}
    with progress_bar(progress, f"preparing {len(chains)} graphs") as advance:
        for name, chain in chains.items():
            shape = None if chain else input_shape
            runnables[name] = backend.prepare(chain, batch=batch, threads=threads, input_shape=shape)
            advance(len(runnables) / len(chains))
    return runnables


def sample(
    backend: Backend,
    runnables: Mapping[str, Runnable],
    *,
    plan: Plan,
    seed: int,
    progress: bool,
    partial: PartialSamples | None = None,
) -> dict[str, list[float]]:
    """Take samples in ms of everything prepared; see `interleaved`."""
    # an operator is short enough for three trials, and one disturbed trial would make all its samples too short
    return interleaved(
        timers_of(backend, runnables), plan=plan, seed=seed, trials=3, progress=progress, partial=partial
    )
