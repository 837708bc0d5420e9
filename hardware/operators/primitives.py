"""An operator as the few primitives that every backend can build, and the quantities that follow from them.

Batch norm is folded into the convolution before it, as every deployed runtime does; padding is `kernel // 2` per
side (times the dilation), or TensorFlow's SAME. Shapes are `C x H x W` without the batch dimension.

>>> op = OpSpec("mbconv", (24, 56, 56), (24, 56, 56), kernel=5, hidden=72, residual=True)
>>> [type(p).__name__ for p in decompose(op)]
['Conv', 'Conv', 'Conv', 'Add']
>>> params(op), macs(op)
(5592, 16482816)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..errors import BackendError, SpaceError
from ..op_spec import IDENTITY, OpSpec

Shape = tuple[int, ...]

ACTIVATIONS = ("relu", "relu6", "hard_swish", "silu", "sigmoid", "hard_sigmoid", "gelu")
_SYNONYMS = {"swish": "silu", "hardswish": "hard_swish", "hardsigmoid": "hard_sigmoid"}
_NO_ACTIVATION = ("", "none", "linear", "identity")


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


Primitive = (
    Conv
    | BatchNorm
    | Pool
    | ChannelShuffle
    | Add
    | AddMap
    | SumHalves
    | SqueezeExcite
    | GlobalAvgPool
    | Flatten
    | Linear
)
Decomposition = Callable[[OpSpec], tuple[Primitive, ...]]


def decompose(op: OpSpec) -> tuple[Primitive, ...]:
    """Return the primitives of an operator in execution order; none for `identity`.

    Raises:
        SpaceError: The kind is unknown, or the primitives do not lead to the operator's output shape.
    """
    if op.kind not in KINDS:
        known = ", ".join(sorted(KINDS))
        raise SpaceError(f"operator kind {op.kind!r} is unknown (known: {known}); teach it with hardware.register_kind")
    primitives = KINDS[op.kind](op)
    shape = op.input_shape
    for primitive in primitives:
        if isinstance(primitive, Add) and shape != op.input_shape:
            raise SpaceError(
                f"operator {op.key} adds its {op.input_shape} input to a {shape} feature map; "
                "declare it without the residual"
            )
        shape = primitive.output(shape)
    if shape != op.output_shape:
        raise SpaceError(
            f"operator {op.key} declares output {op.output_shape}, but its layers give {shape}; declare that"
        )
    return primitives


def register_kind(kind: str, function: Decomposition) -> None:
    """Teach every backend a new operator kind.

    >>> def two_convs(op):
    ...     width = op.output_shape[0]
    ...     return Conv(op.input_shape[0], width, op.kernel), Conv(width, width, op.kernel, activation="relu")
    >>> register_kind("two_convs", two_convs)
    >>> macs(OpSpec("two_convs", (3, 8, 8), (4, 8, 8), kernel=3))
    16128
    >>> del KINDS["two_convs"]

    Args:
        kind: The new kind; a known kind may only be registered again with the same function.
        function: From an `OpSpec` of that kind to its primitives in execution order.

    Raises:
        SpaceError: The name cannot be part of a key, or another function has it.
    """
    if not kind or set(kind) & set("-:"):
        raise SpaceError(f"operator kind {kind!r} cannot be part of a table's key; leave out '-' and ':'")
    if KINDS.get(kind, function) is not function:
        raise SpaceError(f"operator kind {kind!r} is already registered; choose another name")
    KINDS[kind] = function


def macs(op: OpSpec) -> int:
    """Count the multiply-accumulates of one image; convolutions and linear layers only.

    >>> macs(OpSpec("conv", (3, 32, 32), (16, 16, 16), kernel=3, stride=2)) == 3 * 3 * 3 * 16 * 16 * 16
    True
    """
    return sum(primitive.macs(shape) for primitive, shape in _with_input_shapes(op))


def params(op: OpSpec) -> int:
    """Count trained parameters: convolutions, their batch norms' scale and shift, linear layers and their biases."""
    return sum(primitive.params for primitive in decompose(op))


