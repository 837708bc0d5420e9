"""Batch-norm statistics of one subnet, estimated anew.

The supernet's running statistics mix all paths that have run, so that they fit no single subnet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hardware.errors import ConfigError

from ..seeds import isolated_seed

STREAM = 2
"""Number of the seed stream of calibration batches; it must differ from every other stream of a search."""


def tracked_norms(network: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms that keep running statistics."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]


def recalibrate(
    network: nn.Module, batches: Iterable[Any], run: Callable[[Any], Any], *, count: int, seed: int
) -> None:
    """Replace a network's running statistics by those of some training batches.

    Args:
        network: Left in evaluation mode but for its batch norms.
        batches: Training batches.
        run: Runs the network on one of them.
        count: How many are used.
        seed: Seed of what draws random numbers while a batch is made.
    """
    norms = tracked_norms(network)
    network.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch then averages over all batches equally, in whatever number they come
        norm.train()
    with torch.no_grad(), isolated_seed(seed):
        for done, batch in enumerate(batches, start=1):
            run(batch)
            if done >= count:
                break
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def average_statistics(network: nn.Module, reduce: Callable[[Tensor], Tensor]) -> None:
    """Average running statistics over processes, each of which has seen other batches.

    Args:
        network: Has the same batch norms on every process.
        reduce: Averages a tensor over all processes.
    """
    for norm in tracked_norms(network):
        for statistic in cast("list[Tensor]", [norm.running_mean, norm.running_var]):
            statistic.copy_(reduce(statistic))


def first_of_batch(batch: Any) -> Any:
    """Return the network's input: the batch itself, or its first item.

    Raises:
        ConfigError: The batch is a mapping or something else; then `inputs` must be given to the strategy.
    """
    if isinstance(batch, Tensor):
        return batch
    if isinstance(batch, (tuple, list)) and batch:
        return batch[0]
    raise ConfigError(
        f"batches are {type(batch).__name__}; tell ProxylessStrategy how to get the network's input from one by "
        "inputs=lambda batch: ..."
    )
