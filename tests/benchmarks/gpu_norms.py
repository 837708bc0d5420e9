"""Part `norms` of `tests.benchmarks.gpu`: batch norm with its activation by PyTorch, cuDNN and Triton's kernels.

For each kind: how far it is from float64, how many bytes a second it moves at the shapes of `imagenet_mbconv`, and
what a training step of one subnet takes with it. A dry run has Triton's interpreter in place of the GPU.
"""

from __future__ import annotations

import copy
import functools
import os
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

KINDS = ("torch", "cudnn", "triton")
SHAPES = ((96, 112, "relu6"), (16, 112, "identity"), (144, 56, "relu6"), (240, 28, "relu6"))
SHAPES += ((40, 28, "identity"), (576, 14, "relu6"), (1152, 7, "relu6"), (320, 7, "identity"))
"""Channels, side and activation of some maps, the largest first."""
BATCH, ROUNDS = 256, 12
FORWARD, BACKWARD = 3, 5
"""Maps that must be read or written: x twice and y; x and dL/dy twice, and dL/dx. GB/s are of these, for each kind."""
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 1.25 * 2.0**-8, torch.float16: 1.25 * 2.0**-11}
"""Largest error beside the largest value; of a type that is rounded to, half of its last digit and some more."""
KINKS = {"relu": (0.0,), "relu6": (0.0, 6.0), "hard_swish": (-3.0, 3.0)}
ASLEEP = 20_000_000
"""Cycles for which a GPU waits while what is timed is queued, so that no gap between launches counts."""


class Case(NamedTuple):
    """One norm, its input and the gradient of its output."""

    norm: nn.Module
    x: Tensor
    dy: Tensor


def case(channels: int, side: int, activation: str, *, batch: int, dtype: torch.dtype, mean: float = 0.0) -> Case:
    """Make a norm and channels-last maps, on the GPU where there is one."""
    from timm.layers import BatchNormAct2d, get_act_layer

    place = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator(place).manual_seed(0)
    named = activation != "identity"
    norm = BatchNormAct2d(channels, apply_act=named, act_layer=get_act_layer(activation if named else "relu"))
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_var):
            tensor.copy_(torch.rand(channels) + 0.5)

    def drawn() -> Tensor:
        shape, layout = (batch, channels, side, side), torch.channels_last
        value = torch.empty(shape, device=place, memory_format=layout)
        return value.normal_(generator=generator)

    norm, x, dy = norm.to(place), (drawn() + mean).to(dtype), drawn().to(dtype)
    # At a kink rounding decides which of two gradients a value gets, all of it or nothing.
    z = nn.BatchNorm2d.forward(copy.deepcopy(norm).double(), x.double())  # type: ignore[arg-type]
    for kink in KINKS.get(activation, ()):
        dy[(z - kink).abs() < 1e-3] = 0.0
    return Case(norm, x, dy)


def missing(dtype: torch.dtype) -> dict[str, str | None]:
    """Say why a kind cannot run here in a type; None where it can."""
    from hardware.errors import ConfigError
    from proxyless_strategy.norms import check_norm

    found: dict[str, str | None] = {}
    for kind in KINDS:
        try:
            check_norm(kind, "cuda" if torch.cuda.is_available() else "cpu", dtype, setting="norm")  # type: ignore[arg-type]
            found[kind] = None
        except ConfigError as error:
            found[kind] = str(error)
    return found


def passes(one: Case, kind: str) -> dict[str, Tensor]:
    """Run a norm forward and backward once, from the statistics that it has."""
    from proxyless_strategy.norms import FusedNorms

    norm, x = copy.deepcopy(one.norm), one.x.detach().clone().requires_grad_()
    with FusedNorms(norm, kind):  # type: ignore[arg-type]
        y = norm(x)
    y.backward(one.dy.to(y.dtype))
    if kind == "triton":
        assert "NormAct" in type(y.grad_fn).__name__, "Triton's kernels did not run"
    found = {"output": y, "input": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad}
    return {**found, "mean": norm.running_mean, "variance": norm.running_var}  # type: ignore[dict-item]


