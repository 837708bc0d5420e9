"""The released dialects, and the shipped Pixel 1 table against sums taken from the released one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from hardware.errors import TableError
from hardware.model import LatencyModel
from hardware.op_spec import OpSpec
from hardware.tables.released import (
    ONCE_FOR_ALL,
    PROXYLESS,
    parse_released_key,
    read_released,
    released_key,
    write_proxylessnas,
)
from hardware.tables.shipped import open_table, shipped_names
from hardware.tables.table import LatencyTable
from proxyless_strategy.benchmark.published import PAPER_DEVICES
from tests.hardware.conftest import make_table, mbconv

DATA = Path(__file__).parents[4] / "shared" / "data"
PIXEL1 = DATA / "pixel1_mobile_trim.yaml"
NOTE10 = DATA / "ofa_note10" / "224_lookup_table.yaml"
needs_pixel1 = pytest.mark.skipif(not PIXEL1.exists(), reason=f"the released table {PIXEL1} is not on this machine")
needs_note10 = pytest.mark.skipif(not NOTE10.exists(), reason=f"the released table {NOTE10} is not on this machine")

PROXYLESS_TEXT = """
Conv-input:224x224x3-output:112x112x32: {count: 9, mean: 4.0, var: 0.16}
Conv_1-input:7x7x320-output:7x7x1280: {count: 9, mean: 3.0, var: 0.0}
Logits-input:7x7x1280-output:1000: {count: 9, mean: 0.5, var: 0.01}
expanded_conv-input:56x56x24-output:56x56x24-expand:3-kernel:5-stride:1-idskip:1: {count: 7, mean: 5, var: 1.0}
"""


@pytest.fixture
def pixel1_model(imagenet_space):
    fixed, edges = imagenet_space
    return LatencyModel(open_table("pixel1"), fixed=fixed, edges=edges)


@pytest.mark.parametrize(
    ("candidate", "ms"),
    [
        ("3x3_e3", 76.0481),
        ("3x3_e6", 136.4663),
        ("5x5_e3", 87.7203),
        ("5x5_e6", 158.9527),
        ("7x7_e3", 103.6662),
        ("7x7_e6", 191.0299),
    ],
)
def test_pixel1_sums(pixel1_model, candidate, ms):
    choices = dict.fromkeys(pixel1_model.labels, candidate)
    assert pixel1_model.latency(choices) == pytest.approx(ms, abs=1e-4)


def test_pixel1_fixed_parts_minimum_and_uniform_expectation(pixel1_model):
    uniform = pixel1_model.mask / pixel1_model.mask.sum(axis=1, keepdims=True)
    assert pixel1_model.fixed_ms == pytest.approx(11.3642, abs=1e-4)
    assert pixel1_model.minimum()[0] == pytest.approx(29.6088, abs=1e-4)
    assert pixel1_model.expected(uniform) == pytest.approx(113.9881, abs=1e-4)
    assert not pixel1_model.calibrated
    np.testing.assert_array_equal(pixel1_model.mask.sum(axis=1), [6, 7, 7, 7] * 5 + [6])


def test_pixel1_names_its_source():
    header = open_table("pixel1").header
    assert "1812.00332" in header.source
    assert (header.input_size, header.batch, header.threads, len(open_table("pixel1").entries)) == (224, 1, 1, 72)


def test_shipped_tables_by_name_or_path(tmp_path):
    assert shipped_names() == ("h200_eager", "h200_graphs", "pixel1")
    open_table("pixel1").save(tmp_path / "mine.yml")
    assert open_table(tmp_path / "mine.yml") == open_table("pixel1")
    with pytest.raises(TableError, match="shipped ones are h200_eager, h200_graphs, pixel1"):
        open_table("pixel9")


@pytest.mark.parametrize(("name", "graphs"), [("h200_eager", False), ("h200_graphs", True)])
def test_the_tables_of_an_h200_say_how_they_were_measured_and_are_of_the_whole_space(name, graphs, imagenet_space):
    table = open_table(name)
    header, (fixed, edges) = table.header, imagenet_space
    assert (header.device, header.backend, header.dtype, header.batch) == ("NVIDIA H200", "cuda", "float32", 8)
    assert header.options == {"graphs": graphs}
    assert "measured by this project" in header.source
    assert header.checks["together"]["calibrated"]["mape"] < 0.02
    ops = [*fixed, *(op for options in edges.values() for op in options.values())]
    table.check(ops, input_size=224, batch=8)
    with pytest.raises(TableError, match="measured at batch 8, not 1"):
        table.check(ops, input_size=224)
    # run eagerly a block takes its launches whatever it computes; in a graph a larger kernel takes longer
    kernels = [mbconv(16, 24, 112, kernel, 2, 6, False) for kernel in (3, 7)]
    small, large = (table.latency_ms(op) for op in kernels)
    assert (large > 1.2 * small) == graphs


def test_paper_devices():
    assert {(d.name, d.batch) for d in PAPER_DEVICES.values()} == {("gpu", 8), ("cpu", 1), ("mobile", 1)}
    assert PAPER_DEVICES["mobile"].table in shipped_names()


def written(tmp_path, text):
    path = tmp_path / "released.yaml"
    path.write_text(text)
    return path


def test_proxylessnas_dialect_there_and_back(tmp_path):
    table = read_released(written(tmp_path, PROXYLESS_TEXT), device="a phone")
    op = OpSpec("mbconv", (24, 56, 56), (24, 56, 56), kernel=5, hidden=72, residual=True)
    assert table.latency_ms(op) == 5.0
    assert table.entries[op.key].count == 7
    assert table.entries[op.key].spread == pytest.approx(0.2)
    assert table.header.input_size == 224
    out = tmp_path / "again.yaml"
    write_proxylessnas(table, out)
    again, before = yaml.safe_load(out.read_text()), yaml.safe_load(PROXYLESS_TEXT)
    assert again.keys() == before.keys()
    for key in before:
        assert again[key] == pytest.approx(before[key])


def test_once_for_all_keys():
    key = "expanded_conv-input:28x28x40-output:28x28x40-expand:120-kernel:5-stride:1-idskip:1-se:1-hs:0"
    op = parse_released_key(key, dialect=ONCE_FOR_ALL)
    assert op == OpSpec("mbconv_se", (40, 28, 28), (40, 28, 28), kernel=5, hidden=120, residual=True, activation="relu")
    key = "expanded_conv-input:112x112x24-output:112x112x24-expand:24-kernel:3-stride:1-idskip:1-se:0-hs:1"
    op = parse_released_key(key, dialect=ONCE_FOR_ALL)
    assert (op.kind, op.activation, op.hidden) == ("ds_conv", "hard_swish", 0)


@pytest.mark.parametrize(
    "key",
    [
        3,
        "Conv",
        "Pool-input:7x7x3-output:7x7x3",
        "expanded_conv-input:7x7x3-output:7x7x3",
        "expanded_conv-input:7x7x3-output:7x7x3-expand:3-kernel:3-stride:1-idskip:1-se:0-hs:0",
        "Conv_1-input:7x7x3-output:7x7x3-expand:3-kernel:3-stride:1-idskip:1",
    ],
)
def test_strange_released_keys_are_refused(key):
    with pytest.raises(TableError, match="no key of a released table"):
        parse_released_key(key, dialect=PROXYLESS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[]", "no mapping"),
        ("a: {b: 1}", "of no released dialect"),
        (PROXYLESS_TEXT.replace("mean: 4.0", "mean: -4.0"), "mean of .* is -4.0"),
        (PROXYLESS_TEXT.replace("mean: 4.0", "mean: .nan"), r"mean = \.nan at line 2 .* write a finite decimal number"),
        (PROXYLESS_TEXT.replace("mean: 4.0", "mean: 0"), "is 0"),
        (PROXYLESS_TEXT.replace("mean: 4.0, ", ""), "not a mapping of count, mean and var"),
        (PROXYLESS_TEXT.replace("Conv-input", "Con-input"), "no key of a released table"),
        ("\n".join(PROXYLESS_TEXT.splitlines()[2:]), "no stem"),
        (PROXYLESS_TEXT + PROXYLESS_TEXT, "twice"),
        (PROXYLESS_TEXT + "Conv: {", "no valid YAML"),
    ],
)
def test_broken_released_tables_are_refused(tmp_path, text, words):
    with pytest.raises(TableError, match=words) as error:
        read_released(written(tmp_path, text))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "op",
    [
        OpSpec("mbconv", (24, 8, 8), (24, 8, 8), hidden=60),
        OpSpec("conv", (8, 8, 8), (8, 8, 8), kernel=5),
        OpSpec("mbconv", (24, 8, 8), (24, 8, 8), hidden=72, activation="relu"),
        OpSpec("mbconv_se", (24, 8, 8), (24, 8, 8), hidden=72),
    ],
)
def test_operators_that_the_dialect_cannot_name_are_refused(op, tmp_path):
    with pytest.raises(TableError, match="has no key for"):
        released_key(op)


def test_our_tables_can_be_written_in_the_dialect(tiny_ops, tmp_path):
    table = make_table(tiny_ops)
    write_proxylessnas(table, tmp_path / "out.yaml")
    again = read_released(tmp_path / "out.yaml")
    assert again.entries.keys() == table.entries.keys()
    for key, entry in table.entries.items():
        assert again.entries[key].ms == entry.ms


@needs_pixel1
def test_the_released_pixel1_file_is_the_shipped_table(tmp_path):
    released, shipped = read_released(PIXEL1), open_table("pixel1")
    assert released.entries.keys() == shipped.entries.keys()
    for key, entry in released.entries.items():
        assert shipped.entries[key].ms == pytest.approx(entry.ms, abs=1e-6)
        assert shipped.entries[key].count == entry.count
    write_proxylessnas(released, tmp_path / "again.yaml")
    again, before = yaml.safe_load((tmp_path / "again.yaml").read_text()), yaml.safe_load(PIXEL1.read_text())
    assert again.keys() == before.keys()
    assert all(again[key] == pytest.approx(before[key]) for key in before)


@needs_note10
def test_the_released_note10_file_is_read():
    table = read_released(NOTE10, device="Samsung Note 10")
    assert len(table.entries) == 96
    stem = OpSpec("conv", (3, 224, 224), (24, 112, 112), kernel=3, stride=2, activation="hard_swish")
    assert table.latency_ms(stem) == pytest.approx(0.994418)
    assert isinstance(table, LatencyTable)
