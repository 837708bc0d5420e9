"""Building a table on a device whose clock is a formula."""

from __future__ import annotations

import json

import pytest

from hardware.errors import TableError
from hardware.measuring import calibration as calibrating
from hardware.measuring.calibration import entry_alone
from hardware.measuring.sampling import Plan
from hardware.measuring.table import build_table
from hardware.op_spec import IDENTITY, OpSpec
from hardware.tables.table import LatencyTable
from tests.hardware.conftest import OVERHEAD_S, alone_ms, draw_nets, net_ms, operator_ms

PLAN = Plan(rounds=6, minimum_rounds=2, seconds=60.0, extra_rounds=0)


def test_the_overhead_is_subtracted_once_per_operator(fake_backend, tiny_ops):
    table = build_table(tiny_ops, backend=fake_backend(), input_size=32, plan=PLAN, progress=False)
    assert table.header.overhead_ms == pytest.approx(1e3 * OVERHEAD_S)
    assert table.header.calibration is None
    for op in tiny_ops:
        if op.kind != IDENTITY:
            assert table.latency_ms(op) == pytest.approx(operator_ms(op) + 2e-3, abs=1e-6)
    assert not any(key.startswith(IDENTITY) for key in table.entries)


def test_the_calibration_recovers_the_device(fake_backend, tiny_space, tiny_ops):
    nets, held_out = draw_nets(*tiny_space, 8, seed=1), draw_nets(*tiny_space, 5, seed=2)
    table = build_table(tiny_ops, nets, backend=fake_backend(), input_size=32, plan=PLAN, progress=False)
    calibration = table.header.calibration
    assert calibration.nets == 8
    # eight nets tell it but roughly from an offset; what they take together is exact, see below
    assert table.header.context["per_operator_ms"] == pytest.approx(-2e-3, rel=0.25)
    assert calibration.figures["calibrated"]["mape"] < 2e-3 < calibration.figures["raw"]["mape"]
    for net in held_out:
        assert calibrating.alone_ms(table, net) == pytest.approx(alone_ms(net), abs=1e-5)
        assert table.calibrated_ms(net) == pytest.approx(net_ms(net), rel=5e-3)
    assert [r.ms for r in calibration.references] == pytest.approx(
        [net_ms([OpSpec.from_key(key) for key in r.ops]) for r in calibration.references]
    )


def test_the_header_says_how_it_was_measured(fake_backend, tiny_ops, tmp_path):
    out = tmp_path / "table.yml"
    options = {"backend": fake_backend(), "input_size": 32, "batch": 4, "space": "tiny", "plan": PLAN}
    table = build_table(tiny_ops, out=out, progress=False, **options)
    header = table.header
    assert (header.device, header.backend, header.batch, header.repeats) == ("a formula", "fake", 4, 6)
    assert LatencyTable.load(out) == table
    assert {p.name for p in tmp_path.iterdir()} == {"table.yml", ".table.yml.lock"}


def test_too_few_nets_no_operators_and_strange_nets_are_refused(fake_backend, tiny_space, tiny_ops):
    options = {"backend": fake_backend(), "input_size": 32, "plan": PLAN, "progress": False}
    nets = draw_nets(*tiny_space, 8)
    with pytest.raises(TableError, match="3 whole nets are too few"):
        build_table(tiny_ops, nets[:3], **options)
    with pytest.raises(TableError, match="no operator"):
        build_table([OpSpec(IDENTITY, (1, 1, 1), (1, 1, 1))], **options)
    with pytest.raises(TableError, match="not to be measured"):
        build_table(tiny_ops[:3], nets, **options)


def test_an_operator_cheaper_than_nothing_is_refused(fake_backend, tiny_ops):
    class Odd(fake_backend):
        def time(self, runnable, *, repeats=1):
            return super().time(runnable, repeats=repeats) * (0.01 if runnable.handle[1] == tiny_ops[0].key else 1.0)

    with pytest.raises(TableError, match=r"operator conv-in:3x32x32.* less than the empty graph's"):
        build_table(tiny_ops, backend=Odd(), input_size=32, plan=PLAN, progress=False)


