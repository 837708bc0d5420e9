"""What several processes decide together between two steps of a training: whether to save, and whether to stop."""

from __future__ import annotations

import time

import torch
from torch import distributed

from .. import signals

LOOK_SECONDS = 2.0
"""Time between two looks, which cost an exchange each; a signal has `signals.HOLD_SECONDS` until it ends a step."""
MOST_STEPS = 10


class Together:
    """Lets all processes do what one of them has a reason for.

    Each hears a signal, and sees its clock, at a step of its own; a checkpoint is of one step on all of them.

    Args:
        device: Of the tensors that they exchange.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._every = 1
        self._steps = 0
        self._looked = time.monotonic()

    def save(self, due: bool, *, now: bool = False) -> bool:
        """Return whether one is due on any process, and have all asked to stop where one is.

        All processes call it after every step. Most calls exchange nothing and return False.

        Args:
            due: Whether one is due here.
            now: Whether to exchange in any case.
        """
        self._steps += 1
        if self._steps < self._every and not now:
            return False
        seconds = (time.monotonic() - self._looked) / self._steps
        said = torch.tensor([due, signals.asked(), seconds], dtype=torch.float64, device=self.device)
        distributed.all_reduce(said, distributed.ReduceOp.MAX)
        anyone, number, seconds = said.tolist()
        self._every = max(1, min(MOST_STEPS, int(LOOK_SECONDS / max(seconds, 1e-9))))
        self._steps, self._looked = 0, time.monotonic()
        if number:
            signals.ask(int(number))
        return bool(anyone)
