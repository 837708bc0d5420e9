"""Every subnet of a small space trained stand-alone on Fashion-MNIST: the truth that searches are judged by.

The space has 3 edges of 6, 7 and 6 candidates, 252 subnets: blocks that work at 14 and 7, at 7, and at 7 and 4 px, so
that a larger kernel is not worth the same everywhere. Each one is trained from fresh weights with 4 seeds by one fixed
recipe, on the images that a search would have for its weights and its architecture together, and judged on 20,000 other
images of Fashion-MNIST's training file; its test file is never read. Latencies are those of a measured and calibrated
table, which lies beside the result. Rows are kept as they come: started again, it goes on.

    .venv/bin/python -m tests.benchmarks.enumerated_truth --data ROOT [--jobs 2] [--out FILE]

ROOT holds Fashion-MNIST's four idx files (torchvision's download, or /usr/share/datasets/fashion-mnist of Debian's
`dataset-fashion-mnist`).
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch.utils.data import TensorDataset

from hardware.files import write_atomically
from hardware.measuring.table import build_table
from hardware.model import LatencyModel
from hardware.operators.primitives import macs
from hardware.tables.table import LatencyTable
from proxyless_strategy.config import DataConfig, RetrainSettings
from proxyless_strategy.data.images import ImageData
from proxyless_strategy.data.sources import load_data
from proxyless_strategy.retraining import trainer
from search_spaces import Subnet
from search_spaces.mbconv import MBConvDeclaration, Stage

from .pool import origin, run_jobs

DATA = Path(__file__).with_name("data")
TRUTH = DATA / "enumerated_truth.json"
TABLE = DATA / "enumerated_truth_table.yml"
SPACE = MBConvDeclaration("truth_mbconv", 8, 2, 8, (Stage(16, 2, 2), Stage(32, 1, 2)), head_width=64)
INPUT_SIZE = 28
WEIGHTS, ARCHITECTURE, HELD_OUT = 14_000, 6_000, 20_000
RECIPE = RetrainSettings(epochs=2, batch_size=128, learning_rate=0.2, ema_decay=None, label_smoothing=0.0)
SEEDS = 4
FRACTIONS = (0.25, 0.5, 0.75)
"""Latency targets, of the way from the fastest to the slowest subnet."""


def parts(root: Path, held_out: int = HELD_OUT) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """Return weight, architecture and held-out images, all of Fashion-MNIST's training file."""
    whole = load_data(DataConfig(name="torchvision:FashionMNIST", root=root), input_size=INPUT_SIZE, seed=0)
    pixels, labels = (getattr(whole.training, name) for name in ("images", "labels"))
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(pixels)))
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (whole.mean, whole.std))
    images = pixels.float().div(255).sub(mean).div(std)
    bounds = np.cumsum([0, WEIGHTS, ARCHITECTURE, held_out])
    chosen = [order[start:end] for start, end in itertools.pairwise(bounds)]
    weights, architecture, test = (TensorDataset(images[part], labels[part]) for part in chosen)
    return weights, architecture, test


@cache
def data(root: Path) -> ImageData:
    """Return the same as a search's data; its test part is the held-out one."""
    config = DataConfig(name=f"{__name__ if __name__ != '__main__' else 'tests.benchmarks.enumerated_truth'}:parts")
    return load_data(config.model_copy(update={"root": root}), input_size=INPUT_SIZE, seed=0)


def subnets() -> Iterator[Subnet]:
    """Yield all subnets, in the order of the candidates."""
    candidates = SPACE.candidates()
    for choice in itertools.product(*candidates.values()):
        yield Subnet(SPACE, dict(zip(candidates, choice, strict=True)))


def name_of(choices: dict[str, str]) -> str:
    """Return a subnet's name in the truth."""
    return " ".join(choices[label] for label in SPACE.candidates())


def subnet_of(name: str) -> Subnet:
    """Return the subnet of a name in the truth."""
    return Subnet(SPACE, dict(zip(SPACE.candidates(), name.split(), strict=True)))


def latency_model(table: Path = TABLE) -> LatencyModel:
    """Return the calibrated latency of the space's choices."""
    costs = SPACE.costs(INPUT_SIZE, num_classes=10, in_chans=1)
    return LatencyModel(LatencyTable.load(table), fixed=costs.fixed, edges=costs.edges)


def measure_table(out: Path) -> None:
    """Measure the table on this machine."""
    costs = SPACE.costs(INPUT_SIZE, num_classes=10, in_chans=1)
    nets = [costs.chain(choices) for choices in costs.random_choices(24, seed=0)]
    build_table(costs.distinct(), nets, input_size=INPUT_SIZE, space=SPACE.name, out=out, progress=False)


