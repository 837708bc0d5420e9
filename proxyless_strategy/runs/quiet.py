"""What Lightning and NNI say that a user of a config cannot act on, left out while a search runs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

LOGGERS = ("pytorch_lightning", "lightning.pytorch", "pytorch_lightning.utilities.rank_zero")
HINTS = (
    ".*does not have many workers.*",  # `data.workers` is the user's choice, and the forecast says when it is too low
    ".*LeafSpec.*",  # torch deprecates what Lightning calls
    ".*isinstance\\(treespec.*",
    ".*Checkpoint directory.*exists and is not empty.*",  # a search that continues
    ".*is smaller than the logging interval.*",  # there is no logger
    ".*wrap PyTorch DataLoader with nni.trace.*",  # only needed where NNI sends the evaluator to another process
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Leave out Lightning's hints about loaders and checkpoints inside the context."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    try:
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            for message in HINTS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
