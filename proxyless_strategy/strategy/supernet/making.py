"""How a candidate is recorded: tried out first, as a recording must stand for every later run."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .gate import StepMode
from .layers import GatedModule
from .recorders import Recorder
from .recording import Backward, Layer, Recording, Scratch, Signature, empty, signature
from .stillness import Generators, HostReads, Stillness


class Refused(Exception):
    """A candidate cannot be recorded.

    Args:
        reason: Goes on "is not captured, as "; None: it need not be said, as nothing is lost.
        kind: Reasons of one kind are said once; None: the reason itself.
        final: Whether that stays so however the candidate is changed.
    """

    def __init__(self, reason: str | None, *, kind: str | None = None, final: bool = False):
        super().__init__(reason)
        self.reason, self.kind, self.final = reason, kind or reason, final


class Candidate:
    """The recordings of one candidate, and why there is none.

    Args:
        module: The candidate.
    """

    def __init__(self, module: nn.Module):
        self.module = module
        self.recordings: dict[Signature, Recording | None] = {}
        self.stillness: Stillness | None = None
        self.changes = 0


def autocast_now(device: torch.device) -> Signature:
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        return kind, False, None
    return kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)


class Making:
    """Tries a candidate out on buffers, and records it.

    Args:
        recorder: Records.
        scratch: Buffers of all layers.
        layer: The layer.
        candidate: The candidate.
        tensors: Its inputs of now.
        autocast: See `autocast_now`.
        mode: The mode of an architecture step; None in a weight step.
    """

    def __init__(
        self,
        recorder: Recorder,
        scratch: Scratch,
        layer: Layer,
        candidate: Candidate,
        tensors: list[Tensor],
        autocast: Signature,
        mode: StepMode | None,
    ):
        self.recorder, self.scratch, self.layer, self.candidate = recorder, scratch, layer, candidate
        self.autocast, self.mode = autocast, mode
        self.signatures = list(map(signature, tensors))
        self.needed = [tensor.requires_grad and torch.is_grad_enabled() for tensor in tensors]
        self.tensors = tensors
        self.device = tensors[0].device
        self.gradients = torch.is_grad_enabled()
        self.buffers: list[Tensor] = []
        self.out = torch.empty(0)
        self.backward: Backward | None = None

    def prepare(self) -> None:
        """Try the candidate out, and take the buffers of its recording.

        Raises:
            Refused: A recording would not stand for the candidate.
        """
        # Tried out on buffers that are dropped: whether it has a backward pass decides on the real ones.
        self.buffers = [empty(signature) for signature in self.signatures]
        for buffer, tensor in zip(self.buffers, self.tensors, strict=True):
            buffer.copy_(tensor.detach())
        self.tensors = []  # they lead to the graphs of this step, which a recording must not keep
        output, gradients = self._try()
        self.out = self.scratch.buffer("output", 0, signature(output))
        if gradients is None:
            self.buffers = [self.scratch.buffer("input", *item) for item in enumerate(self.signatures)]
        else:
            self.buffers = self.layer.inputs(self.signatures)
            self.backward = self._backward(output, gradients)

    def recording(self, memory: Any) -> Recording:
        """Return the recording.

        Args:
            memory: For what keeps nothing.
        """
        out, backward, state = self.out, self.backward, dict[str, Any]()

        def forward() -> None:
            leaves, found = self._forward()
            with torch.no_grad():
                out.copy_(found)
            if backward is not None:
                state.update(leaves=leaves, output=found)

        def back() -> None:
            assert backward is not None
            wanted = [leaf for leaf, b in zip(state["leaves"], backward.inputs, strict=True) if b is not None]
            with self._as_now():
                found = torch.autograd.grad(
                    state.pop("output"), [*wanted, *backward.parameters], backward.given, allow_unused=True
                )
            state.clear()
            of_inputs = iter(found[: len(wanted)])
            with torch.no_grad():
                backward.write([None if b is None else next(of_inputs) for b in backward.inputs], found[len(wanted) :])

        record, spoil = self.recorder.record, self.recorder.spoil
        if backward is None:
            return Recording(self.buffers, out, record(forward, memory, keeps=False), spoil)
        replay = record(forward, self.layer.memory, keeps=True, outside=[*self.buffers, *self._still.tensors])
        backward.replay = record(back, memory, keeps=False)
        # From here on nothing in Python holds a tensor of the memory: the next candidate's recording reuses it.
        return Recording(self.buffers, out, replay, spoil, layer=self.layer, backward=backward)

    @property
    def _still(self) -> Stillness:
        assert self.candidate.stillness is not None
        return self.candidate.stillness

    @property
    def _weights(self) -> list[nn.Parameter]:
        """What is trained: nothing in an architecture step."""
        return [] if self.mode is not None else [p for p in self._still.parameters if p.requires_grad]

    def _as_now(self) -> AbstractContextManager[None]:
        """Enter the mixed precision of now, without its cache of casts.

        A weight's cast of outside would not follow the weight's updates; one of inside would lie in the memory.
        """
        kind, enabled, dtype = self.autocast
        if dtype is None:
            return nullcontext()
        autocast: AbstractContextManager[None] = torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
        return autocast

    def _forward(self) -> tuple[list[Tensor], Tensor]:
        """Run the candidate on the buffers; return the leaves that stand for them, and its output."""
        module, mode = self.candidate.module, self.mode
        with torch.set_grad_enabled(self.gradients), self._as_now(), ExitStack() as stack:
            if mode is not None:
                stack.enter_context(mode.quiet(module))
            leaves = [b.detach().requires_grad_(n) for b, n in zip(self.buffers, self.needed, strict=True)]
            return leaves, module(*leaves)

    def _try(self) -> tuple[Tensor, list[Tensor | None] | None]:
        """Run the candidate twice; return its output, and the gradients of inputs and weights, None without any.

        Raises:
            Refused: See `recording`.
        """
        before, generators = Stillness(self.candidate.module), Generators(self.device)
        reads = HostReads(self.device)
        try:
            with before.buffers_kept(), self.recorder.trying():
                with reads:
                    self._run_both()
                # Attributes may be made in a first run, and none but the first.
                self.candidate.stillness = Stillness(self.candidate.module)
                output, gradients = self._run_both()
                self._refuse(reads, generators, self._still.change())
        except BaseException:
            before.put_back()
            self.candidate.stillness = before
            raise
        finally:
            if generators.drawn():
                generators.put_back()
        return output, gradients

    def _refuse(self, reads: HostReads, generators: Generators, change: str | None) -> None:
        if generators.drawn():
            raise Refused("it draws random numbers")
        if reads.found is not None:
            raise Refused(f"it reads values on the host ({reads.found})")
        if change is not None:
            raise Refused(f"running it changes it ({change})", final=True)

    def _run_both(self) -> tuple[Tensor, list[Tensor | None] | None]:
        versions = [buffer._version for buffer in self.buffers]
        leaves, output = self._forward()
        if type(output) is not Tensor or not output.is_floating_point():
            raise Refused(f"its output is no tensor of floats but {type(output).__name__}")
        storages = {buffer.untyped_storage().data_ptr() for buffer in self.buffers}
        if output.untyped_storage().data_ptr() in storages:
            raise Refused(None)  # a skip: it computes nothing
        if [buffer._version for buffer in self.buffers] != versions:
            raise Refused("it changes its input in place")
        if not output.requires_grad:
            return output, None
        wanted: list[Tensor] = [*(leaf for leaf in leaves if leaf.requires_grad), *self._weights]
        # Such a weight would be left without a gradient.
        if not _leaves_of(output) <= {id(tensor) for tensor in wanted}:
            raise Refused("it trains weights that are not registered as its own", final=True)
        with self._as_now():
            found = iter(torch.autograd.grad(output, wanted, torch.zeros_like(output), allow_unused=True))
        gradients = [next(found) if leaf.requires_grad else None for leaf in leaves]
        return output.detach(), [*gradients, *found]

    def _backward(self, output: Tensor, gradients: list[Tensor | None]) -> Backward:
        count = len(self.buffers)
        inputs = [
            None if gradient is None else self.scratch.buffer("gradient", position, signature(gradient))
            for position, gradient in enumerate(gradients[:count])
        ]
        # A weight that the output does not depend on has no gradient, and not one of zeros, which momentum would see.
        parameters = [p for p, gradient in zip(self._weights, gradients[count:], strict=True) if gradient is not None]
        for parameter in parameters:
            if not _is_dense(parameter):
                raise Refused("one of its weights has gaps in memory")
        sizes: dict[torch.dtype, int] = {}
        for parameter in parameters:
            sizes[parameter.dtype] = sizes.get(parameter.dtype, 0) + parameter.numel()
        rows = {dtype: self.scratch.row(size, dtype, self.device) for dtype, size in sizes.items()}
        return Backward(self.scratch.buffer("given", 0, signature(output)), inputs, parameters, rows)


def refuse_parts(module: nn.Module) -> None:
    """Refuse a candidate with a part that needs more than its own device's work.

    Raises:
        Refused: It has one.
    """
    for part in module.modules():
        if isinstance(part, GatedModule):
            raise Refused(None)  # a choice of its own, whose candidates are recorded each for itself
        if isinstance(part, nn.SyncBatchNorm):
            raise Refused("SyncBatchNorm waits for other processes")


def _leaves_of(output: Tensor) -> set[int]:
    """Return the ids of all tensors for which a backward pass from here adds a gradient up."""
    found: set[int] = set()
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(variable := getattr(node, "variable", None), Tensor):
            found.add(id(variable))
        waiting += [following for following, _ in node.next_functions]
    return found


def _is_dense(tensor: Tensor) -> bool:
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
