"""Loaders whose order is a function of (seed, epoch), and whose position can be saved and restored."""

from __future__ import annotations

import copy
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from inspect import signature
from typing import Any

import torch
from lightning_fabric.utilities.exceptions import MisconfigurationException
from pytorch_lightning.utilities.data import extract_batch_size
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from hardware.errors import DataError

from ..seeds import isolated_seed, mix_seed


class FinishingLoader(DataLoader):
    """A loader whose batches this process finishes, as what is left to do to them needs its device.

    Args:
        dataset: Gives what `finish` takes.
        finish: Makes a batch of it, and draws no random numbers.
        **arguments: Of `DataLoader`.
    """

    def __init__(self, dataset: Any, *, finish: Callable[[Any], Any], **arguments: Any):
        super().__init__(dataset, **arguments)
        self.finish = finish

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # Not a generator: workers start, and draw their seed, where a loader's `iter` is called.
        return map(self.finish, super().__iter__())


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
        process: Gives rank and number of processes; a DataLoader is divided among them. Another iterable must give
            each process its own share.
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
            self._share = self._whole
            if world_size > 1:
                self._share = _distributed(self._whole, self.seed, rank, world_size, stream=self.stream)
        return self._share

    def twin(self, *, stream: int) -> SeededLoader:
        """Return a second reading of the same data from its epoch 0; it leaves this one and its workers alone."""
        return SeededLoader(_without_workers(self._whole), seed=self.seed, stream=stream, process=self.process)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        # A position that was not just restored is that of a reading which has ended or was given up: what comes is the
        # next epoch. So it is after a position that was saved at an epoch's very end.
        if self.position and not (self._resumed and self.position < self.length()):
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

    def weight(self, batch: Any, number: int, average: Callable[[Tensor], Tensor]) -> float:
        """Return the factor of this process's mean over a batch, so that the mean over processes counts images.

        It is 1 where all have as many, as in every batch of a sampler that is divided here image by image.

        Args:
            batch: The batch.
            number: Its number in the epoch, from 0.
            average: Averages a tensor over all processes; called where only the batches tell.
        """
        if self.process()[1] == 1:
            return 1.0
        known = getattr(getattr(self.loader, "sampler", None), "weight", None)
        if known is not None:
            return float(known(number))
        if isinstance(self.loader, DataLoader):
            return 1.0
        try:
            count = extract_batch_size(batch)
        except MisconfigurationException:  # no tensor in it: it counts as one
            count = 1
        mean = float(average(torch.tensor(count, dtype=torch.float64)))
        return count / mean if mean else 1.0

    def is_full(self, batch: Any) -> bool:
        """Return whether a batch has as many images as the loader gives at a time; True where that is not known."""
        size = _batching(self.loader)[1] if isinstance(self.loader, DataLoader) else None
        if size is None:
            return True
        try:
            return bool(extract_batch_size(batch) == size)
        except MisconfigurationException:  # no tensor in it
            return True

    def length(self) -> float:
        """Return the number of batches of an epoch; infinity where it is not known."""
        try:
            return len(self.loader)
        except TypeError:  # a DataLoader over an IterableDataset has `__len__`, but no length
            return math.inf

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
        loader = self.loader()
        for _ in range(2):  # the end of an epoch, and the first batch of the next; twice nothing is an empty loader
            if self._iterator is None:
                self._iterator = iter(loader)
            try:
                return next(self._iterator)
            except StopIteration:
                self._iterator = None
        raise DataError("the validation loader of the evaluator gave no batch; give it some data")

    def weight(self, batch: Any, average: Callable[[Tensor], Tensor]) -> float:
        """Return the weight of the batch that came last, see `SeededLoader.weight`."""
        loader = self.loader()
        return loader.weight(batch, loader.position - 1, average)

    def loader(self) -> SeededLoader:
        """Return the loader, which is made on the first call; its workers start with the first batch."""
        if self._loader is None:
            self._loader = self._factory()
            if self._state is not None:
                self._loader.load_state_dict(self._state)
        return self._loader

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


