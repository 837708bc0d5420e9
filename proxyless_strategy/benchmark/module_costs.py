"""Latency of any NNI space by timing its candidates themselves: no operator need be known by name.

A candidate is run alone, on the input that it has within the network. What a whole net takes beside its candidates
(stem, head, everything that is not chosen) is the constant of the cost model: the median, over some random subnets
timed in the same rounds, of `t(net) - sum of its candidates`.
"""

from __future__ import annotations

import copy
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from nni.nas.nn.pytorch import ModelSpace
from torch import nn

from hardware.backends import SharedBackend, get_backend
from hardware.backends.base import seconds_per_run
from hardware.errors import ConfigError, SpaceError, UnsupportedSpaceError
from hardware.measuring.locks import measuring_lock
from hardware.measuring.sampling import Measurement, Plan, interleaved, timers_of
from hardware.model import CostModel, given_costs
from hardware.reading import cut, shown

from ..export.onnx import export_onnx
from ..strategy.architecture import Edge
from ..strategy.proxyless import ProxylessStrategy
from ..strategy.supernet.frozen import OnePath
from ..strategy.supernet.layers import BinaryGateCell, BinaryGateLayer, BinaryGateRepeat
from ..strategy.supernet.space import Supernet

NETS = 6
"""Random subnets that the constant and the reported error are taken from."""
_TOLERANCE = 1e-2
"""Largest difference of a candidate's output in ONNX Runtime: it is timed, and no export for use."""
Timer = Callable[[int], float]
_OVERHEAD = ("overhead", None)


class ModuleCosts(CostModel):
    """Latencies in ms of a space's candidates, as they were timed.

    Attributes:
        error: Mean of `|predicted / measured - 1|` over the random whole subnets that were timed in the same rounds.
        nets: How many those were.
    """

    error: float
    nets: int


def measure_modules(
    space: ModelSpace,
    sample_input: torch.Tensor,
    *,
    backend: str = "torch",
    threads: int = 1,
    costs: Mapping[str, Mapping[str, float]] | None = None,
    plan: Plan | None = None,
    seed: int = 0,
) -> ModuleCosts:
    """Time each candidate of each choice alone, on the input that it has in the network.

        cost = measure_modules(MySpace(), torch.randn(1, 3, 64, 64))
        strategy = ProxylessStrategy(cost=cost, target=3.0)

    A label that several layers share costs what they take together. A candidate with further choices inside costs what
    it takes beside those: `t(candidate) - sum of t(inner choice's first candidate)`. `nn.Identity` and a chosen input
    cost 0; a depth (`Repeat`) costs its blocks. A part that comes out below 0 is within the noise of 0, and costs 0.

    Args:
        space: NNI's space; it stays as it is.
        sample_input: Input of the network, `B x C x H x W`; latencies are of this batch. On a GPU the space is timed
            there.
        backend: `torch`, eager in this process; or one that runs ONNX files (`onnxruntime`): every candidate is
            exported, which takes some seconds each, and the costs are of the deployed format.
        threads: Threads of one inference.
        costs: Figures that exist, in ms, by label and candidate: these candidates are not timed.
        plan: How long to measure.
        seed: Seed of the random subnets and of the rounds' orders.

    Raises:
        UnsupportedSpaceError: The space cannot be searched; or it has a `Cell` whose labels `costs` leaves out.
        SpaceError: `costs` names an unknown label or candidate, or has an impossible figure.
        ConfigError: `backend` runs no ONNX files, or takes no such input.
    """
    network = copy.deepcopy(space).eval().to(sample_input.device)
    strategy = ProxylessStrategy()
    strategy.mutate_model(network)
    parts = _Parts(network, strategy.paths_of_space, sample_input)
    given = _checked(costs or {}, parts.supernet.edges)
    parts.refuse_cells(given)
    subnets = parts.random_subnets(NETS, seed=seed)
    plan = plan or Plan(rounds=100, minimum_rounds=10, seconds=20.0)
    with ExitStack() as stack:
        timers = parts.timers(subnets, given, backend=backend, threads=threads, stack=stack)
        stack.enter_context(measuring_lock())
        samples = interleaved(timers, plan=plan, seed=seed, trials=3)
    times = {key: Measurement.of(values, quantile=plan.quantile).ms for key, values in samples.items()}
    # A runtime's own overhead is paid once for a whole net, and stays in the constant.
    overhead = times.pop(_OVERHEAD, 0.0)
    times = {key: ms if key[0] == "net" else max(0.0, ms - overhead) for key, ms in times.items()}
    figures = parts.figures(times, given)
    return _model(parts.supernet.edges, figures, [(times["net", i], subnet) for i, subnet in enumerate(subnets)])


