"""`OpSpec`: the one plain type in which a search space and a device's latency table meet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .errors import TableError
from .reading import cut, shown

IDENTITY = "identity"


@dataclass(frozen=True, order=True)
class OpSpec:
    """One operator at fixed shapes, as a device executes it (batch norm folded into its convolution).

    >>> stem = OpSpec("conv", (3, 32, 32), (16, 16, 16), kernel=3, stride=2)
    >>> stem.key
    'conv-in:3x32x32-out:16x16x16-k:3-s:2-res:0-act:relu6'
    >>> OpSpec.from_key(stem.key) == stem
    True

    Kinds and what they stand for (`C x H W` shapes without the batch dimension):

    - `conv`: convolution `kernel x kernel`, batch norm, activation.
    - `mbconv`: inverted residual block: 1x1 to `hidden`, depthwise `kernel x kernel` with `stride`, 1x1 linear
      projection, and the residual addition where `residual`.
    - `ds_conv`: depthwise-separable block: depthwise `kernel x kernel` with `stride`, 1x1 linear projection
      (an MBConv of expansion 1).
    - `dsa_conv`: `ds_conv` with an activation after the projection too (MobileNetV1).
    - `edge_residual`: convolution `kernel x kernel` with `stride` to `hidden`, then as `mbconv` (fused MBConv).
    - `head`: global average pool and a linear layer; `output_shape` is `(classes,)`.
    - `efficient_head`: global average pool, 1x1 convolution to `hidden` with a bias and no batch norm, activation, a
      linear layer (MobileNetV3); `unbiased_efficient_head` lacks that bias.
    - `norm`: batch norm that no convolution comes before, activation.
    - `preact_ds_conv`, `preact_dilated_ds_conv`: `norm`, then a depthwise (dilated by 2) and a 1x1 convolution.
    - `avg_pool`, `max_pool`: pooling `kernel x kernel` with `stride`; an odd kernel's padding is not counted.
    - `tree_entry`: batch norm, 1x1 to `hidden`, activation, `kernel x kernel` with `stride` in 2 groups, shuffle.
    - `sum_halves`: the two halves of the channels added; `add_map`: another feature map added.
    - `tree_exit`: `norm`, 1x1 convolution, the shortcut added.
    - `identity`: nothing runs (the candidate `skip`); its latency is 0 by definition.

    Attributes:
        kind: One of the kinds above, or one that a space registers with `hardware.register_kind`.
        input_shape: `(C, H, W)`.
        output_shape: `(C, H, W)`, or `(classes,)` for `head`.
        kernel: Side of the (depthwise) kernel.
        stride: Stride of that kernel.
        hidden: Channels between expansion and projection; 0 where the kind has none.
        residual: Whether the input is added to the output.
        activation: timm's name of the activation function (`relu6`, `relu`, `hard_swish`, ...).
        squeeze: Channels between the two 1x1 convolutions of squeeze-and-excitation, which stands between depthwise (in
            `edge_residual` the first) convolution and projection; 0 where there is none.
        squeeze_activation: Activation between those two convolutions; where empty, `activation`.
        gate: Activation after them, whose values scale the channels.
        padding: `same` where convolutions with a stride are padded as TensorFlow does, by less before than after; empty
            for `kernel // 2` per side.
    """

    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    kernel: int = 1
    stride: int = 1
    hidden: int = 0
    residual: bool = False
    activation: str = "relu6"
    squeeze: int = 0
    squeeze_activation: str = ""
    gate: str = "sigmoid"
    padding: str = ""

    @property
    def key(self) -> str:
        """The operator's name in a latency table: equal specs have equal keys and different ones do not."""

        def dims(shape: tuple[int, ...]) -> str:
            return "x".join(map(str, shape))

        parts = [self.kind, f"in:{dims(self.input_shape)}", f"out:{dims(self.output_shape)}"]
        if self.kind not in (IDENTITY, "head"):
            parts += [f"k:{self.kernel}", f"s:{self.stride}"]
            if self.hidden:
                parts.append(f"hidden:{self.hidden}")
            parts += [f"res:{int(self.residual)}", f"act:{self.activation}"]
            # Only where there is such a thing: the keys of tables that were measured before must stay what they are.
            if self.squeeze:
                parts.append(f"se:{self.squeeze}.{self.squeeze_activation or self.activation}.{self.gate}")
            if self.padding:
                parts.append(f"pad:{self.padding}")
        return "-".join(parts)

    @classmethod
    def from_key(cls, key: str) -> OpSpec:
        """Return the operator that has this key.

        The activation of a `head` or an `identity`, of which the key says nothing, is the default one.

        Raises:
            TableError: No operator has this key, or none can have its shapes.
        """
        op = cls.named(key)
        if op is None:
            raise TableError(
                f"{shown(key)} is no operator's key; keys look like conv-in:3x8x8-out:4x8x8-k:3-s:1-res:0-act:relu6"
            )
        if (wrong := op.impossible()) is not None:
            raise TableError(f"the operator {cut(key)} has {wrong}; correct its key")
        return op

    @classmethod
    def named(cls, key: str) -> OpSpec | None:
        """Return what a key names, whether or not there can be such an operator; None where it is no key."""
        try:
            parts = dict(part.split(":", 1) for part in f"kind:{key}".split("-"))
            activation = parts.get("act", "relu6")
            squeeze, between, gate = parts.get("se", f"0.{activation}.sigmoid").split(".")
            op = cls(
                kind=parts["kind"],
                input_shape=tuple(int(side) for side in parts["in"].split("x")),
                output_shape=tuple(int(side) for side in parts["out"].split("x")),
                kernel=int(parts.get("k", 1)),
                stride=int(parts.get("s", 1)),
                hidden=int(parts.get("hidden", 0)),
                residual=parts.get("res", "0") == "1",
                activation=activation,
                squeeze=int(squeeze),
                squeeze_activation="" if between == activation else between,
                gate=gate,
                padding=parts.get("pad", ""),
            )
        except (KeyError, ValueError):
            return None
        # a key with parts in another order, or unknown ones, would be read and then written as another
        return op if op.key == key else None

    def impossible(self) -> str | None:
        """Return what no operator has: shapes of another rank, a kernel of 0, unknown padding; None where all is well.

        >>> OpSpec("conv", (3, 8), (4, 8, 8)).impossible()
        'an input of 3x8, which is not C x H x W'
        """
        for what, shape in (("input", self.input_shape), ("output", self.output_shape)):
            dims = cut("x".join(map(str, shape)))
            if len(shape) != 3 and not (what == "output" and len(shape) == 1):
                return f"an {what} of {dims}, which is not C x H x W"
            if min(shape) < 1:
                return f"an {what} of {dims}, without any value"
        for what, least in (("kernel", 1), ("stride", 1), ("hidden", 0), ("squeeze", 0)):
            if getattr(self, what) < least:
                return f"{what} {shown(getattr(self, what))}, which must be at least {least}"
        if self.padding not in ("", "same"):
            return f"the padding {shown(self.padding)}, which must be 'same' where there is one"
        return None


def executed(ops: Iterable[OpSpec]) -> tuple[OpSpec, ...]:
    """Return what a device runs of these operators: all but `identity`."""
    return tuple(op for op in ops if op.kind != IDENTITY)
