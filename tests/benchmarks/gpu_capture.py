"""Whether captured candidates compute what eager ones do on a GPU, and what they save: two parts of `gpu`.

`capture_agreement` takes weight and architecture steps twice from the same start, eagerly and captured, and compares
alpha's gradients, weights and buffers. `capture` times steps both ways in the same rounds.

A dry run records by `PlainRecorder`, which shows nothing of time or memory.
"""

from __future__ import annotations

import functools
import gc
import json
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from .gpu_parts import NO_GPU, Part, look, need

FLOAT32_ERROR = 1e-3
BF16_COSINE = 0.99
"""Bounds of captured gradients of alpha, weights' moves and buffers against eager ones: largest relative error, and
direction. The kernels are the same, but cuDNN may choose others for gradients that come in another memory format. Where
two eager runs differ by more, that is the bound."""
ROUNDS = 3


def _recorder(dry: bool) -> Any:
    from proxyless_strategy.strategy.supernet.recorders import CudaRecorder, PlainRecorder

    return PlainRecorder() if dry else CudaRecorder(torch.device("cuda"))


# ---- is it right? ------------------------------------------------------------------------------------------------


def _agreement(dry: bool) -> dict[str, Any]:
    from proxyless_strategy.strategy.rules import GradientUpdate, ReinforceUpdate

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.use_deterministic_algorithms(True, warn_only=True)
    updates = {"two": GradientUpdate, "all": functools.partial(GradientUpdate, paths="all")}
    updates["reinforce"] = functools.partial(ReinforceUpdate, samples=4)
    found: dict[str, Any] = {"replayed": 0, "eager": 0}
    for name, make in updates.items():
        for precision in (torch.float32, torch.bfloat16):
            eager, again = (_search(make(), precision, dry, captured=False)[0] for _ in range(2))
            captured, captures = _search(make(), precision, dry, captured=True)
            need(captures.replayed > 2 * captures.recorded, f"{name}: {captures.replayed} replays are too few")
            found["replayed"] += captures.replayed
            found["eager"] += captures.eager
            for what in ("alpha", "weights", "buffers"):
                a, b = captured[what], eager[what]
                need(bool(a.isfinite().all()), f"{name} {what} in {precision}: captured, it is not finite")
                (error, cosine), (noise, likeness) = _distance(a, b), _distance(again[what], b)
                if precision == torch.float32:
                    found[f"{name}_{what}_error"] = error
                    right = error <= max(FLOAT32_ERROR, 3 * noise)
                else:
                    found[f"{name}_{what}_bf16_cosine"] = round(cosine, 6)
                    right = 1 - cosine <= max(1 - BF16_COSINE, 3 * (1 - likeness))
                told = f"{error:.2g} off, with cosine {cosine:.4f} (two eager runs: {noise:.2g}, {likeness:.4f})"
                need(right, f"{name} {what} in {precision}: captured, it is {told}")
    return found


