"""What recorders do: one on fake CUDA graphs, whose calls are those that torch documents, and the plain one."""

import inspect
from contextlib import contextmanager

import pytest
import torch

from proxyless_strategy.strategy.supernet.recorders import CudaRecorder, PlainRecorder


class FakeCuda:
    """Notes what is called, on which stream. A graph notes what ran while it was captured, and runs it in a replay."""

    def __init__(self):
        self.calls, self.streams, self.now = [], 0, "home"
        outer = self

        class Stream:
            def __init__(self, device):
                outer.streams += 1
                self.name = f"side {outer.streams}"

            def wait_stream(self, other):
                outer.calls.append(("wait", self.name, getattr(other, "name", other)))

        class Home(Stream):
            def __init__(self):
                self.name = "home"

        class CUDAGraph:
            def capture_begin(self, pool=None, capture_error_mode="global"):
                outer.calls.append(("begin", outer.now, pool, capture_error_mode))

            def capture_end(self):
                outer.calls.append(("end", outer.now))

            def replay(self):
                outer.calls.append(("replay", outer.now))

        self.Stream, self.CUDAGraph, self.home, self.pools = Stream, CUDAGraph, Home(), 0

    def current_device(self):
        return 1

    def current_stream(self, device):
        return self.home if self.now == "home" else self.now

    def graph_pool_handle(self):
        self.pools += 1
        return (0, self.pools)

    def synchronize(self, device):
        self.calls.append(("synchronize", str(device)))

    @contextmanager
    def stream(self, stream):
        before, self.now = self.now, stream.name
        try:
            yield
        finally:
            self.now = before


def test_graphs_are_captured_on_one_side_stream_and_replayed_on_the_callers():
    cuda = FakeCuda()
    recorder = CudaRecorder(torch.device("cuda"), cuda=cuda)
    memory, streams = recorder.memory(), []
    with recorder.trying():
        streams.append(cuda.now)
    replays = [recorder.record(lambda: streams.append(cuda.now), memory, keeps=keeps) for keeps in (True, False)]
    assert streams == ["side 1"] * 3, "a pool shares memory among work of one stream, and so do cuBLAS' workspaces"
    assert cuda.calls[:2] == [("wait", "side 1", "home"), ("wait", "home", "side 1")]
    one = [("synchronize", "cuda:1"), ("begin", "side 1", (0, 1), "thread_local"), ("end", "side 1")]
    assert cuda.calls[2:] == one * 2
    for replay in replays:
        replay()
    assert cuda.calls[-2:] == [("replay", "home")] * 2
    assert len(streams) == 3, "a replay runs nothing in Python"


def test_a_capture_that_fails_is_ended():
    cuda = FakeCuda()
    recorder = CudaRecorder(torch.device("cuda", 0), cuda=cuda)
    with pytest.raises(ZeroDivisionError):
        recorder.record(lambda: 1 / 0, recorder.memory(), keeps=False)
    assert [call[0] for call in cuda.calls] == ["synchronize", "begin", "end"]
    assert cuda.now == "home"


def test_work_elsewhere_is_not_taken():
    cuda = FakeCuda()
    recorder = CudaRecorder(torch.device("cuda", 0), cuda=cuda)
    assert recorder.takes(torch.device("cuda", 0))
    assert not recorder.takes(torch.device("cuda", 1))
    assert not recorder.takes(torch.device("cpu"))
    with cuda.stream(cuda.Stream(0)):
        assert not recorder.takes(torch.device("cuda", 0))


def test_torch_has_what_the_fake_stands_for():
    parameters = inspect.signature(torch.cuda.CUDAGraph.capture_begin).parameters
    assert {"pool", "capture_error_mode"} <= set(parameters)
    for name in ("Stream", "current_device", "current_stream", "graph_pool_handle", "synchronize", "stream"):
        assert callable(getattr(torch.cuda, name))


def test_plain_recordings_of_one_memory_overwrite_what_the_others_keep():
    recorder = PlainRecorder()
    x, kept = torch.full((3,), 2.0), {}

    def squares(name):
        def work():
            leaf = x.detach().requires_grad_()
            kept[name] = leaf, leaf * leaf

        return work

    memory = recorder.memory()
    first, second = (recorder.record(squares(name), memory, keeps=True) for name in "ab")
    other = recorder.record(squares("c"), recorder.memory(), keeps=True)
    first()
    other()
    leaf, output = kept["a"]
    assert torch.autograd.grad(output.sum(), leaf)[0].tolist() == [4.0] * 3
    first()
    second()
    leaf, output = kept["a"]
    assert torch.autograd.grad(output.sum(), leaf)[0].isnan().all()
    leaf, output = kept["b"]
    assert torch.autograd.grad(output.sum(), leaf)[0].tolist() == [4.0] * 3


def test_plain_recordings_read_buffers_where_they_lie():
    recorder = PlainRecorder()
    x, kept = torch.full((3,), 2.0), []

    def work():
        leaf = x.detach().requires_grad_()
        kept[:] = [leaf, leaf * leaf]

    recorder.record(work, recorder.memory(), keeps=True, outside=[x])()
    x.fill_(5.0)  # as another replay does whose input this is
    assert torch.autograd.grad(kept[1].sum(), kept[0])[0].tolist() == [10.0] * 3


def test_plain_buffers_are_spoiled_whatever_they_hold():
    recorder = PlainRecorder()
    buffers = [torch.ones(2), torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.long)]
    for buffer in buffers:
        recorder.spoil(buffer)
    assert [buffer.isnan().all().item() for buffer in buffers[:2]] == [True, True]
    assert buffers[2].tolist() == [0, 0]
