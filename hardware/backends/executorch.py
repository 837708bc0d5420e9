"""ExecuTorch with the XNNPACK delegate on the CPU."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import BackendError
from ..op_spec import OpSpec
from ..operators import primitives
from .base import Backend, Runnable, required

# C++ names of `get_threadpool()` and `ThreadPool::_unsafe_reset_threadpool(uint32_t)`, as the linker knows them
_POOL = "_ZN10executorch9extension10threadpool14get_threadpoolEv"
_RESET = "_ZN10executorch9extension10threadpool10ThreadPool24_unsafe_reset_threadpoolEj"


class ExecuTorchBackend(Backend):
    """Modules exported, lowered to XNNPACK and loaded into the runtime of the Python package."""

    name = "executorch"

    def __init__(self) -> None:
        runtime = required("executorch.runtime", backend=self.name, package="executorch", extra="executorch")
        self._runtime = runtime.Runtime.get()
        self._threads = 0

    def prepare(
        self,
        chain: Sequence[OpSpec],
        *,
        batch: int = 1,
        threads: int = 1,
        input_shape: tuple[int, ...] | None = None,
    ) -> Runnable:
        # the optional extra 'executorch', and torch, which is slow to import
        import torch
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        from ..operators.torch_module import chain_and_image

        self._use(threads)
        chain = primitives.check_chain(chain)
        module: Any
        # a program cannot be empty: one number through a ReLU is as good as nothing
        module, x = torch.nn.ReLU().eval(), torch.zeros(1, 1)
        if chain:
            groups = [primitives.decompose(op) for op in chain]
            module, x = chain_and_image(groups, (batch, *chain[0].input_shape))
        with torch.no_grad():
            exported = torch.export.export(module, (x,))
            program = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()]).to_executorch()
        loaded = self._runtime.load_program(program.buffer)
        method = loaded.load_method("forward")
        inputs = [x]
        # the method points into the program's memory, so both are kept
        return Runnable(lambda: method.execute(inputs), threads=threads, handle=(loaded, program))

    def versions(self) -> dict[str, str]:
        return {"python": platform.python_version(), "executorch": version("executorch")}

    def _use(self, threads: int) -> None:
        """Set the size of the runtime's thread pool, for which its Python package has no function of its own."""
        if self._threads == threads:
            return
        import executorch

        library = Path(next(iter(executorch.__path__))) / "lib" / "libexecutorch_threadpool.so"
        try:
            pool = ctypes.CDLL(str(library))
            get, reset = pool[_POOL], pool[_RESET]
        except (OSError, AttributeError):
            raise BackendError(
                f"executorch {version('executorch')} offers no way to set its threads; install executorch 1.5"
            ) from None
        get.restype = ctypes.c_void_p
        reset.argtypes, reset.restype = [ctypes.c_void_p, ctypes.c_uint32], ctypes.c_bool
        if not reset(get(), threads):
            raise BackendError(f"executorch refused to use {threads} threads; give another number")
        self._threads = threads
