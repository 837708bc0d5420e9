"""A search within a target of energy, by counters whose every step is known, and what is refused before it."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from hardware.backends import registry
from hardware.errors import ConfigError, EnergyError, TableError
from hardware.measuring import energy, energy_meters
from hardware.measuring.energy_meters import Rapl
from hardware.measuring.sampling import Plan
from hardware.processor import SILENCE
from hardware.tables.energy import EnergyTable
from proxyless_strategy.config import parse_config
from proxyless_strategy.report.page import write_page
from proxyless_strategy.runs import search
from proxyless_strategy.runs.ended import finished_result
from proxyless_strategy.runs.experiment import _prepare
from proxyless_strategy.runs.finished import read_run
from proxyless_strategy.runs.prepare import prepare
from proxyless_strategy.runs.rows import results_table
from proxyless_strategy.shrinking.plan import check_shrink
from search_spaces import get_space
from tests.hardware.conftest import make_table
from tests.hardware.energy import Powercap, Spender, net_uj

from .test_search import QUICK, SPACE


@pytest.fixture(autouse=True)
def powercap(tmp_path, monkeypatch):
    tree = Powercap(tmp_path / "powercap")
    monkeypatch.setattr(energy_meters, "POWERCAP", tree.root)
    monkeypatch.setattr(energy_meters, "pause", tree.idle)
    monkeypatch.setattr(Rapl, "block_seconds", 0.001)
    monkeypatch.setattr(Spender, "powercap", tree, raising=False)
    monkeypatch.setattr(energy, "TABLE_PLAN", Plan(rounds=1, minimum_rounds=1, seconds=0.0, extra_rounds=0))
    monkeypatch.setattr(energy, "NET_PLAN", Plan(rounds=2, minimum_rounds=2, seconds=0.0, extra_rounds=0))
    monkeypatch.setitem(registry.FACTORIES, "spender", Spender)
    for name in ("XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv(SILENCE, "1")
    return tree


def settings(out, *, hardware=None, **changes):
    values = {
        "space": SPACE,
        "data": "digits",
        "input_size": 16,
        "hardware": {"backend": "spender", "cost": "energy", **(hardware or {})},
        "target": 0.5,
        "search": QUICK,
        "retrain": None,
        "out": str(out),
    }
    return parse_config({**values, **changes})


def test_a_search_by_energy_says_millijoules_from_its_table_to_its_row(tmp_path, capsys):
    table = tmp_path / "energy.yml"
    config = settings(tmp_path / "run", hardware={"table": str(table)})
    epochs = []
    result = search.run_search(config, on_epoch=epochs.append)
    said = capsys.readouterr()
    prepared = prepare(config, quiet=True)
    expected = net_uj(prepared.costs.chain(result.subnet.choices)) / 1e3
    row = json.loads((tmp_path / "run" / "row.json").read_text())
    assert (row["cost"], row["unit"]) == ("energy", "mJ")
    assert row["energy_mj"] == pytest.approx(expected, rel=1e-6)
    assert row["subnet_cost"] == pytest.approx(expected, rel=1e-6)
    low, high = prepared.cost.minimum()[0], prepared.cost.maximum()[0]
    assert row["target_cost"] == pytest.approx((low + high) / 2)
    assert row["subnet_cost"] <= row["target_cost"]
    assert (row["target_ms"], row["table_ms"], row["hardware"]) == (None, None, "a counter")
    assert {epoch["unit"] for epoch in epochs} == {"mJ"}
    assert "a counter (spender, 1 thread, batch 1, float32, energy by RAPL package-0, package-1)" in said.out
    assert f"derived {' '.join(result.subnet.choices.values())}: {expected:.4g} mJ by the table" in said.out
    assert "E[energy]" in said.out + said.err
    assert "E[LAT]" not in said.out + said.err
    assert EnergyTable.load(table).header.nets > 0
    # whatever reads the run again
    assert finished_result(config).row() == row
    assert read_run(tmp_path / "run").cost.unit == "mJ"
    console = Console(width=300, record=True, file=io.StringIO())
    console.print(results_table([row]))
    assert "measured mJ" in (text := console.export_text())
    assert f"{expected:.4g}" in text
    page = write_page(tmp_path / "run", tmp_path / "page.html").read_text()
    assert "measured mJ" in page
    table.write_text(table.read_text().replace("scale: ", "scale: 1"))
    with pytest.raises(TableError, match="by the table of its search"):
        _ = read_run(tmp_path / "run").cost


def test_an_unreadable_counter_at_the_end_is_said_and_costs_only_its_figure(tmp_path, capsys, powercap, monkeypatch):
    config = settings(tmp_path / "run")
    prepared = prepare(config, quiet=True)
    subnet = next(iter(prepared.costs.random_choices(1, seed=0)))
    (powercap.root / "intel-rapl:1" / "energy_uj").unlink()
    named = type("Named", (), {"choices": subnet})
    assert search.measured_energy(prepared, named, tmp_path / "net.onnx") is None
    assert "the energy of the exported network was not measured: cannot read" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("hardware", "changes", "words"),
    [
        (
            {},
            {"target": None, "target_ms": 3.0},
            "target_ms = 3.0 is no target for hardware.cost energy; give target_cost",
        ),
        ({"dtype": "int8"}, {}, "hardware.dtype = int8, but hardware.cost energy is of float32"),
        ({"fill": "model.json"}, {}, "hardware.fill = model.json, but hardware.cost energy"),
    ],
)
def test_what_energy_cannot_be_combined_with_is_refused(hardware, changes, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        settings(tmp_path / "run", hardware=hardware, **changes)


def test_energy_that_others_would_draw_is_refused(tmp_path):
    several = settings(tmp_path / "run", search={**QUICK, "devices": 2})
    with pytest.raises(ConfigError, match=r"hardware.cost energy is searched by one process, .* search.devices = 2"):
        prepare(several, quiet=True)
    config = settings(tmp_path / "run")
    sweep = type("Sweep", (), {"config": {"trialConcurrency": 2}, "trials": (), "configs": lambda self: [config]})()
    with pytest.raises(ConfigError, match="trialConcurrency = 2, but energy is measured while nothing else runs"):
        _prepare(sweep, None)


def test_no_counter_is_refused_before_anything_is_loaded(tmp_path, powercap, monkeypatch):
    for zone in ("intel-rapl:0", "intel-rapl:1"):
        (powercap.root / zone / "name").unlink()
    loaded = []
    monkeypatch.setattr("proxyless_strategy.runs.prepare.load_data", lambda *args, **options: loaded.append(args))
    with pytest.raises(EnergyError, match=r"cannot read .*intel-rapl:0/name"):
        prepare(settings(tmp_path / "run"), quiet=True)
    assert loaded == []
    assert not (tmp_path / "run").exists()


def test_a_table_of_latency_is_no_table_of_energy(tmp_path):
    table = tmp_path / "latency.yml"
    costs = get_space(SPACE["name"], **SPACE["options"]).costs(16, num_classes=10, in_chans=1)
    make_table(costs.distinct(), input_size=16).save(table)
    for device in ("this", "other"):
        with pytest.raises(TableError, match="is a table of latency, not of energy"):
            prepare(settings(tmp_path / "run", hardware={"table": str(table), "device": device}), quiet=True)
    prepare(settings(tmp_path / "run", hardware={"table": str(tmp_path / "energy.yml")}), quiet=True)
    with pytest.raises(TableError, match="is a table of energy in mJ, not of latency"):
        prepare(
            settings(
                tmp_path / "run",
                hardware={"table": str(tmp_path / "energy.yml"), "cost": "macs", "device": "other"},
            ),
            quiet=True,
        )


def test_a_shrinking_compares_latencies_alone(tmp_path):
    config = settings(tmp_path / "run", space={"name": "timm:mobilenetv2_100"}, retrain={"epochs": 1})
    with pytest.raises(ConfigError, match=r"hardware\.cost energy shrinks no model"):
        check_shrink(config)
