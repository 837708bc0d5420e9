"""Reading, writing and refusing latency tables."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from torch.torch_version import TorchVersion

from hardware.errors import MissingOperatorError, TableError
from hardware.op_spec import IDENTITY, OpSpec
from hardware.tables.records import LatencyEntry
from hardware.tables.table import LatencyTable
from hardware.yaml_text import dump_yaml
from tests.hardware.conftest import make_table, operator_ms


def one_sentence(error) -> bool:
    text = str(error.value)
    return "\n" not in text and not text.endswith(".")


def test_round_trip(tiny_table, tmp_path):
    path = tmp_path / "sub" / "table.yml"
    tiny_table.save(path)
    assert LatencyTable.load(path) == tiny_table
    assert [p.name for p in path.parent.iterdir()] == ["table.yml"]


def test_a_version_of_a_class_of_its_own_is_a_text_in_the_table(tiny_table, tmp_path):
    """torch's is such a one, and its class is no plain YAML."""
    versions = {"torch": TorchVersion("2.11.0+cu130"), "python": "3.11"}
    table = replace(tiny_table, header=replace(tiny_table.header, versions=versions))
    assert [type(text) for text in table.header.versions.values()] == [str, str]
    table.save(tmp_path / "table.yml")
    assert LatencyTable.load(tmp_path / "table.yml").header.versions == {"torch": "2.11.0+cu130", "python": "3.11"}
    assert dump_yaml({"torch": TorchVersion("1.0")}) == dump_yaml({"torch": "1.0"})


def test_predicted_entries_stay_marked(tiny_table, tmp_path):
    table = LatencyTable(tiny_table.header, {"conv-x": LatencyEntry(1e-9, predicted=True)})
    table.save(tmp_path / "t.yml")
    assert LatencyTable.load(tmp_path / "t.yml").entries["conv-x"] == LatencyEntry(1e-9, predicted=True)


def test_lookup(tiny_table, tiny_ops):
    assert tiny_table.latency_ms(tiny_ops[0]) == operator_ms(tiny_ops[0])
    assert tiny_table.latency_ms(OpSpec(IDENTITY, (8, 4, 4), (8, 4, 4))) == 0.0


def test_a_net_is_overhead_plus_sum_then_calibrated(tiny_table, tiny_ops):
    chain = tiny_ops[:2]
    raw = 0.01 + sum(operator_ms(op) for op in chain)
    assert tiny_table.raw_ms(chain) == pytest.approx(raw)
    assert tiny_table.calibrated_ms(chain) == pytest.approx(1.2 * raw - 0.002)
    assert make_table(tiny_ops).calibrated_ms(chain) == pytest.approx(raw)


def test_a_miss_names_the_key_and_the_nearest(tiny_table):
    op = OpSpec("mbconv", (8, 16, 16), (16, 8, 8), kernel=9, stride=2, hidden=24)
    with pytest.raises(MissingOperatorError) as error:
        tiny_table.latency_ms(op)
    assert op.key in str(error.value)
    assert "mbconv-in:8x16x16-out:16x8x8-k:7-s:2-hidden:24-res:0-act:relu6" in str(error.value)
    assert one_sentence(error)


def test_check(tiny_table, tiny_ops):
    tiny_table.check(tiny_ops, input_size=32)
    with pytest.raises(TableError, match="input size 32, not 224"):
        tiny_table.check(tiny_ops, input_size=224)
    with pytest.raises(TableError, match="batch 1, not 8"):
        tiny_table.check(tiny_ops, input_size=32, batch=8)
    strange = [OpSpec("conv", (3, size, size), (4, size, size)) for size in range(5, 10)]
    with pytest.raises(MissingOperatorError, match=r"5 of \d+ operators .*conv-in:3x5x5-out:4x5x5") as error:
        tiny_table.check([*tiny_ops, *strange], input_size=32)
    assert one_sentence(error)


def edited(table, tmp_path, old: str, new: str):
    path = tmp_path / "table.yml"
    table.save(path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("unit: ms", "unit: s", "unit 's', not 'ms'"),
        ("version: 1", "version: 7", "format version 7"),
        ("format: proxyless-latency-table", "format: other", "no latency table of this project"),
        ("ms: 0.0", "ms: -0.0", "negative"),
        ("{ms: ", "{ms: .nan, count: 3} #", "nan"),
        ("{ms: ", "{ms: .inf, count: 3} #", "inf"),
        ("{ms: ", "{ms: fast, count: 3} #", "not a number"),
        ("{ms: ", "{millis: 1.0, count: 3} #", "unknown field 'millis'"),
        ("{ms: ", "{count: 3} #", "no field 'ms'"),
        ("batch: 1", "batch: 0", "batch 0"),
        ("batch: 1", "batch: one", "not a whole number"),
        ("threads: 1", "threads: true", "not a whole number"),
        ("overhead_ms: 0.01", "overhead_ms: -1.0", "overhead_ms"),
        ("scale: 1.2", "scale: -1.2", "scale"),
        ("offset_ms: -0.002", "offset_ms: .nan", "offset"),
        ("device: a formula", "devise: a formula", "unknown field 'devise'"),
        ("device: a formula\n", "\n", "no field 'device'"),
        ("unit: ms", "unit: ms\nextra: 1", "unknown keys: extra"),
        ("entries:", "entries: []\nother:", "unknown keys: other"),
        ("header:", "header: [", "no valid YAML"),
    ],
)
def test_bad_tables_are_refused_in_one_sentence(tiny_table, tmp_path, old, new, words):
    with pytest.raises(TableError, match=words) as error:
        LatencyTable.load(edited(tiny_table, tmp_path, old, new))
    assert one_sentence(error)
    assert "table.yml" in str(error.value)


def test_a_duplicate_key_is_refused(tiny_table, tmp_path):
    path = tmp_path / "table.yml"
    tiny_table.save(path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[-1]]))
    with pytest.raises(TableError, match="twice"):
        LatencyTable.load(path)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.2, 0.3, 0.5, 0.999])
def test_no_truncation_passes_as_a_table_of_the_space(tiny_table, tiny_ops, tmp_path, share):
    path = tmp_path / "table.yml"
    tiny_table.save(path)
    text = path.read_text().rstrip()
    path.write_text(text[: int(share * len(text))])
    with pytest.raises(TableError):
        LatencyTable.load(path).check(tiny_ops, input_size=32)


@pytest.mark.parametrize("content", [b"", b"- 1\n", b"hello", b"\xff\xfe\x00", b"!!python/object:os.system {}"])
def test_foreign_files_are_refused(tmp_path, content):
    path = tmp_path / "table.yml"
    path.write_bytes(content)
    with pytest.raises(TableError) as error:
        LatencyTable.load(path)
    assert one_sentence(error)


def test_a_missing_file_says_how_to_build_one(tmp_path):
    with pytest.raises(TableError, match="proxyless latency build"):
        LatencyTable.load(tmp_path / "none.yml")


def test_a_failed_write_keeps_the_old_file(tiny_table, tmp_path, monkeypatch):
    path = tmp_path / "table.yml"
    tiny_table.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(TableError, match=f"cannot write {path}: disk full; make room"):
        LatencyTable(tiny_table.header, {"a": LatencyEntry(1.0)}).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["table.yml"]


def test_importing_the_table_imports_nothing_heavy():
    heavy = "('torch', 'onnxruntime', 'onnx', 'scipy')"
    code = f"import sys, hardware.tables.table; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
