"""How right a network is on some images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional

from hardware.errors import DataError


class Evaluation(NamedTuple):
    """How right a network is on some images.

    Attributes:
        accuracy: Share of images that it classifies correctly, 0..1.
        loss: Mean cross-entropy, without label smoothing.
        top5: Share of images whose class is among the five most probable ones, 0..1.
    """

    accuracy: float
    loss: float
    top5: float


def evaluate(model: nn.Module, loader: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Evaluation:
    """Measure accuracy and mean cross-entropy of a network, in evaluation mode and float32.

    Args:
        model: The network; it is left in the mode in which it was.
        loader: Gives (`B x C x H x W` images, `B` class numbers).

    Raises:
        DataError: The loader gives no batch.
    """
    device = next(model.parameters()).device
    correct, within, loss, count = 0, 0, 0.0, 0
    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for images, labels in loader:
                labels = labels.to(device, non_blocking=True)
                logits = model(images.to(device, non_blocking=True)).float()
                correct += int((logits.argmax(dim=1) == labels).sum())
                best = logits.topk(min(5, logits.shape[1]), dim=1).indices
                within += int((best == labels[:, None]).sum())
                loss += float(functional.cross_entropy(logits, labels, reduction="sum"))
                count += len(labels)
    finally:
        model.train(was_training)
    if not count:
        raise DataError("there are no images to evaluate on; give a loader with at least one batch")
    return Evaluation(correct / count, loss / count, within / count)
