"""Losses that are not finite or beyond all use: the first, and whether input, learning rate or loss function did it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hardware.errors import TrainingError

GROWTH = 10.0
"""Weights whose largest magnitude has grown by this factor have diverged: batch norms and decay keep it within a few
times of where it started."""
DIVERGED = 1e6
"""A loss of so many times the first one (or 1, where that is less) is as useless as one that is not finite. In 64 bits
a training can diverge for days before its loss overflows."""
_EPOCH = 2**32
_RATE = "the weights' learning rate (search.learning_rate)"


@dataclass(frozen=True)
class BadLoss:
    """The first step whose loss was not finite, or was beyond all use.

    Attributes:
        epoch: Its epoch, from 0.
        batch: The number of its batch in that epoch, from 0.
        loss: Its loss.
        input_is_finite: Whether every number of its batch was.
        largest_weight: Largest magnitude among the weights that it ran, before its update.
        largest_at_start: The same in the first step that was looked at.
    """

    epoch: int
    batch: int
    loss: float
    input_is_finite: bool
    largest_weight: float
    largest_at_start: float

    def sentence(self, *, learning_rate: str = "the learning rate") -> str:
        """Return what happened and whom to blame; `learning_rate` names the setting."""
        found = f"the training loss became {self.loss:g} in epoch {self.epoch + 1}, batch {self.batch + 1}"
        blamed = blame(
            input_is_finite=self.input_is_finite,
            largest_weight=self.largest_weight,
            largest_at_start=self.largest_at_start,
            learning_rate=learning_rate,
        )
        return f"{found}: {blamed}"


def blame(
    *, input_is_finite: bool, largest_weight: float, largest_at_start: float, learning_rate: str = "the learning rate"
) -> str:
    """Return who is to blame for a loss that is not finite, and the remedy.

    Args:
        input_is_finite: Whether every number of the batch is.
        largest_weight: Largest magnitude among the weights, before the step's update.
        largest_at_start: The same at the start.
        learning_rate: What the setting is called.
    """
    if not input_is_finite:
        return "its input holds values that are not finite; mend these images, or the transform that makes them"
    if not math.isfinite(largest_weight):
        return f"its input is finite but the weights no longer are; lower {learning_rate}"
    if largest_weight > GROWTH * max(1.0, largest_at_start):
        return (
            f"its input is finite, but the largest weight has grown from {largest_at_start:.3g} to "
            f"{largest_weight:.3g}; lower {learning_rate}"
        )
    return (
        f"input and weights are finite (the largest weight is {largest_weight:.3g}), so that the loss function or the "
        f"network gave it; guard its logarithms, roots and divisions, try precision 32-true, or lower {learning_rate}"
    )


def floating(batch: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors of a batch, however it is nested."""
    if isinstance(batch, Tensor):
        if batch.is_floating_point():
            yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from floating(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from floating(value)


def input_sum(batch: Any, device: torch.device) -> Tensor:
    """Return a number that is finite only if every number of a batch is, without waiting for the device.

    A sum reads each number once and keeps nothing; finite numbers overflow it only where they are of no use either.
    """
    sums = [tensor.detach().sum(dtype=torch.float32) for tensor in floating(batch)]
    return torch.stack([value.to(device) for value in sums]).sum() if sums else torch.zeros((), device=device)


def is_finite(batch: Any) -> bool:
    """Return whether every number of a batch is finite."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in floating(batch))


def asks_for_free(device: torch.device) -> bool:
    """Return whether a number can be had from a device without waiting for it."""
    return device.type == "cpu"


def largest(weights: Iterable[Tensor], device: torch.device) -> Tensor:
    """Return the largest magnitude among weights, NaN where one is, without waiting for the device."""
    found = [weight.detach() for weight in weights if weight.numel()]
    if not found:
        return torch.zeros((), device=device)
    # One kernel for many tensors; a loop over hundreds of them would cost more than it tells.
    return torch.stack([value.float() for value in torch._foreach_norm(found, math.inf)]).max()


class FirstBadLoss:
    """Remembers the first step whose loss was not finite, on the device.

    To ask after each step whether its loss is finite would wait for a GPU in every step. So the answer stays there as
    the number of the first bad step, and `found` fetches it now and then.
    """

    def __init__(self) -> None:
        self._where: Tensor | None = None  # epoch * _EPOCH + batch of the first bad step; -1: none yet
        self._facts: Tensor | None = None  # its loss, sum of its input, largest weight; and the largest at the start
        self._most: Tensor | None = None  # greatest loss of a training that has not diverged, 64 bits

    def note(self, epoch: int, batch_idx: int, *, loss: Tensor, batch: Any, weights: Iterable[Tensor]) -> None:
        """Note one step, after its backward pass and before its update.

        Args:
            epoch: From 0.
            batch_idx: From 0.
            loss: Its loss, a scalar.
            batch: What it ran on.
            weights: The weights that it ran.
        """
        device = loss.device
        size = loss.detach().abs().reshape(())
        size = size if size.dtype == torch.float64 else size.float()
        if self._most is None or self._most.device != device:
            self._most = DIVERGED * size.clamp(min=1.0)
        sound = torch.isfinite(size) & (size <= self._most)
        if asks_for_free(device) and self._where is not None and bool(sound):
            return  # and spare the sums below
        weight = largest(weights, device)
        now = torch.stack([loss.detach().float().reshape(()), input_sum(batch, device), weight])
        if self._where is None or self._facts is None or self._where.device != device:
            self._where = torch.full((), -1, dtype=torch.int64, device=device)
            self._facts = torch.cat([torch.zeros(3, device=device), weight.reshape(1)])
        first = (self._where < 0) & ~sound
        self._where = torch.where(first, epoch * _EPOCH + batch_idx, self._where)
        self._facts = torch.cat([torch.where(first, now, self._facts[:3]), self._facts[3:]])

    def found(self) -> BadLoss | None:
        """Return the first bad step; this waits for the device."""
        if self._where is None or self._facts is None:
            return None
        where = int(self._where)
        if where < 0:
            return None
        loss, total, weight, start = self._facts.tolist()
        return BadLoss(where // _EPOCH, where % _EPOCH, loss, math.isfinite(total), weight, start)

    def blame_now(self, batch: Any, network: nn.Module) -> str:
        """Return who is to blame for a bad loss of this batch under the network's present weights."""
        device = torch.device("cpu") if self._facts is None else self._facts.device
        found = float(largest(network.parameters(), device))
        return blame(
            input_is_finite=is_finite(batch),
            largest_weight=found,
            largest_at_start=found if self._facts is None else float(self._facts[3]),
            learning_rate=_RATE,
        )

    def refuse(self, trainer: Any) -> None:
        """Stop a training whose loss was not finite.

        Args:
            trainer: Lightning's, which knows the last checkpoint.

        Raises:
            TrainingError: It was not.
        """
        found = self.found()
        if found is not None:
            raise stopped(found.sentence(learning_rate=_RATE), trainer)

    def refuse_together(self, trainer: Any, reduce: Callable[[Tensor], Tensor]) -> None:
        """Do so on all processes where one of them has seen such a loss: one alone would leave the others waiting.

        Args:
            trainer: Lightning's.
            reduce: Averages a tensor over all processes.

        Raises:
            TrainingError: The loss of one was not finite.
        """
        if trainer.world_size > 1:
            bad = torch.zeros(()) if self._where is None else (self._where >= 0).float()
            if float(reduce(bad)) > 0 and self.found() is None:
                raise stopped("the training loss of another process is no longer finite, as its message says", trainer)
        self.refuse(trainer)


def stopped(sentence: str, trainer: Any) -> TrainingError:
    """Return the error that ends a search, with the checkpoint to go on from."""
    path = last_checkpoint(trainer)
    last = "no checkpoint was written before" if path is None else f"the last good checkpoint is {path}"
    return TrainingError(f"{sentence}; {last}")


def last_checkpoint(trainer: Any) -> Path | None:
    """Return the newest checkpoint that a Lightning trainer's callbacks have written; None where there is none."""
    names = ("last_model_path", "best_model_path", "path")
    paths = [getattr(callback, name, None) for callback in trainer.checkpoint_callbacks for name in names]
    written = [Path(path) for path in paths if path and Path(path).is_file()]
    return max(written, key=lambda path: path.stat().st_mtime, default=None)
