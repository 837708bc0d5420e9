"""Whether this machine's GPU searches right, and what its steps cost: in 8 minutes, as one table.

    make gpu
    .venv/bin/python -m tests.benchmarks.gpu [--dry-run] [--only steps ...]

Each part is a process of its own with a time limit, so that one that fails or hangs costs only itself. Standard output
ends in one line of JSON. The exit status is 1 where a part failed, and 0 where there is no GPU.

`--dry-run` runs the same parts at toy size on the CPU. Figures that need a GPU are then null; all others are of this
CPU and say nothing of a GPU.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from . import gpu_loader
from .gpu_capture import agreement as capture_agreement
from .gpu_capture import steps as capture_steps
from .gpu_parts import NO_GPU, Failed, Part, Skipped, look, need

ROOT = Path(__file__).parents[2]
SECONDS = 480
"""Of all parts together."""
ENVIRONMENT = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
FLOAT32_ERROR = 1e-3
BF16_COSINE = 0.8
"""Bounds of an update's gradient of alpha against float64's: its largest relative error, and its direction."""


# ---- are the updates right? ------------------------------------------------------------------------------------


def agreement(dry: bool) -> dict[str, Any]:
    """Hold the gradients of alpha on the GPU against those in float64 on the CPU; look at what must not move."""
    from proxyless_strategy.strategy.rules import GradientUpdate, ReinforceUpdate

    place = "cpu" if dry else "cuda"
    # TF32 keeps 10 bits of a float32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    updates = {
        "two": GradientUpdate(),
        "all": GradientUpdate(paths="all"),
        "reinforce": ReinforceUpdate(samples=4),
    }
    found: dict[str, Any] = {}
    for name, update in updates.items():
        exact = _alpha_gradient(update, "cpu", torch.float64, dry)
        need(float(exact.abs().max()) > 0, f"{name}: the gradient in float64 is 0")
        single = _alpha_gradient(update, place, torch.float32, dry)
        half = _alpha_gradient(update, place, torch.bfloat16, dry)
        error = float((single - exact).abs().max() / exact.abs().max())
        cosine = float(torch.nn.functional.cosine_similarity(half.flatten(), exact.flatten(), dim=0))
        found |= {f"{name}_float32_error": error, f"{name}_bf16_cosine": round(cosine, 4)}
        need(error <= FLOAT32_ERROR, f"{name}: float32 is {error:.2g} from float64, more than {FLOAT32_ERROR}")
        need(cosine >= BF16_COSINE, f"{name}: bfloat16 has cosine {cosine:.3f} to float64, less than {BF16_COSINE}")
    found["untouched"] = True
    return found


def _alpha_gradient(update: Any, place: str, precision: torch.dtype, dry: bool) -> torch.Tensor:
    """Return one architecture step's gradient; a weight step before it must leave what it does not run as it was."""
    from torch.nn import functional

    from proxyless_strategy.strategy.objectives import AccuracyOnly
    from proxyless_strategy.strategy.proxyless import ProxylessStrategy
    from proxyless_strategy.strategy.rules import GradientUpdate, Problem
    from proxyless_strategy.strategy.supernet.step_mode import ArchitectureStepMode
    from search_spaces import get_space

    from .step_cost import sgd, state_of

    generator = torch.Generator().manual_seed(0)
    size, batch = (16, 8) if dry else (32, 64)
    torch.manual_seed(0)
    space = get_space("small_mbconv")
    strategy = ProxylessStrategy()
    network = strategy.mutate_model(space.build(num_classes=10)).train()
    state = torch.float64 if precision == torch.float64 else torch.float32
    network = network.to(place, state).to(memory_format=torch.channels_last)
    x = torch.randn(batch, 3, size, size, generator=generator, dtype=torch.float64).to(place, state)
    x, y = x.contiguous(memory_format=torch.channels_last), (torch.arange(batch) % 10).to(place)
    costs, fixed = strategy.cost_matrix()
    problem = Problem(strategy.paths_of_space, strategy.architecture, costs, fixed, AccuracyOnly(), 0)
    mixed = functools.partial(torch.autocast, place, dtype=torch.bfloat16, enabled=precision == torch.bfloat16)

    def loss() -> torch.Tensor:
        with mixed():
            return functional.cross_entropy(network(x), y)

    # The share of right answers would jump where two classes are all but equal.
    task = loss if isinstance(update, GradientUpdate) else lambda: (-loss()).exp()
    before = [tensor.clone() for tensor in state_of(network)]
    with ArchitectureStepMode(network).active():
        outcome = update.compute(problem, task, 0, scale=None)
    moved = sum(not torch.equal(a, b) for a, b in zip(before, state_of(network), strict=True))
    need(moved == 0, f"an architecture step on {place} in {precision} changed {moved} weights or buffers")
    need(outcome.gradient is not None, f"the gradient on {place} in {precision} is not finite")

    names = [name for name, _ in (*network.named_parameters(), *network.named_buffers())]
    optimizer = sgd(network)
    with strategy.paths_of_space.running([0] * len(strategy.architecture.edges)):
        loss().backward()
    optimizer.step()
    frozen = _off_the_path(network)
    moved = sum(
        not torch.equal(a, b)
        for name, a, b in zip(names, before, state_of(network), strict=True)
        if name.startswith(frozen)
    )
    need(bool(frozen) and moved == 0, f"a weight step on {place} in {precision} changed {moved} tensors off its path")
    return outcome.gradient.double().cpu()