def _model(
    edges: Sequence[Edge], figures: Sequence[Sequence[float]], nets: Sequence[tuple[float, Sequence[int]]]
) -> ModuleCosts:
    """Return the cost model of each candidate's own ms, with the constant that whole nets leave."""
    sums = [
        math.fsum(figures[row][choice[row]] for row in range(len(edges)) if _reached(edges, choice, row))
        for _, choice in nets
    ]
    constant = max(0.0, statistics.median(ms - total for (ms, _), total in zip(nets, sums, strict=True)))
    named = {
        edge.label: {str(name): ms for name, ms in zip(edge.candidates, row, strict=True)}
        for edge, row in zip(edges, figures, strict=True)
    }
    model = cast(ModuleCosts, given_costs(named, constant=constant, unit="ms", kind=ModuleCosts))
    model.error = statistics.fmean(abs((constant + total) / ms - 1) for (ms, _), total in zip(nets, sums, strict=True))
    model.nets = len(nets)
    return model


def _reached(edges: Sequence[Edge], choice: Sequence[int], row: int) -> bool:
    parent = edges[row].parent
    return parent is None or (choice[parent[0]] in parent[1] and _reached(edges, choice, parent[0]))


def _checked(costs: Mapping[str, Mapping[str, float]], edges: Sequence[Edge]) -> dict[str, dict[str, float]]:
    """Return the given figures, all of which are of the space."""
    known = {edge.label: [str(name) for name in edge.candidates] for edge in edges}
    for label, options in costs.items():
        if label not in known:
            raise SpaceError(f"costs name the unknown label {shown(label)}; the space has {cut(', '.join(known), 400)}")
        for name, value in options.items():
            if name not in known[label]:
                raise SpaceError(
                    f"costs name the unknown candidate {shown(name)} of {label}; it has {', '.join(known[label])}"
                )
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise SpaceError(f"costs of {label}, {name}: {shown(value)}; give ms, 0 or more")
    return {label: dict(options) for label, options in costs.items()}


