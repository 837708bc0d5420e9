"""`--json`: one object on standard output, whatever a command, its libraries and its children print."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import typer

from hardware.errors import DataError
from proxyless_strategy.cli.answers import Answer, answers, plain
from proxyless_strategy.cli.main import app

from .test_main import status_of

SILENT = {"report", "import-released", "latency"}
"""Commands that print no figures of their own; `report` and `import-released` write files."""


def test_every_command_with_figures_has_the_option(capsys: pytest.CaptureFixture[str]) -> None:
    def paths(command: Any, *path: str) -> Any:
        children = getattr(command, "commands", {})
        if not children:
            yield path
        for name, child in children.items():
            yield from paths(child, *path, name)

    without = set()
    for path in paths(typer.main.get_command(app)):
        assert status_of(*path, "--help") == 0
        if not re.search(r"--json\b", capsys.readouterr().out):
            without.add(path[0])
    assert without <= SILENT


PROGRAM = """
import os, subprocess, sys
import typer
from proxyless_strategy.cli.answers import answers
app = typer.Typer()

@app.command()
@answers
def command(number: int = 3) -> dict:
    \"\"\"Say it.\"\"\"
    print("printed")
    typer.echo("echoed")
    os.write(1, b"by a library\\n")
    subprocess.run([sys.executable, "-c", "print('by a child')"], check=True)
    return {"number": number}

app()
"""


def test_nothing_but_the_object_is_on_standard_output() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run([*command, "--number", "4", "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"number": 4}
    for words in ("printed", "echoed", "by a library", "by a child"):
        assert words in done.stderr
    people = subprocess.run(command, capture_output=True, text=True, check=True)
    assert sorted(people.stdout.splitlines()) == ["by a child", "by a library", "echoed", "printed"]
    assert people.stderr == ""


def test_an_error_leaves_standard_output_empty(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert status_of("search", str(tmp_path / "none.yml"), "--json") == 2
    output, error = capsys.readouterr()
    assert output == ""
    assert "none.yml" in error


def test_what_was_found_is_printed_before_the_error_about_it(capsys: pytest.CaptureFixture[str]) -> None:
    command = answers(lambda: Answer({"problems": 2}, DataError("two problems")))
    with pytest.raises(DataError, match="two problems"):
        command(as_json=True)
    assert json.loads(capsys.readouterr().out) == {"problems": 2}
    with pytest.raises(typer.Exit) as ended:
        answers(lambda: Answer(status=1))(as_json=False)
    assert ended.value.exit_code == 1


def test_values_become_those_of_json() -> None:
    found = {"a": np.float64("inf"), "b": np.int64(3), Path("c"): [Path("d"), (True, None)], "e": {2: np.bool_(True)}}
    assert plain(found) == {"a": None, "b": 3, "c": ["d", [True, None]], "e": {"2": True}}
    json.dumps(plain(found), allow_nan=False)


def test_the_option_adds_to_a_commands_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    written = SimpleNamespace(path=Path("a.onnx"), max_abs_difference=1e-5)
    monkeypatch.setattr("proxyless_strategy.export.onnx.export_onnx", lambda *_, **__: written)
    assert status_of("export", "model", "--onnx", "a.onnx", "--json") == 0
    output, error = capsys.readouterr()
    assert json.loads(output) == {"onnx": "a.onnx", "max_abs_difference": 1e-5}
    assert error == "a.onnx: outputs differ from PyTorch's by 1.0e-05 at most\n"
    assert os.fstat(1)  # standard output is open again
