"""Where a search is: its phases with what the forecast says of them, and the place that its training has come to."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback

from ..config import SearchConfig
from ..progress import Phase, Told
from .forecast import Forecast
from .playoff import PHASE, epochs_at_most

EXPORT_SECONDS = 15.0
"""Of what follows the last epoch: test, export, ONNX file and its latency, for a network of a few M parameters."""
ACCURACY = (
    "accuracy while searching is the likeliest subnet's, on architecture images, with the weights that all subnets "
    "share: 30 % is usual where "
)
RETRAINED = f"{ACCURACY}the retrained network reaches 99 %, whose own is measured once, on the test images"
NOT_RETRAINED = f"{ACCURACY}a network of its own weights reaches 99 %; `proxyless retrain` trains them"


def phases(config: SearchConfig, forecast: Forecast | None = None, *, searched: bool = False) -> list[Phase]:
    """Return what a run is to do.

    Args:
        config: The search.
        forecast: What an epoch of each phase is predicted to take.
        searched: Whether only the retraining is left.
    """
    seconds = {} if forecast is None else forecast.epoch_seconds
    warmup, epochs = config.search.warmup_epochs, config.search.epochs
    found = []
    if not searched:
        found = [
            Phase("warmup", warmup, seconds.get("warmup"), after=epochs),
            Phase("search", epochs, seconds.get("search"), before=warmup),
        ]
        found.append(Phase(PHASE, epochs_at_most(config), seconds.get(PHASE)))
    if config.retrain is not None:
        found.append(Phase("retrain", config.retrain.epochs, seconds.get("retrain")))
    return [phase for phase in found if phase.epochs]


class Places(Callback):
    """Tells how far the supernet's training has come.

    Args:
        told: Shows it.
        warmup_epochs: Epochs of the warm-up.
    """

    def __init__(self, told: Told, *, warmup_epochs: int):
        self.told = told
        self.warmup_epochs = warmup_epochs

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        place = trainer.current_epoch + batch_idx / trainer.num_training_batches
        warming = trainer.current_epoch < self.warmup_epochs
        self.told.at("warmup" if warming else "search", place if warming else place - self.warmup_epochs)
