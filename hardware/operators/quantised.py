"""A chain of operators as an ONNX graph in int8, quantised as a deployed file is: QDQ, with weights per channel.

`onnxruntime.quantization` places the quantised tensors, in operators, whole nets and deployed files alike, so that ONNX
Runtime fuses all to the same kernels (`QLinearConv`, ...). Activations are uint8. Only times matter in a chain, so that
every activation has one made-up range; `quantise_file` calibrates a real net on images.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BackendError, ExportError, ProxylessError
from ..files import write_atomically
from ..onnx_runtime import import_onnxruntime, session_options
from ..op_spec import OpSpec, executed
from ..reading import ARRAY_BYTES, Kind, read_bytes
from ..tables.records import INT8
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
_OWN_OPERATORS = "com.microsoft"
_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def quantised_chain(
    chain: Sequence[OpSpec],
    *,
    batch: int = 1,
    input_shape: Shape | None = None,
    seed: int = 0,
    constant: bool = False,
    standard: bool = False,
) -> Any:
    """Write a chain as a quantised ONNX model.

    A whole net takes and gives floats, as it is deployed. One operator alone takes and gives uint8 feature maps, and
    for ONNX Runtime in the layout of its int8 kernels: within a net nothing converts or transposes between two
    operators, which would cost an operator alone more than its convolutions. A chain of no operator stays as it is.

    Args:
        chain: Operators in execution order.
        batch: Images per inference (static).
        input_shape: `(C, H, W)`; needed for an empty chain only.
        seed: Seed of the random weights.
        constant: As in `chain_model`: a file of a few kB, in which each weight tensor is one number.
        standard: Operators of the ONNX standard alone and `N x C x H x W` maps, for another runtime than ONNX Runtime:
            OpenVINO computes a convolution behind a transposed uint8 map in floats.
    """
    model = chain_model(chain, batch=batch, input_shape=input_shape, seed=seed)
    chain = executed(chain)
    if not chain:
        return model
    model = _quantised(model, alone=len(chain) == 1)
    if len(chain) == 1:
        _take_bytes(model, channels_last=not standard)
        if len(chain[0].output_shape) == 3:
            _give_bytes(model, like=chain[0].output_shape, channels_last=not standard)
            if not standard:
                _pool_as_in_a_net(model)
    if constant:
        _spread_weights(model)
    return model


def quantise_file(source: str | Path, out: str | Path, images: Iterable[np.ndarray], *, narrow: bool = False) -> Path:
    """Write a quantised copy of an exported ONNX file, calibrated on images.

    Args:
        source: The file, in float32, of one input.
        out: The file to write.
        images: `1 x C x H x W` or batches, float32, as the net takes them; some hundred are enough.
        narrow: Weights in 7 bits, so that no sum of two products exceeds 16 bits: for a runtime that adds them there
            on x86 CPUs without VNNI, where it would cut large ones off.

    Returns:
        The written file.

    Raises:
        BackendError: The file cannot be quantised, or ONNX Runtime cannot load what was made.
        ExportError: `out` cannot be written.
    """
    import_onnxruntime()
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    out = Path(out)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        ready, made = Path(folder) / "ready.onnx", Path(folder) / "quantised.onnx"
        try:
            _make_ready(source, ready)
            quantize_static(
                str(ready),
                str(made),
                _Images(str(ready), images),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=narrow,
            )
            # before it appears: a kind of operator may have no int8 kernel in this version
            import_onnxruntime().InferenceSession(str(made), session_options(), providers=["CPUExecutionProvider"])
        except ProxylessError:
            # the images' own
            raise
        except Exception as error:
            raise BackendError(
                f"{source} cannot be quantised: {' '.join(str(error).split())[:200]}; deploy it as float32"
            ) from error
        write_atomically(out, read_bytes(made, MODEL), error=ExportError, remedy="choose another place")
    return out


def check_dtype(path: str | Path, dtype: str) -> None:
    """Refuse an ONNX file that is not in the number format that is to be measured.

    Raises:
        BackendError: It is no ONNX file, or is quantised where int8 is not meant, or is not where it is.
    """
    if is_quantised(path) == (dtype == INT8):
        return
    if dtype == INT8:
        raise BackendError(f"{path} is not quantised, but int8 is to be measured; quantise it, or measure float32")
    raise BackendError(f"{path} is quantised, but {dtype} is to be measured; measure int8 (dtype: int8)")


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


def _make_ready(source: str | Path, out: Path) -> None:
    """Write a graph as it is quantised: batch norms in convolutions, functions as their operators, shapes inferred."""
    import_onnxruntime()
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    quant_pre_process(str(source), str(out), skip_symbolic_shape=True)
    model = onnx.load(out)
    _pool_means(model.graph)
    onnx.save(model, out)


def _pool_means(graph: Any) -> None:
    """Have means over whole maps be global poolings: torch exports them as `ReduceMean`, which has no int8 kernel."""
    from onnx import helper, numpy_helper

    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*graph.value_info, *graph.input)}
    arrays = {array.name: array for array in graph.initializer}
    for node in graph.node:
        if node.op_type != "ReduceMean" or len(shapes.get(node.input[0], ())) != 4:
            continue
        said = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        # an attribute until opset 17, an input from then on
        axes = said.get("axes", ())
        if len(node.input) > 1 and node.input[1] in arrays:
            axes = numpy_helper.to_array(arrays[node.input[1]]).tolist()
        if said.get("keepdims", 1) and sorted(axis % 4 for axis in axes) == [2, 3]:
            node.op_type = "GlobalAveragePool"
            del node.input[1:], node.attribute[:]
    read = {name for node in graph.node for name in node.input}
    for name in arrays.keys() - read:
        graph.initializer.remove(arrays[name])


def _quantised(model: Any, *, alone: bool) -> Any:
    import onnx

    import_onnxruntime()
    from onnxruntime.quantization import CalibrationMethod, QuantType
    from onnxruntime.quantization.calibrate import TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    with tempfile.TemporaryDirectory() as folder, _quiet():
        written, ready = Path(folder) / "chain.onnx", Path(folder) / "ready.onnx"
        onnx.save(model, written)
        _make_ready(written, ready)
        model = onnx.load(ready)
    weights = {array.name for array in model.graph.initializer}
    tensors = {name for node in model.graph.node for name in (*node.input, *node.output)} - weights
    ranges = TensorsData(CalibrationMethod.MinMax, dict.fromkeys(tensors, _RANGE))
    # the kinds that `quantize_static` takes by default, as for a deployed file
    kinds = sorted({*QDQRegistry, *QLinearOpsRegistry})
    # a pooling is quantised where the operator before it is, so that one alone must be told
    options = {"ForceQuantizeNoInputCheck": alone}
    with _quiet():
        quantizer = QDQQuantizer(model, True, False, QuantType.QInt8, QuantType.QUInt8, ranges, [], [], kinds, options)
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    return quantizer.model.model


def _take_bytes(model: Any, *, channels_last: bool) -> None:
    """Have a graph take the uint8 map that its first node would make."""
    from onnx import TensorProto, helper

    graph = model.graph
    # an operator that adds its input quantises it once; what is not quantised at all stays as it is
    first = next((node for node in graph.node if node.op_type == "QuantizeLinear" and INPUT in node.input), None)
    if first is None or sum(INPUT in node.input for node in graph.node) != 1:
        return
    shape = [side.dim_value for side in graph.input[0].type.tensor_type.shape.dim]
    graph.node.remove(first)
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, _ordered(shape, channels_last)))
    if channels_last:
        graph.node.insert(0, helper.make_node("Transpose", [INPUT], [first.output[0]], perm=_TO_CHANNELS_FIRST))
    else:
        _rename(graph, first.output[0], INPUT)


def _ordered(shape: Sequence[int], channels_last: bool) -> list[int]:
    """Return a map's sides in the order in which it lies in memory.

    >>> _ordered([1, 3, 8, 9], channels_last=True)
    [1, 8, 9, 3]
    """
    return [shape[side] for side in _TO_CHANNELS_LAST] if channels_last else list(shape)


def _rename(graph: Any, old: str, new: str) -> None:
    """Call a tensor by another name wherever a node takes or gives it."""
    for node in graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = new if name == old else name


def _give_bytes(model: Any, *, like: Shape, channels_last: bool) -> None:
    """Have a graph give its output as `_take_bytes` takes it, quantised by its last node or else after it.

    Args:
        model: The graph.
        like: The output's `(C, H, W)`.
        channels_last: Whether its channels lie behind its height and width.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    batch = graph.output[0].type.tensor_type.shape.dim[0].dim_value
    last = next(node for node in graph.node if OUTPUT in node.output)
    if last.op_type == "DequantizeLinear":
        graph.node.remove(last)
        given = last.input[0]
    else:
        # what has no int8 kernel ends in floats, which the next operator's convolution has quantised
        exact, given = f"{OUTPUT}.float", f"{OUTPUT}.uint8"
        _rename(graph, OUTPUT, exact)
        scale = numpy_helper.from_array(np.array((_RANGE[1] - _RANGE[0]) / 255, np.float32), f"{OUTPUT}.scale")
        zero = numpy_helper.from_array(np.array(128, np.uint8), f"{OUTPUT}.zero")
        graph.initializer.extend([scale, zero])
        graph.node.append(helper.make_node("QuantizeLinear", [exact, scale.name, zero.name], [given]))
    del graph.output[:]
    shape = _ordered([batch, *like], channels_last)
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.UINT8, shape))
    if channels_last:
        graph.node.append(helper.make_node("Transpose", [given], [OUTPUT], perm=_TO_CHANNELS_LAST))
    else:
        _rename(graph, given, OUTPUT)