def train(subnet: Subnet, root: Path, seed: int) -> tuple[float, float]:
    """Train a subnet stand-alone on one thread; return its held-out accuracy in 0..1 and the CPU seconds."""
    start = time.process_time()
    result = trainer.train(
        lambda: timm.create_model("proxylessnas", **subnet.model_args(num_classes=10, in_chans=1)),
        data(root),
        RECIPE,
        seed=seed,
    )
    return result.test_accuracy, time.process_time() - start


def _job(arguments: tuple[str, Path, int]) -> tuple[str, int, float, float]:
    name, root, seed = arguments
    accuracy, seconds = train(subnet_of(name), root, seed)
    return name, seed, accuracy, seconds


def fill(rows: dict[str, dict[str, Any]], wanted: list[tuple[str, int]], root: Path, jobs: int, out: Path) -> None:
    """Train what is missing, and keep each result as it comes."""
    missing = [(name, root, seed) for name, seed in wanted if str(seed) not in rows[name]["accuracies"]]
    print(f"{len(missing)} of {len(wanted)} trainings to do", flush=True)
    for done, ((name, seed, accuracy, seconds), progress) in enumerate(run_jobs(_job, missing, jobs), start=1):
        rows[name]["accuracies"][str(seed)] = round(accuracy, 6)
        rows[name]["cpu_seconds"] = round(seconds, 2)
        if done % 10 == 0 or done == len(missing):
            save(rows, out)
            print(progress, flush=True)


def targets(latencies: Iterable[float]) -> list[float]:
    """Return latency targets in ms, from the latencies of all subnets."""
    values = list(latencies)
    low, high = min(values), max(values)
    return [round(low + fraction * (high - low), 6) for fraction in FRACTIONS]


def save(rows: dict[str, dict[str, Any]], out: Path) -> None:
    """Write the truth so far."""
    record = {
        **origin("python -m tests.benchmarks.enumerated_truth --data ROOT"),
        "versions": {"torch": torch.__version__, "timm": timm.__version__, "python": platform.python_version()},
        "recipe": RECIPE.model_dump(),
        "images": {"weights": WEIGHTS, "architecture": ARCHITECTURE, "held_out": HELD_OUT},
        "noise": noise(rows),
        "rows": rows,
    }
    write_atomically(out, json.dumps(record, indent=1) + "\n")


def noise(rows: dict[str, dict[str, Any]]) -> float:
    """Return the seed-to-seed standard deviation of an accuracy, pooled over subnets: `sqrt(mean of variances)`."""
    values = [list(row["accuracies"].values()) for row in rows.values() if len(row["accuracies"]) > 1]
    return round(statistics.fmean(statistics.variance(v) for v in values) ** 0.5, 6) if values else float("nan")


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Summarise what the truth looks like."""
    means = {name: statistics.fmean(row["accuracies"].values()) for name, row in rows.items()}
    ms = np.array([rows[name]["table_ms"] for name in means])
    accuracy = np.array(list(means.values()))
    best = max(means, key=lambda name: means[name])
    return {
        "subnets": len(rows),
        "trainings": sum(len(row["accuracies"]) for row in rows.values()),
        "noise": noise(rows),
        "spread": round(float(accuracy.std()), 5),
        "accuracy": [round(float(v), 5) for v in (accuracy.min(), np.median(accuracy), accuracy.max())],
        "table_ms": [round(float(v), 5) for v in (ms.min(), np.median(ms), ms.max())],
        "correlation_with_latency": round(float(np.corrcoef(ms, accuracy)[0, 1]), 3),
        "correlation_with_macs": round(
            float(np.corrcoef([rows[name]["macs"] for name in means], accuracy)[0, 1]),
            3,
        ),
        "best": best,
        "cpu_seconds": round(statistics.median(row["cpu_seconds"] for row in rows.values()), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=TRUTH)
    parser.add_argument("--table", type=Path, default=TABLE)
    arguments = parser.parse_args()
    for path in (arguments.out, arguments.table):
        path.parent.mkdir(parents=True, exist_ok=True)
    if not arguments.table.exists():
        measure_table(arguments.table)
    latency = latency_model(arguments.table)
    rows: dict[str, dict[str, Any]] = json.loads(arguments.out.read_text())["rows"] if arguments.out.exists() else {}
    costs = SPACE.costs(INPUT_SIZE, num_classes=10, in_chans=1)
    for subnet in subnets():
        choices = dict(subnet.choices)
        row = rows.setdefault(name_of(choices), {"accuracies": {}})
        row["table_ms"] = round(latency.latency(choices), 6)
        row["macs"] = sum(macs(op) for op in costs.chain(choices))
    fill(rows, [(name, seed) for seed in range(SEEDS) for name in rows], arguments.data, arguments.jobs, arguments.out)
    print(json.dumps(summary(rows)))


if __name__ == "__main__":
    main()
