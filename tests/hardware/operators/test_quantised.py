"""int8: an operator alone runs the kernels that it runs in a whole net, and no float convolution is left in either."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from hardware.backends import get_backend
from hardware.backends.onnxruntime import CPU, CUDA, OnnxRuntimeBackend
from hardware.errors import BackendError, DataError, ExportError
from hardware.measuring.nets import measure_model_file
from hardware.measuring.sampling import Plan
from hardware.onnx_runtime import session_options
from hardware.op_spec import OpSpec
from hardware.operators import onnx_graph
from hardware.operators.quantised import is_quantised, quantise_file, quantised_chain
from hardware.testing import BackendConformance, small_ops

EXPORTED = Path(__file__).parents[2] / "data" / "run_bc6f2f8" / "gradient" / "model.onnx"
ENDS = ("QuantizeLinear", "DequantizeLinear", "Transpose")
PLAN = Plan(rounds=3, minimum_rounds=1, seconds=5.0, sample_ms=0.05, extra_rounds=0)


class TestInt8(BackendConformance):
    def make_backend(self):
        return get_backend("onnxruntime", dtype="int8")


def kernels(model, folder):
    """Run a model once, and count the kernels that its profile names."""
    options = onnxruntime.SessionOptions()
    options.enable_profiling = True
    options.intra_op_num_threads = 1
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    shape = [side if isinstance(side, int) else 1 for side in entry.shape]
    session.run(None, {entry.name: np.zeros(shape, np.uint8 if "uint8" in entry.type else np.float32)})
    events = json.loads(Path(session.end_profiling()).read_text())
    return Counter(
        event["args"]["op_name"]
        for event in events
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")
    )


def mbconv(width, **changes):
    return OpSpec(
        "mbconv", (width, 8, 8), (width, 8, 8), **{"kernel": 5, "hidden": 3 * width, "residual": True} | changes
    )


def test_an_operator_alone_is_its_quantised_kernels_and_nothing_else(tmp_path):
    found = kernels(quantised_chain([mbconv(16)]).SerializeToString(), tmp_path)
    assert found == {"QLinearConv": 3, "QLinearAdd": 1}
    stem = OpSpec("conv", (3, 16, 16), (8, 8, 8), kernel=3, stride=2)
    skip = OpSpec("identity", (8, 8, 8), (8, 8, 8))
    for chain in ([stem], [stem, skip]):
        assert kernels(quantised_chain(chain).SerializeToString(), tmp_path) == {"QLinearConv": 1}
    assert [node.op_type for node in quantised_chain([skip]).graph.node] == ["Shape"]


def feature_map(kind, **changes):
    return OpSpec(kind, (16, 8, 8), (16, 8, 8), **{"activation": "relu", **changes})


ALONE = {
    "a convolution": feature_map("conv", kernel=3, activation="hard_swish"),
    "squeeze and excitation": mbconv(16, activation="hard_swish", squeeze=8, gate="hard_sigmoid"),
    "a sigmoid's gate": feature_map("edge_residual", kernel=3, hidden=32, residual=True, activation="silu", squeeze=4),
    "an error function": mbconv(16, activation="gelu"),
    "SAME padding": OpSpec("mbconv", (16, 8, 8), (16, 4, 4), kernel=3, stride=2, hidden=48, padding="same"),
    "a pooling": feature_map("max_pool", kernel=3),
    "an average": feature_map("avg_pool", kernel=3),
    "halves": OpSpec("sum_halves", (16, 8, 8), (8, 8, 8)),
    "another map": feature_map("add_map"),
}


@pytest.mark.parametrize("name", ALONE)
def test_an_operator_alone_runs_what_it_adds_to_a_net(name, tmp_path):
    """Of every kind and activation, also those that end in floats, or are quantised only as those before them."""
    op = ALONE[name]
    chain = [OpSpec("conv", (3, 16, 16), (16, 8, 8), kernel=3, stride=2), op]
    chain += [
        OpSpec("conv", op.output_shape, (32, *op.output_shape[1:])),
        OpSpec("head", (32, *op.output_shape[1:]), (10,)),
    ]
    alone = sum((kernels(quantised_chain([op]).SerializeToString(), tmp_path) for op in chain), Counter())
    whole = kernels(quantised_chain(chain).SerializeToString(), tmp_path)
    # the image is quantised and its layout changed once more, as the first operator takes bytes
    assert whole - alone == {"QuantizeLinear": 1, "Transpose": 1}
    assert not alone - whole


@pytest.mark.parametrize("activation", ["relu6", "relu", "hard_swish"])
def test_a_whole_net_runs_the_kernels_of_its_operators_and_of_its_deployed_file(tmp_path, activation):
    stem = OpSpec("conv", (3, 16, 16), (16, 8, 8), kernel=3, stride=2, activation=activation)
    last = OpSpec("conv", (16, 8, 8), (32, 8, 8), activation=activation)
    chain = [
        stem,
        *[mbconv(16, kernel=k, activation=activation, squeeze=8 * (k == 5)) for k in (3, 5, 7)],
        last,
        OpSpec("head", (32, 8, 8), (10,)),
    ]
    alone = sum((kernels(quantised_chain([op]).SerializeToString(), tmp_path) for op in chain), Counter())
    whole = kernels(quantised_chain(chain).SerializeToString(), tmp_path)
    assert whole["QLinearConv"] == 13
    assert {name: count for name, count in whole.items() if name not in ENDS} == {
        name: count for name, count in alone.items() if name not in ENDS
    }
    if activation != "hard_swish":
        # the image's conversion, the result's, and the two changes of layout of a net
        assert (whole["QuantizeLinear"], whole["DequantizeLinear"]) == (1, 1)
    assert whole["Transpose"] <= 2
    exact = tmp_path / "exact.onnx"
    exact.write_bytes(onnx_graph.chain_model(chain).SerializeToString())
    images = np.random.default_rng(0).standard_normal((2, 1, 3, 16, 16), dtype=np.float32)
    assert kernels(quantise_file(exact, tmp_path / "int8.onnx", images).read_bytes(), tmp_path) == whole


def test_a_net_that_was_exported_and_quantised_on_images_runs_the_same_kernels(tmp_path):
    images = np.random.default_rng(0).standard_normal((8, 1, *input_of(EXPORTED)[1:]), dtype=np.float32)
    path = quantise_file(EXPORTED, tmp_path / "int8.onnx", images)
    convolutions = sum(node.op_type == "Conv" for node in onnx.load(str(EXPORTED)).graph.node)
    found = kernels(path.read_bytes(), tmp_path)
    assert found["QLinearConv"] == convolutions
    assert found["Conv"] == found["FusedConv"] == 0
    # torch exports the mean over the map as ReduceMean, which has no int8 kernel
    assert any(node.op_type == "ReduceMean" for node in onnx.load(str(EXPORTED)).graph.node)
    assert (found["QLinearGlobalAveragePool"], found["ReduceMean"]) == (1, 0)
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 1)
    assert is_quantised(path)
    assert not is_quantised(EXPORTED)
    # the quantised net is still that net
    for image in images[:2]:
        given = [onnxruntime.InferenceSession(str(file)) for file in (EXPORTED, path)]
        exact, near = (session.run(None, {session.get_inputs()[0].name: image})[0] for session in given)
        assert np.corrcoef(exact.ravel(), near.ravel())[0, 1] > 0.9


def input_of(path):
    dims = onnx.load(str(path)).graph.input[0].type.tensor_type.shape.dim
    return [side.dim_value for side in dims]


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize(
    ("axes", "keepdims", "pooled"),
    [((2, 3), 1, True), ((-1, -2), 1, True), ((2, 3), 0, False), ((1,), 1, False), ((1, 2, 3), 1, False)],
)
def test_a_mean_over_whole_maps_alone_is_a_pooling(opset, axes, keepdims, pooled, tmp_path):
    helper = onnx.helper
    weights = np.random.default_rng(0).standard_normal((4, 3, 1, 1), dtype=np.float32)
    given = [onnx.numpy_helper.from_array(weights, "weights")]
    node = helper.make_node("ReduceMean", ["map"], ["output"], keepdims=keepdims)
    if opset < 18:
        node.attribute.append(helper.make_attribute("axes", axes))
    else:
        node.input.append("axes")
        given.append(onnx.numpy_helper.from_array(np.array(axes), "axes"))
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("input", [1, 3, 8, 8]), ("output", None))
    ]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["input", "weights"], ["map"]), node], "g", ends[:1], ends[1:], given
    )
    exact = tmp_path / "exact.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    exact.write_bytes(model.SerializeToString())
    images = np.random.default_rng(0).standard_normal((4, 1, 3, 8, 8), dtype=np.float32)
    path = quantise_file(exact, tmp_path / "int8.onnx", images)
    found = kernels(path.read_bytes(), tmp_path)
    assert (found["QLinearGlobalAveragePool"], found["ReduceMean"]) == ((1, 0) if pooled else (0, 1))
    expected, near = (
        onnxruntime.InferenceSession(str(file)).run(None, {"input": images[0]})[0] for file in (exact, path)
    )
    assert near.shape == expected.shape
    assert near == pytest.approx(expected, abs=0.1)


def test_narrow_weights_are_added_exactly_by_any_session(tmp_path):
    """7 bits: 2 x 255 x 64 is below 2^15, so that no CPU cuts a sum of two products off."""
    images = np.random.default_rng(0).standard_normal((8, *input_of(EXPORTED)), dtype=np.float32)
    wide, narrow = (
        quantise_file(EXPORTED, tmp_path / f"{narrow}.onnx", images, narrow=narrow) for narrow in (False, True)
    )
    largest = [
        max(
            int(np.abs(onnx.numpy_helper.to_array(array).astype(int)).max())
            for array in onnx.load(str(path)).graph.initializer
            if array.data_type == onnx.TensorProto.INT8 and len(array.dims) > 1
        )
        for path in (wide, narrow)
    ]
    assert largest[0] == 127
    assert largest[1] <= 64
    options = [session_options(1), onnxruntime.SessionOptions()]
    sessions = [onnxruntime.InferenceSession(str(narrow), each) for each in options]
    name = sessions[0].get_inputs()[0].name
    for image in images:
        exact, default = (session.run(None, {name: image})[0] for session in sessions)
        np.testing.assert_array_equal(exact, default)


def test_the_graph_is_valid_and_weights_are_int8_per_channel():
    model = quantised_chain([mbconv(16)])
    onnx.checker.check_model(model, full_check=True)
    arrays = {array.name: onnx.numpy_helper.to_array(array) for array in model.graph.initializer}
    weights = {name: array for name, array in arrays.items() if array.dtype == np.int8 and array.ndim == 4}
    assert len(weights) == 3
    for name, array in weights.items():
        assert arrays[name.replace("_quantized", "_scale")].shape == array.shape[:1]


def test_a_graph_of_constant_weights_runs_the_same_kernels_in_a_small_file(tmp_path):
    """Alone and in a whole net, of kinds with and without weights."""
    stem, last = OpSpec("conv", (3, 16, 16), (16, 8, 8), kernel=3, stride=2), OpSpec("head", (16, 8, 8), (10,))
    for chain in ([mbconv(16)], [feature_map("max_pool", kernel=3)], [stem, mbconv(16, squeeze=8), mbconv(16), last]):
        whole, small = (quantised_chain(chain, constant=constant) for constant in (False, True))
        onnx.checker.check_model(small, full_check=chain[0].kind != "max_pool")
        assert kernels(small.SerializeToString(), tmp_path) == kernels(whole.SerializeToString(), tmp_path)
        assert not [a for a in small.graph.initializer if a.data_type == onnx.TensorProto.INT8 and len(a.dims) > 1]
    numbers = [
        onnx.numpy_helper.to_array(n.attribute[0].t).item() for n in small.graph.node if n.op_type[:9] == "ConstantO"
    ]
    # two convolutions more of squeeze and excitation in the first of the two blocks
    assert len(numbers) == len(set(numbers)) == 1 + 5 + 3 + 1
    assert 0 not in numbers


def test_int8_is_of_the_cpu_and_of_quantised_files(tmp_path, monkeypatch):
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_graph.chain_model(small_ops()).SerializeToString())
    assert get_backend("onnxruntime").times_float_onnx()
    with get_backend("onnxruntime", dtype="int8") as backend:
        # an export is float32: where int8 is measured, its operators are
        assert not backend.times_float_onnx()
        with pytest.raises(BackendError, match=r"net.onnx is not quantised, but int8 is to be measured"):
            measure_model_file(path, backend=backend, plan=PLAN)
        path.write_bytes(quantised_chain(small_ops()).SerializeToString())
        assert measure_model_file(path, backend=backend, plan=PLAN).ms > 0
        with (
            get_backend("onnxruntime") as exact,
            pytest.raises(BackendError, match=r"net.onnx is quantised, but float32 is to be measured"),
        ):
            measure_model_file(path, backend=exact, plan=PLAN)
        path.write_bytes(b"nonsense")
        with pytest.raises(BackendError, match="is no ONNX file"):
            measure_model_file(path, backend=backend, plan=PLAN)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA])
    backend = OnnxRuntimeBackend()
    backend.use("cuda")
    with pytest.raises(BackendError, match="int8 on the CPU alone, not on cuda:0"):
        backend.choose(dtype="int8")
    # in whichever order they are chosen
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CPU, CUDA])
    with pytest.raises(BackendError, match="int8 on the CPU alone, not on cuda:0"):
        get_backend("onnxruntime", dtype="int8").use("cuda")


def test_what_cannot_be_quantised_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nonsense")
    with pytest.raises(BackendError, match=r"broken.onnx cannot be quantised: [^\n]*; deploy it as float32"):
        quantise_file(path, tmp_path / "out.onnx", [])
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken.onnx"]


def test_what_is_no_fault_of_the_network_is_not_said_to_be(tmp_path, monkeypatch):
    def unreadable():
        yield np.zeros((1, *input_of(EXPORTED)[1:]), np.float32)
        raise DataError("a picture cannot be read")

    with pytest.raises(DataError, match=r"^a picture cannot be read$"):
        quantise_file(EXPORTED, tmp_path / "out.onnx", unreadable())
    (tmp_path / "file").write_text("")
    images = [np.zeros((1, *input_of(EXPORTED)[1:]), np.float32)]
    with pytest.raises(ExportError, match=r"file.*choose another place"):
        quantise_file(EXPORTED, tmp_path / "file" / "out.onnx", images)
    # what ONNX Runtime cannot load does not appear
    monkeypatch.setattr(
        "onnxruntime.quantization.quantize_static", lambda source, made, *a, **k: Path(made).write_bytes(b"nonsense")
    )
    with pytest.raises(BackendError, match=r"model.onnx cannot be quantised: .*; deploy it as float32"):
        quantise_file(EXPORTED, tmp_path / "out.onnx", images)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_sums_of_int8_are_exact_on_any_cpu(tmp_path):
    """255 * 127 twice is more than 16 bits hold, in which x86 CPUs without VNNI would add them."""
    width = 64
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "one", "zero"], ["d"]),
            helper.make_node("DequantizeLinear", ["w", "one", "zero8"], ["v"]),
            helper.make_node("Conv", ["d", "v"], ["y"], kernel_shape=[1, 1]),
            helper.make_node("QuantizeLinear", ["y", "scale", "zero"], ["r"]),
            helper.make_node("DequantizeLinear", ["r", "scale", "zero"], ["out"]),
        ],
        "sums",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, width, 4, 4])],
        [helper.make_tensor_value_info("out", onnx.TensorProto.FLOAT, [1, width, 4, 4])],
        [
            numpy_helper.from_array(np.float32(1), "one"),
            numpy_helper.from_array(np.float32(width * 255), "scale"),
            numpy_helper.from_array(np.uint8(0), "zero"),
            numpy_helper.from_array(np.int8(0), "zero8"),
            numpy_helper.from_array(np.full((width, width, 1, 1), 127, np.int8), "w"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), session_options(1), providers=["CPUExecutionProvider"]
    )
    (found,) = session.run(None, {"x": np.full((1, width, 4, 4), 255, np.float32)})
    assert found.max() == found.min() == 127 * width * 255
