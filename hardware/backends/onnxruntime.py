"""ONNX Runtime on the CPU: the default backend."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hardware.backends.base import Runnable, SharedBackend, not_installed
from hardware.errors import BackendError
from hardware.onnx_graph import chain_model
from hardware.op_spec import OpSpec


class OnnxRuntimeBackend(SharedBackend):
    """Graphs written with `onnx.helper`, run with bound inputs and outputs and all graph optimisations."""

    name = "onnxruntime"

    def __init__(self) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise not_installed(self.name, "onnxruntime") from None
        self._runtime = onnxruntime

    def prepare(
        self,
        chain: Sequence[OpSpec],
        *,
        batch: int = 1,
        threads: int = 1,
        input_shape: tuple[int, ...] | None = None,
    ) -> Runnable:
        model = chain_model(chain, batch=batch, input_shape=input_shape)
        return self._runnable(model.SerializeToString(), batch=batch, threads=threads, input_shape=None)

    def prepare_model_file(
        self, path: str | Path, *, batch: int = 1, threads: int = 1, input_shape: tuple[int, ...] | None = None
    ) -> Runnable:
        path = Path(path)
        if not path.is_file():
            raise BackendError(f"there is no model file at {path}; export one first.")
        return self._runnable(str(path), batch=batch, threads=threads, input_shape=input_shape)

    def versions(self) -> dict[str, str]:
        return {"python": platform.python_version(), "onnxruntime": self._runtime.__version__}

    def _runnable(
        self, source: str | bytes, *, batch: int, threads: int, input_shape: tuple[int, ...] | None
    ) -> Runnable:
        session = self._session(source, threads)
        inputs = session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(i.name for i in inputs)
            raise BackendError(f"the model has {len(inputs)} inputs ({names}); only nets of one image can be timed.")
        declared = inputs[0].shape
        shape = [batch, *(input_shape if input_shape is not None else declared[1:])]
        fits = len(declared) == len(shape) and all(
            not isinstance(a, int) or a == b for a, b in zip(declared, shape, strict=False)
        )
        if not fits or not all(isinstance(side, int) for side in shape):
            raise BackendError(f"the model takes {declared}, not {shape}; give its batch and input_shape.")
        array = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
        binding = session.io_binding()
        feed = self._runtime.OrtValue.ortvalue_from_numpy(array)
        binding.bind_ortvalue_input(inputs[0].name, feed)
        results = [self._runtime.OrtValue.ortvalue_from_numpy(r) for r in session.run(None, {inputs[0].name: array})]
        for output, result in zip(session.get_outputs(), results, strict=True):
            binding.bind_ortvalue_output(output.name, result)

        def call() -> None:
            session.run_with_iobinding(binding)

        return Runnable(call, threads=threads, handle=(session, binding, feed, results))

    def _session(self, source: str | bytes, threads: int) -> Any:
        options = self._runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = threads
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            return self._runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            what = source if isinstance(source, str) else "the graph of a chain"
            raise BackendError(f"ONNX Runtime cannot load {what}: {error}") from None
