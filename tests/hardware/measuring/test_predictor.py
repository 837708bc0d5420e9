"""The learned model on devices that are formulas."""

from __future__ import annotations

import dataclasses

import pytest

from hardware.errors import TableError
from hardware.measuring.predictor import LearnedModel, features, fit, header_of
from hardware.model import LatencyModel
from hardware.op_spec import IDENTITY, OpSpec
from hardware.operators.primitives import macs
from tests.hardware.conftest import draw_nets, make_space, make_table

HEADER = header_of(backend="fake", input_size=32, device="a formula")


def linear_ms(op):
    """A device that a linear model can describe."""
    return sum(value * (1 + len(name) % 3) for name, value in features(op).items() if "input" in name) + macs(op) * 1e-7


@pytest.fixture(scope="module")
def learned(tiny_space):
    nets = draw_nets(*tiny_space, 150, seed=1)
    return fit(nets, [0.01 + sum(map(linear_ms, net)) for net in nets], header=HEADER)


def test_features_count_the_primitives():
    op = OpSpec("mbconv", (8, 4, 4), (8, 4, 4), kernel=5, hidden=24, residual=True)
    found = features(op)
    assert found["pointwise.count"] == 2
    assert found["depthwise_k5_s1.work"] == pytest.approx(24 * 25 * 16 / 1e6)
    assert found["add.input"] == pytest.approx(8 * 16 / 1e6)
    assert features(OpSpec(IDENTITY, (8, 4, 4), (8, 4, 4))) == {}


def test_held_out_nets_are_predicted(learned, tiny_space):
    assert learned.figures["test"]["mape"] < 0.01
    assert learned.figures["test"]["spearman"] > 0.99
    assert learned.nets == 120
    assert min(learned.weights.values()) >= 0
    for net in draw_nets(*tiny_space, 5, seed=3):
        assert learned.net_ms(net) == pytest.approx(0.01 + sum(map(linear_ms, net)), rel=0.03)


def test_a_learned_table_is_marked_and_gives_the_models_latency(learned, tiny_space, tiny_ops):
    fixed, edges = tiny_space
    table = learned.table(tiny_ops)
    assert all(entry.predicted and entry.count == 0 for entry in table.entries.values())
    assert "120 whole nets" in table.header.source
    model = LatencyModel(table, fixed=fixed, edges=edges)
    net = draw_nets(fixed, edges, 1, seed=4)[0]
    assert model.calibrated
    assert table.calibrated_ms(net) == pytest.approx(learned.net_ms(net))
    report = model.report(model.minimum()[1])
    assert set(report.predicted()) == {row.key for row in report.rows if row.kind != IDENTITY}


def test_another_width_is_predicted_on_request_only(learned, tiny_ops, tmp_path):
    wide_fixed, wide_edges = make_space(32, 24, 16, [(24, 2, 2), (32, 2, 2)], 64, 10)
    wide = [*wide_fixed, *(op for options in wide_edges.values() for op in options.values())]
    table = make_table(tiny_ops)
    with pytest.raises(TableError, match="operators are not in the latency table"):
        table.check(wide, input_size=32)
    filled = learned.fill(table, wide)
    filled.check(wide, input_size=32)
    for key, entry in filled.entries.items():
        assert entry.predicted == (key not in table.entries)
        if key in table.entries:
            assert entry == table.entries[key]
    filled.save(tmp_path / "filled.yml")
    assert type(table).load(tmp_path / "filled.yml") == filled


def test_filling_another_devices_table_is_refused(learned, tiny_ops):
    table = make_table(tiny_ops)
    other = dataclasses.replace(table, header=dataclasses.replace(table.header, device="another"))
    with pytest.raises(TableError, match="of device 'a formula', the table of 'another'"):
        learned.fill(other, tiny_ops)


def test_an_operator_that_no_net_had_is_refused(learned):
    op = OpSpec("mbconv", (8, 8, 8), (8, 8, 8), kernel=9, hidden=24, residual=True)
    with pytest.raises(TableError, match="depthwise_k9_s1"):
        learned.table([op])


def test_save_and_load(learned, tmp_path, tiny_ops):
    learned.save(tmp_path / "model.json")
    again = LearnedModel.load(tmp_path / "model.json")
    assert again == learned
    assert again.header.device == HEADER.device
    assert again.op_ms(tiny_ops[0]) == learned.op_ms(tiny_ops[0])
    (tmp_path / "model.json").write_text('{"format": "other"}')
    with pytest.raises(TableError, match="no learned latency model"):
        LearnedModel.load(tmp_path / "model.json")
    with pytest.raises(TableError, match="no learned latency model"):
        LearnedModel.load(tmp_path / "none.json")


def test_too_few_or_unmatched_nets_are_refused(tiny_space):
    nets = draw_nets(*tiny_space, 10)
    with pytest.raises(TableError, match="10 nets are too few"):
        fit(nets, [1.0] * 10, header=HEADER)
    with pytest.raises(TableError, match="10 nets but 9 latencies"):
        fit(nets, [1.0] * 9, header=HEADER)
