"""What a recorded candidate is made of: buffers, replays, and the node that stands for it in autograd's graph."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from hardware.errors import UnsupportedSpaceError

from .recorders import Recorder, Replay

Signature = tuple[Any, ...]


class Turn:
    """Stands for one forward pass whose backward pass may still come; autograd's node alone holds it."""

    __slots__ = ("__weakref__",)


def signature(tensor: Tensor) -> Signature:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def empty(signature: Signature) -> Tensor:
    shape, stride, dtype, device = signature
    return torch.empty_strided(shape, stride, dtype=dtype, device=device)


def fresh(buffer: Tensor) -> Tensor:
    """Copy a tensor with its strides, which `clone` changes where there are gaps."""
    return torch.empty_strided(buffer.shape, buffer.stride(), dtype=buffer.dtype, device=buffer.device).copy_(buffer)


class Scratch:
    """Buffers that hold something between a replay and the copy next to it, by what they are for and their shape."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, int, Signature], Tensor] = {}
        self._rows: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def buffer(self, use: str, position: int, signature: Signature) -> Tensor:
        key = (use, position, signature)
        if key not in self._buffers:
            self._buffers[key] = empty(signature)
        return self._buffers[key]

    def row(self, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return a row of memory for the gradients of a candidate's weights, one behind the other."""
        row = self._rows.get((dtype, device))
        if row is None or len(row) < size:
            # Older recordings go on with the row that they were given. Twice as much as before makes few of them.
            row = torch.empty(max(size, 0 if row is None else 2 * len(row)), dtype=dtype, device=device)
            self._rows[dtype, device] = row
        return row[:size]


class Layer:
    """What the candidates of one gated layer share.

    Args:
        module: The layer.
        recorder: Makes its memory.
    """

    def __init__(self, module: nn.Module, recorder: Recorder):
        self.module = module  # held, so that its id stays its own
        self.shapes: set[Signature] = set()
        self._recorder = recorder
        self._inputs: dict[tuple[int, Signature], Tensor] = {}
        self._turn: weakref.ref[Turn] | None = None
        self.renew()

    def renew(self) -> None:
        """Take another memory: in the one before, a recording failed."""
        self.memory = self._recorder.memory()

    def inputs(self, signatures: Sequence[Signature]) -> list[Tensor]:
        for key in enumerate(signatures):
            if key not in self._inputs:
                self._inputs[key] = empty(key[1])
        return [self._inputs[key] for key in enumerate(signatures)]

    @property
    def taken(self) -> bool:
        """Whether a forward pass waits for its backward pass."""
        return self._turn is not None and self._turn() is not None

    def begin(self) -> Turn:
        turn = Turn()
        self._turn = weakref.ref(turn)
        return turn

    def end(self, turn: Turn) -> None:
        """End a forward pass's wait.

        Raises:
            UnsupportedSpaceError: What it kept is no longer there.
        """
        if self._turn is None or self._turn() is not turn:
            raise UnsupportedSpaceError(
                "a captured candidate keeps what its backward pass needs for one backward pass, but a second one came "
                "(retain_graph=True?); run one for each forward pass, or leave capture off"
            )
        self._turn = None


class Recording:
    """One candidate, recorded for one kind of step and of input.

    Args:
        inputs: Buffers that it reads.
        output: Buffer that it writes.
        forward: Replays the forward pass.
        spoil: See `Recorder.spoil`.
        layer: Whose memory it keeps something in; None where it keeps nothing.
    """

    def __init__(
        self,
        inputs: list[Tensor],
        output: Tensor,
        forward: Replay,
        spoil: Callable[[Tensor], None],
        *,
        layer: Layer | None = None,
        backward: Backward | None = None,
    ):
        self._inputs, self._output, self._forward, self._spoil = inputs, output, forward, spoil
        self.layer, self.backward = layer, backward

    def run(self, tensors: Sequence[Tensor]) -> Tensor:
        """Replay the forward pass on tensors; return a new tensor."""
        for buffer, tensor in zip(self._inputs, tensors, strict=True):
            buffer.copy_(tensor)
        self._forward()
        output = fresh(self._output)
        self._spoil(self._output)
        if self.layer is None:
            for buffer in self._inputs:
                self._spoil(buffer)
        return output

    def run_back(self, turn: Turn, gradient: Tensor) -> list[Tensor | None]:
        """Replay the backward pass; return the gradients of the tensors, and of `backward.parameters`."""
        assert self.layer is not None
        assert self.backward is not None
        self.layer.end(turn)
        found = self.backward.run(gradient, self._spoil)
        for buffer in self._inputs:
            self._spoil(buffer)
        return found


@dataclass
class Backward:
    """The backward pass of a `Recording`.

    Attributes:
        given: Buffer of the output's gradient.
        inputs: Buffers of the inputs' gradients; None of one that has none.
        parameters: Weights that have a gradient.
        rows: Where their gradients lie, by type.
        replay: Replays it; set once it is recorded.
    """

    given: Tensor
    inputs: list[Tensor | None]
    parameters: list[nn.Parameter]
    rows: dict[torch.dtype, Tensor]
    replay: Replay | None = field(default=None)

    def write(self, inputs: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> None:
        """Copy what autograd has found to the buffers."""
        for buffer, gradient in zip(self.inputs, inputs, strict=True):
            if buffer is not None:
                assert gradient is not None
                buffer.copy_(gradient)
        for dtype, row in self.rows.items():
            pairs = zip(self.parameters, parameters, strict=True)
            # One kernel for all of them, and later one copy out of the row, instead of one for each weight.
            torch.cat([_in_order_of(weight, gradient) for weight, gradient in pairs if weight.dtype == dtype], out=row)

    def run(self, gradient: Tensor, spoil: Callable[[Tensor], None]) -> list[Tensor | None]:
        assert self.replay is not None
        self.given.copy_(gradient)
        self.replay()
        spoil(self.given)
        found: list[Tensor | None] = [None if buffer is None else fresh(buffer) for buffer in self.inputs]
        for buffer in self.inputs:
            if buffer is not None:
                spoil(buffer)
        rows = {dtype: row.clone() for dtype, row in self.rows.items()}
        for row in self.rows.values():
            spoil(row)
        starts = dict.fromkeys(rows, 0)
        for parameter in self.parameters:
            dtype, shape, stride = parameter.dtype, parameter.shape, parameter.stride()
            # With the weight's own strides, as AccumulateGrad copies a gradient of others once more.
            found.append(rows[dtype].as_strided(shape, stride, starts[dtype]))
            starts[dtype] += parameter.numel()
        return found


def _in_order_of(weight: Tensor, gradient: Tensor) -> Tensor:
    """View a gradient as a row, in the order in which its weight lies in memory."""
    if gradient.stride() != weight.stride() or gradient.dtype != weight.dtype:
        gradient = torch.empty_strided(weight.shape, weight.stride(), dtype=weight.dtype, device=weight.device).copy_(
            gradient
        )
    return gradient.as_strided((gradient.numel(),), (1,))


class Replayed(torch.autograd.Function):
    """A recording's forward pass, with its backward pass as gradient."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, count: int, *tensors: Tensor) -> Tensor:
        assert recording.layer is not None
        ctx.set_materialize_grads(False)
        ctx.recording, ctx.turn = recording, recording.layer.begin()
        return recording.run(tensors[:count])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> Any:
        (gradient,) = gradients
        if gradient is None:
            return (None,) * len(ctx.needs_input_grad)
        return None, None, *ctx.recording.run_back(ctx.turn, gradient)
