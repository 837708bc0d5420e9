"""Learning-rate schedulers of every kind and form."""

from types import SimpleNamespace

import pytest
import torch

from hardware.errors import ConfigError
from proxyless_strategy.strategy.schedulers import Schedulers
from tests.proxyless_strategy import tiny
from tests.proxyless_strategy.tiny import STEPS


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


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)


def trainer(*configs, **metrics):
    return SimpleNamespace(lr_scheduler_configs=configs, callback_metrics=metrics)


def config(scheduler, interval="epoch", frequency=1):
    return SimpleNamespace(scheduler=scheduler, interval=interval, frequency=frequency)


def test_each_form_of_a_configuration_loses_what_lightning_would_warn_of():
    first = optimizer()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(first)
    settings = {"scheduler": scheduler, "monitor": "val_loss", "strict": False, "frequency": 2}
    kept = {"scheduler": scheduler, "frequency": 2}
    schedulers = Schedulers()
    assert schedulers.adopt(first) is first
    assert schedulers.adopt({"optimizer": first, "lr_scheduler": settings}) == {
        "optimizer": first,
        "lr_scheduler": kept,
    }
    whole = {"optimizer": first, "lr_scheduler": scheduler, "monitor": "val_loss"}
    assert schedulers.adopt(whole) == {"optimizer": first, "lr_scheduler": {"scheduler": scheduler}}
    assert schedulers.adopt(([first], [settings])) == ([first], [kept])
    assert schedulers.adopt([{"optimizer": first, "lr_scheduler": settings}]) == [
        {"optimizer": first, "lr_scheduler": kept}
    ]


def test_a_plateau_without_a_metric_to_watch_is_refused():
    first = optimizer()
    with pytest.raises(ConfigError, match="needs a metric to watch"):
        Schedulers().adopt(([first], [torch.optim.lr_scheduler.ReduceLROnPlateau(first)]))


@pytest.mark.parametrize("strict", [True, False])
def test_a_plateau_steps_on_what_it_watches(strict):
    first, stepped = optimizer(), []
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(first)
    schedulers = Schedulers()
    schedulers.adopt(([first], [{"scheduler": scheduler, "monitor": "val_loss", "strict": strict}]))
    schedulers.advance(trainer(config(scheduler), val_loss=0.5), "epoch", 1, lambda s, metric: stepped.append(metric))
    assert stepped == [0.5]
    if strict:
        with pytest.raises(ConfigError, match=r"'val_loss', which was not logged.*val_acc"):
            schedulers.advance(trainer(config(scheduler), val_acc=0.5), "epoch", 2, lambda s, metric: None)
    else:
        schedulers.advance(trainer(config(scheduler)), "epoch", 2, lambda s, metric: stepped.append(metric))
        assert stepped == [0.5]


def test_interval_and_frequency_decide_when_a_scheduler_steps():
    stepped = []
    found = trainer(config("each", "step"), config("third", "step", 3), config("epoch", "epoch"))
    for done in range(1, 7):
        Schedulers().advance(found, "step", done, lambda scheduler, metric: stepped.append(scheduler))
    assert stepped.count("each") == 6
    assert stepped.count("third") == 2
    assert "epoch" not in stepped
