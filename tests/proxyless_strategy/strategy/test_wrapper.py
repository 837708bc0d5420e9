"""The evaluator's module under a search: what it validates, and which of its hooks run."""

from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from tests.proxyless_strategy import tiny
from tests.proxyless_strategy.tiny import RULES


class Watch(Callback):
    """Records the supernet around validation."""

    def __init__(self):
        self.before, self.changed, self.models = None, [], []

    def on_validation_start(self, trainer, pl_module):
        self.before = {k: v.clone() for k, v in pl_module.state_dict().items()}

    def on_validation_batch_end(self, trainer, pl_module, *rest):
        self.models.append(type(pl_module.training_module.model.layers[0]).__name__)

    def on_validation_end(self, trainer, pl_module):
        after = pl_module.state_dict()
        assert set(after) == set(self.before)
        self.changed += [k for k in after if not torch.equal(after[k], self.before[k])]


@pytest.mark.parametrize("rule", RULES)
def test_validation_sees_the_derived_subnet_and_leaves_the_supernet_as_it_is(rule):
    watch = Watch()
    strategy = tiny.searched(rule=rule, callbacks=[watch])
    assert watch.changed == []
    assert set(watch.models) == {"Conv"}
    assert {"val_loss", "val_acc"} <= set(strategy.searched.trainer.callback_metrics)


def test_early_stopping_and_monitored_checkpoints(tmp_path):
    best = ModelCheckpoint(dirpath=tmp_path, monitor="val_loss", filename="best")
    stop = EarlyStopping("val_loss", patience=0, min_delta=1e9)
    strategy = tiny.searched(callbacks=[best, stop], epochs=6)
    assert strategy.searched.trainer.current_epoch < 5
    assert Path(best.best_model_path).exists()
