"""Other subnets of a finished search, against what the search's own strategy derives."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path

import pytest
import yaml

from hardware.errors import ConfigError, TableError, TargetError
from hardware.model import macs_model
from proxyless_strategy.cli.main import main
from proxyless_strategy.config import parse_config
from proxyless_strategy.export.folder import load_exported
from proxyless_strategy.runs import search
from proxyless_strategy.runs.derive import derive, save_curve
from proxyless_strategy.runs.finished import read_run
from search_spaces import get_space
from tests.proxyless_strategy.runs.test_search import SPACE, table  # noqa: F401


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search under a budget of MACs, which needs no measured table."""
    out = tmp_path_factory.mktemp("search") / "run"
    config = parse_config(
        {
            "space": SPACE,
            "data": "digits",
            "input_size": 16,
            "hardware": {"cost": "macs", "device": "other"},
            "target": 0.6,
            "search": {"warmup_epochs": 1, "epochs": 2, "steps_per_update": 2, "batch_size": 64},
            "retrain": None,
            "out": str(out),
        }
    )
    search.run_search(config)
    return out


def enumerated(finished: Path, budget: float) -> tuple[float, dict[str, str]]:
    """The most probable subnet that uses 98 to 100 % of a budget, by enumeration."""
    record = json.loads((finished / "search.json").read_text())
    space = get_space(SPACE["name"], **SPACE["options"])
    costs = space.costs(16, num_classes=10, in_chans=1)
    macs = macs_model(costs.fixed, costs.edges)
    best = (-math.inf, {})
    for choice in itertools.product(*space.candidates().values()):
        choices = dict(zip(space.candidates(), choice, strict=True))
        if 0.98 * budget <= macs.cost(choices) <= budget:
            p = sum(math.log(record["probabilities"][label][name]) for label, name in choices.items())
            best = max(best, (p, choices), key=lambda found: found[0])
    return best


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_subnet_for_another_budget_is_the_enumerated_one(finished: Path, share: float, tmp_path: Path) -> None:
    low, high = (getattr(read_run(finished).cost, side)()[0] for side in ("minimum", "maximum"))
    budget = low + share * (high - low)
    derived = derive(finished, target=budget, out=tmp_path / "net")
    log_p, choices = enumerated(finished, budget)
    assert choices
    record = json.loads((finished / "search.json").read_text())["probabilities"]
    assert sum(math.log(record[label][name]) for label, name in derived.choices.items()) == pytest.approx(log_p)
    assert 0.98 * budget <= derived.cost <= budget
    assert derived.unit == "M MACs"
    assert load_exported(tmp_path / "net").num_classes == 10
    metrics = json.loads((tmp_path / "net" / "metrics.json").read_text())
    cost = {"unit": "M MACs", "target_cost": budget, "subnet_cost": derived.cost}
    assert metrics == {"accuracy": None, "weights": "random", **cost}


def test_the_curve_rises_in_cost_and_probability(finished: Path, tmp_path: Path) -> None:
    rows = save_curve(finished, out=tmp_path / "curve", points=6)
    assert len(rows) > 1
    for before, after in itertools.pairwise(rows):
        assert before["cost"] < after["cost"]
        assert before["log_probability"] < after["log_probability"]
    assert json.loads((tmp_path / "curve" / "curve.json").read_text()) == rows
    assert len((tmp_path / "curve" / "curve.csv").read_text().splitlines()) == len(rows) + 1
    assert (tmp_path / "curve" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_derived_is_refused(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"no subnet is within 0.01: the cheapest costs"):
        derive(finished, target=0.01, out=tmp_path / "net")
    with pytest.raises(ConfigError, match=r"holds no finished search .*; give the `out` of one that ran to its end"):
        derive(tmp_path, target=1.0, out=tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_the_searchs_own_result_is_not_replaced(finished: Path) -> None:
    before = (finished / "model" / "metrics.json").read_bytes()
    with pytest.raises(ConfigError, match=r"model would replace the network that the search exported; choose another"):
        derive(finished, target=1000.0, out=finished / "model")
    assert (finished / "model" / "metrics.json").read_bytes() == before


@pytest.mark.parametrize("target", [math.nan, math.inf])
def test_a_target_that_is_no_number_is_refused(finished: Path, target: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"target = {target} is no budget; give one in M MACs"):
        derive(finished, target=target, out=tmp_path / "net")


def test_a_cost_that_changed_since_is_noticed(finished: Path, tmp_path: Path) -> None:
    row = json.loads((finished / "row.json").read_text())
    kept = (finished / "row.json").read_text()
    try:
        (finished / "row.json").write_text(json.dumps({**row, "subnet_cost": 2 * row["subnet_cost"]}))
        with pytest.raises(TableError, match=r"took .* M MACs by the table of its search, but takes .* by today's"):
            assert read_run(finished).deriver
    finally:
        (finished / "row.json").write_text(kept)


@pytest.mark.slow
def test_a_table_that_changed_where_the_search_did_not_go_is_noticed(
    table: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    config = parse_config(
        {
            "space": SPACE,
            "data": "digits",
            "input_size": 16,
            "hardware": {"table": str(shutil.copy(table, tmp_path / "table.yml")), "device": "other"},
            "search": {"warmup_epochs": 1, "epochs": 2, "steps_per_update": 2, "batch_size": 128},
            "retrain": None,
            "out": str(tmp_path / "run"),
        }
    )
    found = search.run_search(config)
    assert read_run(tmp_path / "run").deriver
    edges = get_space(SPACE["name"], **SPACE["options"]).costs(16, num_classes=10, in_chans=1).edges
    label, chosen = next(iter(found.subnet.choices.items()))
    other = next(op for name, op in edges[label].items() if name != chosen)
    values = yaml.safe_load((tmp_path / "table.yml").read_text())
    values["entries"][other.key]["ms"] *= 1.01
    (tmp_path / "table.yml").write_text(yaml.safe_dump(values))
    with pytest.raises(TableError, match=r"on average by the table of its search, but take .* by today's"):
        assert read_run(tmp_path / "run").deriver


def test_the_command(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["derive", str(finished), "--out", str(tmp_path / "net"), "--target", "1000"])
    assert stop.value.code in (0, None)
    assert "M MACs" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stop:
        main(["derive", str(finished), "--out", str(tmp_path / "net")])
    assert stop.value.code == 2
    assert capsys.readouterr().err == "give either --target or --curve\n"
