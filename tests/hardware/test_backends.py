"""The real backends, briefly: conformance, parity of their nets, and the registry."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hardware import onnx_graph, primitives
from hardware.backends import Runnable, backend_names, get_backend, register_backend
from hardware.backends.onnxruntime import OnnxRuntimeBackend
from hardware.backends.torch import MALLOC_TUNABLES, TorchBackend, from_plain, to_plain
from hardware.errors import BackendError
from hardware.measure import Plan, measure_model_file
from hardware.op_spec import OpSpec
from hardware.testing import BackendConformance, small_ops
from hardware.torch_module import Chain


class TestOnnxRuntime(BackendConformance):
    def make_backend(self):
        return OnnxRuntimeBackend()


class TestTorch(BackendConformance):
    def make_backend(self):
        return TorchBackend()


def onnx_output(chain, x, tmp_path=None):
    import onnxruntime

    model = onnx_graph.chain_model(chain, batch=len(x))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {onnx_graph.INPUT: x})[0]


def torch_output(chain, x):
    module = Chain([primitives.decompose(op) for op in chain]).eval()
    with torch.no_grad():
        return module(torch.from_numpy(x.copy())).numpy()


@pytest.mark.parametrize("batch", [1, 3])
def test_the_backends_compute_the_same_net(batch):
    x = np.random.default_rng(0).standard_normal((batch, 3, 16, 16), dtype=np.float32)
    np.testing.assert_allclose(onnx_output(small_ops(), x), torch_output(small_ops(), x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", [*primitives.ACTIVATIONS, "swish", "none"])
def test_activations_agree(activation):
    op = OpSpec("conv", (4, 6, 6), (8, 6, 6), kernel=3, activation=activation)
    x = 3 * np.random.default_rng(0).standard_normal((1, 4, 6, 6), dtype=np.float32)
    np.testing.assert_allclose(onnx_output([op], x), torch_output([op], x), rtol=1e-4, atol=1e-5)


def test_registered_primitives_agree(monkeypatch):
    monkeypatch.setattr(primitives, "_KINDS", dict(primitives._KINDS))
    layers = (
        primitives.BatchNorm(8, activation="relu"),
        primitives.Conv(8, 8, 3, groups=2, dilation=2),
        primitives.ChannelShuffle(2),
        primitives.Pool(3, padding=1),
        primitives.Pool(3, padding=1, maximum=True),
        primitives.Add(),
        primitives.Pool(2, stride=2),
    )
    primitives.register_kind("mixed", lambda op: layers)
    op = OpSpec("mixed", (8, 6, 6), (8, 3, 3))
    x = np.random.default_rng(0).standard_normal((2, 8, 6, 6), dtype=np.float32)
    np.testing.assert_allclose(onnx_output([op], x), torch_output([op], x), rtol=1e-4, atol=1e-5)
    assert [from_plain(to_plain(layer)) for layer in layers] == list(layers)


def test_the_graph_is_valid_onnx():
    import onnx

    onnx.checker.check_model(onnx_graph.chain_model(small_ops()), full_check=True)
    onnx.checker.check_model(onnx_graph.chain_model((), input_shape=(3, 16, 16)), full_check=True)


def test_the_registry_names_what_it_knows():
    assert {"onnxruntime", "torch"} <= set(backend_names())
    with pytest.raises(BackendError, match=r"'abacus' is unknown; known are .*onnxruntime"):
        get_backend("abacus")


def test_a_backend_of_ones_own(fake_backend, monkeypatch):
    monkeypatch.setattr("hardware.backends.registry._FACTORIES", {})
    register_backend("fake", fake_backend)
    assert isinstance(get_backend("fake"), fake_backend)


def test_a_missing_package_names_the_extra(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(BackendError, match="pip install"):
        get_backend("onnxruntime")


def test_an_empty_chain_needs_a_shape():
    with get_backend("onnxruntime") as backend, pytest.raises(BackendError, match="input_shape"):
        backend.prepare(())
    with get_backend("torch") as backend, pytest.raises(BackendError, match="input_shape"):
        backend.prepare(())


def test_the_torch_process_has_the_malloc_settings_and_reports_its_errors():
    with TorchBackend() as backend:
        backend.versions()
        environment = Path(f"/proc/{backend._process.pid}/environ").read_text()
        assert all(tunable in environment for tunable in MALLOC_TUNABLES.split(":"))
        with pytest.raises(BackendError, match="AttributeError"):
            backend._ask("nonsense")
        backend.prepare(small_ops(), threads=1)
        with pytest.raises(BackendError, match="2 need another one"):
            backend.prepare(small_ops(), threads=2)
        backend._process.kill()
        backend._process.wait(timeout=10)
        with pytest.raises(BackendError, match="died"):
            backend._ask("version")


def test_a_model_file_is_timed_by_the_same_loop(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(onnx_graph.chain_model(small_ops()).SerializeToString())
    plan = Plan(rounds=4, minimum_rounds=4, seconds=5.0)
    assert measure_model_file(path, plan=plan).ms > 0
    assert measure_model_file(path, plan=plan, input_shape=(3, 16, 16)).samples
    with pytest.raises(BackendError, match=r"takes \[1, 3, 16, 16\]"):
        measure_model_file(path, plan=plan, input_shape=(3, 32, 32))
    with pytest.raises(BackendError, match="takes"):
        measure_model_file(path, plan=plan, batch=2)
    with pytest.raises(BackendError, match="no model file"):
        measure_model_file(tmp_path / "none.onnx", plan=plan)
    path.write_bytes(b"nonsense")
    with pytest.raises(BackendError, match="cannot load"):
        measure_model_file(path, plan=plan)


def test_the_default_clock_averages_over_repeats():
    calls = []
    runnable = Runnable(lambda: calls.append(0), threads=2)
    with get_backend("onnxruntime") as backend:
        assert backend.time(runnable, repeats=7) >= 0
    assert len(calls) == 8
