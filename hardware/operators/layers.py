"""The primitives: what operators are made of, each with its output's shape, parameters and multiply-accumulates."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import SpaceError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Conv:
    """Convolution, then an activation where one is named.

    Attributes:
        folded_norm: Whether a batch norm is folded in: the convolution has a bias then.
        bias: Whether it has a bias of its own, without a batch norm.
        same: Whether it is padded as TensorFlow's SAME: so that the output's side is the input's over the stride,
            rounded up, and by less before than after where the padding is odd.
    """

    in_channels: int
    out_channels: int
    kernel: int
    stride: int = 1
    groups: int = 1
    activation: str | None = None
    dilation: int = 1
    folded_norm: bool = True
    bias: bool = False
    same: bool = False

    def output(self, shape: Shape) -> Shape:
        self._expect(shape)
        reach = self.dilation * (self.kernel - 1)
        top, left, bottom, right = self.pads(shape)
        return (
            self.out_channels,
            *(
                (side + padding - reach - 1) // self.stride + 1
                for side, padding in zip(shape[1:], (top + bottom, left + right), strict=True)
            ),
        )

    def pads(self, shape: Shape) -> tuple[int, int, int, int]:
        """Return the padding above, left, below and right of a feature map of this shape."""
        if not self.same:
            return (self.padding,) * 4
        reach = self.dilation * (self.kernel - 1)
        whole = [max((math.ceil(side / self.stride) - 1) * self.stride + reach + 1 - side, 0) for side in shape[1:]]
        before = [padding // 2 for padding in whole]
        return before[0], before[1], whole[0] - before[0], whole[1] - before[1]

    @property
    def padding(self) -> int:
        return self.dilation * (self.kernel // 2)

    @property
    def weights(self) -> int:
        return self.out_channels * (self.in_channels // self.groups) * self.kernel * self.kernel

    @property
    def params(self) -> int:
        return self.weights + self.out_channels * (2 if self.folded_norm else int(self.bias))

    def macs(self, shape: Shape) -> int:
        _, height, width = self.output(shape)
        return self.weights * height * width

    def _expect(self, shape: Shape) -> None:
        if len(shape) != 3 or shape[0] != self.in_channels:
            raise SpaceError(
                f"a convolution of {self.in_channels} channels was given a {shape} feature map; "
                "correct the operator's shapes"
            )


@dataclass(frozen=True)
class BatchNorm:
    """A batch norm that no convolution comes before (pre-activation nets): scale and shift, then an activation."""

    channels: int
    activation: str | None = None

    @property
    def params(self) -> int:
        return 2 * self.channels

    def output(self, shape: Shape) -> Shape:
        return shape

    def macs(self, shape: Shape) -> int:
        return 0


class _Weightless:
    """What primitives without parameters share: no multiply-accumulates, and by default an output like the input."""

    params = 0

    def output(self, shape: Shape) -> Shape:
        return shape

    def macs(self, shape: Shape) -> int:
        return 0


@dataclass(frozen=True)
class Pool(_Weightless):
    """Average or maximum pooling, padded cells not counted."""

    kernel: int
    stride: int = 1
    maximum: bool = False
    padding: int = 0

    def output(self, shape: Shape) -> Shape:
        return (shape[0], *((s + 2 * self.padding - self.kernel) // self.stride + 1 for s in shape[1:]))


@dataclass(frozen=True)
class ChannelShuffle(_Weightless):
    """Channels of `groups` groups interleaved."""

    groups: int


@dataclass(frozen=True)
class Add(_Weightless):
    """The operator's own input added to what its primitives have made of it so far."""


@dataclass(frozen=True)
class AddMap(_Weightless):
    """A feature map from elsewhere in the network added: in a chain, a constant one of the same size."""

    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class SumHalves(_Weightless):
    """The first half of the channels added to the second."""

    def output(self, shape: Shape) -> Shape:
        return (shape[0] // 2, *shape[1:])


@dataclass(frozen=True)
class GlobalAvgPool(_Weightless):
    """Mean over height and width: `C x H x W` to `C`, or to `C x 1 x 1` where it must `keep` a map."""

    keep: bool = False

    def output(self, shape: Shape) -> Shape:
        return (shape[0], 1, 1) if self.keep else shape[:1]


@dataclass(frozen=True)
class Flatten(_Weightless):
    """A feature map of one pixel as a vector: `C x 1 x 1` to `C`."""

    def output(self, shape: Shape) -> Shape:
        return shape[:1]


@dataclass(frozen=True)
class SqueezeExcite:
    """Channels scaled by a gate: mean over the map, 1x1 convolution, activation, 1x1 convolution, `gate`."""

    channels: int
    reduced: int
    activation: str | None
    gate: str | None

    @property
    def weights(self) -> int:
        return 2 * self.channels * self.reduced

    @property
    def params(self) -> int:
        return self.weights + self.channels + self.reduced

    def output(self, shape: Shape) -> Shape:
        return shape

    def macs(self, shape: Shape) -> int:
        return self.weights


@dataclass(frozen=True)
class Linear:
    """Fully connected layer with bias."""

    in_features: int
    out_features: int

    @property
    def params(self) -> int:
        return self.in_features * self.out_features + self.out_features

    def output(self, shape: Shape) -> Shape:
        if shape != (self.in_features,):
            raise SpaceError(
                f"a linear layer of {self.in_features} features was given shape {shape}; correct the operator's shapes"
            )
        return (self.out_features,)

    def macs(self, shape: Shape) -> int:
        return self.in_features * self.out_features
