"""Finalists: the most probable subnets of a search, ranked by their loss with the supernet's weights."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hardware.errors import DataError

from .derivation import Derived

_logger = logging.getLogger(__name__)
STREAM = 3
"""Number of the seed stream in which finalists are compared; it must differ from every other stream of a search."""
BATCHES = 32
"""Validation batches that finalists are compared on."""
Judge = Callable[[Mapping[str, Any], nn.Module], float]
"""From NNI's sample of a finalist and its network to a loss."""


@dataclass(frozen=True)
class Finalist:
    """One of the most probable subnets of a search.

    Attributes:
        derived: The subnet.
        loss: Its mean loss on validation batches with the supernet's weights; NaN where it was not compared.
    """

    derived: Derived
    loss: float


@dataclass(frozen=True)
class Contest:
    """How a search's best finalist stands against a subnet that a cheaper way has found, under the same weights.

    Attributes:
        own: Least loss of the search's own finalists.
        contender: Loss of the other subnet.
        how: Under which weights both are.
    """

    own: float
    contender: float
    how: str = "with the supernet's weights and batch statistics of their own"

    @property
    def is_won(self) -> bool:
        """Whether the search's own is the better: as good, or the very same subnet, is not enough."""
        return self.own < self.contender


def contest(found: Sequence[Derived], losses: Sequence[float], own: int, contender: Derived) -> Contest:
    """Hold the first `own` subnets against the contender, which is among all of them; NaN counts as infinite."""
    finite = [loss if math.isfinite(loss) else math.inf for loss in losses]
    return Contest(min(finite[:own]), finite[[d.choice for d in found].index(contender.choice)])


def mean_losses(found: Sequence[Derived], batches: Iterable[Any], loss: Callable[[Derived, Any, int], float]) -> Tensor:
    """Return the mean loss of each subnet, float64 on the host, one per subnet.

    All subnets see the same batches: what makes a batch hard is then no part of their differences.

    Args:
        found: The subnets.
        batches: Validation batches, of which `BATCHES` are used, and not the last (see `but_last`).
        loss: From a subnet, a batch and its number to the mean loss over the batch.

    Raises:
        DataError: There is no batch.
    """
    sums = torch.zeros(len(found), dtype=torch.float64)
    # One batch more than is used, so that the last of a longer loader, a whole one, is not left out for nothing.
    for count, batch in enumerate(but_last(itertools.islice(batches, BATCHES + 1)), start=1):
        for index, derived in enumerate(found):
            sums[index] += loss(derived, batch, count - 1)
    return sums / count


def ranked(found: Sequence[Derived], losses: Sequence[float]) -> list[Finalist]:
    """Return the finalists, the least loss first.

    A loss that is not finite ranks last; on a tie the more probable subnet is first.

    Args:
        found: The subnets, the most probable first.
        losses: The loss of each, NaN where it was not compared.
    """
    finalists = [Finalist(derived, loss) for derived, loss in zip(found, losses, strict=True)]
    finalists.sort(key=lambda finalist: finalist.loss if math.isfinite(finalist.loss) else math.inf)
    best = finalists[0]
    if math.isfinite(best.loss):
        rank = 1 + found.index(best.derived)
        _logger.info("of %d finalists number %d by probability has the least loss, %.4g", len(found), rank, best.loss)
    return finalists


def but_last(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield all batches but the last, which may be too small for batch statistics; a single one is kept.

    Raises:
        DataError: There is none.
    """
    iterator = iter(batches)
    previous, lone = next(iterator, None), True
    if previous is None:
        raise DataError("the validation loader of the evaluator gave no batch to compare finalists on; give it some")
    for batch in iterator:
        yield previous
        previous, lone = batch, False
    if lone:
        yield previous
