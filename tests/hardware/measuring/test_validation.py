"""Checking a table against a device that is a formula."""

from __future__ import annotations

import dataclasses

import pytest
from rich.console import Console

from hardware.errors import TableError
from hardware.measuring.nets import measure_nets
from hardware.measuring.sampling import Plan
from hardware.measuring.table import build_table
from hardware.measuring.validation import check_table, noisy_entries, unordered_entries
from hardware.op_spec import OpSpec
from hardware.tables.records import LatencyEntry
from hardware.tables.table import LatencyTable
from tests.hardware.conftest import FakeBackend, draw_nets, net_ms

PLAN = Plan(rounds=4, minimum_rounds=2, seconds=60.0, extra_rounds=0)


@pytest.fixture
def table(tiny_space, tiny_ops):
    nets = draw_nets(*tiny_space, 10, seed=1)
    return build_table(tiny_ops, nets, backend=FakeBackend(), input_size=32, plan=PLAN, space="tiny", progress=False)


@pytest.fixture
def held_out(tiny_space):
    return {"uniform": draw_nets(*tiny_space, 8, seed=5), "varied": draw_nets(*tiny_space, 6, seed=6)}


def test_figures_by_group_raw_and_calibrated(table, held_out, tmp_path):
    check = check_table(table, held_out, backend=FakeBackend(), plan=PLAN, progress=False)
    figures = check.figures()
    assert list(figures) == ["uniform", "varied", "together"]
    assert check.measured_ms == pytest.approx([net_ms(net) for nets in held_out.values() for net in nets])
    assert figures["together"]["calibrated"]["mape"] < 5e-3
    assert figures["together"]["calibrated"]["spearman"] > 0.97
    assert check.drift == pytest.approx(1.0)
    check.table.save(tmp_path / "checked.yml")
    assert LatencyTable.load(tmp_path / "checked.yml").header.checks["together"] == figures["together"]


def test_calibration_on_other_nets(table, held_out, tiny_space):
    others = draw_nets(*tiny_space, 10, seed=9)
    check = check_table(table, held_out, calibration_nets=others, backend=FakeBackend(), plan=PLAN, progress=False)
    assert len(check.measured_ms) == 14
    assert check.table.header.calibration.nets == 10
    assert check.figures()["together"]["calibrated"]["mape"] < 5e-3


def test_it_prints_and_plots(table, held_out, tmp_path):
    check = check_table(table, held_out, backend=FakeBackend(noise=0.05), plan=PLAN, progress=False)
    console = Console(width=120)
    with console.capture() as capture:
        console.print(check.render())
    assert "Kendall" in capture.get()
    check.plot(tmp_path / "check.png")
    assert (tmp_path / "check.png").stat().st_size > 10_000


def test_too_little_to_check_with_is_refused(table, held_out):
    with pytest.raises(TableError, match="2 held-out nets are too few"):
        check_table(table, {"few": held_out["varied"][:2]}, backend=FakeBackend())
    plain = dataclasses.replace(table, header=dataclasses.replace(table.header, calibration=None))
    with pytest.raises(TableError, match="uncalibrated"):
        check_table(plain, held_out, backend=FakeBackend())


def test_noisy_and_unordered_entries_are_named(table):
    small = OpSpec("mbconv", (8, 4, 4), (8, 4, 4), kernel=3, hidden=24)
    large = dataclasses.replace(small, kernel=5, hidden=48)
    other = dataclasses.replace(large, residual=True)
    entries = {
        small.key: LatencyEntry(2.0, 0.5, 3),
        large.key: LatencyEntry(1.0, 0.01, 3),
        other.key: LatencyEntry(0.5, 0.9, 3),
    }
    strange = LatencyTable(table.header, entries)
    assert noisy_entries(strange) == (other.key, small.key)
    assert unordered_entries(strange) == ((small.key, large.key),)
    assert unordered_entries(table) == ()


def test_many_nets_are_measured_in_the_state_of_the_first_group(tiny_space):
    class Tiring(FakeBackend):
        def prepare(self, chain, **options):
            made = super().prepare(chain, **options)
            self.prepared = getattr(self, "prepared", 0) + 1
            slower = 1.0 if self.prepared <= 4 + 3 else 1.3
            return dataclasses.replace(made, handle=(slower * made.handle[0], made.handle[1]))

    nets = draw_nets(*tiny_space, 10, seed=2)
    figures = measure_nets(nets, backend=Tiring(), plan=PLAN, group=4, progress=False)
    assert [figure.drift for figure in figures] == pytest.approx([1.0] * 4 + [1.3] * 6)
    assert [figure.settled_ms for figure in figures] == pytest.approx([net_ms(net) for net in nets])
