"""The setting `capture`, and searches under Lightning that go by it."""

import logging

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn

from hardware.errors import ConfigError
from proxyless_strategy.strategy.capturing import Capturing
from proxyless_strategy.strategy.loaders import SeededLoader
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from proxyless_strategy.strategy.supernet.capture import Captures
from proxyless_strategy.strategy.supernet.gate import PathSelector
from proxyless_strategy.strategy.supernet.recorders import PlainRecorder, Recorder
from tests.proxyless_strategy import tiny
from tests.proxyless_strategy.strategy.spaces import Nested
from tests.proxyless_strategy.tiny import STEPS, StopAt, Stopped, assert_equal_states, final_state


@pytest.fixture(autouse=True)
def _heard(caplog):
    """Other tests of the process may have set another level."""
    caplog.set_level(logging.WARNING, "proxyless_strategy")


class Noted(PlainRecorder):
    """Counts recordings and their replays."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def record(self, work, memory, **options):
        self.recorded += 1
        replay = super().record(work, memory, **options)

        def counted():
            self.replayed += 1
            replay()

        return counted


def both(**options):
    """Searches with captured candidates and without; returns the recorder."""
    recorder = Noted()
    captured, eager = tiny.searched(capture=recorder, **options), tiny.searched(**options)
    assert_equal_states(final_state(captured), final_state(eager))
    return recorder


@pytest.mark.parametrize(
    "options",
    [
        {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1},
        {"paths": "all", "trainer": {"precision": "bf16-mixed"}},
        {"rule": "reinforce", "trainer": {"precision": "bf16-mixed"}},
    ],
    ids=str,
)
def test_a_captured_search_is_an_eager_one_bit_for_bit(options):
    recorder = both(**options)
    assert recorder.replayed > 2 * recorder.recorded > 0


def test_a_smaller_last_batch_runs_eagerly(monkeypatch):
    """Of 96 images in batches of 20 the last one has 16; of 64 for the architecture, 4."""
    seen, run = set(), Captures.run

    def noted(self, layer, index, module, args, mode):
        seen.add(len(args[0]))
        return run(self, layer, index, module, args, mode)

    monkeypatch.setattr(Captures, "run", noted)
    both(trainer={"batch_size": 20}, steps_per_update=1)
    assert seen == {20}


def test_dropout_runs_eagerly_on_the_same_random_numbers(caplog):
    recorder = both(space=lambda: tiny.TinySpace(dropout=0.3))
    assert recorder.recorded > 0, "architecture steps have no dropout"
    assert sum("draws random numbers" in record.getMessage() for record in caplog.records) == 1


def test_a_captured_search_that_is_stopped_and_resumed_is_the_same(tmp_path, caplog):
    caplog.set_level(logging.INFO, "proxyless_strategy")
    whole = tiny.searched(capture=PlainRecorder())
    assert whole.searched._capturing.captures is None, "finalists have the memory"
    assert "runs of candidates were replays" in caplog.text
    save = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_last=True)
    with pytest.raises(Stopped):
        tiny.searched(capture=PlainRecorder(), callbacks=[save, StopAt(2 * STEPS + 4)])
    resumed = tiny.searched(capture=PlainRecorder(), ckpt_path=tmp_path / "last.ckpt")
    assert_equal_states(final_state(resumed), final_state(whole))


# ---- the setting -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capture", ["yes", 0, 1, None, "plain"])
def test_what_is_no_setting_is_refused(capture):
    with pytest.raises(ConfigError, match=r"capture = .*; it must be True, False, 'auto' or a recorder"):
        ProxylessStrategy(capture=capture)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_is_refused_by_name():
    with pytest.raises(ConfigError, match="capture = True: CUDA graphs need an NVIDIA GPU"):
        ProxylessStrategy(capture=True)


def test_auto_is_eager_on_a_cpu(caplog):
    caplog.set_level(logging.INFO, "proxyless_strategy")
    capturing = Capturing("auto")
    capturing.start(nn.Identity(), torch.device("cpu"), 1)
    assert capturing.captures is None
    assert "nothing is captured: CUDA graphs need an NVIDIA GPU" in caplog.text
    with capturing.of(selector := PathSelector(), None, None):
        assert selector.captures is None


def test_a_search_that_does_not_train_on_the_gpu_is_refused():
    """As on a machine with a GPU whose trainer has accelerator='cpu'."""
    with pytest.raises(ConfigError, match="capture = True: CUDA graphs need an NVIDIA GPU that trains"):
        Capturing(True).start(nn.Identity(), torch.device("cpu"), 1)


@pytest.mark.parametrize("capture", [True, PlainRecorder()])
def test_several_processes_are_refused(capture):
    with pytest.raises(ConfigError, match="in one process alone, and this search has 2; set it to 'auto'"):
        Capturing(capture).start(nn.Identity(), torch.device("cpu"), 2)
    auto = Capturing("auto")
    auto.start(nn.Identity(), torch.device("cuda"), 2)
    assert auto.captures is None


def test_a_repeat_is_named_as_not_captured(caplog):
    network = ProxylessStrategy().mutate_model(Nested())
    capturing = Capturing(PlainRecorder())
    capturing.start(network, torch.device("cpu"), 1)
    assert [record.getMessage()[:38] for record in caplog.records] == ["the Repeat at repeat is not captured: "]


def test_recorders_are_told_from_other_values():
    assert isinstance(PlainRecorder(), Recorder)
    assert not isinstance("auto", Recorder)


def test_a_batch_of_unknown_size_counts_as_full():
    data = torch.utils.data.TensorDataset(torch.zeros(5, 3))
    known = SeededLoader(torch.utils.data.DataLoader(data, batch_size=2), seed=0, stream=0)
    assert known.is_full([torch.zeros(2, 3)])
    assert not known.is_full([torch.zeros(1, 3)])
    assert known.is_full(["no tensor"])
    assert SeededLoader([torch.zeros(2)], seed=0, stream=0).is_full(torch.zeros(1))


def test_the_context_is_left_by_errors():
    capturing, selector, inside = Capturing(PlainRecorder()), PathSelector(), []
    capturing.start(nn.Identity(), torch.device("cpu"), 1)

    def step():
        with capturing.of(selector, None, None):
            inside.append(selector.captures)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        step()
    assert inside == [capturing.captures]
    assert selector.captures is None
