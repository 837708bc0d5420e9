"""One search from config to measured file, and what is refused before it starts."""

import dataclasses
import html
import json

import pytest
import timm
import torch

from hardware.errors import (
    BackendError,
    ConfigError,
    DataError,
    MissingOperatorError,
    SpaceError,
    TableError,
    TargetError,
)
from hardware.measuring import predictor
from hardware.measuring.sampling import Plan
from hardware.measuring.table import build_table
from hardware.tables.table import LatencyTable
from proxyless_strategy.config import load_config, parse_config
from proxyless_strategy.report.film import draw_film
from proxyless_strategy.report.page import write_page
from proxyless_strategy.report.pictures import draw_searches
from proxyless_strategy.runs import deployed, search
from proxyless_strategy.runs.finished import read_run
from proxyless_strategy.runs.prepare import prepare
from proxyless_strategy.runs.space_table import default_table_path, table_path
from search_spaces import Subnet, get_space

SPACE = {
    "name": "small_mbconv",
    "options": {
        "stages": [{"width": 16, "depth": 2, "stride": 2}, {"width": 24, "depth": 1, "stride": 2}],
        "head_width": 64,
    },
}


QUICK = {"warmup_epochs": 1, "epochs": 2, "steps_per_update": 2, "batch_size": 128}


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    """A table of the tests' small space, measured in a second."""
    path = tmp_path_factory.mktemp("table") / "table.yml"
    costs = get_space(SPACE["name"], **SPACE["options"]).costs(16, num_classes=10, in_chans=1)
    nets = [costs.chain(choices) for choices in costs.random_choices(8, seed=0)]
    build_table(
        costs.distinct(),
        nets,
        input_size=16,
        space="tests",
        out=path,
        plan=Plan(rounds=25, minimum_rounds=25),
        progress=False,
    )
    return path


def settings(table, out, **changes):
    values = {
        "space": SPACE,
        "data": "digits",
        "input_size": 16,
        "hardware": {"table": str(table)},
        "target": 0.5,
        "search": {"warmup_epochs": 1, "epochs": 3, "steps_per_update": 2, "batch_size": 128},
        "retrain": {"epochs": 2, "batch_size": 128},
        "out": str(out),
    }
    return parse_config({**values, **changes})


@pytest.mark.parametrize("rule", ["gradient", pytest.param("reinforce", marks=pytest.mark.slow)])
def test_a_search_ends_with_a_timm_model_within_the_target(rule, table, tmp_path, capsys):
    rows = []
    config = settings(table, tmp_path / "run", rule=rule)
    result = search.run_search(config, on_epoch=rows.append)
    assert result.table_ms <= result.target_ms
    finalists = json.loads((tmp_path / "run" / "search.json").read_text())["finalists"]
    assert finalists[0]["choices"] == result.subnet.choices
    assert finalists[0]["loss"] == min(finalist["loss"] for finalist in finalists)
    assert [row["phase"] for row in rows] == ["warmup", "search", "search", "search", "retrain", "retrain"]
    assert all(0 <= row["default"] <= 1 for row in rows)
    model = timm.create_model(f"local-dir:{result.folder}", pretrained=True)
    assert model(torch.randn(1, 1, 16, 16)).shape == (1, 10)
    assert sum(p.numel() for p in model.parameters()) == result.params
    assert Subnet.load(result.folder / "subnet.json") == result.subnet
    assert result.onnx.exists()
    assert result.latency_ms > 0
    row = json.loads((tmp_path / "run" / "row.json").read_text())
    assert row["accuracy"] == result.accuracy
    assert row["hardware"] == result.device == LatencyTable.load(table).header.device, "no platform is named"
    assert draw_searches(tmp_path, tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")
    assert draw_film(tmp_path, tmp_path / "film.gif").read_bytes().startswith(b"GIF89a")
    finished = read_run(tmp_path / "run")
    assert finished.film.epochs == (1, 2, 3, 4)
    assert finished.network.cost(result.subnet.choices) == pytest.approx(result.subnet_cost, rel=1e-9)
    assert [
        label for label, row in finished.film.frame(3).items() if len(row) != len(finished.probabilities[label])
    ] == []
    # the last epoch's frame is what the search ended with, and the first, of the warm-up, what it began with
    assert finished.network.expected(finished.film.frame(3)) == pytest.approx(finished.expected, rel=1e-3)
    assert all(max(row) - min(row) < 0.01 for row in finished.film.frame(0).values())
    page = write_page(tmp_path, tmp_path / "report.html").read_text()
    assert f"{result.accuracy:.2%}" in page
    assert row["warnings"] == list(result.warnings)
    assert any(
        "architecture steps are planned" in warning and "search.epochs" in warning for warning in row["warnings"]
    )
    assert all(html.escape(warning) in page for warning in row["warnings"])

    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()}
    again = search.run_search(config, on_epoch=None)
    assert dataclasses.asdict(again) == dataclasses.asdict(result)
    assert "which has ended: nothing is done" in capsys.readouterr().out
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in tmp_path.rglob("*") if p.is_file()} == before


