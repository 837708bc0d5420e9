"""Sizes of the published networks as JSON: `python -m tests.benchmarks.published`; exit status 1 if a digit differs."""

from __future__ import annotations

import json
import sys
from typing import Any

import timm

import search_spaces  # noqa: F401  (registers the networks)
from proxyless_strategy.export.summary import model_summary

PUBLISHED = {
    "proxylessnas_cpu": ("4.362", "439.2"),
    "proxylessnas_gpu": ("7.120", "465.3"),
    "proxylessnas_mobile": ("4.081", "320.4"),
    "proxylessnas_mobile_14": ("6.858", "580.9"),
}
"""Millions of parameters, and of multiply-accumulates of convolutions and linear layers at 224 px, as published."""


def sizes(name: str) -> dict[str, Any]:
    """Return counted and published size of a network, and whether they are equal to the last published digit."""
    summary = model_summary(timm.create_model(name), (3, 224, 224))
    params, macs = PUBLISHED[name]
    found = (f"{summary.params / 1e6:.3f}", f"{summary.macs / 1e6:.1f}")
    return {
        "params": summary.params,
        "macs": summary.macs,
        "params_m": found[0],
        "macs_m": found[1],
        "published_params_m": params,
        "published_macs_m": macs,
        "equal": found == (params, macs),
    }


def main() -> None:
    """Run the command line of the check."""
    rows = {name: sizes(name) for name in PUBLISHED}
    print(json.dumps(rows))
    sys.exit(not all(row["equal"] for row in rows.values()))


if __name__ == "__main__":
    main()
