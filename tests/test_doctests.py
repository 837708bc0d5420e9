"""The examples in docstrings run, and the modules whose docstrings teach most have some."""

import doctest
from importlib import import_module

import pytest

MODULES = (
    "hardware.model",
    "hardware.op_spec",
    "hardware.operators.primitives",
    "hardware.tables.released",
    "hardware.tables.table",
    "proxyless_strategy.data.split",
    "proxyless_strategy.export.summary",
    "proxyless_strategy.retraining.recipe",
    "proxyless_strategy.strategy.architecture",
    "proxyless_strategy.strategy.derivation",
    "proxyless_strategy.strategy.gates",
    "proxyless_strategy.strategy.objectives",
    "proxyless_strategy.strategy.proxyless",
    "search_spaces.blocks",
    "search_spaces.mbconv",
    "search_spaces.registry",
    "search_spaces.subnet",
    "search_spaces.user_function",
)


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_of_a_module_run(name):
    result = doctest.testmod(import_module(name))
    assert result.attempted, f"{name} has no example"
    assert not result.failed
