"""`proxyless latency` on a device whose clock is a formula; one slow test on this machine, with a kit and a search."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import filelock
import pytest
import yaml

from hardware import backends
from hardware.backends import registry
from hardware.measuring.sampling import Plan
from hardware.op_spec import OpSpec
from hardware.tables.shipped import __file__ as tables_file
from hardware.tables.table import LatencyTable
from proxyless_strategy.cli import main as cli
from proxyless_strategy.runs.space_table import costs_of_table, latency_model
from search_spaces import get_space
from tests.fake_phone import phone
from tests.hardware.conftest import FakeBackend, Tunable, alone_ms, net_ms, operator_ms

SPACE = ("--space", "small_mbconv", "--input-size", "16", "--classes", "10", "--channels", "1")
FAKE_PHONE = Path(phone.__file__).parent
PIXEL1 = Path(tables_file).with_name("pixel1.yml")
COMMANDS = ("build", "prepare", "show", "check", "fit", "fill", "kit", "import", "convert")


@pytest.fixture(autouse=True)
def formula(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> list[FakeBackend]:
    """A backend named `fake`; the ones that were opened, in order. Its locks are this test run's own."""
    opened: list[FakeBackend] = []

    def make() -> FakeBackend:
        opened.append(FakeBackend())
        return opened[-1]

    monkeypatch.setattr(registry, "FACTORIES", dict(registry.FACTORIES))
    backends.register_backend("fake", make)
    folder = str(tmp_path_factory.getbasetemp())
    monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
    return opened


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def status_of(*arguments: str) -> Any:
    with pytest.raises(SystemExit) as exit_:
        cli.main(["latency", *arguments])
    return exit_.value.code or 0


def build(out: str = "table.yml", *more: str) -> Any:
    return status_of("build", *SPACE, "--backend", "fake", "--out", out, "--seconds", "0.1", *more)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One table of the formula, built once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "FACTORIES", {**registry.FACTORIES, "fake": FakeBackend})
        patch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.getbasetemp()))
        out = tmp_path_factory.mktemp("built") / "table.yml"
        assert build(str(out)) == 0
    return out


