"""Loggers: they get each epoch's figures, and a search with them is the same as without."""

from __future__ import annotations

import csv
import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hardware.errors import ConfigError
from proxyless_strategy.config import SearchConfig, parse_config
from proxyless_strategy.runs import logs, search
from proxyless_strategy.runs.logs import Logs, architecture_picture, check_loggers

SPACE = {
    "name": "small_mbconv",
    "options": {"stages": [{"width": 16, "depth": 2, "stride": 2}], "head_width": 32, "kernels": [3, 5]},
}
QUICK = {"warmup_epochs": 1, "epochs": 2, "steps_per_update": 2, "batch_size": 256}


def settings(out: Path, **changes: Any) -> SearchConfig:
    values: dict[str, Any] = {
        "space": SPACE,
        "data": "digits",
        "input_size": 16,
        "hardware": {"cost": "macs", "device": "other"},
        "target": 0.5,
        "search": QUICK,
        "retrain": {"epochs": 1, "batch_size": 256},
        "out": str(out),
    }
    return parse_config({**values, **changes})


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_search_with_loggers_is_the_same_and_its_figures_are_the_historys(tmp_path: Path) -> None:
    plain = search.run_search(settings(tmp_path / "plain"))
    logged = search.run_search(settings(tmp_path / "logged", loggers=["csv", "csv"]))
    assert logged.subnet == plain.subnet
    assert logged.accuracy == plain.accuracy
    both = [json.loads((tmp_path / name / "search.json").read_text()) for name in ("plain", "logged")]
    assert both[0] == both[1]
    rows = rows_of(tmp_path / "logged" / "csv" / "version_0")
    epochs = [row for row in rows if row.get("val_accuracy")]
    assert [float(row["val_accuracy"]) for row in epochs] == pytest.approx(
        [row["default"] for row in both[0]["history"]]
    )
    last = epochs[-1]
    for label, odds in both[0]["probabilities"].items():
        for name, p in odds.items():
            assert float(last[f"probability/{label}/{name}"]) == pytest.approx(p)
    (retrained,) = [row for row in rows if row.get("retrain/accuracy")]
    assert retrained["step"] == "1"
    (result,) = [row for row in rows if row.get("result/accuracy")]
    assert float(result["result/accuracy"]) == pytest.approx(plain.accuracy)
    assert not (tmp_path / "logged" / "csv" / "version_1").exists()
    # Started again with other loggers it is the same search, which has ended.
    again = search.run_search(settings(tmp_path / "logged", loggers=["csv"]))
    assert again.accuracy == plain.accuracy
    assert not (tmp_path / "logged" / "csv" / "version_1").exists()


def module(epoch: int) -> tuple[Any, Any]:
    trainer = SimpleNamespace(current_epoch=epoch, callback_metrics={"val_accuracy": 0.25 + epoch})
    odds = {"edge0": {"3x3_e3": 0.9, "skip": 0.1}, "edge1": {"5x5_e6": 0.4, "7x7_e3": 0.6}}
    return trainer, SimpleNamespace(export_probs=lambda: odds)


def test_tensorboard_gets_scalars_pictures_and_settings(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    kept = Logs(settings(tmp_path, loggers=["tensorboard"]))
    kept.on_train_start(*module(0))
    for epoch in range(2):
        kept.on_train_epoch_end(*module(epoch))
    kept.epoch({"phase": "retrain", "epoch": 1, "loss": 0.5, "accuracy": 0.75})
    kept.result({"accuracy": 0.5, "folder": "x", "params": 3, "latency_ms": None})
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("val_accuracy")] == [(1, 0.25), (2, 1.25)]
    assert found.Scalars("probability/edge1/7x7_e3")[0].value == pytest.approx(0.6)
    assert found.Scalars("retrain/accuracy")[0].value == 0.75
    assert found.Scalars("result/params")[0].value == 3
    assert [event.step for event in found.Images("architecture")] == [1, 2]
    assert "rule: gradient" in (tmp_path / "tensorboard" / "hparams.yaml").read_text()


def test_within_nni_tensorboards_folder_is_the_one_that_its_page_opens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("NNI_OUTPUT_DIR", str(tmp_path / "trial"))
    kept = Logs(settings(tmp_path / "out", loggers=["tensorboard"]))
    kept.on_train_epoch_end(*module(0))
    assert list((tmp_path / "trial" / "tensorboard").glob("events.*"))
    assert not (tmp_path / "out").exists()


def test_a_search_that_continues_keeps_what_was_logged_before(tmp_path: Path) -> None:
    for epoch in range(2):
        kept = Logs(settings(tmp_path, loggers=["csv"]))
        kept.on_train_epoch_end(*module(epoch))
    assert [rows_of(tmp_path / "csv" / f"version_{start}")[0]["step"] for start in range(2)] == ["1", "2"]


def test_other_processes_and_searches_without_loggers_write_nothing(tmp_path: Path) -> None:
    for kept in (Logs(settings(tmp_path)), Logs(settings(tmp_path, loggers=["csv"]), shown=False)):
        kept.on_train_start(*module(0))
        kept.on_train_epoch_end(*module(0))
        kept.epoch({"phase": "retrain", "epoch": 1, "loss": 0.5})
        kept.result({"accuracy": 1.0})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named_with_its_extra_before_anything_starts(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None if module == name else found(module))
    with pytest.raises(ConfigError, match=rf"loggers: {name} needs .*proxyless-strategy\[{name}\]"):
        search.run_search(settings(tmp_path / "run", loggers=["csv", name]))
    assert not (tmp_path / "run").exists()
    check_loggers(["csv"])


@pytest.mark.parametrize(("mode", "offline"), [(None, True), ("offline", True), ("disabled", True), ("online", False)])
def test_wandb_connects_only_where_it_is_asked_to(
    mode: str | None, offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    monkeypatch.setattr(logs, "WandbLogger", lambda **options: made.append(options))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    if mode is not None:
        monkeypatch.setenv("WANDB_MODE", mode)
    Logs(settings(tmp_path / "run", loggers=["wandb"]))
    assert made[0]["offline"] is offline
    assert made[0]["save_dir"] == tmp_path / "run"


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Logs(settings(tmp_path, loggers=["csv"]))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kept.loggers[0], "save", full)
    with pytest.raises(ConfigError, match=r"cannot write the logs of .*No space left on device; make room"):
        kept.on_train_epoch_end(*module(0))


def test_the_picture_shows_the_likeliest_candidate_and_how_likely_all_are() -> None:
    picture = architecture_picture({"a": {"3x3_e3": 1.0, "skip": 0.0}, "b": {"3x3_e3": 0.0, "skip": 1.0}})
    height, width, _ = picture.shape
    assert height > 64
    half = width // 2
    coloured = [(part[:64] != 255).any(axis=-1).sum(axis=0).max() for part in (picture[:, :half], picture[:, half:])]
    assert coloured[0] == 24  # a kernel of 3
    assert coloured[1] == 2  # skip
    rows = picture[70:, ::half].mean(axis=-1)
    assert np.all(rows[0] == rows[10][::-1])
    assert rows[0, 0] < rows[0, 1]