def errors(dry: bool, *, allowed: dict[torch.dtype, dict[str, str | None]]) -> dict[str, Any]:
    """Hold each kind against float64; return the largest error of each type, beside the largest value.

    Raises:
        Failed: Triton's is above its bound, or two runs of it differ.
    """
    from .gpu import need

    batch, side = (2, 5) if dry else (64, 28)
    found: dict[str, Any] = {}
    for dtype, bound in BOUNDS.items():
        name = str(dtype).removeprefix("torch.")
        found[name] = {}
        acts = ("identity", "relu", "relu6", "hard_swish", "silu") if dtype == torch.bfloat16 else ("relu6",)
        makes = [functools.partial(case, 144, side, act, batch=batch, dtype=dtype) for act in acts]
        makes.append(functools.partial(case, 13, side - 1, "relu6", batch=batch, dtype=dtype))
        if dtype == torch.float32:
            # The mean is rounded to float32 itself, by which values are off by 3e-5 deviations.
            makes.append(functools.partial(case, 24, side, "identity", batch=batch, dtype=dtype, mean=1000.0))
        for kind in KINDS:
            if allowed[dtype][kind] is not None:
                found[name][kind] = None
                continue
            worst = 0.0
            for make in makes:
                one = make()
                exact = passes(Case(copy.deepcopy(one.norm).double(), one.x.double(), one.dy.double()), "torch")
                near = passes(one, kind)
                scale = 30.0 if make.keywords.get("mean") else 1.0
                # Gradients of weights and statistics are in float32 whatever the maps are in.
                for key, value in near.items():
                    error = float((value.double() - exact[key]).abs().max() / exact[key].abs().max())
                    limit = scale * (bound if key in ("output", "input") else BOUNDS[torch.float32])
                    if dry:
                        limit *= 2  # the interpreter cuts bits off where a GPU rounds
                    worst = max(worst, error / scale)
                    what = f"{kind} in {name}, {make.args}: {key} is {error:.2g} from float64's, more than {limit:.2g}"
                    need(kind != "triton" or error <= limit, what)
                if kind == "triton":
                    again = passes(one, kind)
                    same = all(torch.equal(value, again[key]) for key, value in near.items())
                    need(same, f"two runs of {kind} in {name} differ, {make.args}")
            found[name][kind] = float(f"{worst:.3g}")
    return found


def beyond_32_bits() -> bool | None:
    """Look at a map whose offsets need more than 32 bits; None where the GPU is too small for it.

    Raises:
        Failed: What is read or written there is not what it should be.
    """
    from timm.layers import BatchNormAct2d

    from proxyless_strategy.norms import FusedNorms

    from .gpu import need

    channels, side, batch = 64, 224, 700
    if torch.cuda.mem_get_info()[0] < 26e9:
        return None
    norm = BatchNormAct2d(channels, act_layer=nn.ReLU, momentum=1.0).cuda()
    shape, layout = (batch, channels, side, side), torch.channels_last
    x = torch.zeros(shape, dtype=torch.bfloat16, device="cuda").contiguous(memory_format=layout)
    x[-1] = 1.0
    x.requires_grad_()
    share = 1 / batch
    variance = share * (1 - share)
    inverse = (variance + norm.eps) ** -0.5
    with FusedNorms(norm, "triton"):
        y = norm(x)
    y.backward(torch.ones((), dtype=x.dtype, device="cuda").expand(shape))
    high = (1 - share) * inverse
    level = float(y[-1].float().mean())
    need(abs(level - high) < 0.01 * high, f"beyond 2^31 values the output is {level}, not {high}")
    need(not y[:-1].any(), "before 2^31 values the output is not 0")
    mean, gradient = float(norm.running_mean.mean()), float(norm.bias.grad.mean())
    need(abs(mean - share) < 1e-5 * share, f"the mean of more than 2^31 values is {mean}, not {share}")
    need(abs(gradient - side * side) < 1e-5 * side * side, f"the sum of their gradients is {gradient}, not {side**2}")
    # dz is 1 in the last image and 0 elsewhere, as x is: all mean and slope, but for what eps leaves of it.
    left, found = inverse * (1 - share) * norm.eps / (variance + norm.eps), float(x.grad[-1].float().mean())
    need(abs(found - left) < 0.02 * left, f"the gradient beyond 2^31 values is {found}, not {left}")
    return True


# ---- how long it takes -------------------------------------------------------------------------------------------