def activation_bytes(op: OpSpec) -> int:
    """Count the bytes of all tensors that the operator writes for one float32 image (additive over a net)."""
    return 4 * sum(_written(primitive, shape) for primitive, shape in _with_input_shapes(op))


def _written(primitive: Primitive, shape: Shape) -> int:
    # Beside the scaled map: the means, what is between the two convolutions, and the gates.
    inner = 2 * primitive.channels + primitive.reduced if isinstance(primitive, SqueezeExcite) else 0
    return inner + int(np.prod(primitive.output(shape)))


def activation_name(name: str | None) -> str | None:
    """Return timm's name of an activation as the backends know it; None where there is none."""
    if name is None or name in _NO_ACTIVATION:
        return None
    name = _SYNONYMS.get(name, name)
    if name not in ACTIVATIONS:
        raise SpaceError(f"activation {name!r} is unknown to the backends; known are {', '.join(ACTIVATIONS)}")
    return name


def check_chain(chain: Iterable[OpSpec]) -> tuple[OpSpec, ...]:
    """Return the chain as a tuple, after checking that each operator takes what the one before it gives."""
    chain = tuple(chain)
    for before, after in pairwise(chain):
        if before.output_shape != after.input_shape:
            raise SpaceError(
                f"operator {after.key} cannot follow {before.key}: their shapes differ; correct one of them"
            )
    return chain


def _with_input_shapes(op: OpSpec) -> list[tuple[Primitive, Shape]]:
    shape, pairs = op.input_shape, []
    for primitive in decompose(op):
        pairs.append((primitive, shape))
        shape = primitive.output(shape)
    return pairs


def _conv(op: OpSpec) -> tuple[Primitive, ...]:
    conv = Conv(
        op.input_shape[0],
        op.output_shape[0],
        op.kernel,
        op.stride,
        activation=activation_name(op.activation),
        same=_same(op),
    )
    return _with_residual(op, (conv,))


def _same(op: OpSpec) -> bool:
    if op.padding not in ("", "same"):
        raise SpaceError(f"operator {op.key} has the padding {op.padding!r}; known are 'same' and the empty one")
    return op.padding == "same"


def _squeeze(op: OpSpec, channels: int) -> tuple[Primitive, ...]:
    if not op.squeeze:
        return ()
    between = activation_name(op.squeeze_activation or op.activation)
    return (SqueezeExcite(channels, op.squeeze, between, activation_name(op.gate)),)


def _hidden(op: OpSpec) -> int:
    if op.hidden < 1:
        raise SpaceError(f"operator {op.key} has no hidden width; a block without expansion is a 'ds_conv'")
    return op.hidden


def _mbconv(op: OpSpec) -> tuple[Primitive, ...]:
    hidden, act = _hidden(op), activation_name(op.activation)
    return _with_residual(
        op,
        (
            Conv(op.input_shape[0], hidden, 1, activation=act),
            Conv(hidden, hidden, op.kernel, op.stride, groups=hidden, activation=act, same=_same(op)),
            *_squeeze(op, hidden),
            Conv(hidden, op.output_shape[0], 1),
        ),
    )


def _ds_conv(op: OpSpec, last: str | None = None) -> tuple[Primitive, ...]:
    width = op.input_shape[0]
    act = activation_name(op.activation)
    return _with_residual(
        op,
        (
            Conv(width, width, op.kernel, op.stride, groups=width, activation=act, same=_same(op)),
            *_squeeze(op, width),
            Conv(width, op.output_shape[0], 1, activation=last),
        ),
    )


def _dsa_conv(op: OpSpec) -> tuple[Primitive, ...]:
    return _ds_conv(op, last=activation_name(op.activation))


def _edge_residual(op: OpSpec) -> tuple[Primitive, ...]:
    hidden = _hidden(op)
    return _with_residual(
        op,
        (
            Conv(
                op.input_shape[0],
                hidden,
                op.kernel,
                op.stride,
                activation=activation_name(op.activation),
                same=_same(op),
            ),
            *_squeeze(op, hidden),
            Conv(hidden, op.output_shape[0], 1),
        ),
    )


