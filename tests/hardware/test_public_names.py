"""The names that `hardware` offers: to a person, to a type checker, and at what price."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hardware

ROOT = Path(hardware.__file__).parents[1]
NAMES = [
    "CostModel",
    "LatencyModel",
    "LatencyTable",
    "OpSpec",
    "build_table",
    "given_costs",
    "register_backend",
    "register_kind",
]


def test_the_names_are_listed():
    assert hardware.__all__ == NAMES
    assert set(NAMES) <= set(dir(hardware))


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_there(name):
    value = getattr(hardware, name)
    assert value.__name__ == name
    assert value.__doc__


def test_another_name_is_an_ordinary_error():
    with pytest.raises(AttributeError, match="'hardware' has no attribute 'CostMode'"):
        hardware.CostMode  # noqa: B018


def test_importing_hardware_imports_nothing_heavy():
    code = "import sys, hardware; hardware.OpSpec; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "onnx", "onnxruntime", "scipy", "numpy", "yaml", "rich"} & set(done.stdout.split())


def test_a_type_checker_sees_the_real_types(tmp_path):
    """Third-party packages are left out, so that mypy reads this package alone; what is Any then comes from it."""
    assert (ROOT / "hardware" / "py.typed").exists()
    lines = ["import hardware", "from hardware import " + ", ".join(NAMES)]
    lines += [f"reveal_type({name})" for name in NAMES]
    lines += ["reveal_type(hardware.OpSpec('conv', (3, 8, 8), (4, 8, 8)).key)"]
    lines += ["hardware.CostMode  # type: ignore[attr-defined]"]
    (tmp_path / "user.py").write_text("\n".join(lines))
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--no-site-packages",
        "--ignore-missing-imports",
        "--follow-imports=silent",
    ]
    command += ["--warn-unused-ignores", "--no-error-summary", f"--cache-dir={tmp_path}", "user.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    revealed = [line.split('Revealed type is "')[1] for line in done.stdout.splitlines() if "Revealed" in line]
    assert done.returncode == 0, done.stdout
    assert len(revealed) == len(NAMES) + 1
    assert [text.startswith("def (") for text in revealed[:-1]] == [True] * len(NAMES)
    assert "hardware.op_spec.OpSpec" in revealed[3]
    assert "str" in revealed[-1]