def clocked(work: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return the seconds that the GPU works, those that launching takes, and what came out."""
    if not torch.cuda.is_available():
        began = time.perf_counter()
        found = work()
        taken = time.perf_counter() - began
        return taken, taken, found
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    torch.cuda._sleep(ASLEEP)
    start.record()
    began = time.perf_counter()
    found = work()
    launched = time.perf_counter() - began
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3, launched, found


def copying(x: Tensor, rounds: int) -> float:
    """Return the GB/s of a plain copy."""
    other = torch.empty_like(x)
    seconds = min(clocked(lambda: other.copy_(x))[0] for _ in range(rounds))
    return 2 * x.numel() * x.element_size() / seconds / 1e9


def speeds(dry: bool, *, allowed: dict[str, str | None]) -> dict[str, Any]:
    """Time each kind at each shape in interleaved rounds; medians, in bfloat16."""
    from proxyless_strategy.norms import FusedNorms

    batch, rounds = (2, 1) if dry else (BATCH, ROUNDS)
    shapes = ((24, 6, "relu6"), (8, 6, "identity")) if dry else SHAPES
    found: dict[str, Any] = {}
    for channels, side, activation in shapes:
        one = case(channels, side, activation, batch=batch, dtype=torch.bfloat16)
        size = one.x.numel() * one.x.element_size()
        times: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in KINDS if allowed[kind] is None}
        norms = {kind: copy.deepcopy(one.norm) for kind in times}
        fused = {kind: FusedNorms(norm, kind) for kind, norm in norms.items()}  # type: ignore[arg-type]
        x = one.x.requires_grad_()

        def measure(kind: str, x: Tensor = x, dy: Tensor = one.dy, norms: Any = norms, fused: Any = fused) -> Any:
            x.grad = None
            norms[kind].zero_grad(set_to_none=True)
            with fused[kind]:
                forward, launch, y = clocked(lambda: norms[kind](x))
            backward, launch_back, _ = clocked(lambda: y.backward(dy))
            return forward, backward, launch + launch_back

        for number in range(rounds + (0 if dry else 2)):
            for kind in random.Random(number).sample(list(times), len(times)):
                taken = measure(kind)
                if dry or number >= 2:  # the first ones compile and allocate
                    times[kind].append(taken)
        row: dict[str, Any] = {"copy_gb_s": round(copying(one.x.detach(), rounds), 1)}
        for kind in KINDS:
            keys = ("forward_ms", "backward_ms", "forward_gb_s", "backward_gb_s", "launch_us")
            row[kind] = dict.fromkeys(keys)
            if kind in times:
                forward, backward, launch = (statistics.median(each) for each in zip(*times[kind], strict=True))
                rates = FORWARD * size / forward / 1e9, BACKWARD * size / backward / 1e9
                values = (forward * 1e3, backward * 1e3, *rates, launch * 1e6)
                row[kind] = {key: float(f"{value:.4g}") for key, value in zip(keys, values, strict=True)}
        found[f"{channels}x{side}x{side}_{activation}"] = row
        print(f"{channels}x{side}x{side} {activation}: {row}", flush=True)
    return found


def subnet_steps(dry: bool, *, allowed: dict[str, str | None]) -> dict[str, Any]:
    """Time the training step of one stand-alone subnet with each kind, in interleaved rounds."""
    import timm
    from torch.nn import functional

    from proxyless_strategy.norms import FusedNorms
    from search_spaces import Subnet, get_space

    from .step_cost import sgd

    name, size, batch, rounds = ("small_mbconv", 16, 2, 1) if dry else ("imagenet_mbconv", 224, BATCH, 8)
    place = "cpu" if dry else "cuda"
    space = get_space(name)
    subnet = Subnet(space, space.costs(size, num_classes=1000).random_choices(1, seed=0)[0])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, size, size, generator=generator).to(place).contiguous(memory_format=torch.channels_last)
    y = (torch.arange(batch) % 1000).to(place)
    steps: dict[str, Callable[[], Any]] = {}
    for kind in (kind for kind in KINDS if allowed[kind] is None):
        torch.manual_seed(0)
        model = timm.create_model(subnet.timm_name, **subnet.model_args(num_classes=1000)).train()
        model = model.to(place).to(memory_format=torch.channels_last)
        fused, optimizer = FusedNorms(model, kind), sgd(model)  # type: ignore[arg-type]

        def step(model: nn.Module = model, fused: Any = fused, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            with fused, torch.autocast(place, dtype=torch.bfloat16):
                loss = functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss.detach()

        steps[kind] = step
    first, seconds, memory = {}, {kind: [] for kind in steps}, {}
    for kind, step in steps.items():
        began = time.perf_counter()
        loss = float(step())
        first[kind] = time.perf_counter() - began
        if not dry:
            step()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            step()
            memory[kind] = torch.cuda.max_memory_allocated() - before
        print(f"{kind}: first step {first[kind]:.2f} s, loss {loss:.4f}", flush=True)
    for number in range(rounds):
        for kind in random.Random(number).sample(list(steps), len(steps)):
            if not dry:
                torch.cuda.synchronize()
            began = time.perf_counter()
            steps[kind]()
            if not dry:
                torch.cuda.synchronize()
            seconds[kind].append(time.perf_counter() - began)
    found: dict[str, Any] = {}
    for kind in KINDS:
        found[kind] = dict.fromkeys(("ms", "images_s", "memory", "first_s"))
        if kind in steps:
            taken = statistics.median(seconds[kind])
            found[kind] = {
                "ms": round(1e3 * taken, 2),
                "images_s": round(batch / taken, 1),
                "memory": memory.get(kind),
                "first_s": round(first[kind], 2),
            }
    return found


def norms(dry: bool) -> dict[str, Any]:
    """Say how right and how fast each kind of norm is, and why one cannot run here."""
    if dry and not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are made
    began = time.monotonic()
    allowed = {dtype: missing(dtype) for dtype in BOUNDS}
    from .gpu import need

    need(allowed[torch.bfloat16]["triton"] is None, f"Triton's kernels: {allowed[torch.bfloat16]['triton']}")
    half = allowed[torch.bfloat16]
    found: dict[str, Any] = {"unable": {str(d).removeprefix("torch."): reasons for d, reasons in allowed.items()}}
    found["errors"] = errors(dry, allowed=allowed)
    found["beyond_32_bits"] = None if dry else beyond_32_bits()
    if not dry:
        torch.cuda.empty_cache()
    found["errors_s"] = round(time.monotonic() - began, 1)
    print(f"errors in {found['errors_s']} s: {found['errors']}", flush=True)
    found["shapes"] = speeds(dry, allowed=half)
    found["subnet"] = subnet_steps(dry, allowed=half)
    return found