def test_each_epoch_is_one_line_and_the_run_says_what_is_left(table, tmp_path, capfd):
    search.run_search(settings(table, tmp_path / "run"))
    output, error = capfd.readouterr()
    lines = [line for line in error.splitlines() if line.startswith(("warmup ", "search ", "retrain "))]
    assert [line.split(":")[0] for line in lines] == [
        "warmup 1/4", "search 2/4", "search 3/4", "search 4/4", "retrain 1/2", "retrain 2/2",
    ]  # fmt: skip
    assert all(" loss " in line and " left" in line and " accuracy " in line for line in lines)
    assert all("(likeliest subnet)" in line for line in lines[:4])
    assert all("E[LAT]" in line and "->" in line and "ms" in line for line in lines[2:4])
    assert error.count("with the weights that all subnets share") == 1
    assert "\r" not in error
    assert "epoch 1" not in output.lower()


@pytest.mark.slow
def test_what_is_gone_of_a_finished_search_is_made_again(table, tmp_path):
    config = settings(table, tmp_path / "run", retrain=None, search=QUICK)
    first = search.run_search(config)
    for gone in (first.onnx, first.folder / "hubconf.py", tmp_path / "run" / "row.json"):
        gone.unlink()
        assert search.run_search(config).subnet == first.subnet
        assert gone.exists()
    (tmp_path / "run" / "row.json").write_text("{")
    assert search.run_search(config).params == first.params
    assert json.loads((tmp_path / "run" / "row.json").read_text())["params"] == first.params


@pytest.mark.slow
def test_two_searches_in_one_process_are_those_of_two_processes(table, tmp_path):
    threads = torch.get_num_threads()
    found = [
        search.run_search(settings(table, tmp_path / str(number), retrain=None, search=QUICK)) for number in range(2)
    ]
    assert torch.get_num_threads() == threads
    assert found[0].subnet == found[1].subnet
    records = [json.loads((tmp_path / str(number) / "search.json").read_text()) for number in range(2)]
    assert records[0] == records[1]
    assert found[0]._repr_html_().count("<rect") == len(found[0].subnet.choices)
    assert read_run(tmp_path / "0")._repr_html_().count("<rect") == len(found[0].subnet.choices)


@pytest.mark.slow
def test_a_search_that_stopped_anywhere_ends_as_if_it_had_not(table, tmp_path, capsys):
    class Stop(Exception):
        pass

    whole = search.run_search(settings(table, tmp_path / "whole"))
    for stop in (2, 5):
        out, seen = tmp_path / f"stopped{stop}", []

        def stopping(row, seen=seen, stop=stop):
            seen.append(row)
            if len(seen) == stop:
                raise Stop

        with pytest.raises(Stop):
            search.run_search(settings(table, out), on_epoch=stopping)
        seen.clear()
        assert "continuing" not in capsys.readouterr().err
        resumed = search.run_search(settings(table, out), on_epoch=seen.append)
        what, total = ("the retraining ", 2) if seen[0]["phase"] == "retrain" else ("", 4)
        said = capsys.readouterr().err
        assert said.count("continuing ") == 1
        assert f"continuing {what}at epoch {seen[0]['epoch']} of {total}\n" in said
        assert len(seen) < 6
        assert resumed.subnet == whole.subnet
        assert resumed.accuracy == whole.accuracy
        history = [json.loads((place / "search.json").read_text()) for place in (out, tmp_path / "whole")]
        assert history[0] == history[1]


