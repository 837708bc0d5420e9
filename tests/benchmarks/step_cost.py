"""What a step of a search costs, as a ratio to a training step of a stand-alone subnet of the same sampled choices.

Everything is timed in the same rounds of one run, in shuffled order; a ratio is the median over the paired choices.
`saved` counts the distinct bytes that autograd keeps for the backward pass (parameters left out), and the
differences that the gradient rule keeps; `base_saved_bytes` are those of the subnet's step, per image.

    .venv/bin/python -m tests.benchmarks.step_cost [--choices 20] [--size 96] [--batch 8] [--threads 2]
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import timm
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from nni.nas.oneshot.pytorch.supermodule.base import BaseSuperNetModule
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from proxyless_strategy.export.summary import SavedBytes
from proxyless_strategy.strategy import gates
from proxyless_strategy.strategy.objectives import AccuracyOnly
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from proxyless_strategy.strategy.rules import GradientUpdate, Problem, ReinforceUpdate, alpha_optimizer, apply_outcome
from proxyless_strategy.strategy.supernet.capture import Captures
from proxyless_strategy.strategy.supernet.step_mode import ArchitectureStepMode
from search_spaces import Subnet, get_space


def sgd(network: nn.Module, *, weight_decay: float = 4e-5) -> torch.optim.Optimizer:
    """Build the optimiser of the weights; its rate is so low that timed steps hardly change the network."""
    return torch.optim.SGD(network.parameters(), lr=1e-4, momentum=0.9, nesterov=True, weight_decay=weight_decay)


class Bench:
    """Times named steps in interleaved rounds, and counts what autograd saves in them."""

    def __init__(self, network_parameters: list[torch.Tensor]):
        self.parameters = network_parameters
        self.times: dict[tuple[str, int], list[float]] = {}
        self.saved: dict[tuple[str, int], int] = {}

    def count(self, key: tuple[str, int], step: Callable[[], int]) -> None:
        """Run `step` once, counting saved bytes; it returns bytes that autograd does not see."""
        with SavedBytes(without=self.parameters) as saved:
            extra = step()
        self.saved[key] = saved.total + (extra or 0)

    def time(self, key: tuple[str, int], step: Callable[[], Any]) -> None:
        """Time `step` once."""
        wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
        wait()  # kernels run after their launch has returned
        start = time.perf_counter()
        step()
        wait()
        self.times.setdefault(key, []).append(time.perf_counter() - start)

    def ratio(self, name: str, count: int, base: str = "base") -> dict[str, float]:
        """Return the median ratio over the choices, of the fastest of each one's rounds."""
        times = [min(self.times[name, k]) / min(self.times[base, k]) for k in range(count)]
        saved = [self.saved[name, k] / self.saved[base, k] for k in range(count)]
        return {"time": round(statistics.median(times), 3), "saved": round(statistics.median(saved), 3)}


def state_of(*networks: nn.Module) -> list[torch.Tensor]:
    return [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]


def stock_step(network: nn.Module, choices: dict[str, str], x: torch.Tensor, y: torch.Tensor) -> None:
    """Take one step of a stock strategy: it resamples (Proxyless) or mixes (DARTS), and runs forward and backward."""
    network.zero_grad(set_to_none=True)
    for module in network.modules():
        if isinstance(module, BaseSuperNetModule):
            module.resample(memo=dict(choices))
    functional.cross_entropy(network(x), y).backward()


Steps = dict[tuple[str, int], Callable[[], Any]]


def imagenet(count: int, size: int, batch: int, rounds: int) -> dict[str, Any]:
    """Measure the main table, on `imagenet_mbconv`."""
    bench, steps = steps_of("imagenet_mbconv", count, size, batch)
    run_rounds(bench, steps, count, rounds)
    return ratios(bench, count, batch, stock=("nni_proxyless", "darts"))


