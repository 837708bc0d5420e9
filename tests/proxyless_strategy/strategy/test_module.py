"""The search under Lightning: schedule, isolation of validation, schedulers, callbacks, and resuming bit for bit."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from nni.nas.experiment import NasExperiment
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger

from hardware.errors import ConfigError, DataError
from proxyless_strategy.strategy import gates
from proxyless_strategy.strategy.module import SearchModule, but_last
from proxyless_strategy.strategy.proxyless import ProxylessStrategy
from proxyless_strategy.strategy.rules import derived_learning_rate
from tests.proxyless_strategy import tiny

STEPS = 6  # 96 images in batches of 16
RULES = ("gradient", "reinforce")


class Watch(Callback):
    """Records alpha after every epoch and the supernet around validation."""

    def __init__(self):
        self.alphas, self.before, self.changed, self.models = [], None, [], []

    def on_train_epoch_end(self, trainer, pl_module):
        self.alphas.append(pl_module.architecture.alpha.detach().clone())

    def on_validation_start(self, trainer, pl_module):
        self.before = {k: v.clone() for k, v in pl_module.state_dict().items()}

    def on_validation_batch_end(self, trainer, pl_module, *rest):
        self.models.append(type(pl_module.training_module.model.layers[0]).__name__)

    def on_validation_end(self, trainer, pl_module):
        after = pl_module.state_dict()
        assert set(after) == set(self.before)
        self.changed += [k for k in after if not torch.equal(after[k], self.before[k])]


@pytest.mark.parametrize("rule", RULES)
def test_schedule_counts_and_warmup_leaves_alpha_untouched(rule):
    watch = Watch()
    strategy = tiny.searched(rule=rule, callbacks=[watch], epochs=4)
    module = strategy._searched()
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
    assert strategy._searched().counters["warmup"] == 6
    weights_after = 4
    assert training <= warm + weights_after * 3
    assert training >= warm


def test_a_fair_warmup_runs_every_candidate_equally_often(monkeypatch):
    drawn = []
    draw = SearchModule._draw_paths

    def noted(self):
        paths = draw(self)
        drawn.extend([paths] if self._in_warmup() else [])
        return paths

    monkeypatch.setattr(SearchModule, "_draw_paths", noted)
    tiny.searched(warmup_paths="fair", epochs=3)
    counts = [sorted(column.count(k) for k in set(column)) for column in zip(*drawn, strict=True)]
    assert counts == [[3, 3], [2, 2, 2], [2, 2, 2]], "6 steps"


def test_what_rewards_are_held_against_changes_the_search():
    alphas = {name: tiny.searched(rule="reinforce", baseline=name, epochs=3) for name in ("moving", "leave_one_out")}
    moved = [strategy.architecture.alpha for strategy in alphas.values()]
    assert not torch.equal(*moved)
    with pytest.raises(ConfigError, match="baseline = 'mean'; it must be one of leave_one_out, moving"):
        ProxylessStrategy(baseline="mean")


@pytest.mark.parametrize("weight_paths", get_args(gates.WeightPaths))
def test_paths_of_weight_steps(weight_paths, monkeypatch):
    """After the warm-up they follow alpha, or pay no attention to it; the draws are the same uniform numbers."""
    drawn, draw = [], SearchModule._draw_paths

    def noted(self):
        paths, alpha = draw(self), self.architecture.host_alpha()
        drawn.extend([] if self._in_warmup() else [(alpha, self.architecture.host_mask, paths)])
        return paths

    monkeypatch.setattr(SearchModule, "_draw_paths", noted)
    tiny.searched(weight_paths=weight_paths, learning_rate=2.0, epochs=6)
    differing = 0
    for step, (alpha, mask, paths) in enumerate(drawn):
        u = gates.uniforms(0, gates.Phase.WEIGHTS, step, (3, 3))
        by_alpha, even = (gates.sample_paths(a, mask, u).tolist() for a in (alpha, torch.zeros_like(alpha)))
        assert paths == (by_alpha if weight_paths == "sampled" else even)
        differing += by_alpha != even
    assert len(drawn) == 5 * STEPS
    assert differing > STEPS


class Add(torch.nn.Module):
    """`x + value`, whose task loss can be told in advance."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return x + self.value


class Sum(ModelSpace):
    """Two edges that add 0, 1, 2 or no number at all."""

    def __init__(self):
        super().__init__()
        for label in ("first", "second"):
            values = {"zero": 0.0, "one": 1.0, "two": 2.0, "none": math.nan}
            setattr(self, label, LayerChoice({name: Add(value) for name, value in values.items()}, label=label))
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.second(self.first(x.mean((1, 2, 3)) * 0)) * self.scale


