"""A shrinking that ends in seconds: drawn pictures of 32 pixels, a small model with weights of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from proxyless_strategy.config import SearchConfig, parse_config

NAME = "mobilenetv2_035"


def settings(root: Path, weights: Path | str, out: Path, **changes: Any) -> SearchConfig:
    """Return the config of a shrinking, with `changes` by the sections' names."""
    values: dict[str, Any] = {
        "space": {"name": f"timm:{NAME}", "options": {"kernels": [3], "expansions": [2], "weights": str(weights)}},
        "data": {
            "name": "imagefolder",
            "root": str(root),
            "draw": {"classes": 3, "train": 12, "val": 5, "size": 32},
            "augment": "none",
        },
        "input_size": 32,
        "hardware": {"cost": "macs"},
        "target": "0.7x",
        "shrink": {"start_epochs": 1, "original_epochs": 2},
        "search": {"warmup_epochs": 0, "epochs": 1, "batch_size": 8, "finalists": 2},
        "retrain": {"epochs": 2, "batch_size": 8},
        "out": str(out),
    }
    for key, value in changes.items():
        values[key] = (
            {**values[key], **value} if isinstance(value, dict) and isinstance(values.get(key), dict) else value
        )
    return parse_config(values)