def test_settings_of_the_architecture_steps_reach_the_strategy(table, tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def noted(**options):
        raise Reached(options)

    monkeypatch.setattr(search, "ProxylessStrategy", noted)
    changed = {
        "baseline": "moving",
        "warmup_paths": "fair",
        "weight_paths": "sampled",
        "finalists": 3,
        "samples": 7,
        "estimator": "unbiased",
        "paths": "all",
    }
    with pytest.raises(Reached) as reached:
        search.run_search(settings(table, tmp_path, search={**QUICK, **changed}))
    assert reached.value.args[0].items() >= changed.items()


@pytest.mark.slow
def test_the_torch_backend_measures_the_same_network(tmp_path):
    config = settings(
        tmp_path / "torch.yml", tmp_path / "run", hardware={"table": str(tmp_path / "torch.yml"), "backend": "torch"}
    )
    assert search.run_search(config.model_copy(update={"retrain": None})).latency_ms > 0


def test_a_table_of_another_device_is_used_and_nothing_is_measured_here(table, tmp_path, monkeypatch):
    foreign = LatencyTable.load(table)
    header = dataclasses.replace(foreign.header, backend="tflite", device="a phone", threads=4)
    dataclasses.replace(foreign, header=header).save(tmp_path / "phone.yml")
    monkeypatch.setattr(deployed, "get_backend", None)
    config = settings(table, tmp_path / "run", hardware={"table": str(tmp_path / "phone.yml"), "device": "other"})
    result = search.run_search(config)
    assert result.latency_ms is None
    assert result.table_ms <= result.target_ms
    missing = settings(table, tmp_path / "other", hardware={"table": str(tmp_path / "no.yml"), "device": "other"})
    with pytest.raises(TableError, match=r"no\.yml.*pixel1"):
        prepare(missing, quiet=True)


def test_a_shipped_table_is_found_by_its_name(tmp_path):
    path = tmp_path / "search.yml"
    path.write_text("hardware: {table: pixel1, device: other}")
    config = load_config(path)
    assert LatencyTable.load(table_path(config)).header.device.startswith("Google Pixel")


@pytest.mark.parametrize(
    ("cost", "target", "unit"),
    [
        ("macs", 0.35, "M MACs"),
        pytest.param("params", 0.009, "M params", marks=pytest.mark.slow),
        pytest.param("activation_memory", 0.06, "MB", marks=pytest.mark.slow),
    ],
)
def test_a_search_can_count_what_needs_no_table(cost, target, unit, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hardware = {"cost": cost, "device": "other"}
    rows = []
    config = settings(
        None, tmp_path / "run", hardware=hardware, target=None, target_cost=target, retrain=None, search=QUICK
    )
    prepare(config, quiet=True)
    result = search.run_search(config, on_epoch=rows.append)
    assert not (tmp_path / "cache").exists()
    row = json.loads((tmp_path / "run" / "row.json").read_text())
    assert row == {**result.row(), "folder": str(result.folder), "onnx": str(result.onnx)}
    assert (row["cost"], row["unit"], row["target_cost"]) == (cost, unit, target)
    assert row["subnet_cost"] <= target
    assert (row["target_ms"], row["table_ms"], row["latency_ms"]) == (None, None, None)
    known = {"macs": result.macs / 1e6, "params": result.params / 1e6}
    assert row["subnet_cost"] == pytest.approx(known.get(cost, row["subnet_cost"]), rel=1e-9)
    assert {entry["unit"] for entry in rows} == {unit}
    saved = json.loads((tmp_path / "run" / "search.json").read_text())
    assert (saved["unit"], saved["target"]) == (unit, target)
    page = capsys.readouterr().out
    assert f"target {target:.4g} {unit}" in page
    assert f" {unit}\n" in page.split("derived ")[1]
    assert " ms" not in page
    draw_searches(tmp_path, tmp_path / "report.png")


@pytest.mark.slow
def test_another_cost_with_a_table_reports_the_latency_beside_it(table, tmp_path):
    hardware = {"cost": "macs", "table": str(table)}
    result = search.run_search(settings(table, tmp_path / "run", hardware=hardware, retrain=None, search=QUICK))
    prepared = prepare(result.config, quiet=True)
    assert result.target_cost == pytest.approx((prepared.cost.minimum()[0] + prepared.cost.maximum()[0]) / 2)
    assert result.table_ms == prepared.latency.latency(result.subnet.choices)
    assert result.latency_ms > 0
    assert result.target_ms is None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hardware": {"cost": "macs"}, "target_ms": 3}, "target_ms = 3.0 is no target for hardware.cost macs"),
        ({"target_cost": 3}, "target_cost = 3.0 is no target for hardware.cost latency; give target_ms or target"),
        ({"target_cost": 3, "target": 0.5, "target_ms": 1}, "are all given"),
        ({"hardware": {"cost": "flops"}}, "hardware.cost = 'flops'"),
        ({"hardware": {"cost": "macs", "fill": "m.json"}}, "there is no hardware.table"),
    ],
)
def test_targets_of_another_kind_of_cost_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        parse_config(changes)