class Squares(tiny.Module):
    """The loss `(y - 3)^2` of `Sum`, which learns nothing."""

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return (self(batch[0]) - 3).square().mean()

    def architecture_loss(self, batch, batch_idx):
        return self.training_step(batch, batch_idx)

    def architecture_accuracy(self, batch, batch_idx):
        return self(batch[0]).mean() / 4

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD([self.unused], lr=0.1)


class Ending(Callback):
    """Puts alpha where a test wants it, before finalists are compared."""

    def __init__(self, alpha):
        self.alpha = torch.tensor(alpha)

    def on_train_end(self, trainer, pl_module):
        with torch.no_grad():
            pl_module.architecture.alpha.copy_(self.alpha)


def ending(alpha, **options):
    given = {"space": Sum, "module": Squares(), "callbacks": [Ending(alpha)], "latency": None, "target_ms": None}
    return tiny.searched(**{**given, "epochs": 3, "finalists": 3, **options})


@pytest.mark.parametrize("rule", RULES)
def test_the_finalist_with_the_least_loss_is_exported(rule):
    """The three most probable sums are 0, 1 and 2, of losses 9, 4 and 1; one of 3 has none, but is less probable."""
    strategy = ending([[3.0, 1.0, -3.0, -9.0], [3.0, 2.5, 2.0, -9.0]], rule=rule)
    found = strategy._searched().finalists
    assert [finalist.derived.choice for finalist in found] == [(0, 2), (0, 1), (0, 0)]
    assert [finalist.loss for finalist in found] == [1.0, 4.0, 9.0]
    assert strategy.export() == {"first": "zero", "second": "two"}


def test_reinforce_needs_no_loss_of_validation_batches():
    """Without one it compares error rates, here 1 less a quarter of the sum."""

    class Accuracy(Squares):
        architecture_loss = property()  # as if it were not there

        def training_step(self, batch, batch_idx):
            assert torch.is_grad_enabled(), "only weight steps"
            return super().training_step(batch, batch_idx)

    strategy = ending([[3.0, 1.0, -3.0, -9.0], [3.0, 2.5, 2.0, -9.0]], rule="reinforce", module=Accuracy())
    found = strategy._searched().finalists
    assert [(finalist.derived.choice, finalist.loss) for finalist in found] == [
        ((0, 2), 0.5),
        ((0, 1), 0.75),
        ((0, 0), 1),
    ]


def test_one_finalist_is_the_most_probable_subnet_and_is_not_run():
    strategy = ending([[3.0, 1.0, -3.0, -9.0], [3.0, 2.5, 2.0, -9.0]], finalists=1)
    (found,) = strategy._searched().finalists
    assert found.derived.choice == (0, 0)
    assert math.isnan(found.loss)


def test_a_loss_that_is_no_number_ranks_last():
    found = ending([[0.0, -1.0, -2.0, 9.0], [3.0, 2.0, 0.0, -9.0]], finalists=4)._searched().finalists
    assert [finalist.derived.choice for finalist in found] == [(0, 0), (3, 0), (3, 1), (3, 2)]


def test_comparing_finalists_changes_nothing_else():
    strategy = tiny.searched(finalists=5)
    module = strategy._searched()
    assert len(module.finalists) == 5
    assert all(finalist.derived.cost <= 8.0 for finalist in module.finalists)
    before = final_state(strategy)
    batches, random = module.architecture_batches.state_dict(), torch.get_rng_state()
    logged = dict(module.trainer.callback_metrics)
    module.finalists = []
    module.choose()
    assert_equal_states(before, final_state(strategy))
    assert module.architecture_batches.state_dict() == batches
    assert torch.equal(torch.get_rng_state(), random)
    assert dict(module.trainer.callback_metrics) == logged
    assert all(parameter.requires_grad for parameter in module.model.parameters())


def test_a_search_that_ended_before_its_finalists_were_compared_compares_them(tmp_path):
    save = ModelCheckpoint(dirpath=tmp_path, save_last=True)
    whole = tiny.searched(callbacks=[save])
    again = tiny.searched(ckpt_path=tmp_path / "last.ckpt")
    assert again._searched().finalists == whole._searched().finalists


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 1), (5, 4)])
def test_the_last_batch_may_be_too_small_for_batch_statistics(count, kept):
    assert list(but_last(range(count))) == list(range(kept))
    with pytest.raises(DataError, match="no batch"):
        list(but_last([]))


@pytest.mark.parametrize("rule", RULES)
def test_validation_sees_the_derived_subnet_and_leaves_the_supernet_as_it_is(rule):
    watch = Watch()
    strategy = tiny.searched(rule=rule, callbacks=[watch])
    assert watch.changed == []
    assert set(watch.models) == {"Conv"}
    assert {"val_loss", "val_acc"} <= set(strategy._searched().trainer.callback_metrics)