class _Parts:
    """The timed parts of a mutated space: candidates of layers and blocks of repeats, each with its input."""

    def __init__(self, network: nn.Module, supernet: Supernet, sample: torch.Tensor):
        self.network = network
        self.supernet = supernet
        self.sample = sample
        self.layers = {
            name: module
            for name, module in network.named_modules()
            if isinstance(module, (BinaryGateLayer, BinaryGateRepeat))
        }
        self.cells = {n: m for n, m in network.named_modules() if isinstance(m, BinaryGateCell)}
        self.inputs: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}
        for name in self.layers:
            self._capture(name)

    # ---- which part runs where ---------------------------------------------------------------------------------

    def _path_to(self, name: str) -> list[int]:
        """Return a subnet in which a module runs: the first candidates, but for the choices around it."""
        choice = [0] * len(self.supernet.edges)
        at = self.supernet._parent_of(name)
        while at is not None:
            edge, candidates = at
            choice[edge] = min(candidates)
            at = self.supernet.edges[edge].parent
        return choice

    def _capture(self, name: str) -> None:
        """Keep the input that a layer has in the network."""
        module = self.layers[name]

        def keep(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.inputs.setdefault(name, (args, kwargs))

        handle = module.register_forward_pre_hook(keep, with_kwargs=True)
        try:
            with torch.no_grad(), self.supernet.running(self._path_to(name)):
                self.network(self.sample)
        finally:
            handle.remove()
        if name not in self.inputs:
            raise UnsupportedSpaceError(
                f"the choice at {name} does not run on the sample input; give its figures as costs, or another input"
            )

    def candidates(self, name: str) -> list[nn.Module]:
        """Return what a layer chooses from; of a repeat the blocks."""
        layer = self.layers[name]
        if isinstance(layer, BinaryGateRepeat):
            return list(layer.blocks)
        return [cast(nn.Module, layer._modules[str(candidate)]) for candidate in layer.names]

    def inner(self, path: str) -> list[str]:
        """Return the layers within a module that no other layer within it holds."""
        within = [name for name in self.layers if name.startswith(f"{path}.")]
        return [n for n in within if not any(n.startswith(f"{other}.") for other in within if other != n)]

    def path_of(self, name: str, index: int) -> str:
        layer = self.layers[name]
        return f"{name}.blocks.{index}" if isinstance(layer, BinaryGateRepeat) else f"{name}.{layer.names[index]}"

    def refuse_cells(self, given: Mapping[str, Mapping[str, float]]) -> None:
        """Refuse a Cell without figures: its operators stand for each of its inputs, and have no time of their own."""
        for name, cell in self.cells.items():
            for operator, source in cell.choices:
                for label, options in ((operator.label, operator.names), (source.label, ())):
                    if any(str(option) not in given.get(label, {}) for option in options):
                        raise UnsupportedSpaceError(
                            f"the Cell at {name} has the choice {label!r}, whose operators differ with their input; "
                            "give its figures as costs"
                        )

    def random_subnets(self, count: int, *, seed: int) -> list[list[int]]:
        generator = np.random.default_rng(seed)
        return [[int(generator.integers(len(edge.candidates))) for edge in self.supernet.edges] for _ in range(count)]

    # ---- timing ------------------------------------------------------------------------------------------------

    def timers(
        self,
        subnets: Sequence[Sequence[int]],
        given: Mapping[str, Mapping[str, float]],
        *,
        backend: str,
        threads: int,
        stack: ExitStack,
    ) -> dict[tuple[str, Any], Timer]:
        """Return what takes samples of each part that is to be timed, and of whole subnets."""
        runs: dict[tuple[str, Any], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = {}
        for name in self.layers:
            args, kwargs = self.inputs[name]
            for index, module in enumerate(self.candidates(name)):
                if type(module) is nn.Identity or self._is_given(name, index, given):
                    continue
                path = self.path_of(name, index)
                x = args if not isinstance(self.layers[name], BinaryGateRepeat) else self._block_input(name, index)
                runs[path, None] = (OnePath(module, self.supernet, self._path_to(path)), x, kwargs)
        for number, subnet in enumerate(subnets):
            runs["net", number] = (OnePath(self.network, self.supernet, subnet), (self.sample,), {})
        if backend == "torch":
            return _eager(runs, threads=threads, stack=stack)
        return _deployed(runs, backend=backend, threads=threads, stack=stack)

    def _is_given(self, name: str, index: int, given: Mapping[str, Mapping[str, float]]) -> bool:
        layer = self.layers[name]
        if isinstance(layer, BinaryGateRepeat):
            return len(given.get(layer._choice_label, {})) == len(layer.depths)
        return str(layer.names[index]) in given.get(layer.label, {})

    def _block_input(self, name: str, index: int) -> tuple[Any, ...]:
        """Return the input of a repeat's block: what the blocks before it make."""
        layer = cast(BinaryGateRepeat, self.layers[name])
        (x,), _ = self.inputs[name]
        with torch.no_grad(), self.supernet.running(self._path_to(self.path_of(name, index))):
            for block in list(layer.blocks)[:index]:
                x = block(x)
        return (x,)

    def figures(
        self, times: Mapping[tuple[str, Any], float], given: Mapping[str, Mapping[str, float]]
    ) -> list[list[float]]:
        """Return each candidate's own ms: rows as the space's edges, a shared label summed over its layers."""
        edges = self.supernet.edges
        found = [[0.0] * len(edge.candidates) for edge in edges]
        for name, layer in self.layers.items():
            row = layer.edge
            own = [self._own(self.path_of(name, i), times) for i in range(len(self.candidates(name)))]
            if isinstance(layer, BinaryGateRepeat):
                own = [math.fsum(own[:depth]) for depth in layer.depths]
            for column, ms in enumerate(own):
                found[row][column] += ms
        for row, edge in enumerate(edges):
            for column, candidate in enumerate(edge.candidates):
                found[row][column] = given.get(edge.label, {}).get(str(candidate), found[row][column])
        return found

    def _own(self, path: str, times: Mapping[tuple[str, Any], float]) -> float:
        """Return what a candidate takes beside the choices within it; those ran their first candidates meanwhile."""
        whole = times.get((path, None), 0.0)
        return max(0.0, whole - math.fsum(self._first(name, times) for name in self.inner(path)))

    def _first(self, name: str, times: Mapping[tuple[str, Any], float]) -> float:
        layer = self.layers[name]
        if isinstance(layer, BinaryGateRepeat):
            return math.fsum(times.get((self.path_of(name, i), None), 0.0) for i in range(layer.depths[0]))
        return times.get((self.path_of(name, 0), None), 0.0)


def _eager(
    runs: Mapping[tuple[str, Any], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]], *, threads: int, stack: ExitStack
) -> dict[tuple[str, Any], Timer]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    stack.callback(torch.set_num_threads, before)
    stack.enter_context(torch.no_grad())

    def timer(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Timer:
        on_gpu = any(isinstance(x, torch.Tensor) and x.is_cuda for x in args)

        def call() -> None:
            module(*args, **kwargs)
            if on_gpu:
                torch.cuda.synchronize()

        return lambda repeats: seconds_per_run(call, repeats=repeats, cpu_time=threads == 1 and not on_gpu)

    return {key: timer(*run) for key, run in runs.items()}


def _deployed(
    runs: Mapping[tuple[str, Any], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]],
    *,
    backend: str,
    threads: int,
    stack: ExitStack,
) -> dict[tuple[str, Any], Timer]:
    opened = stack.enter_context(get_backend(backend))
    if not isinstance(opened, SharedBackend):
        raise ConfigError(f"backend {backend!r} runs no ONNX files; choose onnxruntime, or torch")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    sample = runs["net", 0][1][0]
    empty = opened.prepare((), batch=len(sample), threads=threads, input_shape=tuple(sample.shape[1:]))
    runnables = {_OVERHEAD: empty}
    for number, (key, (module, args, kwargs)) in enumerate(runs.items()):
        x = args[0] if len(args) == 1 and not kwargs else None
        if not isinstance(x, torch.Tensor) or x.ndim != 4:
            raise ConfigError(
                f"{key[0]} takes more than one B x C x H x W tensor, which backend {backend!r} cannot time; choose "
                "torch, or give its figures as costs"
            )
        shape = tuple(x.shape[1:])
        path = export_onnx(
            module, folder / f"{number}.onnx", input_shape=shape, batch=len(x), tolerance=_TOLERANCE
        ).path
        runnables[key] = opened.prepare_model_file(path, batch=len(x), threads=threads, input_shape=shape)
    return timers_of(opened, runnables)
