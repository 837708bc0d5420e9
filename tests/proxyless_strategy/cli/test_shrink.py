"""The command line of a shrinking: how a model and a target are written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hardware.errors import ConfigError
from proxyless_strategy.cli import shrink as cli
from proxyless_strategy.cli.main import main
from proxyless_strategy.config import SearchConfig


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[SearchConfig]:
    """The configs that the command would run."""
    found: list[SearchConfig] = []
    monkeypatch.setattr(cli, "run", found.append)
    return found


def status_of(*arguments: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(["shrink", *arguments])
    return ended.value.code or 0


def test_options_become_settings(given: list[SearchConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--data", "flowers", "--target", "0.60x", "--out", "runs/x", "--weights", "w.safetensors"]
    options += ["--input-size", "96", "--epochs", "12", "--backend", "torch", "--device", "cpu", "--threads", "2"]
    assert status_of("mobilenetv2_100", *options, "--set", "search.learning_rate=0.02", "--set", "seed=3") == 0
    (config,) = given
    assert config.space.name == "timm:mobilenetv2_100"
    assert config.space.options == {"weights": str(tmp_path / "w.safetensors")}
    assert (config.data.name, config.data.root) == ("imagefolder", tmp_path / "flowers")
    assert (config.target, config.input_size, config.out) == ("0.6x", 96, tmp_path / "runs" / "x")
    hardware = config.hardware
    assert (hardware.backend, hardware.device, hardware.threads) == ("torch", "cpu", 2)
    assert config.shrink is not None
    assert (config.shrink.epochs, config.search.learning_rate, config.seed) == (12, 0.02, 3)


def test_what_is_not_given_is_not_set(given: list[SearchConfig], tmp_path: Path) -> None:
    assert status_of("mobilenetv2_100", "--data", "x", "--target", "0.6x", "--out", str(tmp_path)) == 0
    (config,) = given
    assert "input_size" not in config.model_fields_set
    assert config.space.options == {}
    assert config.hardware.model_fields_set == set()
    assert config.shrink is not None
    assert config.shrink.epochs is None


def test_a_model_may_be_a_folder(given: list[SearchConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    for model in ("mine", "./mine", str(tmp_path / "mine"), "local-dir:mine", "timm:local-dir:mine"):
        assert status_of(model, "--data", "x", "--target", "0.6x", "--out", "y") == 0
    assert {config.space.name for config in given} == {f"timm:local-dir:{tmp_path / 'mine'}"}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("0.6x", {"target": "0.6x"}),
        ("1.2ms", {"target_ms": 1.2}),
        ("1.2 ms", {"target_ms": 1.2}),
        ("0.5", {"target": 0.5}),
    ],
)
def test_a_target_is_a_share_a_time_or_a_fraction(text: str, found: dict[str, Any]) -> None:
    assert cli.target_of(text) == found


@pytest.mark.parametrize("text", ["fast", "ms", "6 s"])
def test_another_target_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--target {text} is no target; write 0.6x, 1.2ms"):
        cli.target_of(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--target", "2x"], "target = '2x': a share of the original's cost"),
        (["--target", "fast"], "--target fast is no target"),
        (["--target", "0.6x", "--set", "target_ms=3"], "target = 0.6x and target_ms = 3 are given together"),
        (["--target", "0.6x", "--set", "sarch.epochs=3"], "unknown key 'sarch'"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str], words: str
) -> None:
    assert status_of("mobilenetv2_100", "--data", "x", "--out", str(tmp_path / "y"), *options) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "y").exists()