@pytest.mark.parametrize(("share", "told"), [(0.95, True), (1.0, True), (1.01, True), (1.02, False), (1.5, False)])
def test_an_operator_within_the_noise_of_nothing_has_a_least_time_and_is_named(share, told, capsys):
    entry = entry_alone("conv-tiny", share * 0.005, 0.005, spread=0.03, count=9)
    assert entry.ms == pytest.approx(max(0.0001, (share - 1) * 0.005))
    assert ("conv-tiny took" in capsys.readouterr().err) == told


@pytest.mark.parametrize(("share", "spread"), [(0.89, 0.0), (0.7, 0.2), (0.49, 3.0)])
def test_an_operator_far_below_nothing_is_refused(share, spread):
    with pytest.raises(TableError, match="less than the empty graph's"):
        entry_alone("conv-tiny", share * 0.005, 0.005, spread=spread, count=9)


def test_an_interrupted_build_goes_on_where_it_stopped(fake_backend, tiny_ops, tmp_path):
    out = tmp_path / "table.yml"
    options = {"input_size": 32, "plan": PLAN, "progress": False, "out": out}
    stopped = fake_backend(stop_after=200)
    with pytest.raises(KeyboardInterrupt):
        build_table(tiny_ops, backend=stopped, **options)
    assert not out.exists()
    kept = json.loads((tmp_path / "table.yml.partial").read_text())["samples"]
    assert sum(map(len, kept.values())) > 0
    again = fake_backend()
    table = build_table(tiny_ops, backend=again, **options)
    warm_ups = 4 * len(kept)
    assert len(again.timed) - warm_ups == 6 * len(kept) - sum(map(len, kept.values()))
    assert table == LatencyTable.load(out)
    assert not (tmp_path / "table.yml.partial").exists()


@pytest.mark.parametrize("change", [{"batch": 2}, {"threads": 2}, {"input_size": 64}])
def test_a_partial_build_of_other_settings_is_not_taken_up(fake_backend, tiny_ops, tmp_path, change, capsys):
    options = {"input_size": 32, "plan": PLAN, "progress": False, "out": tmp_path / "table.yml"}
    with pytest.raises(KeyboardInterrupt):
        build_table(tiny_ops, backend=fake_backend(stop_after=200), **options)
    again = fake_backend()
    build_table(tiny_ops, backend=again, **{**options, **change})
    graphs = len(set(again.timed))
    assert len(again.timed) == (4 + 6) * graphs
    (name,) = change
    assert f"table.yml.partial is of a build with other settings ({name}); measuring anew" in capsys.readouterr().err


def test_a_broken_partial_file_is_measured_again(fake_backend, tiny_ops, tmp_path, capsys):
    (tmp_path / "table.yml.partial").write_text("{ not json")
    options = {"backend": fake_backend(), "input_size": 32, "plan": PLAN, "out": tmp_path / "table.yml"}
    assert build_table(tiny_ops, progress=False, **options).header.repeats == 6
    assert (
        "table.yml.partial cannot be read (it is no valid JSON at line 1 (perhaps truncated)); measuring anew"
        in capsys.readouterr().err
    )


def test_noisy_operators_get_further_rounds(fake_backend, tiny_ops):
    class Noisy(fake_backend):
        def time(self, runnable, *, repeats=1):
            seconds = super().time(runnable, repeats=repeats)
            noisy = runnable.handle[1] == tiny_ops[0].key
            return seconds * (1 + 5 * self.random.random()) if noisy else seconds

    plan = Plan(rounds=5, minimum_rounds=5, seconds=60.0, extra_rounds=4)
    table = build_table(tiny_ops, backend=Noisy(), input_size=32, plan=plan, progress=False)
    assert table.entries[tiny_ops[0].key].count == 9
    assert {entry.count for key, entry in table.entries.items() if key != tiny_ops[0].key} == {5}
