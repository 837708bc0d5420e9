"""What no device can do is refused in a table, a kit's results, a learned model and an operator's key."""

from __future__ import annotations

import dataclasses
import json
import warnings

import pytest

from hardware.errors import TableError
from hardware.measuring.calibration import in_context
from hardware.measuring.predictor import LearnedModel, fit, header_of
from hardware.model import LatencyModel
from hardware.op_spec import IDENTITY, OpSpec
from hardware.tables.plausibility import check_units
from hardware.tables.records import Calibration, LatencyEntry, Reference
from hardware.tables.released import ONCE_FOR_ALL, PROXYLESS, parse_released_key, read_released
from hardware.tables.shipped import open_table, shipped_names
from hardware.tables.table import LatencyTable
from tests.hardware.conftest import draw_nets, make_table, net_ms

HEADER = header_of(backend="fake", input_size=32, device="a formula")


def one_sentence(error) -> bool:
    text = str(error.value)
    return "\n" not in text and not text.endswith(".")


@pytest.fixture
def table(tiny_ops, tiny_space):
    nets = draw_nets(*tiny_space, 12)
    return in_context(make_table(tiny_ops), nets, [net_ms(net) for net in nets])


def with_calibration(table, **changes):
    calibration = dataclasses.replace(table.header.calibration, **changes)
    return dataclasses.replace(table, header=dataclasses.replace(table.header, calibration=calibration))


def with_entry(table, key, **changes):
    return LatencyTable(table.header, {**table.entries, key: dataclasses.replace(table.entries[key], **changes)})


def swapped(table):
    """The same reference nets, with each other's latencies."""
    fast, *between, slow = table.header.calibration.references
    return (Reference(3 * slow.ms, fast.ops), *between, Reference(fast.ms / 2, slow.ops))


def test_what_is_measured_makes_sense(table, tmp_path):
    table.save(tmp_path / "table.yml")
    assert LatencyTable.load(tmp_path / "table.yml") == table
    for name in shipped_names():
        check_units(open_table(name), "it")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: with_calibration(t, scale=1e-4), r"calibration's scale in .* is 0\.0001"),
        (lambda t: with_calibration(t, scale=1e9), r"calibration's scale in .* is 1e\+09"),
        (lambda t: with_calibration(t, offset_ms=1e9, references=()), "count for nothing"),
        (lambda t: with_calibration(t, offset_ms=-1e3, references=()), "less than nothing"),
        (lambda t: with_calibration(t, references=swapped(t)), r"is faster .* build it again"),
        (lambda t: with_entry(t, next(iter(t.entries)), ms=0.0), "no time; measure it again"),
    ],
    ids=["scale of nearly 0", "scale of a billion", "large offset", "negative offset", "order", "0 ms"],
)
def test_a_table_by_its_physics(table, tmp_path, change, words):
    change(table).save(tmp_path / "table.yml")
    with pytest.raises(TableError, match=words) as error:
        LatencyTable.load(tmp_path / "table.yml")
    assert one_sentence(error)
    assert "table.yml" in str(error.value)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("count: 3", "count: -3", "count of .* is -3"),
        ("repeats: 3", "repeats: -3", "repeats -3"),
        ("quantile: 0.2", "quantile: 20.0", "quantile 20.0"),
        ("load_average: 0.5", "load_average: -1.0", "load_average"),
        ("nets: 12", "nets: -12", "of -12 nets"),
        ("per_operator_ms: ", "per_operator_ms: .nan #", r"per_operator_ms = \.nan at line"),
        ("per_mparam_ms: ", "per_mparam_ms: much #", "per_mparam_ms in .* is 'much'"),
        ("per_mparam_ms: ", "per_param_ms: ", "per_mparam_ms in .* is None"),
    ],
)
def test_numbers_of_a_header(table, tmp_path, old, new, words):
    path = tmp_path / "table.yml"
    table.save(path)
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(TableError, match=words) as error:
        LatencyTable.load(path)
    assert one_sentence(error)
    assert "table.yml" in str(error.value)


@pytest.mark.parametrize("reference", [Reference(0.0, ("a",)), Reference(1.0, ())], ids=["0 ms", "no operators"])
def test_a_reference_net_of_nothing(table, reference):
    with pytest.raises(TableError, match="both must be above 0"):
        with_calibration(table, references=(reference,))


KEYS = [
    "conv-in:3x8-out:4x8x8-k:3-s:1-res:0-act:relu6",
    "conv-in:3-out:4-k:3-s:1-res:0-act:relu6",
    "conv-in:3x8x8x1-out:4x8x8-k:3-s:1-res:0-act:relu6",
    "conv-in:3x0x8-out:4x8x8-k:3-s:1-res:0-act:relu6",
    "conv-in:3x8x8-out:4x8x8-k:3-s:0-res:0-act:relu6",
    "max_pool-in:3x8x8-out:3x8x8-k:0-s:1-res:0-act:none",
    "head-in:3x8x8-out:0",
    "efficient_head-in:3x8x8-out:0-k:1-s:1-hidden:8-res:0-act:relu",
    "edge_residual-in:8x8x8-out:8x8x8-k:0-s:1-hidden:16-res:1-act:relu",
    "mbconv-in:8x8x8-out:8x4x4-k:3-s:2-hidden:16-res:0-act:relu-pad:valid",
    "mbconv-in:8x8x8-out:8x4x4-k:3-s:2-hidden:16-res:0-act:relu-se:4.relu.sigmoid-pad:SAME",
]


