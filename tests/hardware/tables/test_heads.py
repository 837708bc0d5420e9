"""A head at a number of classes that nobody measured lies on the line between those that were."""

from __future__ import annotations

import pytest

from hardware.errors import MissingOperatorError
from hardware.model import LatencyModel, chain_report
from hardware.op_spec import OpSpec
from hardware.tables.heads import CLASSES
from hardware.tables.records import LatencyEntry, TableHeader
from hardware.tables.table import LatencyTable

KINDS = ("head", "efficient_head", "unbiased_efficient_head")


def head(classes: int, kind: str = "head", width: int = 32) -> OpSpec:
    hidden = {} if kind == "head" else {"hidden": 64, "activation": "hard_swish"}
    return OpSpec(kind, (width, 4, 4), (classes,), **hidden)


def table_of(*entries: tuple[OpSpec, LatencyEntry]) -> LatencyTable:
    header = TableHeader("a formula", "fake", 1, 1, "float32", 32, overhead_ms=0.5)
    return LatencyTable(header, {op.key: entry for op, entry in entries})


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def measured(kind: str) -> LatencyTable:
    # of another width, which says nothing of the head: its line would be a hundred times as high
    others = [(head(n, kind, width=64), LatencyEntry(100.0 * n)) for n in CLASSES]
    own = [(head(n, kind), LatencyEntry(ms, spread, count)) for n, ms, spread, count in FIGURES]
    return table_of(*others, *own, (OpSpec("conv", (3, 32, 32), (8, 32, 32), kernel=3), LatencyEntry(7.0)))


FIGURES = ((1, 0.2, 0.01, 9), (10, 1.0, 0.03, 8), (100, 1.9, 0.02, 5), (1000, 19.9, 0.04, 7))


@pytest.mark.parametrize(
    ("classes", "ms", "spread", "count"),
    [(10, 1.0, 0.03, 8), (55, 1.45, 0.03, 5), (99, 1.89, 0.03, 5), (101, 1.92, 0.04, 5), (2, 0.2 + 0.8 / 9, 0.03, 8)],
)
def test_the_line_between_the_nearest_two(kind: str, classes: int, ms: float, spread: float, count: int) -> None:
    entry = measured(kind).entry(head(classes, kind))
    assert entry.ms == pytest.approx(ms, rel=1e-12)
    assert (entry.spread, entry.count, entry.predicted) == (spread, count, False)


def test_every_sum_takes_it(kind: str) -> None:
    table, op = measured(kind), head(55, kind)
    table.check([op], input_size=32)
    assert table.raw_ms([op]) == pytest.approx(1.95)
    assert LatencyModel(table, fixed=[op], edges={}).cost({}) == pytest.approx(1.95)
    assert chain_report(table, [op]).total() == pytest.approx(1.95)
    assert not chain_report(table, [op]).missing()


@pytest.mark.parametrize("classes", [1001, 21_841])
def test_nothing_is_made_up_beyond_the_last(kind: str, classes: int) -> None:
    table, op = measured(kind), head(classes, kind)
    with pytest.raises(MissingOperatorError, match=f"{kind}-in:32x4x4-out:{classes}.* is not in .*nearest are: {kind}"):
        table.entry(op)
    with pytest.raises(MissingOperatorError, match=str(classes)):
        table.check([op], input_size=32)
    assert chain_report(table, [op]).missing()


def test_one_head_is_no_line(kind: str) -> None:
    with pytest.raises(MissingOperatorError):
        table_of((head(1000, kind), LatencyEntry(1.0))).entry(head(3, kind))


def test_a_head_of_another_kind_says_nothing() -> None:
    with pytest.raises(MissingOperatorError):
        measured("efficient_head").entry(head(55, "unbiased_efficient_head"))


def test_what_a_model_predicted_stays_predicted_in_between() -> None:
    table = table_of((head(1), LatencyEntry(1.0)), (head(9), LatencyEntry(2.0, predicted=True)))
    assert table.entry(head(5)).predicted


def test_no_other_operator_is_on_a_line() -> None:
    few, many, between = (OpSpec("conv", (3, 8, 8), (width, 8, 8)) for width in (8, 16, 12))
    with pytest.raises(MissingOperatorError):
        table_of((few, LatencyEntry(1.0)), (many, LatencyEntry(2.0))).entry(between)
