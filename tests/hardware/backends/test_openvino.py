"""OpenVINO: the same numbers as ONNX Runtime, in the precision that was asked for and no other."""

from __future__ import annotations

import time
from importlib.util import find_spec

import numpy as np
import pytest

from hardware.backends import get_backend
from hardware.errors import BackendError
from hardware.measuring.nets import measure_model_file
from hardware.measuring.table import build_table
from hardware.onnx_runtime import import_onnxruntime, session_options
from hardware.op_spec import OpSpec
from hardware.operators import onnx_graph, primitives
from hardware.operators.quantised import quantise_file
from hardware.testing import BackendConformance, small_ops
from tests.hardware.backends.test_backends import onnx_output
from tests.hardware.operators.test_quantised import ALONE, EXPORTED, PLAN, input_of

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="the extra 'openvino' is not installed")


class TestOpenVINO(BackendConformance):
    def make_backend(self):
        return get_backend("openvino", "CPU")


class TestInt8(BackendConformance):
    def make_backend(self):
        return get_backend("openvino", dtype="int8")


def output(runnable, x):
    """Run what was prepared on other numbers; its image is bound memory."""
    _, request, _, array = runnable.handle
    array[...] = x
    runnable.call()
    return request.get_output_tensor().data.copy()


@pytest.mark.parametrize("batch", [1, 3])
def test_it_computes_what_onnxruntime_computes(batch):
    ops = [
        *small_ops()[:-1],
        OpSpec("conv", (32, 4, 4), (32, 4, 4), kernel=3, activation="hard_swish"),
        small_ops()[-1],
    ]
    x = np.random.default_rng(1).standard_normal((batch, 3, 16, 16), dtype=np.float32)
    with get_backend("openvino") as backend:
        found = output(backend.prepare(ops, batch=batch), x)
    # bfloat16, which it takes by itself on some CPUs, is 100 times as far away
    np.testing.assert_allclose(found, onnx_output(ops, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", [*primitives.ACTIVATIONS, "none"])
def test_activations_agree(activation):
    op = OpSpec("conv", (4, 6, 6), (8, 6, 6), kernel=3, activation=activation)
    x = 3 * np.random.default_rng(0).standard_normal((1, 4, 6, 6), dtype=np.float32)
    with get_backend("openvino") as backend:
        np.testing.assert_allclose(output(backend.prepare([op]), x), onnx_output([op], x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_it_compiled_has_the_precision_that_was_asked_for_or_is_refused(dtype):
    with get_backend("openvino", dtype=dtype) as backend:
        try:
            compiled = backend.prepare(small_ops()).handle[0]
        except BackendError as error:
            refusal = str(error)
        else:
            refusal = ""
            taken = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
            assert taken == {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}[dtype]
        if refusal:
            assert dtype != "float32"
            assert f"computes {dtype} as" in refusal
            return
        assert build_table(small_ops(), backend=backend, input_size=16, plan=PLAN, progress=False).header.dtype == dtype


@pytest.mark.parametrize("op", [*ALONE.values(), *small_ops()], ids=lambda op: op.key)
def test_an_operator_alone_is_computed_in_int8_or_refused(op):
    with get_backend("openvino", dtype="int8") as backend:
        compiled, _, _, array = backend.prepare([op]).handle
        assert array.dtype == np.uint8
        # its own check has passed; of what is no convolution too no floats come out
        assert compiled.output(0).get_element_type().get_type_name() == ("u8" if len(op.output_shape) == 3 else "f32")


def test_what_computes_in_floats_is_no_int8(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_graph.chain_model(small_ops()).SerializeToString())
    with get_backend("openvino", dtype="int8") as backend:
        with pytest.raises(BackendError, match=r"net.onnx is not quantised, but int8 is to be measured"):
            backend.prepare_model_file(path)
        # a file that does not tell
        path.rename(tmp_path / "net.model")
        with pytest.raises(BackendError, match=r"OpenVINO computes \d+ of \d+ convolutions of .*net.model as f32 on"):
            backend.prepare_model_file(tmp_path / "net.model")
    images = np.random.default_rng(0).standard_normal((2, *input_of(EXPORTED)), dtype=np.float32)
    made = quantise_file(EXPORTED, tmp_path / "int8.onnx", images, narrow=True)
    with get_backend("openvino") as backend, pytest.raises(BackendError, match=r"int8.onnx is quantised, but float32"):
        backend.prepare_model_file(made)


def test_a_narrow_file_is_the_same_network_under_openvino_as_under_onnxruntime(tmp_path):
    """On CPUs without VNNI OpenVINO adds two products in 16 bits: with weights of 8 bits this is off by 0.3."""
    images = np.random.default_rng(0).standard_normal((16, *input_of(EXPORTED)), dtype=np.float32)
    made = quantise_file(EXPORTED, tmp_path / "int8.onnx", images, narrow=True)
    sessions = [
        import_onnxruntime().InferenceSession(str(path), session_options(1), providers=["CPUExecutionProvider"])
        for path in (EXPORTED, made)
    ]
    name = sessions[0].get_inputs()[0].name
    exact, wanted = (np.array([one.run(None, {name: image})[0] for image in images]) for one in sessions)
    with get_backend("openvino", dtype="int8") as backend:
        runnable = backend.prepare_model_file(made)
        found = np.array([output(runnable, image) for image in images])
    scale = exact.std()
    assert np.sqrt(np.mean((found - wanted) ** 2)) < 0.05 * scale
    assert np.sqrt(np.mean((found - exact) ** 2)) < 0.15 * scale


def test_the_calling_thread_does_the_work_and_its_cpu_time_is_the_clock():
    op = OpSpec("mbconv", (64, 28, 28), (64, 28, 28), kernel=5, hidden=384, residual=True)
    with get_backend("openvino") as backend:
        runnable = backend.prepare([op])
        runnable.call()
        thread, process = time.thread_time(), time.process_time()
        for _ in range(20):
            runnable.call()
        assert time.thread_time() - thread > 0.8 * (time.process_time() - process)
        assert not runnable.wall_clock
        assert runnable.handle[0].get_property("INFERENCE_NUM_THREADS") == 1
        assert not runnable.handle[0].get_property("ENABLE_CPU_PINNING")
        assert backend.prepare([op], threads=2).handle[0].get_property("INFERENCE_NUM_THREADS") == 2


def test_its_devices_are_named():
    assert get_backend("openvino", "cpu").place == "cpu"
    for place in ("TPU", "cpu:1", "cuda"):
        with pytest.raises(BackendError, match=rf"no device '{place}' here; it has cpu"):
            get_backend("openvino", place)


def test_a_model_file_is_timed_or_refused_in_one_sentence(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_graph.chain_model(small_ops()).SerializeToString())
    shared = {"backend": "openvino", "plan": PLAN}
    assert measure_model_file(path, **shared).ms > 0
    with pytest.raises(BackendError, match=r"takes \[1, 3, 16, 16\], not \[2, 3, 16, 16\]"):
        measure_model_file(path, batch=2, **shared)
    with pytest.raises(BackendError, match="no model file"):
        measure_model_file(tmp_path / "none.onnx", **shared)
    path.write_bytes(b"nonsense")
    with pytest.raises(BackendError, match=r"OpenVINO cannot load .*net.onnx: [^\n]*$"):
        measure_model_file(path, **shared)
