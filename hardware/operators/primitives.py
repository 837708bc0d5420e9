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

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

import numpy as np

from ..errors import BackendError, SpaceError
from ..op_spec import IDENTITY, OpSpec
from ..reading import cut, shown
from .layers import (
    Add,
    AddMap,
    BatchNorm,
    ChannelShuffle,
    Conv,
    Flatten,
    GlobalAvgPool,
    Linear,
    Pool,
    Shape,
    SqueezeExcite,
    SumHalves,
)

ACTIVATIONS = ("relu", "relu6", "hard_swish", "silu", "sigmoid", "hard_sigmoid", "gelu")
_SYNONYMS = {"swish": "silu", "hardswish": "hard_swish", "hardsigmoid": "hard_sigmoid"}
_NO_ACTIVATION = ("", "none", "linear", "identity")


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
        raise SpaceError(
            f"operator kind {shown(op.kind)} is unknown (known: {known}); teach it with hardware.register_kind"
        )
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
        raise SpaceError(f"activation {shown(name)} is unknown to the backends; known are {', '.join(ACTIVATIONS)}")
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
        raise SpaceError(
            f"operator {cut(op.key)} has the padding {shown(op.padding)}; known are 'same' and the empty one"
        )
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
