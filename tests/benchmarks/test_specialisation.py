"""The subnets of the specialisation benchmark against enumeration, and its cross table on the Pixel 1 figures."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from itertools import pairwise

import pytest
import timm

from hardware.errors import ConfigError, TargetError
from hardware.measuring.sampling import Plan
from hardware.measuring.table import build_table
from hardware.model import CostModel, macs_model
from hardware.tables.shipped import open_table
from hardware.tables.table import LatencyTable
from search_spaces.mbconv import MBConvDeclaration, Stage
from tests.benchmarks import specialisation
from tests.benchmarks.published import PUBLISHED
from tests.benchmarks.specialisation import (
    _slower,
    character,
    draw,
    draw_networks,
    fastest_of_equal_macs,
    is_of_this_machine,
    measured_ms,
    own_table,
    own_tables,
    parse_tables,
    published_subnet,
    run,
    show,
    table_name,
)

QUICK = Plan(rounds=5, minimum_rounds=5, seconds=0.0)
SPACE = MBConvDeclaration("three", 8, 2, 8, (Stage(16, 3, 2),), head_width=64)
COSTS = SPACE.costs(28, num_classes=10, in_chans=1)
MACS = macs_model(COSTS.fixed, COSTS.edges)
LATENCY = CostModel(lambda op: 1 + zlib.crc32(op.key.encode()) / 2**32, fixed=COSTS.fixed, edges=COSTS.edges, unit="ms")


def all_choices():
    return itertools.product(*SPACE.candidates().values())


@pytest.mark.parametrize("target", [0.6, 0.75, 0.9, 1.1])
@pytest.mark.parametrize("band", [0.02, 0.1])
def test_the_fastest_subnet_of_equal_macs_is_the_enumerated_one(target, band):
    candidates = SPACE.candidates()
    subnets = [dict(zip(candidates, choice, strict=True)) for choice in all_choices()]
    allowed = [s for s in subnets if target * (1 - band) <= MACS.cost(s) <= target * (1 + band)]
    assert allowed
    found = fastest_of_equal_macs(LATENCY, MACS, target, band)
    assert found in allowed
    assert LATENCY.cost(found) == pytest.approx(min(LATENCY.cost(s) for s in allowed))


@pytest.mark.parametrize("target", [0.01, 100.0])
def test_macs_that_no_subnet_has_are_refused(target):
    with pytest.raises(
        TargetError, match=r"no subnet has \d+\.\d M MACs within 1%; choose --macs between 0\.\d and 1\.\d"
    ):
        fastest_of_equal_macs(LATENCY, MACS, target)


def test_a_gap_between_two_subnets_is_no_equality():
    counts = sorted(MACS.cost(dict(zip(SPACE.candidates(), c, strict=True))) for c in all_choices())
    low, high = max(pairwise(counts), key=lambda pair: pair[1] / pair[0])
    with pytest.raises(TargetError, match="no subnet has"):
        fastest_of_equal_macs(LATENCY, MACS, (low + high) / 2, (high - low) / (high + low) * 0.9)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("litert.yml", "is not NAME=FILE; write for example"),
        ("=litert.yml", "is not NAME=FILE"),
        ("litert=", "is not NAME=FILE"),
        ("pixel1=litert.yml", "there is a table pixel1 already"),
        ("openvino=litert.yml", "there is a table openvino already"),
    ],
)
def test_tables_are_given_by_name(text, words):
    with pytest.raises(ConfigError, match=words):
        parse_tables([text])


def test_the_first_blocks_of_stages_are_compared_with_the_others():
    space = MBConvDeclaration("four", 8, 2, 8, tuple(Stage(16, 3, 1) for _ in range(4)), head_width=64)
    words = "5x5_e6 3x3_e3 skip  3x3_e3 3x3_e3 5x5_e3  3x3_e3 7x7_e6 7x7_e6  7x7_e6 skip skip"
    choices = dict(zip(space.candidates(), words.split(), strict=True))
    assert character(space, choices) == {
        "blocks": 9,
        "mean_kernel": round((5 + 3 + 3 + 3 + 5 + 3 + 7 + 7 + 7) / 9, 2),
        "mean_expansion": round((6 + 3 + 3 + 3 + 3 + 3 + 6 + 6 + 6) / 9, 2),
        "first_of_stage": {
            "kernel": {"larger": 1, "equal": 0, "smaller": 2},
            "expansion": {"larger": 1, "equal": 1, "smaller": 1},
        },
    }


@pytest.mark.parametrize(
    ("name", "blocks", "first"), [("gpu", 13, "7x7_e3"), ("cpu", 19, "3x3_e6"), ("mobile", 19, "7x7_e3")]
)
def test_published_networks_are_subnets_of_their_own_widths(name, blocks, first):
    subnet = published_subnet(f"proxylessnas_{name}")
    assert len(subnet.choices) == blocks
    assert subnet.choices["stage2_block0"] == first
    costs = subnet.declaration.costs(224)
    millions = float(PUBLISHED[f"proxylessnas_{name}"][1])
    assert macs_model(costs.fixed, costs.edges).cost(subnet.choices) == pytest.approx(millions, abs=0.05)
    built = timm.create_model("proxylessnas", **subnet.model_args())
    assert repr(built) == repr(timm.create_model(f"proxylessnas_{name}"))


def test_only_what_is_here_is_measured():
    assert not is_of_this_machine(open_table("pixel1"))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "table.yml"
    nets = [COSTS.chain(choices) for choices in COSTS.random_choices(8, seed=0)]
    return build_table(COSTS.distinct(), nets, input_size=28, space="three", out=path, plan=QUICK, progress=False)


def test_whole_networks_are_measured_where_the_table_is_of_this_machine(table):
    header = dataclasses.replace(table.header, device="another machine")
    tables = {"here": table, "there": dataclasses.replace(table, header=header)}
    assert [is_of_this_machine(t) for t in tables.values()] == [True, False]
    chains = [COSTS.chain(choices) for choices in COSTS.random_choices(2, seed=1)]
    found = measured_ms(tables, chains, plan=QUICK)
    assert list(found) == ["here"]
    assert len(found["here"]) == 2
    assert all(ms > 0 for ms in found["here"])


def test_a_cross_table_has_every_network_on_every_device(tmp_path, capsys):
    result = run({"one": open_table("pixel1"), "other": open_table("pixel1")}, 320.4, measured=False)
    first, second = result["rows"]
    assert first["subnet"] == second["subnet"]
    assert first["million_macs"] == pytest.approx(320.4, rel=0.01)
    assert first["ms_by_table"] == {"one": first["ms_by_table"]["one"]} | {"other": first["ms_by_table"]["one"]}
    ones = {"one": {"one": 1.0, "other": 1.0}, "other": {"one": 1.0, "other": 1.0}}
    assert result["slower_than_own"] == {"by table": ones, "measured": {}}
    show(result)
    page = capsys.readouterr().out
    assert page.count(f"{first['ms_by_table']['one']:.3f}") == 4
    assert "204.9" in page
    draw(result, tmp_path / "cross.png")
    assert (tmp_path / "cross.png").read_bytes().startswith(b"\x89PNG")


def test_a_network_is_drawn_with_a_box_for_each_block(tmp_path):
    result = run({"eager": open_table("h200_eager"), "phone": open_table("pixel1")}, 320.4, measured=False)
    draw_networks(result, tmp_path / "networks.svg")
    drawing = (tmp_path / "networks.svg").read_text()
    eager, phone = (row["character"]["blocks"] for row in result["rows"])
    assert drawing.count("fill: #2f6fb0") + drawing.count("fill: #b8501a") == eager + phone
    assert f"{eager} blocks" in drawing
    assert f"{phone} blocks" in drawing


def test_this_machines_tables_are_of_their_number_format(tmp_path):
    small = Plan(rounds=2, minimum_rounds=2, seconds=0.0)
    for name, dtype in (("onnxruntime", "float32"), ("onnxruntime-int8", "int8")):
        path = tmp_path / table_name(name, SPACE, 28)
        table = own_table(name, path, SPACE, size=28, plan=small)
        assert table.header.dtype == LatencyTable.load(path).header.dtype == dtype
        assert is_of_this_machine(table)


def test_a_runtime_that_is_not_installed_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(specialisation, "HERE", {"absent": {"name": "abacus"}})
    assert own_tables(tmp_path, SPACE) == {}
    assert "no row for absent: backend 'abacus' is unknown" in capsys.readouterr().out


def test_slower_than_own_is_relative_to_the_devices_own_network():
    rows = [
        {"specialised_for": "a", "ms": {"a": 2.0, "b": 9.0}},
        {"specialised_for": "b", "ms": {"a": 5.0, "b": 6.0}},
    ]
    assert _slower(rows, "ms") == {"a": {"a": 1.0, "b": 2.5}, "b": {"a": 1.5, "b": 1.0}}
