"""The subnets of the specialisation benchmark against enumeration, and its cross table on the Pixel 1 figures."""

from __future__ import annotations

import itertools
import zlib

import pytest

from hardware.errors import ConfigError, TargetError
from hardware.model import CostModel, macs_model
from hardware.tables import open_table
from search_spaces.mbconv import MBConvDeclaration, Stage
from tests.benchmarks.specialisation import draw, fastest_of_equal_macs, parse_tables, run

SPACE = MBConvDeclaration("three", 8, 2, 8, (Stage(16, 3, 2),), head_width=64)
COSTS = SPACE.costs(28, num_classes=10, in_chans=1)
MACS = macs_model(COSTS.fixed, COSTS.edges)
LATENCY = CostModel(lambda op: 1 + zlib.crc32(op.key.encode()) / 2**32, fixed=COSTS.fixed, edges=COSTS.edges, unit="ms")


@pytest.mark.parametrize("target", [0.6, 0.75, 0.9, 1.1])
@pytest.mark.parametrize("band", [0.02, 0.1])
def test_the_fastest_subnet_of_equal_macs_is_the_enumerated_one(target, band):
    candidates = SPACE.candidates()
    subnets = [dict(zip(candidates, choice, strict=True)) for choice in itertools.product(*candidates.values())]
    allowed = [s for s in subnets if target * (1 - band) <= MACS.cost(s) <= target * (1 + band)]
    assert allowed
    found = fastest_of_equal_macs(LATENCY, MACS, target, band)
    assert found in allowed
    assert LATENCY.cost(found) == pytest.approx(min(LATENCY.cost(s) for s in allowed))


def test_macs_that_no_subnet_has_are_refused():
    with pytest.raises(
        TargetError, match=r"no subnet has 100.0 M MACs within 1%; choose --macs between 0\.\d and 1\.\d"
    ):
        fastest_of_equal_macs(LATENCY, MACS, 100.0)


@pytest.mark.parametrize("text", ["litert.yml", "=litert.yml", "litert="])
def test_tables_are_given_by_name(text):
    with pytest.raises(ConfigError, match=r"is not NAME=FILE; write for example"):
        parse_tables([text])


def test_a_cross_table_has_every_network_on_every_device(tmp_path):
    result = run({"one": open_table("pixel1"), "other": open_table("pixel1")}, 320.4, measured=False)
    first, second = result["rows"]
    assert first["subnet"] == second["subnet"]
    assert first["million_macs"] == pytest.approx(320.4, rel=0.01)
    assert first["ms_by_table"] == {"one": first["ms_by_table"]["one"]} | {"other": first["ms_by_table"]["one"]}
    assert result["slower_than_own"] == {"one": {"one": 1.0, "other": 1.0}, "other": {"one": 1.0, "other": 1.0}}
    draw(result, tmp_path / "cross.png")
    assert (tmp_path / "cross.png").stat().st_size > 5000
