"""A chain of primitives as a torch module, with the random weights of the same chain's ONNX graph."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from .primitives import (
    Add,
    AddMap,
    BatchNorm,
    ChannelShuffle,
    Conv,
    Flatten,
    GlobalAvgPool,
    Linear,
    Pool,
    Primitive,
    SqueezeExcite,
    SumHalves,
    activation_name,
)
from .weights import random_weights

_ACTIVATIONS = {
    "relu": functional.relu_,
    "relu6": lambda x: functional.relu6(x, inplace=True),
    "hard_swish": lambda x: functional.hardswish(x, inplace=True),
    "hard_sigmoid": lambda x: functional.hardsigmoid(x, inplace=True),
    "silu": lambda x: functional.silu(x, inplace=True),
    "sigmoid": torch.sigmoid_,
    "gelu": functional.gelu,
}


class Chain(nn.Module):
    """Operators one after another. Within an operator, `Add` adds the operator's input.

    Args:
        groups: The primitives of each operator.
        seed: Seed of the random weights.
    """

    def __init__(self, groups: Sequence[Sequence[Primitive]], *, seed: int = 0) -> None:
        super().__init__()
        weights = iter(random_weights([p for group in groups for p in group], seed=seed))
        self.layers = nn.ModuleList(_module(p, next(weights)) for group in groups for p in group)
        self._sizes = [len(group) for group in groups]

    def forward(self, x: Tensor) -> Tensor:
        layers = iter(self.layers)
        for size in self._sizes:
            start = x
            for module in islice(layers, size):
                x = x + start if isinstance(module, _Add) else module(x)
        return x


def chain_and_image(
    groups: Sequence[Sequence[Primitive]], shape: Sequence[int], *, channels_last: bool = False
) -> tuple[nn.Module, Tensor]:
    """Build a chain and an input for it.

    Args:
        groups: The primitives of each operator.
        shape: `(B, C, H, W)` of the input.
        channels_last: Whether both are in the channels-last memory format.

    Returns:
        The chain in evaluation mode, and random numbers.
    """
    module: nn.Module = Chain(groups).eval()
    image = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    if channels_last:
        module = module.to(memory_format=torch.channels_last)
        image = image.to(memory_format=torch.channels_last)
    return module, image


class _Add(nn.Module):
    """Marks where `Chain.forward` adds; a module sees its own input alone, not its operator's."""


class _AddMap(nn.Module):
    weight: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("weight", torch.empty(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight


class _SumHalves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        return first + second


class _Activated(nn.Module):
    def __init__(self, layer: nn.Module, activation: str) -> None:
        super().__init__()
        self.layer = layer
        self.act = _ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.layer(x))


class _SameConv(nn.Conv2d):
    """A convolution padded by what its primitive says of the map that comes."""

    def __init__(self, primitive: Conv, **options: Any) -> None:
        super().__init__(padding=0, **options)
        self.primitive = primitive

    def forward(self, x: Tensor) -> Tensor:
        top, left, bottom, right = self.primitive.pads(tuple(x.shape[1:]))
        return super().forward(functional.pad(x, (left, right, top, bottom)))


class _SqueezeExcite(nn.Module):
    def __init__(self, primitive: SqueezeExcite) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(primitive.channels, primitive.reduced, 1)
        self.expand = nn.Conv2d(primitive.reduced, primitive.channels, 1)
        self.act = _ACTIVATIONS[primitive.activation] if primitive.activation else nn.Identity()
        self.gate = _ACTIVATIONS[primitive.gate] if primitive.gate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.expand(self.act(self.reduce(x.mean((2, 3), keepdim=True)))))


class _Shuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.shuffle_groups = groups

    def forward(self, x: Tensor) -> Tensor:
        return functional.channel_shuffle(x, self.shuffle_groups)


def _module(primitive: Primitive, arrays: dict[str, np.ndarray]) -> nn.Module:
    if isinstance(primitive, Conv):
        options: dict[str, Any] = {
            "in_channels": primitive.in_channels,
            "out_channels": primitive.out_channels,
            "kernel_size": primitive.kernel,
            "stride": primitive.stride,
            "dilation": primitive.dilation,
            "groups": primitive.groups,
            "bias": primitive.folded_norm or primitive.bias,
        }
        same = primitive.same and primitive.stride > 1
        conv = _SameConv(primitive, **options) if same else nn.Conv2d(padding=primitive.padding, **options)
        return _activated(_filled(conv, arrays), primitive.activation)
    if isinstance(primitive, BatchNorm):
        norm = nn.BatchNorm2d(primitive.channels, eps=1e-3).eval()
        return _activated(_filled(norm, arrays), primitive.activation)
    if isinstance(primitive, Pool):
        if primitive.maximum:
            return nn.MaxPool2d(primitive.kernel, primitive.stride, primitive.padding)
        return nn.AvgPool2d(primitive.kernel, primitive.stride, primitive.padding, count_include_pad=False)
    if isinstance(primitive, ChannelShuffle):
        return _Shuffle(primitive.groups)
    if isinstance(primitive, AddMap):
        return _filled(_AddMap((primitive.channels, primitive.height, primitive.width)), arrays)
    if isinstance(primitive, SumHalves):
        return _SumHalves()
    if isinstance(primitive, SqueezeExcite):
        return _filled(_SqueezeExcite(primitive), arrays)
    if isinstance(primitive, GlobalAvgPool):
        return nn.AdaptiveAvgPool2d(1) if primitive.keep else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    if isinstance(primitive, Flatten):
        return nn.Flatten()
    if isinstance(primitive, Linear):
        return _filled(nn.Linear(primitive.in_features, primitive.out_features), arrays)
    assert isinstance(primitive, Add)
    return _Add()


def _filled(module: nn.Module, arrays: dict[str, np.ndarray]) -> nn.Module:
    with torch.no_grad():
        for name, array in arrays.items():
            attrgetter(name)(module).copy_(torch.from_numpy(array))
    return module


def _activated(module: nn.Module, activation: str | None) -> nn.Module:
    name = activation_name(activation)
    return module if name is None else _Activated(module, name)
