"""timm models of MBConv blocks, with weights in a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import nn

FAMILIES = {
    "mobilenetv2_*": "mobilenetv2_050",
    "mnasnet_*": "mnasnet_small",
    "semnasnet_*": "semnasnet_050",
    "spnasnet_*": "spnasnet_100",
    "fbnetc_*": "fbnetc_100",
    "efficientnet_b[0-9]": "efficientnet_b0",
    "efficientnet_lite*": "efficientnet_lite0",
    "efficientnet_e[sml]": "efficientnet_es",
    "tf_efficientnet_b*": "tf_efficientnet_b0",
    "tf_efficientnet_lite*": "tf_efficientnet_lite0",
    "tf_efficientnet_e[sml]": "tf_efficientnet_es",
    "mobilenetv3_*": "mobilenetv3_small_050",
    "tf_mobilenetv3_*": "tf_mobilenetv3_small_minimal_100",
    "hardcorenas_*": "hardcorenas_a",
    "mobilenetv1_*": "mobilenetv1_100",
    "efficientnetv2_s": "efficientnetv2_s",
    "tf_efficientnetv2_b*": "tf_efficientnetv2_b0",
    "tinynet_*": "tinynet_e",
    "lcnet_*": "lcnet_035",
    "fbnetv3_*": "fbnetv3_b",
    "mobilenet_edgetpu_100": "mobilenet_edgetpu_100",
    "proxylessnas_mobile*": "proxylessnas_mobile",
}
"""Families by the pattern of their names; one of each whose test is cheap."""
NAMES = sorted({name for pattern in FAMILIES for name in timm.list_models(pattern)})


def varied(model: nn.Module) -> nn.Module:
    """Give a network batch norms that are no identity, and biases that are not 0."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
        elif getattr(module, "bias", None) is not None:
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def with_weights(name: str, folder: Path, **sizes: Any) -> tuple[nn.Module, Path]:
    """Return a timm model with weights of its own, and the file that has them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = varied(timm.create_model(name, **sizes))
    path = folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return model, path


def images(size: int = 64, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(1))
