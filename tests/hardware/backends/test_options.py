"""Number formats and options of backends: chosen by name, kept with what they measured, and compared with it."""

from __future__ import annotations

import dataclasses

import pytest

from hardware.backends import get_backend, registry
from hardware.backends.cuda import CudaBackend
from hardware.backends.torch import TorchBackend
from hardware.errors import BackendError, TableError
from hardware.measuring.nets import measure_model_file, measure_nets
from hardware.measuring.predictor import LearnedModel
from hardware.measuring.sampling import Plan
from hardware.measuring.table import build_table
from hardware.measuring.validation import check_table
from hardware.operators import onnx_graph
from hardware.tables.table import LatencyTable
from hardware.testing import small_ops
from tests.hardware.backends.test_backends import FakeCuda
from tests.hardware.conftest import Tunable, draw_nets

PLAN = Plan(rounds=3, minimum_rounds=1, seconds=5.0, sample_ms=0.05, extra_rounds=0)


@pytest.fixture
def tunable(monkeypatch):
    monkeypatch.setitem(registry.FACTORIES, "fake", Tunable)


@pytest.fixture
def tables(tunable, tiny_space, tiny_ops, tmp_path):
    """A table of the defaults, and one of int8 without graphs; both went through a file."""
    nets = draw_nets(*tiny_space, 10)
    shared = {"backend": "fake", "input_size": 32, "plan": PLAN, "progress": False}
    build_table(tiny_ops, nets, out=tmp_path / "plain.yml", **shared)
    build_table(tiny_ops, nets, out=tmp_path / "int8.yml", dtype="int8", options={"graphs": False}, **shared)
    return LatencyTable.load(tmp_path / "plain.yml"), LatencyTable.load(tmp_path / "int8.yml")


def test_the_header_keeps_number_format_and_all_options(tables):
    plain, int8 = (table.header for table in tables)
    assert (plain.dtype, plain.options) == ("float32", {"graphs": True, "streams": 1, "mode": "fair"})
    assert (int8.dtype, int8.options) == ("int8", {"graphs": False, "streams": 1, "mode": "fair"})
    assert int8.runtime() == "fake, 1 thread, batch 1, int8, graphs false, streams 1, mode fair"
    with get_backend(**int8.chosen) as again:
        assert (again.dtype, again.options) == (int8.dtype, int8.options)


def test_whole_nets_are_measured_as_the_table_was(tables, tiny_space):
    nets = draw_nets(*tiny_space, 6, seed=5)
    for table in tables:
        figures = measure_nets(nets, backend="fake", table=table, plan=PLAN, progress=False)
        assert [figure.drift for figure in figures] == pytest.approx([1.0] * 6)
        assert check_table(table, {"all": nets}, plan=PLAN, progress=False).drift == pytest.approx(1.0)


@pytest.mark.parametrize(("given", "word"), [({"dtype": "int8"}, "dtype"), ({"options": {"streams": 2}}, "options")])
def test_an_opened_backend_of_other_settings_than_the_tables_is_refused(tables, tiny_space, given, word):
    with get_backend("fake", **given) as backend, pytest.raises(TableError, match=f"the latency table has {word} "):
        measure_nets(draw_nets(*tiny_space, 3), backend=backend, table=tables[0], plan=PLAN, progress=False)


def test_a_table_from_before_there_were_options_is_of_the_defaults(tables, tiny_space):
    old = dataclasses.replace(tables[0], header=dataclasses.replace(tables[0].header, options={}))
    assert measure_nets(draw_nets(*tiny_space, 3), backend="fake", table=old, plan=PLAN, progress=False)


def test_a_learned_model_of_other_settings_fills_no_table(tables, tiny_ops):
    plain, _ = tables
    for header, word in (
        (dataclasses.replace(plain.header, dtype="int8"), "dtype 'int8'"),
        (dataclasses.replace(plain.header, options={**plain.header.options, "streams": 2}), "options"),
    ):
        with pytest.raises(TableError, match=f"the learned model is of {word}"):
            LearnedModel({"conv.count": 0.1}, 0.0, {}, 20, header).fill(plain, tiny_ops)


