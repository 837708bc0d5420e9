"""What exact sums of int8 cost on this CPU: an int8 net as every session here runs it, beside ONNX Runtime's default.

    .venv/bin/python -m tests.benchmarks.exact_int8 [--space imagenet_mbconv] [--input-size 224] [--nets 5]

Each random net is timed both ways in interleaved rounds on one thread; `error` is the default's distance from the exact
outputs on random images, by their deviation: 0 on a CPU with VNNI, which adds exactly anyway. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np

from hardware.backends.base import cpu_name, seconds_per_run
from hardware.measuring.sampling import Measurement, Plan, interleaved
from hardware.onnx_runtime import import_onnxruntime, session_options
from hardware.operators.quantised import quantised_chain
from search_spaces import get_space

PLAN = Plan(rounds=60, minimum_rounds=10, seconds=30.0)


def run(space: str, size: int, nets: int, plan: Plan = PLAN) -> dict[str, Any]:
    """Time the nets, and compare what they compute."""
    costs = get_space(space).costs(size)
    sessions: dict[tuple[int, str], Any] = {}
    for number, choices in enumerate(costs.random_choices(nets, seed=0)):
        model = quantised_chain(costs.chain(choices), seed=number).SerializeToString()
        for way in ("exact", "default"):
            sessions[number, way] = _session(model, exact=way == "exact")
    image = np.random.default_rng(0).standard_normal((1, *costs.input_shape), dtype=np.float32)
    name = sessions[0, "exact"].get_inputs()[0].name
    timers = {key: _timer(session, {name: image}) for key, session in sessions.items()}
    ms = {key: Measurement.of(samples).ms for key, samples in interleaved(timers, plan=plan).items()}
    outputs = {key: session.run(None, {name: image})[0] for key, session in sessions.items()}
    each = [
        {
            "exact_ms": round(ms[number, "exact"], 3),
            "default_ms": round(ms[number, "default"], 3),
            "ratio": round(ms[number, "exact"] / ms[number, "default"], 3),
            "error": round(_error(outputs[number, "default"], outputs[number, "exact"]), 4),
        }
        for number in range(nets)
    ]
    middle = {key: round(statistics.median(net[key] for net in each), 4) for key in ("ratio", "error")}
    return {"device": cpu_name(), "space": space, "input_size": size, "nets": each, "median": middle}


def _session(model: bytes, *, exact: bool) -> Any:
    runtime = import_onnxruntime()
    options = session_options(1) if exact else runtime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _timer(session: Any, feed: dict[str, np.ndarray]) -> Callable[[int], float]:
    return lambda repeats: seconds_per_run(lambda: session.run(None, feed), repeats=repeats, cpu_time=True)


def _error(found: np.ndarray, exact: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found.astype(np.float64) - exact) ** 2)) / exact.std())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="imagenet_mbconv")
    parser.add_argument("--input-size", type=int, default=224)
    parser.add_argument("--nets", type=int, default=5)
    arguments = parser.parse_args()
    print(json.dumps(run(arguments.space, arguments.input_size, arguments.nets)))


if __name__ == "__main__":
    main()
