"""Measuring operators and whole nets, and building a calibrated latency table from both.

Everything is timed in the same interleaved rounds: a round takes one sample of each operator and each net, in a
shuffled order of its own, so that a busy spell of the machine falls on all of them alike. A figure is a low quantile
of its samples. The session's overhead (an empty graph on an input of the operator's shape) is subtracted from every
operator and added once per net (METHOD.md section 3, DESIGN.md section 4).
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hardware import primitives, statistics
from hardware.backends import Backend, Runnable, SharedBackend, get_backend
from hardware.errors import BackendError, TableError
from hardware.files import write_atomically
from hardware.locks import load_or_build, measuring_lock, table_lock
from hardware.op_spec import IDENTITY, OpSpec
from hardware.table import Calibration, LatencyEntry, LatencyTable, Reference, TableHeader
from hardware.units import check_agreement, check_units

__all__ = [
    "Measurement",
    "build_table",
    "load_or_build",
    "measure",
    "measure_model_file",
    "measure_nets",
    "measuring_lock",
    "table_lock",
]

QUANTILE = 0.05
MINIMUM_NETS = 8
REFERENCES = 3
PARTIAL_SECONDS = 5.0
_OVERHEAD = "overhead"


@dataclass(frozen=True)
class Measurement:
    """One operator's or net's time.

    Attributes:
        ms: The estimate: the low quantile of the samples, in ms.
        median_ms: Their median.
        p20_ms: Their 20th percentile.
        spread: `median / low quantile - 1`.
        samples: All samples in ms, in the order of the rounds.
        drift: How much slower the machine was than when a table was built; 1 where no table was given.
    """

    ms: float
    median_ms: float
    p20_ms: float
    spread: float
    samples: tuple[float, ...]
    drift: float = 1.0

    @property
    def settled_ms(self) -> float:
        """What `ms` would have been in the state of the machine in which the table was built: `ms / drift`."""
        return self.ms / self.drift

    @classmethod
    def of(cls, samples: Sequence[float], *, quantile: float = QUANTILE) -> Measurement:
        """Summarises samples in ms."""
        low, p20, median = (float(v) for v in np.quantile(samples, [quantile, 0.2, 0.5]))
        return cls(low, median, p20, median / low - 1.0 if low > 0 else 0.0, tuple(samples))


@dataclass(frozen=True)
class Plan:
    """How long to measure.

    Attributes:
        rounds: Most rounds.
        minimum_rounds: Rounds before `seconds` may end the measurement.
        seconds: Time after which no further round starts.
        sample_ms: A sample repeats a short operator until it lasts about this long.
        quantile: Which quantile of the samples is the estimate.
        noisy: Operators whose spread exceeds this get further rounds.
        extra_rounds: Most further rounds for noisy operators.
    """

    rounds: int = 200
    minimum_rounds: int = 20
    seconds: float = 30.0
    sample_ms: float = 0.5
    quantile: float = QUANTILE
    noisy: float = 0.15
    extra_rounds: int = 50


def measure(
    chains: Mapping[str, Sequence[OpSpec]],
    *,
    backend: str | Backend = "onnxruntime",
    batch: int = 1,
    threads: int = 1,
    rounds: int | None = None,
    seconds: float | None = None,
    plan: Plan | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Measurement]:
    """Times chains of operators, overhead included.

    Args:
        chains: Name to operators in execution order.
        backend: A backend or its name.
        batch: Images per inference.
        threads: Threads that one inference may use.
        rounds: Rounds; None takes the plan's.
        seconds: Time limit; None takes the plan's.
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
    with _opened(backend) as device, measuring_lock():
        runnables = _prepare(device, chains, batch=batch, threads=threads, progress=progress)
        samples = _sample(device, runnables, plan=plan, seed=seed, progress=progress)
    return {name: Measurement.of(values, quantile=plan.quantile) for name, values in samples.items()}


