"""Finalists: which are compared, on what, and what the comparison leaves alone."""

import itertools
import math

import pytest
import torch
from nni.nas.nn.pytorch import LayerChoice, ModelSpace
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import ModelCheckpoint

from hardware.errors import ConfigError, DataError, TrainingError
from proxyless_strategy.strategy.derivation import Derived
from proxyless_strategy.strategy.finalists import BATCHES, STREAM, but_last, mean_losses, ranked
from proxyless_strategy.strategy.supernet.frozen import one_path_copy
from tests.proxyless_strategy import tiny
from tests.proxyless_strategy.tiny import RULES, assert_equal_states, final_state


class Add(torch.nn.Module):
    """`x + value`, whose task loss can be told in advance; None is no number once the training has ended."""

    def __init__(self, value):
        super().__init__()
        self.value = value

    def forward(self, x):
        return x + (0.0 if self.value is None else self.value)


class Sum(ModelSpace):
    """Two edges that add 0, 1, 2 or no number at all."""

    def __init__(self):
        super().__init__()
        for label in ("first", "second"):
            values = {"zero": 0.0, "one": 1.0, "two": 2.0, "none": None}
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
        for module in pl_module.modules():
            if isinstance(module, Add) and module.value is None:
                module.value = math.nan


def ending(alpha, **options):
    given = {"space": Sum, "module": Squares(), "callbacks": [Ending(alpha)], "cost": None, "target": None}
    return tiny.searched(**{**given, "epochs": 3, "finalists": 3, **options})


@pytest.mark.parametrize("rule", RULES)
def test_the_finalist_with_the_least_loss_is_exported(rule):
    """The three most probable sums are 0, 1 and 2, of losses 9, 4 and 1; one of 3 has none, but is less probable."""
    strategy = ending([[3.0, 1.0, -3.0, -9.0], [3.0, 2.5, 2.0, -9.0]], rule=rule)
    found = strategy.searched.finalists
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
    found = strategy.searched.finalists
    assert [(finalist.derived.choice, finalist.loss) for finalist in found] == [
        ((0, 2), 0.5),
        ((0, 1), 0.75),
        ((0, 0), 1),
    ]


@pytest.mark.parametrize("rule", RULES)
def test_a_judge_takes_the_place_of_the_loss_and_sees_each_finalists_network(rule):
    """It prefers the sum 1, which is neither the most probable nor the one of the least loss."""
    seen = []

    def judge(sample, network):
        assert not network.training
        total = network(torch.zeros(1, 1, 6, 6)).item()
        seen.append((sample["first"], sample["second"], total))
        return abs(total - 1)

    strategy = ending([[3.0, 1.0, -3.0, -9.0], [3.0, 2.5, 2.0, -9.0]], rule=rule, judge=judge)
    assert seen == [("zero", "zero", 0.0), ("zero", "one", 1.0), ("zero", "two", 2.0)]
    found = strategy.searched.finalists
    assert [finalist.loss for finalist in found] == [0.0, 1.0, 1.0]
    assert strategy.export() == {"first": "zero", "second": "one"}


def test_a_judge_whose_loss_is_no_number_ranks_that_one_last():
    ending_at = [[3.0, 1.0, -3.0, -9.0], [3.0, 2.5, 2.0, -9.0]]
    strategy = ending(ending_at, judge=lambda sample, _: math.nan if sample["second"] == "zero" else 2.0)
    assert [finalist.derived.choice for finalist in strategy.searched.finalists] == [(0, 1), (0, 2), (0, 0)]
    with pytest.raises(TrainingError, match="none of 3 finalists has a finite loss"):
        ending(ending_at, judge=lambda *_: math.nan)


def test_a_judge_in_several_processes_is_refused_before_a_step(monkeypatch):
    class Several(Callback):
        def on_fit_start(self, trainer, pl_module):
            monkeypatch.setattr(type(trainer), "world_size", 2)

    with pytest.raises(ConfigError, match="judge works in one process, not in 2; leave it out"):
        tiny.searched(judge=lambda *_: 0.0, callbacks=[Several()])


def test_one_finalist_is_the_most_probable_subnet_and_is_not_run():
    strategy = ending([[3.0, 1.0, -3.0, -9.0], [3.0, 2.5, 2.0, -9.0]], finalists=1)
    (found,) = strategy.searched.finalists
    assert found.derived.choice == (0, 0)
    assert math.isnan(found.loss)


def test_a_loss_that_is_no_number_ranks_last():
    found = ending([[0.0, -1.0, -2.0, 9.0], [3.0, 2.0, 0.0, -9.0]], finalists=4).searched.finalists
    assert [finalist.derived.choice for finalist in found] == [(0, 0), (3, 0), (3, 1), (3, 2)]


@pytest.mark.parametrize("rule", RULES)
def test_without_any_finite_loss_no_subnet_is_exported(rule):
    nothing_but_none = [[-3.0, -3.0, -3.0, 9.0]] * 2
    with pytest.raises(TrainingError, match=r"none of 3 finalists has a finite loss .*no checkpoint was written"):
        ending(nothing_but_none, rule=rule)


