"""The additive cost model against enumeration, and the report."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from hardware.cost_report import LatencyReport, ReportRow
from hardware.errors import MissingOperatorError, SpaceError, SubnetError
from hardware.model import LatencyModel, chain_report, macs_model
from hardware.op_spec import OpSpec
from tests.hardware.conftest import chain_of, make_table


@pytest.fixture
def model(tiny_table, tiny_space):
    fixed, edges = tiny_space
    return LatencyModel(tiny_table, fixed=fixed, edges=edges)


def all_choices(edges):
    return [dict(zip(edges, names, strict=True)) for names in itertools.product(*edges.values())]


def test_attributes(model, tiny_space):
    _, edges = tiny_space
    assert model.labels == tuple(edges)
    assert model.candidates == tuple(tuple(options) for options in edges.values())
    assert model.costs.shape == model.mask.shape == (4, 7)
    assert model.costs.dtype == np.float64
    assert model.mask.sum() == sum(map(len, edges.values()))
    assert (model.costs[~model.mask] == 0).all()
    assert model.calibrated
    assert model.unit == "ms"


def test_latency_is_the_calibrated_table_for_every_subnet(model, tiny_table, tiny_space):
    fixed, edges = tiny_space
    for choices in all_choices(edges):
        assert model.latency(choices) == pytest.approx(tiny_table.calibrated_ms(chain_of(fixed, edges, choices)))


def test_bounds_by_enumeration(model, tiny_space):
    latencies = [model.latency(choices) for choices in all_choices(tiny_space[1])]
    for (ms, choices), wanted in ((model.minimum(), min(latencies)), (model.maximum(), max(latencies))):
        assert ms == pytest.approx(wanted)
        assert model.latency(choices) == ms


def test_expectation_by_enumeration(model, tiny_space):
    rng = np.random.default_rng(0)
    p = np.where(model.mask, rng.random(model.mask.shape), 0.0)
    p /= p.sum(axis=1, keepdims=True)
    wanted = 0.0
    for choices in all_choices(tiny_space[1]):
        columns = [model.candidates[i].index(choices[label]) for i, label in enumerate(model.labels)]
        wanted += np.prod(p[np.arange(4), columns]) * model.latency(choices)
    assert model.expected(p) == pytest.approx(wanted)


def test_expectation_is_differentiable(model):
    p = torch.full((4, 7), 1 / 7, dtype=torch.float64, requires_grad=True)
    expected = model.expected(p)
    expected.backward()
    assert expected.shape == ()
    assert expected.item() == pytest.approx(model.costs.sum() / 7 + model.fixed_ms)
    assert torch.equal(p.grad, torch.tensor(model.costs))
    assert model.expected(p.float()).dtype == torch.float32


def test_expectation_of_another_shape_is_refused(model):
    with pytest.raises(SpaceError, match=r"shape \(4, 6\)"):
        model.expected(np.ones((4, 6)))


def test_fixed_part_and_costs_follow_the_calibration(tiny_space, tiny_ops, model):
    fixed, edges = tiny_space
    plain = LatencyModel(make_table(tiny_ops), fixed=fixed, edges=edges)
    assert not plain.calibrated
    assert plain.unit == "ms (uncalibrated)"
    np.testing.assert_allclose(model.costs, 1.2 * plain.costs)
    assert model.fixed_ms == pytest.approx(1.2 * plain.fixed_ms - 0.002)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"stage1.0": "9x9"}, "no candidate '9x9'"),
        ({"elsewhere": "skip"}, "unknown edge 'elsewhere'"),
        ({"stage1.1": None}, "leaves out edge 'stage1.1'"),
    ],
)
def test_bad_choices_are_refused(model, change, words):
    choices = {k: v for k, v in {**model.minimum()[1], **change}.items() if v is not None}
    with pytest.raises(SubnetError, match=words):
        model.latency(choices)


def test_a_missing_operator_is_refused_when_the_model_is_made(tiny_space, tiny_table):
    fixed, edges = tiny_space
    with pytest.raises(MissingOperatorError, match="nearest"):
        LatencyModel(tiny_table, fixed=(*fixed, OpSpec("conv", (3, 5, 5), (4, 5, 5))), edges=edges)


def test_an_edge_without_candidates_is_refused(tiny_space, tiny_table):
    with pytest.raises(SpaceError, match="no candidate"):
        LatencyModel(tiny_table, fixed=(), edges={"empty": {}})


def test_a_space_without_edges_has_one_cost(tiny_space, tiny_table):
    model = LatencyModel(tiny_table, fixed=tiny_space[0], edges={})
    assert model.minimum() == model.maximum() == (model.fixed_ms, {})


def test_report_adds_up(model):
    for ms, choices in (model.minimum(), model.maximum()):
        report = model.report(choices)
        assert report.total() == pytest.approx(ms)
        assert sum(report.by_layer().values()) == pytest.approx(ms)
        assert sum(report.by_kind().values()) == pytest.approx(ms)
        assert report.missing() == report.predicted() == ()
        assert len(report.rows) == 8


def test_report_prints_and_draws(model, tmp_path):
    report = model.report(model.maximum()[1])
    console = Console(width=160)
    with console.capture() as capture:
        console.print(report.render())
    lines = capture.get().splitlines()
    (line,) = [line for line in lines if "stage2.1" in line]
    assert "7x7_e6" in line
    assert "mbconv 7x7/1 24x4x4 -> 24x4x4 via 144" in line
    assert f"{report.by_layer()['stage2.1']:.4f}" in line
    assert f"{report.total():.4f}" in lines[-2]
    report.plot(tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 5000


def test_the_picture_has_a_bar_a_layer_and_names_what_is_predicted_or_missing(tmp_path, monkeypatch):
    rows = (
        ReportRow("stem", "conv", "conv-in:3x8x8-out:4x8x8-k:3-s:1-res:0-act:relu6", 2.0),
        ReportRow("edge", "mbconv", "strange", 3.0, choice="3x3_e3"),
        ReportRow("guess", "mbconv", "strange", 1.0, predicted=True, choice="5x5_e3"),
        ReportRow("hole", "mbconv", "strange", None, choice="7x7_e3"),
    )
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **kwargs: drawn.append(figure))
    LatencyReport(rows, constant=0.5).plot(tmp_path / "report.png")
    (axes,) = drawn[0].axes
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["stem", "edge  3x3_e3", "guess  5x5_e3", "hole  7x7_e3", "session and calibration"]
    assert [bar.get_width() for bar in axes.patches] == [2.0, 3.0, 1.0, 0.0, 0.5]
    assert [text.get_text() for text in axes.texts] == ["2", "3", "1", "missing", "0.5"]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend == ["chosen", "fixed", "predicted, not measured", "not in the table"]


def test_a_report_with_missing_operators_has_no_total(tiny_table, tiny_ops):
    stranger = OpSpec("conv", (3, 5, 5), (4, 5, 5))
    report = chain_report(tiny_table, [tiny_ops[0], stranger])
    assert report.missing() == (stranger.key,)
    with pytest.raises(MissingOperatorError, match="1 of 2 layers"):
        report.total()
    assert chain_report(tiny_table, tiny_ops[:1]).total() == pytest.approx(tiny_table.calibrated_ms(tiny_ops[:1]))


def test_macs_have_the_same_interface(tiny_space):
    fixed, edges = tiny_space
    model = macs_model(fixed, edges)
    low, high = model.minimum()[0], model.maximum()[0]
    uniform = model.mask / model.mask.sum(axis=1, keepdims=True)
    assert model.unit == "M MACs"
    assert low < model.expected(uniform) < high
