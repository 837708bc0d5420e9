"""Parameters and multiply-accumulates of a network, and the images it takes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hardware.errors import ExportError


@dataclass(frozen=True)
class ModelSummary:
    """The size of a network.

    Attributes:
        params: All parameters, those of batch norms and biases too; running statistics are none.
        macs: Multiply-accumulates of convolutions and linear layers for one image; biases, norms, activations and
            pooling are not counted.
    """

    params: int
    macs: int


def model_summary(model: nn.Module, input_shape: Sequence[int]) -> ModelSummary:
    """Counts parameters and multiply-accumulates; nothing is computed, and the network stays as it is.

    Args:
        model: The network.
        input_shape: `C x H x W` of an image.
    """
    from torch.utils.flop_counter import FlopCounterMode

    shape = _image_shape(input_shape)
    shadow = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, *shape, device="meta"))
    return ModelSummary(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=counter.get_total_flops() // 2,
    )


def _input_size(model: nn.Module) -> Sequence[int]:
    config: Any = model.pretrained_cfg
    return config["input_size"]


def _image_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    shape = tuple(int(size) for size in input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ExportError(f"input_shape = {tuple(input_shape)}; give C, H and W of one image")
    return shape
