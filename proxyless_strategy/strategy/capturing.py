"""When candidates of a search are captured: the setting, and the steps that it is for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn

from hardware.errors import ConfigError

from .loaders import SeededLoader
from .supernet.capture import Captures
from .supernet.gate import PathSelector
from .supernet.layers import BinaryGateCell, BinaryGateRepeat
from .supernet.recorders import CudaRecorder, Recorder

_logger = logging.getLogger(__name__)

Capture = bool | Literal["auto"] | Recorder
NO_GPU = "CUDA graphs need an NVIDIA GPU that trains, and this search has none"
SEVERAL = "candidates are captured in one process alone, and this search has {processes}"


def check(capture: object, *, name: str = "capture") -> None:
    """Refuse what is no setting, and what this machine can do for no search.

    Args:
        capture: The setting.
        name: What it is called where a user sets it.

    Raises:
        ConfigError: It is neither True, False, "auto" nor a recorder; or it is True and torch sees no GPU.
    """
    if not (isinstance(capture, (bool, Recorder)) or capture == "auto"):
        raise ConfigError(f"{name} = {capture!r}; it must be True, False, 'auto' or a recorder")
    if capture is True and not torch.cuda.is_available():
        raise ConfigError(f"{name} = True: {NO_GPU}; set it to 'auto', or leave it out")


class Capturing:
    """The captures of one search, from its start to its end.

    Args:
        capture: See `ProxylessStrategy`.

    Attributes:
        captures: What replays candidates; None where they run eagerly.
    """

    def __init__(self, capture: Capture):
        self._capture = capture
        self.captures: Captures | None = None

    def start(self, network: nn.Module, device: torch.device, processes: int) -> None:
        """Decide whether candidates are captured.

        Args:
            network: The supernet.
            device: Where the network trains.
            processes: How many train together.

        Raises:
            ConfigError: They must be, and cannot.
        """
        self.captures = None
        if self._capture is False:
            return
        wrong = None
        if processes > 1:
            wrong = SEVERAL.format(processes=processes)
        elif not isinstance(self._capture, Recorder) and device.type != "cuda":
            wrong = NO_GPU
        if wrong is None:
            recorder = self._capture if isinstance(self._capture, Recorder) else CudaRecorder(device)
            self.captures = Captures(recorder)
            for name, module in network.named_modules():
                if isinstance(module, (BinaryGateRepeat, BinaryGateCell)):
                    _logger.warning(
                        "the %s at %s is not captured: it runs eagerly, except for choices inside; leave capture out, "
                        "or make it a LayerChoice",
                        type(module).__name__.removeprefix("BinaryGate"),
                        name,
                    )
                    break
        elif self._capture == "auto":
            _logger.info("nothing is captured: %s", wrong)
        else:
            raise ConfigError(f"capture = {self._capture!r}: {wrong}; set it to 'auto', or leave it out")

    @contextmanager
    def of(self, selector: PathSelector, loader: SeededLoader | None, batch: Any) -> Iterator[None]:
        """Run a step on a batch by captured candidates.

        A last batch that is smaller runs eagerly: it comes once in an epoch, each time on another path. That goes by
        the batch alone, so that a search that is continued does the same as one that was not stopped.

        Args:
            selector: The supernet's.
            loader: Gave the batch; None where the caller made it.
            batch: The batch.
        """
        if self.captures is None or (loader is not None and not loader.is_full(batch)):
            yield
            return
        with self.captures.active(selector):
            yield

    def end(self) -> None:
        """Drop everything that was recorded, with its memory."""
        captures, self.captures = self.captures, None
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()  # a graph that still runs must not lose its memory
        if captures is not None:
            runs = captures.replayed + captures.eager
            _logger.info(
                "%d of %d runs of candidates were replays, of %d recordings", captures.replayed, runs, captures.recorded
            )