@pytest.fixture
def table(built: Path, here: Path) -> Path:
    """A copy of that table, which a test may change."""
    return Path(shutil.copy(built, here / "table.yml"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence with which a command refuses; it must leave with 2 and print nothing else."""
    capsys.readouterr()
    assert status_of(*arguments) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert len(error.splitlines()) == 1
    return error


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--help") == 0
    page = capsys.readouterr().out
    assert all(command in page for command in COMMANDS)


# ---- show ----------------------------------------------------------------------------------------------------------


def test_show_prints_the_sums_of_the_pixel_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("show", "pixel1") == 0
    page = capsys.readouterr().out
    rows = dict(line.strip().rsplit(None, 1) for line in page.split("ms (uncalibrated)\n")[1].splitlines())
    assert rows == {
        "fixed parts": "11.3642",
        "all 3x3_e3": "76.0481",
        "all 3x3_e6": "136.4663",
        "all 5x5_e3": "87.7203",
        "all 5x5_e6": "158.9527",
        "all 7x7_e3": "103.6662",
        "all 7x7_e6": "191.0299",
        "minimum": "29.6088",
        "maximum": "191.0299",
        "E[LAT] at alpha = 0": "113.9881",
    }
    assert "Google Pixel 1" in page
    assert "uncalibrated" in page


def test_show_knows_the_tables_own_space_classes_and_channels(
    table: Path, capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    assert status_of("show", str(table), "--layers", "minimum", "--plot", "layers.png") == 0
    page = capsys.readouterr().out
    assert "small_mbconv at 16 px, ms\n" in page
    assert "stage1_block0" in page
    assert (here / "layers.png").stat().st_size > 5_000


def test_show_of_a_table_of_no_known_space_shows_its_header(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = LatencyTable.load(table)
    dataclasses.replace(loaded, header=dataclasses.replace(loaded.header, space="mine")).save(table)
    assert status_of("show", str(table)) == 0
    assert "give --space" in capsys.readouterr().out
    assert "give --space" in refused(capsys, "show", str(table), "--layers", "minimum")


def test_show_refuses_another_width_and_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "show", "pixel1", "--space", "imagenet_mbconv", "--space-option", "width_mult=1.1")
    assert "nearest to the first are" in error


# ---- build ---------------------------------------------------------------------------------------------------------


def test_a_built_table_has_the_space_the_settings_and_a_calibration(capsys: pytest.CaptureFixture[str]) -> None:
    assert build("deep/table.yml", "--batch", "2", "--threads", "3", "--nets", "9") == 0
    assert "table: deep/table.yml (" in capsys.readouterr().out
    header = LatencyTable.load("deep/table.yml").header
    assert (header.space, header.backend, header.input_size) == ("small_mbconv", "fake", 16)
    assert header.calibration is not None
    assert (header.batch, header.threads, header.calibration.nets) == (2, 3, 10)


def test_a_device_of_the_backend_is_chosen_recorded_and_used_again(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    used: list[str] = []

    class TwoDevices(FakeBackend):
        place = "npu:0"

        def use(self, place: str) -> None:
            used.append(place)
            self.place = place

    monkeypatch.setitem(registry.FACTORIES, "fake", TwoDevices)
    assert build("first.yml") == 0
    assert (LatencyTable.load("first.yml").header.place, used) == ("npu:0", [])
    assert build("second.yml", "--device", "npu:1") == 0
    assert (LatencyTable.load("second.yml").header.place, used) == ("npu:1", ["npu:1"])
    used.clear()
    assert status_of("check", "second.yml", "--nets", "6", "--seconds", "0.1") == 0
    assert set(used) == {"npu:1"}
    monkeypatch.setitem(registry.FACTORIES, "fake", FakeBackend)
    assert "measures on 'cpu' alone, not on 'npu:1'" in refused(capsys, "check", "second.yml", "--nets", "6")
    build_on = ("build", *SPACE, "--backend", "fake", "--out", "third.yml", "--device", "npu:1")
    assert "leave the device out" in refused(capsys, *build_on)
    assert not (here / "third.yml").exists()


def test_number_format_and_options_are_chosen_recorded_and_used_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry.FACTORIES, "fake", Tunable)
    assert build("plain.yml") == 0
    assert build("tuned.yml", "--dtype", "int8", "--option", "graphs=false", "--option", "streams=2") == 0
    header = LatencyTable.load("tuned.yml").header
    assert (header.dtype, header.options) == ("int8", {"graphs": False, "streams": 2, "mode": "fair"})
    # as fast as by the table only if it is measured with the table's own settings
    assert status_of("check", "tuned.yml", "--nets", "6", "--seconds", "0.1") == 0
    assert "was 1.000 x as slow" in capsys.readouterr().out
    assert status_of("show", "tuned.yml") == 0
    assert "int8, graphs false, streams 2, mode fair" in capsys.readouterr().out
    build_on = ("build", *SPACE, "--backend", "fake", "--out", "third.yml")
    assert "no option 'graph'; it has graphs (true)" in refused(capsys, *build_on, "--option", "graph=true")
    assert "measures float32, int8" in refused(capsys, *build_on, "--dtype", "int4")


def test_options_of_the_space_are_kept_and_used_again(capsys: pytest.CaptureFixture[str]) -> None:
    assert build("table.yml", "--space-option", "kernels=[3, 5]", "--space-option", "stem_stride=1") == 0
    assert LatencyTable.load("table.yml").header.space == "small_mbconv kernels=[3,5] stem_stride=1"
    capsys.readouterr()
    assert status_of("show", "table.yml") == 0
    page = capsys.readouterr().out
    assert "all 5x5_e6" in page
    assert "all 7x7_e6" not in page


def test_an_existing_table_is_replaced_only_by_force(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = table.read_text()
    assert "exists" in refused(capsys, "build", *SPACE, "--backend", "fake", "--out", str(table), "--seconds", "0.1")
    assert table.read_text() == before
    assert build(str(table), "--nets", "11", "--force") == 0
    assert table.read_text() != before


def test_two_builds_of_one_file_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with filelock.FileLock(here / ".table.yml.lock"):
        error = refused(capsys, "build", *SPACE, "--backend", "fake", "--out", "table.yml")
    assert "another process is building" in error
    assert not (here / "table.yml").exists()


def test_an_interrupted_build_continues(
    monkeypatch: pytest.MonkeyPatch, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(registry.FACTORIES, "fake", lambda: FakeBackend(stop_after=1000))
    assert build() == 130
    assert "continues from table.yml.partial" in capsys.readouterr().err
    assert not (here / "table.yml").exists()
    kept = json.loads((here / "table.yml.partial").read_text())["samples"]
    fewest = min(map(len, kept.values()))
    assert fewest > 3

    again = FakeBackend()
    monkeypatch.setitem(registry.FACTORIES, "fake", lambda: again)
    monkeypatch.setattr(
        "hardware.measuring.sampling.Plan", lambda **given: Plan(**{**given, "rounds": fewest + 1, "minimum_rounds": 1})
    )
    assert build() == 0
    assert not (here / "table.yml.partial").exists()
    assert LatencyTable.load("table.yml").header.repeats == fewest + 1
    warm_up = 5 * len(kept)
    assert len(again.timed) - warm_up <= 2 * len(kept)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--space", "smal", "--input-size", "16", "--out", "t.yml"), "unknown search space 'smal'"),
        ((*SPACE, "--out", "t.yml", "--backend", "abacus"), "backend 'abacus' is unknown"),
        ((*SPACE, "--out", "t.yml", "--space-option", "kernels"), "--space-option kernels names no value"),
        ((*SPACE, "--out", "t.yml", "--space-option", "kernel=[3]"), "unknown option"),
        ((*SPACE, "--out", "."), "is a folder"),
        ((*SPACE, "--out", "file/t.yml"), "no folder that may be written to"),
    ],
)
def test_a_build_that_cannot_work_is_one_sentence(
    capsys: pytest.CaptureFixture[str], here: Path, arguments: tuple[str, ...], words: str
) -> None:
    (here / "file").touch()
    assert words in refused(capsys, "build", *arguments)
    assert sorted(path.name for path in here.iterdir() if not path.name.startswith(".")) == ["file"]


# ---- check ---------------------------------------------------------------------------------------------------------


def test_check_compares_nets_that_the_calibration_has_not_seen(
    table: Path, here: Path, formula: list[FakeBackend], capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = LatencyTable.load(table).header.calibration
    assert status_of("check", str(table), "--nets", "12", "--plot", "check.png", "--seconds", "0.1") == 0
    page = capsys.readouterr().out
    for word in ("uniform", "depth-varied", "together", "raw", "calibrated", "Kendall", "noisy entries: none"):
        assert word in page
    checked = LatencyTable.load(table)
    assert checked.header.calibration == calibration
    assert checked.header.checks["nets"] == 12
    assert checked.header.checks["together"]["calibrated"]["spearman"] > 0.97
    assert (here / "check.png").stat().st_size > 10_000
    timed = {name for name in formula[-1].timed if "+" in name}
    costs, _ = cli.latency_cli.space_costs("small_mbconv", None, 16, 10, 1)
    seen = {"+".join(op.key for op in net) for net in cli.latency_cli.calibration_nets(costs, 24)}
    assert calibration is not None
    assert timed & seen <= {"+".join(reference.ops) for reference in calibration.references}
    assert len(timed - seen) == 12


def test_the_two_groups_of_a_check_differ_in_depth(built: Path) -> None:
    costs, _ = cli.latency_cli.space_costs("small_mbconv", None, 16, 10, 1)
    uniform = cli.latency_cli.unseen_nets(costs, 40, seed=1, seen=set(), depth="uniform")
    varied = cli.latency_cli.unseen_nets(costs, 40, seed=1, seen=set(), depth="varied")
    assert set(uniform) <= {costs.chain(c) for c in costs.random_choices(80, seed=1, vary_depth=False)}
    assert set(varied) <= {costs.chain(c) for c in costs.random_choices(320, seed=1)[1::2]}
    assert len(set(uniform)) == len(set(varied)) == 40


def test_check_calibrates_anew_on_request_and_where_there_is_none(table: Path) -> None:
    loaded = LatencyTable.load(table)
    bare = dataclasses.replace(loaded, header=dataclasses.replace(loaded.header, calibration=None, context={}))
    bare.save(table)
    assert status_of("check", str(table), "--nets", "6", "--seconds", "0.1") == 0
    calibration = LatencyTable.load(table).header.calibration
    assert calibration is not None
    assert calibration.nets == 10
    assert status_of("check", str(table), "--nets", "6", "--calibrate", "5", "--seconds", "0.1") == 0
    calibration = LatencyTable.load(table).header.calibration
    assert calibration is not None
    assert calibration.nets == 5


def test_check_names_noisy_and_non_monotone_entries(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = LatencyTable.load(table)
    small, large = (
        next(key for key in loaded.entries if key.startswith("mbconv") and f"-k:{kernel}-" in key) for kernel in (3, 7)
    )
    slow = dataclasses.replace(loaded.entries[small], ms=2 * loaded.entries[large].ms, spread=0.7)
    dataclasses.replace(loaded, entries={**loaded.entries, small: slow}).save(table)
    assert status_of("check", str(table), "--nets", "6", "--seconds", "0.1") == 0
    page = capsys.readouterr().out
    assert f"noisy entries: 1\n  {small} (spread 70 %)" in page
    assert f"{small} takes" in page
    assert large in page


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("a formula", "a board"), "this machine is 'a formula'"),
        (lambda text: text.replace("backend: fake", "backend: tflite"), "which this machine cannot run"),
        (lambda text: text[: len(text) // 2] + "{", "no valid YAML"),
        (lambda text: text.replace("unit: ms", "unit: s"), "has unit 's'"),
        (lambda text: text.replace("{ms: ", "{ms: -", 1), "must be finite and not negative"),
        (lambda text: text.replace("{ms: ", "{ms: .nan, ms: ", 1), "twice"),
        (lambda text: "a: 1", "no latency table of this project"),
        (lambda text: text.replace("input_size: 16", "input_size: 32"), "not in the latency table"),
    ],
)
def test_check_refuses_broken_and_foreign_tables_and_leaves_them(
    table: Path, capsys: pytest.CaptureFixture[str], change: Any, words: str
) -> None:
    broken = change(table.read_text())
    assert broken != table.read_text()
    table.write_text(broken)
    assert words in refused(capsys, "check", str(table), "--nets", "6", "--seconds", "0.1")
    assert table.read_text() == broken


def test_check_refuses_another_size_and_space(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "input size 16, not 32" in refused(capsys, "check", str(table), "--input-size", "32")
    assert "not in the latency table" in refused(capsys, "check", str(table), "--space", "imagenet_mbconv")


# ---- fit, fill -----------------------------------------------------------------------------------------------------


def test_fit_reports_the_model_beside_the_table_and_fill_marks_predictions(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of("fit", str(table), "--nets", "60", "--out", "model.json", "--seconds", "0.1") == 0
    page = capsys.readouterr().out
    assert page.startswith("12 test nets of 60:")
    assert "learned model   RMSE" in page
    assert "table           RMSE" in page

    fill = ("fill", "model.json", "--space", "small_mbconv", "--classes", "10", "--channels", "1")
    other_width = ("--space-option", "width_mult=2")
    assert status_of(*fill, "--input-size", "24", *other_width, "--out", "other.yml") == 0
    assert status_of("show", "other.yml") == 0
    other = LatencyTable.load("other.yml")
    assert other.header.input_size == 24
    assert all(entry.predicted for entry in other.entries.values())

    wide = ("--space-option", "width_mult=1.5", "--table", str(table), "--out", "wide.yml")
    assert status_of(*fill, *wide) == 0
    filled, before = LatencyTable.load("wide.yml"), LatencyTable.load(table)
    assert all(filled.entries[key] == entry for key, entry in before.entries.items())
    assert any(entry.predicted for entry in filled.entries.values())
    capsys.readouterr()
    assert status_of("show", "wide.yml", "--space", "small_mbconv", "--space-option", "width_mult=1.5") == 0
    assert "predicted)" in capsys.readouterr().out


def test_fill_refuses_a_table_of_another_size_and_what_is_no_model(
    table: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "model.json").write_text("{}")
    fill = ("fill", "model.json", "--space", "small_mbconv", "--out", "filled.yml")
    assert "no learned latency model" in refused(capsys, *fill)
    assert status_of("fit", str(table), "--nets", "30", "--out", "good.json", "--seconds", "0.1") == 0
    fill = ("fill", "good.json", "--space", "small_mbconv", "--out", "filled.yml")
    assert "leave out --table" in refused(capsys, *fill, "--table", str(table), "--input-size", "24")
    assert not (here / "filled.yml").exists()


# ---- kit, import, convert ------------------------------------------------------------------------------------------


def test_a_kit_is_imported_with_figures_on_its_held_out_nets(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("kit", *SPACE, "--nets", "10", "--held-out", "5", "--out", "kit") == 0
    assert "python measure.py" in capsys.readouterr().out
    run_kit(sys.executable, here / "kit", "--rounds", "4", "--seconds", "0")
    assert status_of("import", "kit/results.json", "--out", "board.yml") == 0
    assert "on 5 held-out nets" in capsys.readouterr().out
    header = LatencyTable.load("board.yml").header
    assert header.calibration is not None
    assert (header.device, header.calibration.nets, header.checks["nets"]) == ("a board", 11, 5)
    assert "exists" in refused(capsys, "import", "kit/results.json", "--out", "board.yml")
    assert "is not empty" in refused(capsys, "kit", *SPACE, "--out", "kit")
    assert "give 3 or more" in refused(capsys, "kit", *SPACE, "--held-out", "2", "--out", "kit2")


def test_a_kit_in_int8_becomes_a_table_that_searches_for_int8_take_and_no_others(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_kit = ("--nets", "10", "--held-out", "3", "--dtype", "int8")
    assert status_of("kit", *SPACE, *of_kit, "--out", "kit") == 0
    assert "14 whole nets, int8)" in capsys.readouterr().out
    assert "graphs are in float32 or int8, not in 'int4'" in refused(
        capsys, "kit", *SPACE, "--dtype", "int4", "--out", "kit4"
    )
    run_kit(sys.executable, here / "kit", "--rounds", "4", "--seconds", "0")
    assert status_of("import", "kit/results.json", "--out", "board.yml") == 0
    assert LatencyTable.load("board.yml").header.dtype == "int8"
    of_search = ("space: small_mbconv", "input_size: 16", "data: {name: digits}", "target: 0.5", "out: run")
    for where in ("device: other", "device: other, dtype: int8", "dtype: int8", "dtype: int8, device: cpu"):
        (here / "search.yml").write_text("\n".join([*of_search, f"hardware: {{table: board.yml, {where}}}"]))
        assert status_of("prepare", "search.yml") == 0
    for where in ("device: other, dtype: float32", "device: this"):
        (here / "search.yml").write_text("\n".join([*of_search, f"hardware: {{table: board.yml, {where}}}"]))
        said = refused(capsys, "prepare", "search.yml")
        assert "was measured with dtype int8, but the config says float32; set hardware.dtype" in said
    # as of a phone's LiteRT
    table = LatencyTable.load("board.yml")
    dataclasses.replace(table, header=dataclasses.replace(table.header, backend="tflite")).save("board.yml")
    (here / "search.yml").write_text("\n".join([*of_search, "hardware: {table: board.yml, device: other}"]))
    assert status_of("prepare", "search.yml") == 0
    assert "no int8 file is made for tflite: the export and its accuracy are in float32" in capsys.readouterr().err


def test_a_kit_for_a_thousand_classes_serves_a_data_set_of_three(here: Path) -> None:
    of_space = ("--space", "small_mbconv", "--input-size", "16")
    assert status_of("kit", *of_space, "--nets", "10", "--held-out", "0", "--out", "kit") == 0
    run_kit(sys.executable, here / "kit", "--rounds", "4", "--seconds", "0")
    assert status_of("import", "kit/results.json", "--out", "board.yml") == 0
    table = LatencyTable.load("board.yml")
    space = get_space("small_mbconv")
    three, own = (space.costs(16, num_classes=classes) for classes in (3, 1000))
    assert set(own.distinct()) - set(three.distinct())
    latency_model(table, three)
    head = next(op for op in three.fixed if op.kind == "head")
    fewer, more = (table.latency_ms(dataclasses.replace(head, output_shape=(n,))) for n in (1, 10))
    assert table.latency_ms(head) == pytest.approx(fewer + 2 / 9 * (more - fewer))
    # of which classes a table is says its calibration, whatever else it has
    assert costs_of_table(table, None, None, None, None, None, file="board.yml").distinct() == own.distinct()


def test_what_is_no_results_file_is_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "results.json").write_text('{"format": ')
    assert "no valid JSON" in refused(capsys, "import", "results.json", "--out", "board.yml")
    assert "no results file" in refused(capsys, "import", "none.json", "--out", "board.yml")
    assert not (here / "board.yml").exists()


def test_released_tables_are_read_and_written(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("convert", "pixel1", "--out", "released.yaml") == 0
    released = yaml.safe_load((here / "released.yaml").read_text())
    assert len(released) == 72
    assert released["Conv-input:224x224x3-output:112x112x32"]["mean"] == pytest.approx(4.083756)
    assert status_of("convert", "released.yaml", "--device", "a phone", "--out", "ours.yml") == 0
    ours = LatencyTable.load("ours.yml")
    assert ours.header.device == "a phone"
    assert {key: entry.ms for key, entry in ours.entries.items()} == pytest.approx(
        {key: entry.ms for key, entry in LatencyTable.load(PIXEL1).entries.items()}
    )
    assert status_of("convert", "released.yaml", "--proxylessnas", "--out", "again.yaml") == 0
    assert yaml.safe_load((here / "again.yaml").read_text()).keys() == released.keys()
    assert "exists" in refused(capsys, "convert", "pixel1", "--out", "ours.yml")
    assert "there is no latency table at none.yaml" in refused(capsys, "convert", "none.yaml", "--out", "a.yml")


def test_profiles_of_trtexec_are_imported_with_their_kit(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("kit", *SPACE, "--nets", "8", "--held-out", "3", "--full-weights", "--out", "kit") == 0
    graphs = json.loads((here / "kit/kit.json").read_text())["graphs"]
    (here / "profiles").mkdir()
    for name, keys in graphs.items():
        ms = sum(operator_ms(OpSpec.from_key(key)) for key in keys)
        layer = {"name": "all", "timeMs": 100 * ms, "averageMs": ms, "medianMs": ms, "percentage": 100}
        (here / "profiles" / name).with_suffix(".json").write_text(json.dumps([{"count": 100}, layer]))
    (here / "profiles/overhead.json").unlink()
    imported = ("import", "profiles", "--format", "trtexec", "--out", "board.yml")
    assert "give --kit and --device" in refused(capsys, *imported, "--device", "a board")
    assert "give --kit and --device" in refused(capsys, *imported, "--kit", "kit")
    of_board = ("--kit", "kit", "--device", "a board", "--dtype", "float16", "--runtime-version", "10.3")
    assert status_of(*imported, *of_board) == 0
    table = LatencyTable.load("board.yml")
    assert (table.header.device, table.header.backend, table.header.dtype) == ("a board", "tensorrt", "float16")
    assert table.header.versions == {"tensorrt": "10.3"}
    ops = [OpSpec.from_key(keys[0]) for name, keys in graphs.items() if name.startswith("op_")]
    assert all(table.latency_ms(op) == pytest.approx(operator_ms(op), rel=1e-2) for op in ops)
    (here / "profiles/op_000.json").unlink()
    assert "lacks the profiles of 1 of" in refused(capsys, *imported, *of_board, "--force")
    as_kit = ("import", "profiles", "--device", "a board", "--out", "b.yml")
    assert "--device is for --format trtexec; a kit's results say it themselves" in refused(capsys, *as_kit)


def searched(here: Path, hardware: dict[str, str], *, input_size: int, search: dict[str, int]) -> dict[str, Any]:
    """Search under a table by the command line; return the row."""
    config = {
        "space": "small_mbconv",
        "data": "digits",
        "input_size": input_size,
        "hardware": hardware,
        "target": 0.3,
        "search": search,
        "retrain": None,
        "out": "run",
    }
    (here / "search.yml").write_text(yaml.safe_dump(config))
    with pytest.raises(SystemExit) as exit_:
        cli.main(["search", "search.yml"])
    assert not exit_.value.code
    row: dict[str, Any] = json.loads((here / "run" / "row.json").read_text())
    assert row["table_ms"] <= row["target_ms"]
    return row


@pytest.mark.slow
def test_a_phone_is_measured_by_its_kit_and_searched_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the kit by the script with a fake adb and its phone to a table, and a search with it."""
    of_kit = ("--nets", "8", "--held-out", "0", "--android", "--out", "kit")
    assert status_of("kit", *SPACE, *of_kit) == 0
    graphs = json.loads((here / "kit/kit.json").read_text())["graphs"]
    chains = {name[:-5]: [OpSpec.from_key(key) for key in keys] for name, keys in graphs.items()}
    figures = {name: net_ms(c) if name.startswith("net") else alone_ms(c) for name, c in chains.items()}
    phone.make(here / "phone", figures=figures)
    monkeypatch.setenv("FAKE_PHONE", str(here / "phone"))
    command = [sys.executable, "-I", "kit/measure_android.py", "--adb", FAKE_PHONE / "adb", "--rounds", "1"]
    command += ["--runtime", "onnxruntime", "--program", FAKE_PHONE / "onnxruntime_perf_test", "--poll", "0"]
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    assert status_of("import", "results.json", "--out", "phone.yml") == 0
    table = LatencyTable.load("phone.yml")
    costs = get_space("small_mbconv").costs(16, num_classes=10, in_chans=1)
    for choices in costs.random_choices(3, seed=9):
        assert table.calibrated_ms(costs.chain(choices)) == pytest.approx(net_ms(costs.chain(choices)), rel=1e-2)
    hardware = {"table": "phone.yml", "device": "other"}
    row = searched(here, hardware, input_size=16, search={"warmup_epochs": 0, "epochs": 1})
    assert row["latency_ms"] is None  # of this machine it would be, and not of the phone


def run_kit(python: str, folder: Path, *options: str) -> None:
    """Runs a kit's script in its folder, as on a device: outside this package and its environment."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder)}
    command = [python, "-I", "measure.py", "--device", "a board", *options]
    subprocess.run(command, check=True, cwd=folder, env=environment, capture_output=True, timeout=240)


@pytest.fixture
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The Python of a virtual environment with onnxruntime alone."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=120)
    pip = [python, "-m", "pip", "install", "--quiet", "onnxruntime"]
    installed = subprocess.run(pip, capture_output=True, text=True, timeout=240)
    if installed.returncode:
        pytest.skip(f"pip cannot install onnxruntime here: {installed.stderr.strip().splitlines()[-1]}")
    code = "import onnxruntime; import importlib.util as u; print([u.find_spec(m) for m in ('torch', 'onnx', 'nni')])"
    found = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[None, None, None]"
    return str(python)


@pytest.mark.slow
def test_a_search_on_a_table_that_a_bare_environment_measured(here: Path, bare_python: str) -> None:
    kit_of = ("--space", "small_mbconv", "--input-size", "32", "--classes", "10", "--channels", "1")
    assert status_of("kit", *kit_of, "--out", "kit") == 0
    device = Path(shutil.move(here / "kit", here / "device"))
    run_kit(bare_python, device, "--seconds", "10")
    assert status_of("import", str(device / "results.json"), "--out", "device.yml") == 0
    hardware = {"backend": "onnxruntime", "table": "device.yml"}
    row = searched(here, hardware, input_size=32, search={"warmup_epochs": 1, "epochs": 2})
    assert Path(row["onnx"]).exists()
