"""`hardware.dtype` and `hardware.options`: on their way from a config to the table, and back."""

from __future__ import annotations

import dataclasses

import pytest

from hardware.backends import registry
from hardware.errors import BackendError, ConfigError, TableError
from hardware.tables.table import LatencyTable
from proxyless_strategy.config import parse_config
from proxyless_strategy.runs.prepare import prepare
from proxyless_strategy.runs.same_run import differences
from proxyless_strategy.runs.space_table import default_table_path
from tests.hardware.conftest import Tunable

SPACE = {"name": "small_mbconv", "options": {"stem_stride": 2}}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.setitem(registry.FACTORIES, "fake", Tunable)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


def settings(tmp_path, **hardware):
    values = {"space": SPACE, "input_size": 16, "target": 0.5, "out": str(tmp_path / "run"), "retrain": None}
    return parse_config({**values, "hardware": {"backend": "fake", **hardware}})


def test_a_config_measures_what_it_says_and_refuses_a_table_of_anything_else(tmp_path):
    table = str(tmp_path / "table.yml")
    chosen = {"dtype": "int8", "options": {"graphs": False}}
    header = prepare(settings(tmp_path, table=table, **chosen), quiet=True).latency.table.header
    assert (header.dtype, header.options) == ("int8", {"graphs": False, "streams": 1, "mode": "fair"})
    # the same again, with defaults said and unsaid
    prepare(settings(tmp_path, table=table, dtype="int8", options={"graphs": False, "streams": 1}), quiet=True)
    for other, words in (
        ({"options": {"graphs": False}}, "dtype int8, but the config says float32; set hardware.dtype or"),
        ({"dtype": "float32", "options": {"graphs": False}}, "dtype int8, but the config says float32"),
        ({"dtype": "int8"}, r"options.graphs false, but the config says true; set hardware.options.graphs or give"),
        ({"dtype": "int8", "options": {"graphs": False, "mode": "quick"}}, "options.mode fair, .* says quick"),
    ):
        with pytest.raises(TableError, match=f"measured with {words}"):
            prepare(settings(tmp_path, table=table, **other), quiet=True)


def test_each_choice_has_a_default_table_of_its_own(tmp_path):
    choices = [
        {},
        {"dtype": "float32"},
        {"dtype": "int8"},
        {"options": {"graphs": True}},
        {"options": {"graphs": False}},
        {"options": {"streams": 2, "mode": "a/b c"}},
        {"dtype": "int8", "options": {"graphs": True}},
    ]
    names = [default_table_path(settings(tmp_path, **choice)).name for choice in choices]
    assert names[0] == names[1] == "small_mbconv-16px-fake-1threads-batch1.yml"
    assert names[5] == "small_mbconv-16px-fake-mode.a_b_c-streams.2-1threads-batch1.yml"
    assert len(set(names)) == len(choices) - 1


@pytest.mark.parametrize(
    ("hardware", "error", "words"),
    [
        ({"dtype": "int4"}, BackendError, "'fake' does not measure 'int4'; it measures float32, int8"),
        (
            {"options": {"grahps": True}},
            BackendError,
            r"no option 'grahps'; it has graphs \(true\), streams",
        ),
        ({"options": {"graphs": 1}}, BackendError, "option graphs .* is 1; it must be true or false"),
        ({"options": {"streams": 1.5}}, ConfigError, "hardware.options"),
    ],
)
def test_what_the_backend_does_not_have_is_refused_before_anything_is_measured(tmp_path, hardware, error, words):
    with pytest.raises(error, match=words):
        prepare(settings(tmp_path, table=str(tmp_path / "table.yml"), **hardware), quiet=True)
    assert not (tmp_path / "table.yml").exists()


def test_a_table_of_another_device_may_be_of_any_setting_unless_the_config_says_which(tmp_path):
    path = tmp_path / "table.yml"
    prepare(settings(tmp_path, table=str(path)), quiet=True)
    whole = LatencyTable.load(path)
    header = dataclasses.replace(whole.header, backend="elsewhere", dtype="float16", options={"graphs": True})
    dataclasses.replace(whole, header=header).save(path)
    other = {"table": str(path), "device": "other"}
    assert prepare(settings(tmp_path, **other), quiet=True).latency.table.header.dtype == "float16"
    prepare(settings(tmp_path, dtype="float16", options={"graphs": True}, **other), quiet=True)
    with pytest.raises(TableError, match="measured with dtype float16, but the config says int8"):
        prepare(settings(tmp_path, dtype="int8", **other), quiet=True)
    with pytest.raises(TableError, match=r"measured with options\.streams none, but the config says 2"):
        prepare(settings(tmp_path, options={"streams": 2}, **other), quiet=True)


def test_another_number_format_is_another_search_and_an_older_folder_has_none(tmp_path):
    there, here = settings(tmp_path).identity(), settings(tmp_path, dtype="int8", options={"graphs": True}).identity()
    schema = type(settings(tmp_path))
    assert set(differences(there, here, schema)) == {"hardware.dtype", "hardware.options"}
    for name in ("dtype", "options"):
        del there["hardware"][name]
    assert differences(there, settings(tmp_path).identity(), schema) == {}


def test_a_backends_own_number_format_is_the_one_that_its_table_is_checked_for(tmp_path, monkeypatch):
    class OnlyInt8(Tunable):
        dtypes = ("int8",)
        dtype = "int8"

    monkeypatch.setitem(registry.FACTORIES, "fake", OnlyInt8)
    table = str(tmp_path / "table.yml")
    for chosen in ({}, {"dtype": "int8"}):
        assert prepare(settings(tmp_path, table=table, **chosen), quiet=True).latency.table.header.dtype == "int8"
    monkeypatch.setitem(registry.FACTORIES, "fake", Tunable)
    with pytest.raises(TableError, match="measured with dtype int8, but the config says float32"):
        prepare(settings(tmp_path, table=table), quiet=True)


@pytest.mark.parametrize(
    ("hardware", "named"),
    [
        ({"dtype": "int9"}, "hardware.dtype = int9 has no effect"),
        ({"dtype": "int8"}, "hardware.dtype = int8 has no effect"),
        ({"dtype": "int9", "backend": "onnxruntime"}, "hardware.dtype = int9 has no effect"),
        ({"options": {"streams": 2}}, "hardware.options = {'streams': 2} has no effect"),
    ],
)
def test_what_nothing_is_measured_with_is_refused(tmp_path, hardware, named):
    with pytest.raises(ConfigError, match=f"{named}, as device other is not measured here"):
        settings(tmp_path, cost="macs", device="other", **hardware)
    settings(tmp_path, cost="macs", device="other", backend="onnxruntime", dtype="int8")
