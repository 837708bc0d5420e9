"""Early stopping: the best epoch of a training, by images that it does not train on."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import distributed, nn

from hardware.errors import TrainingError

from ..data.images import ImageData
from .evaluation import evaluate

BATCH = 256


class EarlyStopping:
    """Looks at the loss on the architecture part after every epoch, and keeps the weights of the best one.

    Args:
        patience: Epochs without a better loss after which it is `over`.
        data: Images; of which the training leaves out the architecture part.
        rank: Number of this process; the first one looks, and all hear what it saw.
        replicas: Number of processes.
    """

    def __init__(self, patience: int, data: ImageData, *, rank: int, replicas: int):
        self.patience = patience
        self.data = data
        self.rank = rank
        self.replicas = replicas
        self.loss = math.inf
        self.best_epoch = 0
        self.weights: dict[str, Any] | None = None
        self._latest = 0

    @property
    def over(self) -> bool:
        """Whether so many epochs have passed since the best one."""
        return self._latest - self.best_epoch >= self.patience

    def look(self, network: nn.Module, epoch: int) -> float:
        """Return the loss of the network after an epoch (1, 2, ...); its weights are copied where it is the least.

        All processes must call it.
        """
        loss = evaluate(network, self.data.loader("architecture", batch_size=BATCH)).loss if self.rank == 0 else 0.0
        if self.replicas > 1:
            heard = torch.tensor(loss, dtype=torch.float64, device=next(network.parameters()).device)
            distributed.broadcast(heard, src=0)
            loss = float(heard)
        self._latest = epoch
        if loss < self.loss:
            self.loss, self.best_epoch = loss, epoch
            self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
        return loss

    def restore(self, network: nn.Module) -> None:
        """Give a network the weights of the best epoch.

        Raises:
            TrainingError: No epoch had a finite loss.
        """
        if self.weights is None:
            raise TrainingError(
                f"the loss on the architecture part was finite after none of {self._latest} epochs, so that there is "
                "no best one; lower retrain.learning_rate"
            )
        network.load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` goes on from."""
        names = ("loss", "best_epoch", "weights", "_latest")
        return {name.removeprefix("_"): getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.loss, self.best_epoch = float(state["loss"]), int(state["best_epoch"])
        self.weights, self._latest = state["weights"], int(state["latest"])
