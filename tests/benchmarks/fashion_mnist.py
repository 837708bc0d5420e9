"""What `examples/fashion_mnist.yml` finds on Fashion-MNIST, beside random subnets as fast as it and uniform nets.

The search runs as the example says, from no table to the ONNX file. Then 20 subnets, drawn uniformly from those that
the export could have been (within the target, using all but the slack of it), and the nets of one candidate throughout
are trained by the same recipe with the same seed. The found subnet is trained with two further seeds: their deviation
is the noise of every figure. Every training reads the 10,000 test images once, after its last epoch. All networks are
measured on ONNX Runtime in one shuffled run. Trainings are kept as they come: started again, it goes on.

    .venv/bin/python -m tests.benchmarks.fashion_mnist --data ROOT [--rules gradient] [--jobs 2] [--random 20]

ROOT holds Fashion-MNIST's four idx files (torchvision's download, or /usr/share/datasets/fashion-mnist of Debian's
`dataset-fashion-mnist`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from functools import cache
from pathlib import Path
from typing import Any

import timm

from hardware.files import write_atomically
from hardware.measuring.nets import measure_nets
from hardware.model import CostModel, LatencyModel, macs_model, params_model
from hardware.tables.table import LatencyTable
from proxyless_strategy.config import SearchConfig, load_config
from proxyless_strategy.data.sources import load_data
from proxyless_strategy.retraining.trainer import train
from proxyless_strategy.runs.search import run_search
from proxyless_strategy.strategy.derivation import SLACK
from search_spaces import Subnet, get_space

from .pool import origin, run_jobs
from .search_quality import UNIFORM

EXAMPLE = Path(__file__).parents[2] / "examples" / "fashion_mnist_search.yml"
RESULT = Path(__file__).with_name("data") / "fashion_mnist.json"
SEEDS = 3
"""Trainings of a found subnet."""


def example(root: Path, rule: str, out: Path) -> SearchConfig:
    """Read the example with its images here, and a table of its own."""
    values = {"data.root": str(root), "data.options": {"download": False}, "rule": rule}
    return load_config(EXAMPLE, {**values, "out": str(out / rule), "hardware.table": str(out / "table.yml")})


def searched(config: SearchConfig, out: Path) -> dict[str, Any]:
    """Return the search's own row; it is run once."""
    kept = out / f"{config.rule}.json"
    if not kept.exists():
        start = time.monotonic()
        result = run_search(config, on_epoch=lambda row: print(row, flush=True))
        row = {
            "choices": dict(result.subnet.choices),
            "accuracy": result.accuracy,
            "target_ms": result.target_ms,
            "onnx": result.onnx.name,
            "minutes": round((time.monotonic() - start) / 60, 2),
        }
        write_atomically(kept, json.dumps(row))
    return json.loads(kept.read_text(encoding="utf-8"))


def equals(model: CostModel, target: float, count: int, *, seed: int = 1) -> list[dict[str, str]]:
    """Draw subnets uniformly from those within the target that leave no more than the slack of it unused."""
    costs = get_space("small_mbconv").costs(28, num_classes=10, in_chans=1)
    found: list[dict[str, str]] = []
    for choices in costs.random_choices(5_000, seed=seed, vary_depth=False):
        if (1 - SLACK) * target <= model.cost(choices) <= target:
            found.append(dict(choices))
        if len(found) == count:
            return found
    raise SystemExit(f"only {len(found)} of {count} random subnets are as fast as {target:.4g} ms; ask for fewer")


@cache
def _data(root: Path) -> Any:
    config = example(root, "gradient", Path("."))
    return load_data(config.data, input_size=config.input_size, seed=config.seed)


def _train(job: tuple[Path, dict[str, str], int]) -> tuple[dict[str, str], int, float]:
    root, choices, seed = job
    config = example(root, "gradient", Path("."))
    subnet = Subnet(get_space("small_mbconv"), choices)
    assert config.retrain is not None
    result = train(
        lambda: timm.create_model(subnet.timm_name, **subnet.model_args(num_classes=10, in_chans=1)),
        _data(root),
        config.retrain,
        seed=seed,
    )
    return choices, seed, result.test_accuracy


