"""`OpSpec`: the one plain type in which a search space and a device's latency table meet."""

from __future__ import annotations

from dataclasses import dataclass

IDENTITY = "identity"


@dataclass(frozen=True, order=True)
class OpSpec:
    """One operator at fixed shapes, as a device executes it (batch norm folded into its convolution).

    Kinds and what they stand for (`C x H W` shapes without the batch dimension):

    - `conv`: convolution `kernel x kernel`, batch norm, activation.
    - `mbconv`: inverted residual block: 1x1 to `hidden`, depthwise `kernel x kernel` with `stride`, 1x1 linear
      projection, and the residual addition where `residual`.
    - `ds_conv`: depthwise-separable block: depthwise `kernel x kernel` with `stride`, 1x1 linear projection
      (an MBConv of expansion 1).
    - `head`: global average pool and a linear layer; `output_shape` is `(classes,)`.
    - `identity`: nothing runs (the candidate `skip`); its latency is 0 by definition.

    Attributes:
        kind: One of the kinds above, or one that a space registers with `hardware.primitives.register_kind`.
        input_shape: `(C, H, W)`.
        output_shape: `(C, H, W)`, or `(classes,)` for `head`.
        kernel: Side of the (depthwise) kernel.
        stride: Stride of that kernel.
        hidden: Channels between expansion and projection; 0 where the kind has none.
        residual: Whether the input is added to the output.
        activation: timm's name of the activation function (`relu6`, `relu`, `hard_swish`, ...).
    """

    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    kernel: int = 1
    stride: int = 1
    hidden: int = 0
    residual: bool = False
    activation: str = "relu6"

    @property
    def key(self) -> str:
        """The operator's name in a latency table; equal specs have equal keys and different ones do not."""

        def dims(shape: tuple[int, ...]) -> str:
            return "x".join(map(str, shape))

        parts = [self.kind, f"in:{dims(self.input_shape)}", f"out:{dims(self.output_shape)}"]
        if self.kind not in (IDENTITY, "head"):
            parts += [f"k:{self.kernel}", f"s:{self.stride}"]
            if self.hidden:
                parts.append(f"hidden:{self.hidden}")
            parts += [f"res:{int(self.residual)}", f"act:{self.activation}"]
        return "-".join(parts)
