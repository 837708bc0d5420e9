"""A kit written, run by its own script in a process that knows nothing of this package, and imported."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from hardware.backends.litert import convert
from hardware.errors import BackendError, TableError
from hardware.measuring import kit
from hardware.measuring.kit import import_results, write_kit
from hardware.operators import onnx_graph
from hardware.operators.quantised import is_quantised
from hardware.tables.table import LatencyTable
from hardware.testing import small_ops
from tests.hardware.conftest import alone_ms, draw_nets, make_space, net_ms


@pytest.fixture(scope="module")
def folder(tiny_space, tmp_path_factory):
    fixed, edges = tiny_space
    ops = [*fixed, *(op for options in edges.values() for op in options.values())]
    out = tmp_path_factory.mktemp("kit") / "kit"
    write_kit(ops, draw_nets(fixed, edges, 8, seed=1), out, input_size=32, space="tiny")
    return out


@pytest.fixture
def results(folder, tmp_path):
    """Results as the script would write them on the fake device."""
    manifest = json.loads((folder / "kit.json").read_text())
    graphs = {}
    for name, keys in manifest["graphs"].items():
        chain = [kit.OpSpec.from_key(key) for key in keys]
        ms = net_ms(chain) if name.startswith("net") else alone_ms(chain)
        graphs[name] = {"ms": ms, "median_ms": 1.1 * ms, "count": 50}
    document = {
        "format": kit.RESULTS_FORMAT,
        "version": 1,
        "unit": "ms",
        "kit": manifest,
        "device": "a board",
        "backend": "onnxruntime",
        "threads": 4,
        "quantile": 0.05,
        "created": "2026-01-01T00:00:00+00:00",
        "load_average": None,
        "versions": {"python": "3.8"},
        "graphs": graphs,
    }
    return tmp_path / "results.json", document


def test_the_kit_is_small_and_complete(folder, tiny_ops):
    manifest = json.loads((folder / "kit.json").read_text())
    assert {path.name for path in folder.iterdir()} == {"graphs", "kit.json", "measure.py"}
    assert {path.name for path in (folder / "graphs").iterdir()} == set(manifest["graphs"])
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 1_000_000


def test_the_script_needs_nothing_of_this_package():
    tree = ast.parse(Path(kit.__file__).with_name("kit_script.py").read_text(), feature_version=(3, 8))
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    outside = imported - set(sys.stdlib_module_names)
    assert outside == {"numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime"}


def test_written_run_and_imported(folder, tiny_ops, tmp_path):
    out = tmp_path / "results.json"
    command = [sys.executable, "-I", folder / "measure.py", "--out", out, "--rounds", "16", "--device", "this machine"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True, timeout=120)
    *told, last = done.stdout.decode().splitlines()
    assert "\r" not in done.stdout.decode()
    assert last.startswith("wrote ")
    assert 2 <= len(told) <= 11
    assert all(line.startswith("measuring: ") for line in told)
    table = import_results(out)
    table.check(tiny_ops, input_size=32)
    assert table.header.device == "this machine"
    assert table.header.backend == "onnxruntime"
    assert table.header.calibration.nets == 8
    table.save(tmp_path / "table.yml")
    assert LatencyTable.load(tmp_path / "table.yml") == table


@pytest.fixture(scope="module")
def int8_folder(tiny_space, tmp_path_factory):
    fixed, edges = tiny_space
    ops = [*fixed, *(op for options in edges.values() for op in options.values())]
    out = tmp_path_factory.mktemp("int8") / "kit"
    write_kit(ops, draw_nets(fixed, edges, 8, seed=1), out, input_size=32, space="tiny", dtype="int8")
    return out


def run_script(folder, out, *options):
    command = [sys.executable, "-I", folder / "measure.py", "--out", out, "--rounds", "16", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_kit_in_int8_is_of_quantised_graphs_and_says_so(int8_folder, folder, tiny_ops):
    import onnx

    manifest = json.loads((int8_folder / "kit.json").read_text())
    assert manifest["dtype"] == "int8"
    assert json.loads((folder / "kit.json").read_text()) == {**manifest, "dtype": "float32"}
    assert sum(path.stat().st_size for path in int8_folder.rglob("*") if path.is_file()) < 1_000_000
    for name, keys in manifest["graphs"].items():
        model = onnx.load(int8_folder / "graphs" / name)
        kind = model.graph.input[0].type.tensor_type.elem_type
        # an operator alone takes what the one before it gives in a net
        assert kind == (onnx.TensorProto.UINT8 if name.startswith("op_") else onnx.TensorProto.FLOAT)
        assert is_quantised(int8_folder / "graphs" / name) == bool(keys)


def test_a_kit_in_int8_is_run_and_imported_as_that(int8_folder, tiny_ops, tmp_path):
    out = tmp_path / "results.json"
    done = run_script(int8_folder, out)
    assert done.returncode == 0, done.stderr
    assert json.loads(out.read_text())["dtype"] == "int8"
    table = import_results(out)
    table.check(tiny_ops, input_size=32)
    assert (table.header.dtype, table.header.backend, table.header.place) == ("int8", "onnxruntime", "cpu")
    table.save(tmp_path / "table.yml")
    assert LatencyTable.load(tmp_path / "table.yml").header.dtype == "int8"
    # what `onnxruntime` in int8 is made of, so that the table may be checked on the device's own Python
    assert table.header.chosen == {"name": "onnxruntime", "place": "cpu", "dtype": "int8", "options": {}}


def test_graphs_of_the_other_format_are_not_measured(int8_folder, folder, tmp_path):
    out, mixed = tmp_path / "results.json", tmp_path / "kit"
    for one, other, words in (
        (int8_folder, folder, "the kit is in int8, but its graph net_000.onnx is not quantised; copy the kit again"),
        (folder, int8_folder, "the kit is in float32, but its graph net_000.onnx is quantised; copy the kit again"),
    ):
        shutil.copytree(one, mixed)
        shutil.copy(other / "graphs" / "net_000.onnx", mixed / "graphs")
        done = run_script(mixed, out)
        assert (done.returncode, done.stderr) == (1, f"{words}\n")
        shutil.rmtree(mixed)
    done = run_script(int8_folder, out, "--provider", "AzureExecutionProvider")
    assert (
        "--provider AzureExecutionProvider: the graphs of this kit are in int8 for the CPU; leave it out" in done.stderr
    )
    shutil.copytree(int8_folder, mixed)
    (mixed / "kit.json").write_text((mixed / "kit.json").read_text().replace('"int8"', '"int4"'))
    assert (
        "kit.json has the number format 'int4', not float32 or int8; copy the kit again"
        in run_script(mixed, out).stderr
    )
    assert not out.exists()


@pytest.mark.parametrize("kit_says", [None, "float32", "int8"])
@pytest.mark.parametrize("results_say", [None, "float32", "float16", "int8"])
def test_results_are_of_what_the_graphs_of_their_kit_are_in(results, kit_says, results_say):
    """A kit or results of an earlier release do not say it, and were float32 alone."""
    path, document = results
    for what, said in ((document["kit"], kit_says), (document, results_say)):
        what.pop("dtype", None)
        if said is not None:
            what["dtype"] = said
    path.write_text(json.dumps(document))
    if (kit_says == "int8") == (results_say == "int8"):
        assert import_results(path).header.dtype == (results_say or "float32")
    else:
        said, graphs = (name or "float32" for name in (results_say, kit_says))
        words = f"says that '{said}' was measured, but the graphs of its kit are in '{graphs}'; measure again"
        with pytest.raises(TableError, match=words):
            import_results(path)


def test_the_script_refuses_a_folder_without_a_kit(tmp_path):
    script = Path(kit.__file__).with_name("kit_script.py")
    done = subprocess.run([sys.executable, script, "--kit", tmp_path], capture_output=True, text=True)
    assert done.returncode == 1
    assert "no kit.json" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--threads", "0"), "--threads 0 and --rounds 300 must be at least 1"),
        (("--out", "/no/such/folder/results.json"), "cannot write /no/such/folder/results.json"),
        (("--provider", "cuda:x"), "--provider cuda:x: ONNX Runtime has none of this name here; it has cpu, "),
        (("--provider", "cpu:0"), "--provider cpu:0: ONNX Runtime has none of this name here; it has cpu, "),
        (("--provider", "NoExecutionProvider"), "--provider NoExecutionProvider: ONNX Runtime has none"),
        (("--provider", "cuda", "--runtime", "tflite"), "--provider cuda is a device of ONNX Runtime; leave it out"),
        (("--runtime", "tflite"), "pip install ai-edge-litert"),
    ],
)
def test_the_script_refuses_what_cannot_work_before_it_measures(folder, options, words):
    if options[0] == "--runtime" and find_spec("ai_edge_litert"):
        pytest.skip("ai-edge-litert is installed here")
    done = subprocess.run([sys.executable, folder / "measure.py", *options], capture_output=True, text=True)
    assert done.returncode == 1
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_provider_that_leaves_operators_to_the_cpu_is_refused(folder, tmp_path):
    import onnxruntime

    others = set(onnxruntime.get_available_providers()) - {"CPUExecutionProvider"}
    if "AzureExecutionProvider" not in others:
        pytest.skip("this ONNX Runtime has no provider that runs no operator")
    out = tmp_path / "results.json"
    command = [sys.executable, "-I", folder / "measure.py", "--provider", "AzureExecutionProvider", "--out", out]
    command += ["--rounds", "1", "--seconds", "0"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    said = done.stderr.splitlines()[-1]
    assert "cannot run op_000.onnx on AzureExecutionProvider alone" in said
    assert "fallback to CPU EP has been explicitly disabled" in said
    assert not out.exists()


PROVIDERS = """
import os, sys
import numpy as np
taken = []

