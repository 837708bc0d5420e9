"""A search that has ended and is asked for again."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from proxyless_strategy.config import SearchConfig, parse_config
from proxyless_strategy.export.onnx import export_onnx
from proxyless_strategy.layout import (
    CONFIG_FILE,
    INT8_FILE,
    MODEL,
    ONNX_FILE,
    ROW_FILE,
    SEARCH_FILE,
    SUPERNET_FILE,
)
from proxyless_strategy.runs.ended import finished_result
from proxyless_strategy.runs.result import SearchResult, claim_out
from tests.proxyless_strategy.export.samples import a_subnet, export


def settings(out: Path, **hardware: str) -> SearchConfig:
    space = {"name": "small_mbconv", "options": {"stem_stride": 1}}
    return parse_config({"space": space, "hardware": {"cost": "macs", **hardware}, "target": 0.5, "out": str(out)})


def result_in(out: Path) -> SearchResult:
    numbers = {f.name: 1.5 + i for i, f in enumerate(fields(SearchResult)) if f.type in ("float", "float | None")}
    return SearchResult(
        config=settings(out),
        subnet=a_subnet(stem_stride=1),
        folder=out / MODEL,
        onnx=out / ONNX_FILE,
        unit="M MACs",
        params=3,
        macs=4,
        warnings=("one",),
        **numbers,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that kept the weights of its subnet."""
    out = tmp_path_factory.mktemp("ended") / "run"
    out.mkdir()
    result = result_in(out)
    network, _ = export(out / MODEL, result.subnet)
    export_onnx(out / MODEL, out / ONNX_FILE)
    torch.save(network.state_dict(), out / SUPERNET_FILE)
    (out / CONFIG_FILE).write_text(json.dumps(result.config.identity()))
    (out / ROW_FILE).write_text(json.dumps(result.row()))
    record = {"subnet": result.subnet.to_dict(), "warnings": ["one"], "keeps_weights": True}
    (out / SEARCH_FILE).write_text(json.dumps(record))
    return out


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_finished_search_is_read_back_with_every_field(out: Path) -> None:
    """A field that is left out would come back as its default, as if nothing had been found."""
    again = finished_result(settings(out))
    assert again is not None
    assert again.row() == result_in(out).row()


@pytest.fixture
def in_int8(out: Path) -> Path:
    """The folder of a search for int8; what is in the file is not asked."""
    shutil.copy(out / ONNX_FILE, out / INT8_FILE)
    result = replace(result_in(out), int8_onnx=out / INT8_FILE)
    (out / ROW_FILE).write_text(json.dumps(result.row()))
    return out


def test_an_int8_file_is_read_back(in_int8: Path) -> None:
    again = finished_result(settings(in_int8))
    assert again is not None
    assert again.int8_onnx == in_int8 / INT8_FILE
    assert again.int8_accuracy == result_in(in_int8).int8_accuracy


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(random.Random(path.name).randbytes(path.stat().st_size))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def gone(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize("damage", [truncated, empty, garbage, a_folder, gone])
@pytest.mark.parametrize(
    "name",
    [
        CONFIG_FILE,
        ROW_FILE,
        SEARCH_FILE,
        SUPERNET_FILE,
        ONNX_FILE,
        *(f"{MODEL}/{name}" for name in ("config.json", "model.safetensors", "subnet.json")),
    ],
)
def test_a_damaged_file_is_not_called_finished(out: Path, name: str, damage: Callable[[Path], None]) -> None:
    damage(out / name)
    assert finished_result(settings(out)) is None


@pytest.mark.parametrize("damage", [truncated, empty, garbage, a_folder, gone])
def test_a_damaged_int8_file_is_not_called_finished(in_int8: Path, damage: Callable[[Path], None]) -> None:
    damage(in_int8 / INT8_FILE)
    assert finished_result(settings(in_int8)) is None


def test_another_subnet_than_the_exported_one_is_not_called_finished(out: Path) -> None:
    record = json.loads((out / SEARCH_FILE).read_text())
    record["subnet"] = a_subnet(stem_stride=1, last=True).to_dict()
    (out / SEARCH_FILE).write_text(json.dumps(record))
    assert finished_result(settings(out)) is None


def test_a_result_of_other_settings_does_not_pass_for_a_start_that_was_killed(out: Path) -> None:
    def killed(config: SearchConfig) -> None:
        prepared: Any = SimpleNamespace(config=config)
        with pytest.raises(KeyboardInterrupt), claim_out(prepared):
            raise KeyboardInterrupt

    killed(settings(out))
    assert finished_result(settings(out)) is not None
    other = settings(out, dtype="int8")
    assert finished_result(other) is None
    killed(other)
    assert finished_result(other) is None
