"""The real backends, briefly: conformance, parity of their nets, and the registry."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hardware.backends import Runnable, backend_names, get_backend, register_backend
from hardware.backends.cuda import CudaBackend
from hardware.backends.onnxruntime import CUDA, OnnxRuntimeBackend
from hardware.backends.torch import TorchBackend, from_plain, to_plain
from hardware.child_process import MALLOC_TUNABLES
from hardware.errors import BackendError
from hardware.measuring.nets import measure_model_file
from hardware.measuring.sampling import Plan
from hardware.measuring.table import build_table
from hardware.measuring.validation import check_table
from hardware.op_spec import OpSpec
from hardware.operators import onnx_graph, primitives
from hardware.operators.torch_module import Chain
from hardware.testing import BackendConformance, small_ops
from tests.hardware.conftest import draw_nets, make_space


class TestOnnxRuntime(BackendConformance):
    def make_backend(self):
        return OnnxRuntimeBackend()


class TestTorch(BackendConformance):
    def make_backend(self):
        return TorchBackend()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("litert_torch") is None, reason="the extra 'litert' is not installed")
class TestLiteRT(BackendConformance):
    def make_backend(self):
        return get_backend("litert")


@pytest.mark.slow
@pytest.mark.skipif(find_spec("executorch") is None, reason="the extra 'executorch' is not installed")
class TestExecuTorch(BackendConformance):
    def make_backend(self):
        return get_backend("executorch")


@pytest.mark.parametrize(
    ("name", "package"), [("litert", "ai_edge_litert"), ("executorch", "executorch"), ("openvino", "openvino")]
)
def test_an_extra_that_is_not_installed_is_named(name, package, monkeypatch):
    for loaded in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(BackendError, match=rf"proxyless-strategy\[{name}\]"):
        get_backend(name)


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
    monkeypatch.setattr(primitives, "KINDS", dict(primitives.KINDS))
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
    monkeypatch.setattr("hardware.backends.registry.FACTORIES", {})
    register_backend("fake", fake_backend)
    assert isinstance(get_backend("fake"), fake_backend)


def test_a_missing_package_names_the_extra(monkeypatch):
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
        environment = Path(f"/proc/{backend.process.pid}/environ").read_text()
        assert all(tunable in environment for tunable in MALLOC_TUNABLES.split(":"))
        with pytest.raises(BackendError, match="AttributeError"):
            backend.ask("nonsense")
        backend.prepare(small_ops(), threads=1)
        with pytest.raises(BackendError, match="2 need another one"):
            backend.prepare(small_ops(), threads=2)
        backend.process.kill()
        backend.process.wait(timeout=10)
        with pytest.raises(BackendError, match="died"):
            backend.ask("version")


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


@pytest.mark.slow
def test_inductor_builds_a_table_of_frozen_operators_that_predicts_whole_nets():
    """Prepares 22 graphs, each compiled with frozen weights, which takes about a second a graph."""
    fixed, edges = make_space(32, 8, 8, [(16, 2, 2)], 32, 10)
    edges = {label: {name: op for name, op in options.items() if "7x7" not in name} for label, options in edges.items()}
    ops = [*fixed, *(op for options in edges.values() for op in options.values())]
    nets = list(dict.fromkeys(draw_nets(fixed, edges, 40, seed=1)))[:14]
    plan = Plan(rounds=60, minimum_rounds=30, seconds=6.0)
    with get_backend("inductor") as backend:
        table = build_table(ops, nets[:8], backend=backend, input_size=32, plan=plan, progress=False)
        check = check_table(table, {"all": nets[8:]}, backend=backend, plan=plan, progress=False)
    assert (table.header.backend, table.header.place) == ("inductor", "cpu")
    table.check(ops, input_size=32)
    assert check.figures()["together"]["calibrated"]["mape"] < 0.15


@pytest.mark.slow
def test_inductor_compiles_every_graph_and_packs_its_frozen_weights():
    """It compiles one function 8 times at most, and prepacks a convolution's weight only where weights are frozen."""
    code = (
        "from hardware.backends.torch import to_plain; from hardware.backends.torch_worker import Worker;"
        "from hardware.operators.primitives import Conv; from torch._dynamo.utils import counters;"
        "options = {'channels_last': False, 'compiled': True}; worker = Worker();"
        "convs = [to_plain(Conv(3, 8 * width, 3, activation='relu')) for width in range(1, 11)];"
        "[worker.prepare([[conv]], [1, 3, 16, 16], 1, options) for conv in convs];"
        "print(counters['stats']['unique_graphs'], counters['inductor']['mkldnn_conv_weight_pack_matcher_count'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["10", "10"]


def test_inductor_needs_a_compiler(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(BackendError, match=r"install g\+\+"):
        get_backend("inductor")


class FakeCuda:
    """Two GPUs that take 3 ms for what is launched between two events, and give times only after a synchronisation.

    As in CUDA, events, streams and graphs are those of the current device.
    """

    def __init__(self):
        self.log = []
        self.current = "cuda:0"

    def is_available(self):
        return True

    def device_count(self):
        return 2

    def get_device_name(self, place):
        return f"fake GPU {place}"

    @contextmanager
    def device(self, place):
        before, self.current = self.current, place
        yield
        self.current = before

    def synchronize(self):
        self.log.append(f"synchronize {self.current}")

    def Event(self, enable_timing):
        assert enable_timing
        return FakeEvent(self)

    def Stream(self):
        return SimpleNamespace(wait_stream=lambda other: self.log.append("wait"))

    current_stream = Stream

    def stream(self, stream):
        return nullcontext()

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: self.log.append("replay"))

    @contextmanager
    def graph(self, graph):
        self.log.append(f"capture on {self.current}")
        yield
        self.log.append("captured")


class FakeEvent:
    def __init__(self, cuda):
        self.cuda, self.happened = cuda, False

    def record(self):
        self.cuda.log.append(f"record {self.cuda.current}")

    def synchronize(self):
        self.happened = True
        self.cuda.log.append("event")

    def elapsed_time(self, end):
        assert end.happened, "a time was read before the GPU was done"
        return 3.0


class WallClockCuda(FakeCuda):
    """Takes as long as the work on the CPU that stands for it."""

    def Event(self, enable_timing):
        event = FakeEvent(self)
        event.record = lambda: setattr(event, "at", time.perf_counter())
        event.elapsed_time = lambda end: 1e3 * (end.at - event.at)
        return event


class TestCuda(BackendConformance):
    def make_backend(self):
        return CudaBackend(cuda=WallClockCuda(), place="cpu")


@pytest.mark.parametrize("place", ["cuda:0", "cuda:1"])
def test_cuda_times_between_events_and_warms_an_idle_gpu(monkeypatch, place):
    cuda = FakeCuda()
    now = [0.0]

    def clock():
        now[0] += 0.01
        return now[0]

    monkeypatch.setattr("hardware.backends.cuda.time.monotonic", clock)
    backend = CudaBackend(cuda=cuda)
    backend.use(place)
    assert backend.device() == f"fake GPU {place}"
    runnable = Runnable(lambda: cuda.log.append("run"))
    assert backend.time(runnable, repeats=3) == pytest.approx(1e-3)
    record = f"record {place}"
    sample = [f"synchronize {place}", record, "run", "run", "run", record, "event"]
    assert cuda.log[-7:] == sample
    assert len(cuda.log) > 20
    cuda.log.clear()
    backend.time(runnable, repeats=3)
    assert cuda.log == ["run", *sample]
    now[0] += 10.0
    cuda.log.clear()
    backend.time(runnable, repeats=3)
    assert len(cuda.log) > 20


@pytest.mark.parametrize("seconds", [0.0, 0.5])
def test_cuda_counts_the_runs_that_have_ended(monkeypatch, seconds):
    cuda = FakeCuda()
    now = [0.0]

    def clock():
        now[0] += 0.01
        return now[0]

    monkeypatch.setattr("hardware.backends.cuda.time.monotonic", clock)
    backend = CudaBackend(cuda=cuda)
    backend.use("cuda:1")
    runs = backend.run_for(Runnable(lambda: cuda.log.append("run")), seconds)
    assert runs == cuda.log.count("run") >= 1
    assert cuda.log[-1] == "synchronize cuda:1"
    assert now[0] >= seconds


def test_cuda_replays_graphs_and_the_overhead_is_a_graph_too():
    cuda = FakeCuda()
    backend = CudaBackend(cuda=cuda, graphs=True, place="cpu")
    for chain, shape in ((small_ops(), None), ((), (3, 16, 16))):
        cuda.log.clear()
        runnable = backend.prepare(chain, input_shape=shape)
        assert cuda.log == ["wait", "wait", "capture on cpu", "captured"]
        cuda.log.clear()
        backend.time(runnable, repeats=2)
        assert cuda.log[-6:] == ["synchronize cpu", "record cpu", "replay", "replay", "record cpu", "event"]


@pytest.mark.parametrize("place", ["cuda:2", "cpu", "cuda:x", "gpu", "cuda:"])
def test_cuda_names_its_devices(place):
    with pytest.raises(BackendError, match=rf"no device '{place}' here; it has cuda:0 \(fake GPU 0\), cuda:1"):
        CudaBackend(cuda=FakeCuda()).use(place)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_needs_a_gpu():
    with pytest.raises(BackendError, match="torch sees none here"):
        get_backend("cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
@pytest.mark.parametrize("graphs", [False, True])
def test_cuda_on_a_real_gpu(graphs):
    with CudaBackend(graphs=graphs) as backend:
        assert backend.time(backend.prepare(small_ops(), batch=8), repeats=5) > 0


@pytest.mark.parametrize("name", ["torch", "inductor"])
def test_a_backend_of_one_device_accepts_its_name_alone(name):
    get_backend(name, "cpu").close()
    with pytest.raises(BackendError, match=rf"'{name}' measures on 'cpu' alone, not on 'cuda:1'"):
        get_backend(name, "cuda:1")


def test_devices_of_onnxruntime_are_its_execution_providers():
    with get_backend("onnxruntime", "cpu") as backend:
        assert backend.place == "cpu"
        assert not backend.prepare(small_ops()).wall_clock
    for place in ("cuda:1", "tpu", "cpu:1", "XnnpackExecutionProvider"):
        with pytest.raises(BackendError, match=rf"no device '{place}' here; it has cpu, .*CPUExecutionProvider"):
            get_backend("onnxruntime", place)


def test_a_provider_that_onnxruntime_cannot_start_is_refused(monkeypatch):
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: [CUDA])
    backend = OnnxRuntimeBackend()
    backend.use("cuda:1")
    assert (backend.place, backend.provider_options) == ("cuda:1", {"device_id": 1})
    assert "cuda:1 beside" in backend.device()
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(BackendError, match="could not start CUDAExecutionProvider"),
    ):
        backend.prepare(small_ops())


def test_other_devices_than_the_calling_thread_are_timed_by_the_wall_clock():
    runnable = Runnable(lambda: time.sleep(0.002), wall_clock=True)
    with get_backend("onnxruntime") as backend:
        assert backend.time(runnable, repeats=3) >= 0.002
        assert backend.time(dataclasses.replace(runnable, wall_clock=False), repeats=3) < 0.002


def test_the_default_clock_averages_over_repeats():
    calls = []
    runnable = Runnable(lambda: calls.append(0), threads=2)
    with get_backend("onnxruntime") as backend:
        assert backend.time(runnable, repeats=7) >= 0
    assert len(calls) == 8
