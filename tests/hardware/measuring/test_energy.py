"""Energy by counters whose every step is known: what is summed, what wraps, and what is refused by name."""

from __future__ import annotations

import shutil
import sys
from types import ModuleType

import pytest
import torch

from hardware.backends.base import runs_within
from hardware.errors import BackendError, EnergyError, TableError
from hardware.measuring import energy, energy_meters
from hardware.measuring.energy_meters import Nvml, Rapl, meter_of
from hardware.measuring.sampling import Measurement, Plan
from hardware.model import EnergyModel
from hardware.processor import SILENCE
from hardware.tables.energy import EnergyTable
from hardware.tables.table import LatencyTable
from tests.hardware.conftest import FakeBackend, draw_nets, make_table
from tests.hardware.energy import OVERHEAD_UJ, RANGE_UJ, Powercap, Spender, net_uj, operator_uj

PLAN = Plan(rounds=2, minimum_rounds=2, seconds=0.0, extra_rounds=0)


@pytest.fixture
def powercap(tmp_path, monkeypatch):
    tree = Powercap(tmp_path / "powercap")
    monkeypatch.setattr(energy_meters, "POWERCAP", tree.root)
    monkeypatch.setattr(energy_meters, "pause", tree.idle)
    monkeypatch.setattr(Rapl, "block_seconds", 0.002)
    monkeypatch.setattr(Spender, "powercap", tree, raising=False)
    monkeypatch.setenv(SILENCE, "1")
    return tree


# ---- counters --------------------------------------------------------------------------------------------------


def test_packages_are_summed_and_no_zone_counts_twice(powercap):
    meter = Rapl()
    assert meter.name == "RAPL package-0, package-1"
    then = meter.read()
    powercap.spend(1_000_000)
    assert meter.read() == (0.75, 0.25)
    assert meter.between(then, meter.read()) == pytest.approx(1.0, rel=1e-12)


def test_each_counter_wraps_for_itself(powercap):
    powercap.set("intel-rapl:0", RANGE_UJ - 100)
    powercap.set("intel-rapl:1", 500)
    meter = Rapl()
    then = meter.read()
    powercap.spend(4000)
    assert powercap.standing["intel-rapl:0"] == 2900
    assert meter.between(then, meter.read()) == pytest.approx(4e-3, rel=1e-9)


def _gone(tree):
    shutil.rmtree(tree.root)


def _no_package(tree):
    for zone in ("intel-rapl:0", "intel-rapl:1"):
        (tree.root / zone / "name").write_text("core\n")


def _no_number(tree):
    (tree.root / "intel-rapl:1" / "energy_uj").write_text("many\n")


def _no_range(tree):
    (tree.root / "intel-rapl:0" / "max_energy_range_uj").write_text("0\n")


def _no_file(tree):
    (tree.root / "intel-rapl:0" / "energy_uj").unlink()


