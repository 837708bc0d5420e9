"""What every file keeps to: who may know whom, how long it may be, what it may mention, and where its tests are.

A rule yields its breaches as text. `KNOWN` names those that are still there: it may only shrink, as a breach that is
gone fails the test too.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hardware", "search_spaces", "proxyless_strategy")
# From the ground up. A room knows the storeys below its own, and neither its neighbours nor what is above.
STOREYS: tuple[set[str], ...] = (
    {"hardware"},
    {"search_spaces"},
    {"proxyless_strategy.world"},
    {
        "proxyless_strategy.checkpoints",
        "proxyless_strategy.determinism",
        "proxyless_strategy.layout",
        "proxyless_strategy.norm_kernels",
        "proxyless_strategy.progress",
        "proxyless_strategy.seeds",
        "proxyless_strategy.signals",
        "proxyless_strategy.validation",
    },
    {"proxyless_strategy.sections"},
    {"proxyless_strategy.training_sections"},
    {"proxyless_strategy.config", "proxyless_strategy.norms", "proxyless_strategy.owner", "proxyless_strategy.threads"},
    {"proxyless_strategy.strategy", "proxyless_strategy.profiler"},
    {"proxyless_strategy.export", "proxyless_strategy.data"},
    {"proxyless_strategy.retraining"},
    {"proxyless_strategy.runs"},
    {"proxyless_strategy.trial"},
    {"proxyless_strategy.report"},
    {"proxyless_strategy.shrinking"},
    {"proxyless_strategy.benchmark"},
    {"proxyless_strategy.cli"},
    {"proxyless_strategy"},  # the names that the package itself offers, from wherever they are
    {"examples"},
    {"tests"},
)
STOREY = {room: number for number, rooms in enumerate(STOREYS) for room in rooms}
NEVER = {
    "hardware": {"nni", "pytorch_lightning", "lightning", "timm"},
    "search_spaces": {"pytorch_lightning", "lightning"},
    "proxyless_strategy.strategy": {
        f"proxyless_strategy.{room}" for room in ("config", "data", "export", "retraining", "runs")
    },
}
MEETING_TYPE = ("hardware.op_spec", "hardware.errors", "hardware.files", "hardware.reading")
# Modules that guides name, beside the names of the packages themselves.
DOCUMENTED = ("proxyless_strategy.profiler", "hardware.testing", "hardware.backends")
LINES = 520
UNPUBLISHED = re.compile(r"\b(METHOD|DESIGN|HOUSE)(\.md\b|: )")

KNOWN: dict[str, set[str]] = {}


class Import(NamedTuple):
    """One name that a file imports, at its top, inside a function or for type checkers."""

    path: Path
    module: str
    name: str
    relative: bool

    @property
    def target(self) -> str:
        """The module that is imported or that the name is taken from."""
        whole = ".".join(filter(None, [self.module, self.name]))
        return whole if file_of(whole) else self.module

    def __str__(self) -> str:
        return f"{relative(self.path)} -> {self.target}"


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def file_of(module: str) -> Path | None:
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    return ".".join(module.split(".")[: 2 if module.startswith("proxyless_strategy.") else 1])


@cache
def sources(*packages: str) -> tuple[Path, ...]:
    return tuple(path for package in packages for path in sorted((ROOT / package).rglob("*.py")))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    found = []
    package = module_of(path).split(".")[: None if path.name == "__init__.py" else -1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [Import(path, alias.name, "", False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*parents, *filter(None, [node.module])])
            found += [Import(path, module, alias.name, node.level > 0) for alias in node.names]
    return tuple(found)


def imports_point_down() -> Iterator[str]:
    for line in (line for path in sources(*PACKAGES) for line in imports(path)):
        here, there = room_of(module_of(line.path)), room_of(line.target)
        ours = there.split(".")[0] in (*PACKAGES, "examples", "tests")
        if ours and here != there and not STOREY.get(there, len(STOREYS)) < STOREY[here]:
            yield str(line)


def rooms_never_know() -> Iterator[str]:
    for line in (line for path in sources(*PACKAGES) for line in imports(path)):
        here, there = module_of(line.path), f"{line.target}."
        for room, never in NEVER.items():
            if f"{here}.".startswith(f"{room}.") and any(there.startswith(f"{name}.") for name in never):
                yield str(line)


def spaces_and_hardware_meet_in_one_type() -> Iterator[str]:
    meeting = {name for module in MEETING_TYPE for name in vars(importlib.import_module(module))}
    for line in (line for path in sources("search_spaces") for line in imports(path)):
        public = line.target == "hardware" and line.name in meeting
        if room_of(line.target) == "hardware" and line.target not in MEETING_TYPE and not public:
            yield str(line)


def imports_inside_a_package_are_relative() -> Iterator[str]:
    for line in (line for path in sources(*PACKAGES) for line in imports(path)):
        if not line.relative and line.module.split(".")[0] == module_of(line.path).split(".")[0]:
            yield relative(line.path)


def models_register_themselves() -> Iterator[str]:
    """`search_spaces` has them registered when timm is imported; an import for that effect alone does nothing."""
    for line in (line for path in sources("search_spaces", "proxyless_strategy") for line in imports(path)):
        if line.target == "search_spaces.timm_models" and line.name in ("", "timm_models"):
            yield str(line)


def examples_use_public_names() -> Iterator[str]:
    for line in (line for path in sources("examples") for line in imports(path)):
        if line.module in PACKAGES and line.name:
            public = line.name in importlib.import_module(line.module).__all__ or line.target in DOCUMENTED
        else:
            public = line.module.split(".")[0] not in PACKAGES or line.module in (*PACKAGES, *DOCUMENTED)
        if not public:
            yield f"{line} ({line.name})"


def files_are_short() -> Iterator[str]:
    for path in (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*"))):
        # A table of measured latencies is data, as long as its space is large.
        if path.is_file() and path.suffix not in (".pyc", ".yml"):
            lines = len(path.read_text(encoding="utf-8").splitlines())
            if lines > LINES:
                yield f"{relative(path)}: more than {LINES} lines"


def documents_that_are_not_here_are_not_mentioned() -> Iterator[str]:
    folders = [path for package in (*PACKAGES, "examples", "tests") for path in sorted((ROOT / package).rglob("*"))]
    for path in [*sorted(ROOT.iterdir()), *folders]:
        if path.suffix in (".py", ".md", ".yml", ".toml", ".html", ".js") and path != Path(__file__):
            found = UNPUBLISHED.search(path.read_text(encoding="utf-8"))
            if found:
                yield f"{relative(path)}: {found[1]}"


def package_folders_say_what_they_are() -> Iterator[str]:
    for folder in sorted({path.parent for path in sources(*PACKAGES)}):
        start = folder / "__init__.py"
        if not start.exists() or not ast.get_docstring(ast.parse(start.read_text(encoding="utf-8"))):
            yield f"{relative(folder)}: no __init__.py with a docstring"


def folders_are_mirrored_by_tests() -> Iterator[str]:
    for package in PACKAGES:
        for path in sorted((ROOT / "tests" / package).rglob("test_*.py")):
            if not (ROOT / path.parent.relative_to(ROOT / "tests") / "__init__.py").exists():
                yield f"{relative(path)}: no such folder in {package}"


RULES: tuple[Callable[[], Iterator[str]], ...] = (
    imports_point_down,
    rooms_never_know,
    spaces_and_hardware_meet_in_one_type,
    imports_inside_a_package_are_relative,
    models_register_themselves,
    examples_use_public_names,
    files_are_short,
    documents_that_are_not_here_are_not_mentioned,
    package_folders_say_what_they_are,
    folders_are_mirrored_by_tests,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule(rule: Callable[[], Iterator[str]]) -> None:
    assert set(rule()) == KNOWN.get(rule.__name__, set())


def test_every_room_has_its_storey() -> None:
    rooms = {room_of(module_of(path)) for path in sources(*PACKAGES)}
    assert rooms == STOREY.keys() - {"examples", "tests"}
