"""A signal within an epoch of a search or a retraining: a checkpoint of the step that it came in, and nothing lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hardware.errors import CheckpointError
from proxyless_strategy import signals
from proxyless_strategy.checkpoints import read_checkpoint
from proxyless_strategy.runs.checkpoints import SearchCheckpoints
from proxyless_strategy.runs.own_signals import OwnSignals
from tests.proxyless_strategy import tiny
from tests.proxyless_strategy.runs.test_checkpoints import STEPS, assert_equal, searched
from tests.proxyless_strategy.test_signals import default_signals

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
ROOT = Path(__file__).parents[3]


class Told(OwnSignals):
    """Sends this process a signal as a batch begins."""

    def __init__(self, batches: int):
        self.batches = batches

    def on_train_batch_start(self, trainer: Any, *rest: Any) -> None:
        if trainer.global_step == self.batches:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As within `stopped_in_order`, but for its end, which ends whatever this process has started."""
    state = signals._State()
    before = signal.signal(signal.SIGTERM, signals._on_signal)
    state.handled[signal.SIGTERM] = before
    monkeypatch.setattr(signals, "_state", state)
    yield state
    signal.signal(signal.SIGTERM, before)


def step_of(path: Path) -> int:
    return read_checkpoint(path, what="a search")["global_step"]


# In the warm-up, in one with architecture steps, and in the last batch of an epoch, whose own checkpoint follows.
@pytest.mark.parametrize(
    ("stop", "rule"),
    [
        pytest.param(1, "gradient", marks=pytest.mark.slow),
        (2 * STEPS + 3, "gradient"),
        pytest.param(2 * STEPS + 3, "reinforce", marks=pytest.mark.slow),
        (3 * STEPS - 1, "gradient"),
    ],
)
def test_a_search_told_to_stop_keeps_the_step_that_it_was_in(
    stop: int, rule: str, heard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "search.ckpt"
    with pytest.raises(signals.Stopped) as stopped:
        searched(path, rule=rule, minutes=9, stop=Told(stop))
    assert stopped.value.code == 143
    assert heard.holds == 0
    assert step_of(path) == stop + 1
    monkeypatch.setattr(signals, "_state", None)
    whole = searched(tmp_path / "whole.ckpt", rule=rule, minutes=9)
    assert_equal(whole, searched(path, rule=rule, resume=True, minutes=9))


def test_a_stop_while_finalists_are_compared_is_not_put_off(heard: Any, tmp_path: Path) -> None:
    class AtTheEnd(OwnSignals):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            def choosing() -> None:
                assert heard.holds == 0
                os.kill(os.getpid(), signal.SIGTERM)
                raise AssertionError("it went on")

            pl_module.choose = choosing

    with pytest.raises(signals.Stopped):
        searched(tmp_path / "search.ckpt", epochs=3, minutes=9, stop=AtTheEnd())
    assert step_of(tmp_path / "search.ckpt") == 3 * STEPS


def test_a_stop_that_cannot_save_says_why(
    heard: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(self: Any, trainer: Any) -> None:
        raise CheckpointError("cannot write the checkpoint: no space; make room")

    monkeypatch.setattr(SearchCheckpoints, "save", full)
    with pytest.raises(signals.Stopped):
        searched(tmp_path / "search.ckpt", minutes=9, stop=Told(2))
    assert capfd.readouterr().err.splitlines()[-1] == "cannot write the checkpoint: no space; make room"


def test_an_error_of_the_search_ends_the_hold(heard: Any, tmp_path: Path) -> None:
    with pytest.raises(tiny.Stopped):
        searched(tmp_path / "search.ckpt", minutes=9, stop=tiny.StopAt(3))
    assert heard.holds == 0
    assert heard.number is None


def test_of_several_processes_each_puts_a_stop_off_until_all_save(heard: Any, tmp_path: Path) -> None:
    class Trainer:
        world_size = 2

    saved = SearchCheckpoints(tmp_path / "search.ckpt", minutes=9, identity={})
    saved.on_train_batch_start(Trainer(), None, None, 0)
    assert heard.holds == 1
    saved.on_train_end(Trainer(), None)
    assert heard.holds == 0


CHILD = """
import sys
from pathlib import Path
import torch
from proxyless_strategy import signals
from tests.proxyless_strategy.runs.test_checkpoints import searched
from tests.proxyless_strategy.runs.test_stopped_in_mid_epoch import Told

torch.set_num_threads(1)
with signals.stopped_in_order():
    searched(Path(sys.argv[1]), minutes=9, stop=Told(int(sys.argv[2])))
"""


@pytest.mark.slow
def test_a_stopped_process_leaves_the_checkpoint_of_its_step(tmp_path: Path) -> None:
    path = tmp_path / "search.ckpt"
    command = [sys.executable, "-W", "ignore", "-c", CHILD, str(path), "15"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, preexec_fn=default_signals)
    assert ended.returncode == 143
    assert ended.stderr.endswith("SIGTERM: stopped; repeat the command to continue\n")
    assert step_of(path) == 16
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert_equal(searched(tmp_path / "whole.ckpt", minutes=9), searched(path, resume=True, minutes=9))
    finally:
        torch.set_num_threads(threads)
