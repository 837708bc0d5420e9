"""Candidate operations: timm's own blocks, and `skip`; each with the OpSpec of what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from timm.layers import BatchNormAct2d, get_act_layer
from timm.models._efficientnet_blocks import DepthwiseSeparableConv, InvertedResidual
from torch import nn

from hardware.errors import SpaceError, SubnetError
from hardware.op_spec import IDENTITY, OpSpec
from hardware.reading import shown

from .costs import SKIP as SKIP


@dataclass(frozen=True)
class BlockShape:
    """Where a block stands: channels in and out, and its stride."""

    in_width: int
    out_width: int
    stride: int

    @property
    def can_skip(self) -> bool:
        """Whether the identity fits: stride 1 and as many channels out as in."""
        return self.stride == 1 and self.in_width == self.out_width


def candidate_name(kernel: int, expansion: int) -> str:
    """Name an MBConv candidate.

    >>> candidate_name(kernel=5, expansion=3)
    '5x5_e3'
    """
    return f"{kernel}x{kernel}_e{expansion}"


def parse_candidate(name: str) -> tuple[int, int]:
    """Return kernel and expansion of a candidate's name.

    Raises:
        SubnetError: The name is not of the form `5x5_e3`.

    >>> parse_candidate("5x5_e3")
    (5, 3)
    """
    kernel, _, expansion = name.partition("_e")
    side, _, other = kernel.partition("x")
    if side != other or not side.isdigit() or not expansion.isdigit():
        raise SubnetError(f"{shown(name)} is no MBConv candidate; names look like 5x5_e3 (kernel, expansion) or skip")
    return int(side), int(expansion)


def hidden_width(in_width: int, expansion: int) -> int:
    """Return the channels of the depthwise convolution: `in_width * expansion`."""
    return in_width * expansion


def norm_layer(*, eps: float, momentum: float) -> partial[BatchNormAct2d]:
    """Return timm's fused batch norm and activation with this space's eps and momentum."""
    return partial(BatchNormAct2d, eps=eps, momentum=momentum)


def mbconv(shape: BlockShape, kernel: int, expansion: int, *, activation: str, norm: partial) -> nn.Module:
    """Build timm's InvertedResidual, or DepthwiseSeparableConv at expansion 1; with its shortcut where it fits."""
    shared = {
        "in_chs": shape.in_width,
        "out_chs": shape.out_width,
        "dw_kernel_size": kernel,
        "stride": shape.stride,
        "act_layer": get_act_layer(activation),
        "norm_layer": norm,
    }
    if expansion == 1:
        return DepthwiseSeparableConv(**shared)
    return InvertedResidual(**shared, exp_ratio=float(expansion))


def first_block(shape: BlockShape, *, activation: str, norm: partial) -> nn.Module:
    """Build the fixed block after the stem: depthwise-separable 3x3, never with a shortcut."""
    return DepthwiseSeparableConv(
        shape.in_width,
        shape.out_width,
        dw_kernel_size=3,
        stride=shape.stride,
        noskip=True,
        act_layer=get_act_layer(activation),
        norm_layer=norm,
    )


def mbconv_spec(
    shape: BlockShape,
    kernel: int,
    expansion: int,
    size: int,
    *,
    activation: str,
    residual: bool | None = None,
) -> OpSpec:
    """Return the OpSpec of `mbconv` on a `size x size` feature map."""
    out_size = math.ceil(size / shape.stride)
    return OpSpec(
        kind="mbconv" if expansion > 1 else "ds_conv",
        input_shape=(shape.in_width, size, size),
        output_shape=(shape.out_width, out_size, out_size),
        kernel=kernel,
        stride=shape.stride,
        hidden=hidden_width(shape.in_width, expansion) if expansion > 1 else 0,
        residual=shape.can_skip if residual is None else residual,
        activation=activation,
    )


def skip_spec(shape: BlockShape, size: int) -> OpSpec:
    """Return the OpSpec of the identity on a `size x size` feature map."""
    dims = (shape.in_width, size, size)
    return OpSpec(kind=IDENTITY, input_shape=dims, output_shape=dims)


def check_width(width: int, expansion: int) -> None:
    """Refuse what timm would round to another number of hidden channels.

    Raises:
        SpaceError: `width * expansion` is not divisible by 8.
    """
    # timm rounds hidden widths to multiples of 8 (`make_divisible`), so the network would be another than its OpSpec.
    if width < 8 or (expansion > 1 and hidden_width(width, expansion) % 8):
        raise SpaceError(
            f"width {width} at expansion {expansion} gives {width * expansion} hidden channels; "
            "timm's blocks need a width of at least 8 and a multiple of 8 hidden channels"
        )