def steps_of(
    name: str,
    count: int,
    size: int,
    batch: int,
    *,
    device: str = "cpu",
    precision: torch.dtype = torch.float32,
    channels_last: bool = False,
    stock: Sequence[str] = ("nni_proxyless", "darts"),
    recorder: Any = None,
) -> tuple[Bench, Steps]:
    """Build all steps of random choices, and count what each keeps for its backward pass.

    Args:
        name: The space.
        count: Choices.
        size: Side of the images.
        batch: Images.
        device: Where they run.
        precision: Of autocast; float32 for none.
        channels_last: Whether networks and images are in that memory format.
        stock: NNI's strategies beside ours.
        recorder: Records candidates for steps of the same names and `_captured`; None for none of these.
    """
    from nni.nas.oneshot.pytorch.strategy import DARTS, Proxyless

    layout = torch.channels_last if channels_last else torch.contiguous_format
    mixed = functools.partial(torch.autocast, device, dtype=precision, enabled=precision != torch.float32)

    def placed(net: nn.Module) -> nn.Module:
        return net.to(device).to(memory_format=layout).train()

    torch.manual_seed(0)
    space = get_space(name)
    x = torch.randn(batch, 3, size, size).to(device).contiguous(memory_format=layout)
    y = torch.randint(0, 1000, (batch,)).to(device)
    strategy = ProxylessStrategy()
    network = placed(strategy.mutate_model(space.build(num_classes=1000)))
    strategies = {"nni_proxyless": Proxyless, "darts": DARTS}
    others = {name: placed(strategies[name]().mutate_model(space.build(num_classes=1000))) for name in stock}
    architecture, supernet = strategy.architecture, strategy.paths_of_space
    costs, fixed = strategy.cost_matrix()
    problem = Problem(supernet, architecture, costs, fixed, AccuracyOnly(), 0)
    optimizers = {"weights": sgd(network), **{name: sgd(net) for name, net in others.items()}}
    alpha = alpha_optimizer(architecture, 1e-6)
    mode, gradient, reinforce = ArchitectureStepMode(network), GradientUpdate(), ReinforceUpdate(samples=2)
    shape = tuple(architecture.alpha.shape)
    labels = architecture.labels
    host = architecture.host_alpha()

    def named(indices: Sequence[int]) -> dict[str, str]:
        return {
            label: str(edge.candidates[i]) for label, edge, i in zip(labels, architecture.edges, indices, strict=True)
        }

    def task_loss() -> torch.Tensor:
        with mixed():
            return functional.cross_entropy(network(x), y)

    def accuracy() -> torch.Tensor:
        with mixed():
            return (network(x).argmax(-1) == y).float().mean()

    plans: list[Any] = []

    def weight_step(paths: list[int]) -> None:
        optimizers["weights"].zero_grad(set_to_none=True)
        with supernet.running(paths):
            task_loss().backward()
        optimizers["weights"].step()

    def gradient_step(step: int) -> int:
        with mode.active(), watched(supernet, plans):
            outcome = gradient.compute(problem, task_loss, step, scale=None)
        apply_outcome(architecture, alpha, outcome)
        return plans.pop().saved_bytes

    def reinforce_step(step: int) -> None:
        with mode.active():
            outcome = reinforce.compute(problem, accuracy, step, scale=None)
        apply_outcome(architecture, alpha, outcome)

    def captured(captures: Captures, step: Callable[[], Any]) -> Any:
        with captures.active(supernet.selector):
            return step()

    def optimised(name: str, choices: dict[str, str]) -> None:
        with mixed():
            stock_step(others[name], choices, x, y)
        optimizers[name].step()

    def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        with mixed():
            loss = functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    bench = Bench(state_of(network, *others.values()))
    steps: Steps = {}
    captures: Captures | None = None
    for k in range(count):
        pairs = gates.sample_pairs(
            host,
            architecture.host_mask,
            gates.uniforms(0, gates.Phase.PAIR, k, shape),
            gates.uniforms(0, gates.Phase.ACTIVE, k, shape[:1]),
        )
        paths = pairs.active.tolist()
        steps["weight", k] = functools.partial(weight_step, paths)
        steps["gradient", k] = functools.partial(gradient_step, k)
        steps["reinforce", k] = functools.partial(reinforce_step, k)
        if recorder is not None:
            captures = captures or Captures(recorder)
            for kind in ("weight", "gradient", "reinforce"):
                steps[f"{kind}_captured", k] = functools.partial(captured, captures, steps[kind, k])
        for other in stock:
            steps[other, k] = functools.partial(optimised, other, named(paths) if other == "nni_proxyless" else {})
        drawn = [
            gates.sample_paths(
                host, architecture.host_mask, gates.uniforms(0, gates.Phase.REINFORCE, k, shape, sample=j)
            ).tolist()
            for j in range(2)
        ]
        for role, choice in (("base", paths), ("sample0", drawn[0]), ("sample1", drawn[1])):
            subnet = Subnet(space, named(choice))
            model = placed(timm.create_model(subnet.timm_name, **subnet.model_args(num_classes=1000)))
            bench.parameters += state_of(model)
            steps[role, k] = functools.partial(train, model, sgd(model))
    for key, step in steps.items():
        bench.count(key, step)
    return bench, steps


def run_rounds(bench: Bench, steps: Steps, count: int, rounds: int) -> None:
    """Time all steps, the choices and each one's steps in shuffled order."""
    order = random.Random(0)
    for _ in range(rounds):
        for k in order.sample(range(count), count):
            names = [name for name, index in steps if index == k]
            for name in order.sample(names, len(names)):
                bench.time((name, k), steps[name, k])


def ratios(bench: Bench, count: int, batch: int, *, stock: Sequence[str]) -> dict[str, Any]:
    """Return the ratios to the stand-alone subnet's step."""
    result: dict[str, Any] = {name: bench.ratio(name, count) for name in ("weight", "gradient", *stock)}
    per_sample = [
        min(bench.times["reinforce", k]) / (min(bench.times["sample0", k]) + min(bench.times["sample1", k]))
        for k in range(count)
    ]
    saved = max(bench.saved["reinforce", k] for k in range(count))
    result["reinforce"] = {"time": round(statistics.median(per_sample), 3), "saved": saved}
    both = [min(bench.times["weight", k]) + min(bench.times["gradient", k]) for k in range(count)]
    result["pair"] = round(statistics.median(t / min(bench.times["base", k]) for k, t in enumerate(both)), 3)
    if "nni_proxyless" in stock:
        two = [2 * min(bench.times["nni_proxyless", k]) for k in range(count)]
        result["pair_speedup_vs_nni"] = round(statistics.median(a / b for a, b in zip(two, both, strict=True)), 3)
    result["base_saved_bytes"] = round(statistics.median(bench.saved["base", k] for k in range(count)) / batch)
    result["base_ms"] = round(1e3 * statistics.median(min(bench.times["base", k]) for k in range(count)), 1)
    return result


