"""The tree-structured cell space: its published network, what searching 648 edges costs, and a search on Fashion-MNIST.

Without arguments: parameters and multiply-accumulates of the published network, and the overhead of the search
machinery, which is the time of a step outside the candidates' and the network's own forward and backward passes. Steps
of the supernet and of the stand-alone network of the same choices are timed in the same rounds of one run, in shuffled
order, and compared pair by pair:

- `weight`: a whole weight step (draw, run, optimise) over the stand-alone network's step, less 1;
- `gradient`, `reinforce`: an architecture step; its own passes are those of the stand-alone network, and of each
  measured candidate once more (gradient), or the sampled networks' forward passes (reinforce), timed beside it;
- `gradient beside its products`: the same over those passes and the rule's own arithmetic, `<dL/dy, o_a - o_b>` of each
  edge, in the fewest operations that compute it: what is left is drawing, gating, hooks and alpha's step.

The Fashion-MNIST rows are those of the last committed run, with its date and machine:

    .venv/bin/python -m tests.benchmarks.tree_cell
    .venv/bin/python -m tests.benchmarks.tree_cell --fashion-mnist ROOT    # searches, derives, retrains: 20 min.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn
from torch.nn import functional

from hardware.backends.base import cpu_name
from hardware.files import write_atomically
from hardware.model import macs_model, params_model
from proxyless_strategy.config import DataConfig, SearchConfig, parse_config
from proxyless_strategy.data.datasets import TensorImages
from proxyless_strategy.data.images import ImageData
from proxyless_strategy.data.sources import load_data
from proxyless_strategy.export.summary import model_summary
from proxyless_strategy.retraining.trainer import train
from proxyless_strategy.runs.search import run_search
from proxyless_strategy.strategy import gates
from proxyless_strategy.strategy.objectives import AccuracyOnly
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from proxyless_strategy.strategy.rules import GradientUpdate, Problem, ReinforceUpdate, alpha_optimizer, apply_outcome
from proxyless_strategy.strategy.supernet.capture import Captures
from proxyless_strategy.strategy.supernet.step_mode import ArchitectureStepMode
from search_spaces import Subnet, TreeCellDeclaration, get_space
from search_spaces.tree_cell_net import assemble, candidate

from .step_cost import sgd

RESULT = Path(__file__).with_name("tree_cell_fashion_mnist.json")
SPACE = {"blocks": 2, "stem_width": 4, "alpha": 8, "bottleneck": 2}
TRAIN, TEST, SIZE = 2000, 2000, 32
RANDOM_CELLS = 5
WEIGHT_DECAY = 1e-4


def fashion_mnist(root: Path) -> ImageData:
    """Load the first `TRAIN` and `TEST` images at 32 px with 3 channels; a third of the training images moves alpha."""
    config = DataConfig(name="torchvision:FashionMNIST", root=root, options={"channels": 3}, augment="crop_flip")
    data = load_data(config, input_size=SIZE, seed=0)
    parts: dict[str, Any] = {}
    for name, count in (("weights", TRAIN), ("architecture", TRAIN), ("training", TRAIN), ("test", TEST)):
        part = getattr(data, name)
        assert isinstance(part, TensorImages)
        parts[name] = replace(part, indices=part.indices[part.indices < count])
    return replace(data, **parts)


def fashion_config(root: Path, out: Path) -> SearchConfig:
    """Return the search: gradient rule, on the mean cost of the space."""
    costs = get_space("cifar_tree", **SPACE).costs(SIZE)
    model = macs_model(costs.fixed, costs.edges)
    mean = model.expected(np.full(model.costs.shape, 1 / model.costs.shape[1]))
    return parse_config(
        {
            "space": {"name": "cifar_tree", "options": SPACE},
            "input_size": SIZE,
            "data": {"name": "tests.benchmarks.tree_cell:fashion_mnist", "root": str(root)},
            "hardware": {"cost": "macs", "device": "other"},
            "target_cost": float(mean),
            "search": {
                "warmup_epochs": 2,
                "epochs": 7,
                "steps_per_update": 1,
                "learning_rate": 0.1,
                "weight_decay": WEIGHT_DECAY,
                "label_smoothing": 0.0,
                "channels_last": True,
            },
            "retrain": {
                "epochs": 6,
                "learning_rate": 0.1,
                "weight_decay": WEIGHT_DECAY,
                "label_smoothing": 0.0,
                "ema_decay": None,
                "channels_last": True,
            },
            "out": str(out),
        }
    )


def random_cells(derived: Subnet, count: int, *, seed: int = 1, macs: float = 0.02, params: float = 0.04) -> list[Any]:
    """Draw subnets whose MACs and parameters are within these shares of the derived one's."""
    costs = derived.declaration.costs(SIZE)
    limits = [(macs_model(costs.fixed, costs.edges), macs), (params_model(costs.fixed, costs.edges), params)]
    found: list[Any] = []
    for choices in costs.random_choices(20_000, seed=seed, vary_depth=False):
        if all(abs(m.cost(choices) / m.cost(derived.choices) - 1) <= share for m, share in limits):
            found.append(Subnet(derived.declaration, choices))
        if len(found) == count:
            return found
    raise SystemExit(f"only {len(found)} of {count} random cells are as large as the derived ones; widen the limits")


