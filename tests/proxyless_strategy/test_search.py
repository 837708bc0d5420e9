"""One search from config to measured file, and what is refused before it starts."""

import dataclasses
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
from hardware.measure import Plan, build_table
from hardware.table import LatencyTable
from proxyless_strategy import search
from proxyless_strategy.config import load_config, parse_config
from proxyless_strategy.report.pictures import draw_searches
from proxyless_strategy.trial import read_config
from search_spaces import Subnet, get_space

SPACE = {
    "name": "small_mbconv",
    "options": {
        "stages": [{"width": 16, "depth": 2, "stride": 2}, {"width": 24, "depth": 1, "stride": 2}],
        "head_width": 64,
    },
}


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
        plan=Plan(rounds=5, minimum_rounds=5),
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


@pytest.mark.parametrize("rule", ["gradient", "reinforce"])
def test_a_search_ends_with_a_timm_model_within_the_target(rule, table, tmp_path):
    rows = []
    config = settings(table, tmp_path / "run", rule=rule)
    result = search.run_search(config, on_epoch=rows.append)
    assert result.table_ms <= result.target_ms
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
    picture = draw_searches(tmp_path, tmp_path / "report.png")
    assert picture.read_bytes().startswith(b"\x89PNG")

    again = search.run_search(config)
    assert again.subnet == result.subnet
    assert again.accuracy == result.accuracy


def test_a_search_that_stopped_anywhere_ends_as_if_it_had_not(table, tmp_path):
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
        resumed = search.run_search(settings(table, out), on_epoch=seen.append)
        assert len(seen) < 6
        assert resumed.subnet == whole.subnet
        assert resumed.accuracy == whole.accuracy
        history = [json.loads((place / "search.json").read_text()) for place in (out, tmp_path / "whole")]
        assert history[0] == history[1]


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
    monkeypatch.setattr(search, "measure_model_file", None)
    config = settings(table, tmp_path / "run", hardware={"table": str(tmp_path / "phone.yml"), "device": "other"})
    result = search.run_search(config)
    assert result.latency_ms is None
    assert result.table_ms <= result.target_ms
    missing = settings(table, tmp_path / "other", hardware={"table": str(tmp_path / "no.yml"), "device": "other"})
    with pytest.raises(TableError, match=r"no\.yml.*pixel1"):
        search.check(missing)


def test_a_shipped_table_is_found_by_its_name(tmp_path):
    path = tmp_path / "search.yml"
    path.write_text("hardware: {table: pixel1, device: other}")
    config = read_config(path)
    assert LatencyTable.load(search.table_path(config)).header.device.startswith("Google Pixel")


def test_without_retraining_the_supernets_weights_are_exported(table, tmp_path):
    result = search.run_search(settings(table, tmp_path, retrain=None))
    assert result.accuracy is None
    assert timm.create_model(f"local-dir:{result.folder}", pretrained=True)(torch.randn(1, 1, 16, 16)).isfinite().all()


def test_another_search_in_the_same_folder_is_refused(table, tmp_path):
    search.run_search(settings(table, tmp_path))
    with pytest.raises(ConfigError, match="other settings \\(seed\\)"):
        search.check(settings(table, tmp_path, seed=5))


def test_a_missing_table_is_built_and_kept(table, tmp_path, monkeypatch):
    calls = []

    def quick(*args, out, **kwargs):
        calls.append(out)
        LatencyTable.load(table).save(out)
        return LatencyTable.load(out)

    monkeypatch.setattr(search, "build_table", quick)
    config = settings(tmp_path / "new" / "table.yml", tmp_path / "run")
    for _ in range(2):
        prepared = search.prepare(config)
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
        ({"target": None, "target_ms": 1e-6}, TargetError, "below the fastest subnet.*3x3_e3"),
        ({"input_size": 32}, TableError, "input size"),
        ({"space": "small_mbconv"}, TableError, "operator"),
        ({"out": "/dev/null/run"}, ConfigError, "/dev/null"),
    ],
)
def test_what_cannot_work_is_refused_before_training(changes, error, words, table, tmp_path):
    if "hardware" in changes:
        changes = {"hardware": {**changes["hardware"], "table": str(table)}}
    with pytest.raises(error, match=words) as caught:
        search.check(settings(table, changes.pop("out", tmp_path / "run"), **changes))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_table_of_another_backend_is_refused(table, tmp_path):
    config = settings(table, tmp_path, hardware={"table": str(table), "threads": 2})
    with pytest.raises(TableError, match=r"threads 1.*says 2"):
        search.check(config)


def test_a_table_of_another_device_of_the_backend_is_refused(table, tmp_path):
    whole = LatencyTable.load(table)
    assert whole.header.place == "cpu"
    search.check(settings(table, tmp_path / "run", hardware={"table": str(table), "device": "cpu"}))
    dataclasses.replace(whole, header=dataclasses.replace(whole.header, place="cuda:0")).save(tmp_path / "gpu.yml")
    config = settings(table, tmp_path / "run", hardware={"table": str(tmp_path / "gpu.yml"), "device": "cpu"})
    with pytest.raises(TableError, match=r"measured with device cuda:0.*says cpu"):
        search.check(config)


def test_the_default_table_of_a_device_has_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = [
        search.default_table_path(parse_config({"hardware": {"backend": "cuda", "device": device}})).name
        for device in ("this", "cuda:1")
    ]
    assert names == ["small_mbconv-32px-cuda-1threads-batch1.yml", "small_mbconv-32px-cuda-cuda1-1threads-batch1.yml"]


def test_a_table_that_lacks_an_operator_is_refused(table, tmp_path):
    whole = LatencyTable.load(table)
    key = next(iter(whole.entries))
    less = dataclasses.replace(whole, entries={k: v for k, v in whole.entries.items() if k != key})
    less.save(tmp_path / "less.yml")
    with pytest.raises((TableError, MissingOperatorError), match=key.split("-")[0]):
        search.check(settings(tmp_path / "less.yml", tmp_path / "run"))


def test_a_target_above_the_slowest_subnet_warns_that_it_is_idle(table, tmp_path):
    with pytest.warns(UserWarning, match="idle"):
        search.check(settings(table, tmp_path / "run", target=None, target_ms=1e6))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("serach: {}", "unknown key 'serach' .*known keys: .*search"),
        ("search: {epoch: 1}", "unknown key 'search.epoch'"),
        ("rule: darts", "rule = 'darts'"),
        ("target: 0.3\ntarget_ms: 4", "both given"),
        ("target: 3", "target = 3"),
        ("- 1", "must hold a mapping"),
        ("a: [", "not valid YAML"),
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
