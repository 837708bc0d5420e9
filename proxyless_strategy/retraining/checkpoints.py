"""When a training writes its checkpoint within an epoch, and the random numbers that it then goes on with."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import signals
from ..checkpoints import write_checkpoint
from ..strategy.together import Together


class TrainingCheckpoints:
    """Writes a training's checkpoint every so many minutes, and when a signal ends it.

    Args:
        path: The newest checkpoint's file.
        minutes: Time between two checkpoints.
        state: Returns what is to be written.
        writes: Whether this is the process that writes; all of them call all methods.
        together: How several processes agree; None for one.
    """

    def __init__(
        self,
        path: Path,
        *,
        minutes: float,
        state: Callable[[], dict[str, Any]],
        writes: bool = True,
        together: Together | None = None,
    ):
        self.path = path
        self.minutes = minutes
        self.state = state
        self.writes = writes
        self.together = together
        self._written = time.monotonic()

    def write(self) -> None:
        """Write one now."""
        state = self.state()
        if self.writes:
            write_checkpoint(self.path, state)
        self._written = time.monotonic()

    def after_update(self) -> None:
        """Write one where it is time to, and end here where a signal has asked for it."""
        due = time.monotonic() - self._written >= 60 * self.minutes
        if self.together is not None:
            due = self.together.save(due)
        signals.leave_if_asked(self.write)
        if due:
            self.write()

    def leave_if_asked(self) -> None:
        """End here, where one has just been written, if a signal has asked any process for it."""
        if self.together is not None:
            self.together.save(False, now=True)
        signals.leave_if_asked()


def random_state(device: torch.device) -> dict[str, Any]:
    """Return the state of every generator that a training draws from, in what a checkpoint may hold."""
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - timm's Mixup draws from the global generator
    return {
        "torch": torch.get_rng_state(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "python": random.getstate(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on from what `random_state` returned."""
    torch.set_rng_state(state["torch"].cpu())
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.cpu().numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(state["python"])
    if state["cuda"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)
