"""How well a latency table and the learned model predict held-out subnets: one JSON object on stdout.

    .venv/bin/python -m tests.benchmarks.latency_model [--space small_mbconv --input-size 32] [--plot check.png]

Builds a table (timed), calibrates it on 10 subnets, measures 15 uniformly drawn and 15 depth-varied others, and fits
the learned model on 300 further ones.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from hardware.backends import Backend, get_backend
from hardware.measuring import predictor
from hardware.measuring.nets import measure_nets
from hardware.measuring.sampling import Plan
from hardware.measuring.table import build_table
from hardware.measuring.validation import check_table
from search_spaces import SpaceCosts, get_space


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="imagenet_mbconv")
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--dtype", help="number format, as int8 (default: float32)")
    parser.add_argument("--seconds", type=float, help="limit of each of the measurements (default: theirs)")
    parser.add_argument("--calibration-nets", type=int, default=10)
    parser.add_argument("--held-out", type=int, default=15, help="subnets of each of the two groups")
    parser.add_argument("--learned-nets", type=int, default=300, help="subnets for the learned model; 0 leaves it out")
    parser.add_argument("--table", type=Path, help="keep the table here")
    parser.add_argument("--plot", type=Path, help="draw predicted against measured here")
    parser.add_argument("--progress", action="store_true")
    print(json.dumps(run(parser.parse_args())))


def run(options: argparse.Namespace) -> dict[str, Any]:
    costs = get_space(options.space).costs(options.input_size, num_classes=options.classes)
    with get_backend(options.backend, dtype=options.dtype) as backend:
        return _judged(options, costs, backend)


def _judged(options: argparse.Namespace, costs: SpaceCosts, backend: Backend) -> dict[str, Any]:
    plan = None if options.seconds is None else Plan(seconds=options.seconds, extra_rounds=0)
    shared: dict[str, Any] = {"backend": backend, "progress": options.progress, "plan": plan}
    calibration = [costs.chain(choices) for choices in costs.random_choices(options.calibration_nets, seed=1)]
    varied = costs.random_choices(2 * options.held_out, seed=3)[1::2]
    held_out = {
        "uniform": [costs.chain(c) for c in costs.random_choices(options.held_out, seed=2, vary_depth=False)],
        "depth-varied": [costs.chain(c) for c in varied],
    }
    start = time.perf_counter()
    table = build_table(
        costs.distinct(), calibration, input_size=options.input_size, space=options.space, out=options.table, **shared
    )
    build_s = time.perf_counter() - start
    check = check_table(table, held_out, **shared)
    if options.plot is not None:
        check.plot(options.plot)
    if options.table is not None:
        check.table.save(options.table)
    figures = check.figures()
    result = {
        "space": options.space,
        "input_size": options.input_size,
        "backend": options.backend,
        "dtype": table.header.dtype,
        "device": table.header.device,
        "raw": figures["together"]["raw"],
        "calibrated": figures["together"]["calibrated"],
        "groups": {name: figures[name] for name in held_out},
        "range_ms": [min(check.measured_ms), max(check.measured_ms)],
        "drift": check.drift,
        "load_average": table.header.load_average,
        "operators": len(table.entries),
        "rounds": table.header.repeats,
        "build_s": build_s,
    }
    if options.learned_nets:
        nets = [costs.chain(choices) for choices in costs.random_choices(options.learned_nets, seed=4)]
        start = time.perf_counter()
        measured = [figure.settled_ms for figure in measure_nets(nets, **shared)]
        model = predictor.fit(nets, measured, header=table.header)
        result["learned"] = {**model.figures["test"], "nets": len(nets), "measure_s": time.perf_counter() - start}
    return result


if __name__ == "__main__":
    main()
