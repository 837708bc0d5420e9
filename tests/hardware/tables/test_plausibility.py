"""Tables in seconds and microseconds are noticed; no table that a device could have is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hardware.backends import Backend, Runnable
from hardware.errors import TableError
from hardware.measuring.sampling import Plan
from hardware.measuring.table import build_table
from hardware.measuring.validation import check_table
from hardware.op_spec import OpSpec
from hardware.operators import primitives
from hardware.tables.plausibility import check_agreement, check_units
from hardware.tables.records import LatencyEntry, TableHeader
from hardware.tables.released import read_released, write_proxylessnas
from hardware.tables.shipped import open_table
from hardware.tables.table import LatencyTable
from tests.hardware.conftest import FakeBackend, draw_nets

NOTE10 = Path("/work/shared/data/ofa_note10/224_lookup_table.yaml")
SECONDS, MICROSECONDS = 1e-3, 1e3

# backend, threads, batch, input size, multiply-accumulates a second, ms of an operator beside them, ms of a call
DEVICES = {
    "this CPU": ("onnxruntime", 1, 1, 224, 9e10, 5e-3, 1.7e-3),
    "this CPU, small images": ("onnxruntime", 1, 1, 32, 7e10, 1e-3, 1.7e-3),
    "a CPU with AVX-512": ("onnxruntime", 1, 1, 224, 1.5e11, 3e-3, 1e-3),
    "a server on 32 threads": ("onnxruntime", 32, 1, 224, 2e12, 2e-2, 4e-3),
    "eager PyTorch": ("torch", 1, 1, 224, 3e10, 4e-2, 1.5e-3),
    "a Raspberry Pi 3": ("onnxruntime", 1, 1, 224, 1.2e9, 0.05, 0.03),
    "a Cortex-A7": ("onnxruntime", 1, 1, 224, 4e8, 0.1, 0.06),
    "a Pixel 1": ("tflite", 1, 1, 224, 3.2e9, 0.1, 0.0),
    "a Raspberry Pi Zero": ("tflite", 1, 1, 224, 2e8, 0.5, 0.1),
    "a V100": ("cuda", 1, 8, 224, 8e11, 0.03, 2e-3),
    "a V100, one image": ("cuda", 1, 1, 224, 1.5e11, 0.03, 2e-3),
    "the largest accelerator": ("cuda", 1, 256, 224, 1e14, 0.01, 2e-3),
    "a phone's GPU over a cable": ("my_phone", 1, 1, 224, 2e11, 0.5, 20.0),
    "a Cortex-M4": ("my_mcu", 1, 1, 96, 3e7, 0.05, 0.0),
    "a Cortex-M0 without floating point": ("my_mcu", 1, 1, 96, 6e5, 0.5, 0.0),
}
# what no limit can tell from another device: only a measurement on the device itself can
LIKE_ANOTHER_DEVICE = {
    ("a Cortex-A7", SECONDS),
    ("a Raspberry Pi Zero", SECONDS),
    ("a server on 32 threads", MICROSECONDS),
    ("a CPU with AVX-512", MICROSECONDS),
    ("a V100", MICROSECONDS),
    ("a V100, one image", MICROSECONDS),
    ("the largest accelerator", MICROSECONDS),
    ("a phone's GPU over a cable", SECONDS),
    ("a phone's GPU over a cable", MICROSECONDS),
    ("a Cortex-M4", SECONDS),
    ("a Cortex-M0 without floating point", SECONDS),
}


def table_of(device: str, ops: list[OpSpec], *, factor: float = 1.0, calls: bool = True) -> LatencyTable:
    backend, threads, batch, size, speed, operator_ms, call_ms = DEVICES[device]
    header = TableHeader(
        device=device,
        backend=backend,
        threads=threads,
        batch=batch,
        dtype="float32",
        input_size=size,
        overhead_ms=factor * call_ms if calls else 0.0,
    )
    entries = {op.key: factor * (operator_ms + 1e3 * batch * primitives.macs(op) / speed) for op in ops}
    return LatencyTable(header, {key: LatencyEntry(ms) for key, ms in entries.items()})


@pytest.fixture
def ops_of(imagenet_space, tiny_space):
    def of(device: str) -> list[OpSpec]:
        fixed, edges = imagenet_space if DEVICES[device][3] == 224 else tiny_space
        return [op for op in (*fixed, *(op for o in edges.values() for op in o.values())) if op.kind != "identity"]

    return of


@pytest.mark.parametrize("device", DEVICES)
def test_no_table_that_a_device_could_have_is_refused(device, ops_of, tmp_path):
    table = table_of(device, ops_of(device))
    table.save(tmp_path / "table.yml")
    assert LatencyTable.load(tmp_path / "table.yml") == table


@pytest.mark.parametrize("factor", [SECONDS, MICROSECONDS])
@pytest.mark.parametrize("device", DEVICES)
def test_another_unit_is_noticed_when_the_table_is_read(device, factor, ops_of, tmp_path):
    path = tmp_path / "table.yml"
    table_of(device, ops_of(device), factor=factor, calls=False).save(path)
    if (device, factor) in LIKE_ANOTHER_DEVICE:
        LatencyTable.load(path)
        return
    unit = "seconds" if factor == SECONDS else "microseconds"
    with pytest.raises(TableError, match=f"seem to be in {unit}; give them in milliseconds") as error:
        LatencyTable.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("device", [name for name, of in DEVICES.items() if of[0] in ("onnxruntime", "torch")])
def test_the_time_of_an_empty_call_gives_microseconds_away_on_any_cpu(device, ops_of):
    with pytest.raises(TableError, match=r"without any operator in .* ms: its latencies seem to be in microseconds"):
        check_units(table_of(device, ops_of(device), factor=MICROSECONDS), "it")


def test_an_empty_call_of_nanoseconds_is_in_seconds(ops_of):
    table = table_of("a Cortex-M4", ops_of("a Cortex-M4"))
    header = dataclasses.replace(table.header, overhead_ms=5e-6)
    with pytest.raises(TableError, match="in 5 ns"):
        check_units(dataclasses.replace(table, header=header), "it")


@pytest.mark.parametrize("factor", [SECONDS, MICROSECONDS])
@pytest.mark.parametrize("name", ["pixel1", "note10"])
def test_published_tables_pass_and_in_another_unit_do_not(name, factor, tmp_path):
    if name == "note10" and not NOTE10.exists():
        pytest.skip(f"{NOTE10} is not here")
    table = open_table(name) if name == "pixel1" else read_released(NOTE10)
    check_units(table, "it")
    wrong = {key: dataclasses.replace(entry, ms=factor * entry.ms) for key, entry in table.entries.items()}
    with pytest.raises(TableError, match="seconds; give them in milliseconds"):
        check_units(LatencyTable(table.header, wrong), "it")


def test_a_released_table_in_seconds_is_not_converted(tmp_path):
    table = open_table("pixel1")
    wrong = {key: dataclasses.replace(entry, ms=1e-3 * entry.ms) for key, entry in table.entries.items()}
    write_proxylessnas(LatencyTable(table.header, wrong), tmp_path / "released.yaml")
    with pytest.raises(TableError, match=r"released\.yaml implies .* more than a CPU thread can do"):
        read_released(tmp_path / "released.yaml")


def test_a_single_block_in_seconds_is_named(ops_of):
    table = table_of("this CPU", ops_of("this CPU"))
    key = next(key for key in table.entries if key.startswith("mbconv"))
    wrong = {**table.entries, key: LatencyEntry(1e-3 * table.entries[key].ms)}
    with pytest.raises(TableError, match=f"for {key}, more than any CPU can do"):
        check_units(LatencyTable(table.header, wrong), "it")
    predicted = {**table.entries, key: dataclasses.replace(wrong[key], predicted=True)}
    check_units(LatencyTable(table.header, predicted), "it")


@pytest.mark.parametrize("factor", [SECONDS, MICROSECONDS])
def test_operators_in_another_unit_than_the_headers_nets_are_noticed_on_any_device(
    factor, tiny_ops, tiny_space, fake_backend, tmp_path
):
    nets = draw_nets(*tiny_space, 8)
    plan = Plan(rounds=3, minimum_rounds=3)
    table = build_table(tiny_ops, nets, backend=fake_backend(), input_size=32, plan=plan, progress=False)
    wrong = {key: dataclasses.replace(entry, ms=factor * entry.ms) for key, entry in table.entries.items()}
    LatencyTable(table.header, wrong).save(tmp_path / "table.yml")
    with pytest.raises(TableError, match=r"table\.yml (add up to .* in different units|implies .* seconds)"):
        LatencyTable.load(tmp_path / "table.yml")


class Milliseconds(FakeBackend):
    """What a backend's author does wrong: `time` gives milliseconds, not seconds."""

    name = "onnxruntime"

    def time(self, runnable: Runnable, *, repeats: int = 1) -> float:
        return 1e3 * super().time(runnable, repeats=repeats)