def _off_the_path(network: Any) -> tuple[str, ...]:
    """Return how the names of all candidates but each edge's first begin."""
    from proxyless_strategy.strategy.supernet.layers import BinaryGateLayer

    layers = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, BinaryGateLayer)]
    return tuple(f"{name}.{candidate}." for name, layer in layers for candidate in layer.names[1:])


# ---- what do steps cost? ---------------------------------------------------------------------------------------


def steps(dry: bool) -> dict[str, Any]:
    """Time all steps beside the stand-alone subnet's in interleaved rounds, and look at what the GPU does meanwhile."""
    from .step_cost import ratios, run_rounds, steps_of

    sizes = {"batch256": ("imagenet_mbconv", 224, 256, 4), "batch64": ("imagenet_mbconv", 224, 64, 4)}
    sizes["cifar64"] = ("cifar_mbconv", 32, 64, 4)
    if dry:
        sizes = dict.fromkeys(sizes, ("small_mbconv", 32, 2, 1))
    found: dict[str, Any] = {}
    for name, (space, size, batch, count) in sizes.items():
        stock = ("nni_proxyless",) if name == "batch64" else ()
        options: dict[str, Any] = {"precision": torch.bfloat16, "channels_last": True, "stock": stock}
        bench, made = steps_of(space, count, size, batch, device="cpu" if dry else "cuda", **options)
        run_rounds(bench, made, count, 1 if dry else 4)
        found[name] = ratios(bench, count, batch, stock=stock)
        gpu = {"busy": None, "kernels": None, "memory": None, "skipped": NO_GPU}
        looks = {"base": gpu, "weight": gpu, "gradient": gpu, "reinforce": gpu}
        if not dry:
            wall = {step: statistics.median(min(bench.times[step, k]) for k in range(count)) for step in looks}
            looks = {step: look(made[step, 0], wall[step]) for step in looks}
        found[name]["gpu"] = looks
        print(f"{name}: {json.dumps(found[name])}", flush=True)
        del bench, made
        if not dry:
            torch.cuda.empty_cache()
    return found


# ---- tables, searches, images ------------------------------------------------------------------------------------


def table(dry: bool) -> dict[str, Any]:
    """Build a table and hold it against nets of its own kind and of varied depth: with CUDA graphs, and eagerly."""
    from hardware.measuring.sampling import Plan
    from hardware.measuring.table import build_table
    from hardware.measuring.validation import check_table
    from search_spaces import get_space

    space, size, batch = ("small_mbconv", 32, 1) if dry else ("imagenet_mbconv", 224, 8)
    costs = get_space(space).costs(size, num_classes=10)
    nets = [costs.chain(choices) for choices in costs.random_choices(24, seed=0)]
    plan = Plan(rounds=3, minimum_rounds=1, seconds=5.0, sample_ms=0.05, extra_rounds=0)
    if not dry:
        plan = Plan(rounds=100, minimum_rounds=10, seconds=12.0)
    found: dict[str, Any] = {}
    for kind, graphs in (("graphs", True), ("eager", False)):
        began = time.monotonic()
        options = {"channels_last": True} if dry else {"graphs": graphs, "channels_last": True}
        with tempfile.TemporaryDirectory() as folder:
            built = build_table(
                costs.distinct(),
                nets[:12],
                backend="torch" if dry else "cuda",
                options=options,
                input_size=size,
                batch=batch,
                out=Path(folder) / "table.yml",
                plan=plan,
                progress=False,
            )
        seconds = round(time.monotonic() - began, 1)
        need(built.header.versions["torch"] == str(torch.__version__), f"{kind}: the header is of another torch")
        checked = check_table(built, {"uniform": nets[12:]}, plan=plan, progress=False).figures()["together"]
        figures = {"seconds": seconds, "operators": len(built.entries), "check": checked}
        found[kind] = figures
        print(f"{kind}: {json.dumps(figures)}", flush=True)
    return found