class Share(Sampler[Any]):
    """One process's share of what a user's sampler gives.

    Each process draws the whole order, under the same seed, and takes every `replicas`-th item of it. All get the same
    number: for that the first items come twice, or with `drop_last` the last ones are left out.

    Args:
        sampler: The user's, with a length.
        seed: Mixed with the epoch; the same on every process.
        rank: Which of `replicas` processes this one is.
        replicas: Their number.
        drop_last: Leave the remainder out.
    """

    def __init__(self, sampler: Any, *, seed: int, rank: int, replicas: int, drop_last: bool):
        self.sampler = sampler
        self.seed = seed
        self.rank = rank
        self.replicas = replicas
        self.drop_last = drop_last
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next order."""
        self.epoch = epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        count = len(self.sampler)
        return count // self.replicas if self.drop_last else -(-count // self.replicas)

    def __iter__(self) -> Iterator[Any]:
        seed = mix_seed(self.seed, self.epoch)
        # A generator of the sampler's own is where its last epoch left it, which after a restart is nowhere.
        if getattr(self.sampler, "generator", None) is not None:
            self.sampler.generator.manual_seed(seed)
        with isolated_seed(seed):
            order = list(self.sampler)
        count = len(order) // self.replicas if self.drop_last else -(-len(order) // self.replicas)
        return iter([order[(step * self.replicas + self.rank) % len(order)] for step in range(count)])


def _distributed(loader: Any, seed: int, rank: int, world_size: int, *, stream: int = 0) -> Any:
    # Lightning would put its own sampler into a plain DataLoader, but not into one that is wrapped.
    if not isinstance(loader, DataLoader):
        return loader
    if isinstance(loader.dataset, IterableDataset):
        raise DataError(
            f"an IterableDataset ({type(loader.dataset).__name__}) cannot be divided among {world_size} processes; "
            "give a data set with a length, or an iterable of batches that gives each process its own"
        )
    sampler, _, drop_last = _batching(loader)
    if isinstance(sampler, DistributedSampler):
        if (sampler.rank, sampler.num_replicas) != (rank, world_size):
            raise DataError(
                f"the loader's DistributedSampler is of rank {sampler.rank} of {sampler.num_replicas} processes, but "
                f"this is rank {rank} of {world_size}; give a sampler of the whole data, it is divided here"
            )
        return loader
    if hasattr(sampler, "replicas"):
        share: Any = copy.copy(sampler)
        share.rank, share.replicas = rank, world_size
    elif type(sampler) is SequentialSampler or (type(sampler) is RandomSampler and _is_permutation(sampler, loader)):
        share = DistributedSampler(
            loader.dataset,
            num_replicas=world_size,
            rank=rank,
            shuffle=type(sampler) is RandomSampler,
            seed=seed & 0x7FFFFFFF,  # torch adds the epoch to it and seeds a generator with the sum
            drop_last=drop_last,
        )
    else:
        # Any other sampler has a say in which images are read: a SubsetRandomSampler keeps those of architecture steps
        # away from weight steps.
        if not hasattr(sampler, "__len__"):
            raise DataError(
                f"a sampler without a length ({type(sampler).__name__}) cannot be divided among {world_size} "
                "processes; give it __len__"
            )
        share = Share(sampler, seed=mix_seed(seed, stream), rank=rank, replicas=world_size, drop_last=drop_last)
    return _rebuilt(loader, sampler=share)


def _is_permutation(sampler: RandomSampler, loader: DataLoader) -> bool:
    return not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]


def lone_image_batch(loader: Any) -> Any:
    """Return the last batch of an epoch if it is known to have one image, else None.

    Args:
        loader: Only a `DataLoader`'s batches are known without reading them.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    sampler, size, drop_last = _batching(loader)
    batched = size is not None
    if not batched:  # a sampler of whole batches, if it says so
        size, drop_last = getattr(sampler, "batch_size", None), getattr(sampler, "drop_last", True)
    count = getattr(sampler, "length", None) if not batched else len(sampler)
    if size is None or count is None or drop_last or count % size != 1 or count < size:
        return None
    generator: Any = getattr(sampler, "generator", None)
    state = None if generator is None else generator.get_state()
    with isolated_seed(0):
        (last,) = deque(sampler, maxlen=1)
        if generator is not None:
            generator.set_state(state)
        item = loader.dataset[last]
        batch = loader.collate_fn([item]) if batched else loader.collate_fn(item)
        return loader.finish(batch) if isinstance(loader, FinishingLoader) else batch


@contextmanager
def of_one_image(what: str) -> Iterator[None]:
    """Say in a sentence why batch norms refuse a batch of one image.

    Args:
        what: Which batch has one image.

    Raises:
        DataError: They do.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise DataError(
            f"{what}, of which batch norms have no statistics; let the loader drop its last batch (drop_last=True), or "
            "choose another batch_size or number of images"
        ) from error


def _batching(loader: DataLoader) -> tuple[Any, int | None, bool]:
    """Return a loader's sampler, batch size and whether it drops the last batch, however they were given."""
    batches = loader.batch_sampler
    # Given a batch sampler, a DataLoader makes up a sampler that it does not use.
    if type(batches) is BatchSampler:
        return batches.sampler, batches.batch_size, batches.drop_last
    return loader.sampler, loader.batch_size, loader.drop_last


def _without_workers(loader: Any) -> Any:
    if not isinstance(loader, DataLoader) or loader.num_workers == 0:
        return loader
    # A twin is read for some batches and dropped; its workers would outlive it, beside those of the loader proper.
    return _rebuilt(loader, sampler=_batching(loader)[0], workers=0)


def _rebuilt(loader: DataLoader, *, sampler: Any, workers: int | None = None) -> DataLoader:
    if loader.batch_sampler is not None and type(loader.batch_sampler) is not BatchSampler:
        raise DataError(
            f"a DataLoader with its own batch_sampler ({type(loader.batch_sampler).__name__}) cannot be divided among "
            "processes or read twice; give batch_size and a sampler"
        )
    make: Callable[..., DataLoader] = DataLoader
    if type(loader) is FinishingLoader:
        make = partial(FinishingLoader, finish=loader.finish)
    elif type(loader).__iter__ is not DataLoader.__iter__:
        raise DataError(
            f"a DataLoader with its own __iter__ ({type(loader).__name__}) cannot be divided among processes or read "
            "twice; put what it does into the data set or collate_fn"
        )
    count = loader.num_workers if workers is None else workers
    _, batch_size, drop_last = _batching(loader)
    return make(
        loader.dataset,
        batch_size=batch_size,
        sampler=None if isinstance(loader.dataset, IterableDataset) else sampler,
        num_workers=count,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        drop_last=drop_last,
        timeout=loader.timeout if count else 0,  # without workers DataLoader refuses this and the last two
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context if count else None,
        persistent_workers=loader.persistent_workers and count > 0,
    )
