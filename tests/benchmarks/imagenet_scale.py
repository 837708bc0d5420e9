"""GPU hours and memory of the ImageNet search of examples/imagenet_search.yml, predicted without a GPU.

    hours  = (weight steps * w + architecture steps * a) * batch * max(m, s) / R / 3600
    memory = batch * saved bytes of an image + 12 bytes * parameters (weights, gradients, momentum; float32)

Counted from the config: the steps. Measured here, at 224 px in float32, over random choices of `imagenet_mbconv`: `w`
and `a`, a step's time in training steps of the same subnet (`a` of REINFORCE: 10 sampled subnets); saved bytes; `m` and
`s`, a random subnet's multiply-accumulates and saved bytes over those of a reference network. Assumed: `R`, images a
second at which one GPU trains the reference network; its source is printed, and `--images-per-second` with `--source`
replaces it. Without any assumption: the `R` at which the search would take the paper's 200 GPU hours.

    .venv/bin/python -m tests.benchmarks.imagenet_scale [--choices 6] [--images-per-second 2313.1 --source TEXT]
"""

from __future__ import annotations

import argparse
import json
import statistics
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from proxyless_strategy.config import SearchConfig, load_config
from proxyless_strategy.export.summary import SavedBytes, model_summary
from proxyless_strategy.runs.forecast import schedule
from search_spaces import Subnet, users_space

from .step_cost import imagenet

CONFIG = Path(__file__).parents[2] / "examples" / "imagenet_search.yml"
TRAINING_IMAGES, CLASSES = 1_281_167, 1000
PAPER_GPU_HOURS = 200
REFERENCE = "mobilenetv2_100"
IMAGES_PER_SECOND = 2313.1
SOURCE = (
    "timm's train benchmark of mobilenetv2_100: RTX 3090, AMP, channels last, batch 512, PyTorch 1.12 "
    "(huggingface/pytorch-image-models, results/benchmark-train-amp-nhwc-pt112-cu113-rtx3090.csv)"
)


@dataclass(frozen=True)
class Measured:
    """What this machine can tell.

    Attributes:
        weight: A weight step, in training steps of the same stand-alone subnet.
        gradient: An architecture step of the gradient rule, likewise.
        reinforce: One sampled subnet of REINFORCE, likewise.
        darts: A step of all paths, likewise.
        saved_bytes: What one image's training step keeps for the backward pass.
        saved_gradient: What an architecture step of the gradient rule keeps, over that.
        saved_darts: What a step of all paths keeps, over that.
        relative_cost: A random subnet's cost over the reference network's: the larger of MACs and saved bytes.
        parameters: Of the supernet.
    """

    weight: float
    gradient: float
    reinforce: float
    darts: float
    saved_bytes: float
    saved_gradient: float
    saved_darts: float
    relative_cost: float
    parameters: int


def predict(config: SearchConfig, measured: Measured, images_per_second: float) -> dict[str, Any]:
    """Predict GPU hours of both rules and of DARTS with as many steps, and memory at the config's batch."""
    settings = config.search
    images = TRAINING_IMAGES - CLASSES * (config.data.architecture_per_class or 0)
    per_epoch = images // settings.batch_size
    steps = {rule: schedule(per_epoch, settings, rule) for rule in ("gradient", "reinforce")}  # type: ignore[arg-type]
    architecture = {"gradient": measured.gradient, "reinforce": settings.samples * measured.reinforce}
    work = {
        rule: count.weights * measured.weight + count.architecture * architecture[rule] for rule, count in steps.items()
    }
    work["darts"] = (steps["gradient"].weights + steps["gradient"].architecture) * measured.darts
    seconds = settings.batch_size * measured.relative_cost / images_per_second
    needed = {
        rule: settings.batch_size * measured.relative_cost * work[rule] / (PAPER_GPU_HOURS * 3600) for rule in steps
    }
    state = 12 * measured.parameters
    saved = {"one_path": 1.0, "gradient": measured.saved_gradient, "darts": measured.saved_darts}
    return {
        "steps_per_epoch": per_epoch,
        "weight_steps": steps["gradient"].weights,
        "architecture_steps": {rule: count.architecture for rule, count in steps.items()},
        "gpu_hours": {name: round(value * seconds / 3600, 1) for name, value in work.items()},
        "paper_gpu_hours": PAPER_GPU_HOURS,
        "images_per_second_of_reference_for_paper_hours": {rule: round(value) for rule, value in needed.items()},
        "memory_gib": {
            name: round((settings.batch_size * ratio * measured.saved_bytes + state) / 2**30, 2)
            for name, ratio in saved.items()
        },
    }