class SessionOptions:
    def __init__(self):
        self.entries = {}

    def add_session_config_entry(self, key, value):
        self.entries[key] = value

class GraphOptimizationLevel:
    ORT_ENABLE_ALL = 99

class OrtValue:
    @staticmethod
    def ortvalue_from_numpy(array, kind="cpu", index=0):
        assert [kind, index] == os.environ["MEMORY"].split(":")[:1] + [int(os.environ["MEMORY"].split(":")[1])]
        return array

class Entry:
    name, shape, type = "input", [1, 3], "tensor(float)"

class InferenceSession:
    def __init__(self, path, options, providers, enable_fallback):
        assert enable_fallback == 0
        assert options.entries["session.disable_cpu_ep_fallback"] == "1"
        self.provider, choices = providers[0]
        assert choices == eval(os.environ["CHOICES"])

    def get_providers(self):
        return [os.environ["TOOK"], "CPUExecutionProvider"]

    def get_inputs(self):
        return [Entry]

    get_outputs = get_inputs

    def run(self, names, feeds):
        return [feeds["input"]]

    def io_binding(self):
        return self

    def bind_ortvalue_input(self, name, value):
        pass

    bind_ortvalue_output = bind_ortvalue_input

    def run_with_iobinding(self, binding):
        pass

