"""PyTorch on an NVIDIA GPU, timed with CUDA events after a synchronisation and with warm clocks."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from ..errors import BackendError
from ..op_spec import OpSpec
from ..operators import primitives
from ..operators.primitives import input_of
from .base import Backend, Runnable, required

WARM_SECONDS = 0.2
IDLE_SECONDS = 0.5
QUEUE_SECONDS = 0.05
"""What `run_for` queues at once takes at least so long, as the GPU idles while the next runs are launched."""


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
    known_options: ClassVar[Mapping[str, bool]] = {"graphs": False, "channels_last": False}

    def __init__(
        self, *, graphs: bool = False, channels_last: bool = False, cuda: Any = None, place: str = "cuda:0"
    ) -> None:
        self._torch = torch = required("torch", backend=self.name, package="torch")
        self._cuda = torch.cuda if cuda is None else cuda
        if not self._cuda.is_available():
            raise BackendError("backend 'cuda' needs an NVIDIA GPU, and torch sees none here; use 'onnxruntime'")
        self.options = {"graphs": graphs, "channels_last": channels_last}
        self.place = place
        self._last_busy = float("-inf")

    def use(self, place: str) -> None:
        kind, _, index = place.partition(":")
        count = self._cuda.device_count()
        if kind != "cuda" or not (place == "cuda" or index.isdigit()) or int(index or 0) >= count:
            names = ", ".join(f"cuda:{i} ({self._cuda.get_device_name(i)})" for i in range(count))
            raise BackendError(f"backend 'cuda' has no device {place!r} here; it has {names}")
        self.place = f"cuda:{int(index or 0)}"

    def prepare(
        self,
        chain: Sequence[OpSpec],
        *,
        batch: int = 1,
        threads: int = 1,
        input_shape: tuple[int, ...] | None = None,
    ) -> Runnable:
        # torch is slow to import, and this backend's module is read without it
        from ..operators.torch_module import chain_and_image

        torch = self._torch
        chain = primitives.check_chain(chain)
        shape = input_of(chain, input_shape)
        groups = [primitives.decompose(op) for op in chain]
        module, x = chain_and_image(groups, (batch, *shape), channels_last=self.options["channels_last"])
        module, x = module.to(self.place), x.to(self.place)

        def call() -> object:
            with torch.no_grad():
                return module(x)

        one = torch.zeros(1, device=self.place)

        def nothing() -> object:
            """Do the least that a graph can hold, so that an operator is rid of its own graph's launch."""
            return one.relu_()

        run = self._captured(call if chain else nothing) if self.options["graphs"] else call
        return Runnable(run, threads=threads, handle=(module, x, one))

    def time(self, runnable: Runnable, *, repeats: int = 1) -> float:
        # torch takes streams, events and synchronisation of the current device, which need not be this one
        with self._cuda.device(self.place):
            self._warm(runnable.call)
            start, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
            # kernels run after the call has returned: what was launched before must end before the first event
            self._cuda.synchronize()
            start.record()
            for _ in range(repeats):
                runnable.call()
            end.record()
            end.synchronize()
            self._last_busy = time.monotonic()
            return float(start.elapsed_time(end)) / 1e3 / repeats

    def run_for(self, runnable: Runnable, seconds: float) -> int:
        with self._cuda.device(self.place):
            end = time.monotonic() + seconds
            runs, queued = 0, 1
            while True:
                began = time.monotonic()
                for _ in range(queued):
                    runnable.call()
                # calls return before their kernels have run, and a queue of all of them would outlast the time by far
                self._cuda.synchronize()
                now = time.monotonic()
                runs += queued
                self._last_busy = now
                if now >= end:
                    return runs
                if now - began < QUEUE_SECONDS:
                    queued *= 2

    def device(self) -> str:
        return str(self._cuda.get_device_name(self.place))

    def versions(self) -> dict[str, str]:
        torch = self._torch
        versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": str(torch.version.cuda)}
        return {**versions, "cudnn": str(torch.backends.cudnn.version())}

    def _warm(self, call: Callable[[], object]) -> None:
        """Run once, and after a pause until the clocks are up again."""
        now = time.monotonic()
        call()
        if now - self._last_busy > IDLE_SECONDS:
            while time.monotonic() - now < WARM_SECONDS:
                call()
                # launches alone would fill the queue for long after the time is over
                self._cuda.synchronize()

    def _captured(self, call: Callable[[], object]) -> Callable[[], object]:
        """Capture the call as a CUDA graph."""
        with self._cuda.device(self.place):
            # CUDA captures no allocation or library set-up, so they happen before, on a side stream as torch asks for
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
            # the graph writes into this tensor's memory, which must not be given back while the graph lives
            return kept

        return replay
