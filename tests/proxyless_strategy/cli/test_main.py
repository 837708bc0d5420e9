"""The `proxyless` command: what it accepts, what it says, and its exit statuses."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hardware.errors import ConfigError
from proxyless_strategy.cli import main as cli
from proxyless_strategy.config import key_values


def status_of(*arguments: str) -> Any:
    with pytest.raises(SystemExit) as exit_:
        cli.main(arguments)
    return exit_.value.code or 0


@pytest.mark.parametrize("command", ["search", "latency", "experiment", "export"])
def test_help_names_every_command(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert status_of("--help") == 0
    assert command in capsys.readouterr().out
    assert status_of(command, "--help") == 0
    assert command in capsys.readouterr().out


def test_every_help_is_shown_without_a_slow_import() -> None:
    program = """
import sys
import typer
from proxyless_strategy.cli.main import app, main

def paths(command, *path):
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from paths(child, *path, name)

for path in paths(typer.main.get_command(app)):
    try:
        main([*path, "--help"])
    except SystemExit as exit_:
        assert not exit_.code, path
    print("help of", *path)
slow = {"torch", "timm", "nni", "pytorch_lightning", "matplotlib", "scipy", "sklearn", "onnxruntime", "pandas"}
print("imported:", *sorted(slow & set(sys.modules)))
"""
    *lines, imported = subprocess.check_output([sys.executable, "-c", program], text=True).splitlines()
    shown = {line.removeprefix("help of").strip() for line in lines if line.startswith("help of")}
    assert {"", "search", "experiment", "benchmark", "latency", "latency build", "latency convert"} <= shown
    assert imported == "imported:"


@pytest.mark.parametrize(
    "arguments",
    [["serach"], ["search"], ["experiment"], ["experiment", "a.yml", "--port", "70000"], ["search", "a", "--no"]],
)
def test_a_wrong_command_line_is_status_2(arguments: list[str]) -> None:
    assert status_of(*arguments) == 2


@pytest.mark.parametrize("command", ["search", "latency prepare", "experiment"])
def test_a_missing_config_is_one_sentence_and_status_2(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    assert status_of(*command.split(), str(tmp_path / "none.yml")) == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert len(error.splitlines()) == 1
    assert "none.yml" in error


def test_settings_are_read_as_yaml() -> None:
    settings = ["search.epochs=3", "target=0.5", "rule=reinforce", "retrain=null", "data.options={a: 1}"]
    assert key_values(settings) == {
        "search.epochs": 3,
        "target": 0.5,
        "rule": "reinforce",
        "retrain": None,
        "data.options": {"a": 1},
    }


@pytest.mark.parametrize("setting", ["epochs", "=3", "a={"])
def test_a_setting_without_a_value_is_refused(setting: str) -> None:
    with pytest.raises(ConfigError, match=f"--set {setting}"):
        key_values([setting])


@pytest.fixture
def of_a_terminal() -> Iterator[None]:
    """Have this process hear Ctrl-C, also where a background job runs the suite."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("of_a_terminal")
def test_ctrl_c_is_status_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("proxyless_strategy.runs.experiment.run_experiment", interrupted)
    assert status_of("experiment", "a.yml") == 130


def test_an_error_of_ours_is_its_message_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise ConfigError("port 80 is in use; free it")

    monkeypatch.setattr("proxyless_strategy.runs.experiment.run_experiment", refused)
    assert status_of("experiment", "a.yml", "--port", "80") == 2
    assert capsys.readouterr().err == "port 80 is in use; free it\n"


@pytest.mark.parametrize(
    ("command", "expected"),
    [("search", "rule: reinforce\nseed: 3\n"), ("latency prepare", "table: tables/reinforce-3.yml\n")],
)
def test_settings_reach_the_search(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: str,
    expected: str,
) -> None:
    for name, function in {
        "search.run_search": lambda config: SimpleNamespace(row=lambda: {"rule": config.rule, "seed": config.seed}),
        "prepare.prepare": lambda config, *, trains: SimpleNamespace(
            table=Path(f"{'trainer' if trains else 'tables'}/{config.rule}-{config.seed}.yml")
        ),
    }.items():
        monkeypatch.setattr(f"proxyless_strategy.runs.{name}", function)
    (tmp_path / "a.yml").write_text("{rule: gradient}")
    assert status_of(*command.split(), str(tmp_path / "a.yml"), "--set", "rule=reinforce", "--set", "seed=3") == 0
    assert capsys.readouterr().out == expected


def test_export_names_the_file_and_its_difference(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []

    def written(folder: Path, out: Path, *, batch: int) -> Any:
        asked.append((folder, out, batch))
        return SimpleNamespace(path=out, max_abs_difference=1.2e-5)

    monkeypatch.setattr("proxyless_strategy.export.onnx.export_onnx", written)
    assert status_of("export", "model", "--onnx", "a.onnx", "--batch", "2") == 0
    assert asked == [(Path("model"), Path("a.onnx"), 2)]
    assert capsys.readouterr().out == "a.onnx: outputs differ from PyTorch's by 1.2e-05 at most\n"


def test_export_of_a_folder_without_a_model_is_one_sentence(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert status_of("export", str(tmp_path / "none"), "--onnx", str(tmp_path / "a.onnx")) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