def measure_model_file(
    path: str | Path,
    *,
    input_shape: tuple[int, ...] | None = None,
    batch: int = 1,
    threads: int = 1,
    backend: str | Backend = "onnxruntime",
    table: LatencyTable | None = None,
    plan: Plan | None = None,
    progress: bool = False,
) -> Measurement:
    """Times a model file as it is deployed, by the loop that times operators.

    With a table, its reference nets are timed in the same rounds: the ratio of their latencies now and then is the
    measurement's `drift`, and `settled_ms` is to be compared with the table's predictions.

    Args:
        path: The model file.
        input_shape: `(C, H, W)`; None takes it from the file.
        batch: Images per inference.
        threads: Threads that one inference may use.
        backend: A backend or its name; it must be able to load model files.
        table: The table that predicted the net, measured with the same backend, threads and batch.
        plan: How long to measure.
        progress: Whether to show a progress bar.
    """
    plan = plan or Plan(rounds=2000, seconds=4.0)
    with _opened(backend, table=table) as device, measuring_lock():
        if not isinstance(device, SharedBackend):
            raise BackendError(f"backend {device.name!r} cannot time a model file; use 'onnxruntime'.")
        runnable = device.prepare_model_file(path, batch=batch, threads=threads, input_shape=input_shape)
        references = _references(table, device, batch=batch, threads=threads) if table else {}
        runnables = {str(path): runnable, **{name: r for name, (_, r) in references.items()}}
        samples = _sample(device, runnables, plan=plan, seed=0, progress=progress)
    figure = Measurement.of(samples[str(path)], quantile=plan.quantile)
    return dataclasses.replace(figure, drift=_drift(references, samples, plan))


def _references(table: LatencyTable, device: Backend, *, batch: int, threads: int) -> dict[str, tuple[float, Runnable]]:
    """A table's reference nets: their latency then, and the prepared net."""
    header = table.header
    for name, there, here in (
        ("backend", header.backend, device.name),
        ("place", header.place or device.place, device.place),
        ("batch", header.batch, batch),
        ("threads", header.threads, threads),
    ):
        if there != here:
            raise TableError(f"the latency table has {name} {there!r}, but this measurement {here!r}; use the table's.")
    nets = header.calibration.references if header.calibration else ()
    prepared = {}
    for index, net in enumerate(nets):
        chain = [OpSpec.from_key(key) for key in net.ops]
        prepared[f"reference {index}"] = (net.ms, device.prepare(chain, batch=batch, threads=threads))
    return prepared


def _drift(
    references: Mapping[str, tuple[float, Runnable]], samples: Mapping[str, Sequence[float]], plan: Plan
) -> float:
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
    """Times many whole nets, a group at a time, each in the state of the machine in which the first group was timed.

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
    """
    plan = plan or Plan(rounds=100, minimum_rounds=15, seconds=8.0, extra_rounds=0)
    figures: list[Measurement] = []
    anchors = {f"anchor {i}": tuple(net) for i, net in enumerate(nets[:REFERENCES])} if table is None else {}
    then: dict[str, float] = {}
    with _opened(backend, table=table) as device, measuring_lock():
        for first in range(0, len(nets), group):
            part = {f"net {i}": tuple(net) for i, net in enumerate(nets[first : first + group])}
            references = _references(table, device, batch=batch, threads=threads) if table else {}
            runnables = _prepare(device, {**part, **anchors}, batch=batch, threads=threads, progress=progress)
            runnables |= {name: runnable for name, (_, runnable) in references.items()}
            samples = _sample(device, runnables, plan=plan, seed=seed + first, progress=progress)
            now = {name: Measurement.of(values, quantile=plan.quantile) for name, values in samples.items()}
            if table is None:
                then = then or {name: now[name].ms for name in anchors}
                references = {name: (then[name], runnables[name]) for name in anchors}
            drift = _drift(references, samples, plan)
            figures += [dataclasses.replace(now[name], drift=drift) for name in part]
    return figures


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


def entry_alone(key: str, ms: float, overhead_ms: float, *, spread: float, count: int) -> LatencyEntry:
    """The entry of an operator measured alone, net of the session's overhead.

    Raises:
        TableError: The operator took less than the empty graph.
    """
    if ms < overhead_ms:
        raise TableError(
            f"operator {key} took {ms:.6f} ms, less than the empty graph's {overhead_ms:.6f} ms; "
            "measure on a quieter machine or with more rounds."
        )
    return LatencyEntry(round(ms - overhead_ms, 7), round(spread, 4), count)