def _pool_as_in_a_net(model: Any) -> None:
    """Have a pooling alone be the kernel that ONNX Runtime makes of it between convolutions, without transposes."""
    from onnx import helper

    graph = model.graph
    (*others,) = (
        node for node in graph.node if node.op_type not in ("Transpose", "QuantizeLinear", "DequantizeLinear")
    )
    if len(others) != 1 or others[0].op_type not in ("MaxPool", "AveragePool"):
        return
    said = {one.name: helper.get_attribute_value(one) for one in others[0].attribute}
    given, taken = (next(n for n in graph.node if n.op_type == kind) for kind in ("DequantizeLinear", "QuantizeLinear"))
    kind, inputs = "NhwcMaxPool", [INPUT]
    if others[0].op_type == "AveragePool":
        kind, inputs = "QLinearAveragePool", [INPUT, *given.input[1:], *taken.input[1:]]
        said["channels_last"] = 1
    del graph.node[:]
    graph.node.append(helper.make_node(kind, inputs, [OUTPUT], domain=_OWN_OPERATORS, **said))
    if all(opset.domain != _OWN_OPERATORS for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(_OWN_OPERATORS, 1))


def _spread_weights(model: Any) -> None:
    """Have the runtime make each int8 weight tensor of one number, once and for all when it loads the graph."""
    from onnx import helper, numpy_helper

    graph = model.graph
    nodes: list[Any] = []
    for array in list(graph.initializer):
        weights = numpy_helper.to_array(array)
        if weights.dtype != np.int8 or weights.ndim < 2:
            continue
        # no two tensors of one shape may be alike, which a runtime would make one of
        number = np.array([1 + len(nodes) % 127], np.int8)
        shape = numpy_helper.from_array(np.array(weights.shape, np.int64), f"{array.name}.shape")
        nodes.append(
            helper.make_node("ConstantOfShape", [shape.name], [array.name], value=numpy_helper.from_array(number))
        )
        graph.initializer.remove(array)
        graph.initializer.append(shape)
    for node in reversed(nodes):
        graph.node.insert(0, node)


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
