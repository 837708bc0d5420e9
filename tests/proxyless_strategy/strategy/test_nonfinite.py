"""Losses that are not finite: a search stops at the first one, and says what is to blame."""

import copy
import math

import pytest
import torch
from nni.nas.evaluator.pytorch import DataLoader
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import TensorDataset

from hardware.errors import TrainingError
from proxyless_strategy.strategy import nonfinite
from proxyless_strategy.strategy.nonfinite import FirstBadLoss, blame, input_sum, is_finite, largest
from tests.proxyless_strategy import tiny
from tests.proxyless_strategy.tiny import RULES, STEPS


class Fast(tiny.Module):
    """A learning rate that no network survives."""

    rate = 1e6

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


class Logarithm(tiny.Module):
    """A loss that is no number at one step, whatever the network says."""

    def __init__(self, bad=STEPS + 3):
        super().__init__()
        self.bad, self.count = bad, 0

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.count += 1
        return loss + torch.log(torch.tensor(-1.0)) if self.count == self.bad else loss

    def architecture_loss(self, batch, batch_idx):
        return super().training_step(batch, batch_idx)


def search(module=None, *, train=None, validation=None, **options):
    options.setdefault("epochs", 4)
    made = tiny.evaluator(module=module, epochs=options.pop("epochs"), callbacks=options.pop("callbacks", ()))
    if train is not None:
        made.train_dataloaders = DataLoader(train, batch_size=16)
    if validation is not None:
        made.val_dataloaders = DataLoader(validation, batch_size=16)
    options = {"cost": tiny.costs(), "target": 8.0, "warmup_epochs": 1, "steps_per_update": 2, "samples": 3, **options}
    torch.manual_seed(0)
    strategy = tiny.ProxylessStrategy(**options)
    strategy.search(tiny.TinySpace(), made)
    return strategy


def with_bad_pixel(data, image, value=math.nan):
    x, y = (tensor.clone() for tensor in data.tensors)
    x[image, 0, 0, 0] = value
    return TensorDataset(x, y)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("norm", [True, False])
def test_a_rate_that_is_too_high_is_blamed(rule, norm):
    made = tiny.evaluator(module=Fast(), epochs=4)
    strategy = tiny.ProxylessStrategy(rule=rule, steps_per_update=2)
    torch.manual_seed(0)
    with pytest.raises(
        TrainingError, match=r"became .* (no longer are|has grown from .*); lower the weights' learning rate"
    ):
        strategy.search(tiny.TinySpace(norm=norm), made)
    assert strategy.searched.finalists == []


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_bad_pixel_of_the_training_images_is_blamed_at_its_batch(rule, value):
    data = with_bad_pixel(tiny.data(), 16 * 4 + 3, value)
    made = tiny.evaluator(epochs=4)
    made.train_dataloaders = DataLoader(data, batch_size=16)  # in order: the fifth batch of the first epoch
    strategy = tiny.ProxylessStrategy(rule=rule, steps_per_update=2)
    with pytest.raises(TrainingError, match=r"became nan in epoch 1, batch 5: its input holds .* mend these images"):
        strategy.search(tiny.TinySpace(), made)


@pytest.mark.parametrize("rule", RULES)
def test_a_bad_pixel_of_the_validation_images_is_blamed(rule):
    class Loss(tiny.Module):
        def architecture_accuracy(self, batch, batch_idx):
            return torch.exp(-nn.functional.cross_entropy(self(batch[0]), batch[1]))

    data = with_bad_pixel(tiny.data(64, seed=1), 16)
    with pytest.raises(TrainingError, match=r"of architecture step 2 became nan: its input holds values .* mend"):
        search(Loss(), rule=rule, validation=data)


@pytest.mark.parametrize("rule", RULES)
def test_a_loss_function_is_blamed_and_the_last_good_checkpoint_named(rule, tmp_path):
    save = ModelCheckpoint(dirpath=tmp_path, filename="good", every_n_train_steps=1, save_last=True)
    with pytest.raises(TrainingError) as caught:
        search(Logarithm(), rule=rule, callbacks=[save])
    said = str(caught.value)
    assert "became nan in epoch 2, batch 3: input and weights are finite" in said
    assert "the loss function or the network gave it" in said
    assert said.endswith(".ckpt")
    assert "\n" not in said
    path = said.rsplit(" ", 1)[1]
    state = torch.load(path, weights_only=False)
    assert state["global_step"] == STEPS + 2
    values = [value for value in state["state_dict"].values() if value.is_floating_point()]
    assert all(bool(torch.isfinite(value).all()) for value in values)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bad", [3, 2 * STEPS + 3])
