"""The comparison as a file, a table and a picture."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from hardware.errors import ConfigError
from proxyless_strategy.shrinking.comparison import TABLE_WIDTH, Compared, Comparison
from proxyless_strategy.shrinking.picture import draw

PLACE = {"device": "a processor", "backend": "onnxruntime", "threads": 1, "batch": 1, "input_size": 96}


def comparison() -> Comparison:
    shared = {"folder": "runs/x", "onnx": "runs/x.onnx", "epochs": 30}
    return Comparison(
        model="timm:mine",
        target="0.6x",
        unit="ms",
        limit=0.6,
        place=PLACE,
        original=Compared(accuracy=0.9, ms=1.0, table_ms=1.1, cost=1.1, params=4_000_000, macs=60_000_000, **shared),
        subnet=Compared(accuracy=0.885, ms=0.55, table_ms=0.6, cost=0.6, params=1_000_000, macs=20_000_000, **shared),
        seconds=90.0,
    )


def printed(of: Comparison, width: int = TABLE_WIDTH) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(of.table())
    return console.file.getvalue().splitlines()


def test_the_table_has_both_networks_and_their_ratios() -> None:
    lines = {line.split("  ")[0].strip(): line.split() for line in printed(comparison())}
    assert lines["original"][1:] == ["90.00", "1.000", "1.100", "4.000", "60.0", "30"]
    assert lines["subnet"][1:] == ["88.50", "0.550", "0.600", "1.000", "20.0", "30"]
    assert lines["subnet / original"][3:] == ["-1.50", "0.550x", "0.545x", "0.250x", "0.333x"]


def test_int8_stands_beside_float32() -> None:
    found = comparison()
    original = replace(found.original, int8_onnx="runs/a-int8.onnx", int8_accuracy=0.88)
    found = replace(
        found, original=original, subnet=replace(found.subnet, int8_onnx="runs/b-int8.onnx", int8_accuracy=0.87)
    )
    lines = {line.split("  ")[0].strip(): line.split() for line in printed(found)}
    assert lines["original"][1:4] == ["90.00", "88.00", "1.000"]
    assert lines["subnet / original"][3:6] == ["-1.50", "-1.00", "0.550x"]
    assert found.sentences()[3:5] == [
        "in int8, as measured: runs/b-int8.onnx",
        "in int8, as measured: runs/a-int8.onnx",
    ]
    assert not any("int8" in sentence for sentence in comparison().sentences())


def test_what_was_not_measured_is_no_number() -> None:
    found = comparison()
    found = replace(found, original=replace(found.original, ms=None), subnet=replace(found.subnet, ms=None))
    lines = {line.split("  ")[0].strip(): line.split() for line in printed(found)}
    assert lines["subnet"][2] == "-"
    assert lines["subnet / original"][4] == "-"
    assert Image.open(io.BytesIO(draw(found))).size == Image.open(io.BytesIO(draw(comparison()))).size


def test_the_picture_has_a_panel_for_each_known_figure() -> None:
    found = comparison()
    bare = {"ms": None, "table_ms": None}
    untimed = replace(found, original=replace(found.original, **bare), subnet=replace(found.subnet, **bare))
    wide, narrow = (Image.open(io.BytesIO(draw(each))) for each in (found, untimed))
    assert wide.format == "PNG"
    assert narrow.width == pytest.approx(wide.width * 3 / 4, abs=2)
    assert draw(found) == draw(found)


def test_a_subnet_above_the_target_is_said() -> None:
    found = comparison()
    assert not any("above the target" in line for line in found.sentences())
    missed = replace(found, limit=0.59)
    assert "the subnet costs 0.6 ms, above the target of 0.59 ms" in missed.sentences()


def test_the_file_is_read_back(tmp_path: Path) -> None:
    comparison().save(tmp_path)
    assert Comparison.load(tmp_path) == comparison()


@pytest.mark.parametrize(
    "damage",
    [
        lambda values: values.update(format="proxyless-shrink/9"),
        lambda values: values["subnet"].update(accuracy="high"),
        lambda values: values["subnet"].pop("macs"),
        lambda values: values.update(subnet=3),
        lambda values: values.update(colour="red"),
        lambda values: values.pop("limit"),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, damage: object) -> None:
    values = comparison().to_dict()
    damage(values)
    (tmp_path / "comparison.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"comparison\.json.*remove it to compare again") as refused:
        Comparison.load(tmp_path)
    assert "\n" not in str(refused.value)
