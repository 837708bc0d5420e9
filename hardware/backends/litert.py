"""LiteRT (TensorFlow Lite) with XNNPACK on the CPU, from PyTorch modules converted by `litert-torch`.

A table measured with it on x86 is not a phone's table: there XNNPACK runs a 7x7 depthwise block 5 to 19 times slower
than a 3x3 one. To measure a phone, write the kit's `.tflite` files with `convert`.
"""

from __future__ import annotations

import os
import platform
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendError
from ..op_spec import OpSpec
from ..operators import primitives
from ..reading import ARRAY_BYTES, Kind, read_bytes
from .base import Runnable, SharedBackend, required

MODEL = Kind(
    "the model file",
    "export it again",
    BackendError,
    limit=ARRAY_BYTES,
    missing="there is no model file at {path}; export one first",
)


class LiteRTBackend(SharedBackend):
    """Float models with channels-last inputs and outputs; converting takes 1 to 4 s each."""

    name = "litert"
    suffix = ".tflite"

    def __init__(self) -> None:
        module = required("ai_edge_litert.interpreter", backend=self.name, package="ai-edge-litert", extra="litert")
        self._interpreter = module.Interpreter

    def prepare(
        self,
        chain: Sequence[OpSpec],
        *,
        batch: int = 1,
        threads: int = 1,
        input_shape: tuple[int, ...] | None = None,
    ) -> Runnable:
        with tempfile.TemporaryDirectory() as folder:
            path = convert(chain, Path(folder) / "chain.tflite", batch=batch)
            return self._runnable(read_bytes(path, MODEL), threads)

    def prepare_model_file(
        self, path: str | Path, *, batch: int = 1, threads: int = 1, input_shape: tuple[int, ...] | None = None
    ) -> Runnable:
        path = Path(path)
        if path.suffix != self.suffix:
            raise BackendError(f"backend 'litert' times .tflite files, and {path} is none; use 'onnxruntime'")
        return self._runnable(read_bytes(path, MODEL), threads)

    def versions(self) -> dict[str, str]:
        return {"python": platform.python_version(), "ai-edge-litert": version("ai-edge-litert")}

    def _runnable(self, content: bytes, threads: int) -> Runnable:
        interpreter = self._interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
        entry = interpreter.get_input_details()[0]
        image = np.random.default_rng(0).standard_normal(tuple(entry["shape"]), dtype=np.float32)
        interpreter.set_tensor(entry["index"], image)
        return Runnable(interpreter.invoke, threads=threads, handle=interpreter)


def convert(chain: Sequence[OpSpec], path: str | Path, *, batch: int = 1) -> Path:
    """Write a chain as a `.tflite` file; an empty chain gives a graph of one number, the interpreter's overhead.

    Args:
        chain: Operators in execution order.
        path: The file to write.
        batch: Images per inference.

    Returns:
        The file.
    """
    # read when litert_torch is imported; its progress bars would go between ours
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    litert_torch = required("litert_torch", backend="litert", package="litert-torch", extra="litert")
    # slow to import, and needed to convert only
    import torch

    from ..operators.torch_module import Chain

    chain = primitives.check_chain(chain)
    module: Any
    if chain:
        module = Chain([primitives.decompose(op) for op in chain]).eval()
        shape = (batch, *chain[0].input_shape)
        outputs = [0] if len(chain[-1].output_shape) == 3 else None
        module = litert_torch.to_channel_last_io(module, args=[0], outputs=outputs).eval()
        example = torch.randn(shape[0], *shape[2:], shape[1])
    else:
        module, example = torch.nn.ReLU().eval(), torch.zeros(1, 1)
    litert_torch.convert(module, (example,)).export(str(path))
    return Path(path)
