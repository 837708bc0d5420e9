"""What a search runs on validation batches leaves no trace in logs and metrics."""

import contextlib

import pytest
import torch
import torchmetrics

from proxyless_strategy.strategy.unlogged import unlogged
from tests.proxyless_strategy import tiny
from tests.proxyless_strategy.tiny import STEPS


def test_logged_training_loss_is_of_training_batches_alone():
    class Counting(tiny.Module):
        logged = 0

        def training_step(self, batch, batch_idx):
            self.log("step_sum", 1.0, on_step=False, on_epoch=True, reduce_fx="sum")
            return super().training_step(batch, batch_idx)

    strategy = tiny.searched(module=Counting())
    assert strategy.searched.trainer.callback_metrics["step_sum"] == STEPS


class Logging(torch.nn.Module):
    """Logs, and has a metric with a state."""

    def __init__(self):
        super().__init__()
        self.metric = torchmetrics.MeanMetric()
        self.logged = []

    def log(self, name, value):
        self.logged.append((name, value))


@pytest.mark.parametrize("fails", [True, False])
def test_nothing_inside_is_logged_or_counted(fails):
    module = Logging()
    module.metric.update(1.0)
    with contextlib.suppress(ZeroDivisionError), unlogged(module):
        module.log("inside", 1)
        module.metric.update(100.0)
        module.metric.compute()
        if fails:
            raise ZeroDivisionError
    module.log("outside", 2)
    module.metric.update(3.0)
    assert module.logged == [("outside", 2)]
    assert module.metric.compute() == 2.0
