"""Recorders: what makes work on fixed buffers repeatable, as CUDA graphs, or by running it again.

Recorded work reads its inputs from buffers that were there before, writes its results into others, and returns
nothing. A replay does the same with what then lies in the buffers. `capture` builds on that alone, so that all of it
is tried on a CPU by `PlainRecorder`, whose replays have the semantics of a CUDA graph's.

Memory. A *memory* is what lies between the buffers: activations that a forward pass keeps for its backward pass, and
whatever comes and goes. Recordings of one memory may overwrite each other's. For CUDA graphs it is a pool of torch's
allocator. A graph writes to the addresses that its capture was given, whoever has them now. So within a pool memory is
shared exactly as far as nothing in Python holds a tensor of an earlier capture when a later one allocates. Torch's own
`make_graphed_callables` holds its static outputs and gradients, whose memory is therefore never shared. CUDA graph
trees (`torch/_inductor/cudagraph_trees.py`) and vLLM keep bare addresses instead, and make tensors of them when they
are read. That asks for private functions of torch, or compiled code. Here captured work ends in a copy to a buffer of
outside the pool, so that nothing of the pool has to be held. It costs one kernel of a graph, which is launched with
the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

Replay = Callable[[], None]


@runtime_checkable
class Recorder(Protocol):
    """Makes work on fixed buffers repeatable."""

    def takes(self, device: torch.device) -> bool:
        """Return whether work on this device, queued where the caller's is, can be recorded and replayed."""
        ...

    def memory(self) -> Any:
        """Return a memory for recordings that are never needed at the same time."""
        ...

    def trying(self) -> AbstractContextManager[None]:
        """Return the context in which work runs once before it is recorded."""
        ...

    def record(self, work: Callable[[], None], memory: Any, *, keeps: bool, outside: Sequence[Tensor] = ()) -> Replay:
        """Return what repeats the work.

        Args:
            work: See the module; the like of it has run before, within `trying`.
            memory: For what is not in a buffer.
            keeps: Whether some of that is needed later: by the backward pass of a forward pass.
            outside: Tensors that the work reads and that are in no memory: buffers, weights.
        """
        ...

    def spoil(self, buffer: Tensor) -> None:
        """Note that what lies in a buffer will not be read again."""
        ...


class CudaRecorder:
    """Recordings are CUDA graphs.

    Graphs must not be destroyed one at a time: destroying one lets torch forget the workspace of cuBLAS of its
    capture stream, which others of that stream have the address of (pytorch/pytorch#193402). Their owner drops all of
    a recorder's graphs together, and the recorder with them.

    Args:
        device: The GPU; its current stream is the one that all work must be queued in.
        cuda: Stands for `torch.cuda`; tests give a fake one.
    """

    def __init__(self, device: torch.device, *, cuda: Any = None):
        self._cuda = torch.cuda if cuda is None else cuda
        self.device = torch.device("cuda", self._cuda.current_device() if device.index is None else device.index)
        # All captures on one stream, as a pool shares memory only among work of the same stream.
        self._stream = self._cuda.Stream(self.device)
        self._home = self._cuda.current_stream(self.device)

    def takes(self, device: torch.device) -> bool:
        # A second stream would replay a graph while the first one still reads what it overwrites.
        return device == self.device and self._cuda.current_stream(self.device) == self._home

    def memory(self) -> Any:
        return self._cuda.graph_pool_handle()

    @contextmanager
    def trying(self) -> Iterator[None]:
        # cuDNN chooses its algorithms, and cuBLAS takes its workspace, in a first run, which a graph must not hold; the
        # workspace belongs to the stream.
        self._stream.wait_stream(self._home)
        try:
            with self._cuda.stream(self._stream):
                yield
        finally:
            self._home.wait_stream(self._stream)

    def record(self, work: Callable[[], None], memory: Any, *, keeps: bool, outside: Sequence[Tensor] = ()) -> Replay:
        graph = self._cuda.CUDAGraph()
        self._cuda.synchronize(self.device)
        # Not `torch.cuda.graph`, which empties the allocator's cache before each capture: a search captures hundreds.
        # "thread_local", as a loader's thread may pin memory meanwhile, which "global" takes for a fault of this one.
        with self._cuda.stream(self._stream):
            graph.capture_begin(pool=memory, capture_error_mode="thread_local")
            try:
                work()
            except BaseException:
                with suppress(Exception):  # a capture that went wrong cannot be ended without an error
                    graph.capture_end()
                raise
            graph.capture_end()
        return graph.replay

    def spoil(self, buffer: Tensor) -> None:
        pass


class _Held:
    """What autograd keeps in a memory of a `PlainRecorder`."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def keep(self, tensor: Tensor) -> Tensor:
        self.tensors.append(tensor.detach().clone())
        return self.tensors[-1]

    def spoil(self) -> None:
        for tensor in self.tensors:
            _poison(tensor)
        self.tensors = []


class PlainRecorder:
    """Recordings run their work anew: on any device, and as fast as without them. It tells right from wrong use.

    Whatever a CUDA graph would find overwritten, or might, is filled with NaN: what autograd kept in a memory, as soon
    as another recording of that memory runs, and a buffer, as soon as it has been read for the last time. So a result
    that is read too late, or handed out without a copy, is NaN here.
    """

    def takes(self, device: torch.device) -> bool:
        return True

    def memory(self) -> Any:
        return _Held()

    def trying(self) -> AbstractContextManager[None]:
        return nullcontext()

    def record(self, work: Callable[[], None], memory: Any, *, keeps: bool, outside: Sequence[Tensor] = ()) -> Replay:
        addresses = {tensor.untyped_storage().data_ptr() for tensor in outside}

        def keep(tensor: Tensor) -> Tensor:
            # A graph reads a buffer or a weight where it lies, as it then is.
            return tensor.detach() if tensor.untyped_storage().data_ptr() in addresses else memory.keep(tensor)

        def replay() -> None:
            memory.spoil()  # of whatever ran there before
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                work()
            if not keeps:
                memory.spoil()

        return replay

    def spoil(self, buffer: Tensor) -> None:
        _poison(buffer)


def _poison(tensor: Tensor) -> None:
    with torch.no_grad():
        tensor.fill_(float("nan") if tensor.is_floating_point() or tensor.is_complex() else 0)