def run_fashion_mnist(root: Path) -> dict[str, Any]:
    """Search, derive, retrain; then retrain the random cells alike."""
    started, cpu = time.monotonic(), time.process_time()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = fashion_config(root, Path(folder))
        result = run_search(config, on_epoch=lambda row: print(row, flush=True))
        record = json.loads((Path(folder) / "search.json").read_text(encoding="utf-8"))
    data = fashion_mnist(root)
    assert config.retrain is not None
    costs = result.subnet.declaration.costs(SIZE)
    sizes = {"macs_m": macs_model(costs.fixed, costs.edges), "params_m": params_model(costs.fixed, costs.edges)}

    def row(name: str, subnet: Subnet, accuracy: float) -> dict[str, Any]:
        size = {key: round(model.cost(subnet.choices), 4) for key, model in sizes.items()}
        return {"cells": name, "accuracy": round(accuracy, 4), **size, "arch": subnet.model_args()["arch"]}

    assert result.accuracy is not None
    rows = [row("derived", result.subnet, result.accuracy)]
    print(rows[-1], flush=True)
    for number, subnet in enumerate(random_cells(result.subnet, RANDOM_CELLS), start=1):
        trained = train(
            lambda subnet=subnet: timm.create_model(subnet.timm_name, **subnet.model_args()),
            data,
            config.retrain,
            seed=config.seed,
        )
        rows.append(row(f"random {number}", subnet, trained.test_accuracy))
        print(rows[-1], flush=True)
    others = [r["accuracy"] for r in rows[1:]]
    return {
        "date": datetime.date.today().isoformat(),
        "machine": cpu_name(),
        "threads": 1,
        "space": {"name": "cifar_tree", **SPACE, "edges": len(costs.edges)},
        "images": {"training": TRAIN, "test": TEST, "size": SIZE, "channels": 3},
        "search_epochs": [config.search.warmup_epochs, config.search.epochs],
        "retrain_epochs": config.retrain.epochs,
        "entropy": record["history"][-1]["entropy"],
        "rows": rows,
        "derived_less_mean_of_random": round(rows[0]["accuracy"] - statistics.mean(others), 4),
        "random_standard_deviation": round(statistics.stdev(others), 4),
        "core_minutes": round((time.process_time() - cpu) / 60, 1),
        "minutes": round((time.monotonic() - started) / 60, 1),
    }


class Product(torch.autograd.Function):
    """Passes `o_a` on and computes `<dL/dy, o_a - o_b>`, which it drops."""

    @staticmethod
    def forward(ctx: Any, active: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        ctx.difference = active - other
        return active.view_as(active)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        torch.dot(gradients[0].reshape(-1), ctx.difference.reshape(-1))
        return gradients[0], None


class Pair(nn.Module):
    """An edge as an architecture step computes it: one candidate with its graph, another one for its output alone."""

    def __init__(self, active: str, other: str, width: int, products: bool):
        super().__init__()
        self.active, self.other = candidate(active, width), candidate(other, width)
        self.products = products

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.active(x)
        with torch.no_grad():
            other = self.other(x)
        return Product.apply(output, other) if self.products else output


class PairNet(nn.Module):
    """The network's and the candidates' own part of an architecture step, without any search machinery."""

    def __init__(
        self, space: TreeCellDeclaration, active: dict[str, str], other: dict[str, str], *, products: bool = False
    ):
        super().__init__()
        assemble(
            self,
            lambda label, width: Pair(active[label], other[label], width, products),
            **space.shape(),
            num_classes=10,
            in_chans=3,
        )
        quieten(self.train())
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv_stem(x)).requires_grad_()
        return self.classifier(self.global_pool(self.norm(self.stages(x))))