def in_context(table: LatencyTable, nets: Sequence[Sequence[OpSpec]], measured_ms: Sequence[float]) -> LatencyTable:
    """The table of operators measured alone, as they behave inside a net, and calibrated.

    Every entry becomes `ms + per_operator_ms + per_mparam_ms * params / 1e6`, so that a net still takes
    `scale * (overhead + sum) + offset`; see `hardware.statistics.context_fit`.

    Args:
        table: The table of operators alone.
        nets: Whole nets in execution order.
        measured_ms: Their measured latencies.
    """
    raw = [table.raw_ms(net) for net in nets]
    weights = {op.key: primitives.params(op) for net in nets for op in net}
    weights |= {key: primitives.params(OpSpec.from_key(key)) for key in table.entries if key not in weights}
    fit = statistics.context_fit(
        raw,
        [len(net) for net in nets],
        [sum(weights[op.key] for op in net) for net in nets],
        measured_ms,
        least_ms=min(entry.ms for entry in table.entries.values()),
    )
    per_operator, per_param = fit.per_operator_ms / fit.scale, fit.per_param_ms / fit.scale
    entries = {
        key: dataclasses.replace(entry, ms=round(entry.ms + per_operator + per_param * weights[key], 7))
        for key, entry in table.entries.items()
    }
    context = {"per_operator_ms": per_operator, "per_mparam_ms": 1e6 * per_param}
    settled = LatencyTable(dataclasses.replace(table.header, context=context), entries)
    return _with_calibration(settled, nets, measured_ms, fit.scale, fit.offset_ms, raw)


def alone_ms(table: LatencyTable, ops: Iterable[OpSpec]) -> float:
    """Overhead and sum of a net's operators as they were measured alone: `table.raw_ms` without the context's part."""
    ops = [op for op in ops if op.kind != IDENTITY]
    context = table.header.context
    if not context:
        return table.raw_ms(ops)
    weights = sum(primitives.params(op) for op in ops)
    part = context["per_operator_ms"] * len(ops) + context["per_mparam_ms"] * weights / 1e6
    return table.raw_ms(ops) - part


