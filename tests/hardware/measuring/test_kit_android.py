"""A kit measured on a phone that is a program: its adb, its storage, its heat, and times that are a formula."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hardware.errors import TableError
from hardware.measuring import kit
from hardware.measuring.calibration import alone_ms as summed_alone
from hardware.measuring.kit import import_results, table_of, write_kit
from hardware.op_spec import IDENTITY, OpSpec
from tests.fake_phone import phone as fake
from tests.hardware.conftest import alone_ms, draw_nets, make_space, net_ms

FAKE = Path(__file__).parents[2] / "fake_phone"
TFLITE, ONNX = FAKE / "benchmark_model", FAKE / "onnxruntime_perf_test"
SMALL = make_space(16, 8, 8, [(16, 2, 2)], 32, 10)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit for phones, whose .tflite files are stand-ins: the fake program does not look into them."""
    fixed, edges = SMALL
    ops = [*fixed, *(op for options in edges.values() for op in options.values())]
    out = tmp_path_factory.mktemp("written") / "kit"
    script = write_kit(ops, draw_nets(fixed, edges, 8, seed=1), out, input_size=16, space="tiny", android=True)
    assert script == out / "measure_android.py"
    for graph in (out / "graphs").iterdir():
        shutil.copy(graph, graph.with_suffix(".tflite"))
    return out


def figures_of(folder: Path) -> dict[str, float]:
    graphs = json.loads((folder / "kit.json").read_text())["graphs"]
    chains = {Path(name).stem: [OpSpec.from_key(key) for key in keys] for name, keys in graphs.items()}
    return {name: net_ms(c) if name.startswith("net") else alone_ms(c) for name, c in chains.items()}


