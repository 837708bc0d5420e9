"""Who may know whom: arrows between the rooms point down only."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    "hardware": {"search_spaces", "proxyless_strategy", "nni", "pytorch_lightning", "timm"},
    "search_spaces": {"proxyless_strategy", "pytorch_lightning"},
    "proxyless_strategy": {"examples", "tests"},
}
FILES = [path for room in FORBIDDEN for path in sorted((ROOT / room).rglob("*.py"))]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    room = path.relative_to(ROOT).parts[0]
    known = {name.split(".")[0] for name in imported(path)}
    assert not known & FORBIDDEN[room]


def test_a_space_knows_nothing_of_what_a_device_measures():
    names = {name for path in (ROOT / "search_spaces").glob("*.py") for name in imported(path)}
    assert {name for name in names if name.startswith("hardware")} <= {"hardware.op_spec", "hardware.errors"}