def trained(nets: list[tuple[dict[str, str], int]], root: Path, jobs: int, kept: Path) -> dict[str, dict[str, float]]:
    """Train what is not kept yet; return test accuracies in 0..1 by a subnet's candidates and by seed."""
    done: dict[str, dict[str, float]] = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {}
    missing = [(root, choices, seed) for choices, seed in nets if str(seed) not in done.get(key_of(choices), {})]
    for (choices, seed, accuracy), progress in run_jobs(_train, missing, jobs):
        done.setdefault(key_of(choices), {})[str(seed)] = accuracy
        write_atomically(kept, json.dumps(done))
        print(f"{progress}: {key_of(choices)}, seed {seed}: {accuracy:.4f}", flush=True)
    return done


def key_of(choices: dict[str, str]) -> str:
    """Return a subnet's candidates in order."""
    return " ".join(choices.values())


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare the found networks, by the mean of their seeds, with the random ones of one seed each.

    `error` is the standard error of the difference: `sqrt(s_random^2 / n + s_found^2 / m)`.
    """
    random = [row["accuracies"][0] for row in rows if row["network"].startswith("random")]
    mean, deviation = statistics.fmean(random), statistics.stdev(random)
    found = {}
    for row in rows:
        if not row["network"].startswith("found"):
            continue
        own = row["accuracies"]
        own_mean = statistics.fmean(own)
        error = (deviation**2 / len(random) + statistics.variance(own) / len(own)) ** 0.5
        found[row["network"]] = {
            "mean": round(own_mean, 5),
            "standard_deviation": round(statistics.stdev(own), 5),
            "points_over_random_mean": round(100 * (own_mean - mean), 3),
            "error": round(100 * error, 3),
            "better_than": round(sum(a < own_mean for a in random) / len(random), 3),
        }
    return {
        "random_mean": round(mean, 5),
        "random_standard_deviation": round(deviation, 5),
        "random_best": round(max(random), 5),
        "found": found,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT")
    parser.add_argument("--rules", nargs="+", choices=("gradient", "reinforce"), default=["gradient", "reinforce"])
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--random", type=int, default=20)
    parser.add_argument(
        "--out", type=Path, default=Path("runs/fashion_mnist_benchmark"), help="where networks are kept"
    )
    arguments = parser.parse_args()
    out, root = arguments.out, arguments.data
    out.mkdir(parents=True, exist_ok=True)
    seed = example(root, "gradient", out).seed
    searches = {rule: searched(example(root, rule, out), out) for rule in arguments.rules}
    nets = [(f"found, {rule}", search["choices"]) for rule, search in searches.items()]
    table = LatencyTable.load(out / "table.yml")
    space = get_space("small_mbconv")
    costs = space.costs(28, num_classes=10, in_chans=1)
    latency = LatencyModel(table, fixed=costs.fixed, edges=costs.edges)
    target = searches[arguments.rules[0]]["target_ms"]
    others = [(f"random {n}", c) for n, c in enumerate(equals(latency, target, arguments.random), start=1)]
    others += [(f"all {name}", dict.fromkeys(space.candidates(), name)) for name in UNIFORM]
    further = [(choices, seed + n) for _, choices in nets for n in range(1, SEEDS)]
    done = trained([*further, *((choices, seed) for _, choices in others)], root, arguments.jobs, out / "trained.json")
    for search in searches.values():  # its own training was the first
        done.setdefault(key_of(search["choices"]), {})[str(seed)] = search["accuracy"]
    nets += others
    chains = [costs.chain(choices) for _, choices in nets]
    shared = {"batch": table.header.batch, "threads": table.header.threads, "table": table, "progress": False}
    figures = measure_nets(chains, backend=table.header.backend, **shared)
    models = [macs_model(costs.fixed, costs.edges), params_model(costs.fixed, costs.edges)]
    rows = [
        {
            "network": name,
            "accuracies": [round(value, 5) for _, value in sorted(done[key_of(choices)].items())],
            "table_ms": round(latency.latency(choices), 5),
            "measured_ms": round(figure.settled_ms, 5),
            "macs_m": round(models[0].cost(choices), 4),
            "params_m": round(models[1].cost(choices), 5),
            "subnet": key_of(choices),
        }
        for (name, choices), figure in zip(nets, figures, strict=True)
    ]
    config = example(root, "gradient", out)
    assert config.retrain is not None
    result = {
        **origin(f"python -m tests.benchmarks.fashion_mnist --data ROOT --rules {' '.join(arguments.rules)}"),
        "target_ms": round(target, 5),
        "minutes": {rule: row["minutes"] for rule, row in searches.items()},
        "epochs": [config.search.warmup_epochs, config.search.epochs, config.retrain.epochs],
        **summary(rows),
        "rows": rows,
    }
    RESULT.parent.mkdir(exist_ok=True)
    write_atomically(RESULT, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
