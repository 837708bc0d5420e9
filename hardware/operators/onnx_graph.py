"""A chain of operators as an ONNX graph with random weights, written with `onnx.helper`.

Exporting a net with `torch.onnx.export` takes 8 to 15 s; writing its graph here takes some tens of milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import BackendError
from ..op_spec import OpSpec
from .primitives import (
    Add,
    AddMap,
    BatchNorm,
    ChannelShuffle,
    Conv,
    Flatten,
    GlobalAvgPool,
    Linear,
    Pool,
    Primitive,
    Shape,
    SqueezeExcite,
    SumHalves,
    activation_name,
    check_chain,
    decompose,
    input_of,
)
from .weights import constant_weights, random_weights

# older than the newest, as a kit's graphs are read by whatever ONNX Runtime a device has
OPSET = 17
IR_VERSION = 8
INPUT, OUTPUT = "input", "output"


def chain_model(
    chain: Sequence[OpSpec],
    *,
    batch: int = 1,
    input_shape: Shape | None = None,
    seed: int = 0,
    constant: bool = False,
) -> Any:
    """Write a chain as an ONNX model; an empty chain gives the session's overhead, a graph that touches no data.

    Args:
        chain: Operators in execution order.
        batch: Images per inference (static).
        input_shape: `(C, H, W)`; needed for an empty chain only.
        seed: Seed of the random weights.
        constant: Whether each weight tensor is one number that the runtime spreads when it loads the graph: a file of
            a few kB, as fast as with random weights.
    """
    chain = check_chain(chain)
    shape = input_of(chain, input_shape)
    if input_shape is not None and tuple(input_shape) != tuple(shape):
        raise BackendError(f"the chain takes {tuple(shape)}, but input_shape is {tuple(input_shape)}; leave it out")
    groups = [decompose(op) for op in chain]
    primitives = [primitive for group in groups for primitive in group]
    weights = constant_weights(primitives) if constant else random_weights(primitives, seed=seed)
    return _Writer(tuple(shape), batch, constant=constant).write(groups, weights)


class _Writer:
    """Collects nodes and initializers while a chain is walked."""

    def __init__(self, shape: Shape, batch: int, *, constant: bool) -> None:
        self.constant = constant
        self.shape = shape
        self.batch = batch
        self.tensor = INPUT
        self.nodes: list[Any] = []
        self.spread: list[Any] = []
        self.initializers: dict[str, Any] = {}

    def write(self, groups: list[tuple[Primitive, ...]], weights: list[dict[str, np.ndarray]]) -> Any:
        from onnx import TensorProto, helper

        start, index = self.shape, 0
        for group in groups:
            entry = self.tensor
            for primitive in group:
                self._primitive(primitive, weights[index], entry, f"n{index}")
                index += 1
        kind, dims = TensorProto.FLOAT, [self.batch, *self.shape]
        if not self.nodes:
            # a graph needs a node; this one reads the input's shape and none of its numbers
            kind, dims = TensorProto.INT64, [len(start) + 1]
            self._node("Shape", [self.tensor], "shape")
        self.nodes[-1].output[0] = OUTPUT
        graph = helper.make_graph(
            self.spread + self.nodes,
            "chain",
            [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [self.batch, *start])],
            [helper.make_tensor_value_info(OUTPUT, kind, dims)],
            initializer=list(self.initializers.values()),
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="proxyless-strategy",
        )

    def _primitive(self, primitive: Primitive, arrays: dict[str, np.ndarray], entry: str, name: str) -> None:
        before = self.shape
        if isinstance(primitive, Conv):
            inputs = [self.tensor, *self._arrays(name, arrays)]
            self._node(
                "Conv",
                inputs,
                name,
                kernel_shape=[primitive.kernel] * 2,
                strides=[primitive.stride] * 2,
                pads=list(primitive.pads(before)),
                group=primitive.groups,
                dilations=[primitive.dilation] * 2,
            )
            self._activation(primitive.activation, name)
        elif isinstance(primitive, BatchNorm):
            ones, zeros = np.ones(primitive.channels, np.float32), np.zeros(primitive.channels, np.float32)
            stats = self._arrays(f"{name}.stat", {"mean": zeros, "var": ones})
            inputs = [self.tensor, *self._arrays(name, arrays), *stats]
            self._node("BatchNormalization", inputs, name, epsilon=1e-3)
            self._activation(primitive.activation, name)
        elif isinstance(primitive, Pool):
            options: dict[str, Any] = {
                "kernel_shape": [primitive.kernel] * 2,
                "strides": [primitive.stride] * 2,
                "pads": [primitive.padding] * 4,
            }
            if not primitive.maximum:
                options["count_include_pad"] = 0
            self._node("MaxPool" if primitive.maximum else "AveragePool", [self.tensor], name, **options)
        elif isinstance(primitive, ChannelShuffle):
            channels, height, width = self.shape
            groups = primitive.groups
            split = np.array([self.batch, groups, channels // groups, height, width], dtype=np.int64)
            merged = np.array([self.batch, channels, height, width], dtype=np.int64)
            self._node("Reshape", [self.tensor, self._array(f"{name}.split", split)], f"{name}.split_out")
            self._node("Transpose", [self.tensor], f"{name}.transposed", perm=[0, 2, 1, 3, 4])
            self._node("Reshape", [self.tensor, self._array(f"{name}.merged", merged)], name)
        elif isinstance(primitive, Add):
            self._node("Add", [self.tensor, entry], name)
        elif isinstance(primitive, AddMap):
            self._node("Add", [self.tensor, *self._arrays(name, arrays)], name)
        elif isinstance(primitive, SumHalves):
            sizes = np.array([self.shape[0] // 2] * 2, dtype=np.int64)
            self._split([self.tensor, self._array(f"{name}.sizes", sizes)], [f"{name}.first", f"{name}.second"])
            self._node("Add", [f"{name}.first", f"{name}.second"], name)
        elif isinstance(primitive, SqueezeExcite):
            self._squeeze_excite(primitive, arrays, name)
        elif isinstance(primitive, GlobalAvgPool):
            self._node("GlobalAveragePool", [self.tensor], f"{name}.pool")
            if not primitive.keep:
                self._node("Flatten", [self.tensor], name, axis=1)
        elif isinstance(primitive, Flatten):
            self._node("Flatten", [self.tensor], name, axis=1)
        elif isinstance(primitive, Linear):
            self._node("Gemm", [self.tensor, *self._arrays(name, arrays)], name, transB=1)
        self.shape = primitive.output(before)

    def _squeeze_excite(self, primitive: SqueezeExcite, arrays: dict[str, np.ndarray], name: str) -> None:
        scaled = self.tensor
        # as torch exports timm's block: the mean is no global pooling there
        self._node("ReduceMean", [scaled], f"{name}.mean", axes=[2, 3], keepdims=1)
        for part, activation in (("reduce", primitive.activation), ("expand", primitive.gate)):
            own = {key: array for key, array in arrays.items() if key.startswith(f"{part}.")}
            self._node("Conv", [self.tensor, *self._arrays(name, own)], f"{name}.{part}", kernel_shape=[1, 1])
            self._activation(activation, f"{name}.{part}")
        self._node("Mul", [scaled, self.tensor], name)

    def _activation(self, activation: str | None, name: str) -> None:
        activation = activation_name(activation)
        if activation is None:
            return
        out = f"{name}.act"
        if activation == "relu":
            self._node("Relu", [self.tensor], out)
        elif activation == "relu6":
            low = self._array("zero", np.array(0.0, np.float32))
            high = self._array("six", np.array(6.0, np.float32))
            self._node("Clip", [self.tensor, low, high], out)
        elif activation == "hard_swish":
            self._node("HardSwish", [self.tensor], out)
        elif activation == "hard_sigmoid":
            self._node("HardSigmoid", [self.tensor], out, alpha=1.0 / 6.0, beta=0.5)
        elif activation == "sigmoid":
            self._node("Sigmoid", [self.tensor], out)
        elif activation == "silu":
            before = self.tensor
            self._node("Sigmoid", [before], f"{name}.gate")
            self._node("Mul", [before, self.tensor], out)
        elif activation == "gelu":
            before = self.tensor
            self._node("Div", [before, self._array("sqrt2", np.array(2.0**0.5, np.float32))], f"{name}.g0")
            self._node("Erf", [self.tensor], f"{name}.g1")
            self._node("Add", [self.tensor, self._array("one", np.array(1.0, np.float32))], f"{name}.g2")
            self._node("Mul", [before, self.tensor], f"{name}.g3")
            self._node("Mul", [self.tensor, self._array("half", np.array(0.5, np.float32))], out)

    def _node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        self.tensor = output

    def _split(self, inputs: list[str], outputs: list[str]) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node("Split", inputs, outputs, name=outputs[0], axis=1))

    def _arrays(self, name: str, arrays: dict[str, np.ndarray]) -> list[str]:
        return [self._array(f"{name}.{part}", array) for part, array in arrays.items()]

    def _array(self, name: str, array: np.ndarray) -> str:
        from onnx import helper, numpy_helper

        # a weight that is one number (a view of zero stride) takes some bytes in the file; the runtime spreads it once
        if self.constant and array.strides == (0,) * array.ndim and array.ndim:
            value = numpy_helper.from_array(array.ravel()[:1].copy(), "value")
            shape = self._array(f"{name}.shape", np.array(array.shape, dtype=np.int64))
            self.spread.append(helper.make_node("ConstantOfShape", [shape], [name], name=name, value=value))
            return name
        if name not in self.initializers:
            self.initializers[name] = numpy_helper.from_array(array, name)
        return name
