"""Candidates that are recorded once and replayed from then on: fewer launches where launches are what a step waits for.

A step runs one candidate an edge and measures another one beside it, each a dozen kernels. On small images a GPU is
done with a kernel before the next one is launched. A recording launches a candidate's kernels as one.

What is kept, and what may be overwritten when:

- An edge's candidates never have to be in memory together. So those of a layer share the buffers of its inputs, and
  one memory (`Recorder.memory`) for what their forward passes keep for the backward pass. Until that backward pass is
  over the layer is *taken*: it runs eagerly if it is called again.
- Whatever runs without a graph (measured paths, samples of REINFORCE) keeps nothing, and no more does a backward pass.
  All of it shares one memory, as large as the largest of them, and other buffers. So a measured path leaves alone what
  the active path of its edge has kept, and gradients of one edge take the place of those of the edge behind it.
- Outputs and gradients pass through buffers that all layers share (`Scratch`). They are copied out at once, and
  nobody outside gets hold of a buffer: AccumulateGrad would take one for a weight's own gradient
  (pytorch/pytorch#181723), and a user may keep an output for longer than one replay.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .gate import PathSelector, StepMode
from .making import Candidate, Making, Refused, autocast_now, refuse_parts
from .recorders import Recorder
from .recording import Layer, Recording, Replayed, Scratch, Signature, signature
from .stillness import Stillness

_logger = logging.getLogger(__name__)

MOST_SHAPES = 2
"""Shapes of inputs that a layer is recorded for: each has buffers of its own."""
MOST_CHANGES = 8
"""How often a candidate is recorded anew because it was changed: more often is how it works, and not a step of its
training, such as batch norms that are frozen."""


class Captures:
    """Records the candidates of gated layers when they first run, and replays them from then on.

    Only inside `active`. What cannot be recorded runs eagerly; the first candidate of each reason is named in one
    sentence.

    Args:
        recorder: Makes recordings.

    Attributes:
        recorded: Candidates that were recorded, each counted once for every kind of step and input.
        replayed: Runs of candidates that were replays.
        eager: Runs of candidates that were not.
    """

    def __init__(self, recorder: Recorder):
        self._recorder = recorder
        self._scratch = Scratch()
        self._memory = recorder.memory()  # for all that keeps nothing
        self._layers: dict[int, tuple[Layer, dict[int, Candidate]]] = {}
        self._void: list[Any] = []  # recordings that no longer stand for anything, see `CudaRecorder`
        self._said: set[str | None] = set()
        self.recorded = self.replayed = self.eager = 0

    @contextmanager
    def active(self, selector: PathSelector) -> Iterator[None]:
        """Run a supernet's candidates by recordings inside the context."""
        before, selector.captures = selector.captures, self
        try:
            yield
        finally:
            selector.captures = before

    def run(
        self, layer: nn.Module, index: int, module: nn.Module, args: tuple[Any, ...], mode: StepMode | None
    ) -> Tensor | None:
        """Return a candidate's output; None where it has to run eagerly.

        Args:
            layer: The gated layer.
            index: The candidate's.
            module: The candidate.
            args: Its inputs.
            mode: The mode of an architecture step; None in a weight step.
        """
        output = None
        try:
            output = self._run(layer, index, module, args, mode)
        except Refused as error:
            self._say(layer, index, error)
        if output is None:
            self.eager += 1
        else:
            self.replayed += 1
        return output

    def _run(
        self, layer: nn.Module, index: int, module: nn.Module, args: tuple[Any, ...], mode: StepMode | None
    ) -> Tensor | None:
        found = self._layers.get(id(layer))
        if found is None:
            found = self._layers[id(layer)] = Layer(layer, self._recorder), {}
        here, candidates = found
        candidate = candidates.get(index)
        if candidate is None or candidate.module is not module:
            self._void.append(candidate)
            candidate = candidates[index] = Candidate(module)
        if candidate.changes > MOST_CHANGES:
            return None
        tensors = [arg for arg in args if _is_plain(arg)]
        if len({tensor.device for tensor in tensors}) != 1 or len(tensors) != len(args):
            raise Refused("it does not run on dense tensors of one device alone", kind="inputs")
        device = tensors[0].device
        if torch.is_inference_mode_enabled() or not self._recorder.takes(device):
            return None
        autocast = autocast_now(device)
        shapes = tuple(map(signature, tensors))
        needed = tuple(tensor.requires_grad for tensor in tensors)
        key = (mode is None, torch.is_grad_enabled(), needed, autocast, shapes)
        if candidate.stillness is not None and (change := candidate.stillness.change()) is not None:
            self._void += [*candidate.recordings.values(), candidate.stillness]
            candidate.recordings, candidate.stillness = {}, None
            candidate.changes += 1
            if candidate.changes > MOST_CHANGES:
                raise Refused(f"it is changed all the time ({change})", kind="changed")
        if key not in candidate.recordings:
            if _not_now():
                return None
            if shapes not in here.shapes and len(here.shapes) >= MOST_SHAPES:
                raise Refused(f"it runs on more than {MOST_SHAPES} shapes of inputs", kind="shapes")
            candidate.recordings[key] = self._recorded(here, index, candidate, tensors, autocast, mode)
            here.shapes.add(shapes)
        recording = candidate.recordings[key]
        if recording is None:
            return None
        assert candidate.stillness is not None
        if candidate.stillness.hooked():
            raise Refused("a hook watches it", kind="hook")
        if recording.layer is None:
            with torch.no_grad():
                return recording.run(tensors)
        if here.taken:
            raise Refused("it runs again before its backward pass", kind="taken")
        assert recording.backward is not None
        output: Tensor = Replayed.apply(recording, len(tensors), *tensors, *recording.backward.parameters)
        return output

    # ---- recording -----------------------------------------------------------------------------------------------

    def _recorded(
        self,
        layer: Layer,
        index: int,
        candidate: Candidate,
        tensors: list[Tensor],
        autocast: Signature,
        mode: StepMode | None,
    ) -> Recording | None:
        try:
            refuse_parts(candidate.module)
            if candidate.stillness is None:
                candidate.stillness = Stillness(candidate.module)
            if candidate.stillness.hooked():
                raise Refused("a hook watches it", kind="hook")
            if not candidate.stillness.is_on(tensors[0].device):
                raise Refused("a tensor of it lies on another device than its input")
            making = Making(self._recorder, self._scratch, layer, candidate, tensors, autocast, mode)
            making.prepare()
        except Refused as error:
            self._say(layer.module, index, error)
            if error.final:
                candidate.changes = MOST_CHANGES + 1
            return None
        except Exception as error:
            # What fails for a reason of its own fails again when it runs eagerly, and says so there.
            self._say(layer.module, index, Refused(f"trying it failed ({_short(error)})", kind="trying"))
            return None
        try:
            recording = making.recording(self._memory)
        except Exception as error:
            # The memory may have lost account of what is in use.
            layer.renew()
            self._memory = self._recorder.memory()
            self._say(layer.module, index, Refused(f"recording it failed ({_short(error)})", kind="recording"))
            return None
        self.recorded += 1
        return recording

    def _say(self, layer: nn.Module, index: int, refused: Refused) -> None:
        """Say why a candidate runs eagerly: once for each kind of reason."""
        if refused.reason is None or refused.kind in self._said:
            return
        self._said.add(refused.kind)
        label, names = getattr(layer, "label", "?"), getattr(layer, "names", None)
        _logger.warning(
            "candidate %r of the choice %r is not captured, as %s; it runs eagerly, as all do that share this reason",
            index if names is None else names[index],
            label,
            refused.reason,
        )


def _is_plain(value: Any) -> bool:
    # A subclass of Tensor may compute something else, and other layouts have no strides.
    return type(value) in (Tensor, nn.Parameter) and value.layout is torch.strided and not value.is_nested


def _not_now() -> bool:
    """Return whether candidates cannot be tried out just now: they run eagerly this time."""
    # In a backward pass (a checkpoint's) no other one can be recorded; and hooks on what autograd keeps would keep
    # tensors of a recording's memory, or move them.
    within_backward = torch.is_grad_enabled() and torch._C._current_graph_task_id() != -1
    return within_backward or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