@pytest.mark.parametrize("key", KEYS)
def test_operators_that_cannot_be(table, tmp_path, key):
    with pytest.raises(TableError, match=r"has (an|a|kernel|stride|the padding)") as error:
        OpSpec.from_key(key)
    assert one_sentence(error)
    LatencyTable(table.header, {**table.entries, key: LatencyEntry(0.01, count=3)}).save(tmp_path / "table.yml")
    with pytest.raises(TableError, match=r"table.yml has the operator .*; remove it") as error:
        LatencyTable.load(tmp_path / "table.yml")
    assert one_sentence(error)


@pytest.mark.parametrize(
    ("key", "dialect"),
    [
        ("Conv-input:224x3-output:112x112x32", PROXYLESS),
        ("Conv-input:0x0x3-output:112x112x32", PROXYLESS),
        ("Conv-input:xx-output:112x112x32", PROXYLESS),
        ("AvgPool2D-input:3-output:3", ONCE_FOR_ALL),
        ("expanded_conv-input:8x8x16-output:8x8x16-expand:0-kernel:3-stride:1-idskip:1", PROXYLESS),
        ("expanded_conv-input:8x8x16-output:8x8x16-expand:3-kernel:3-stride:0-idskip:1", PROXYLESS),
        (f"expanded_conv-input:8x8x16-output:8x8x16-expand:{'9' * 5000}-kernel:3-stride:1-idskip:1", PROXYLESS),
    ],
)
def test_released_operators_that_cannot_be(key, dialect):
    with pytest.raises(TableError) as error:
        parse_released_key(key, dialect=dialect)
    assert one_sentence(error)


@pytest.mark.parametrize("count", ["-3", "2.5"])
def test_counts_of_a_released_table(tmp_path, count):
    path = tmp_path / "released.yaml"
    path.write_text(f"Conv-input:224x224x3-output:112x112x32: {{count: {count}, mean: 4.0, var: 0.1}}")
    with pytest.raises(TableError, match=f"the count of .* is {count}"):
        read_released(path)


def test_the_fastest_subnet_must_take_time(tiny_ops, tiny_space):
    fixed, edges = tiny_space
    table = make_table(tiny_ops)
    LatencyModel(table, fixed=fixed, edges=edges)
    low, _ = LatencyModel(table, fixed=fixed, edges=edges).minimum()
    late = Calibration(1.0, -1.01 * low, 10)
    check_units(make_table(tiny_ops, calibration=late), "it")  # of nets of another space the table may be right
    with pytest.raises(TableError, match=r"the fastest subnet takes -.*; calibrate the table") as error:
        LatencyModel(make_table(tiny_ops, calibration=late), fixed=fixed, edges=edges)
    assert one_sentence(error)


def test_a_space_of_which_all_can_be_skipped_has_a_subnet_of_nothing(tiny_ops):
    table = make_table(tiny_ops, overhead_ms=0.0)
    options = {"conv": tiny_ops[0], "skip": OpSpec(IDENTITY, (3, 32, 32), (3, 32, 32))}
    assert LatencyModel(table, fixed=[], edges={"edge": options}).minimum()[0] == 0.0


@pytest.fixture(scope="module")
def learned(tiny_space):
    nets = draw_nets(*tiny_space, 60, seed=1)
    return fit(nets, [net_ms(net) for net in nets], header=HEADER)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d["weights"].update({"dense.work": -1.0}), "-1.0 ms for dense.work"),
        (lambda d: d["weights"].update({"dense.work": float("nan")}), "weights.dense.work is nan"),
        (lambda d: d["weights"].update({"dense.work": "much"}), "dense.work is 'much', not a number"),
        (lambda d: d.update(constant_ms=-1e3), "-1000.0 ms for the constant"),
        (lambda d: d.update(constant_ms=float("inf")), "constant_ms is inf"),
        (lambda d: d.update(weights=dict.fromkeys(d["weights"], 0.0)), "whatever a net is made of"),
        (lambda d: d.update(weights={}), "whatever a net is made of"),
        (lambda d: d.update(nets=-5), "is of -5 nets"),
        (lambda d: d["header"].update(threads=0), "threads 0"),
        (lambda d: d["header"].update(batch="one"), "not a whole number"),
    ],
)
def test_a_learned_model_of_no_device(learned, tmp_path, change, words):
    path = tmp_path / "model.json"
    learned.save(path)
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(TableError, match=words) as error:
        LearnedModel.load(path)
    assert one_sentence(error)
    assert "model.json" in str(error.value)


@pytest.mark.parametrize("factor", [1e-12, 1e9])
def test_predictions_of_no_device_make_no_table(learned, tiny_ops, factor):
    absurd = dataclasses.replace(learned, weights={name: factor * ms for name, ms in learned.weights.items()})
    learned.table(tiny_ops)
    for predict in (absurd.table, lambda ops: absurd.fill(make_table(ops[:1]), ops)):
        with pytest.raises(TableError, match=r"what the learned model predicts (implies|has)|offset in what"):
            predict(tiny_ops)


def test_an_operator_that_is_predicted_for_free_is_named(learned, tiny_ops):
    free = {name: 0.0 if name.startswith("dense") else ms for name, ms in learned.weights.items()}
    with pytest.warns(UserWarning, match=r"predicts 0 ms for 1 operators, first conv-in:3x32x32.*; measure them"):
        table = dataclasses.replace(learned, weights=free).table(tiny_ops)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_units(table, "it")
        learned.table(tiny_ops)
