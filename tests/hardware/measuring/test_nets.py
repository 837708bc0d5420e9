"""Timing chains, nets and model files on a device whose clock is a formula."""

from __future__ import annotations

import pytest

from hardware.backends import Runnable, SharedBackend
from hardware.errors import BackendError, TableError
from hardware.measuring import nets as measuring
from hardware.measuring.sampling import Measurement, Plan
from hardware.measuring.table import build_table
from tests.hardware.conftest import FakeBackend, alone_ms, draw_nets

PLAN = Plan(rounds=6, minimum_rounds=2, seconds=60.0, extra_rounds=0)


def test_a_measurement_is_a_low_quantile():
    figure = Measurement.of([5.0, 1.0, 2.0, 3.0, 4.0], quantile=0.25)
    assert (figure.ms, figure.median_ms, figure.spread) == (2.0, 3.0, 0.5)
    assert figure.p20_ms == pytest.approx(1.8)


def test_measure_gives_the_clock_back(fake_backend, tiny_ops):
    got = measuring.measure({"a": tiny_ops[:1], "b": tiny_ops[:2]}, backend=fake_backend(), rounds=3, progress=False)
    assert got["a"].ms == pytest.approx(alone_ms(tiny_ops[:1]))
    assert len(got["b"].samples) == 3
    assert got["b"].spread == 0.0


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


def test_two_model_files_are_timed_in_the_same_rounds(tmp_path):
    order = []

    class TwoFiles(FileBackend):
        def prepare_model_file(self, path, **options):
            return Runnable(lambda: None, handle=(7e-3 if path.name == "a.onnx" else 3e-3, path.name))

        def time(self, runnable, *, repeats=1):
            order.append(runnable.handle[1])
            return super().time(runnable, repeats=repeats)

    files = [tmp_path / "a.onnx", tmp_path / "b.onnx"]
    first, second = measuring.measure_model_files(files, backend=TwoFiles(), plan=PLAN)
    assert (first.ms, second.ms) == (pytest.approx(7.0), pytest.approx(3.0))
    rounds = order[-2 * len(first.samples) :]
    assert all({a, b} == {"a.onnx", "b.onnx"} for a, b in zip(rounds[::2], rounds[1::2], strict=True))
