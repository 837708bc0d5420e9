"""A search that has ended and is asked for again: its result as it lies in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx.checker import ValidationError

from hardware.errors import ProxylessError
from hardware.reading import DAMAGE, expect, is_there, json_of
from search_spaces import Subnet, users_space

from ..config import SearchConfig
from ..export.folder import SUBNET, load_exported
from ..layout import CONFIG_FILE, HUB_FILE, INT8_FILE, MODEL, ONNX_FILE, ROW_FILE, SEARCH_FILE
from .finished import read_searched
from .result import SearchResult
from .same_run import differences

_NUMBERS = ("target_cost", "target_ms", "table_ms", "latency_ms", "latency_now_ms", "accuracy")
_LATER = ("original_cost", "energy_mj", "search_loss", "knapsack_loss", "int8_accuracy")
"""Numbers that rows of earlier versions lack, as rows of other spaces and rules do."""


def finished_result(config: SearchConfig) -> SearchResult | None:
    """Return the result of a search that ended with these very settings; None where anything is left to do or damaged.

    Nothing is written, and no damage is named: a search that goes on where it was finds and names it, or mends it.
    """
    out = config.out
    needed = (out / SEARCH_FILE, out / ROW_FILE, out / MODEL / HUB_FILE, out / ONNX_FILE)
    if not all(map(is_there, needed)):
        return None
    try:
        if differences(json_of(out / CONFIG_FILE), config.identity(), SearchConfig):
            return None
        row: dict[str, Any] = json_of(out / ROW_FILE)
        record = json_of(out / SEARCH_FILE, nonfinite=("history",))
        space = users_space(config.space.name, **config.space.options)
        read_searched(out, space)
        int8 = row.get("int8_onnx") is not None
        if not _is_exported(out, record["subnet"], int8=int8):
            return None
        return SearchResult(
            config=config,
            subnet=Subnet(space, dict(record["subnet"]["choices"])),
            folder=out / MODEL,
            onnx=out / ONNX_FILE,
            int8_onnx=out / INT8_FILE if int8 else None,
            unit=expect(row["unit"], str, "unit"),
            subnet_cost=expect(row["subnet_cost"], float, "subnet_cost"),
            params=expect(row["params"], int, "params"),
            macs=expect(row["macs"], int, "macs"),
            seconds=expect(row["seconds"], float, "seconds"),
            device=expect(row.get("hardware"), str, "hardware", none=True),
            warnings=tuple(str(sentence) for sentence in record.get("warnings", ())),
            **{name: expect(row[name], float, name, none=True) for name in _NUMBERS},
            **{name: expect(row.get(name), float, name, none=True) for name in _LATER},
        )
    except (*DAMAGE, ProxylessError, DecodeError, ValidationError):
        return None


def _is_exported(out: Path, subnet: Any, *, int8: bool) -> bool:
    """Return whether what lies there is this subnet: a damaged network that is called finished would be deployed.

    Raises:
        ProxylessError, OSError, DecodeError, ValidationError: It is damaged.
    """
    load_exported(out / MODEL)
    for name in (ONNX_FILE, *((INT8_FILE,) if int8 else ())):
        onnx.checker.check_model(onnx.load(out / name))
    return json_of(out / MODEL / SUBNET) == subnet
