"""A module of the user's, without a file."""

from __future__ import annotations

import sys
import types

import pytest


@pytest.fixture
def user_module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    module = types.ModuleType("my_data")
    monkeypatch.setitem(sys.modules, "my_data", module)
    return module
