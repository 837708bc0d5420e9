"""Conformance tests that a backend of one's own can inherit, collected by pytest:

class TestMyBackend(BackendConformance):
    def make_backend(self):
        return MyBackend()
"""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory

from .backends import Backend, Runnable
from .measuring.sampling import Plan
from .measuring.table import build_table
from .op_spec import IDENTITY, OpSpec
from .tables.table import LatencyTable


def small_ops() -> tuple[OpSpec, ...]:
    """Return operators of the common kinds, forming a chain."""
    return (
        OpSpec("conv", (3, 16, 16), (8, 8, 8), kernel=3, stride=2),
        OpSpec("ds_conv", (8, 8, 8), (8, 8, 8), kernel=3, residual=True),
        OpSpec("mbconv", (8, 8, 8), (16, 4, 4), kernel=5, stride=2, hidden=24),
        OpSpec("mbconv", (16, 4, 4), (16, 4, 4), kernel=3, hidden=48, residual=True),
        OpSpec("conv", (16, 4, 4), (32, 4, 4)),
        OpSpec("head", (32, 4, 4), (10,)),
    )


class BackendConformance:
    """What `hardware.measuring.table` expects of a backend; a pytest class to inherit from."""

    def make_backend(self) -> Backend:
        """Return a fresh backend; override it."""
        raise NotImplementedError("override make_backend and return your backend")

    def test_has_a_name_a_device_and_versions(self) -> None:
        with self.make_backend() as backend:
            assert backend.name
            assert backend.device()
            assert all(isinstance(text, str) for pair in backend.versions().items() for text in pair)

    def test_prepares_and_times_each_kind_and_a_whole_net(self) -> None:
        with self.make_backend() as backend:
            for chain in [(op,) for op in small_ops()] + [small_ops()]:
                runnable = backend.prepare(chain, batch=1, threads=1)
                assert isinstance(runnable, Runnable)
                seconds = backend.time(runnable, repeats=3)
                assert math.isfinite(seconds)
                assert seconds >= 0

    def test_an_empty_chain_is_the_overhead(self) -> None:
        with self.make_backend() as backend:
            runnable = backend.prepare((), batch=1, threads=1, input_shape=(3, 16, 16))
            assert backend.time(runnable, repeats=3) >= 0

    def test_runs_for_a_given_time_and_counts_its_runs(self) -> None:
        with self.make_backend() as backend:
            if type(backend).time is not Backend.time and type(backend).run_for is Backend.run_for:
                return  # it keeps its own time, and nobody asks it for energy
            runnable = backend.prepare(small_ops()[:1], batch=1, threads=1)
            assert backend.run_for(runnable, 0.0) >= 1
            assert backend.run_for(runnable, 0.01) >= 1

    def test_builds_a_table(self) -> None:
        ops = (*small_ops(), OpSpec(IDENTITY, (8, 8, 8), (8, 8, 8)))
        plan = Plan(rounds=3, minimum_rounds=1, seconds=5.0, sample_ms=0.05, extra_rounds=0)
        with self.make_backend() as backend:
            table = build_table(ops, backend=backend, input_size=16, plan=plan, progress=False)
            assert table.header.backend == backend.name
        table.check(ops, input_size=16)
        assert len(table.entries) == len(small_ops())
        with TemporaryDirectory() as folder:
            table.save(Path(folder) / "table.yml")
            assert LatencyTable.load(Path(folder) / "table.yml").header == table.header
