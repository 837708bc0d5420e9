"""`NetBlock`: one block of a timm network as data, its arch string, and what a device executes for it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from hardware.errors import SpaceError
from hardware.op_spec import OpSpec
from hardware.reading import shown

from ..declaration import MOST_CHANNELS, is_integer
from ..mbconv import make_divisible

ACTIVATION_CODES = {"relu": "re", "relu6": "r6", "hard_swish": "hs", "silu": "sw", "mish": "mi"}
"""timm's names of activations and what its arch strings call them."""
OPERATORS = {"ir": "mbconv", "ds": "ds_conv", "dsa": "dsa_conv", "er": "edge_residual", "cn": "conv"}
"""The kinds of block by what timm's arch strings call them, and their operators."""
SEARCHED = ("ir", "ds", "dsa")
EXPANDED = ("ir", "er")
LARGEST_KERNEL = 31


@dataclass(frozen=True)
class NetBlock:
    """A block between two feature maps.

    Attributes:
        kind: `ir` (InvertedResidual), `ds` and `dsa` (DepthwiseSeparableConv, without and with a last activation), `er`
            (EdgeResidual), `cn` (ConvBnAct).
        width: Channels of its output.
        kernel: Side of its kernel that is wider than 1x1.
        stride: Stride of that kernel.
        hidden: Channels between expansion and projection; 0 where the kind has none.
        squeeze: Channels within squeeze-and-excitation; 0 where there is none.
        activation: timm's name of its activation.
        shortcut: Whether its input is added to its output.
    """

    kind: str
    width: int
    kernel: int
    stride: int
    hidden: int
    squeeze: int
    activation: str
    shortcut: bool

    def check(self, in_width: int, where: str) -> None:
        """Refuse what cannot be built.

        Raises:
            SpaceError: A value is impossible; the message names it and `where` it stands.
        """

        def refuse(field: str, remedy: str) -> SpaceError:
            return SpaceError(f"{field} = {shown(getattr(self, field))} of {where}; {remedy}")

        if self.kind not in tuple(OPERATORS):  # a list has no hash
            raise refuse("kind", f"it must be one of {', '.join(OPERATORS)}")
        for field in ("width", "kernel", "stride", "hidden", "squeeze"):
            if not is_integer(getattr(self, field)) or not 0 <= getattr(self, field) <= MOST_CHANNELS:
                raise refuse(field, f"it must be an integer of 0 to {MOST_CHANNELS}")
        if not self.width:
            raise refuse("width", "it must be 1 or more")
        if self.kernel % 2 == 0 or self.kernel > LARGEST_KERNEL:
            raise refuse("kernel", f"it must be odd, up to {LARGEST_KERNEL}")
        if self.stride not in (1, 2):
            raise refuse("stride", "it must be 1 or 2")
        if (self.kind in EXPANDED) != (self.hidden > 0) or self.hidden % 8:
            raise refuse("hidden", "it must be a multiple of 8 where the kind has an expansion, else 0")
        if self.activation not in tuple(ACTIVATION_CODES):
            raise refuse("activation", f"it must be one of {', '.join(ACTIVATION_CODES)}")
        if type(self.shortcut) is not bool or (self.shortcut and not self.passes(in_width)):
            raise refuse("shortcut", "only a block of stride 1 that keeps its width can have one")

    def passes(self, in_width: int) -> bool:
        """Return whether the identity fits in its place."""
        return self.stride == 1 and self.width == in_width

    def resized(self, kernel: int, hidden: int, *, squeeze_follows: bool) -> NetBlock:
        """Return the same block of another kernel and hidden width.

        Args:
            kernel: Side of the kernel.
            hidden: Channels between expansion and projection.
            squeeze_follows: Whether squeeze-and-excitation keeps its share of `hidden`, as in MobileNetV3; else it
                keeps its width, which is a share of the input's in EfficientNet.
        """
        squeeze = self.squeeze
        if squeeze and squeeze_follows and hidden != self.hidden:
            squeeze = make_divisible(squeeze * hidden / self.hidden)
        return replace(self, kernel=kernel, hidden=hidden, squeeze=squeeze)

    def expansion(self, in_width: int) -> str:
        """Write the share of hidden to input channels.

        >>> NetBlock("ir", 80, 3, 1, 184, 0, "hard_swish", True).expansion(80)
        '2.3'
        """
        return f"{self.hidden / in_width if self.hidden else 1:.4g}"

    def string(self, in_width: int, *, activation: str) -> str:
        """Write the block as timm's arch string.

        Args:
            in_width: Channels of its input.
            activation: The network's activation, of which its string says nothing.

        >>> NetBlock("ir", 24, 5, 2, 72, 4, "relu", False).string(16, activation="hard_swish")
        'ir_r1_k5_s2_e4.5_c24_se0.25_nre'
        """
        parts = [self.kind, "r1", f"k{self.kernel}", f"s{self.stride}"]
        # timm rounds hidden channels to a multiple of 8 and squeezed ones to an integer: six digits lead to the right
        # ones. It takes the share of `se` from the block's input.
        if self.hidden:
            parts.append(f"e{self.hidden / in_width:.6g}")
        parts.append(f"c{self.width}")
        if self.squeeze:
            parts.append(f"se{self.squeeze / in_width:.6g}")
        if self.activation != activation:
            parts.append(f"n{ACTIVATION_CODES[self.activation]}")
        if self.kind == "cn":
            parts += ["skip"] if self.shortcut else []
        elif self.passes(in_width) and not self.shortcut and self.kind != "dsa":
            parts.append("noskip")
        return "_".join(parts)

    def spec(self, in_width: int, size: int, **shared: Any) -> OpSpec:
        """Return what a device executes on a `size x size` feature map.

        Args:
            in_width: Channels of its input.
            size: Side of its input.
            **shared: What the blocks of a network have in common: `padding`, `squeeze_activation`, `gate`.
        """
        out = math.ceil(size / self.stride)
        if self.stride == 1:
            shared.pop("padding", None)  # both paddings are the same then, and so the operator must be
        if not self.squeeze or shared.get("squeeze_activation") == self.activation:
            shared.pop("squeeze_activation", None)
        if not self.squeeze:
            shared.pop("gate", None)
        return OpSpec(
            kind=OPERATORS[self.kind],
            input_shape=(in_width, size, size),
            output_shape=(self.width, out, out),
            kernel=self.kernel,
            stride=self.stride,
            hidden=self.hidden,
            residual=self.shortcut,
            activation=self.activation,
            squeeze=self.squeeze,
            **shared,
        )
