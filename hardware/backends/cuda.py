"""PyTorch on an NVIDIA GPU, timed with CUDA events after a synchronisation and with warm clocks."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from typing import Any

from hardware import primitives
from hardware.backends.base import Backend, Runnable, not_installed
from hardware.errors import BackendError
from hardware.op_spec import OpSpec

WARM_SECONDS = 0.2
IDLE_SECONDS = 0.5


class CudaBackend(Backend):
    """Eager modules under `torch.no_grad`, optionally replayed as CUDA graphs.

    A sample is the time between two events on the stream, read only when the second has happened. A GPU that has been
    idle for `IDLE_SECONDS` lowers its clocks, so the first sample after such a pause runs the operator for
    `WARM_SECONDS` before.

    Args:
        graphs: Whether to replay CUDA graphs, which takes the launches of kernels out of the time.
        channels_last: Whether tensors are in the channels-last memory format.
        cuda: Stands for `torch.cuda`; tests give a fake one.
        place: torch's name of the device.
    """

    name = "cuda"

    def __init__(
        self, *, graphs: bool = False, channels_last: bool = False, cuda: Any = None, place: str = "cuda"
    ) -> None:
        try:
            import torch
        except ImportError:
            raise not_installed(self.name, "torch") from None
        self._torch = torch
        self._cuda = torch.cuda if cuda is None else cuda
        if not self._cuda.is_available():
            raise BackendError("backend 'cuda' needs an NVIDIA GPU, and torch sees none here; use 'onnxruntime'.")
        self._graphs = graphs
        self._channels_last = channels_last
        self._place = place
        self._last_busy = float("-inf")

    def prepare(
        self,
        chain: Sequence[OpSpec],
        *,
        batch: int = 1,
        threads: int = 1,
        input_shape: tuple[int, ...] | None = None,
    ) -> Runnable:
        from hardware.torch_module import Chain

        torch = self._torch
        chain = primitives.check_chain(chain)
        shape = chain[0].input_shape if chain else input_shape
        if shape is None:
            raise BackendError("an empty chain needs input_shape; give (C, H, W).")
        module: Any = Chain([primitives.decompose(op) for op in chain]).eval().to(self._place)
        x = torch.randn(batch, *shape, generator=torch.Generator().manual_seed(0)).to(self._place)
        if self._channels_last:
            module = module.to(memory_format=torch.channels_last)
            x = x.to(memory_format=torch.channels_last)

        def call() -> object:
            with torch.no_grad():
                return module(x)

        run = self._captured(call) if self._graphs and chain else call
        return Runnable(run, threads=threads, handle=(module, x))

    def time(self, runnable: Runnable, *, repeats: int = 1) -> float:
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
        return str(self._cuda.get_device_name())

    def versions(self) -> dict[str, str]:
        torch = self._torch
        return {"python": platform.python_version(), "torch": torch.__version__, "cuda": str(torch.version.cuda)}

    def _warm(self, call: Callable[[], object]) -> None:
        now = time.monotonic()
        call()
        if now - self._last_busy > IDLE_SECONDS:
            while time.monotonic() - now < WARM_SECONDS:
                call()
                self._cuda.synchronize()

    def _captured(self, call: Callable[[], object]) -> Callable[[], object]:
        """The call as a CUDA graph, captured after warming up on a side stream as CUDA requires."""
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