@pytest.fixture(scope="module")
def script(written: Path) -> Iterator[ModuleType]:
    """The kit's script as a module, with what lies beside it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(written), *sys.path])
        beside = ("measure", "phone", "measure_android")
        assert not set(beside) & sys.modules.keys()
        yield importlib.import_module("measure_android")
        for name in beside:
            del sys.modules[name]


class Bench:
    """A table with a computer, a kit, and a phone at its cable."""

    def __init__(self, folder: Path, kit_folder: Path) -> None:
        self.folder, self.kit = folder, kit_folder
        self.phone = folder / "phone"

    def plug(self, **changes: Any) -> None:
        fake.make(self.phone, **{"figures": figures_of(self.kit), **changes})

    def start(self, *options: str | Path, program: Path = TFLITE) -> subprocess.CompletedProcess[str]:
        kind = ("--runtime", "onnxruntime") if program.name == ONNX.name else ()
        command = [sys.executable, "-I", self.kit / "measure_android.py", "--adb", FAKE / "adb", "--program", program]
        command += [*kind, "--rounds", "1", "--poll", "0", *options]
        # the Python of the fake programs is this one, not whatever is first in the path
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {"PATH": path, "FAKE_PHONE": str(self.phone)}
        return subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=120, check=False
        )

    def measured(self, *options: str | Path, program: Path = TFLITE) -> dict[str, Any]:
        done = self.start(*options, program=program)
        assert done.returncode == 0, done.stderr
        assert not (self.folder / "results.json.partial").exists()
        return json.loads((self.folder / "results.json").read_text())

    def refused(self, *options: str | Path, program: Path = TFLITE) -> str:
        done = self.start(*options, program=program)
        assert done.returncode == 1, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert not (self.folder / "results.json").exists()
        return done.stderr

    @property
    def state(self) -> dict[str, Any]:
        return json.loads((self.phone / "state.json").read_text())


@pytest.fixture
def bench(written: Path, tmp_path: Path) -> Bench:
    """With a kit of four graphs, as what may go wrong needs no more."""
    folder = tmp_path / "kit"
    shutil.copytree(written, folder)
    manifest = json.loads((folder / "kit.json").read_text())
    names = ("overhead.onnx", "op_000.onnx", "op_001.onnx", "net_000.onnx")
    manifest["graphs"] = {name: manifest["graphs"][name] for name in names}
    (folder / "kit.json").write_text(json.dumps(manifest))
    made = Bench(tmp_path, folder)
    made.plug()
    return made


def test_the_kit_says_how_a_phone_is_measured(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == {
        "graphs",
        "kit.json",
        "measure.py",
        "measure_android.py",
        "phone.py",
    }
    done = subprocess.run([sys.executable, written / "measure_android.py", "--help"], capture_output=True, text=True)
    for word in ("adb", "benchmark_model", "onnxruntime_perf_test", "https://", "iOS", "Core ML", "--delegate"):
        assert word in done.stdout


@pytest.mark.parametrize("name", ["kit_android.py", "kit_phone.py", "kit_script.py"])
def test_the_scripts_need_the_standard_library_alone(name: str) -> None:
    tree = ast.parse(Path(kit.__file__).with_name(name).read_text(), feature_version=(3, 8))
    modules = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    modules |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    optional = {"numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime"} if name == "kit_script.py" else set()
    assert {module.split(".")[0] for module in modules} - set(sys.stdlib_module_names) <= {
        "measure",
        "phone",
    } | optional


# ---- what is measured ----------------------------------------------------------------------------------------------


def test_a_phones_results_become_its_table(written: Path, tmp_path: Path) -> None:
    bench = Bench(tmp_path, written)
    bench.plug()
    bench.measured("--threads", "2")
    table = import_results(tmp_path / "results.json")
    header = table.header
    assert (header.device, header.backend, header.place, header.threads) == ("Formula One", "tflite", "cpu", 2)
    assert (header.dtype, header.quantile, header.repeats) == ("float32", 0.05, 1)
    assert header.versions["android"] == "14"
    assert set(header.versions) == {"android", "benchmark_model", "delegate"}
    fixed, edges = SMALL
    for op in (*fixed, *(op for options in edges.values() for op in options.values())):
        if op.kind != IDENTITY:
            assert summed_alone(table, [op]) == pytest.approx(alone_ms([op]), rel=1e-5, abs=1e-6)
    for net in draw_nets(fixed, edges, 5, seed=7):
        assert table.calibrated_ms(net) == pytest.approx(net_ms(net), rel=1e-2)


@pytest.mark.parametrize("program", [TFLITE, ONNX], ids=lambda path: path.name)
def test_a_figure_is_a_low_quantile_of_its_rounds(bench: Bench, program: Path) -> None:
    results = bench.measured("--rounds", "3", program=program)
    for name, figure in results["graphs"].items():
        # the fake takes a tenth more in each round: 1, 1.1 and 1.2 times the formula
        expected = figures_of(bench.kit)[Path(name).stem]
        assert figure["ms"] == pytest.approx(1.01 * expected, rel=1e-5, abs=1e-6)
        assert figure["median_ms"] == pytest.approx(1.1 * expected, rel=1e-5, abs=1e-6)
        assert figure["count"] == 3


def test_runs_are_pinned_to_the_fastest_cores_or_to_those_asked_for(bench: Bench) -> None:
    results = bench.measured("--threads", "2")
    assert results["phone"]["cores"] == [6, 7]
    assert set((bench.phone / "masks").read_text().split()) == {"c0"}
    (bench.phone / "masks").unlink()
    assert bench.measured("--cores", "0,2-3")["phone"]["cores"] == [0, 2, 3]
    assert set((bench.phone / "masks").read_text().split()) == {"d"}


def test_graphs_are_interleaved_over_the_rounds(bench: Bench) -> None:
    bench.measured("--rounds", "4")
    ran = [re.search(r"graphs/(\w+)\.", shell) for shell in bench.state["shells"] if "--graph=" in shell]
    names = [found[1] for found in ran if found]
    rounds = [names[start : start + 4] for start in range(0, 16, 4)]
    assert all(sorted(each) == sorted(rounds[0]) for each in rounds)
    assert len({tuple(each) for each in rounds}) > 1


@pytest.mark.parametrize(
    ("program", "delegate", "dtype", "words"),
    [
        (TFLITE, "xnnpack", "float32", ("--use_xnnpack=true",)),
        (TFLITE, "xnnpack", "float16", ("--xnnpack_force_fp16=true",)),
        (TFLITE, "builtin", "float32", ("--use_xnnpack=false",)),
        (TFLITE, "gpu", "float32", ("--gpu_precision_loss_allowed=false", "--require_full_delegation=true")),
        (TFLITE, "gpu", "float16", ("--gpu_precision_loss_allowed=true", "--require_full_delegation=true")),
        (TFLITE, "nnapi", "float32", ("--use_nnapi=true", "--disable_nnapi_cpu=true", "--nnapi_allow_fp16=false")),
        (ONNX, "cpu", "float32", ("-e cpu",)),
        (ONNX, "nnapi", "float16", ("-e nnapi", "NNAPI_FLAG_USE_FP16", "session.disable_cpu_ep_fallback|1")),
        (ONNX, "qnn", "float16", ("-e qnn", "libQnnHtp.so", "session.disable_cpu_ep_fallback|1")),
    ],
)
def test_a_delegate_is_asked_for_in_the_programs_own_words(
    script: ModuleType, program: Path, delegate: str, dtype: str, words: tuple[str, ...]
) -> None:
    flags = script.flags_of("tflite" if program == TFLITE else "onnxruntime", delegate, dtype)
    assert all(word in flags for word in words)


@pytest.mark.parametrize(
    ("program", "delegate", "said"),
    [(TFLITE, "gpu", "--use_gpu=true"), (ONNX, "qnn", 'backend_path|libQnnHtp.so enable_htp_fp16_precision|1" -C')],
    ids=["gpu", "qnn"],
)
def test_another_processor_of_the_phone_is_the_tables_place(
    bench: Bench, program: Path, delegate: str, said: str
) -> None:
    library = bench.folder / "libQnnHtp.so"
    library.write_bytes(b"a library")
    results = bench.measured("--delegate", delegate, "--dtype", "float16", "--library", library, program=program)
    assert (results["place"], results["dtype"]) == (delegate, "float16")
    assert (bench.phone / "storage/proxyless-kit/libQnnHtp.so").read_bytes() == b"a library"
    runs = [shell for shell in bench.state["shells"] if "taskset" in shell]
    assert len(runs) == 4
    assert all(said in shell for shell in runs)


# ---- int8 ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written_int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fixed, edges = SMALL
    ops = [*fixed, *(op for options in edges.values() for op in options.values())]
    nets, out = draw_nets(fixed, edges, 8, seed=1), tmp_path_factory.mktemp("int8") / "kit"
    write_kit(ops, nets, out, input_size=16, space="tiny", android=True, dtype="int8")
    for graph in (out / "graphs").iterdir():
        shutil.copy(graph, graph.with_suffix(".tflite"))
    return out


@pytest.fixture
def int8(written_int8: Path, tmp_path: Path) -> Bench:
    """With a whole kit in int8, whose .tflite files are stand-ins."""
    out = tmp_path / "kit"
    shutil.copytree(written_int8, out)
    made = Bench(tmp_path, out)
    made.plug()
    return made


@pytest.mark.parametrize(
    ("program", "delegate", "word"),
    [
        (ONNX, "cpu", "-e cpu"),
        pytest.param(TFLITE, "xnnpack", "--use_xnnpack=true", marks=pytest.mark.slow),
        (TFLITE, "nnapi", "--nnapi_allow_fp16=false"),
    ],
    ids=["onnxruntime", "xnnpack", "nnapi"],
)
def test_a_kit_in_int8_becomes_a_table_of_int8(int8: Bench, program: Path, delegate: str, word: str) -> None:
    assert int8.measured("--delegate", delegate, program=program)["dtype"] == "int8"
    assert all(word in shell for shell in int8.state["shells"] if "taskset" in shell)
    table = import_results(int8.folder / "results.json")
    assert table.header.dtype == "int8"
    assert table.header.backend == ("tflite" if program == TFLITE else "onnxruntime")
    fixed, edges = SMALL
    for net in draw_nets(fixed, edges, 5, seed=7):
        assert table.calibrated_ms(net) == pytest.approx(net_ms(net), rel=1e-2)


@pytest.mark.parametrize(
    ("program", "delegate"), [(TFLITE, "gpu"), (ONNX, "nnapi"), (ONNX, "qnn")], ids=["gpu", "nnapi", "qnn"]
)
def test_what_would_not_compute_int8_is_refused(int8: Bench, program: Path, delegate: str) -> None:
    said = int8.refused("--delegate", delegate, program=program)
    assert f"delegate {delegate} does not compute in int8; use a kit in float32 or another --delegate" in said
    assert int8.state["shells"] == []


def test_a_number_format_that_the_graphs_are_not_in_is_refused(int8: Bench, written: Path) -> None:
    for dtype in ("float16", "float32"):
        said = int8.refused("--dtype", dtype)
        assert f"--dtype {dtype}, but the graphs of this kit are in int8; leave it out, or write another kit" in said
        assert "`proxyless latency kit --dtype float32`" in said
    shutil.copy(written / "graphs" / "net_000.onnx", int8.kit / "graphs")
    assert "the kit is in int8, but its graph net_000.onnx is not quantised" in int8.refused(program=ONNX)


def test_graphs_in_floats_are_not_measured_as_int8(bench: Bench) -> None:
    said = bench.refused("--dtype", "int8")
    assert "--dtype int8, but the graphs of this kit are in float32; leave it out, or write another kit with" in said
    assert "`proxyless latency kit --dtype int8`" in said


# ---- heat ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("says", ["status", "frequency"])
def test_throttled_runs_are_discarded_and_the_phone_rests(bench: Bench, says: str) -> None:
    # the second of them is the same graph's again
    bench.plug(throttled=[3, 4, 7], says=says, thermalservice=says == "status")
    results = bench.measured("--rounds", "2")
    assert bench.state["runs"] == 8 + 3
    conditions = results["phone"]
    assert conditions["discarded_as_throttled"] == 3
    assert conditions["thermal_status_at_the_start"] == (0 if says == "status" else None)
    assert conditions["khz_at_the_start"] == {"7": [2_850_000] * 3}
    for name, figure in results["graphs"].items():
        expected = figures_of(bench.kit)[Path(name).stem]
        assert figure["ms"] == pytest.approx(1.005 * expected, rel=1e-5)
        assert figure["median_ms"] == pytest.approx(1.05 * expected, rel=1e-5)


def test_a_run_starts_on_a_cool_phone(bench: Bench) -> None:
    bench.plug(heat=6.0, cooling=1.0)
    results = bench.measured("--rounds", "2", "--cool", "30")
    # it is seen at 30 degrees, has cooled to 29 when the run starts, and ends that at 35
    assert results["phone"]["celsius_at_most"] == 35.0
    assert bench.state["runs"] == 8


def test_a_phone_that_stays_hot_is_refused_and_keeps_what_is_measured(bench: Bench) -> None:
    bench.plug(heat=6.0, cooling=0.0)
    said = bench.refused("--wait", "0", "--cool", "30")
    assert "the phone has 31 degrees Celsius and thermal status 0 after 0 s of rest" in said
    kept = json.loads((bench.folder / "results.json.partial").read_text())["samples"]
    assert sum(map(len, kept.values())) == 1
    bench.plug()
    assert all(figure["count"] == 1 for figure in bench.measured()["graphs"].values())
    assert bench.state["runs"] == 4


def test_a_graph_that_always_throttles_the_phone_is_refused(bench: Bench) -> None:
    bench.plug(throttled=[*range(2, 99)])
    said = bench.refused("--tries", "3")
    assert re.search(r"3 runs of \w+\.tflite in a row were throttled or cut off \(3 throttled so far\)", said)
    assert bench.state["runs"] == 4


# ---- the cable -----------------------------------------------------------------------------------------------------


def test_a_cable_that_is_lost_and_back_costs_one_run(bench: Bench) -> None:
    bench.plug(lost_at=[2, 5])
    results = bench.measured("--rounds", "2")
    assert bench.state["runs"] == 8 + 2
    assert all(figure["count"] == 2 for figure in results["graphs"].values())


def test_a_cable_that_stays_lost_leaves_what_is_measured(bench: Bench) -> None:
    bench.plug(lost_at=[3], away=1000)
    said = bench.refused("--reconnect", "0")
    assert "the phone R3CT10 did not come back within 0 s; plug it in and start again" in said
    (bench.phone / "state.json").write_text(json.dumps({**bench.state, "away": 0}))
    bench.plug()
    done = bench.start()
    assert "going on from results.json.partial: 2 samples are there" in done.stdout
    assert done.returncode == 0
    assert bench.state["runs"] == 3 + 2


def test_what_is_measured_is_gone_on_with_in_the_same_way_alone(bench: Bench) -> None:
    bench.plug(lost_at=[2], away=1000)
    bench.refused("--reconnect", "0")
    (bench.phone / "state.json").write_text(json.dumps({**bench.state, "away": 0}))
    bench.plug()
    for options, words in (
        (("--threads", "2"), "begun with another threads (1, now 2)"),
        (("--delegate", "gpu"), "begun with another delegate (xnnpack, now gpu)"),
        (("--cores", "0"), "begun with another cores ([7], now [0])"),
    ):
        assert words in bench.refused(*options)
    assert bench.measured("--cores", "0", "--fresh")["phone"]["cores"] == [0]


def test_damaged_samples_are_refused(bench: Bench) -> None:
    bench.plug(lost_at=[2], away=1000)
    bench.refused("--reconnect", "0")
    (bench.phone / "state.json").write_text(json.dumps({**bench.state, "away": 0}))
    bench.plug()
    partial = bench.folder / "results.json.partial"
    good = partial.read_text()
    changes: list[tuple[Callable[[Any], Any], str]] = [
        (lambda d: d["samples"].pop("op_000.onnx"), "holds no samples of this kit"),
        (lambda d: d["samples"]["op_000.onnx"].append(0.0), "impossible samples of op_000.onnx"),
        (lambda d: d["samples"]["op_000.onnx"].append("1"), "impossible samples of op_000.onnx"),
        (lambda d: d["samples"].update({"op_000.onnx": float("inf")}), "no valid JSON"),
        (lambda d: d.update(settings=[]), "holds no samples of this kit"),
    ]
    for change, words in changes:
        found = json.loads(good)
        change(found)
        partial.write_text(json.dumps(found))
        assert words in bench.refused()


def test_a_phone_that_cuts_every_answer_is_not_asked_forever(bench: Bench) -> None:
    bench.plug(cuts=["getprop"])
    assert "cuts its answers 5 times in a row" in bench.refused()
    bench.plug(cuts=["taskset"])
    assert "5 runs of " in bench.refused()


# ---- the phone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("devices", "options", "words"),
    [
        ({}, (), "no phone is attached"),
        ({"A": "offline"}, (), "the phone A is offline; plug its cable in again"),
        ({"A": "unauthorized"}, (), "the phone A is unauthorized; unlock it, allow USB debugging"),
        ({"A": "no permissions (user in plugdev group); see [url]"}, (), "this user may not use the USB device"),
        ({"A": "recovery"}, (), "the phone A is recovery; start it normally"),
        (
            {"A": "device", "B": "device"},
            (),
            "2 devices are attached: A (device), B (device); choose one with --serial",
        ),
        ({"A": "device", "B": "offline"}, (), "2 devices are attached: A (device), B (offline)"),
        ({"A": "device"}, ("--serial", "C"), "the phone C is not attached; attached are: A (device)"),
    ],
)
def test_a_phone_that_cannot_be_used_is_refused_by_name(
    bench: Bench, devices: dict[str, str], options: tuple[str, ...], words: str
) -> None:
    bench.plug(devices=devices)
    assert words in bench.refused(*options)
    assert bench.state["runs"] == 0


def test_one_of_two_phones_is_chosen_by_its_serial_number(bench: Bench) -> None:
    bench.plug(devices={"A": "offline", "B": "device"})
    assert bench.measured("--serial", "B")["device"] == "Formula One"


@pytest.mark.parametrize(
    ("storage", "words"),
    [("full", "the phone has no space left for"), ("short", "did not arrive whole in /data/local/tmp/proxyless-kit")],
)
def test_a_full_storage_is_refused(bench: Bench, storage: str, words: str) -> None:
    bench.plug(storage=storage)
    assert words in bench.refused()
    assert bench.state["runs"] == 0


def elf(machine: int) -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes(9) + (2).to_bytes(2, "little") + machine.to_bytes(2, "little") + bytes(44)


def test_a_program_of_another_processor_is_refused_before_anything_is_copied(bench: Bench) -> None:
    program = bench.folder / "benchmark_model"
    program.write_bytes(elf(62))
    said = bench.refused(program=program)
    assert f"{program} is built for x86_64, and the phone runs arm64-v8a, armeabi-v7a, armeabi" in said
    assert not (bench.phone / "storage/proxyless-kit").exists()


def test_a_program_that_does_not_start_is_refused_with_its_last_lines(bench: Bench) -> None:
    program = bench.folder / "benchmark_model"
    program.write_bytes(elf(183))  # of the phone's ABI by its head, and nothing behind it
    said = bench.refused(program=program)
    assert re.search(
        r"benchmark_model ended with status \d+ on \w+\.tflite \(xnnpack\); is it built for this phone", said
    )
    program.write_text('#!/bin/sh\necho "CANNOT LINK EXECUTABLE: library libx.so not found"\nexit 1\n')
    said = bench.refused("--fresh", program=program)
    assert "ended with status 1" in said
    assert "CANNOT LINK EXECUTABLE: library libx.so not found" in said
    assert "no-program is no file" in bench.refused(program=bench.folder / "no-program")


def test_without_adb_there_is_a_sentence(bench: Bench) -> None:
    said = bench.refused("--adb", "no-such-adb")
    assert "cannot start no-such-adb (No such file or directory); install Android's platform tools" in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--threads", "0"), "--threads 0 must be at least 1"),
        (("--cool", "nan"), "--cool nan must be a number of 0 or more"),
        (("--delegate", "qnn"), "--delegate qnn is none of tflite; it has xnnpack, builtin, gpu, nnapi"),
        (("--delegate", "builtin", "--dtype", "float16"), "builtin does not compute in float16; use --dtype float32"),
        (("--cores", "4-"), "--cores 4- is no list of cores"),
        (("--cores", "7-9"), "cannot run on the cores 7-9: the phone has 0, 1, 2, 3, 4, 5, 6, 7"),
        (("--cores", "7", "--threads", "2"), "2 threads cannot run on the cores 7"),
        (("--remote", "/data/local/tmp/a b"), "--remote /data/local/tmp/a b must be a whole path"),
        (("--remote", "/data; reboot"), "--remote /data; reboot must be a whole path"),
        (("--out", "/no/such/folder/r.json"), "cannot write /no/such/folder/r.json"),
    ],
)
def test_impossible_options_are_refused(bench: Bench, options: tuple[str, ...], words: str) -> None:
    assert words in bench.refused(*options)
    assert bench.state["runs"] == 0


def test_a_kit_of_a_stranger_names_no_command(bench: Bench) -> None:
    manifest = json.loads((bench.kit / "kit.json").read_text())
    name = "$(touch stolen).onnx"
    manifest["graphs"][name] = []
    (bench.kit / "kit.json").write_text(json.dumps(manifest))
    for suffix in (".onnx", ".tflite"):
        (bench.kit / "graphs" / name).with_suffix(suffix).write_bytes(b"")
    assert "kit.json has a graph $(touch stolen).onnx, which is no name that a kit gives" in bench.refused()
    assert not list(bench.folder.rglob("stolen"))


def test_a_kit_without_tflite_files_says_so(bench: Bench) -> None:
    (bench.kit / "graphs/op_001.tflite").unlink()
    said = bench.refused()
    assert "has 1 graphs without a .tflite file, first op_001.onnx; write the kit with the extra `litert`" in said


# ---- output --------------------------------------------------------------------------------------------------------


def printed(bench: Bench, program: Path, output: str, ms: float, *flags: str) -> str:
    """What a program prints of a graph that takes `ms`."""
    bench.plug(output=output, figures={"op_000": ms})
    graph = str(bench.kit / "graphs/op_000.onnx")
    if program == TFLITE:
        arguments = [f"--graph={graph}", *flags]
    else:
        arguments = ["-e", "cpu", "-m", "duration", "-t", "1", "-x", "1", "-y", "1", "-D", "-I", "-S", "0", graph]
    environment = {"PATH": os.environ["PATH"], "FAKE_PHONE": str(bench.phone), "FAKE_CODE": str(FAKE)}
    command = [sys.executable, "-IS", program, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("ms", [0.0042, 0.017, 3.25, 1234.5])
@pytest.mark.parametrize(
    ("program", "output"),
    [(TFLITE, "whole"), (TFLITE, "new"), (TFLITE, "all same"), (ONNX, "whole"), (ONNX, "old")],
    ids=lambda each: getattr(each, "name", each),
)
def test_figures_are_read_whichever_version_prints_them(
    script: ModuleType, bench: Bench, program: Path, output: str, ms: float
) -> None:
    parse = script.parse_benchmark_model if program == TFLITE else script.parse_perf_test
    # microseconds of six digits, whole ones where all are the same; ms of six places
    loss = 5e-4 if output == "all same" else 1e-6
    assert parse(printed(bench, program, output, ms), "xnnpack") == pytest.approx(ms, rel=1e-5, abs=loss)


def test_lines_that_were_published_are_read(script: ModuleType) -> None:
    phone = """INFO: count=9 first=87112 curr=51629 min=51629 max=87112 avg=58147.4 std=11478 p5=51629 p95=87112

