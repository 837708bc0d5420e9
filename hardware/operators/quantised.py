"""A chain of operators as an ONNX graph in int8, quantised as a deployed file is: QDQ, with weights per channel.

`onnxruntime.quantization` places the quantised tensors, in operators and whole nets alike, so that ONNX Runtime fuses
both to the same kernels (`QLinearConv`, ...). Activations are uint8. Only times matter here, so that every activation
has one made-up range; `quantise_file` calibrates a real net on images.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendError
from ..files import write_atomically
from ..onnx_runtime import import_onnxruntime
from ..op_spec import OpSpec
from ..reading import ARRAY_BYTES, Kind, read_bytes
from .onnx_graph import INPUT, OUTPUT, chain_model
from .primitives import Shape

MODEL = Kind(
    "the ONNX file",
    "export it again",
    BackendError,
    limit=ARRAY_BYTES,
    missing="there is no model file at {path}; export one first",
)
_RANGE = (np.float32(-6.0), np.float32(6.0))
_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def quantised_chain(chain: Sequence[OpSpec], *, batch: int = 1, input_shape: Shape | None = None, seed: int = 0) -> Any:
    """Write a chain as a quantised ONNX model.

    A whole net takes and gives floats, as it is deployed. One operator alone takes and gives uint8 feature maps, and
    in the layout of ONNX Runtime's int8 kernels: within a net nothing converts or transposes between two operators,
    which would cost an operator alone more than its convolutions. A chain of no operator stays as it is.

    Args:
        chain: Operators in execution order.
        batch: Images per inference (static).
        input_shape: `(C, H, W)`; needed for an empty chain only.
        seed: Seed of the random weights.
    """
    model = chain_model(chain, batch=batch, input_shape=input_shape, seed=seed)
    chain = tuple(chain)
    if not chain:
        return model
    model = _quantised(model)
    if len(chain) == 1:
        _take_bytes(model)
        if len(chain[0].output_shape) == 3:
            _give_bytes(model)
    return model


def quantise_file(source: str | Path, out: str | Path, images: Iterable[np.ndarray]) -> Path:
    """Write a quantised copy of an exported ONNX file, calibrated on images.

    Args:
        source: The file, in float32, of one input.
        out: The file to write.
        images: `1 x C x H x W` or batches, float32, as the net takes them; some hundred are enough.

    Returns:
        The written file.

    Raises:
        BackendError: The file cannot be quantised.
    """
    import_onnxruntime()
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    out = Path(out)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        # folds batch norms into convolutions, and infers the shapes that the quantisation asks for
        ready, made = Path(folder) / "ready.onnx", Path(folder) / "quantised.onnx"
        try:
            quant_pre_process(str(source), str(ready), skip_symbolic_shape=True)
            quantize_static(
                str(ready),
                str(made),
                _Images(str(ready), images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:
            raise BackendError(
                f"{source} cannot be quantised: {' '.join(str(error).split())[:200]}; deploy it as float32"
            ) from error
        write_atomically(out, read_bytes(made, MODEL), error=BackendError, remedy="choose another place")
    return out


def is_quantised(path: str | Path) -> bool:
    """Whether an ONNX file has a quantised tensor.

    Raises:
        BackendError: It is no ONNX file.
    """
    import onnx

    try:
        graph = onnx.load_from_string(read_bytes(path, MODEL)).graph
    except BackendError:
        raise
    except Exception as error:
        raise BackendError(f"{path} is no ONNX file: {' '.join(str(error).split())[:200]}; export it again") from None
    return any(node.op_type.startswith(("QuantizeLinear", "QLinear")) for node in graph.node)


def _quantised(model: Any) -> Any:
    import_onnxruntime()
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    weights = {array.name for array in model.graph.initializer}
    tensors = {name for node in model.graph.node for name in (*node.input, *node.output)} - weights
    ranges = TensorsData(CalibrationMethod.MinMax, dict.fromkeys(tensors, _RANGE))
    # the kinds that `quantize_static` takes by default, as for a deployed file
    kinds = sorted({*QDQRegistry, *QLinearOpsRegistry})
    with _quiet():
        quantizer = QDQQuantizer(model, True, False, QuantType.QInt8, QuantType.QUInt8, ranges, [], [], kinds, {})
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    return quantizer.model.model


def _take_bytes(model: Any) -> None:
    """Have a graph take the uint8 map, height before width before channels, that its first node would make."""
    from onnx import TensorProto, helper

    graph = model.graph
    # an operator that adds its input quantises it once; what is not quantised at all stays as it is
    first = next((node for node in graph.node if node.op_type == "QuantizeLinear" and INPUT in node.input), None)
    if first is None or sum(INPUT in node.input for node in graph.node) != 1:
        return
    batch, channels, height, width = (side.dim_value for side in graph.input[0].type.tensor_type.shape.dim)
    graph.node.remove(first)
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [batch, height, width, channels]))
    graph.node.insert(0, helper.make_node("Transpose", [INPUT], [first.output[0]], perm=_TO_CHANNELS_FIRST))


def _give_bytes(model: Any) -> None:
    """Have a graph give its output as `_take_bytes` takes it."""
    from onnx import TensorProto, helper

    graph = model.graph
    last = next((node for node in graph.node if node.op_type == "DequantizeLinear" and OUTPUT in node.output), None)
    if last is None:
        return
    batch, channels, height, width = (side.dim_value for side in graph.output[0].type.tensor_type.shape.dim)
    graph.node.remove(last)
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.UINT8, [batch, height, width, channels]))
    graph.node.append(helper.make_node("Transpose", [last.input[0]], [OUTPUT], perm=_TO_CHANNELS_LAST))


class _Images:
    """What `quantize_static` draws images from: a `CalibrationDataReader`, whose class is slow to import."""

    def __init__(self, path: str, images: Iterable[np.ndarray]) -> None:
        import onnx

        self._name = onnx.load(path, load_external_data=False).graph.input[0].name
        self._images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._images, None)
        return None if image is None else {self._name: np.ascontiguousarray(image, dtype=np.float32)}


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the quantisation's advice about other ways to use it from the user, who cannot follow it."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