def _head(op: OpSpec) -> tuple[Primitive, ...]:
    return (GlobalAvgPool(), Linear(op.input_shape[0], op.output_shape[0]))


def _efficient_head(op: OpSpec, bias: bool = True) -> tuple[Primitive, ...]:
    hidden, act = _hidden(op), activation_name(op.activation)
    return (
        GlobalAvgPool(keep=True),
        Conv(op.input_shape[0], hidden, 1, activation=act, folded_norm=False, bias=bias),
        Flatten(),
        Linear(hidden, op.output_shape[0]),
    )


def _unbiased_efficient_head(op: OpSpec) -> tuple[Primitive, ...]:
    return _efficient_head(op, bias=False)


def _norm(op: OpSpec) -> tuple[Primitive, ...]:
    return (BatchNorm(op.input_shape[0], activation=activation_name(op.activation)),)


def _preact_ds_conv(op: OpSpec, dilation: int = 1) -> tuple[Primitive, ...]:
    width = op.input_shape[0]
    return (
        *_norm(op),
        Conv(width, width, op.kernel, op.stride, groups=width, dilation=dilation, folded_norm=False),
        Conv(width, op.output_shape[0], 1, folded_norm=False),
    )


def _preact_dilated_ds_conv(op: OpSpec) -> tuple[Primitive, ...]:
    return _preact_ds_conv(op, dilation=2)


def _tree_entry(op: OpSpec) -> tuple[Primitive, ...]:
    width = op.input_shape[0]
    return (
        BatchNorm(width),
        Conv(width, op.hidden, 1, activation=activation_name(op.activation)),
        Conv(op.hidden, op.output_shape[0], op.kernel, op.stride, groups=2, folded_norm=False),
        ChannelShuffle(2),
    )


def _tree_exit(op: OpSpec) -> tuple[Primitive, ...]:
    return (*_norm(op), Conv(op.input_shape[0], op.output_shape[0], 1), *_add_map(op))


def _add_map(op: OpSpec) -> tuple[Primitive, ...]:
    channels, height, width = op.output_shape
    return (AddMap(channels, height, width),)


def _sum_halves(op: OpSpec) -> tuple[Primitive, ...]:
    return (SumHalves(),)


def _avg_pool(op: OpSpec) -> tuple[Primitive, ...]:
    return (Pool(op.kernel, op.stride, padding=(op.kernel - 1) // 2),)


def _max_pool(op: OpSpec) -> tuple[Primitive, ...]:
    return (Pool(op.kernel, op.stride, maximum=True, padding=(op.kernel - 1) // 2),)


def _identity(op: OpSpec) -> tuple[Primitive, ...]:
    return ()


def _with_residual(op: OpSpec, primitives: tuple[Primitive, ...]) -> tuple[Primitive, ...]:
    return (*primitives, Add()) if op.residual else primitives


KINDS: dict[str, Decomposition] = {
    "conv": _conv,
    "mbconv": _mbconv,
    "ds_conv": _ds_conv,
    "dsa_conv": _dsa_conv,
    "edge_residual": _edge_residual,
    "head": _head,
    "efficient_head": _efficient_head,
    "unbiased_efficient_head": _unbiased_efficient_head,
    "norm": _norm,
    "preact_ds_conv": _preact_ds_conv,
    "preact_dilated_ds_conv": _preact_dilated_ds_conv,
    "tree_entry": _tree_entry,
    "tree_exit": _tree_exit,
    "add_map": _add_map,
    "sum_halves": _sum_halves,
    "avg_pool": _avg_pool,
    "max_pool": _max_pool,
    IDENTITY: _identity,
}
"""Operator kind to its decomposition; `register_kind` adds to it."""


def input_of(chain: Sequence[OpSpec], input_shape: tuple[int, ...] | None) -> tuple[int, ...]:
    """Return `(C, H, W)` of a chain's input: its first operator's, or for an empty chain the given one.

    Raises:
        BackendError: An empty chain came without a shape.
    """
    shape = chain[0].input_shape if chain else input_shape
    if shape is None:
        raise BackendError("an empty chain needs input_shape; give (C, H, W)")
    return tuple(shape)