INFO: Running benchmark for at least 1000 iterations and at least 1 seconds but terminate if exceeding 150 seconds.
INFO: count=1000 first=52162 curr=49785 min=49088 max=686105 avg=63743.2 std=60716 p5=49620 median=51891 p95=68628

INFO: Inference timings in us: Init: 119515, First inference: 87112, Warmup (avg): 58147.4, Inference (avg): 63743.2
"""
    assert script.parse_benchmark_model(phone, "xnnpack") == pytest.approx(63.7432)
    board = """Setting intra_op_num_threads to 1
Session creation time cost: 0.217932 s
First inference time cost: 196 ms
Total inference time cost: 0.49481 s
Total inference requests: 5
Average inference time cost total: 98.961997 ms
Total inference run time: 0.494854 s
Min Latency: 0.0958204 s
"""
    assert script.parse_perf_test(board, "cpu") == pytest.approx(98.961997)
    millions = phone.replace("63743.2", "1.23457e+06")
    assert script.parse_benchmark_model(millions, "xnnpack") == pytest.approx(1234.57)


@pytest.mark.parametrize(
    ("program", "output", "delegate", "words"),
    [
        (TFLITE, "no figures", "xnnpack", "it has no line 'Inference timings in us"),
        (TFLITE, "cut", "xnnpack", "it has no line 'Inference timings in us"),
        (TFLITE, "nothing timed", "xnnpack", "it has no line 'Inference timings in us"),
        (TFLITE, "zero", "xnnpack", "it says 0 ms in 1000 runs, which is no time"),
        (TFLITE, "contradiction", "xnnpack", "us in one line and"),
        (TFLITE, "old", "xnnpack", "it does not know all of its options"),
        (TFLITE, "undelegated", "gpu", "it has no line 'applied gpu delegate'"),
        (TFLITE, "undelegated", "nnapi", "it has no line 'applied nnapi delegate'"),
        (ONNX, "no figures", "cpu", "it has no line 'Average inference time cost'"),
        (ONNX, "cut", "cpu", "it has no line 'Average inference time cost'"),
        (ONNX, "contradiction", "cpu", "are not"),
    ],
    ids=lambda each: getattr(each, "name", each),
)
def test_an_output_without_a_figure_is_no_time(
    script: ModuleType, bench: Bench, program: Path, output: str, delegate: str, words: str
) -> None:
    parse = script.parse_benchmark_model if program == TFLITE else script.parse_perf_test
    with pytest.raises(ValueError, match=re.escape(words)):
        parse(printed(bench, program, output, 3.0), delegate)


@pytest.mark.parametrize(
    ("program", "output", "options", "words"),
    [
        (TFLITE, "silent", (), "its last lines: none"),
        (TFLITE, "no figures", (), "Memory footprint delta from the start of the tool"),
        (TFLITE, "partly", ("--delegate", "gpu"), "Disallowed CPU fallback detected."),
        (ONNX, "no figures", (), "First inference time cost: 1 ms"),
        (ONNX, "partly", ("--delegate", "nnapi"), "assigned to the default CPU EP"),
    ],
    ids=lambda each: getattr(each, "name", None),
)
def test_an_output_without_a_figure_is_refused_with_its_last_lines(
    bench: Bench, program: Path, output: str, options: tuple[str, ...], words: str
) -> None:
    bench.plug(output=output)
    said = bench.refused(*options, program=program)
    assert words in said
    assert program.name in said
    assert not (bench.folder / "results.json.partial").exists()


def test_results_of_an_unknown_number_format_are_refused(bench: Bench) -> None:
    document = {"kit": {"graphs": {}}, "graphs": {}, "dtype": "x" * 500}
    with pytest.raises(TableError, match=r"has the number format 'x+\.\.\.x+'; it must be one of float32, float16"):
        table_of(document, "the results file")