def settings_of(folder: Path, name: str, *, dry: bool, **changes: Any) -> Path:
    """Write the YAML of a search of digits; it is deterministic, and asks no table."""
    values = {
        "space": {"name": "small_mbconv", "options": {"stem_stride": 1}},
        "data": "digits",
        "input_size": 16,
        "hardware": {"cost": "macs", "device": "other"},
        "target": 0.5,
        "search": {
            "warmup_epochs": 1,
            "epochs": 2 if dry else 6,
            "batch_size": 128,
            "steps_per_update": 2,
            "checkpoint_every": 1e-9,
            "deterministic": True,
            "accelerator": "cpu" if dry else "gpu",
            "threads": 1,
        },
        "retrain": {"epochs": 1 if dry else 2, "batch_size": 128, "threads": 1},
        "out": str(folder / name),
        **changes,
    }
    if dry:
        values["space"] = {
            "name": "small_mbconv",
            "options": {"stages": [{"width": 8, "depth": 1, "stride": 2}], "head_width": 32},
        }
    path = folder / f"{name}.yml"
    path.write_text(yaml.safe_dump(values))
    return path


def searching(config: Path, *settings: str) -> list[str]:
    """Return the command line of a search."""
    sets = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-W", "ignore", "-m", "proxyless_strategy.cli", "search", str(config), *sets]


def finish(command: Sequence[str]) -> None:
    """Run a search to its end.

    Raises:
        Failed: It ended badly; the last lines say why.
    """
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    need(ran.returncode == 0, f"the search ended with {ran.returncode}: {' '.join(ran.stderr.split())[-400:]}")


def search(dry: bool) -> dict[str, Any]:
    """Search from YAML to ONNX, on a table of this GPU."""
    hardware = {"cost": "macs", "device": "other"}
    if not dry:
        hardware = {"backend": "cuda", "options": {"graphs": True, "channels_last": True}, "batch": 8}
    with tempfile.TemporaryDirectory() as folder:
        config = settings_of(Path(folder), "run", dry=dry, hardware=hardware)
        began = time.monotonic()
        finish(searching(config))
        row = json.loads((Path(folder) / "run" / "row.json").read_text())
        need(Path(row["onnx"]).stat().st_size > 0, "the ONNX file is empty")
        need(row["subnet_cost"] <= row["target_cost"], f"{row['subnet_cost']} misses the target {row['target_cost']}")
        names = ("hardware", "unit", "target_cost", "subnet_cost", "latency_ms", "accuracy")
        return {**{name: row[name] for name in names}, "seconds": round(time.monotonic() - began, 1)}


