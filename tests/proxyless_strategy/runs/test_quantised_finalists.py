"""Finalists compared in int8: by the files that would be deployed, and refused where there are none."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch.nn import functional

from hardware.errors import BackendError, ConfigError
from hardware.tables.shipped import open_table
from proxyless_strategy.cli import main as cli
from proxyless_strategy.config import parse_config
from proxyless_strategy.runs import quantised_finalists as finalists_module
from proxyless_strategy.runs.finished import read_run
from proxyless_strategy.runs.prepare import prepare
from proxyless_strategy.runs.quantised import images_of, onnx_accuracy
from proxyless_strategy.runs.quantised_finalists import STREAM, check_finalists, onnx_loss, quantised_judge
from proxyless_strategy.runs.search import run_search
from proxyless_strategy.seeds import mix_seed

RUN = Path(__file__).parents[2] / "data" / "run_bc6f2f8" / "gradient"
EXACT = RUN / "model.onnx"


def settings(out: object = "runs/x", **values):
    space = {"name": "small_mbconv", "options": {"stem_stride": 1}}
    hardware = {"cost": "macs", "dtype": "int8", **values.pop("hardware", {})}
    search = {"finalists_dtype": "int8", **values.pop("search", {})}
    values = {"input_size": 16, "space": space, "target": 0.5, "out": str(out), **values}
    return parse_config({"hardware": hardware, "search": search, **values})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"hardware": {"dtype": "float32"}},
            "the search is for onnxruntime in float32, for which no quantised networks",
        ),
        ({"hardware": {"dtype": None}}, "the search is for onnxruntime in float32"),
        ({"hardware": {"backend": "litert"}}, "the search is for litert in int8, for which no quantised networks"),
        ({"deploy_input_size": 32}, "deploy_input_size = 32 is not input_size = 16"),
        ({"search": {"devices": 2}}, "works in one process; set search.devices and search.nodes to 1"),
        ({"search": {"finalists": 1}}, "there are no finalists to compare, as search.finalists is 1"),
        ({"rule": "sensitivity"}, "there are no finalists to compare, as rule sensitivity has none"),
    ],
)
def test_a_comparison_in_int8_that_cannot_be_is_refused(changes, words):
    with pytest.raises(ConfigError, match=f"^search.finalists_dtype = int8,? .*{words}") as refused:
        check_finalists(settings(**changes), None)
    assert "\n" not in str(refused.value)
    check_finalists(settings(search={"finalists_dtype": "float32"}, **{"hardware": {"dtype": "float32"}}), None)


def test_it_is_refused_before_images_are_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("proxyless_strategy.runs.prepare.load_data", lambda *_, **__: pytest.fail("it loads images"))
    with pytest.raises(ConfigError, match="the search is for onnxruntime in float32"):
        prepare(settings(tmp_path / "run", hardware={"dtype": "float32"}), quiet=True)


def test_the_table_says_what_is_deployed():
    table = open_table("pixel1")
    int8 = dataclasses.replace(table, header=dataclasses.replace(table.header, backend="onnxruntime", dtype="int8"))
    check_finalists(settings(hardware={"dtype": None}), int8)
    with pytest.raises(ConfigError, match=r"the search is for .* in float32, for which no quantised networks are made"):
        check_finalists(settings(), table)


@pytest.fixture(scope="module")
def data():
    return images_of(read_run(RUN))


@pytest.fixture
def read(data, monkeypatch):
    """The parts that images are drawn from."""
    found: list[str] = []
    loader = type(data).loader
    monkeypatch.setattr(type(data), "loader", lambda self, part, **k: found.append(part) or loader(self, part, **k))
    return found


def test_the_loss_is_the_cross_entropy_of_the_file_on_the_architecture_part(data, monkeypatch):
    """Of as many images as the part has, so that the order does not count."""
    monkeypatch.setattr(finalists_module, "BATCHES", 10**6)
    session = onnxruntime.InferenceSession(str(EXACT), providers=["CPUExecutionProvider"])
    losses = []
    for images, labels in data.loader("architecture", batch_size=1):
        (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        losses.append(functional.cross_entropy(torch.from_numpy(logits), labels).item())
    assert onnx_loss(EXACT, data, batch=1, seed=3) == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_finalist_is_judged_by_its_quantised_file_on_architecture_images_alone(data, read, tmp_path, monkeypatch):
    """Of a trained network: near its loss in float32 on the same images, and not the same."""
    found, made = read_run(RUN), []
    config, space = settings(search={"batch_size": 32}), found.space
    quantise = finalists_module.quantise_file
    monkeypatch.setattr(
        finalists_module,
        "quantise_file",
        lambda *a, **k: made.append((a[0].read_bytes(), quantise(*a, **k).read_bytes())) or a[1],
    )
    model = timm.create_model(f"local-dir:{RUN / 'model'}", pretrained=True)
    # of the supernet's network it would rename the weights
    monkeypatch.setattr(type(space), "timm_names", lambda self, state, choices: state)
    judge = quantised_judge(config, space, data)
    loss = judge(found.choices, model)
    assert judge(found.choices, model) == loss
    assert set(read) == {"architecture"}
    exact, quantised = made[0]
    assert b"QuantizeLinear" in quantised
    assert b"QuantizeLinear" not in exact
    (tmp_path / "exact.onnx").write_bytes(exact)
    in_float = onnx_loss(tmp_path / "exact.onnx", data, batch=32, seed=mix_seed(config.seed, STREAM))
    assert in_float != loss == pytest.approx(in_float, rel=0.05)
    with torch.no_grad():
        model.get_classifier().weight.mul_(-1)
    assert judge(found.choices, model) > loss + 0.5


def test_one_that_cannot_be_quantised_ranks_last_and_is_said(data, monkeypatch, capsys):
    def fails(*_, **__):
        raise BackendError("x.onnx cannot be quantised: no kernel; deploy it as float32")

    monkeypatch.setattr(finalists_module, "quantise_file", fails)
    found = read_run(RUN)
    model = timm.create_model(f"local-dir:{RUN / 'model'}", pretrained=True)
    monkeypatch.setattr(type(found.space), "timm_names", lambda self, state, choices: state)
    assert math.isnan(quantised_judge(settings(), found.space, data)(found.choices, model))
    assert "a finalist ranks last: x.onnx cannot be quantised: no kernel" in capsys.readouterr().err


@pytest.mark.slow
def test_a_search_exports_the_finalist_whose_int8_file_has_the_least_loss(tmp_path, monkeypatch):
    judged = []

    def judges(*given):
        judge = quantised_judge(*given)

        def noted(sample, network):
            assert not network.training
            loss = judge(sample, network)
            judged.append((dict(sample), loss))
            return loss

        return noted

    monkeypatch.setattr("proxyless_strategy.runs.search.quantised_judge", judges)
    config = settings(
        tmp_path / "run",
        search={"epochs": 2, "warmup_epochs": 1, "finalists": 3, "threads": 1},
        retrain={"epochs": 1, "threads": 1},
    )
    result = run_search(config)
    assert len(judged) == 3
    assert result.subnet.choices == min(judged, key=lambda one: one[1])[0]
    record = json.loads((config.out / "search.json").read_text())
    assert record["finalists_dtype"] == "int8"
    assert [f["loss"] for f in record["finalists"]] == sorted(loss for _, loss in judged)
    assert read_run(config.out).finalists_dtype == "int8"
    assert onnx_accuracy(result.int8_onnx, images_of(read_run(config.out)), batch=1)[0] == result.int8_accuracy
    with pytest.raises(SystemExit):
        cli.main(["report", str(config.out)])
    assert "with the supernet's weights, quantised to int8: loss" in (config.out / "report.html").read_text().replace(
        "&#x27;", "'"
    ).replace("&#39;", "'")