def test_where_looking_waits_for_the_device_the_exact_step_is_still_named(bad, rule, monkeypatch, tmp_path):
    """As on a GPU: looked at each so many steps, in architecture steps and at an epoch's end; nothing bad is saved."""
    monkeypatch.setattr(nonfinite, "asks_for_free", lambda device: False)
    save = ModelCheckpoint(dirpath=tmp_path, every_n_epochs=1, save_last=True)
    module = Logarithm(bad)
    with pytest.raises(TrainingError, match=f"in epoch {1 + bad // STEPS}, batch 3: input and weights are finite"):
        search(module, rule=rule, callbacks=[save])
    assert bad < module.count <= (1 + bad // STEPS) * STEPS, "noticed later, but in the same epoch"
    for path in tmp_path.glob("*.ckpt"):
        values = torch.load(path, weights_only=False)["state_dict"].values()
        assert all(bool(torch.isfinite(value).all()) for value in values)


def test_noting_steps_changes_nothing(monkeypatch):
    noted = tiny.final_state(tiny.searched())
    monkeypatch.setattr(FirstBadLoss, "note", lambda *args, **options: None)
    tiny.assert_equal_states(noted, tiny.final_state(tiny.searched()))


def noting(monkeypatch, *steps):
    first = FirstBadLoss()
    for batch, (loss, x, weight) in enumerate(steps):
        given = {"batch": {"x": [torch.tensor([x]), torch.tensor([3])]}, "weights": [torch.tensor([1.0, weight])]}
        first.note(2, batch, loss=torch.tensor(loss), **given)
    return first.found()


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ((math.nan, math.nan, 2.0), "its input holds values"),
        ((math.nan, 1.0, math.nan), "weights no longer are; lower"),
        ((math.inf, 1.0, -1e5), "grown from 2 to 1e.05; lower"),
        ((math.nan, 1.0, 3.0), "the loss function or the network"),
    ],
)
def test_the_first_bad_step_is_kept_with_what_was_known_then(step, words, monkeypatch):
    found = noting(monkeypatch, (1.0, 1.0, 2.0), (0.5, 1.0, 2.0), step, (math.nan, math.nan, math.nan))
    assert (found.epoch, found.batch, found.largest_at_start) == (2, 2, 2.0)
    assert words.split("1e.05")[0] in found.sentence()


def test_as_long_as_losses_are_finite_nothing_is_found(monkeypatch):
    assert FirstBadLoss().found() is None
    assert noting(monkeypatch, (1.0, 1.0, 2.0), (0.5, math.nan, 2.0)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("losses", "bad"),
    [((2.3, 2e6), None), ((2.3, 2.4e6), 1), ((0.01, 0.9e6), None), ((0.01, -1.1e6), 1), ((1e4, 9e9, 2e10), 2)],
)
def test_a_loss_that_has_left_all_bounds_is_found_though_it_is_finite(losses, bad, dtype):
    first = FirstBadLoss()
    for step, loss in enumerate(losses):
        first.note(
            0, step, loss=torch.tensor(loss, dtype=dtype), batch=torch.ones(2), weights=[torch.ones(2) * 10**step]
        )
    found = first.found()
    assert (None if found is None else found.batch) == bad


def test_every_number_of_a_batch_is_looked_at():
    good = {"a": torch.ones(2, 3), "b": (torch.tensor([1]), [torch.zeros(0), "name", None])}
    host = torch.device("cpu")
    assert is_finite(good)
    assert bool(torch.isfinite(input_sum(good, host)))
    for value in (math.nan, math.inf, -math.inf):
        bad = copy.deepcopy(good)
        bad["a"][1, 2] = value
        assert not is_finite(bad)
        assert not bool(torch.isfinite(input_sum(bad, host)))
    opposite = [torch.tensor([math.inf, -math.inf])]
    assert not bool(torch.isfinite(input_sum(opposite, host)))
    assert float(input_sum([torch.full((4,), 6e4, dtype=torch.float16)], host)) == 4 * float(torch.tensor(6e4).half())


def test_the_largest_weight_is_no_number_where_one_is_not():
    host = torch.device("cpu")
    weights = [torch.tensor([1.0, -7.0]), torch.zeros(0), torch.tensor(3.0, dtype=torch.float16)]
    assert largest(weights, host) == 7.0
    assert math.isnan(float(largest([*weights, torch.tensor([0.0, math.nan])], host)))
    assert largest([], host) == 0.0


def test_weights_that_grew_as_in_any_training_are_not_blamed():
    for start, end in ((0.2, 5.0), (3.0, 12.0)):
        assert "loss function" in blame(input_is_finite=True, largest_weight=end, largest_at_start=start)
