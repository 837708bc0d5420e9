"""Measuring and building with a device whose clock is a formula."""

from __future__ import annotations

import json

import numpy as np
import pytest

from hardware.backends import Runnable, SharedBackend
from hardware.errors import BackendError, TableError
from hardware.measuring import calibration as calibrating
from hardware.measuring import nets as measuring
from hardware.measuring import statistics
from hardware.measuring.sampling import Measurement, Plan
from hardware.measuring.table import build_table
from hardware.op_spec import IDENTITY, OpSpec
from hardware.tables.table import LatencyTable
from tests.hardware.conftest import OVERHEAD_S, FakeBackend, alone_ms, draw_nets, net_ms, operator_ms

PLAN = Plan(rounds=6, minimum_rounds=2, seconds=60.0, extra_rounds=0)


def test_measure_gives_the_clock_back(fake_backend, tiny_ops):
    got = measuring.measure({"a": tiny_ops[:1], "b": tiny_ops[:2]}, backend=fake_backend(), rounds=3, progress=False)
    assert got["a"].ms == pytest.approx(alone_ms(tiny_ops[:1]))
    assert len(got["b"].samples) == 3
    assert got["b"].spread == 0.0


def test_a_measurement_is_a_low_quantile():
    figure = Measurement.of([5.0, 1.0, 2.0, 3.0, 4.0], quantile=0.25)
    assert (figure.ms, figure.median_ms, figure.spread) == (2.0, 3.0, 0.5)
    assert figure.p20_ms == pytest.approx(1.8)


def test_rounds_are_interleaved_and_shuffled(fake_backend, tiny_ops):
    backend = fake_backend()
    chains = {op.key: (op,) for op in tiny_ops[:3]}
    measuring.measure(chains, backend=backend, rounds=8, progress=False)
    sampled = backend.timed[-24:]
    rounds = [tuple(sampled[i : i + 3]) for i in range(0, 24, 3)]
    assert all(sorted(r) == sorted(chains) for r in rounds)
    assert len(set(rounds)) > 1
    again = fake_backend()
    measuring.measure(chains, backend=again, rounds=8, progress=False)
    assert again.timed == backend.timed


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
    assert table.header.context["per_operator_ms"] == pytest.approx(-2e-3, rel=0.1)
    assert calibration.figures["calibrated"]["mape"] < 1e-3 < calibration.figures["raw"]["mape"]
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
    assert "table.yml.partial cannot be read (JSONDecodeError); measuring anew" in capsys.readouterr().err


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


def test_time_ends_a_measurement_after_the_least_rounds(fake_backend, tiny_ops):
    plan = Plan(rounds=500, minimum_rounds=3, seconds=0.0, extra_rounds=0)
    got = measuring.measure({"a": tiny_ops[:1]}, backend=fake_backend(), plan=plan, progress=False)
    assert len(got["a"].samples) == 3


def test_short_operators_are_repeated_in_a_sample(fake_backend, tiny_ops):
    seen = []

    class Counting(fake_backend):
        def time(self, runnable, *, repeats=1):
            seen.append(repeats)
            return super().time(runnable, repeats=repeats)

    plan = Plan(rounds=1, minimum_rounds=1, sample_ms=1.0)
    measuring.measure({"a": tiny_ops[:1]}, backend=Counting(), plan=plan, progress=False)
    assert seen[-1] == round(1.0 / alone_ms(tiny_ops[:1]))


def test_a_backend_without_model_files_is_named(fake_backend, tmp_path):
    with pytest.raises(BackendError, match="'fake' cannot time a model file"):
        measuring.measure_model_file(tmp_path / "net.onnx", backend=fake_backend())


class FileBackend(SharedBackend, FakeBackend):
    """The fake device, which since the table was built has become `slower` times as slow."""

    slower = 1.0

    def prepare_model_file(self, path, *, batch=1, threads=1, input_shape=None):
        return Runnable(lambda: None, handle=(self.slower * 7e-3, "file"))

    def prepare(self, chain, **options):
        made = super().prepare(chain, **options)
        return Runnable(made.call, handle=(self.slower * made.handle[0], made.handle[1]))


def test_a_model_file_is_compared_in_the_tables_conditions(tiny_space, tiny_ops, tmp_path):
    backend = FileBackend()
    nets = draw_nets(*tiny_space, 8, seed=1)
    table = build_table(tiny_ops, nets, backend=backend, input_size=32, plan=PLAN, progress=False)
    backend.slower = 1.25
    figure = measuring.measure_model_file(tmp_path / "net.onnx", backend=backend, table=table, plan=PLAN)
    assert figure.ms == pytest.approx(1.25 * 7.0)
    assert figure.drift == pytest.approx(1.25)
    assert figure.settled_ms == pytest.approx(7.0)
    with pytest.raises(TableError, match="has threads 1, but this measurement 2"):
        measuring.measure_model_file(tmp_path / "net.onnx", backend=backend, table=table, threads=2, plan=PLAN)


def test_the_context_fit_finds_what_made_the_nets():
    rng = np.random.default_rng(0)
    raw, operators = rng.uniform(0.05, 0.2, 30), rng.integers(6, 14, 30)
    params = rng.uniform(5e4, 3e5, 30)
    measured = 1.02 * raw - 1e-3 * operators + 5e-8 * params
    fit = statistics.context_fit(raw, operators, params, measured, least_ms=0.002)
    np.testing.assert_allclose(
        [fit.scale, fit.per_operator_ms, fit.per_param_ms, fit.offset_ms],
        [1.02, -1e-3, 5e-8, 0.0],
        rtol=0.02,
        atol=1e-4,
    )
    bounded = statistics.context_fit(raw, operators, params, measured, least_ms=0.0005)
    assert bounded.per_operator_ms >= -0.9 * 0.0005


def test_affine_fit_and_figures():
    x = np.array([1.0, 2.0, 4.0, 8.0])
    scale, offset = statistics.affine_fit(x, 3 * x + 0.5)
    assert (scale, offset) == (pytest.approx(3), pytest.approx(0.5))
    figures = statistics.figures(x, x * 1.1)
    assert figures["mape"] == pytest.approx(0.1 / 1.1)
    assert figures["bias_ms"] == pytest.approx(-0.1 * x.mean())
    assert figures["spearman"] == figures["kendall"] == pytest.approx(1.0)


@pytest.mark.parametrize("raw", [[1.0, 1.0, 1.0], [1.0, 2.0], [3.0, 2.0, 1.0]])
def test_an_impossible_calibration_is_refused(raw):
    with pytest.raises(TableError):
        statistics.affine_fit(raw, [1.0, 2.0, 3.0][: len(raw)])
