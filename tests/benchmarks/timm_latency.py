"""Whether a table is as true for spaces of timm's models as for this project's own: one of each family.

    .venv/bin/python -m tests.benchmarks.timm_latency [--input-size 96] [--backend onnxruntime] [--dtype int8]
                                                      [--only mobilenetv3_small_050 ...] [--out DIR]

Of each family's space a table is built, calibrated on 10 subnets and held against 12 others. Rows are kept in `--out`
as they come: started again, it goes on. The last line is JSON: `{rows: [{model, operators, range_ms, mape, spearman}],
worst_mape, median_mape}`.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hardware.files import write_atomically
from tests.search_spaces.from_timm.samples import FAMILIES

from . import latency_model


def row_of(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """Build and check one model's table."""
    found = latency_model.run(
        argparse.Namespace(
            **{name: getattr(options, name) for name in ("input_size", "backend", "dtype", "seconds", "held_out")},
            space=f"timm:{model}",
            classes=10,
            calibration_nets=10,
            learned_nets=0,
            table=None,
            plot=None,
            progress=False,
        )
    )
    figures = found["calibrated"]
    return {
        "model": model,
        "operators": found["operators"],
        "range_ms": [round(ms, 3) for ms in found["range_ms"]],
        "mape": round(figures["mape"], 4),
        "spearman": round(figures["spearman"], 3),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input-size", type=int, default=96)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--dtype", help="number format, as int8 (default: float32)")
    parser.add_argument("--seconds", type=float, default=30.0, help="limit of each of the measurements")
    parser.add_argument("--held-out", type=int, default=6, help="subnets of each of the two groups")
    parser.add_argument(
        "--only", nargs="+", choices=FAMILIES.values(), default=list(FAMILIES.values()), metavar="MODEL"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/timm_latency"), metavar="DIR")
    options = parser.parse_args(arguments)
    rows = []
    for model in options.only:
        kept = options.out / f"{model}-{options.input_size}-{options.backend}-{options.dtype or 'float32'}.json"
        if not kept.exists():
            write_atomically(kept, json.dumps(row_of(model, options)))
        rows.append(json.loads(kept.read_text(encoding="utf-8")))
        print(json.dumps(rows[-1]), flush=True)
    mapes = [row["mape"] for row in rows]
    print(json.dumps({"rows": rows, "worst_mape": max(mapes), "median_mape": statistics.median(mapes)}))


if __name__ == "__main__":
    main()