class Steps:
    """The steps of a search over `cifar_tree` and of stand-alone networks, on one batch.

    Args:
        size: Side of an image.
        batch: Images.
        samples: Subnets of a REINFORCE step.
        seed: Seed of weights, images and choices.
        device: Where they run.
        recorder: Records candidates for `captured`; None: there is none.
    """

    def __init__(
        self, *, size: int, batch: int, samples: int = 2, seed: int = 0, device: str = "cpu", recorder: Any = None
    ):
        torch.manual_seed(seed)
        self.space = get_space("cifar_tree")
        self.x, self.y = torch.randn(batch, 3, size, size).to(device), torch.randint(0, 10, (batch,)).to(device)
        self.strategy = ProxylessStrategy(seed=seed)
        self.network = self.strategy.mutate_model(self.space.build()).to(device).train()
        assert self.strategy.architecture is not None
        self.architecture = self.strategy.architecture
        costs, fixed = self.strategy.cost_matrix()
        self.supernet = self.strategy.paths_of_space
        self.problem = Problem(self.supernet, self.architecture, costs, fixed, AccuracyOnly(), seed)
        self.weights = sgd(self.network, weight_decay=WEIGHT_DECAY)
        self.alpha = alpha_optimizer(self.architecture, 1e-6)
        self.mode = ArchitectureStepMode(self.network)
        self.captures = None if recorder is None else Captures(recorder)
        self.rules: dict[str, Any] = {"gradient": GradientUpdate(), "reinforce": ReinforceUpdate(samples=samples)}

    def loss(self, model: nn.Module) -> torch.Tensor:
        return functional.cross_entropy(model(self.x), self.y)

    def accuracy(self, model: nn.Module) -> torch.Tensor:
        return (model(self.x).argmax(-1) == self.y).float().mean()

    def named(self, indices: torch.Tensor) -> dict[str, str]:
        return {label: str(name) for label, name in self.architecture.export(indices).items()}

    def draw(self, number: int) -> torch.Tensor:
        """Return the path of weight step `number`."""
        shape = tuple(self.architecture.alpha.shape)
        u = gates.uniforms(self.problem.seed, gates.Phase.WEIGHTS, number, shape)
        return gates.sample_paths(self.architecture.host_alpha(), self.architecture.host_mask, u)

    def standalone(self, choices: dict[str, str]) -> nn.Module:
        subnet = Subnet(self.space, choices)
        return timm.create_model(subnet.timm_name, **subnet.model_args()).train()

    def weight(self, number: int) -> None:
        paths = self.draw(number).tolist()
        self.weights.zero_grad(set_to_none=True)
        with self.supernet.running(paths):
            self.loss(self.network).backward()
        self.weights.step()

    def architecture_step(self, rule: str, number: int) -> None:
        task = self.loss if rule == "gradient" else self.accuracy
        with self.mode.active():
            outcome = self.rules[rule].compute(self.problem, lambda: task(self.network), number, scale=None)
        apply_outcome(self.architecture, self.alpha, outcome)

    def captured(self, step: Callable[[], Any]) -> None:
        """Take a step whose candidates are recorded and replayed."""
        assert self.captures is not None
        with self.captures.active(self.supernet.selector):
            step()

    def all_steps(self, number: int) -> dict[str, Callable[[], Any]]:
        """Return each kind of step with what it computes without the search, for one draw."""
        architecture, shape = self.architecture, tuple(self.architecture.alpha.shape)
        alone = self.standalone(self.named(self.draw(number)))
        optimizer = sgd(alone, weight_decay=WEIGHT_DECAY)
        pairs = gates.sample_pairs(
            architecture.host_alpha(),
            architecture.host_mask,
            gates.uniforms(self.problem.seed, gates.Phase.PAIR, number, shape),
            gates.uniforms(self.problem.seed, gates.Phase.ACTIVE, number, shape[:1]),
        )
        named = self.named(pairs.active), self.named(pairs.second)
        paired, compared = PairNet(self.space, *named), PairNet(self.space, *named, products=True)
        sampled = []
        for index in range(self.rules["reinforce"].samples):
            u = gates.uniforms(self.problem.seed, gates.Phase.REINFORCE, number, shape, sample=index)
            paths = gates.sample_paths(architecture.host_alpha(), architecture.host_mask, u)
            sampled.append(self.standalone(self.named(paths)))
            quieten(sampled[-1])

        def train() -> None:
            optimizer.zero_grad(set_to_none=True)
            self.loss(alone).backward()
            optimizer.step()

        def forward_all() -> None:
            with torch.no_grad():
                for model in sampled:
                    self.accuracy(model)

        return {
            "weight": lambda: self.weight(number),
            "weight alone": train,
            "gradient": lambda: self.architecture_step("gradient", number),
            "gradient alone": lambda: self.loss(paired).backward(),
            "gradient and products alone": lambda: self.loss(compared).backward(),
            "reinforce": lambda: self.architecture_step("reinforce", number),
            "reinforce alone": forward_all,
        }


