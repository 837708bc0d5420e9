"""What a network takes: parameters, multiply-accumulates, bytes that training keeps, and images of which shape."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

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
    """Count parameters and multiply-accumulates; nothing is computed, and the network stays as it is.

    Example:
        >>> model_summary(nn.Conv2d(3, 8, 3, padding=1, bias=False), (3, 10, 10))
        ModelSummary(params=216, macs=21600)

    Args:
        model: The network.
        input_shape: `C x H x W` of an image.
    """
    shape = image_shape(input_shape)
    shadow = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shadow(torch.empty(1, *shape, device="meta"))
    return ModelSummary(
        params=sum(parameter.numel() for parameter in model.parameters()),
        macs=counter.get_total_flops() // 2,  # torch counts a multiplication and an addition as two
    )


class SavedBytes:
    """Count the bytes that autograd keeps for the backward pass while the context is open; views of one storage once.

    Args:
        without: Tensors that are not counted, such as parameters: they are there anyway.
    """

    def __init__(self, without: Iterable[torch.Tensor] = ()) -> None:
        self._without = {tensor.untyped_storage().data_ptr() for tensor in without}
        self._sizes: dict[int, int] = {}
        self._hooks = saved_tensors_hooks(self._note, lambda tensor: tensor)

    def __enter__(self) -> SavedBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    @property
    def total(self) -> int:
        """Bytes so far."""
        return sum(self._sizes.values())

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._without:
            self._sizes[storage.data_ptr()] = storage.nbytes()
        return tensor


def input_size(model: nn.Module) -> Sequence[int]:
    """Return `C x H x W` of the images that timm's network was made for."""
    config: Any = model.pretrained_cfg
    return config["input_size"]


def image_shape(input_shape: Sequence[int]) -> tuple[int, ...]:
    """Return `C x H x W` as three positive numbers.

    Raises:
        ExportError: It is something else.
    """
    shape = tuple(int(size) for size in input_shape)
    if len(shape) != 3 or min(shape) < 1:
        raise ExportError(f"input_shape = {tuple(input_shape)}; give C, H and W of one image")
    return shape