@contextmanager
def watched(supernet: Any, plans: list[Any]):
    """Keep the plans of the runs inside."""
    running = supernet.running

    @contextmanager
    def noted(*args: Any, **kwargs: Any):
        with running(*args, **kwargs) as plan:
            plans.append(plan)
            yield plan

    supernet.running = noted
    try:
        yield
    finally:
        del supernet.running


class Wide(ModelSpace):
    """20 edges of `candidates` equal convolutions."""

    def __init__(self, candidates: int):
        super().__init__()
        self.layers = nn.Sequential(
            *(
                LayerChoice([nn.Conv2d(16, 16, 3, padding=1) for _ in range(candidates)], label=f"edge{index}")
                for index in range(20)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).square().mean()


def candidates_ratio(rounds: int) -> float:
    """Return the step time (one weight and one architecture step) at 12 candidates over that at 3."""
    x = torch.randn(8, 16, 32, 32)
    steps = {}
    for candidates in (3, 12):
        strategy = ProxylessStrategy()
        network = strategy.mutate_model(Wide(candidates)).train()
        costs, fixed = strategy.cost_matrix()
        problem = Problem(strategy.paths_of_space, strategy.architecture, costs, fixed, AccuracyOnly(), 0)
        arguments = (network, strategy, problem, ArchitectureStepMode(network), sgd(network))
        optimizer = alpha_optimizer(strategy.architecture, 1e-6)
        steps[candidates] = functools.partial(wide_step, x, *arguments, optimizer)
    times: dict[int, list[float]] = {3: [], 12: []}
    for index in range(rounds):
        for candidates, step in sorted(steps.items(), reverse=index % 2 == 1):
            start = time.perf_counter()
            step(index)
            times[candidates].append(time.perf_counter() - start)
    return round(statistics.median(b / a for a, b in zip(times[3], times[12], strict=True)), 3)


def wide_step(x, network, strategy, problem, mode, weights, alpha, step: int) -> None:
    weights.zero_grad(set_to_none=True)
    with strategy.paths_of_space.running([0] * 20):
        network(x).backward()
    weights.step()
    with mode.active():
        outcome = GradientUpdate().compute(problem, lambda: network(x), step, scale=None)
    apply_outcome(strategy.architecture, alpha, outcome)


class Synchronisations(TorchDispatchMode):
    """Counts reads of a tensor's value from Python (`item`) and copies to the host (`cpu`, `to("cpu")`)."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))

    def __enter__(self):
        self._cpu, self._to = torch.Tensor.cpu, torch.Tensor.to

        def cpu(tensor, *args, **kwargs):
            self.count += 1
            return self._cpu(tensor, *args, **kwargs)

        def to(tensor, *args, **kwargs):
            self.count += any(str(value) == "cpu" for value in (*args[:1], kwargs.get("device")))
            return self._to(tensor, *args, **kwargs)

        torch.Tensor.cpu, torch.Tensor.to = cpu, to
        return super().__enter__()

    def __exit__(self, *arguments):
        torch.Tensor.cpu, torch.Tensor.to = self._cpu, self._to
        return super().__exit__(*arguments)


def synchronisations() -> dict[str, dict[str, int]]:
    """Count host synchronisations of one architecture step, for 21 and 6 edges."""
    found: dict[str, dict[str, int]] = {}
    for name, size in (("imagenet_mbconv", 32), ("small_mbconv", 32)):
        space = get_space(name)
        strategy = ProxylessStrategy()
        network = strategy.mutate_model(space.build(num_classes=10)).train()
        costs, fixed = strategy.cost_matrix()
        problem = Problem(strategy.paths_of_space, strategy.architecture, costs, fixed, AccuracyOnly(), 0)
        x, y = torch.randn(2, 3, size, size), torch.tensor([1, 2])
        for rule, update in (("gradient", GradientUpdate()), ("reinforce", ReinforceUpdate(samples=3))):

            def task(rule=rule, network=network, x=x, y=y):
                output = network(x)
                return (
                    functional.cross_entropy(output, y)
                    if rule == "gradient"
                    else (output.argmax(-1) == y).float().mean()
                )

            with ArchitectureStepMode(network).active(), Synchronisations() as counter:
                update.compute(problem, task, 0, scale=None)
            found.setdefault(rule, {})[str(len(strategy.architecture.edges))] = counter.count
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choices", type=int, default=20)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    result = imagenet(arguments.choices, arguments.size, arguments.batch, arguments.rounds)
    result["n12_over_n3"] = candidates_ratio(60)
    result["host_synchronisations"] = synchronisations()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
