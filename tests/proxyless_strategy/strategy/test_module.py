"""The search under Lightning: schedule, paths, steps, and resuming bit for bit."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from hardware.errors import ConfigError
from proxyless_strategy.strategy import gates
from proxyless_strategy.strategy.module import SearchModule
from tests.proxyless_strategy import tiny
from tests.proxyless_strategy.tiny import RULES, STEPS, StopAt, Stopped, assert_equal_states, final_state


class Watch(Callback):
    """Records alpha after every epoch."""

    def __init__(self):
        self.alphas = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.alphas.append(pl_module.architecture.alpha.detach().clone())


@pytest.mark.parametrize("rule", RULES)
def test_schedule_counts_and_warmup_leaves_alpha_untouched(rule):
    watch = Watch()
    strategy = tiny.searched(rule=rule, callbacks=[watch], epochs=4)
    module = strategy.searched
    assert module.counters == {"warmup": STEPS, "weights": 4 * STEPS, "architecture": STEPS, "skipped": 0}
    assert module.trainer.global_step == 4 * STEPS
    start = strategy.architecture.alpha
    fresh = tiny.ProxylessStrategy(seed=0)
    fresh.mutate_model(tiny.TinySpace())
    assert torch.equal(watch.alphas[0], fresh.architecture.alpha)
    assert torch.equal(watch.alphas[1], fresh.architecture.alpha), "no architecture step in the epoch after the warm-up"
    assert not torch.equal(watch.alphas[2], watch.alphas[1])
    assert not torch.equal(start, fresh.architecture.alpha)


def test_no_second_path_runs_during_warmup(monkeypatch):
    calls = []
    forward = tiny.Conv.forward

    def counted(self, x):
        calls.append(self.training)
        return forward(self, x)

    monkeypatch.setattr(tiny.Conv, "forward", counted)
    strategy = tiny.searched(epochs=5, warmup_epochs=3, trainer={"limit_train_batches": 2, "limit_val_batches": 0})
    training = sum(calls)
    paths = []
    for step in range(6):
        u = gates.uniforms(0, gates.Phase.WARMUP, step, (3, 3))
        paths.append(gates.sample_paths(torch.zeros(3, 3, dtype=torch.float64), strategy.architecture.host_mask, u))
    warm = sum(int((p < 2).sum()) for p in paths)
    assert strategy.searched.counters["warmup"] == 6
    weights_after = 4
    assert training <= warm + weights_after * 3
    assert training >= warm


def test_a_fair_warmup_runs_every_candidate_equally_often(monkeypatch):
    drawn = []
    draw = SearchModule.draw_paths

    def noted(self):
        paths = draw(self)
        drawn.extend([paths] if self.in_warmup() else [])
        return paths

    monkeypatch.setattr(SearchModule, "draw_paths", noted)
    tiny.searched(warmup_paths="fair", epochs=3)
    counts = [sorted(column.count(k) for k in set(column)) for column in zip(*drawn, strict=True)]
    assert counts == [[3, 3], [2, 2, 2], [2, 2, 2]], "6 steps"


@pytest.mark.parametrize("weight_paths", get_args(gates.WeightPaths))
def test_paths_of_weight_steps(weight_paths, monkeypatch):
    """After the warm-up they follow alpha, or pay no attention to it; the draws are the same uniform numbers."""
    drawn, draw = [], SearchModule.draw_paths

    def noted(self):
        paths, alpha = draw(self), self.architecture.host_alpha()
        drawn.extend([] if self.in_warmup() else [(alpha, self.architecture.host_mask, paths)])
        return paths

    monkeypatch.setattr(SearchModule, "draw_paths", noted)
    tiny.searched(weight_paths=weight_paths, learning_rate=2.0, epochs=6)
    differing = 0
    for step, (alpha, mask, paths) in enumerate(drawn):
        u = gates.uniforms(0, gates.Phase.WEIGHTS, step, (3, 3))
        by_alpha, even = (gates.sample_paths(a, mask, u).tolist() for a in (alpha, torch.zeros_like(alpha)))
        assert paths == (by_alpha if weight_paths == "sampled" else even)
        differing += by_alpha != even
    assert len(drawn) == 5 * STEPS
    assert differing > STEPS


@pytest.mark.parametrize("rule", RULES)
def test_expected_latency_lands_on_the_target(rule):
    strategy = tiny.searched(rule=rule, target=8.0, epochs=30, steps_per_update=1)
    module = strategy.searched
    expected = module.problem.fixed + module.architecture.expected_cost(
        module.architecture.probabilities(), module.problem.costs
    )
    assert expected == pytest.approx(8.0, rel=0.05)


def test_the_latency_term_has_a_gradient():
    alphas = []
    for weight in (0.0, 1.0, 100.0):
        strategy = tiny.searched(objective="add_linear", objective_options={"weight": weight}, epochs=6)
        alphas.append(strategy.architecture.probabilities())
    assert not torch.allclose(alphas[0], alphas[1])
    assert not torch.allclose(alphas[1], alphas[2])


def test_loggers_get_the_searchs_figures(tmp_path):
    strategy = tiny.searched(trainer={"logger": CSVLogger(tmp_path), "log_every_n_steps": 1})
    del strategy
    (file,) = tmp_path.rglob("metrics.csv")
    header = file.read_text().splitlines()[0]
    assert all(name in header for name in ("search/expected", "search/entropy", "search/multiplier", "val_acc"))


def test_gradient_clipping_bounds_the_step():
    found = []

    class Norms(tiny.Module):
        def on_before_optimizer_step(self, optimizer):
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            found.append(torch.cat([g.flatten() for g in grads]).norm().item())

    tiny.searched(module=Norms(), gradient_clip_val=0.01, gradient_clip_algorithm="norm")
    assert len(found) == 4 * STEPS
    assert max(found) <= 0.01 * 1.001


def test_accumulation_keeps_one_path_for_all_parts_of_a_step():
    strategy = tiny.searched(accumulate_grad_batches=3, steps_per_update=1, epochs=4)
    module = strategy.searched
    assert module.counters["weights"] == 4 * STEPS // 3
    assert module.counters["architecture"] == 2 * STEPS // 3


@pytest.mark.parametrize("rule", RULES)
def test_bfloat16_runs(rule):
    tiny.searched(rule=rule, trainer={"precision": "bf16-mixed"})


def test_too_few_epochs_are_refused_before_training():
    with pytest.raises(ConfigError, match="at least 4 epochs"):
        tiny.searched(epochs=3, warmup_epochs=2)


def with_dropout():
    return tiny.TinySpace(dropout=0.2)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("stop", [3, STEPS, 2 * STEPS + 4, 3 * STEPS])
def test_a_resumed_search_equals_an_uninterrupted_one(rule, stop, tmp_path):
    options = {"rule": rule, "epochs": 4, "samples": 3}
    whole = tiny.searched(space=with_dropout, **options)
    save = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_last=True, save_top_k=1)
    with pytest.raises(Stopped):
        tiny.searched(space=with_dropout, callbacks=[save, StopAt(stop)], **options)
    resumed = tiny.searched(space=with_dropout, ckpt_path=tmp_path / "last.ckpt", **options)
    assert_equal_states(final_state(whole), final_state(resumed))


def test_a_checkpoint_of_another_search_is_refused(tmp_path):
    save = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    tiny.searched(callbacks=[save], seed=1)
    with pytest.raises(ConfigError, match="seed 1"):
        tiny.searched(ckpt_path=tmp_path / "last.ckpt", seed=2, epochs=6)


KILLED = """
import sys, torch
from pytorch_lightning.callbacks import ModelCheckpoint
from tests.proxyless_strategy import tiny

torch.set_num_threads(1)
folder, epochs = sys.argv[1], int(sys.argv[2])
save = ModelCheckpoint(dirpath=folder, every_n_train_steps=1, save_last=True)
tiny.searched(callbacks=[save], epochs=epochs, warmup_epochs=2, learning_rate=0.05)
"""


def test_a_search_that_was_killed_resumes_bit_for_bit(tmp_path):
    epochs, last = 12, tmp_path / "last.ckpt"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", KILLED, str(tmp_path), str(epochs)], cwd=Path(__file__).parents[3]
    )
    try:
        seen = set()
        while len(seen) < 8:
            assert process.poll() is None, "the search ended before it could be killed"
            if last.exists():
                seen.add(last.stat().st_mtime_ns)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    options = {"epochs": epochs, "warmup_epochs": 2, "learning_rate": 0.05}
    whole = tiny.searched(**options)
    resumed = tiny.searched(ckpt_path=last, **options)
    assert resumed.searched.counters["weights"] == epochs * STEPS
    assert_equal_states(final_state(whole), final_state(resumed))
