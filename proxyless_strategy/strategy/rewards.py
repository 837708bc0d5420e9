"""The reward's accuracy where a module defines none of its own, and the task that it holds for."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hardware.errors import ConfigError

_REMEDY = (
    "define architecture_accuracy(batch, batch_idx) in the evaluator's module, which returns 0..1, or set "
    "rule='gradient'"
)


def labels_of(batch: Any) -> Tensor:
    """Return the class numbers of a batch `(x, y)`.

    Raises:
        ConfigError: The batch has another form, or y are no class numbers.
    """
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2 and isinstance(batch[1], Tensor)):
        raise ConfigError(f"REINFORCE needs an accuracy, but batches are {type(batch).__name__}, not (x, y); {_REMEDY}")
    y = batch[1]
    if y.dim() != 1 or y.is_floating_point() or y.is_complex():
        raise ConfigError(
            f"REINFORCE needs an accuracy, and its default is that of class numbers of shape (B,), but the labels are "
            f"{_described(y)} (a regression, several labels an image, or soft labels); {_REMEDY}"
        )
    return y


def right_argmax(logits: Any, y: Tensor) -> Tensor:
    """Return the share of images whose greatest logit is that of their class, a scalar.

    Args:
        logits: What the network returned; the accuracy is defined for `B x C`, `C > 1`, alone.
        y: `B` class numbers.

    Raises:
        ConfigError: The network's output is something else: argmax would find a constant, or compare other things.
    """
    fits = isinstance(logits, Tensor) and logits.is_floating_point() and logits.dim() == 2 and logits.shape[1] > 1
    if not fits or logits.shape[0] != y.shape[0]:
        raise ConfigError(
            f"REINFORCE needs an accuracy, and its default is that of logits of shape (B, C) with C > 1, but for "
            f"{len(y)} labels the network returns {_described(logits)}; {_REMEDY}"
        )
    return (logits.argmax(-1) == y).float().mean()


def checked_scalar(value: Any, *, what: str, method: str) -> Tensor:
    """Return what a step of the evaluator's module gave, if it is one number.

    Args:
        value: What it gave.
        what: What it stands for.
        method: The method that may be defined to give it.

    Raises:
        ConfigError: It is something else.
    """
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise ConfigError(
            f"{what} must be a scalar tensor, but is {_described(value)}; define {method}(batch, batch_idx) in the "
            "evaluator's module so that it returns one"
        )
    return value.reshape(())


def _described(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
