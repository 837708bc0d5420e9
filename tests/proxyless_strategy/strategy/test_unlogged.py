"""What a search runs on validation batches leaves no trace in logs and metrics."""

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
