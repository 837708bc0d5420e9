"""ONNX Runtime on the CPU: the default backend."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import BackendError
from ..onnx_runtime import session_options
from ..op_spec import OpSpec
from ..operators.onnx_graph import chain_model
from ..operators.quantised import check_dtype, quantised_chain
from ..tables.records import FLOAT32, INT8
from .base import Runnable, SharedBackend, cpu_name, model_file, random_image, required

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"


class OnnxRuntimeBackend(SharedBackend):
    """Graphs written with `onnx.helper`, run with bound inputs and outputs and all graph optimisations.

    In int8 graphs are quantised (`hardware.operators.quantised`), on the CPU alone.

    Devices are `cpu`, `cuda` or `cuda:N`, and any other execution provider of the installed ONNX Runtime by its own
    name (`XnnpackExecutionProvider`). Only on the CPU proper is the calling thread's CPU time the clock.
    """

    name = "onnxruntime"
    dtypes: ClassVar[tuple[str, ...]] = (FLOAT32, INT8)

    def __init__(self) -> None:
        self._runtime = required("onnxruntime", backend=self.name, package="onnxruntime")
        self._provider = CPU
        self.provider_options: dict[str, Any] = {}

    def use(self, place: str) -> None:
        kind, _, index = place.partition(":")
        provider = {"cpu": CPU, "cuda": CUDA}.get(kind, kind)
        available = self._runtime.get_available_providers()
        if provider not in available or (":" in place and not (kind == "cuda" and index.isdigit())):
            raise BackendError(
                f"backend 'onnxruntime' has no device {place!r} here; it has {', '.join(['cpu', *available])}"
            )
        self._provider = provider
        self.provider_options = {"device_id": int(index or 0)} if provider == CUDA else {}
        self.place = f"cuda:{int(index or 0)}" if provider == CUDA else "cpu" if provider == CPU else provider
        self._check_int8()

    def choose(self, *, dtype: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        super().choose(dtype=dtype, options=options)
        self._check_int8()

    def _check_int8(self) -> None:
        if self.dtype == INT8 and self._provider != CPU:
            raise BackendError(f"backend 'onnxruntime' measures int8 on the CPU alone, not on {self.place}; use 'cpu'")

    def prepare(
        self,
        chain: Sequence[OpSpec],
        *,
        batch: int = 1,
        threads: int = 1,
        input_shape: tuple[int, ...] | None = None,
    ) -> Runnable:
        write = quantised_chain if self.dtype == INT8 else chain_model
        model = write(chain, batch=batch, input_shape=input_shape)
        return self._runnable(model.SerializeToString(), batch=batch, threads=threads, input_shape=None)

    def prepare_model_file(
        self, path: str | Path, *, batch: int = 1, threads: int = 1, input_shape: tuple[int, ...] | None = None
    ) -> Runnable:
        path = model_file(path)
        if self.dtype == INT8:
            check_dtype(path, self.dtype)
        runnable = self._runnable(str(path), batch=batch, threads=threads, input_shape=input_shape)
        # a file of ONNX Runtime's own format does not tell
        if self.dtype != INT8 and path.suffix == ".onnx":
            check_dtype(path, self.dtype)
        return runnable

    def device(self) -> str:
        return cpu_name() if self._provider == CPU else f"{self.place} beside {cpu_name()}"

    def versions(self) -> dict[str, str]:
        return {"python": platform.python_version(), "onnxruntime": self._runtime.__version__}

    def _runnable(
        self, source: str | bytes, *, batch: int, threads: int, input_shape: tuple[int, ...] | None
    ) -> Runnable:
        session = self._session(source, threads)
        inputs = session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(i.name for i in inputs)
            raise BackendError(f"the model has {len(inputs)} inputs ({names}); only nets of one image can be timed")
        declared = inputs[0].shape
        shape = [batch, *(input_shape if input_shape is not None else declared[1:])]
        fits = len(declared) == len(shape) and all(
            not isinstance(a, int) or a == b for a, b in zip(declared, shape, strict=False)
        )
        if not fits or not all(isinstance(side, int) for side in shape):
            raise BackendError(f"the model takes {declared}, not {shape}; give its batch and input_shape")
        array = random_image(shape, uint8=inputs[0].type == "tensor(uint8)")
        # inputs and outputs are bound once; `run` would copy both in every call
        binding = session.io_binding()
        feed = self._value(array)
        binding.bind_ortvalue_input(inputs[0].name, feed)
        results = [self._value(result) for result in session.run(None, {inputs[0].name: array})]
        for output, result in zip(session.get_outputs(), results, strict=True):
            binding.bind_ortvalue_output(output.name, result)

        def call() -> None:
            session.run_with_iobinding(binding)

        handle = (session, binding, feed, results)
        return Runnable(call, threads=threads, handle=handle, wall_clock=self._provider != CPU)

    def _value(self, array: np.ndarray) -> Any:
        """Put an array where the device has its memory, so that copying it there is no part of the time."""
        where = ("cuda", self.provider_options["device_id"]) if self._provider == CUDA else ("cpu", 0)
        return self._runtime.OrtValue.ortvalue_from_numpy(array, *where)

    def _session(self, source: str | bytes, threads: int) -> Any:
        options = session_options(threads)
        options.inter_op_num_threads = threads
        options.graph_optimization_level = self._runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        # threads that wait for the next call by spinning would take the cores from whatever is measured next
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = self._runtime.InferenceSession(
                source, options, providers=[(self._provider, self.provider_options)]
            )
        except Exception as error:
            what = source if isinstance(source, str) else "the graph of a chain"
            raise BackendError(f"ONNX Runtime cannot load {what}: {error}") from None
        # where a provider fails to start, ONNX Runtime logs it and takes the CPU instead, which must not pass for it
        if session.get_providers()[0] != self._provider:
            raise BackendError(f"ONNX Runtime could not start {self._provider}, see its log; use the device 'cpu'")
        return session
