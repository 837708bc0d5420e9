"""OpenVINO on Intel's devices and on other CPUs: the ONNX graphs of ONNX Runtime's backend, compiled by OpenVINO."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..errors import BackendError
from ..op_spec import OpSpec
from ..operators.onnx_graph import chain_model
from ..operators.quantised import check_dtype, quantised_chain
from ..reading import cut, shown
from ..tables.records import INT8
from .base import Runnable, SharedBackend, cpu_name, model_file, random_image, required

CPU = "CPU"
_HINTS = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", INT8: "f32"}
"""Of the precision of all that is not quantised."""
_BYTES = ("i8", "u8")
_HEAVY = ("convolution", "fullyconnected", "fully_connected")


class OpenVINOBackend(SharedBackend):
    """Models compiled for one synchronous inference at a time.

    The precision is always set, and looked at in what was compiled: left alone, OpenVINO takes bfloat16 for float32 on
    CPUs that are fast at it, and there also for float16, which is refused here. In int8 the graphs are quantised as
    those of ONNX Runtime's backend are, and all convolutions of what was compiled must be in int8.

    Devices are OpenVINO's own (`CPU`, `GPU`, `GPU.1`, `NPU`, ...), in any case. On the CPU proper and one thread, the
    calling thread does the work and its CPU time is the clock. OpenVINO reports its use only when it converts a model,
    which nothing here has it do.
    """

    name = "openvino"
    dtypes: ClassVar[tuple[str, ...]] = tuple(_HINTS)

    def __init__(self) -> None:
        self._runtime = required("openvino", backend=self.name, package="openvino", extra="openvino")
        self._core = self._runtime.Core()

    def use(self, place: str) -> None:
        device, available = place.upper(), list(self._core.available_devices)
        # of several GPUs the plain name is the first
        if device not in {*available, *(name.partition(".")[0] for name in available)}:
            raise BackendError(
                f"backend 'openvino' has no device {shown(place)} here; it has "
                f"{', '.join(name.lower() for name in available) or 'none'}"
            )
        self.place = device.lower()

    def prepare(
        self,
        chain: Sequence[OpSpec],
        *,
        batch: int = 1,
        threads: int = 1,
        input_shape: tuple[int, ...] | None = None,
    ) -> Runnable:
        if self.dtype == INT8:
            model = quantised_chain(chain, batch=batch, input_shape=input_shape, standard=True)
        else:
            model = chain_model(chain, batch=batch, input_shape=input_shape)
        return self._runnable(model.SerializeToString(), batch=batch, threads=threads, input_shape=None)

    def prepare_model_file(
        self, path: str | Path, *, batch: int = 1, threads: int = 1, input_shape: tuple[int, ...] | None = None
    ) -> Runnable:
        path = model_file(path)
        # a file of OpenVINO's own format does not tell
        tells = path.suffix == ".onnx"
        if tells and self.dtype == INT8:
            check_dtype(path, self.dtype)
        runnable = self._runnable(path, batch=batch, threads=threads, input_shape=input_shape)
        if tells and self.dtype != INT8:
            check_dtype(path, self.dtype)
        return runnable

    def device(self) -> str:
        if self.place == CPU.lower():
            return cpu_name()
        return f"{self._core.get_property(self.place.upper(), 'FULL_DEVICE_NAME')} beside {cpu_name()}"

    def versions(self) -> dict[str, str]:
        return {"python": platform.python_version(), "openvino": str(self._runtime.__version__)}

    def _runnable(
        self, source: Path | bytes, *, batch: int, threads: int, input_shape: tuple[int, ...] | None
    ) -> Runnable:
        compiled = self._compiled(source, batch=batch, threads=threads, input_shape=input_shape)
        request = compiled.create_infer_request()
        entry = compiled.input(0)
        array = random_image(tuple(entry.shape), uint8=entry.get_element_type().get_type_name() == "u8")
        # bound once, as a tensor of this memory: a call would copy the image
        image = self._runtime.Tensor(array, shared_memory=True)
        request.set_input_tensor(image)
        return Runnable(
            request.infer,
            threads=threads,
            handle=(compiled, request, image, array),
            wall_clock=self.place != CPU.lower(),
        )

    def _compiled(self, source: Path | bytes, *, batch: int, threads: int, input_shape: tuple[int, ...] | None) -> Any:
        what = str(source) if isinstance(source, Path) else "the graph of a chain"
        device, hint = self.place.upper(), _HINTS[self.dtype]
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        if device == CPU:
            # a pinned thread of this process would stay on its core for whatever is measured next
            settings |= {"INFERENCE_NUM_THREADS": threads, "ENABLE_CPU_PINNING": False}
        try:
            model = self._core.read_model(source)
            inputs = [(one.get_any_name(), one.get_partial_shape()) for one in model.inputs]
        except Exception as error:
            raise BackendError(f"OpenVINO cannot load {what}: {_short(error)}") from None
        if len(inputs) != 1:
            names = ", ".join(name for name, _ in inputs)
            raise BackendError(f"the model has {len(inputs)} inputs ({names}); only nets of one image can be timed")
        declared = [side.get_length() if side.is_static else None for side in inputs[0][1]]
        shape = [batch, *(input_shape if input_shape is not None else declared[1:])]
        fits = len(declared) == len(shape) and all(a in (None, b) for a, b in zip(declared, shape, strict=False))
        if not fits or None in shape:
            raise BackendError(f"the model takes {declared}, not {shape}; give its batch and input_shape")
        try:
            model.reshape(shape)
            compiled = self._core.compile_model(model, device, settings)
            taken = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
        except Exception as error:
            raise BackendError(f"OpenVINO cannot compile {what} for {device}: {_short(error)}") from None
        if taken != hint:
            raise BackendError(
                f"OpenVINO computes {self.dtype} as {taken} on {self.device()}; choose another dtype than {self.dtype}"
            )
        if self.dtype == INT8:
            self._check_int8(compiled, what)
        return compiled

    def _check_int8(self, compiled: Any, what: str) -> None:
        """Refuse what was compiled where a convolution of it computes in floats, as where a device has no int8."""
        precisions = []
        for node in compiled.get_runtime_model().get_ordered_ops():
            said = node.get_rt_info()
            if str(said["layerType"].astype(str)).lower() in _HEAVY:
                precisions.append(str(said["runtimePrecision"].astype(str)))
        floats = [precision for precision in precisions if precision not in _BYTES]
        if floats:
            raise BackendError(
                f"OpenVINO computes {len(floats)} of {len(precisions)} convolutions of {what} as {floats[0]} on "
                f"{self.device()}, not in int8; measure float32"
            )


def _short(error: Exception) -> str:
    return cut(" ".join(str(error).split()), 200)