def test_samples_of_other_settings_are_not_taken_up(tunable, tiny_ops, tmp_path, capsys, monkeypatch):
    shared = {"input_size": 32, "plan": PLAN, "progress": False, "out": tmp_path / "table.yml", "backend": "fake"}
    monkeypatch.setattr("hardware.measuring.sampling.PARTIAL_SECONDS", 0.0)
    with monkeypatch.context() as patched:
        patched.setitem(registry.FACTORIES, "fake", lambda: Tunable(stop_after=150))
        with pytest.raises(KeyboardInterrupt):
            build_table(tiny_ops, **shared)
    assert (tmp_path / "table.yml.partial").exists()
    build_table(tiny_ops, dtype="int8", options={"mode": "quick"}, **shared)
    assert "of a build with other settings (dtype, options)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("torch", {"options": {"graphs": True}}, r"no option 'graphs'; it has channels_last \(false\), compiled \(fa"),
        ("torch", {"options": {"channels_last": "yes"}}, "option channels_last .* is 'yes'; it must be true or false"),
        ("torch", {"options": {"channels_last": 1}}, "is 1; it must be true or false"),
        ("torch", {"dtype": "float8"}, "'torch' does not measure 'float8'; it measures float32"),
        ("inductor", {"options": {"compiled": False}}, r"no option 'compiled'; it has channels_last \(false\)"),
        ("onnxruntime", {"options": {"graphs": True}}, "no option 'graphs'; it has none"),
        ("fake", {"options": {"streams": True}}, "option streams .* is True; it must be a whole number"),
        ("fake", {"options": {"mode": 1}}, "option mode .* is 1; it must be a text"),
    ],
)
def test_what_a_backend_does_not_have_is_refused_by_name(tunable, name, given, words):
    with pytest.raises(BackendError, match=words):
        get_backend(name, **given)


def test_the_torch_process_builds_what_was_chosen(monkeypatch):
    asked = []
    monkeypatch.setattr(TorchBackend, "ask", lambda self, verb, **arguments: asked.append(arguments["options"]) or 0)
    for name, options in (("torch", {}), ("torch", {"channels_last": True}), ("torch", {"compiled": True})):
        get_backend(name, options=options).prepare(small_ops())
    get_backend("inductor", options={"channels_last": True}).prepare(small_ops())
    assert [(each["channels_last"], each["compiled"]) for each in asked] == [
        (False, False),
        (True, False),
        (False, True),
        (True, True),
    ]


def test_torch_compiles_only_where_there_is_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    get_backend("torch").close()
    with pytest.raises(BackendError, match=r"install g\+\+"):
        get_backend("torch", options={"compiled": True})


def test_cuda_captures_graphs_when_its_option_says_so():
    cuda = FakeCuda()
    backend = CudaBackend(cuda=cuda, place="cpu")
    backend.prepare(small_ops())
    assert "captured" not in cuda.log
    backend.choose(options={"graphs": True})
    backend.prepare(small_ops())
    assert cuda.log[-1] == "captured"
    assert backend.options == {"graphs": True, "channels_last": False}


def test_a_model_file_is_not_compared_with_a_table_of_other_settings(tmp_path, tables):
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_graph.chain_model(small_ops()).SerializeToString())
    header = dataclasses.replace(tables[0].header, backend="onnxruntime", options={}, dtype="int4")
    with pytest.raises(BackendError, match="does not measure 'int4'"):
        measure_model_file(path, table=dataclasses.replace(tables[0], header=header), plan=PLAN)


def test_an_option_in_a_header_is_a_plain_value(tables, tmp_path):
    path = tmp_path / "int8.yml"
    path.write_text(path.read_text().replace("streams: 1", "streams: 1.5"))
    with pytest.raises(TableError, match=r"the option streams in .*int8.yml is 1.5; it must be true, false, a whole"):
        LatencyTable.load(path)
