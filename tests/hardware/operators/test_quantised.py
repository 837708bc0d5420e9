"""int8: an operator alone runs the kernels that it runs in a whole net, and no float convolution is left in either."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from hardware.backends import get_backend
from hardware.backends.onnxruntime import CUDA, OnnxRuntimeBackend
from hardware.errors import BackendError
from hardware.measuring.nets import measure_model_file
from hardware.measuring.sampling import Plan
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
    assert kernels(quantised_chain([stem]).SerializeToString(), tmp_path) == {"QLinearConv": 1}


@pytest.mark.parametrize("activation", ["relu6", "relu"])
def test_a_whole_net_runs_the_kernels_of_its_operators(tmp_path, activation):
    stem = OpSpec("conv", (3, 16, 16), (16, 8, 8), kernel=3, stride=2, activation=activation)
    last = OpSpec("conv", (16, 8, 8), (32, 8, 8), activation=activation)
    chain = [
        stem,
        *[mbconv(16, kernel=k, activation=activation) for k in (3, 5, 7)],
        last,
        OpSpec("head", (32, 8, 8), (10,)),
    ]
    alone = sum((kernels(quantised_chain([op]).SerializeToString(), tmp_path) for op in chain), Counter())
    whole = kernels(quantised_chain(chain).SerializeToString(), tmp_path)
    assert whole["QLinearConv"] == 11
    assert {name: count for name, count in whole.items() if name not in ENDS} == {
        name: count for name, count in alone.items() if name not in ENDS
    }
    # the image's conversion, the result's, and the two changes of layout of a net
    assert (whole["QuantizeLinear"], whole["DequantizeLinear"]) == (1, 1)
    assert whole["Transpose"] <= 2


def test_a_net_that_was_exported_and_quantised_on_images_runs_the_same_kernels(tmp_path):
    images = np.random.default_rng(0).standard_normal((8, 1, *input_of(EXPORTED)[1:]), dtype=np.float32)
    path = quantise_file(EXPORTED, tmp_path / "int8.onnx", images)
    convolutions = sum(node.op_type == "Conv" for node in onnx.load(str(EXPORTED)).graph.node)
    found = kernels(path.read_bytes(), tmp_path)
    assert found["QLinearConv"] == convolutions
    assert found["Conv"] == found["FusedConv"] == 0
    # beside the image's and the result's: torch exports the mean over the map as ReduceMean, which has no int8 kernel
    assert (found["QuantizeLinear"], found["DequantizeLinear"], found["ReduceMean"]) == (2, 2, 1)
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


def test_the_graph_is_valid_and_weights_are_int8_per_channel():
    model = quantised_chain([mbconv(16)])
    onnx.checker.check_model(model, full_check=True)
    arrays = {array.name: onnx.numpy_helper.to_array(array) for array in model.graph.initializer}
    weights = {name: array for name, array in arrays.items() if array.dtype == np.int8 and array.ndim == 4}
    assert len(weights) == 3
    for name, array in weights.items():
        assert arrays[name.replace("_quantized", "_scale")].shape == array.shape[:1]


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
        path.write_bytes(b"nonsense")
        with pytest.raises(BackendError, match="is no ONNX file"):
            measure_model_file(path, backend=backend, plan=PLAN)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA])
    backend = OnnxRuntimeBackend()
    backend.use("cuda")
    with pytest.raises(BackendError, match="int8 on the CPU alone, not on cuda:0"):
        backend.choose(dtype="int8")


def test_what_cannot_be_quantised_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nonsense")
    with pytest.raises(BackendError, match=r"broken.onnx cannot be quantised: [^\n]*; deploy it as float32"):
        quantise_file(path, tmp_path / "out.onnx", [])
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken.onnx"]
