"""Loaders whose order is a function of (seed, epoch), and whose position can be saved and restored."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, RandomSampler
from torch.utils.data.distributed import DistributedSampler

from hardware.errors import DataError

from ..seeds import isolated_seed, mix_seed


class SeededLoader:
    """Wraps a loader so that batch `i` of epoch `e` is the same in every run with the same seed.

    A search that was killed resumes in the middle of an epoch and must see the batches that it would have seen. A
    DataLoader saves no position, and draws an epoch's order from torch's global generator, whose state at that time is
    gone. So the generator is seeded from (seed, stream, epoch, rank) where the order is drawn, and again for each
    batch, as without workers augmentations draw from the same generator.

    Args:
        loader: Any iterable of batches; a `DataLoader`'s samplers are told the epoch.
        seed: The search's seed.
        stream: Distinguishes the loaders of one search.
        process: Gives rank and number of processes; a plain DataLoader is divided among them.
    """

    def __init__(self, loader: Any, *, seed: int, stream: int, process: Callable[[], tuple[int, int]] = lambda: (0, 1)):
        self._whole = loader  # divided among processes when it is first read: only then is the rank known
        self._share: Any = None
        self.seed = seed
        self.stream = stream
        self.process = process
        self.epoch = 0
        self.position = 0
        self._resumed = False

    @property
    def loader(self) -> Any:
        """This process's share of the wrapped loader."""
        if self._share is None:
            rank, world_size = self.process()
            self._share = _distributed(self._whole, self.seed, rank, world_size) if world_size > 1 else self._whole
        return self._share

    def twin(self, *, stream: int) -> SeededLoader:
        """Return a second reading of the same data from its epoch 0; it leaves this one and its workers alone."""
        return SeededLoader(_without_workers(self._whole), seed=self.seed, stream=stream, process=self.process)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        # A position that was not just restored is that of a reading which has ended or was given up: what comes is the
        # next epoch. So it is after a position that was saved at an epoch's very end.
        if self.position and not (self._resumed and self.position < self._length()):
            self.finish_epoch()
        self._resumed = False
        epoch, skip, loader = self.epoch, self.position, self.loader
        start = _tell_epoch(loader, epoch, skip)
        rank = self.process()[0]
        with isolated_seed(mix_seed(self.seed, self.stream, epoch, rank)):
            iterator = iter(loader)  # a DataLoader draws its workers' base seed here
        for index in itertools.count(start):
            try:
                with isolated_seed(mix_seed(self.seed, self.stream, epoch, rank, index)):
                    batch = next(iterator)
            except StopIteration:
                return
            # Batches before the saved position are made and thrown away: a sampler cannot be asked for its n-th item.
            if index >= skip:
                self.position = index + 1
                yield batch

    def _length(self) -> float:
        return len(self.loader) if hasattr(self.loader, "__len__") else math.inf

    def finish_epoch(self) -> None:
        """Let the next reading start the next epoch."""
        self.epoch, self.position = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """Return the epoch, and how many of its batches have been handed out."""
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next reading start with the batch after the saved position."""
        self.epoch, self.position = state["epoch"], state["position"]
        self._resumed = True


class ArchitectureBatches:
    """An endless stream of validation batches for architecture steps.

    Args:
        factory: Makes the loader when the first batch is asked for: a warm-up need not start its workers.
    """

    def __init__(self, factory: Callable[[], SeededLoader]):
        self._factory = factory
        self._loader: SeededLoader | None = None
        self._iterator: Iterator[Any] | None = None
        self._state: dict[str, int] | None = None

    def next(self) -> Any:
        """Return the next batch.

        Raises:
            DataError: The loader has no batch at all.
        """
        if self._loader is None:
            self._loader = self._factory()
            if self._state is not None:
                self._loader.load_state_dict(self._state)
        for _ in range(2):  # the end of an epoch, and the first batch of the next; twice nothing is an empty loader
            if self._iterator is None:
                self._iterator = iter(self._loader)
            try:
                return next(self._iterator)
            except StopIteration:
                self._iterator = None
        raise DataError("the validation loader of the evaluator gave no batch; give it some data")

    def twin(self, *, stream: int) -> SeededLoader:
        """Return a reading of the same data in an order of its own, once from beginning to end."""
        loader = self._factory()
        loader.stream = stream
        return loader

    def state_dict(self) -> dict[str, int]:
        """Return the position of the stream."""
        if self._loader is not None:
            return self._loader.state_dict()
        return self._state or {"epoch": 0, "position": 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the stream go on after the saved position."""
        self._state, self._loader, self._iterator = dict(state), None, None


def _tell_epoch(loader: Any, epoch: int, skip: int) -> int:
    """Tell samplers the epoch; return how many batches the loader then leaves out by itself, `skip` or 0."""
    # Lightning does this for a DataLoader, but sees only the wrapper here. A user's own sampler may sit at any place.
    batch_sampler = getattr(loader, "batch_sampler", None)
    for item in (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)):
        if item is not None and hasattr(item, "set_epoch"):
            item.set_epoch(epoch)
    sampler: Any = getattr(loader, "sampler", None)
    if not skip or not hasattr(sampler, "set_epoch") or "start" not in signature(sampler.set_epoch).parameters:
        return 0
    if getattr(loader, "batch_size", 1) is not None:
        return 0  # such a sampler hands out images, not batches
    # Reading what was already trained on takes as long as the training did where the images are files.
    sampler.set_epoch(epoch, start=skip)
    return skip


def _distributed(loader: Any, seed: int, rank: int, world_size: int) -> Any:
    # Lightning would put its own sampler into a plain DataLoader, but not into one that is wrapped.
    if not isinstance(loader, DataLoader) or isinstance(loader.sampler, DistributedSampler):
        return loader
    if hasattr(loader.sampler, "replicas"):
        sampler: Any = copy.copy(loader.sampler)
        sampler.rank, sampler.replicas = rank, world_size
        return _rebuilt(loader, sampler=sampler)
    return _rebuilt(
        loader,
        sampler=DistributedSampler(
            loader.dataset,
            num_replicas=world_size,
            rank=rank,
            shuffle=isinstance(loader.sampler, RandomSampler),
            seed=seed & 0x7FFFFFFF,  # torch adds the epoch to it and seeds a generator with the sum
            drop_last=loader.drop_last,
        ),
    )


def _without_workers(loader: Any) -> Any:
    if not isinstance(loader, DataLoader) or loader.num_workers == 0:
        return loader
    # A twin is read for some batches and dropped; its workers would outlive it, beside those of the loader proper.
    return _rebuilt(loader, sampler=loader.sampler, workers=0)


def _rebuilt(loader: DataLoader, *, sampler: Any, workers: int | None = None) -> DataLoader:
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        raise DataError(
            f"a DataLoader with its own batch_sampler ({type(loader.batch_sampler).__name__}) cannot be divided among "
            "processes or read twice; give batch_size and a sampler"
        )
    count = loader.num_workers if workers is None else workers
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        sampler=sampler,
        num_workers=count,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=loader.drop_last,
        timeout=loader.timeout if count else 0,  # without workers DataLoader refuses this and the last two
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if count else None,
        persistent_workers=loader.persistent_workers and count > 0,
    )
