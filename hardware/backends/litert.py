"""LiteRT (TensorFlow Lite) with XNNPACK on the CPU, from PyTorch modules converted by `litert-torch`.

In int8 graphs are full-integer: `ai-edge-quantizer`, which `litert-torch` brings, quantises weights per channel and all
activations, and inputs and outputs are int8 too, of an operator alone as of a whole net.

A table measured with it on x86 is not a phone's table: there XNNPACK runs a 7x7 depthwise block 5 to 19 times slower
than a 3x3 one. To measure a phone, write the kit's `.tflite` files with `convert`.
"""

from __future__ import annotations

import os
import platform
import tempfile
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import BackendError
from ..files import write_atomically
from ..op_spec import OpSpec
from ..operators import primitives
from ..reading import ARRAY_BYTES, Kind, read_bytes, shown
from ..tables.records import FLOAT32, INT8
from .base import Runnable, SharedBackend, required

MODEL = Kind(
    "the model file",
    "export it again",
    BackendError,
    limit=ARRAY_BYTES,
    missing="there is no model file at {path}; export one first",
)


class LiteRTBackend(SharedBackend):
    """Models with channels-last inputs and outputs; converting takes 1 to 4 s each."""

    name = "litert"
    suffix = ".tflite"
    dtypes: ClassVar[tuple[str, ...]] = (FLOAT32, INT8)

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
            path = convert(chain, Path(folder) / "chain.tflite", batch=batch, dtype=self.dtype)
            return self._runnable(read_bytes(path, MODEL), threads)

    def prepare_model_file(
        self, path: str | Path, *, batch: int = 1, threads: int = 1, input_shape: tuple[int, ...] | None = None
    ) -> Runnable:
        path = Path(path)
        if path.suffix != self.suffix:
            raise BackendError(f"backend 'litert' times .tflite files, and {path} is none; use 'onnxruntime'")
        content = read_bytes(path, MODEL)
        if full_integer(content) != (self.dtype == INT8):
            is_ = "is not full-integer" if self.dtype == INT8 else "is full-integer"
            raise BackendError(f"{path} {is_}, but {self.dtype} is to be measured; give a file of {self.dtype}")
        return self._runnable(content, threads)

    def versions(self) -> dict[str, str]:
        made = {"ai-edge-quantizer": version("ai-edge-quantizer")} if self.dtype == INT8 else {}
        return {"python": platform.python_version(), "ai-edge-litert": version("ai-edge-litert"), **made}

    def _runnable(self, content: bytes, threads: int) -> Runnable:
        interpreter = self._interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
        entry = interpreter.get_input_details()[0]
        interpreter.set_tensor(entry["index"], _image(entry))
        return Runnable(interpreter.invoke, threads=threads, handle=interpreter)


def convert(chain: Sequence[OpSpec], path: str | Path, *, batch: int = 1, dtype: str = FLOAT32) -> Path:
    """Write a chain as a `.tflite` file; an empty chain gives a graph of one number, the interpreter's overhead.

    Args:
        chain: Operators in execution order.
        path: The file to write.
        batch: Images per inference.
        dtype: `float32`, or `int8` for a full-integer file. Its activations' ranges are those of random images.

    Returns:
        The file.

    Raises:
        BackendError: There is no such format, or a part of the chain stays in floats.
    """
    if dtype not in (FLOAT32, INT8):
        raise BackendError(f"there are no .tflite files in {shown(dtype)}; write float32 or int8")
    litert_torch = _litert_torch()
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
    path = Path(path)
    litert_torch.convert(module, (example,)).export(str(path))
    if dtype == INT8:
        write_atomically(path, _quantised(path, [op.key for op in chain]), error=BackendError)
    return path


def check_converts(dtype: str) -> None:
    """Refuse to write files in a number format, before any work, where that cannot be done here.

    Raises:
        BackendError: The extra `litert` is not installed.
    """
    _litert_torch()
    if dtype == INT8:
        _quantiser()


def full_integer(content: bytes) -> bool:
    """Whether a model computes in integers alone; its inputs and outputs may be floats."""
    interpreter = _runtime()(model_content=content)
    ends = {entry["index"] for entry in (*interpreter.get_input_details(), *interpreter.get_output_details())}
    inner = [entry["dtype"] for entry in interpreter.get_tensor_details() if entry["index"] not in ends]
    return np.int8 in inner and not any(np.issubdtype(kind, np.floating) for kind in inner)


def _runtime() -> Any:
    """Return LiteRT's class of interpreters."""
    module = required("ai_edge_litert.interpreter", backend="litert", package="ai-edge-litert", extra="litert")
    return module.Interpreter


def _litert_torch() -> Any:
    # read when litert_torch is imported; its progress bars would go between ours
    os.environ.setdefault("LITERT_TORCH_SHOW_PROGRESS", "n")
    return required("litert_torch", backend="litert", package="litert-torch", extra="litert")


def _quantiser() -> tuple[Any, Any]:
    """Return the quantiser's modules of that name and of recipes."""
    return tuple(
        required(f"ai_edge_quantizer.{part}", backend="litert", package="ai-edge-quantizer", extra="litert")
        for part in ("quantizer", "recipe")
    )


def _quantised(path: Path, keys: Sequence[str]) -> bytes:
    """Return a file's model with all weights and activations, also its inputs and outputs, in int8."""
    runtime, (quantizer, recipe) = _runtime(), _quantiser()
    interpreter = runtime(model_path=str(path))
    (name, ends), *_ = interpreter.get_signature_list().items()
    images = [{ends["inputs"][0]: _image(interpreter.get_input_details()[0], seed=seed)} for seed in range(2)]
    # advice on its memory, which is small here
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = quantizer.Quantizer(str(path), recipe.static_wi8_ai8())
        ranges = made.calibrate({name: images}, num_threads=1)
        result = made.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    content = bytes(result.quantized_model)
    interpreter = runtime(model_content=content)
    floats = [e["name"] for e in interpreter.get_tensor_details() if np.issubdtype(e["dtype"], np.floating)]
    if floats:
        raise BackendError(
            f"LiteRT's quantizer leaves {len(floats)} tensors of {', '.join(keys)[:200]} in floats, first "
            f"{shown(floats[0])}; measure it in float32"
        )
    return content


def _image(entry: dict[str, Any], *, seed: int = 0) -> np.ndarray:
    """Draw numbers for an input, in its own type."""
    generator, shape = np.random.default_rng(seed), tuple(entry["shape"])
    if entry["dtype"] == np.int8:
        return generator.integers(-128, 128, shape, dtype=np.int8)
    return generator.standard_normal(shape, dtype=np.float32)
