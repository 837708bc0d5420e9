"""What a finished search is, and the files that say so."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces import Subnet

from ..config import SearchConfig


@dataclass(frozen=True)
class SearchResult:
    """A finished search.

    Attributes:
        config: What was asked for.
        subnet: The derived subnet.
        folder: timm export folder.
        onnx: The exported ONNX file.
        unit: What the target and the subnet's cost are in: calibrated ms, or the unit of `hardware.cost`.
        target_cost: The target; None where there was none.
        subnet_cost: The subnet's cost.
        target_ms: The target where it is a latency.
        table_ms: The subnet's latency by the table; None where no table was used.
        latency_ms: Measured latency, in the state of the machine in which the table was built; None where the table is
            of another device.
        latency_now_ms: The same as the clock read it, before that correction.
        accuracy: Test accuracy of the retrained subnet, 0..1; None without retraining.
        params: Parameters of the exported model.
        macs: Its multiply-accumulates.
        seconds: Duration of the whole search.
    """

    config: SearchConfig
    subnet: Subnet
    folder: Path
    onnx: Path
    unit: str
    target_cost: float | None
    subnet_cost: float
    target_ms: float | None
    table_ms: float | None
    latency_ms: float | None
    latency_now_ms: float | None
    accuracy: float | None
    params: int
    macs: int
    seconds: float

    def row(self) -> dict[str, Any]:
        """The result as plain values for a table of results."""
        return {
            "hardware": self.config.hardware.name,
            "rule": self.config.rule,
            "cost": self.config.hardware.cost,
            "unit": self.unit,
            "target_cost": self.target_cost,
            "subnet_cost": self.subnet_cost,
            "target_ms": self.target_ms,
            "table_ms": self.table_ms,
            "latency_ms": self.latency_ms,
            "latency_now_ms": self.latency_now_ms,
            "accuracy": self.accuracy,
            "params": self.params,
            "macs": self.macs,
            "folder": str(self.folder),
            "onnx": str(self.onnx),
            "seconds": self.seconds,
        }
