"""A user's own function: where its module is looked for, and what is said when it is not there."""

from __future__ import annotations

import sys

import pytest

from hardware.errors import ConfigError
from proxyless_strategy.config import load_config
from search_spaces import users_space
from search_spaces.user_function import import_function, search_modules_in

MODULE = """
from search_spaces import MBConvDeclaration, Stage

def space(width=16):
    return MBConvDeclaration("own", 8, 2, 8, (Stage(width, 1, 2),), head_width=64)
"""


@pytest.fixture(autouse=True)
def _own_path(monkeypatch):
    """Leave `sys.path` and the imported modules as they were."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for name in set(sys.modules) - before:
        if name.startswith("own_"):
            del sys.modules[name]


def test_a_module_is_found_in_the_current_folder(tmp_path, monkeypatch):
    """As under the installed command, which has its own folder first on `sys.path` and no other of the user's."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_here.py").write_text("def two(): return 2\n")
    assert import_function("own_here:two")() == 2


def test_a_module_is_found_in_a_given_folder_and_in_a_package(tmp_path):
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "inner.py").write_text("def three(): return 3\n")
    assert import_function("own_package.inner:three", folders=[tmp_path])() == 3


def test_a_module_is_found_beside_the_config_that_names_it(tmp_path, monkeypatch):
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "own_beside.py").write_text(MODULE)
    (tmp_path / "study" / "search.yml").write_text(
        "{space: {name: 'own_beside:space', options: {width: 24}}, hardware: {cost: macs}, input_size: 32}"
    )
    monkeypatch.chdir(tmp_path)
    config = load_config("study/search.yml")
    monkeypatch.chdir("/")
    assert users_space(config.space.name, **config.space.options).stages[0].width == 24


def test_a_config_that_names_no_module_leaves_the_path_alone(tmp_path):
    (tmp_path / "search.yml").write_text("{space: small_mbconv, hardware: {cost: macs}}")
    load_config(tmp_path / "search.yml")
    assert str(tmp_path) not in sys.path


def test_a_users_module_hides_no_other(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('hidden')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.delitem(sys.modules, "json")
    assert import_function("json:dumps")([1]) == "[1]"


def test_folders_are_added_once(tmp_path):
    search_modules_in(tmp_path, str(tmp_path))
    search_modules_in(tmp_path)
    assert sys.path.count(str(tmp_path)) == 1


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("own_module", "'own_module' names no function; write module:function"),
        (":function", "':function' names no function"),
        ("own_module:", "'own_module:' names no function"),
        ("own_absent:f", "no module 'own_absent' is installed, in .* or beside the config"),
        ("own_module.part:f", r"no module 'own_module\.part' is installed"),
        ("own_module:g", r"the module own_module \(.*own_module\.py\) has no 'g'"),
        ("own_module:number", "own_module:number is int, not a function"),
        ("own_needy:f", "own_needy imports 'own_nowhere', which is not installed"),
        ("own_broken:f", "own_broken raised ZeroDivisionError at its import: division by zero"),
    ],
)
def test_what_cannot_be_imported_is_refused_in_one_sentence(tmp_path, name, words):
    (tmp_path / "own_module.py").write_text("number = 3\n")
    (tmp_path / "own_needy.py").write_text("import own_nowhere\n")
    (tmp_path / "own_broken.py").write_text("1 / 0\n")
    with pytest.raises(ConfigError, match=words) as raised:
        import_function(name, folders=[tmp_path])
    assert "\n" not in str(raised.value)
