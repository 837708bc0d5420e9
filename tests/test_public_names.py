"""The names that `proxyless_strategy` and `search_spaces` offer: to a person, to a type checker, and at what price."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import proxyless_strategy
import search_spaces

ROOT = Path(proxyless_strategy.__file__).parents[1]
PACKAGES = (proxyless_strategy, search_spaces)
NAMES = [(package, name) for package in PACKAGES for name in package.__all__]


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_the_names_are_listed_and_typed(package: ModuleType) -> None:
    assert set(package.__all__) <= set(dir(package))
    assert len(set(package.__all__)) == len(package.__all__)
    assert Path(package.__file__ or "").with_name("py.typed").exists()


@pytest.mark.parametrize(("package", "name"), NAMES, ids=lambda value: getattr(value, "__name__", value))
def test_each_name_is_there_and_says_what_it_is(package: ModuleType, name: str) -> None:
    value = getattr(package, name)
    assert isinstance(value, dict) or value.__doc__


@pytest.mark.parametrize(("package", "name"), NAMES, ids=lambda value: getattr(value, "__name__", value))
def test_no_name_is_that_of_a_module_beside_it(package: ModuleType, name: str) -> None:
    """A module that is imported becomes an attribute of its package: it would take the name's place."""
    beside = Path(package.__file__ or "").parent
    assert not (beside / name).exists()
    assert not (beside / f"{name}.py").exists()


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_another_name_is_an_ordinary_error(package: ModuleType) -> None:
    with pytest.raises(AttributeError, match=f"'{package.__name__}' has no attribute 'get_spice'"):
        package.get_spice  # noqa: B018


def test_names_that_do_not_need_nni_do_not_import_it() -> None:
    program = (
        "import sys; from proxyless_strategy import ConfigError, LatencyTable, SearchConfig, load_config;"
        "print(*{'nni', 'torch', 'timm'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).split() == []


def test_a_type_checker_sees_the_real_types(tmp_path: Path) -> None:
    """Third-party packages are left out: what mypy calls Any is then ours."""
    lines = ["import proxyless_strategy, search_spaces"]
    lines += [f"reveal_type({package.__name__}.{name})" for package, name in NAMES]
    lines += [f"{package.__name__}.get_spice  # type: ignore[attr-defined]" for package in PACKAGES]
    (tmp_path / "user.py").write_text("\n".join(lines))
    options = ("--no-site-packages", "--ignore-missing-imports", "--follow-imports=silent", "--warn-unused-ignores")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--no-error-summary", f"--cache-dir={tmp_path}", "user.py"],
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    output = done.stdout.splitlines()
    revealed = [line.split('Revealed type is "')[1].rstrip('"') for line in output if "Revealed type" in line]
    assert len(revealed) == len(NAMES), done.stdout + done.stderr
    assert [line for line in output if ": error:" in line] == []
    assert [name for (_, name), type_ in zip(NAMES, revealed, strict=True) if type_ == "Any"] == []