def _distance(a: torch.Tensor, b: torch.Tensor) -> tuple[float, float]:
    """Return the largest error relative to the largest value, and the cosine."""
    return float((a - b).abs().max() / b.abs().max()), float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def _search(update: Any, precision: torch.dtype, dry: bool, *, captured: bool) -> tuple[dict[str, torch.Tensor], Any]:
    """Take steps on drawn paths; return alpha's gradients, and what the weights' steps and the buffers have come to."""
    from torch.nn import functional

    from proxyless_strategy.strategy.objectives import AccuracyOnly
    from proxyless_strategy.strategy.proxyless import ProxylessStrategy
    from proxyless_strategy.strategy.rules import GradientUpdate, Problem
    from proxyless_strategy.strategy.supernet.capture import Captures
    from proxyless_strategy.strategy.supernet.step_mode import ArchitectureStepMode
    from search_spaces import get_space

    place = "cpu" if dry else "cuda"
    generator = torch.Generator().manual_seed(0)
    size, batch = (16, 8) if dry else (32, 64)
    torch.manual_seed(0)
    strategy = ProxylessStrategy()
    network = strategy.mutate_model(get_space("small_mbconv").build(num_classes=10)).train()
    network = network.to(place).to(memory_format=torch.channels_last)
    supernet, architecture = strategy.paths_of_space, strategy.architecture
    costs, fixed = strategy.cost_matrix()
    problem = Problem(supernet, architecture, costs, fixed, AccuracyOnly(), 0)
    # At a rate at which a weight moves by more than its own rounding.
    mode, optimizer = ArchitectureStepMode(network), torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    captures = Captures(_recorder(dry)) if captured else None

    def loss() -> torch.Tensor:
        with torch.autocast(place, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            return functional.cross_entropy(network(x), y)

    gradients = []
    for number in range(6):
        x = torch.randn(batch, 3, size, size, generator=generator).to(place)
        x, y = x.contiguous(memory_format=torch.channels_last), (torch.arange(batch) % 10).to(place)
        # Few paths, so that most runs are replays; each pair of steps draws others for its measured ones.
        paths = [(number % 2 + row) % len(edge.candidates) for row, edge in enumerate(architecture.edges)]
        optimizer.zero_grad(set_to_none=True)
        with nullcontext() if captures is None else captures.active(supernet.selector):
            for _ in range(2):  # two batches of one step
                with supernet.running(paths):
                    loss().backward()
            optimizer.step()
            gradient_rule = isinstance(update, GradientUpdate)
            with mode.active(), torch.set_grad_enabled(gradient_rule):
                task = loss if gradient_rule else lambda: (-loss()).exp()
                outcome = update.compute(problem, task, number % 2, scale=None)
        need(outcome.gradient is not None, f"a gradient on {place} in {precision} is not finite")
        gradients.append(outcome.gradient.double().cpu().flatten())
    moved = [(p.detach() - b).double().cpu().flatten() for p, b in zip(network.parameters(), before, strict=True)]
    buffers = [buffer.double().cpu().flatten() for buffer in network.buffers()]
    found = {"alpha": torch.cat(gradients), "weights": torch.cat(moved), "buffers": torch.cat(buffers)}
    return found, captures


# ---- what does it save? ------------------------------------------------------------------------------------------


def _steps(dry: bool) -> dict[str, Any]:
    from .step_cost import steps_of

    sizes = {"batch256": ("imagenet_mbconv", 224, 256), "batch64": ("imagenet_mbconv", 224, 64)}
    sizes["cifar64"] = ("cifar_mbconv", 32, 64)
    if dry:
        sizes = dict.fromkeys(sizes, ("small_mbconv", 32, 2))
    found: dict[str, Any] = {}
    for name, (space, size, batch) in sizes.items():
        _, made = steps_of(
            space,
            1,
            size,
            batch,
            device="cpu" if dry else "cuda",
            precision=torch.bfloat16,
            channels_last=True,
            stock=(),
            recorder=_recorder(dry),
        )
        eager = {step: made[step, 0] for step in ("base", "weight", "gradient", "reinforce")}
        captured = {step: made[f"{step}_captured", 0] for step in ("weight", "gradient", "reinforce")}
        found[name] = _compared(eager, captured, dry)
        print(f"{name}: {json.dumps(found[name])}", flush=True)
        del made, eager, captured
        gc.collect()
        if not dry:
            torch.cuda.empty_cache()
    found["tree"] = _tree(dry)
    return found


def _tree(dry: bool) -> dict[str, Any]:
    """Compare steps over 648 edges."""
    from .tree_cell import Steps

    size, batch = (4, 2) if dry else (32, 64)
    bench = Steps(size=size, batch=batch, device="cpu" if dry else "cuda", recorder=_recorder(dry))
    eager: dict[str, Callable[[], Any]] = {"weight": lambda: bench.weight(0)}
    for rule in ("gradient", "reinforce"):
        eager[rule] = functools.partial(bench.architecture_step, rule, 0)
    return _compared(eager, {step: functools.partial(bench.captured, run) for step, run in eager.items()}, dry)


def _compared(eager: dict[str, Callable[[], Any]], captured: dict[str, Callable[[], Any]], dry: bool) -> dict[str, Any]:
    """Time steps both ways in turns.

    `memory` is what the allocator reserves for steps of that kind alone, in bytes; for captured ones, of all kinds
    together, as their graphs keep it. The aim is a `memory_ratio` of at most 1.15.
    """
    wait = torch.cuda.synchronize if not dry else lambda: None
    memory: dict[str, int | None] = {name: _reserved(step) for name, step in eager.items()} if not dry else {}
    start = 0
    if not dry:
        gc.collect()
        torch.cuda.empty_cache()
        start = torch.cuda.memory_reserved()
    began = time.monotonic()
    for step in captured.values():
        step()
    wait()
    recording = time.monotonic() - began
    for step in captured.values():
        step()
    wait()
    if not dry:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        for step in captured.values():
            step()
        wait()
        memory["captured"] = torch.cuda.max_memory_reserved() - start
    times: dict[str, list[float]] = {}
    for _ in range(1 if dry else ROUNDS):
        for kind, steps in (("eager", eager), ("captured", captured)):
            for name, step in steps.items():
                wait()
                before = time.perf_counter()
                step()
                wait()
                times.setdefault(f"{name} {kind}", []).append(time.perf_counter() - before)
    ms = {name: round(1e3 * statistics.median(each), 2) for name, each in times.items()}
    nothing = {"busy": None, "kernels": None, "memory": None, "skipped": NO_GPU}
    looks = dict.fromkeys(ms, nothing)
    if not dry:
        both = {f"{name} eager": step for name, step in eager.items()}
        both |= {f"{name} captured": step for name, step in captured.items()}
        looks = {name: look(both[name], ms[name] / 1e3) for name in looks}
    one = memory.get("base") or memory.get("weight")
    return {
        "ms": ms,
        "speedup": {name: round(ms[f"{name} eager"] / ms[f"{name} captured"], 3) for name in captured},
        "recording_seconds": round(recording, 2),
        "memory": memory or None,
        "memory_ratio": round((memory["captured"] or 0) / one, 3) if one else None,
        "gpu": looks,
    }


def _reserved(step: Callable[[], Any]) -> int:
    """Return the bytes that the allocator reserves for a step beside what is there anyway."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_reserved() - before


_FIGURES = tuple(
    f"{rule}_{what}_{figure}"
    for rule in ("two", "all", "reinforce")
    for what in ("alpha", "weights", "buffers")
    for figure in ("error", "bf16_cosine")
)
agreement = Part(_agreement, 90, (*_FIGURES, "replayed", "eager"), optional=True)
steps = Part(_steps, 180, ("batch256", "batch64", "cifar64", "tree"), optional=True)
