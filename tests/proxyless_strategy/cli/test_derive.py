"""`derive`, `benchmark` and `retrain`: nothing is replaced unasked, and figures say what they are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hardware.errors import ConfigError
from proxyless_strategy.benchmark import run as bench
from proxyless_strategy.cli.options import check_unused
from proxyless_strategy.runs import derive
from proxyless_strategy.runs.derive import DerivedFolder

from .test_main import status_of

ROWS = [{"cost": cost, "unit": "ms", "log_probability": -cost, "subnet": "3x3_e3 skip"} for cost in (1.0, 2.0)]


@pytest.fixture
def derived(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Stand for what derives; return what was asked of it."""
    asked: list[Any] = []

    def one(folder: Path, *, target: float, out: Path, space: str | None) -> DerivedFolder:
        asked.append(out)
        return DerivedFolder(out, {"a": "3x3_e3"}, 1.5, "ms")

    def several(folder: Path, *, out: Path, points: int, space: str | None) -> list[dict[str, Any]]:
        asked.append(out)
        return ROWS

    monkeypatch.setattr(derive, "derive", one)
    monkeypatch.setattr(derive, "save_curve", several)
    return asked


def test_a_derived_subnet_replaces_nothing_unasked(
    derived: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "smaller"
    command = ("derive", "run", "--target", "2", "--out", str(out))
    assert status_of(*command) == 0
    out.mkdir()
    assert status_of(*command) == 0  # an empty folder holds nothing to lose
    (out / "config.json").write_text("mine")
    capsys.readouterr()
    assert status_of(*command) == 2
    assert capsys.readouterr().err == f"{out} exists; give another --out, or --force to replace it\n"
    assert len(derived) == 2
    assert status_of(*command, "--force") == 0
    assert derived == [out] * 3


def test_a_curve_replaces_no_curve_unasked_and_counts_its_points(
    derived: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("derive", "run", "--curve", "--points", "9", "--out", str(tmp_path))
    (tmp_path / "notes.txt").write_text("beside a curve")
    assert status_of(*command) == 0
    assert "2 distinct subnets for 9 budgets" in capsys.readouterr().out
    (tmp_path / "curve.json").write_text("[]")
    assert status_of(*command) == 2
    assert "curve.json exists" in capsys.readouterr().err
    assert status_of(*command, "--force", "--json") == 0
    assert json.loads(capsys.readouterr().out)["rows"] == ROWS


def test_a_benchmark_replaces_no_figures_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def reached(*_: Any, **__: Any) -> None:
        raise ConfigError("measuring")

    monkeypatch.setattr(bench, "run_benchmark", reached)
    (tmp_path / "benchmark.csv").write_text("mine")
    assert status_of("benchmark", "--out", str(tmp_path)) == 2
    assert "benchmark.csv exists" in capsys.readouterr().err
    assert status_of("benchmark", "--out", str(tmp_path), "--force") == 2
    assert capsys.readouterr().err == "measuring\n"


@pytest.mark.parametrize("name", ["curve.csv", "curve.json", "curve.png"])
def test_every_file_of_a_curve_counts(name: str, tmp_path: Path) -> None:
    assert set(derive.CURVE_FILES) == {"curve.csv", "curve.json", "curve.png"}
    check_unused(tmp_path, derive.CURVE_FILES, force=False)
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match=name):
        check_unused(tmp_path, derive.CURVE_FILES, force=False)
    check_unused(tmp_path, derive.CURVE_FILES, force=True)


def test_a_file_where_a_folder_is_to_be_is_not_replaced_unasked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="exists"):
        check_unused(tmp_path / "file", force=False)


@pytest.mark.parametrize(
    ("source", "part"),
    [("imagefolder", "the test images in data/val"), ("torchvision:CIFAR10", "the test part of torchvision:CIFAR10")],
)
def test_a_retraining_says_which_images_its_accuracy_is_of(
    source: str, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.json").write_text('{"accuracy": 0.9, "top5": 1.0}')
    monkeypatch.setattr("proxyless_strategy.retraining.folder.retrain", lambda *_, **__: tmp_path)
    command = ("retrain", "model", "--data", "data", "--out", "out", "--recipe", "quick", "--source", source)
    assert status_of(*command) == 0
    assert capsys.readouterr().out.endswith(f"top-1 0.9000, top-5 1.0000 on {part}\n")
    assert status_of(*command, "--json") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["accuracy"] == 0.9
    assert values["part"] == part
