"""A search that has ended and is asked for again."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

from proxyless_strategy.config import parse_config
from proxyless_strategy.layout import CONFIG_FILE, HUB_FILE, MODEL, ONNX_FILE, ROW_FILE, SEARCH_FILE
from proxyless_strategy.runs.ended import finished_result
from proxyless_strategy.runs.result import SearchResult
from search_spaces import Subnet, users_space


def test_a_finished_search_is_read_back_with_every_field(tmp_path: Path) -> None:
    """A field that is left out would come back as its default, as if nothing had been found."""
    out = tmp_path / "run"
    config = parse_config({"space": "small_mbconv", "hardware": {"cost": "macs"}, "target": 0.5, "out": str(out)})
    space = users_space("small_mbconv")
    numbers = {f.name: 1.5 + i for i, f in enumerate(fields(SearchResult)) if f.type in ("float", "float | None")}
    result = SearchResult(
        config=config,
        subnet=Subnet(space, {label: names[0] for label, names in space.candidates().items()}),
        folder=out / MODEL,
        onnx=out / ONNX_FILE,
        unit="M MACs",
        params=3,
        macs=4,
        warnings=("one",),
        **numbers,
    )
    (out / MODEL).mkdir(parents=True)
    for name in (f"{MODEL}/{HUB_FILE}", ONNX_FILE):
        (out / name).write_text("")
    (out / CONFIG_FILE).write_text(json.dumps(config.identity()))
    (out / ROW_FILE).write_text(json.dumps(result.row()))
    record = {"subnet": result.subnet.to_dict(), "warnings": ["one"]}
    (out / SEARCH_FILE).write_text(json.dumps(record))
    again = finished_result(config)
    assert again is not None
    assert again.row() == result.row()
