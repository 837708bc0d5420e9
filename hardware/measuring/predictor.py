"""A learned latency model, additive over operators: the predictor `F` of ProxylessNAS (arXiv 1812.00332, 3.3.1).

`net = constant + sum over operators of f(operator)`, with `f` linear in features of the operator's primitives:
type, kernel, stride, input and output size, width. It is fitted on whole nets, so no operator has to be measured alone.
As it is additive, E[LAT] stays linear in the probabilities. `fill` gives a table the operators that it lacks (another
width, another resolution), each marked as predicted.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TableError
from ..files import write_atomically
from ..op_spec import OpSpec, executed
from ..operators.primitives import Conv, decompose
from ..reading import Kind, Unreadable, cut, expect, read_json, reading, shown
from ..tables.plausibility import check_units
from ..tables.records import FLOAT32, Calibration, LatencyEntry, TableHeader
from ..tables.table import LatencyTable, parse_header, plain
from . import statistics

FORMAT = "proxyless-learned-latency"
VERSION = 1
MINIMUM_NETS = 20
MODEL = Kind(
    "the learned latency model",
    "fit one again",
    TableError,
    sentence="{path} is no learned latency model ({why}); {remedy}",
)


@dataclass(frozen=True)
class LearnedModel:
    """Latency in ms as `constant_ms + sum of weights * features`.

    Attributes:
        weights: Feature name to ms per unit, none negative.
        constant_ms: What every net takes beside its operators.
        figures: RMSE, MAPE, bias, Spearman and Kendall on the nets kept for testing, and on those fitted.
        nets: Nets that it was fitted on.
        header: Header of the tables that it makes: the device and settings of the measurements.
    """

    weights: Mapping[str, float]
    constant_ms: float
    figures: Mapping[str, Mapping[str, float]]
    nets: int
    header: TableHeader = field(compare=False)

    def __post_init__(self) -> None:
        for name, value in {**self.weights, "the constant": self.constant_ms}.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise TableError(
                    f"the learned model has {shown(value)} ms for {cut(name)}; no part of a net takes that, fit anew"
                )
        if not any(self.weights.values()):
            raise TableError(
                f"the learned model predicts {self.constant_ms:.4g} ms whatever a net is made of; fit one on nets that "
                "differ in what they take"
            )
        if isinstance(self.nets, bool) or not isinstance(self.nets, int) or self.nets < 1:
            raise TableError(f"the learned model is of {self.nets!r} nets; it must be of 1 or more, fit one again")

    def op_ms(self, op: OpSpec) -> float:
        """Return the latency in ms of one operator inside a net; 0 for `identity`."""
        return math.fsum(self.weights.get(name, 0.0) * value for name, value in features(op).items())

    def net_ms(self, ops: Iterable[OpSpec]) -> float:
        """Return the latency in ms of a whole net."""
        return self.constant_ms + math.fsum(self.op_ms(op) for op in ops)

    def unknown(self, op: OpSpec) -> tuple[str, ...]:
        """Return the features of an operator that no net of the fit had, so that nothing is known about their cost."""
        return tuple(name for name, value in features(op).items() if value and name not in self.weights)

    def table(self, ops: Iterable[OpSpec], *, input_size: int | None = None) -> LatencyTable:
        """Make a table of these operators, all predicted, calibrated by construction.

        Args:
            ops: The operators.
            input_size: Side of the input image, where it is another than that of the measured nets.
        """
        calibration = Calibration(1.0, self.constant_ms, self.nets, {"learned": dict(self.figures)})
        header = dataclasses.replace(
            self.header,
            input_size=input_size or self.header.input_size,
            overhead_ms=0.0,
            calibration=calibration,
            context={},
            source=f"predicted by a model learned on {self.nets} whole nets",
        )
        return self._checked(LatencyTable(header, {op.key: self._entry(op, 1.0) for op in executed(ops)}))

    def fill(self, table: LatencyTable, ops: Iterable[OpSpec]) -> LatencyTable:
        """Add to a table the operators that it lacks, predicted and marked so.

        Predictions are calibrated ms; they are divided by the table's scale, so that its calibration gives them back.

        Raises:
            TableError: The table was measured in other settings than the model's nets, or no device can take what the
                model predicts.
        """
        for name in ("device", "backend", "place", "threads", "batch", "dtype", "options"):
            there, here = getattr(table.header, name), getattr(self.header, name)
            if there != here and (name != "place" or (there and here)):
                raise TableError(
                    f"the learned model is of {name} {shown(here)}, the table of {shown(there)}; fit one on that device"
                )
        scale = table.header.calibration.scale if table.header.calibration else 1.0
        missing = {op.key: op for op in executed(ops) if table.find(op) is None}
        predicted = {key: self._entry(op, scale) for key, op in missing.items()}
        if predicted:  # by themselves, as what was measured would hide them
            self._checked(LatencyTable(dataclasses.replace(table.header, calibration=None), predicted))
        return LatencyTable(table.header, {**table.entries, **predicted})

    def complete(self, table: LatencyTable, ops: Iterable[OpSpec], *, input_size: int) -> LatencyTable:
        """`fill` a table at its own input size; at another one make a table of predictions alone.

        Raises:
            TableError: The table was measured in other settings than the model's nets.
        """
        ops = tuple(ops)
        filled = self.fill(table, ops)
        if table.header.input_size == input_size:
            return filled
        predicted = self.table(ops, input_size=input_size)
        return dataclasses.replace(predicted, header=dataclasses.replace(predicted.header, space=table.header.space))

    def save(self, path: str | Path) -> None:
        """Write the model as JSON, atomically."""
        document = {"format": FORMAT, "version": VERSION, **plain(self)}
        write_atomically(path, json.dumps(document, indent=2), error=TableError)

    @classmethod
    def load(cls, path: str | Path) -> LearnedModel:
        """Read a model.

        Raises:
            TableError: The file is missing, no model of this format and version, or no device's.
        """
        document = read_json(path, MODEL)
        with reading(path, MODEL):
            for key, wanted in (("format", FORMAT), ("version", VERSION)):
                if document[key] != wanted:
                    raise Unreadable(f"its {key} is {shown(document[key])}, not {wanted!r}")
            weights, figures = dict(document["weights"]), dict(document["figures"])
            header = parse_header(document["header"], f"the learned latency model {path}")
            try:
                return cls(
                    weights={name: expect(value, float, cut(name)) for name, value in weights.items()},
                    constant_ms=expect(document["constant_ms"], float, "constant_ms"),
                    figures={name: dict(values) for name, values in figures.items()},
                    nets=expect(document["nets"], int, "nets"),
                    header=header,
                )
            except TableError as error:
                raise TableError(str(error).replace("the learned model", f"the learned model {path}", 1)) from None

    def _checked(self, table: LatencyTable) -> LatencyTable:
        """Return a table with predictions that a device could take; say which operators would be free."""
        check_units(table, "what the learned model predicts")
        free = [key for key, entry in table.entries.items() if entry.predicted and not entry.ms]
        if free:
            warnings.warn(
                f"the learned model predicts 0 ms for {len(free)} operators, first {free[0]}, so they look free to a "
                "search; measure them, or fit on more nets",
                stacklevel=3,
            )
        return table

    def _entry(self, op: OpSpec, scale: float) -> LatencyEntry:
        unknown = self.unknown(op)
        if unknown:
            raise TableError(
                f"the learned model cannot predict {cut(op.key)}: no net that it was fitted on had {unknown[0]!r}; "
                "measure the operator"
            )
        return LatencyEntry(ms=self.op_ms(op) / scale, predicted=True)


def features(op: OpSpec) -> dict[str, float]:
    """Return what an operator's latency depends on: for each type of primitive, their number, work and traffic.

    Work is in millions of multiply-accumulates, tensors and weights in millions of elements. Depthwise convolutions
    count by kernel and stride, as runtimes have other code for each.
    """
    found: dict[str, float] = {}
    shape = op.input_shape
    for primitive in decompose(op):
        after = primitive.output(shape)
        name = type(primitive).__name__.lower()
        if isinstance(primitive, Conv):
            depthwise = primitive.groups == primitive.in_channels > 1
            name = "depthwise" if depthwise else "pointwise" if primitive.kernel == 1 else "dense"
            if depthwise:
                name += f"_k{primitive.kernel}_s{primitive.stride}"
        area = math.prod(after[1:])
        values = {
            "count": 1.0,
            "work": primitive.macs(shape) / 1e6,
            "output": math.prod(after) / 1e6,
            "input": math.prod(shape) / 1e6,
            "weights": primitive.params / 1e6,
            "rows": primitive.macs(shape) / 1e6 / math.sqrt(area),
        }
        for feature, value in values.items():
            if value:
                found[f"{name}.{feature}"] = found.get(f"{name}.{feature}", 0.0) + value
        shape = after
    return found


def fit(
    nets: Sequence[Sequence[OpSpec]],
    measured_ms: Sequence[float],
    *,
    header: TableHeader,
    test_share: float = 0.2,
    seed: int = 0,
) -> LearnedModel:
    """Fit the model: relative non-negative least squares on most nets, figures on the rest.

    Args:
        nets: Whole nets in execution order.
        measured_ms: Their latencies, measured on one device (`hardware.measuring.nets.measure_nets`).
        header: The device and settings of the measurement (`header_of`, or a table's header).
        test_share: Share of the nets that is kept for testing.
        seed: Seed of the split.

    Raises:
        TableError: The nets are too few, or not as many as the latencies.
    """
    from scipy.optimize import nnls

    if len(nets) != len(measured_ms):
        raise TableError(f"there are {len(nets)} nets but {len(measured_ms)} latencies; give one each")
    if len(nets) < MINIMUM_NETS:
        raise TableError(f"{len(nets)} nets are too few to learn from; measure {MINIMUM_NETS} or more")
    known = {op: features(op) for net in nets for op in net}
    names = sorted({name for values in known.values() for name in values})
    matrix = np.zeros((len(nets), len(names) + 1))
    for row, net in enumerate(nets):
        matrix[row, -1] = 1.0
        for op in net:
            for name, value in known[op].items():
                matrix[row, names.index(name)] += value
    measured = np.asarray(measured_ms, dtype=np.float64)
    test, train = split(len(nets), test_share=test_share, seed=seed)
    # each net's row over its own latency, so that an error of 1 % counts alike for a fast net and a slow one
    design = matrix[train] / measured[train, None]
    # Features differ by orders of magnitude and are nearly collinear (a wide layer has more work and more weights). On
    # columns of norm 1 one small ridge holds them all, and weights below 0 (a layer that saves time) are ruled out.
    norms = np.linalg.norm(design, axis=0)
    ridge = _RIDGE * np.eye(len(norms))
    solution, _ = nnls(np.vstack([design / norms, ridge]), np.concatenate([np.ones(len(train)), np.zeros(len(norms))]))
    weights = solution / norms
    predicted = matrix @ weights
    return LearnedModel(
        weights=dict(zip(names, map(float, weights[:-1]), strict=True)),
        constant_ms=float(weights[-1]),
        figures={
            name: statistics.figures(predicted[part], measured[part])
            for name, part in (("test", test), ("fit", train))
            if len(part) > 1
        },
        nets=len(train),
        header=header,
    )


def split(count: int, *, test_share: float = 0.2, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the nets that `fit` keeps for testing, and of those that it fits."""
    order = np.random.default_rng(seed).permutation(count)
    test, train = np.split(order, [round(test_share * count)])
    return test, train


def header_of(
    *,
    backend: str,
    input_size: int,
    device: str,
    batch: int = 1,
    threads: int = 1,
    dtype: str = FLOAT32,
    space: str = "",
    **other: Any,
) -> TableHeader:
    """Make a header for a model's tables, where there is no measured table to take it from."""
    return TableHeader(
        device=device,
        backend=backend,
        threads=threads,
        batch=batch,
        dtype=dtype,
        input_size=input_size,
        space=space,
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **other,
    )


_RIDGE = 3e-2
