"""The networks that a benchmark compares, by name, folder or file."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
import torchvision
from torch import nn

from hardware.errors import ConfigError

from ..export.folder import CONFIG, load_exported

DEFAULT_MODELS = (
    "proxylessnas_mobile",
    "proxylessnas_cpu",
    "proxylessnas_gpu",
    "mobilenetv1_100",
    "mobilenetv2_100",
    "mnasnet_100",
)


def source_of(name: str) -> str:
    """Say who builds a model: `timm`, `torchvision` or `export`.

    Raises:
        ConfigError: Nobody knows the name, and it is no folder either.
    """
    if timm.is_model(name):
        return "timm"
    others = torchvision.models.list_models(module=torchvision.models)
    if name in others:
        return "torchvision"
    if (Path(name) / CONFIG).is_file():
        return "export"
    if Path(name).is_dir():
        raise ConfigError(f"{name} has no {CONFIG}, so it is no export folder; give the folder of an export")
    close = difflib.get_close_matches(name, [*timm.list_models(), *others], n=3)
    raise ConfigError(
        f"unknown model {name!r}: no export folder, and not known to timm or torchvision; "
        f"{'did you mean ' + ', '.join(close) if close else 'try ' + DEFAULT_MODELS[0]}?"
    )


def build_model(name: str, *, seed: int = 0) -> nn.Module:
    """Build a model in evaluation mode: an export with its weights, any other with random ones.

    Raises:
        ConfigError: The model is unknown.
        ExportError: The export folder cannot be loaded.
    """
    source = source_of(name)
    if source == "export":
        return load_exported(Path(name), exportable=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if source == "timm":
            return timm.create_model(name, exportable=True).eval()
        return torchvision.models.get_model(name, weights=None).eval()


def settle(model: nn.Module, input_shape: Sequence[int], *, seed: int = 0) -> None:
    """Give batch norms that never saw an image the statistics of two random ones.

    Activations of a random network would otherwise vanish or grow from layer to layer, and arithmetic on denormal
    numbers is slower than on others. A trained network stays as it is.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    fresh = [n for n in norms if n.track_running_stats and not n.num_batches_tracked]
    if not fresh:
        return
    momenta = [norm.momentum for norm in fresh]
    images = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(seed))
    # Momentum 1 takes the statistics of this batch as they are; the default would mix them with mean 0 and variance 1.
    for norm in fresh:
        norm.train()
        norm.momentum = 1.0
    try:
        with torch.no_grad():
            model(images)
    finally:
        for norm, momentum in zip(fresh, momenta, strict=True):
            norm.eval()
            norm.momentum = momentum