def measure(config: SearchConfig, *, choices: int, batch: int) -> tuple[Measured, dict[str, Any]]:
    """Measure step ratios, saved bytes and relative cost; return them and the figures that they come from."""
    ratios = imagenet(choices, config.input_size, batch, 2)
    space = users_space(config.space.name, **config.space.options)
    x = torch.randn(batch, 3, config.input_size, config.input_size)
    y = torch.arange(batch)
    macs, saved = [], []
    for chosen in space.costs(config.input_size).random_choices(choices, seed=1):
        model = timm.create_model("proxylessnas", **Subnet(space, chosen).model_args())
        macs.append(model_summary(model, (3, config.input_size, config.input_size)).macs)
        saved.append(saved_bytes(model, x, y))
    reference = timm.create_model(REFERENCE)
    reference_macs = model_summary(reference, (3, config.input_size, config.input_size)).macs
    relative = {
        "macs": statistics.mean(macs) / reference_macs,
        "saved_bytes": statistics.mean(saved) / saved_bytes(reference, x, y),
    }
    measured = Measured(
        weight=ratios["weight"]["time"],
        gradient=ratios["gradient"]["time"],
        reinforce=ratios["reinforce"]["time"],
        darts=ratios["darts"]["time"],
        saved_bytes=statistics.mean(saved),
        saved_gradient=ratios["gradient"]["saved"],
        saved_darts=ratios["darts"]["saved"],
        relative_cost=max(relative.values()),
        parameters=sum(parameter.numel() for parameter in space.build().parameters()),
    )
    details = {
        "step_ratios": ratios,
        "random_subnet_macs": round(statistics.mean(macs)),
        "reference_macs": reference_macs,
        "relative": {name: round(value, 3) for name, value in relative.items()},
    }
    return measured, details


def saved_bytes(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    """Distinct bytes per image that autograd keeps for the backward pass of a training step, parameters left out."""
    with SavedBytes(without=(*model.parameters(), *model.buffers())) as saved:
        torch.nn.functional.cross_entropy(model.train()(x), y).backward()
    return saved.total / len(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choices", type=int, default=6)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images-per-second", type=float, default=IMAGES_PER_SECOND)
    parser.add_argument("--source", default=SOURCE)
    arguments = parser.parse_args()
    if arguments.images_per_second != IMAGES_PER_SECOND and arguments.source == SOURCE:
        parser.error("--images-per-second needs a --source of its own")
    warnings.simplefilter("ignore")
    torch.set_num_threads(arguments.threads)
    config = load_config(CONFIG)
    print(f"measuring steps of {arguments.choices} random choices at {config.input_size} px", flush=True)
    measured, details = measure(config, choices=arguments.choices, batch=arguments.batch)
    print(
        f"assumed: one GPU trains {arguments.images_per_second:g} images/s of {REFERENCE}: {arguments.source}",
        flush=True,
    )
    assumed = {"images_per_second": arguments.images_per_second, "network": REFERENCE, "source": arguments.source}
    print(
        json.dumps(
            {
                **predict(config, measured, arguments.images_per_second),
                "measured": {**vars(measured), **details},
                "assumed": assumed,
            }
        )
    )


if __name__ == "__main__":
    main()