def resume(dry: bool) -> dict[str, Any]:
    """Kill a search within an epoch and repeat the command: it must end bit for bit as one that nothing disturbed."""
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        finish(searching(settings_of(folder, "whole", dry=dry)))
        killed = searching(settings_of(folder, "killed", dry=dry))
        with subprocess.Popen(killed, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not (folder / "killed" / "search.ckpt").exists():
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        need(not (folder / "killed" / "search.json").exists(), "the search ended before it was killed")
        finish(killed)
        records = [json.loads((folder / run / "search.json").read_text()) for run in ("whole", "killed")]
        compared = ("subnet", "probabilities", "history", "finalists")
        weights = [load_file(folder / run / "model" / "model.safetensors") for run in ("whole", "killed")]
        different = [key for key in compared if records[0][key] != records[1][key]]
        different += [key for key, value in weights[0].items() if not torch.equal(value, weights[1][key])]
        need(not different, f"the resumed search differs in {', '.join(different[:5])}")
        return {"identical": True, "tensors": len(weights[0])}


def nccl(dry: bool) -> dict[str, Any]:
    """Search on two GPUs."""
    if dry or torch.cuda.device_count() < 2:
        raise Skipped("it needs two GPUs, and " + ("this is a dry run" if dry else "there is one"))
    with tempfile.TemporaryDirectory() as folder:
        config = settings_of(Path(folder), "run", dry=dry)
        finish(searching(config, "search.devices=2"))
        row = json.loads((Path(folder) / "run" / "row.json").read_text())
        return {"accuracy": row["accuracy"], "seconds": row["seconds"]}


def norms(dry: bool) -> dict[str, Any]:
    """Hold PyTorch's batch norm with its activation, cuDNN's and Triton's kernels against each other."""
    from .gpu_norms import norms as found

    return found(dry)


_ERRORS = tuple(f"{rule}_{what}" for rule in ("two", "all", "reinforce") for what in ("float32_error", "bf16_cosine"))
_ROW = ("hardware", "unit", "target_cost", "subnet_cost", "latency_ms", "accuracy", "seconds")
PARTS = {
    "agreement": Part(agreement, 90, (*_ERRORS, "untouched")),
    "steps": Part(steps, 150, ("batch256", "batch64", "cifar64")),
    "table": Part(table, 150, ("graphs", "eager")),
    "search": Part(search, 120, _ROW),
    "resume": Part(resume, 150, ("identical", "tensors")),
    "nccl": Part(nccl, 90, ("accuracy", "seconds")),
    "loader": Part(gpu_loader.loader, 90, gpu_loader.FIGURES),
    "norms": Part(norms, 120, ("unable", "errors", "beyond_32_bits", "errors_s", "shapes", "subnet"), optional=True),
    "capture_agreement": capture_agreement,
    "capture": capture_steps,
}


# ---- all parts -------------------------------------------------------------------------------------------------


def result_of(name: str, status: str, *, seconds: float = 0.0, reason: str | None = None, found: Any = None) -> Any:
    """Return what the JSON says of a part: the same keys however it ended, null where there is no figure."""
    figures = {key: (found or {}).get(key) for key in PARTS[name].figures}
    return {"status": status, "seconds": round(seconds, 1), "reason": reason, "figures": figures}


def run_part(name: str, dry: bool) -> None:
    """Run one part here, and print its result as the last line."""
    warnings.simplefilter("ignore")
    began = time.monotonic()
    try:
        found, status, reason = PARTS[name].run(dry), "passed", None
        need(set(found) == set(PARTS[name].figures), f"the figures are {sorted(found)}")
    except Skipped as error:
        found, status, reason = None, "skipped", str(error)
    except Exception as error:
        if not isinstance(error, Failed):
            traceback.print_exc()
        found, status, reason = None, "failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
    seconds = time.monotonic() - began
    print(json.dumps(result_of(name, status, seconds=seconds, reason=reason, found=found)), flush=True)


def ask(name: str, dry: bool, limit: float) -> Any:
    """Run one part in a process of its own, within a time limit, and return its result."""
    command = [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.gpu", "--part", name]
    began = time.monotonic()
    process = subprocess.Popen(
        [*command, *(["--dry-run"] if dry else [])],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the searches that it has started
        process.communicate()
        return result_of(name, "failed", seconds=limit, reason=f"it took more than {limit:.0f} s")
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    try:
        return json.loads(said.splitlines()[-1])
    except (IndexError, ValueError):
        reason = f"its process ended with {process.returncode} and no result"
        return result_of(name, "failed", seconds=time.monotonic() - began, reason=reason)


def machine() -> dict[str, Any]:
    """Say what is measured on."""
    found = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if found else None,
        "count": torch.cuda.device_count() if found else 0,
        "torch": str(torch.__version__),
        "cuda": None if torch.version.cuda is None else str(torch.version.cuda),
    }


def short(value: Any) -> str:
    """Write figures for people."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {short(each)}" for key, each in value.items() if each is not None)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="at toy size, on the CPU")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.part is not None:
        run_part(given.part, given.dry_run)
        return 0
    here, results, missing = machine(), {}, None
    if here["device"] is None and not given.dry_run:
        missing = f"there is no GPU here: torch {here['torch']} sees none"
        print(f"{missing}; nothing was measured (--dry-run tries everything on the CPU)")
    # A dry run is not timed: the machine may be any.
    end = math.inf if given.dry_run else time.monotonic() + SECONDS
    for name, part in PARTS.items():
        if missing is not None or name not in given.only:
            results[name] = result_of(name, "skipped", reason=missing or "it was not asked for")
            continue
        left = end - time.monotonic()
        if left < (part.seconds if part.optional else 10):
            reason = f"too little was left of the {SECONDS} s of all parts; run it alone with --only {name}"
            results[name] = result_of(name, "skipped" if part.optional else "failed", reason=reason)
        else:
            results[name] = ask(name, given.dry_run, 1800 if given.dry_run else min(part.seconds, left))
        result = results[name]
        told = result["reason"] or short(result["figures"])
        print(f"{name:<10} {result['status']:<8} {result['seconds']:>6.1f} s  {told}", flush=True)
    failed = [name for name, result in results.items() if result["status"] == "failed"]
    document = {"machine": here, "dry_run": given.dry_run, "failed": failed, "skipped": missing, "parts": results}
    print(json.dumps(document))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
