"""PyTorch on an NVIDIA GPU, timed with CUDA events after a synchronisation and with warm clocks."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

from hardware.errors import BackendError
from hardware.op_spec import OpSpec

from ..operators import primitives
from ..operators.primitives import input_of
from .base import Backend, Runnable, required

WARM_SECONDS = 0.2
IDLE_SECONDS = 0.5


class CudaBackend(Backend):
    """Eager modules under `torch.no_grad`, optionally replayed as CUDA graphs.

    A sample is the time between two events on the device's stream, read only when the second has happened. A GPU that
    has been idle for `IDLE_SECONDS` lowers its clocks, so the first sample after such a pause runs the operator for
    `WARM_SECONDS` before.

    Args:
        graphs: Whether to replay CUDA graphs, which takes the launches of kernels out of the time.
        channels_last: Whether tensors are in the channels-last memory format.
        cuda: Stands for `torch.cuda`; tests give a fake one.
        place: torch's name of the device.
    """

    name = "cuda"

    def __init__(
        self, *, graphs: bool = False, channels_last: bool = False, cuda: Any = None, place: str = "cuda:0"
    ) -> None:
        self._torch = torch = required("torch", backend=self.name, package="torch")
        self._cuda = torch.cuda if cuda is None else cuda
        if not self._cuda.is_available():
            raise BackendError("backend 'cuda' needs an NVIDIA GPU, and torch sees none here; use 'onnxruntime'.")
        self._graphs = graphs
        self._channels_last = channels_last
        self.place = place
        self._last_busy = float("-inf")

    def use(self, place: str) -> None:
        kind, _, index = place.partition(":")
        count = self._cuda.device_count()
        if kind != "cuda" or not (place == "cuda" or index.isdigit()) or int(index or 0) >= count:
            names = ", ".join(f"cuda:{i} ({self._cuda.get_device_name(i)})" for i in range(count))
            raise BackendError(f"backend 'cuda' has no device {place!r} here; it has {names}.")
        self.place = f"cuda:{int(index or 0)}"

    def prepare(
        self,
        chain: Sequence[OpSpec],
        *,
        batch: int = 1,
        threads: int = 1,
        input_shape: tuple[int, ...] | None = None,
    ) -> Runnable:
        from ..operators.torch_module import Chain

        torch = self._torch
        chain = primitives.check_chain(chain)
        shape = input_of(chain, input_shape)
        module: Any = Chain([primitives.decompose(op) for op in chain]).eval().to(self.place)
        x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)).to(self.place)
        if self._channels_last:
            module = module.to(memory_format=torch.channels_last)
            x = x.to(memory_format=torch.channels_last)

        def call() -> object:
            with torch.no_grad():
                return module(x)

        one = torch.zeros(1, device=self.place)

        def nothing() -> object:
            """The least that a graph can hold, so that an operator is rid of its own graph's launch."""
            return one.relu_()

        run = self._captured(call if chain else nothing) if self._graphs else call
        return Runnable(run, threads=threads, handle=(module, x, one))

    def time(self, runnable: Runnable, *, repeats: int = 1) -> float:
        # streams, events and synchronisation are the current device's, which need not be this one
        with self._cuda.device(self.place):
            self._warm(runnable.call)
            start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
            self._cuda.synchronize()
            start.record()
            for _ in range(repeats):
                runnable.call()
            end.record()
            end.synchronize()
            self._last_busy = time.monotonic()
            return float(start.elapsed_time(end)) / 1e3 / repeats

    def device(self) -> str:
        return str(self._cuda.get_device_name(self.place))

    def versions(self) -> dict[str, str]:
        torch = self._torch
        versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
        return {**versions, "cudnn": str(torch.backends.cudnn.version())}

    def _warm(self, call: Callable[[], object]) -> None:
        now = time.monotonic()
        call()
        if now - self._last_busy > IDLE_SECONDS:
            while time.monotonic() - now < WARM_SECONDS:
                call()
                self._cuda.synchronize()

    def _captured(self, call: Callable[[], object]) -> Callable[[], object]:
        """The call as a CUDA graph, captured after warming up on a side stream as CUDA requires."""
        with self._cuda.device(self.place):
            stream = self._cuda.Stream()
            stream.wait_stream(self._cuda.current_stream())
            with self._cuda.stream(stream):
                for _ in range(3):
                    call()
            self._cuda.current_stream().wait_stream(stream)
            graph = self._cuda.CUDAGraph()
            with self._cuda.graph(graph):
                kept = call()

        def replay() -> object:
            graph.replay()
            return kept

        return replay