def quieten(model: nn.Module) -> None:
    """Normalise by batch statistics that are not kept, as in an architecture step."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.track_running_stats = False


def overhead(*, size: int, batch: int, choices: int, rounds: int) -> dict[str, dict[str, float]]:
    """Time the machinery of each kind of step: as a share of the step without it, and in ms of processor time."""
    bench = Steps(size=size, batch=batch)
    steps = [bench.all_steps(number) for number in range(choices)]
    times: dict[tuple[str, int], list[float]] = {}
    order = random.Random(0)
    for turn in range(rounds + 1):
        for number in order.sample(range(choices), choices):
            for name in order.sample(list(steps[number]), len(steps[number])):
                start = time.process_time()
                steps[number][name]()
                if turn:  # the first one warms up
                    times.setdefault((name, number), []).append(time.process_time() - start)
    found = {}
    compared = {name: f"{name} alone" for name in ("weight", "gradient", "reinforce")}
    compared |= {"gradient beside its products": "gradient and products alone"}
    for name, plain in compared.items():
        step = name.split()[0]
        pairs = [(min(times[step, number]), min(times[plain, number])) for number in range(choices)]
        found[name] = {
            "overhead": round(statistics.median(whole / alone - 1 for whole, alone in pairs), 4),
            "machinery_ms": round(1e3 * statistics.median(whole - alone for whole, alone in pairs), 1),
            "alone_ms": round(1e3 * statistics.median(alone for _, alone in pairs), 1),
        }
        print(f"{size} px, batch {batch}: {name} {found[name]}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fashion-mnist", type=Path, metavar="ROOT", help=f"run it anew and write {RESULT.name}")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--choices", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.fashion_mnist is not None:
        found = run_fashion_mnist(arguments.fashion_mnist)
        write_atomically(RESULT, json.dumps(found, indent=2) + "\n")
        print(json.dumps(found))
        return
    torch.set_num_threads(1)
    published = model_summary(timm.create_model("proxylessnas_cifar_tree"), (3, SIZE, SIZE))
    sizes = {"params": published.params, "macs": published.macs, "edges": len(get_space("cifar_tree").candidates())}
    print(sizes, flush=True)
    options = {"choices": arguments.choices, "rounds": arguments.rounds}
    full = overhead(size=SIZE, batch=arguments.batch, **options)
    tiny = overhead(size=4, batch=2, **options)
    print(
        json.dumps(
            {
                **sizes,
                "overhead": {name: row["overhead"] for name, row in full.items()},
                "steps": full,
                "batch": arguments.batch,
                "steps_on_tiny_images": tiny,
                "machine": cpu_name(),
                "date": datetime.date.today().isoformat(),
                "fashion_mnist": json.loads(RESULT.read_text(encoding="utf-8")),
            }
        )
    )


if __name__ == "__main__":
    main()
