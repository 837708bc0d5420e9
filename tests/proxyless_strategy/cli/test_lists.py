"""`proxyless list`: every name that it prints is one that a setting or an option takes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm

from hardware.backends import get_backend
from hardware.errors import SpaceError
from hardware.tables import shipped
from hardware.tables.shipped import open_table
from proxyless_strategy.retraining.recipe import load_recipe
from search_spaces import get_space, registry

from .test_main import status_of


def listed(what: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert status_of("list", what, "--json") == 0
    output, said = capsys.readouterr()
    (rows,) = json.loads(output).values()
    for row in rows:
        assert any(line.startswith(row["name"]) and row["about"] in line for line in said.splitlines())
    return rows


def test_spaces(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise SpaceError("it has no block")

    monkeypatch.setitem(registry._registered, "broken", broken)
    rows = {row["name"]: row for row in listed("spaces", capsys)}
    assert rows.pop("broken")["about"] == "cannot be made: it has no block"
    assert {"imagenet_mbconv", "small_mbconv", "cifar_mbconv", "cifar_tree"} <= set(rows)
    for row in rows.values():
        if row["about"].startswith("cannot be made"):  # what another test has registered
            continue
        candidates = get_space(row["name"]).candidates()
        assert row["edges"] == len(candidates)
        subnets = math.prod(len(options) for options in candidates.values())
        assert f"10^{math.log10(subnets):.0f} subnets" in row["about"]


def test_backends(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in listed("backends", capsys)}
    assert rows["onnxruntime"]["usable"]
    for row in rows.values():
        if row["usable"]:
            with get_backend(row["name"], row["place"]) as backend:
                assert backend.device() == row["device"]
                assert row["dtypes"] == list(backend.dtypes)
                assert all(text in row["about"] for text in (*backend.dtypes, *backend.known_options))
        else:
            assert "not here" in row["about"]


def test_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    for row in listed("recipes", capsys):
        assert load_recipe(row["name"]).epochs == row["epochs"]


def test_tables_of_this_user_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kept = tmp_path / "proxyless_strategy"
    kept.mkdir()
    shutil.copy(Path(shipped.__file__).with_name("pixel1.yml"), kept / "mine.yml")
    (kept / "broken.yml").write_text("[")
    rows = {row["name"]: row for row in listed("tables", capsys)}
    mine = {str(kept / "mine.yml"), str(kept / "broken.yml")}
    assert rows.keys() == {*shipped.shipped_names(), *mine}
    assert "NVIDIA H200 (cuda, 1 thread, batch 8, float32, graphs true)" in rows["h200_graphs"]["about"]
    assert "Google Pixel 1 (phone) (tflite, 1 thread, batch 1, float32)" in rows["pixel1"]["about"]
    assert not rows[str(kept / "broken.yml")]["usable"]
    assert rows[str(kept / "mine.yml")]["operators"] == len(open_table("pixel1").entries)


def test_models(capsys: pytest.CaptureFixture[str]) -> None:
    rows = listed("models", capsys)
    assert {"proxylessnas", "proxylessnas_mobile", "proxylessnas_cifar_tree"} <= {row["name"] for row in rows}
    assert all(timm.is_model(row["name"]) and row["about"] for row in rows)


def test_another_kind_is_refused() -> None:
    assert status_of("list", "dreams") == 2