def test_a_target_below_the_cheapest_subnet_names_the_unit(tmp_path):
    config = settings(None, tmp_path, hardware={"cost": "macs"}, target=None, target_cost=1e-3)
    with pytest.raises(TargetError, match=r"target_cost = 0\.001 is below the cheapest subnet .* M MACs"):
        prepare(config, quiet=True)


@pytest.fixture(scope="session")
def learned(table, tmp_path_factory):
    """A learned model of the device of the tests' table, from latencies by that table."""
    measured = LatencyTable.load(table)
    costs = get_space(SPACE["name"], **SPACE["options"]).costs(16, num_classes=10, in_chans=1)
    nets = [costs.chain(choices) for choices in costs.random_choices(60, seed=3)]
    model = predictor.fit(nets, [measured.calibrated_ms(net) for net in nets], header=measured.header)
    path = tmp_path_factory.mktemp("model") / "model.json"
    model.save(path)
    return path


@pytest.mark.parametrize("other", ["width", "input size"])
def test_a_learned_model_fills_what_the_table_lacks_on_request(other, table, learned, tmp_path):
    changes = {"input_size": 24} if other == "input size" else {}
    if other == "width":
        changes["space"] = {"name": SPACE["name"], "options": {**SPACE["options"], "head_width": 48}}
    shared = {"retrain": None, "search": QUICK, **changes}
    with pytest.raises(TableError, match=r"predict them|input size 16, not 24"):
        prepare(settings(table, tmp_path / "run", **shared), quiet=True)
    hardware = {"table": str(table), "fill": str(learned)}
    config = settings(table, tmp_path / "run", hardware=hardware, **shared)
    prepare(config, quiet=True)
    used = prepare(config, quiet=True).latency.table
    measured = LatencyTable.load(table)
    predicted = {key for key, entry in used.entries.items() if entry.predicted}
    if other == "width":
        assert predicted
        assert predicted == set(used.entries) - set(measured.entries)
        assert measured.entries.items() <= used.entries.items()
    else:
        assert predicted == set(used.entries)
        assert used.header.input_size == 24


@pytest.mark.slow
def test_a_search_on_a_filled_table_keeps_it_with_its_predictions_marked(table, learned, tmp_path, capsys):
    hardware = {"table": str(table), "fill": str(learned)}
    config = settings(table, tmp_path, hardware=hardware, input_size=24, retrain=None, search=QUICK)
    result = search.run_search(config)
    assert result.table_ms <= result.target_ms
    assert result.latency_ms > 0
    used = LatencyTable.load(tmp_path / "table.yml")
    assert all(entry.predicted for entry in used.entries.values())
    count = len(used.entries)
    assert f"{count} of {count} operators predicted by {learned}" in capsys.readouterr().out


def test_a_model_of_another_device_or_no_model_fills_nothing(table, learned, tmp_path):
    document = json.loads(learned.read_text())
    document["header"]["device"] = "a phone"
    (tmp_path / "phone.json").write_text(json.dumps(document))
    (tmp_path / "none.json").write_text("{}")
    for name, words in (("phone", "the learned model is of device 'a phone'"), ("none", "no learned latency model")):
        config = settings(
            table, tmp_path / "run", hardware={"table": str(table), "fill": str(tmp_path / f"{name}.json")}
        )
        with pytest.raises(TableError, match=words):
            prepare(config, quiet=True)


def test_without_retraining_the_supernets_weights_are_exported(table, tmp_path):
    result = search.run_search(settings(table, tmp_path, retrain=None, search=QUICK))
    assert result.accuracy is None
    assert timm.create_model(f"local-dir:{result.folder}", pretrained=True)(torch.randn(1, 1, 16, 16)).isfinite().all()


def test_another_search_in_the_same_folder_is_refused(table, tmp_path):
    search.run_search(settings(table, tmp_path, retrain=None, search=QUICK))
    with pytest.raises(ConfigError, match="other settings \\(seed = 0 there, 5 here\\)"):
        prepare(settings(table, tmp_path, retrain=None, search=QUICK, seed=5), quiet=True)


