"""What inherited weights say, in the place of a search and as its start: files, refusals, interruptions."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from safetensors.torch import save_file

from hardware.errors import ConfigError
from proxyless_strategy.config import SearchConfig, parse_config
from proxyless_strategy.report.page import write_page
from proxyless_strategy.report.pictures import draw_searches
from proxyless_strategy.runs import sensitivity
from proxyless_strategy.runs.derive import derive, save_curve
from proxyless_strategy.runs.finished import read_losses
from proxyless_strategy.runs.prepare import prepare
from proxyless_strategy.runs.search import run_search
from proxyless_strategy.runs.sensitivity import Inherited, sensitivity_start
from proxyless_strategy.runs.sweep import read_sweep
from proxyless_strategy.strategy.sensitivity import START_SPAN, Sensitivity
from tests.search_spaces.from_timm.samples import images, with_weights

NAME = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_weights(NAME, tmp_path_factory.mktemp("weights"))[1]


@pytest.fixture(autouse=True)
def few_images(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CALIBRATION_IMAGES", "EVALUATION_IMAGES", "PROBE_IMAGES"):
        monkeypatch.setattr(sensitivity, name, 64)


def settings(weights: Path | str, out: Path, **changes: Any) -> dict[str, Any]:
    options = {"kernels": [5], "expansions": [3], "weights": str(weights)}
    return {
        "space": {"name": f"timm:{NAME}", "options": options},
        "data": "digits",
        "hardware": {"cost": "macs", "device": "other"},
        "target": 0.5,
        "rule": "sensitivity",
        "search": {"batch_size": 32, "deterministic": torch.cuda.is_available()},
        "retrain": None,
        "out": str(out),
        **changes,
    }


SHORT = {"warmup_epochs": 0, "epochs": 1, "batch_size": 128, "steps_per_update": 4, "finalists": 2}


def config_of(*given: Any, **changes: Any) -> SearchConfig:
    return parse_config(settings(*given, **changes))


def read(folder: Path, name: str = "search.json") -> Any:
    return json.loads((folder / name).read_text())


# ---- what is refused and said ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("asks", [{"rule": "sensitivity"}, {"rule": "gradient", "search": {"start": "sensitivity"}}])
@pytest.mark.parametrize(
    "space", ["small_mbconv", {"name": f"timm:{NAME}", "options": {"weights": "none", "kernels": [5]}}]
)
def test_a_space_without_inherited_weights_is_refused_before_anything_is_read(
    asks: dict[str, Any], space: Any, tmp_path: Path
) -> None:
    data = {"name": "imagefolder", "root": str(tmp_path / "nowhere")}
    config = config_of("none", tmp_path / "out", space=space, data=data, **{"search": {}, **asks})
    setting = "rule" if asks["rule"] == "sensitivity" else "search.start"
    with pytest.raises(
        ConfigError, match=rf"^{setting} = sensitivity asks .* has none; name a timm: space with weights"
    ):
        prepare(config)
    assert not (tmp_path / "out").exists()


def test_settings_that_the_rule_makes_nothing_of_are_named_once(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(config_of(weights, tmp_path, objective="hard", search={"epochs": 3, "batch_size": 32, "finalists": 4}))
    said = [line for line in capsys.readouterr().err.splitlines() if "makes nothing of" in line]
    assert said == [
        "rule sensitivity trains no supernet, so that it makes nothing of search.epochs, search.finalists, objective"
    ]
    prepare(config_of(weights, tmp_path))
    assert "makes nothing" not in capsys.readouterr().err
    prepare(config_of(weights, tmp_path, rule="gradient", search=SHORT))
    assert "makes nothing" not in capsys.readouterr().err


def test_a_temperature_without_its_start_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"start_temperature = 0\.5 has no part in start uniform"):
        parse_config({"search": {"start_temperature": 0.5}})


def test_a_sweep_takes_the_rule_beside_the_others(weights: Path, tmp_path: Path) -> None:
    values = settings(weights, tmp_path / "out", search=SHORT, retrain={"epochs": 1})
    (tmp_path / "search.yml").write_text(yaml.safe_dump(values))
    sweep = {
        "searchSpace": {"rule": {"_type": "choice", "_value": ["gradient", "reinforce", "sensitivity"]}},
        "trialCommand": "python -m proxyless_strategy.trial search.yml",
        "trainingService": {"platform": "local"},
        "trialConcurrency": 1,
    }
    (tmp_path / "sweep.yml").write_text(yaml.safe_dump(sweep))
    configs = read_sweep(tmp_path / "sweep.yml").configs()
    assert [config.rule for config in configs] == ["gradient", "reinforce", "sensitivity"]
    assert [config.update_rule for config in configs] == ["gradient", "reinforce", "gradient"]


# ---- in the place of a search ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    out = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CALIBRATION_IMAGES", "EVALUATION_IMAGES", "PROBE_IMAGES"):
            patch.setattr(sensitivity, name, 64)
        return out, run_search(config_of(weights, out))


def test_the_knapsack_ends_as_a_timm_model_within_the_target(finished: tuple[Path, Any]) -> None:
    out, result = finished
    assert result.subnet_cost <= result.target_cost
    record = read(out)
    table = Sensitivity.from_dict(record["sensitivity"])
    assert record["subnet"]["choices"] == record["sensitivity"]["knapsack"] == dict(result.subnet.choices)
    sums = [table.differences[row, : len(edge.candidates)] for row, edge in enumerate(table.edges)]
    prepared = prepare(result.config, quiet=True)
    # No exchange of two edges within the target does better: a check that no solver takes part in.
    best = {edge.label: result.subnet.choices[edge.label] for edge in table.edges}
    for first, second in itertools.combinations(range(len(table.edges)), 2):
        for i, a in enumerate(table.edges[first].candidates):
            for j, b in enumerate(table.edges[second].candidates):
                changed = {**best, table.edges[first].label: str(a), table.edges[second].label: str(b)}
                if prepared.cost.cost(changed) > result.target_cost:
                    continue
                old = sum(
                    sums[row][table.edges[row].candidates.index(best[table.edges[row].label])]
                    for row in (first, second)
                )
                assert sums[first][i] + sums[second][j] >= old - 1e-9
    model = timm.create_model(f"local-dir:{result.folder}", pretrained=True).eval()
    with torch.inference_mode():
        assert torch.isfinite(model(images(32, 1))).all()
    row = read(out, "row.json")
    assert (row["rule"], row["search_loss"], row["knapsack_loss"]) == ("sensitivity", None, None)


def test_the_exported_weights_are_the_inherited_ones_with_norms_and_a_classifier_of_the_data(
    finished: tuple[Path, Any], weights: Path
) -> None:
    from safetensors.torch import load_file

    inherited, exported = load_file(weights), load_file(finished[1].folder / "model.safetensors")
    assert torch.equal(exported["conv_stem.weight"], inherited["conv_stem.weight"].sum(1, keepdim=True))
    assert not torch.equal(exported["bn1.running_mean"], inherited["bn1.running_mean"])
    assert torch.equal(exported["bn1.weight"], inherited["bn1.weight"])


def test_what_follows_a_search_follows_the_rule_too(finished: tuple[Path, Any], tmp_path: Path) -> None:
    out, result = finished
    again = derive(out, target=result.target_cost, out=tmp_path / "same")
    assert again.choices == dict(result.subnet.choices)
    looser = derive(out, target=1.3 * result.target_cost, out=tmp_path / "looser")
    table = Sensitivity.from_dict(read(out)["sensitivity"])

    def loss(choices: Any) -> float:
        return table.additive_loss([edge.candidates.index(choices[edge.label]) for edge in table.edges])

    assert loss(looser.choices) <= loss(again.choices)
    rows = save_curve(out, out=tmp_path / "curve", points=5)
    assert [row["cost"] for row in rows] == sorted(row["cost"] for row in rows)
    assert draw_searches(out, tmp_path / "picture.png").exists()
    assert "sensitivity" in write_page(out, tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_if_it_had_not(
    finished: tuple[Path, Any], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    def killed(done: int, of: int) -> None:
        if done == 7:
            raise Killed

    whole = finished[0]
    config = config_of(weights, tmp_path / "run")
    with monkeypatch.context() as patch:
        measured = sensitivity.measure
        patch.setattr(sensitivity, "measure", lambda *a, moved, **k: measured(*a, moved=killed, **k))
        with pytest.raises(Killed):
            run_search(config)
    assert not (tmp_path / "run" / "search.json").exists()
    run_search(config)
    assert (tmp_path / "run" / "search.json").read_bytes() == (whole / "search.json").read_bytes()
    same = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert same == (whole / "model" / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_without_a_target_the_least_loss_is_taken_and_that_is_said(weights: Path, tmp_path: Path) -> None:
    result = run_search(config_of(weights, tmp_path / "run", target=None))
    table = Sensitivity.from_dict(read(tmp_path / "run")["sensitivity"])
    for row, edge in enumerate(table.edges):
        assert result.subnet.choices[edge.label] == edge.candidates[int(np.nanargmin(table.differences[row]))]
    assert any("there is no target" in warning for warning in result.warnings)


def test_a_classifier_that_knows_other_classes_is_fitted_anew_and_that_is_said(
    weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensitivity, "PROBE_IMAGES", 960)
    monkeypatch.setattr(sensitivity, "CALIBRATION_IMAGES", 256)

    def table_of(weights: Path, out: str) -> tuple[Inherited, bool, Sensitivity]:
        inherited = Inherited(prepare(config_of(weights, tmp_path / out), quiet=True))
        before = inherited.network.classifier.weight.clone()
        table = inherited.table()
        return inherited, torch.equal(inherited.network.classifier.weight, before), table

    inherited, stays, table = table_of(weights, "of 1000")
    assert "are of another number of classes than the data's 10 classes: a new" in capsys.readouterr().out
    # The digits' loss of a classifier that knows nothing is log 10.
    assert (stays, table.loss < 0.95 * np.log(10)) == (False, True)

    # as many classes, but others: the classifier is random
    _, stays, table = table_of(with_weights(NAME, tmp_path, num_classes=10)[1], "of 10 others")
    assert "no better than chance (2.3) on the data's 10 classes: a new" in capsys.readouterr().out
    assert (stays, table.loss < 0.95 * np.log(10)) == (False, True)

    own = tmp_path / "own.safetensors"
    save_file(inherited.subnet_weights(inherited.prepared.space.original()), own)  # type: ignore[attr-defined]
    _, stays, table = table_of(own, "of these 10")
    assert "a new classifier" not in capsys.readouterr().out
    assert (stays, table.loss < 0.95 * np.log(10)) == (True, True)


@pytest.mark.slow
def test_the_subnet_is_retrained_as_after_a_search(weights: Path, tmp_path: Path) -> None:
    result = run_search(config_of(weights, tmp_path / "run", retrain={"epochs": 1, "batch_size": 128}))
    assert result.accuracy is not None
    again = run_search(result.config)
    assert (again.subnet, again.accuracy) == (result.subnet, result.accuracy)


# ---- as a start -----------------------------------------------------------------------------------------------------


def starting(weights: Path, out: Path, **changes: Any) -> SearchConfig:
    search = {**SHORT, "start": "sensitivity", **changes}
    return config_of(weights, out, rule="gradient", search=search)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["gradient", "reinforce"])
def test_a_search_is_held_against_the_knapsack_that_it_started_from(rule: str, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    config = starting(weights, out).model_copy(update={"rule": rule})
    result = run_search(config)
    record = read(out)
    known = record["sensitivity"]
    assert known["knapsack"] in [finalist["choices"] for finalist in record["finalists"]]
    assert result.knapsack_loss == known["knapsack_loss"]
    assert result.search_loss == known["search_loss"]
    lost = known["search_loss"] >= known["knapsack_loss"]
    assert lost == any("did not beat the sensitivity knapsack" in warning for warning in result.warnings)
    best = min(finalist["loss"] for finalist in record["finalists"])
    assert best == min(known["search_loss"], known["knapsack_loss"])
    assert read(out, "row.json")["knapsack_loss"] == known["knapsack_loss"]
    assert known["temperature"] > 0
    again = run_search(config)
    assert (again.search_loss, again.knapsack_loss) == (result.search_loss, result.knapsack_loss)


@pytest.mark.slow
def test_a_search_that_goes_on_measures_nothing_again(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(Exception):
        pass

    def stopping(row: Any) -> None:
        raise Stop

    whole, out = tmp_path / "whole", tmp_path / "stopped"
    run_search(starting(weights, whole, epochs=2))
    with pytest.raises(Stop):
        run_search(starting(weights, out, epochs=2), on_epoch=stopping)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(sensitivity, "measure", never)
    run_search(starting(weights, out, epochs=2))
    assert read(out) == read(whole)


def test_alpha_starts_from_the_table_that_lies_in_the_folder(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(starting(weights, tmp_path / "run"), quiet=True)
    first = sensitivity_start(prepared, begun=False)
    assert first is not None
    logits = first.options(contends=True)["start"]
    assert all(-START_SPAN <= value <= 0 for row in logits.values() for value in row.values())
    assert all(max(row.values()) == 0 for row in logits.values())
    assert len({round(value, 3) for row in logits.values() for value in row.values()}) > 5
    asked = prepare(starting(weights, tmp_path / "run", start_temperature=0.5), quiet=True)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(sensitivity, "measure", never)
        again = sensitivity_start(prepared, begun=False)
        assert again is not None
        assert again.options(contends=True) == first.options(contends=True)
        hotter = sensitivity_start(asked, begun=True)
        assert hotter is not None
        assert hotter.temperature == 0.5

    # Of other images or weights it counts for nothing.
    path = tmp_path / "run" / "sensitivity.json"
    values = json.loads(path.read_text())
    values["identity"]["weights"] = "0" * 12
    values["differences"] = {label: dict.fromkeys(row, 0.0) for label, row in values["differences"].items()}
    path.write_text(json.dumps(values))
    anew = sensitivity_start(prepared, begun=False)
    assert anew is not None
    assert anew.options(contends=True) == first.options(contends=True)


def test_a_table_of_another_space_is_refused_and_none_is_made_for_another_start(weights: Path, tmp_path: Path) -> None:
    prepared = prepare(starting(weights, tmp_path / "run"), quiet=True)
    table = Sensitivity.from_dict(
        {"loss": 1.0, "images": 4, "original": {"a": "x"}, "differences": {"a": {"x": 0.0, "y": 1.0}}}
    )
    (tmp_path / "run").mkdir()
    values = {"format": sensitivity.FORMAT, "identity": {}, **table.to_dict()}
    (tmp_path / "run" / "sensitivity.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"sensitivity\.json is of another space than timm:"):
        sensitivity_start(prepared, begun=True)
    assert (
        sensitivity_start(prepare(config_of(weights, tmp_path / "x", rule="gradient"), quiet=True), begun=False) is None
    )


def test_losses_of_a_search_without_a_contest_are_none(finished: tuple[Path, Any]) -> None:
    assert read_losses(finished[0]) == {}