def _stuck(tree):
    energy_meters.pause = lambda seconds: None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_gone, "there is no package .RAPL. in .*powercap, .* search by latency"),
        (_no_package, "there is no package"),
        (_no_number, "intel-rapl:1/energy_uj holds 'many', no number"),
        (_no_range, "max_energy_range_uj is 0"),
        (_no_file, r"cannot read .*intel-rapl:0/energy_uj \(.*No such file"),
        (_stuck, "it counts no energy here, as in a virtual machine"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(damage, words, powercap, tiny_ops, monkeypatch):
    damage(powercap)
    with pytest.raises(EnergyError, match=words):
        meter_of(Spender()).check()
    prepared = []
    monkeypatch.setattr(Spender, "prepare", lambda self, chain, **_: prepared.append(chain))
    with pytest.raises(EnergyError, match=words):
        energy.build_energy_table(tiny_ops, backend=Spender(), input_size=32, progress=False)
    assert prepared == [], "refused before any work"


def test_a_counter_for_root_alone_is_told_how_to_open(powercap, monkeypatch):
    read = energy_meters.Path.read_text

    def as_another_user(path, **kwargs):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(path, **kwargs)

    monkeypatch.setattr(energy_meters.Path, "read_text", as_another_user)
    with pytest.raises(
        EnergyError, match=r"energy_uj may be read by root alone; .*sudo chmod a\+r .*intel-rapl:\*/energy_uj"
    ):
        Rapl()


def test_a_backend_that_keeps_its_own_time_is_refused(powercap):
    with pytest.raises(EnergyError, match="'fake' keeps its own time and has no run_for"):
        meter_of(FakeBackend())


def test_a_device_that_no_counter_is_of_is_refused(powercap):
    backend = Spender()
    backend.place = "npu"
    with pytest.raises(EnergyError, match="device 'npu' of backend 'spender' cannot be read"):
        meter_of(backend)


def test_a_busy_machine_is_refused(powercap, monkeypatch, tiny_ops):
    monkeypatch.delenv(SILENCE)
    monkeypatch.setattr(energy.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(energy, "share_of_others", lambda: 0.5)
    with pytest.raises(EnergyError, match=r"other work keeps 4\.0 cores of this machine busy"):
        energy.build_energy_table(tiny_ops, backend=Spender(), input_size=32, progress=False)
    monkeypatch.setattr(energy, "share_of_others", lambda: 0.05)
    energy.check_quiet()


class _NvmlError(Exception):
    pass


def _pynvml(monkeypatch, *, joules=None):
    module = ModuleType("pynvml")
    module.NVMLError = _NvmlError
    module.nvmlInit = lambda: None
    module.nvmlDeviceGetHandleByUUID = {"GPU-b": "the second"}.__getitem__
    readings = iter([7_000, 7_000, 7_250])

    def consumption(handle):
        assert handle == "the second"
        if joules is None:
            raise _NvmlError("Not Supported")
        return next(readings)

    module.nvmlDeviceGetTotalEnergyConsumption = consumption
    monkeypatch.setitem(sys.modules, "pynvml", module)
    found = {"cuda:1": ModuleType("GPU")}
    found["cuda:1"].uuid = "b"
    monkeypatch.setattr(torch.cuda, "get_device_properties", found.__getitem__)


def test_a_gpu_is_found_by_its_uuid_and_counts_millijoules(monkeypatch):
    _pynvml(monkeypatch, joules=True)
    meter = Nvml("cuda:1")
    assert meter.between(meter.read(), meter.read()) == pytest.approx(0.25)


def test_a_gpu_without_counter_or_package_is_refused_by_name(monkeypatch):
    _pynvml(monkeypatch)
    with pytest.raises(EnergyError, match=r"NVML cuda:1 does not tell its energy \(Not Supported\)"):
        Nvml("cuda:1")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(EnergyError, match="pip install nvidia-ml-py"):
        Nvml("cuda:1")


def test_runs_are_counted():
    calls = []
    assert runs_within(lambda: calls.append(1), 0.0) == len(calls) == 1
    assert runs_within(lambda: calls.append(1), 0.002) == len(calls) - 1


# ---- tables ----------------------------------------------------------------------------------------------------


def test_a_table_has_the_energy_of_each_operator_and_the_scale_of_nets(powercap, tiny_space, tiny_ops, tmp_path):
    fixed, edges = tiny_space
    out = tmp_path / "energy.yml"
    nets = draw_nets(fixed, edges, 7)
    table = energy.build_energy_table(
        tiny_ops, [*nets, nets[0]], backend=Spender(), input_size=32, out=out, plan=PLAN, progress=False
    )
    assert table.header.overhead_mj == pytest.approx(OVERHEAD_UJ / 1e3, rel=1e-6)
    for op in tiny_ops:
        if op.kind != "identity":
            assert table.energy_mj(op) == pytest.approx(operator_uj(op) / 1e3, rel=1e-6)
    assert (table.header.scale, table.header.nets) == (pytest.approx(2.0, rel=1e-6), 8)
    assert table.header.offset_mj == pytest.approx(0.0, abs=1e-4)
    assert table.header.mape == pytest.approx(0.0, abs=1e-6)
    assert EnergyTable.load(out) == table
    assert not out.with_name("energy.yml.partial").exists()
    model = EnergyModel(table, fixed=fixed, edges=edges)
    choices = {label: next(iter(options)) for label, options in edges.items()}
    chain = [*fixed, *(edges[label][name] for label, name in choices.items() if edges[label][name].kind != "identity")]
    assert (model.unit, model.cost(choices)) == ("mJ", pytest.approx(net_uj(chain) / 1e3, rel=1e-6))
    now = energy.energy_of(chain, backend=Spender(), plan=PLAN)
    assert now == pytest.approx(net_uj(chain) / 1e3, rel=1e-6)


def test_no_table_is_taken_for_one_of_the_other_kind(powercap, tiny_ops, tmp_path):
    latency, by_energy = tmp_path / "latency.yml", tmp_path / "energy.yml"
    make_table(tiny_ops).save(latency)
    energy.build_energy_table(tiny_ops, backend=Spender(), input_size=32, out=by_energy, plan=PLAN, progress=False)
    with pytest.raises(TableError, match=r"energy\.yml is a table of energy in mJ, not of latency"):
        LatencyTable.load(by_energy)
    with pytest.raises(TableError, match=r"latency\.yml is a table of latency, not of energy"):
        EnergyTable.load(latency)
    text = by_energy.read_text()
    for old, new, words in (
        ("unit: mJ", "unit: J", "has unit 'J', not 'mJ'"),
        ("unit: mJ", "unit: ms", "has unit 'ms', not 'mJ'"),
        ("{mj:", "{ms:", "unknown field 'ms'"),
        ("proxyless-energy-table", "proxyless-latency-table", "not of energy"),
    ):
        assert old in text
        by_energy.write_text(text.replace(old, new))
        with pytest.raises(TableError, match=words):
            EnergyTable.load(by_energy)
    with pytest.raises(TableError, match="has unit 'mJ', not 'ms'"):
        LatencyTable.load(by_energy)


def test_a_model_file_needs_a_backend_that_runs_it(powercap, tiny_ops, tmp_path):
    with pytest.raises(BackendError, match="cannot run a model file"):
        energy.energy_of(tiny_ops[:1], backend=Spender(), file=tmp_path / "net.onnx")


def test_an_operator_within_the_noise_of_nothing_has_a_least_energy_and_is_named(capsys):
    entry = energy._entry("conv-tiny", Measurement.of([0.95] * 9, quantile=0.1), 1.0)
    assert entry.mj == pytest.approx(0.02)
    assert "conv-tiny took 0.950000 mJ and the empty graph 1.000000 mJ" in capsys.readouterr().err
    with pytest.raises(EnergyError, match=r"less than the empty graph's 1\.000000 mJ"):
        energy._entry("conv-tiny", Measurement.of([0.5] * 9, quantile=0.1), 1.0)