def test_a_missing_table_is_built_and_kept(table, tmp_path, monkeypatch):
    calls = []

    def quick(*args, out, **kwargs):
        calls.append(out)
        LatencyTable.load(table).save(out)
        return LatencyTable.load(out)

    monkeypatch.setattr("hardware.measuring.table.build_table", quick)
    config = settings(tmp_path / "new" / "table.yml", tmp_path / "run")
    for _ in range(2):
        prepared = prepare(config)
    assert calls == [tmp_path / "new" / "table.yml"]
    assert prepared.target_ms == pytest.approx(
        sum(m[0] for m in (prepared.latency.minimum(), prepared.latency.maximum())) / 2
    )


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"space": "nowhere"}, SpaceError, "unknown search space 'nowhere'"),
        ({"hardware": {"backend": "abacus"}}, BackendError, "abacus"),
        ({"hardware": {"device": "othr"}}, BackendError, "no device 'othr' here; it has cpu"),
        ({"data": "imagenet22k"}, DataError, "imagenet22k"),
        ({"data": {"name": "imagefolder", "root": "/no/such/place"}}, DataError, "/no/such/place"),
        ({"objective": "paper"}, ConfigError, "gradient rule"),
        (
            {"target": None, "target_ms": 1e-6},
            TargetError,
            r"target_ms = 1e-06 is below the fastest subnet of small_mbconv, 0\.\d+ ms \(\w+ \w+ \w+\)",
        ),
        ({"input_size": 32}, TableError, "input size"),
        ({"space": "small_mbconv"}, TableError, "operator"),
        ({"out": "/dev/null/run"}, ConfigError, "/dev/null"),
    ],
)
def test_what_cannot_work_is_refused_before_training(changes, error, words, table, tmp_path):
    if "hardware" in changes:
        changes = {"hardware": {**changes["hardware"], "table": str(table)}}
    with pytest.raises(error, match=words) as caught:
        prepare(settings(table, changes.pop("out", tmp_path / "run"), **changes), quiet=True)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_table_of_another_backend_is_refused(table, tmp_path):
    config = settings(table, tmp_path, hardware={"table": str(table), "threads": 2})
    with pytest.raises(TableError, match=r"threads 1.*says 2"):
        prepare(config, quiet=True)


def test_a_table_of_another_device_of_the_backend_is_refused(table, tmp_path):
    whole = LatencyTable.load(table)
    assert whole.header.place == "cpu"
    prepare(settings(table, tmp_path / "run", hardware={"table": str(table), "device": "cpu"}), quiet=True)
    dataclasses.replace(whole, header=dataclasses.replace(whole.header, place="cuda:0")).save(tmp_path / "gpu.yml")
    config = settings(table, tmp_path / "run", hardware={"table": str(tmp_path / "gpu.yml"), "device": "cpu"})
    with pytest.raises(TableError, match=r"measured with device cuda:0.*says cpu"):
        prepare(config, quiet=True)


def test_the_default_table_of_a_device_has_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = [
        default_table_path(parse_config({"hardware": {"backend": "cuda", "device": device}})).name
        for device in ("this", "cuda:1")
    ]
    assert names == ["small_mbconv-32px-cuda-1threads-batch1.yml", "small_mbconv-32px-cuda-cuda1-1threads-batch1.yml"]


def test_a_table_that_lacks_an_operator_is_refused(table, tmp_path):
    whole = LatencyTable.load(table)
    key = next(iter(whole.entries))
    less = dataclasses.replace(whole, entries={k: v for k, v in whole.entries.items() if k != key})
    less.save(tmp_path / "less.yml")
    with pytest.raises((TableError, MissingOperatorError), match=key.split("-")[0]):
        prepare(settings(tmp_path / "less.yml", tmp_path / "run"), quiet=True)


def test_a_target_above_the_slowest_subnet_says_that_it_is_idle(table, tmp_path, capsys):
    prepare(settings(table, tmp_path / "run", target=None, target_ms=1e6), quiet=True)
    assert "target_ms = 1e+06 is above the slowest subnet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("serach: {}", "unknown key 'serach'; did you mean search .*known keys: .*search"),
        ("search: {epoch: 1}", "unknown key 'search.epoch'"),
        ("rule: darts", "rule = 'darts'"),
        ("target: 0.3\ntarget_ms: 4", "both given"),
        ("target: 3", "target = 3"),
        ("- 1", "must hold a mapping"),
        ("a: [", "no valid YAML"),
    ],
)
def test_wrong_configs_are_refused_in_one_sentence(text, words, tmp_path):
    path = tmp_path / "search.yml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


def test_a_missing_config_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yml"):
        load_config(tmp_path / "none.yml")


def test_overrides_replace_nested_values_and_the_other_kind_of_target(tmp_path):
    path = tmp_path / "search.yml"
    path.write_text("target: 0.3\nspace: small_mbconv")
    config = load_config(path, {"target_ms": 4.0, "search.epochs": 3, "space.options": {"stem_stride": 1}})
    assert (config.target, config.target_ms, config.search.epochs) == (None, 4.0, 3)
    assert config.space.name == "small_mbconv"
