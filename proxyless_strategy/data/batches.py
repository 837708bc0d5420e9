"""Which images form which batch: a function of (seed, epoch), dividable among processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class BatchKey(NamedTuple):
    """Which images one batch holds, and the seeds of their augmentation."""

    seed: int
    epoch: int
    number: int
    indices: list[int]


class EpochBatches(Sampler[BatchKey]):
    """Give the batches of an epoch, in an order that depends on (seed, epoch) alone.

    It hands out whole batches, so its `DataLoader` has `batch_size=None`. Lightning calls `set_epoch` by itself.

    Args:
        length: Number of images.
        batch_size: Images in a batch.
        shuffle: A new order in every epoch; otherwise the images come as they lie.
        drop_last: Leave out a last batch that is not full.
        seed: Seed of order and augmentation.
        epoch: The epoch that the next iteration gives.
        rank: Which of `replicas` processes this one is: it gets every `replicas`-th batch.
        replicas: Number of processes that share an epoch. All get the same number of batches; for that the first
            batches come twice, or with `drop_last` the last ones are left out.
    """

    def __init__(
        self,
        *,
        length: int,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        epoch: int = 0,
        rank: int = 0,
        replicas: int = 1,
    ):
        self.length = length
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.rank = rank
        self.replicas = replicas
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Choose the epoch of the next iteration, and the batch in it to start from (to resume within an epoch)."""
        self.epoch = epoch
        self.start = start

    def counts(self, step: int) -> list[int]:
        """Return how many images of its own each process gets at a step of the epoch.

        A last batch that is not full is one process's, and a batch that comes twice counts where it came first: by
        these numbers the step's images weigh as they do in one process.
        """
        batches = _divided(self.length, self.batch_size, self.drop_last)
        numbers = range(step * self.replicas, (step + 1) * self.replicas)
        return [
            min(self.batch_size, self.length - number * self.batch_size) if number < batches else 0
            for number in numbers
        ]

    def weight(self, step: int) -> float:
        """Return the factor of this process's mean over its batch, so that the mean over processes counts images."""
        counts = self.counts(step)
        return counts[self.rank] * len(counts) / sum(counts)

    def __len__(self) -> int:
        return _divided(_divided(self.length, self.batch_size, self.drop_last), self.replicas, self.drop_last)

    def __iter__(self) -> Iterator[BatchKey]:
        # A generator of its own, new for each epoch: one that ran on from epoch to epoch would have to be saved in
        # every checkpoint, and the global one depends on whatever was drawn before.
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        else:
            order = np.arange(self.length)
        batches = _divided(self.length, self.batch_size, self.drop_last)
        for step in range(self.start, len(self)):
            # The remainder starts again at the first batch: under DDP a process with a batch less would never join
            # the last all-reduce, and the others would wait for it.
            number = (step * self.replicas + self.rank) % batches
            indices = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield BatchKey(self.seed, self.epoch, number, indices.tolist())


def _divided(count: int, size: int, drop_last: bool) -> int:
    return count // size if drop_last else -(-count // size)