HIGH = [[3.0, 1.0, -3.0, -9.0], [3.0, 2.5, 2.0, -9.0]]
"""Finalists of loss 9, 4 and 1, see above."""


def test_a_contender_joins_the_finalists_and_is_exported_where_it_is_better():
    strategy = ending(HIGH, contender={"first": "two", "second": "one"})
    module = strategy.searched
    assert [finalist.loss for finalist in module.finalists] == [0.0, 1.0, 4.0, 9.0]
    assert strategy.export() == {"first": "two", "second": "one"}
    assert (module.contest.own, module.contest.contender, module.contest.is_won) == (1.0, 0.0, False)
    (warning,) = [warning for warning in module.warnings() if warning.code == "not_better"]
    assert "did not beat the contender: its own subnet has an architecture loss of 1, that one 0," in warning.sentence


def test_a_search_that_beats_its_contender_says_nothing():
    module = ending(HIGH, contender={"first": "one", "second": "zero"}).searched
    assert (module.contest.own, module.contest.contender, module.contest.is_won) == (1.0, 4.0, True)
    assert "not_better" not in [warning.code for warning in module.warnings()]


@pytest.mark.parametrize("finalists", [1, 3])
def test_a_search_that_ends_at_its_contender_has_not_beaten_it(finalists):
    """Alone or first among the finalists, it is compared once."""
    best = [[9.0, 1.0, -3.0, -9.0], [1.0, 2.0, 3.0, -9.0]]
    module = ending(best, contender={"first": "zero", "second": "two"}, finalists=finalists).searched
    assert len(module.finalists) == finalists
    assert (module.contest.own, module.contest.contender, module.contest.is_won) == (1.0, 1.0, False)


def test_a_contender_whose_loss_is_no_number_is_beaten():
    module = ending(HIGH, contender={"first": "none", "second": "zero"}).searched
    assert module.contest.is_won
    assert module.contest.contender == math.inf


def test_a_contender_over_the_target_is_refused():
    with pytest.raises(ConfigError, match=r"contender costs 13, more than the target 8; give one within it"):
        tiny.searched(contender={"edge0": "k3", "edge1": "k3", "edge2": "k3"})


def test_comparing_finalists_changes_nothing_else():
    strategy = tiny.searched(finalists=5)
    module = strategy.searched
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
    assert again.searched.finalists == whole.searched.finalists


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 1), (5, 4)])
def test_the_last_batch_may_be_too_small_for_batch_statistics(count, kept):
    assert list(but_last(range(count))) == list(range(kept))
    with pytest.raises(DataError, match="no batch"):
        list(but_last([]))


def subnets(count):
    return [Derived((index,), float(index), -float(index)) for index in range(count)]


def test_ranking_puts_the_least_loss_first_and_keeps_the_order_of_equals():
    found = subnets(5)
    losses = [2.0, math.nan, 1.0, 1.0, math.inf]
    assert [finalist.derived.choice[0] for finalist in ranked(found, losses)] == [2, 3, 0, 1, 4]


def test_losses_are_means_over_the_same_batches_and_never_of_the_last():
    seen = []

    def loss(derived, batch, index):
        seen.append((derived.choice[0], index))
        return derived.cost + batch

    assert mean_losses(subnets(2), [1.0, 3.0, 500.0], loss).tolist() == [2.0, 3.0]
    assert seen == [(0, 0), (1, 0), (0, 1), (1, 1)]
    endless = itertools.chain([0.0] * BATCHES, itertools.repeat(500.0))
    assert mean_losses(subnets(1), endless, loss).tolist() == [0.0]


class Pretrained(tiny.TinySpace):
    """A space whose batch norms start from statistics that fit none of its paths."""

    def __init__(self):
        super().__init__()
        for index, norm in enumerate(m for m in self.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.running_mean.fill_(10.0 * (index + 1))
            norm.running_var.fill_(1e-2)


@pytest.mark.parametrize("rule", RULES)
def test_statistics_that_a_space_starts_from_have_no_say(rule):
    """Finalists are compared with the statistics of each batch on their own path, and the derived one gets its own."""
    plain, pretrained = (tiny.searched(space=space, rule=rule) for space in (tiny.TinySpace, Pretrained))
    first, second = (strategy.searched.finalists for strategy in (plain, pretrained))
    assert len(first) > 1
    assert first == second, "losses too"
    networks = [strategy.searched.derived_network() for strategy in (plain, pretrained)]
    for (name, value), other in zip(networks[0].state_dict().items(), networks[1].state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_each_finalist_is_compared_with_the_statistics_of_its_own_path():
    strategy = tiny.searched(rule="gradient")
    module = strategy.searched
    batches = list(but_last(itertools.islice(module.architecture_batches.twin(stream=STREAM), BATCHES + 1)))
    for finalist in module.finalists:
        choice = finalist.derived.choice
        network = one_path_copy(module.model, module.supernet, choice, module.architecture.export(choice)).train()
        with torch.no_grad():
            losses = [torch.nn.functional.cross_entropy(network(x), y).item() for x, y in batches]
        assert finalist.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