def test_logged_training_loss_is_of_training_batches_alone():
    class Counting(tiny.Module):
        logged = 0

        def training_step(self, batch, batch_idx):
            self.log("step_sum", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
            return super().training_step(batch, batch_idx)

    strategy = tiny.searched(module=Counting())
    assert strategy._searched().trainer.callback_metrics["step_sum"] == STEPS


@pytest.mark.parametrize("rule", RULES)
def test_two_exports_are_equal_and_within_the_target(rule):
    strategy = tiny.searched(rule=rule, target_ms=8.0)
    assert strategy.export() == strategy.export()
    assert strategy.derive().cost <= 8.0
    assert strategy.derive(3.0).cost <= 3.0
    assert strategy.derive_curve(5)


@pytest.mark.parametrize("rule", RULES)
def test_expected_latency_lands_on_the_target(rule):
    strategy = tiny.searched(rule=rule, target_ms=8.0, epochs=30, steps_per_update=1)
    module = strategy._searched()
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


def test_it_runs_as_an_nni_experiment(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    strategy = ProxylessStrategy(latency=tiny.costs(), target_ms=8.0, warmup_epochs=1, steps_per_update=2)
    experiment = NasExperiment(tiny.TinySpace(), tiny.evaluator(), strategy)
    experiment.config.experiment_working_directory = str(tmp_path)
    experiment.run()
    experiment.stop()
    (sample,) = experiment.export_top_models(formatter="dict")
    assert sample == strategy.export()
    (model,) = experiment.export_top_models(formatter="instance")
    assert model(torch.randn(2, 1, 6, 6)).shape == (2, 3)


@pytest.mark.parametrize(
    ("kind", "rates"),
    [
        ("step", [0.05 * 0.9**n for n in range(1, 1 + 3 * STEPS)]),
        ("epoch", [0.05 * 0.5 ** (n // STEPS) for n in range(3 * STEPS)]),
        ("plateau", [0.05, 0.025, 0.0125]),
    ],
)
def test_schedulers_of_every_kind(kind, rates):
    module = tiny.Module(kind)
    tiny.searched(module=module, epochs=3, warmup_epochs=0)
    found = module.rates if kind != "plateau" else module.rates[::STEPS]
    assert found == pytest.approx(rates)


def test_early_stopping_and_monitored_checkpoints(tmp_path):
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", filename="best")
    stop = EarlyStopping("val_loss", patience=0, min_delta=1e9)
    strategy = tiny.searched(callbacks=[best, stop], epochs=6)
    assert strategy._searched().trainer.current_epoch < 5
    assert Path(best.best_model_path).exists()


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
    module = strategy._searched()
    assert module.counters["weights"] == 4 * STEPS // 3
    assert module.counters["architecture"] == 2 * STEPS // 3


@pytest.mark.parametrize("rule", RULES)
def test_bfloat16_runs(rule):
    tiny.searched(rule=rule, trainer={"precision": "bf16-mixed"})


def test_too_few_epochs_are_refused_before_training():
    with pytest.raises(ConfigError, match="at least 4 epochs"):
        tiny.searched(epochs=3, warmup_epochs=2)


def test_batches_without_a_clear_input_are_refused_with_a_way_out():
    from proxyless_strategy.strategy.module import first_of_batch

    with pytest.raises(ConfigError, match="inputs="):
        first_of_batch({"image": torch.zeros(1)})


@pytest.mark.parametrize(
    ("arguments", "rate"),
    [(("gradient", 700, 7), 0.04), (("reinforce", 800, 7), 0.03), (("gradient", 100_000, 7), 8 * 7 / 2e5)],
)
def test_learning_rate_is_derived_from_the_planned_steps(arguments, rate):
    assert derived_learning_rate(*arguments) == pytest.approx(rate)


def final_state(strategy):
    module = strategy._searched()
    weights = {k: v.clone() for k, v in module.state_dict().items()}
    return weights, strategy.export(), dict(module.counters), module.finalists


def assert_equal_states(first, second):
    assert first[1:] == second[1:]
    assert set(first[0]) == set(second[0])
    different = [name for name in first[0] if not torch.equal(first[0][name], second[0][name])]
    assert different == []


def with_dropout():
    return tiny.TinySpace(dropout=0.2)


class Stopped(Exception):
    """Raised by `StopAt`."""


class StopAt(Callback):
    """Ends training after a number of batches."""

    def __init__(self, batches):
        self.batches = batches

    def on_train_batch_end(self, trainer, *rest):
        if trainer.global_step >= self.batches:
            raise Stopped


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
    assert resumed._searched().counters["weights"] == epochs * STEPS
    assert_equal_states(final_state(whole), final_state(resumed))
