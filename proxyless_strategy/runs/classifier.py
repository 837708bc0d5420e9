"""NNI's evaluator of an image classifier: what a search gives to the strategy beside the supernet."""

from __future__ import annotations

import math
from typing import Any

import torch
from nni.nas.evaluator.pytorch import Lightning, LightningModule, Trainer
from pytorch_lightning import Callback
from torch import Tensor, nn
from torch.nn import functional

from ..config import SearchConfig, SearchSettings
from ..data.images import ImageData
from ..world import current
from .checkpoints import SearchCheckpoints
from .layer_rates import layer_scales
from .placement import placed


def image_evaluator(
    config: SearchConfig, data: ImageData, log: Callback, checkpoints: SearchCheckpoints, *, decay: float | None = None
) -> Lightning:
    """Build NNI's evaluator: the classifier, its loaders of both parts, and a trainer that keeps `search.ckpt`.

    Args:
        config: The search.
        data: Its images.
        log: What keeps a row per epoch.
        checkpoints: What keeps `search.ckpt`.
        decay: See `layer_rates.layer_decay`.
    """
    settings = config.search
    places = placed(current())
    trainer = Trainer(
        max_epochs=settings.warmup_epochs + settings.epochs,
        accelerator=settings.accelerator,
        precision=settings.precision,
        callbacks=[log, checkpoints],
        plugins=[checkpoints.files, *places.pop("plugins")],
        **places,
        logger=False,
        enable_progress_bar=False,  # of an epoch; `progress.Told` shows the whole run
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    shared: dict[str, Any] = {
        "batch_size": settings.process_batch_size,
        "seed": config.seed,
        "workers": config.data.workers,
    }
    return Lightning(
        ImageClassifier(settings, decay=decay),
        trainer,
        train_dataloaders=data.loader("weights", shuffle=True, drop_last=True, **shared),
        val_dataloaders=data.loader("architecture", shuffle=True, **shared),
    )


class ImageClassifier(LightningModule):
    """Cross-entropy with SGD, a cosine over the warm-up and another over the search, as in the authors' released code.

    Label smoothing applies to weight steps only; architecture steps see plain cross-entropy.

    Args:
        settings: Learning rates, momentum, weight decay, label smoothing, epochs.
        decay: Factor of the learning rate from each layer to the one before it; None for one rate.
    """

    def __init__(self, settings: SearchSettings, *, decay: float | None = None):
        super().__init__()
        self.settings = settings
        self.decay = decay

    def forward(self, x: Tensor) -> Tensor:
        if self.settings.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return self.model(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = functional.cross_entropy(self(x), y, label_smoothing=self.settings.label_smoothing)
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def architecture_loss(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the plain cross-entropy."""
        x, y = batch
        return functional.cross_entropy(self(x), y)

    def architecture_accuracy(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the top-1 accuracy in 0..1."""
        x, y = batch
        return (self(x).argmax(-1) == y).float().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        output = self(x)
        self.log("val_loss", functional.cross_entropy(output, y), batch_size=len(y), sync_dist=True)
        self.log(
            "val_accuracy",
            (output.argmax(-1) == y).float().mean(),
            batch_size=len(y),
            prog_bar=True,
            sync_dist=True,
        )

    def configure_optimizers(self) -> Any:
        settings = self.settings
        optimizer = torch.optim.SGD(
            self.parameters() if self.decay is None else self._groups(self.decay),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            weight_decay=settings.weight_decay,
        )
        epochs = settings.warmup_epochs + settings.epochs
        # Optimiser steps of the whole search, whatever the number of processes.
        per_epoch = self.trainer.estimated_stepping_batches / epochs
        warmup = settings.warmup_epochs * per_epoch
        start = (settings.warmup_learning_rate or settings.learning_rate) / settings.learning_rate

        def factor(step: int) -> float:
            if step < warmup:
                return start * _cosine(step / warmup)
            return _cosine((step - warmup) / (settings.epochs * per_epoch))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _groups(self, decay: float) -> list[dict[str, Any]]:
        """Return the parameters of each layer with its rate, the first layer first."""
        groups: dict[float, list[nn.Parameter]] = {}
        scales = layer_scales(self.model, decay)
        for name, parameter in self.model.named_parameters():
            groups.setdefault(scales[name], []).append(parameter)
        rate = self.settings.learning_rate
        return [{"params": groups[scale], "lr": rate * scale} for scale in sorted(groups)]


def _cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
