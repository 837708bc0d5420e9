"""The `proxyless` command: what it accepts, what it says, and its exit statuses."""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.core import TyperCommand

from hardware.errors import ConfigError
from proxyless_strategy.cli import main as cli
from proxyless_strategy.cli.next_steps import echo_result
from proxyless_strategy.config import key_values
from tests.proxyless_strategy.environments import KUBEFLOW, without

ROW = {
    "hardware": None,
    "rule": "gradient",
    "cost": "latency",
    "unit": "ms",
    "target_cost": 3.0,
    "subnet_cost": 2.9,
    "target_ms": 3.0,
    "table_ms": 2.9,
    "latency_ms": 2.95,
    "accuracy": 0.985,
    "params": 1000,
    "macs": 2000,
    "folder": "model",
    "onnx": "model.onnx",
    "warnings": [],
}


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
    [("search", '"seed": 3,'), ("latency prepare", '"table": "tables/reinforce-3.yml",')],
)
def test_settings_reach_the_search(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: str,
    expected: str,
) -> None:
    def searched(config: Any) -> Any:
        return SimpleNamespace(row=lambda: {**ROW, "rule": config.rule, "seed": config.seed})

    def prepared(config: Any, *, trains: bool) -> Any:
        table = Path(f"{'trainer' if trains else 'tables'}/{config.rule}-{config.seed}.yml")
        cost = SimpleNamespace(unit="ms", minimum=lambda: (1.0, {}), maximum=lambda: (3.0, {}))
        return SimpleNamespace(table=table, cost=cost, target=2.0)

    monkeypatch.setattr("proxyless_strategy.runs.search.run_search", searched)
    monkeypatch.setattr("proxyless_strategy.runs.prepare.prepare", prepared)
    (tmp_path / "a.yml").write_text("{rule: gradient}")
    settings = ("--set", "rule=reinforce", "--set", "seed=3", "--json")
    assert status_of(*command.split(), str(tmp_path / "a.yml"), *settings) == 0
    assert expected in capsys.readouterr().out


def test_a_search_ends_in_a_table_and_in_what_to_type_next(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "proxyless_strategy.runs.search.run_search",
        lambda config: SimpleNamespace(row=lambda: {**ROW, "warnings": ["few steps"]}),
    )
    (tmp_path / "a.yml").write_text("{space: 'mine:space', data: {name: imagefolder, root: /data/a b}, out: runs/a}")
    monkeypatch.chdir(tmp_path)
    assert status_of("search", "a.yml") == 0
    shown = capsys.readouterr().out
    assert "98.50%" in shown
    assert "2.9" in shown
    assert "warning: few steps\n" in shown
    commands = [line.strip() for line in shown.partition("next:\n")[2].splitlines()]
    assert commands[0] == "proxyless report runs/a"
    assert commands[1] == "proxyless derive runs/a --curve --out runs/a-curve --space mine:space"
    assert commands[2] == "proxyless retrain runs/a/model --data '/data/a b' --recipe cifar --out runs/a-retrained"
    assert len(commands) == 4
    base = next(kind for kind in TyperCommand.__mro__ if "invoke" in vars(kind))
    for command in commands:
        reached: list[str] = []
        with monkeypatch.context() as patch:
            patch.setattr(base, "invoke", lambda command, ctx, reached=reached: reached.append(command.name))
            assert status_of(*shlex.split(command)[1:]) == 0
        assert reached[-1] == command.split()[1]


def test_of_several_processes_only_the_first_one_speaks_of_a_finished_search(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(
        "proxyless_strategy.runs.search.run_search", lambda config: SimpleNamespace(row=lambda: {**ROW, "warnings": []})
    )
    (tmp_path / "a.yml").write_text("{out: runs/a, search: {nodes: 2}}")
    monkeypatch.chdir(tmp_path)
    for rank in range(2):
        for name in os.environ.keys() - without(os.environ).keys():
            monkeypatch.delenv(name)
        for name, value in {**KUBEFLOW, "RANK": str(rank)}.items():
            monkeypatch.setenv(name, value)
        for options in ([], ["--json"]):
            assert status_of("search", "a.yml", *options) == 0
            assert bool(capsys.readouterr().out) == (rank == 0)


@pytest.mark.parametrize("width", [60, 200])
def test_the_table_is_never_cut(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    echo_result({**ROW, "macs": 123_456_789}, [])
    for words in ("gradient", "98.50%", "123,456,789", "measured ms", "2.95", "accuracy"):
        assert words in screen.getvalue()
    assert "…" not in screen.getvalue()


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--version") == 0
    assert capsys.readouterr().out == f"proxyless {metadata.version('proxyless-strategy')}\n"


def test_a_shell_can_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert status_of("--help") == 0
    assert "--install-completion" in capsys.readouterr().out


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
