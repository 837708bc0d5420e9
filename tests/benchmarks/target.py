"""Does E[LAT] land on its target, and is the derived subnet as good as the best one within it?

No weights: each candidate adds a fixed cost to the loss that falls with its size, so that the task alone would choose
the largest operators, and the best subnet within any target is known exactly (a knapsack, solved by milp). The search
runs the project's own supernet, gates, updates, controller and derivation on the Pixel 1 table's latencies.

    .venv/bin/python -m tests.benchmarks.target [--steps 2000] [--rules gradient reinforce] [--estimator paper]
"""

from __future__ import annotations

import argparse
import json
import time
from collections import OrderedDict

import numpy as np
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from torch import nn

from hardware.model import LatencyModel
from hardware.operators.primitives import macs
from hardware.tables.table import LatencyTable
from proxyless_strategy.strategy.architecture import Edge
from proxyless_strategy.strategy.derivation import Deriver
from proxyless_strategy.strategy.objectives import TargetController
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from proxyless_strategy.strategy.rules import (
    GradientUpdate,
    Problem,
    ReinforceUpdate,
    alpha_optimizer,
    apply_outcome,
    derived_learning_rate,
)
from search_spaces import get_space

FRACTIONS = [0.05 + 0.1 * index for index in range(10)]


class AddCost(nn.Module):
    """Adds its cost to a scalar loss."""

    def __init__(self, cost: float):
        super().__init__()
        self.cost = cost

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.cost


class Synthetic(ModelSpace):
    """A chain of edges whose candidates add fixed costs; its output is the task loss."""

    def __init__(self, costs: dict[str, dict[str, float]]):
        super().__init__()
        layers = [
            LayerChoice(OrderedDict((name, AddCost(cost)) for name, cost in options.items()), label=label)
            for label, options in costs.items()
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def synthetic_costs(edges, seed: int) -> dict[str, dict[str, float]]:
    """Draw the loss of each candidate: a larger operator is better, with diminishing returns; edges differ."""
    generator = np.random.default_rng(seed)
    costs = {}
    for label, options in edges.items():
        importance = generator.uniform(0.02, 0.1)
        size = {name: macs(op) / 1e6 for name, op in options.items()}
        largest = max(size.values())
        costs[label] = {
            name: importance * (1 - (value / largest) ** 0.5 + 0.1 * generator.uniform())
            for name, value in size.items()
        }
    return costs


def search(strategy: ProxylessStrategy, network: nn.Module, rule: str, steps: int, estimator: str) -> Problem:
    """Take architecture steps alone; alpha's rate is as a search derives it."""
    costs, fixed = strategy.cost_matrix()
    architecture = strategy.architecture
    problem = Problem(
        strategy.paths_of_space, architecture, costs, fixed, TargetController(strategy.target), strategy.options.seed
    )
    update = GradientUpdate(estimator=estimator) if rule == "gradient" else ReinforceUpdate(samples=10)
    dense = rule == "gradient" and estimator == "unbiased"
    rate = derived_learning_rate(rule, steps, architecture.alpha.shape[1], dense=dense)
    optimizer = alpha_optimizer(architecture, rate)

    def task() -> torch.Tensor:
        loss = network(torch.zeros((), dtype=torch.float64))
        return loss if rule == "gradient" else 1 - loss

    problem.objective.plan(steps)
    for step in range(steps):
        outcome = update.compute(problem, task, step, scale=None)
        apply_outcome(architecture, optimizer, outcome)
        problem.objective.update(outcome.expected)
    return problem


def run(rules: list[str], steps: int, estimator: str, seed: int) -> list[dict]:
    """Return one row per rule and target."""
    table = LatencyTable.load("hardware/tables/pixel1.yml")
    space = get_space("imagenet_mbconv").costs(224)
    latency = LatencyModel(table, fixed=space.fixed, edges=space.edges)
    costs = synthetic_costs(space.edges, seed)
    loss = np.zeros_like(latency.costs)
    for row, options in enumerate(costs.values()):
        loss[row, : len(options)] = list(options.values())
    edges = [Edge(label, names) for label, names in zip(latency.labels, latency.candidates, strict=True)]
    best = Deriver(edges, np.where(latency.mask, -loss, -np.inf), latency.costs, latency.fixed)
    span = sum(max(o.values()) for o in costs.values()) - sum(min(o.values()) for o in costs.values())
    rows = []
    for rule in rules:
        for fraction in FRACTIONS:
            strategy = ProxylessStrategy(rule=rule, cost=latency, target_share=fraction, seed=seed)
            network = strategy.mutate_model(Synthetic(costs))
            start = time.process_time()
            problem = search(strategy, network, rule, steps, estimator)
            p = problem.architecture.probabilities()
            expected = problem.fixed + problem.architecture.expected_cost(p, problem.costs)
            log_p = np.log(np.where(latency.mask, p.numpy(), 1.0).clip(1e-300))
            deriver = Deriver(edges, np.where(latency.mask, log_p, -np.inf), latency.costs, latency.fixed)
            derived = deriver.within(strategy.target, slack=strategy.options.slack)
            plain = deriver.within(strategy.target)
            optimum = -best.within(strategy.target).log_probability
            of = {name: sum(loss[r, c] for r, c in enumerate(d.choice)) for name, d in (("d", derived), ("p", plain))}
            rows.append(
                {
                    "rule": rule,
                    "target_ms": round(strategy.target, 4),
                    "expected_ms": round(expected, 4),
                    "table_ms": round(derived.cost, 4),
                    "loss_gap": round(float(of["d"] - optimum) / span, 5),
                    "loss_gap_no_slack": round(float(of["p"] - optimum) / span, 5),
                    "off": round(expected / strategy.target - 1, 5),
                    "seconds": round(time.process_time() - start, 2),
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rules", nargs="+", default=["gradient", "reinforce"])
    parser.add_argument("--estimator", default="paper", choices=["paper", "unbiased"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rows = run(arguments.rules, arguments.steps, arguments.estimator, arguments.seed)
    worst = {"off": max(abs(row["off"]) for row in rows), "loss_gap": max(row["loss_gap"] for row in rows)}
    print(json.dumps({"rows": rows, "worst": worst, "steps": arguments.steps, "estimator": arguments.estimator}))


if __name__ == "__main__":
    main()