def get_available_providers():
    return ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]

def disable_telemetry_events():
    pass

__version__ = "1.0"
"""


@pytest.mark.parametrize(
    ("provider", "took", "memory", "choices", "place"),
    [
        ("cuda", "CUDAExecutionProvider", "cuda:0", {"device_id": 0}, "cuda:0"),
        ("cuda:1", "CUDAExecutionProvider", "cuda:1", {"device_id": 1}, "cuda:1"),
        ("CUDAExecutionProvider", "CUDAExecutionProvider", "cuda:0", {"device_id": 0}, "cuda:0"),
        ("TensorrtExecutionProvider", "TensorrtExecutionProvider", "cuda:0", {}, "TensorrtExecutionProvider"),
        ("cuda", "CPUExecutionProvider", "cuda:0", {"device_id": 0}, None),
        ("TensorrtExecutionProvider", "CUDAExecutionProvider", "cuda:0", {}, None),
    ],
)
def test_the_provider_is_the_tables_place_or_the_kit_is_refused(
    folder, tmp_path, provider, took, memory, choices, place
):
    """With an ONNX Runtime of a GPU that does nothing but say what it was asked for: none is here."""
    (tmp_path / "onnxruntime.py").write_text(PROVIDERS)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "TOOK": took, "MEMORY": memory, "CHOICES": repr(choices)}
    command = [sys.executable, folder / "measure.py", "--provider", provider, "--rounds", "2", "--seconds", "0"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    if place is None:
        assert done.returncode == 1
        assert f"alone (it took {took} instead); use another --provider" in done.stderr
        assert not (tmp_path / "results.json").exists()
    else:
        assert done.returncode == 0, done.stderr
        results = json.loads((tmp_path / "results.json").read_text())
        assert results["place"] == place
        assert results["device"].startswith(f"{place} beside ")


def test_the_place_of_results_is_that_of_their_table(results):
    path, document = results
    path.write_text(json.dumps({**document, "place": "cuda:1", "dtype": "float16"}))
    header = import_results(path).header
    assert (header.place, header.dtype) == ("cuda:1", "float16")


def test_the_script_refuses_a_kit_that_was_not_copied_whole(folder, tmp_path):
    kit_folder = tmp_path / "kit"
    shutil.copytree(folder, kit_folder)
    (kit_folder / "graphs" / "op_001.onnx").unlink()
    for words in ("lacks 1 of the kit's graphs, first op_001.onnx; copy the kit again", "no valid JSON"):
        done = subprocess.run([sys.executable, kit_folder / "measure.py"], capture_output=True, text=True)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
        assert words in done.stderr
        (kit_folder / "kit.json").write_text('{"graphs": ')


@pytest.mark.slow
@pytest.mark.skipif(find_spec("litert_torch") is None, reason="the extra 'litert' is not installed")
@pytest.mark.parametrize("dtype", kit.GRAPHS)
def test_a_kit_of_tflite_files_is_run_and_imported(tmp_path, dtype):
    fixed, edges = make_space(16, 8, 8, [(16, 2, 2)], 32, 10)
    ops = [*fixed, *(op for options in edges.values() for op in options.values())]
    out = tmp_path / "kit"
    write_kit(ops, draw_nets(fixed, edges, 8, seed=1), out, input_size=16, space="tiny", tflite=True, dtype=dtype)
    # -I would leave out PYTHONPATH, where the extra may lie
    command = [sys.executable, out / "measure.py", "--runtime", "tflite", "--rounds", "16"]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True, timeout=120)
    table = import_results(tmp_path / "results.json")
    table.check(ops, input_size=16)
    assert (table.header.backend, table.header.dtype) == ("tflite", dtype)
    other = next(name for name in kit.GRAPHS if name != dtype)
    convert((), out / "graphs" / "overhead.tflite", dtype=other)
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert f"the kit is in {dtype}, but overhead.tflite takes {other}; copy the kit again" in done.stderr


def test_results_become_a_calibrated_table(results, tiny_space):
    path, document = results
    path.write_text(json.dumps(document))
    table = import_results(path)
    assert (table.header.device, table.header.threads, table.header.space) == ("a board", 4, "tiny")
    assert {entry.count for entry in table.entries.values()} == {50}
    assert {entry.spread for entry in table.entries.values()} == {0.1}
    for net in draw_nets(*tiny_space, 5, seed=7):
        assert table.calibrated_ms(net) == pytest.approx(net_ms(net), rel=5e-3)


def test_a_table_is_checked_on_the_held_out_nets_of_its_kit(results, tiny_space):
    path, document = results
    for i, net in enumerate(draw_nets(*tiny_space, 5, seed=7)):
        name = f"held_out_{i:03}.onnx"
        document["kit"]["graphs"][name] = [op.key for op in net]
        document["graphs"][name] = {"ms": net_ms(net), "median_ms": net_ms(net), "count": 50}
    path.write_text(json.dumps(document))
    checks = import_results(path).header.checks
    assert list(checks) == ["nets", "drift", "together"]
    assert (checks["nets"], checks["drift"]) == (5, 1.0)
    assert checks["together"]["calibrated"]["mape"] < 5e-3 < checks["together"]["raw"]["mape"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(format="other"), "not one that a kit"),
        (lambda d: d.update(unit="s"), "unit 's'"),
        (lambda d: d.update(version=2), "version 2"),
        (lambda d: d["graphs"].pop("op_003.onnx"), "lacks 1 graphs"),
        (lambda d: d["graphs"]["op_003.onnx"].update(ms=-1.0), "-1.0 ms"),
        (lambda d: d["graphs"]["op_003.onnx"].update(ms=float("nan")), r"graphs\.op_003\.onnx\.ms is nan"),
        (lambda d: d["graphs"]["op_003.onnx"].update(count=-3), "op_003.onnx in .* has count -3"),
        (lambda d: d["graphs"]["op_003.onnx"].update(median_ms=float("inf")), "median_ms is inf"),
        (lambda d: d.update(quantile=5.0), "results.json has quantile 5.0"),
        (lambda d: d.update(threads=0), "results.json has threads 0"),
        (lambda d: d["graphs"]["op_003.onnx"].pop("count"), "incomplete"),
        (lambda d: d.pop("device"), "incomplete"),
        (lambda d: d.update(kit=None), "incomplete"),
    ],
)
def test_bad_results_are_refused(results, change, words):
    path, document = results
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(TableError, match=words) as error:
        import_results(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("factor", "unit"), [(1e-3, "seconds"), (1e3, "microseconds")])
def test_results_in_another_unit_are_refused(results, factor, unit):
    path, document = results
    for figure in document["graphs"].values():
        figure.update(ms=factor * figure["ms"], median_ms=factor * figure["median_ms"])
    path.write_text(json.dumps(document))
    with pytest.raises(TableError, match=rf"results\.json implies .* seem to be in {unit}") as error:
        import_results(path)
    assert "\n" not in str(error.value)


def test_truncated_and_missing_results_are_refused(results):
    path, document = results
    with pytest.raises(TableError, match="no results file"):
        import_results(path)
    path.write_text(json.dumps(document)[:500])
    with pytest.raises(TableError, match="no valid JSON"):
        import_results(path)


def test_impossible_kits_are_refused(folder, tiny_space, tiny_ops, tmp_path):
    nets = draw_nets(*tiny_space, 8)
    with pytest.raises(TableError, match="not empty"):
        write_kit(tiny_ops, nets, folder, input_size=32)
    with pytest.raises(TableError, match="2 whole nets are too few"):
        write_kit(tiny_ops, nets[:2], tmp_path / "a", input_size=32)
    with pytest.raises(TableError, match="2 held-out nets are too few"):
        write_kit(tiny_ops, nets, tmp_path / "a", input_size=32, held_out=nets[:2])
    with pytest.raises(TableError, match="no operator"):
        write_kit([], nets, tmp_path / "a", input_size=32)
    with pytest.raises(TableError, match="that the kit lacks"):
        write_kit(tiny_ops[:3], nets, tmp_path / "a", input_size=32)
    with pytest.raises(TableError, match="graphs are in float32 or int8, not in 'float16'; write one of these"):
        write_kit(tiny_ops, nets, tmp_path / "a", input_size=32, dtype="float16")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("dtype", kit.GRAPHS)
def test_tflite_files_that_cannot_be_written_here_are_refused_before_any_work(
    tiny_space, tiny_ops, tmp_path, monkeypatch, dtype
):
    lacks = {"float32": "litert_torch", "int8": "ai_edge_quantizer.quantizer"}[dtype]
    monkeypatch.setitem(sys.modules, "litert_torch", None if dtype == "float32" else object())
    monkeypatch.setitem(sys.modules, lacks, None)
    package = lacks.partition(".")[0].replace("_", "-")
    with pytest.raises(BackendError, match=rf"backend 'litert' needs {package}, which is not installed; install it"):
        write_kit(tiny_ops, draw_nets(*tiny_space, 8), tmp_path / "a", input_size=32, tflite=True, dtype=dtype)
    assert not (tmp_path / "a").exists()


def test_a_graph_with_constant_weights_is_valid_and_its_tensors_differ():
    import onnx
    import onnxruntime

    model = onnx_graph.chain_model(small_ops(), constant=True)
    onnx.checker.check_model(model, full_check=True)
    assert model.ByteSize() < 20_000
    values = [node.attribute[0].t.SerializeToString() for node in model.graph.node if node.op_type == "ConstantOfShape"]
    assert len(set(values)) == len(values) == 2 * 11
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    output = session.run(None, {"input": np.ones((1, 3, 16, 16), np.float32)})[0]
    assert np.isfinite(output).all()
    assert (np.abs(output) > 1e-3).all()
