"""Small networks and their export folders, for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from proxyless_strategy.export.folder import export_folder
from search_spaces import Subnet, get_space

FEEDING = {
    "input_size": [1, 32, 32],
    "mean": [0.3],
    "std": [0.4],
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "num_classes": 10,
    "label_names": [f"digit {number}" for number in range(10)],
}


def a_subnet(*, stem_stride: int = 2, last: bool = False) -> Subnet:
    space = get_space("small_mbconv", stem_stride=stem_stride)
    return Subnet(space, {label: names[-1 if last else 0] for label, names in space.candidates().items()})


def a_tree() -> Subnet:
    space = get_space("cifar_tree", blocks=1, stem_width=4, alpha=8, bottleneck=2)
    return Subnet(space, space.costs(32).random_choices(1, seed=1)[0])


def a_timm(*, last: bool = False) -> Subnet:
    """A choice in a timm model with all that MBConv spaces lack: squeezing, a pooled head, rates of its own."""
    space = get_space("timm:mobilenetv3_small_050", kernels=[3, 5], expansions=[3], weights="none")
    space = replace(space, drop_rate=0.1, drop_path_rate=0.2)
    return Subnet(space, {label: names[-1 if last else 0] for label, names in space.candidates().items()})


def a_model(subnet: Subnet) -> nn.Module:
    """A network whose batch norms have seen images, so that folding them is no identity."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(subnet.timm_name, **subnet.model_args(num_classes=10, in_chans=1))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
                nn.init.normal_(module.running_mean, std=0.1)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


def export(folder: Path, choice: Subnet | None = None, **changes: Any) -> tuple[nn.Module, Path]:
    choice = choice or a_subnet()
    model = changes.pop("model", None) or a_model(choice)
    arguments = {
        "model_args": choice.model_args(num_classes=10, in_chans=1),
        "subnet": choice.to_dict(),
        "pretrained_cfg": FEEDING,
        "metrics": {"test_accuracy": 0.5},
        **changes,
    }
    return model, export_folder(model, folder, **arguments)


def images(channels: int = 1, size: int = 32, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def difference(first: nn.Module, second: nn.Module) -> float:
    with torch.inference_mode():
        return (first.eval()(images()) - second.eval()(images())).abs().max().item()
