"""What a search keeps for its film: probabilities by epoch, and the network with its costs."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from hardware.model import LatencyModel, cost_model
from hardware.op_spec import OpSpec
from hardware.reading import Unreadable
from proxyless_strategy.runs.epoch_log import EpochLog
from proxyless_strategy.runs.film import FilmRecorder, read_film
from proxyless_strategy.runs.finished import read_run
from proxyless_strategy.runs.network import Operator, network_record, read_network
from proxyless_strategy.runs.result import _write_json
from search_spaces import Subnet, get_space
from tests.data.make_run import FIXTURE
from tests.proxyless_strategy.report.left import leave, result, with_film

FRAME = [[0.123456, 0.876544], [0.2, 0.3, 0.5]]
NAMES = {"first": ["a", "b"], "second": ["a", "b", "c"]}


def plain(values):
    return json.loads(json.dumps(values))


def test_a_film_is_read_back_as_it_was_kept_with_four_decimals():
    recorder = FilmRecorder()
    for epoch in (1, 2):
        recorder.keep(epoch, FRAME)
    film = read_film(plain(recorder.record(list(NAMES))), NAMES)
    assert film.epochs == (1, 2)
    assert film.frame(1) == {"first": [0.1235, 0.8765], "second": [0.2, 0.3, 0.5]}


def test_a_film_without_a_frame_is_none():
    assert read_film(plain(FilmRecorder().record(list(NAMES))), NAMES) is None


@pytest.mark.parametrize("stop", range(30))
def test_a_film_that_was_interrupted_is_the_same_and_never_too_long(stop):
    """Also where it is thinned out before, at and after the interruption."""
    whole, first, second = (FilmRecorder(most=20) for _ in range(3))  # four frames
    for epoch in range(1, 31):
        whole.keep(epoch, FRAME)
        assert 1 <= len(whole.frames) <= 4 or epoch < whole.every
    for epoch in range(1, stop + 1):
        first.keep(epoch, FRAME)
    second.load_state_dict(plain(first.state_dict()))
    for epoch in range(stop + 1, 31):
        second.keep(epoch, FRAME)
    assert second.record(list(NAMES)) == whole.record(list(NAMES))
    assert [epoch for epoch, _ in whole.frames] == [8, 16, 24]


@pytest.mark.parametrize("name", ["small_mbconv", "cifar_tree"])
def test_the_kept_network_costs_what_the_search_counted(name):
    space = get_space(name)
    costs = space.costs(32, num_classes=10)
    model = cost_model("macs", costs.fixed, costs.edges)
    names = {label: list(options) for label, options in costs.edges.items()}
    network = read_network(plain(network_record(costs, model)), names)
    assert network.fixed == pytest.approx(model.fixed, rel=1e-12)
    assert [item if isinstance(item, str) else item.key for item in network.order] == [
        item if isinstance(item, str) else item.key for item in costs.order
    ]
    assert [operator.spec for operator in network.beside] == list(costs.beside)
    generator = np.random.default_rng(0)
    for choices in costs.random_choices(3, seed=0):
        assert network.cost(choices) == pytest.approx(model.cost(choices), rel=1e-12)
    p = np.where(model.mask, generator.random(model.mask.shape), 0.0)
    rows = {label: p[row, : len(names[label])].tolist() for row, label in enumerate(model.labels)}
    assert network.expected(rows) == pytest.approx(float(model.expected(p)), rel=1e-12)


def test_an_operator_that_no_key_names_is_kept_without_its_shapes():
    assert Operator("my own-thing", 1.0).spec is None
    assert Operator("conv-in:3x0x8-out:4x8x8-k:3-s:1-res:0-act:relu6", 1.0).spec is None
    assert Operator("head-in:8x4x4-out:10", 1.0).spec == OpSpec("head", (8, 4, 4), (10,))


def test_the_trade_off_of_the_kept_network_is_that_of_the_space_and_its_table():
    """Of a folder of an earlier version the one is derived by its table; what it would have kept gives the same."""
    run = read_run(FIXTURE / "reinforce")
    costs = run.space.costs(run.config.latency_input_size, num_classes=10, in_chans=1)
    kept = read_network(
        plain(network_record(costs, run.cost)), {label: list(odds) for label, odds in run.probabilities.items()}
    )
    assert run.curve(6) == []
    object.__setattr__(run, "network", kept)
    assert not isinstance(run.cost, LatencyModel)
    expected = [(derived.cost, derived.log_probability) for derived in run.deriver.curve(6)]
    assert len(expected) > 1
    np.testing.assert_allclose(run.curve(6), expected)
    assert Subnet(run.space, run.choices)


def test_a_trade_off_within_three_edges_is_that_of_an_enumeration(tmp_path):
    leave(tmp_path / "run", row=result())
    with_film(tmp_path / "run")
    curve = read_run(tmp_path / "run").curve(2)
    expected = [(0.875, 2 * math.log(0.1) + math.log(0.8)), (1.625, 3 * math.log(0.8))]
    np.testing.assert_allclose(curve, expected)


def test_long_lists_are_written_on_one_line_each(tmp_path):
    values = {"a": 1, "film": {"p": [[0.1, 0.2]]}, "b": [1], "network": {}}
    _write_json(tmp_path / "x.json", values, dense=("film", "network"))
    text = (tmp_path / "x.json").read_text()
    assert json.loads(text) == values
    assert '  "film": {"p":[[0.1,0.2]]},\n' in text
    assert text.endswith("}\n")


@pytest.mark.parametrize("values", [None, [], {"epochs": [1]}, {"epochs": [True], "probabilities": {}}])
def test_what_is_no_film_is_refused(values):
    with pytest.raises((Unreadable, KeyError)):
        read_film(values, NAMES)


def test_the_log_of_epochs_carries_its_film_through_a_checkpoint_and_goes_on_from_one_without():
    first, second, older = (EpochLog(1, print) for _ in range(3))
    first.film.keep(1, FRAME)
    second.load_state_dict(plain(first.state_dict()))
    assert second.film == first.film
    older.load_state_dict({"history": []})
    assert older.film.frames == []