def calibrated(table: LatencyTable, nets: Sequence[Sequence[OpSpec]], measured_ms: Sequence[float]) -> LatencyTable:
    """The table with a calibration fitted on whole nets.

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
    measured = np.asarray(measured_ms, dtype=np.float64)
    predicted = [scale * table.raw_ms(net) + offset for net in nets]
    figures = {
        "raw": statistics.figures(alone_ms, measured),
        "calibrated": statistics.figures(predicted, measured),
    }
    spread = np.argsort(measured)[np.linspace(0, len(nets) - 1, REFERENCES).round().astype(int)]
    references = tuple(Reference(float(measured[i]), tuple(op.key for op in nets[i])) for i in dict.fromkeys(spread))
    calibration = Calibration(scale=scale, offset_ms=offset, nets=len(nets), figures=figures, references=references)
    return dataclasses.replace(table, header=dataclasses.replace(table.header, calibration=calibration))


@contextmanager
def _opened(
    backend: str | Backend, place: str | None = None, *, table: LatencyTable | None = None
) -> Iterator[Backend]:
    """A backend that is closed at the end where its name was given, and left to the caller otherwise.

    Args:
        backend: A backend or its name.
        place: Which of its devices measures; None takes the one that a table was measured on, where one is given.
        table: That table.
    """
    if isinstance(backend, Backend):
        if place:
            backend.use(place)
        yield backend
        return
    with get_backend(backend, place or (table.header.place if table else None)) as device:
        yield device


def _prepare(
    device: Backend,
    chains: Mapping[str, Sequence[OpSpec]],
    *,
    batch: int,
    threads: int,
    progress: bool,
    input_shape: tuple[int, ...] | None = None,
) -> dict[str, Runnable]:
    """Runnables of all chains; `input_shape` is that of an empty one."""
    runnables = {}
    with progress_bar(progress, f"preparing {len(chains)} graphs") as advance:
        for name, chain in chains.items():
            shape = None if chain else input_shape
            runnables[name] = device.prepare(chain, batch=batch, threads=threads, input_shape=shape)
            advance(len(runnables) / len(chains))
    return runnables


def _sample(
    device: Backend,
    runnables: Mapping[str, Runnable],
    *,
    plan: Plan,
    seed: int,
    progress: bool,
    partial: _Partial | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, list[float]]:
    """Samples in ms of every runnable, in interleaved rounds of shuffled order."""
    names = list(runnables)
    repeats = {name: _repeats(device, runnables[name], plan) for name in names}
    samples: dict[str, list[float]] = {name: [] for name in names}
    if partial is not None:
        samples |= {name: values for name, values in partial.load().items() if name in samples}
    order = random.Random(f"{seed}:{min(map(len, samples.values()), default=0)}")
    start = saved = clock()
    try:
        with progress_bar(progress, f"measuring {len(names)} graphs") as advance:
            while names:
                done, elapsed = min(map(len, samples.values())), clock() - start
                due = _due(samples, plan, done=done, elapsed=elapsed)
                if not due:
                    break
                order.shuffle(due)
                for name in due:
                    samples[name].append(1e3 * device.time(runnables[name], repeats=repeats[name]))
                advance(_share(plan, done + 1, elapsed))
                if partial is not None and clock() - saved > PARTIAL_SECONDS:
                    partial.save(samples)
                    saved = clock()
    finally:
        if partial is not None:
            partial.save(samples)
    return samples


def _due(samples: Mapping[str, list[float]], plan: Plan, *, done: int, elapsed: float) -> list[str]:
    """Names that take a sample in the next round: all until time or rounds are up, then the noisy ones."""
    if elapsed <= plan.seconds or done < plan.minimum_rounds:
        due = [name for name, values in samples.items() if len(values) < plan.rounds]
        if due:
            return due
    return _noisy(samples, plan) if elapsed <= 1.25 * plan.seconds else []


def _share(plan: Plan, done: int, elapsed: float) -> float:
    """How much of a plan is carried out, 0..1."""
    by_time = min(elapsed / plan.seconds, done / plan.minimum_rounds) if plan.seconds else 1.0
    return min(1.0, max(done / plan.rounds, by_time))


def _repeats(device: Backend, runnable: Runnable, plan: Plan) -> int:
    """Runs per sample, after a warm-up that is no part of any sample."""
    device.time(runnable, repeats=2)
    single_ms = 1e3 * min(device.time(runnable, repeats=1) for _ in range(3))
    return max(1, round(plan.sample_ms / max(single_ms, plan.sample_ms / 1000)))


def _noisy(samples: Mapping[str, list[float]], plan: Plan) -> list[str]:
    """Names whose spread asks for further rounds and that still may have them."""
    most = plan.rounds + plan.extra_rounds
    return [
        name
        for name, values in samples.items()
        if len(values) < most and Measurement.of(values, quantile=plan.quantile).spread > plan.noisy
    ]


class _Partial:
    """Samples of an interrupted build, taken up again only under the same settings."""

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings = json.loads(json.dumps(settings))

    def load(self) -> dict[str, list[float]]:
        """The samples that the file keeps; says so where it keeps none that can be taken up."""
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
            settings = dict(document["settings"])
            samples = {str(name): [float(v) for v in values] for name, values in document["samples"].items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            self._say(f"cannot be read ({type(error).__name__})")
            return {}
        differing = sorted(
            name for name in {*settings, *self.settings} if settings.get(name) != self.settings.get(name)
        )
        if differing:
            self._say(f"is of a build with other settings ({', '.join(differing)})")
            return {}
        return samples

    def _say(self, reason: str) -> None:
        print(f"{self.path} {reason}; measuring anew", file=sys.stderr, flush=True)

    def save(self, samples: Mapping[str, Sequence[float]]) -> None:
        write_atomically(self.path, json.dumps({"settings": self.settings, "samples": samples}))


@contextmanager
def progress_bar(progress: bool, title: str) -> Iterator[Callable[[float], None]]:
    """A progress bar with the time left, moved by the share (0..1) of the work that is done."""
    if not progress:
        yield lambda share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f} %"))
    with Progress(*columns, TimeRemainingColumn(), transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=1.0)
        yield lambda share: bar.update(task, completed=share)


def _digest(chain: Sequence[OpSpec]) -> str:
    import hashlib

    return hashlib.sha256("\n".join(op.key for op in chain).encode()).hexdigest()[:12]