def test_a_backend_that_gives_milliseconds_builds_no_table(tiny_ops, tmp_path):
    plan = Plan(rounds=3, minimum_rounds=3)
    with pytest.raises(TableError, match=r"what backend 'onnxruntime' measured implies .* in microseconds"):
        build_table(tiny_ops, backend=Milliseconds(), input_size=32, plan=plan, out=tmp_path / "t.yml", progress=False)
    assert not (tmp_path / "t.yml").exists()


@pytest.mark.parametrize("references", [True, False])
@pytest.mark.parametrize("factor", [SECONDS, MICROSECONDS])
def test_measuring_on_the_device_tells_what_no_limit_can(factor, references, tiny_ops, tiny_space, fake_backend):
    nets = draw_nets(*tiny_space, 20)
    plan = Plan(rounds=3, minimum_rounds=3)
    device: Backend = fake_backend()
    table = build_table(tiny_ops, nets[:8], backend=device, input_size=32, plan=plan, progress=False)
    calibration = table.header.calibration
    assert calibration is not None
    scaled = tuple(dataclasses.replace(net, ms=factor * net.ms) for net in calibration.references)
    calibration = dataclasses.replace(calibration, references=scaled if references else ())
    header = dataclasses.replace(table.header, overhead_ms=factor * table.header.overhead_ms, calibration=calibration)
    wrong = LatencyTable(
        header, {key: dataclasses.replace(entry, ms=factor * entry.ms) for key, entry in table.entries.items()}
    )
    with pytest.raises(TableError, match="times as long here as the latency table says"):
        check_table(wrong, {"all": nets[8:]}, backend=device, plan=plan, progress=False)


def test_agreement_is_wide():
    check_agreement([0.1, 1.0, 20.0], "it")
    with pytest.raises(TableError, match=r"take 0\.001 times"):
        check_agreement([1.0, 1e-3], "it")


def test_a_table_without_any_time_is_refused(ops_of):
    table = table_of("this CPU", ops_of("this CPU"), factor=0.0)
    with pytest.raises(TableError, match="no operator any time"):
        check_units(table, "it")


def test_operators_that_are_unknown_here_are_not_judged(ops_of):
    table = table_of("this CPU", ops_of("this CPU"))
    check_units(LatencyTable(table.header, {"magic-in:1x1x1-out:1x1x1": LatencyEntry(1e9)}), "it")
