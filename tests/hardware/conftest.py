"""A tiny search space, and a backend whose clock is a formula."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from typing import ClassVar

import pytest

from hardware.backends import Backend, Runnable
from hardware.op_spec import IDENTITY, OpSpec
from hardware.operators import primitives
from hardware.tables.records import Calibration, LatencyEntry, TableHeader
from hardware.tables.table import LatencyTable

OVERHEAD_S = 4e-6


def mbconv(width: int, out: int, size: int, kernel: int, stride: int, expand: int, residual: bool) -> OpSpec:
    return OpSpec(
        "mbconv",
        (width, size, size),
        (out, -(-size // stride), -(-size // stride)),
        kernel=kernel,
        stride=stride,
        hidden=round(width * expand),
        residual=residual,
    )


def make_space(
    size: int, stem: int, first: int, stages: Sequence[tuple[int, int, int]], last: int, classes: int
) -> tuple[tuple[OpSpec, ...], dict[str, dict[str, OpSpec]]]:
    """The MBConv space of ProxylessNAS (arXiv 1812.00332, section 4): its fixed operators and its searchable edges."""
    side = -(-size // 2)
    fixed = [
        OpSpec("conv", (3, size, size), (stem, side, side), kernel=3, stride=2),
        OpSpec("ds_conv", (stem, side, side), (first, side, side), kernel=3),
    ]
    edges: dict[str, dict[str, OpSpec]] = {}
    width = first
    for stage, (out, blocks, first_stride) in enumerate(stages, start=1):
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            residual = stride == 1 and width == out
            options = {
                f"{k}x{k}_e{e}": mbconv(width, out, side, k, stride, e, residual) for k in (3, 5, 7) for e in (3, 6)
            }
            if residual:
                options["skip"] = OpSpec(IDENTITY, (width, side, side), (width, side, side))
            edges[f"stage{stage}.{block}"] = options
            side, width = -(-side // stride), out
    fixed.append(OpSpec("conv", (width, side, side), (last, side, side)))
    fixed.append(OpSpec("head", (last, side, side), (classes,)))
    return tuple(fixed), edges


def chain_of(
    fixed: tuple[OpSpec, ...], edges: dict[str, dict[str, OpSpec]], choices: dict[str, str]
) -> tuple[OpSpec, ...]:
    chosen = [edges[label][choices[label]] for label in edges]
    return tuple(op for op in (*fixed[:2], *chosen, *fixed[2:]) if op.kind != IDENTITY)


def draw_nets(
    fixed: tuple[OpSpec, ...], edges: dict[str, dict[str, OpSpec]], count: int, seed: int = 0
) -> list[tuple[OpSpec, ...]]:
    rng = random.Random(seed)
    draws = [{label: rng.choice(list(options)) for label, options in edges.items()} for _ in range(count)]
    return [chain_of(fixed, edges, choices) for choices in draws]


@pytest.fixture(scope="session")
def imagenet_space():
    stages = [(24, 4, 2), (40, 4, 2), (80, 4, 2), (96, 4, 1), (192, 4, 2), (320, 1, 1)]
    return make_space(224, 32, 16, stages, 1280, 1000)


@pytest.fixture(scope="session")
def tiny_space():
    return make_space(32, 16, 8, [(16, 2, 2), (24, 2, 2)], 64, 10)


def operator_ms(op: OpSpec) -> float:
    """The fake device's time of an operator: proportional to MACs, plus something of its own."""
    return primitives.macs(op) * 1e-7 + 1e-3 + zlib.crc32(op.key.encode()) % 100 * 1e-6


def net_ms(chain: Sequence[OpSpec]) -> float:
    return 1.05 * (1e3 * OVERHEAD_S + sum(map(operator_ms, chain)))


def alone_ms(chain: Sequence[OpSpec]) -> float:
    return 1e3 * OVERHEAD_S + sum(operator_ms(op) + 2e-3 for op in chain)


class FakeBackend(Backend):
    """A device whose clock is a formula.

    A net takes `1.05 * (overhead + sum of its operators)`; an operator alone takes 2 us more than in a net.
    """

    name = "fake"

    def __init__(self, *, noise: float = 0.0, stop_after: int | None = None) -> None:
        self.noise = noise
        self.stop_after = stop_after
        self.timed: list[str] = []
        self.random = random.Random(0)

    def prepare(self, chain, *, batch=1, threads=1, input_shape=None) -> Runnable:
        seconds = net_ms(chain) * 1e-3 if len(chain) > 1 else alone_ms(chain) * 1e-3
        return Runnable(lambda: None, threads=threads, handle=(seconds, "+".join(op.key for op in chain)))

    def time(self, runnable: Runnable, *, repeats: int = 1) -> float:
        seconds, name = runnable.handle
        self.timed.append(name)
        if self.stop_after is not None and len(self.timed) > self.stop_after:
            raise KeyboardInterrupt
        return seconds * (1.0 + self.noise * self.random.random())

    def device(self) -> str:
        return "a formula"


class Tunable(FakeBackend):
    """The device of a formula, twice as fast in int8, and half as fast without graphs."""

    dtypes = ("float32", "int8")
    known_options: ClassVar = {"graphs": True, "streams": 1, "mode": "fair"}

    def time(self, runnable, *, repeats=1):
        factor = (0.5 if self.dtype == "int8" else 1.0) * (1.0 if self.of_options(self.options)["graphs"] else 2.0)
        return factor * super().time(runnable, repeats=repeats)


@pytest.fixture
def fake_backend():
    return FakeBackend


def make_table(ops, *, calibration: Calibration | None = None, overhead_ms: float = 0.01, input_size: int = 32):
    header = TableHeader(
        device="a formula",
        backend="fake",
        threads=1,
        batch=1,
        dtype="float32",
        input_size=input_size,
        space="tiny",
        created="2026-01-01",
        versions={"python": "3.11"},
        repeats=3,
        quantile=0.2,
        load_average=0.5,
        overhead_ms=overhead_ms,
        calibration=calibration,
    )
    entries = {op.key: LatencyEntry(operator_ms(op), 0.01, 3) for op in ops if op.kind != IDENTITY}
    return LatencyTable(header, entries)


@pytest.fixture
def tiny_ops(tiny_space):
    fixed, edges = tiny_space
    return [*fixed, *(op for options in edges.values() for op in options.values())]


@pytest.fixture
def tiny_table(tiny_ops):
    return make_table(tiny_ops, calibration=Calibration(1.2, -0.002, 10, {"raw": {"mape": 0.1}}))


@pytest.fixture(autouse=True)
def locks_of_this_test_run(monkeypatch, tmp_path_factory):
    """Tests assert no time, so they need not wait for measurements that run on this machine."""
    folder = str(tmp_path_factory.getbasetemp())
    monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
