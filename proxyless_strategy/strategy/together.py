"""What several processes decide together between two steps of a training: whether to save, and whether to stop."""

from __future__ import annotations

import io
import time
from typing import Any

import torch
from torch import distributed

from .. import signals

LOOK_SECONDS = 2.0
"""Time between two looks, which cost an exchange each; a signal has `signals.HOLD_SECONDS` until it ends a step."""
MOST_STEPS = 10


def gathered(value: Any, device: torch.device) -> list[Any]:
    """Return what each process has, in plain types and tensors; torch's own way runs whatever code it is sent.

    Args:
        value: This process's.
        device: Of the tensors that they exchange.
    """
    buffer = io.BytesIO()
    torch.save(value, buffer)
    mine = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8).to(device)
    lengths = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(distributed.get_world_size())]
    distributed.all_gather(lengths, torch.tensor([len(mine)], device=device))
    padded = torch.zeros(max(int(length) for length in lengths), dtype=torch.uint8, device=device)
    padded[: len(mine)] = mine
    received = [torch.zeros_like(padded) for _ in lengths]
    distributed.all_gather(received, padded)
    return [
        torch.load(io.BytesIO(found[: int(length)].cpu().numpy().tobytes()), weights_only=True)
        for found, length in zip(received, lengths, strict=True)
    ]


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
