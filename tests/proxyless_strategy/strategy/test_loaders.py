"""Loaders: an order that depends on seed and epoch alone, positions that can be restored, streams that never end."""

import itertools

import pytest
import torch
from nni.nas.evaluator.pytorch import DataLoader as TracedLoader
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from hardware.errors import ConfigError, DataError
from proxyless_strategy.data.batches import EpochBatches
from proxyless_strategy.strategy.loaders import ArchitectureBatches, SeededLoader, lone_image_batch
from tests.proxyless_strategy import tiny

NUMBERS = torch.arange(10)


def loader(seed=1, stream=0, **options):
    return SeededLoader(DataLoader(NUMBERS, batch_size=3, shuffle=True), seed=seed, stream=stream, **options)


def read(reading):
    return [batch.tolist() for batch in reading]


def test_the_order_is_a_function_of_seed_stream_and_epoch():
    first = loader()
    epochs = [read(first), read(first)]
    torch.manual_seed(99)
    second = loader()
    assert [read(second), read(second)] == epochs
    assert sorted(itertools.chain(*epochs[0])) == NUMBERS.tolist()
    others = [epochs[1], read(loader(seed=2)), read(loader(stream=1))]
    assert all(other != epochs[0] for other in others)


def test_reading_leaves_the_callers_generator_alone():
    before = torch.get_rng_state()
    read(loader())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("saved", "rest"), [(2, slice(2, None)), (4, None)])
def test_a_restored_position_goes_on_with_the_next_batch(saved, rest):
    whole, resumed = loader(), loader()
    first, second = read(whole), read(whole)
    resumed.load_state_dict({"epoch": 0, "position": saved})
    assert read(resumed) == (second if rest is None else first[rest])


def test_a_twin_reads_the_same_data_in_its_own_order_and_moves_nothing():
    whole = loader()
    iterator = iter(whole)
    next(iterator)
    state, twin = whole.state_dict(), whole.twin(stream=5)
    assert read(twin) == read(loader(stream=5))
    assert whole.state_dict() == state == {"epoch": 0, "position": 1}


def test_processes_share_an_epoch():
    shares = [list(itertools.chain(*read(loader(process=lambda rank=rank: (rank, 2))))) for rank in range(2)]
    assert sorted(shares[0] + shares[1]) == NUMBERS.tolist()


def test_batches_of_other_sizes_weigh_by_their_images():
    """Those of an iterable that gives each process its own; a DataLoader's are divided evenly, or the sampler knows."""

    def mean_of_all(count):
        return (count + 2) / 2  # the other process has 2

    def loader(batches, rank=0):
        return SeededLoader(batches, seed=0, stream=1, process=lambda: (rank, 2))

    batch = {"x": torch.zeros(4, 3), "y": torch.zeros(4)}
    assert loader([batch]).weight(batch, 0, mean_of_all) == 4 / 3
    assert loader(["no tensor", object()]).weight([object()], 0, mean_of_all) == 1 / 1.5
    assert SeededLoader([batch], seed=0, stream=1).weight(batch, 0, None) == 1.0
    assert loader(DataLoader(tiny.data(7), batch_size=2)).weight(batch, 0, None) == 1.0
    for rank, weights in enumerate(([1.0, 2.0], [1.0, 0.0])):
        sampler = EpochBatches(length=7, batch_size=3, shuffle=False, drop_last=False, seed=0)
        mine = loader(DataLoader(tiny.data(7), batch_size=None, sampler=sampler), rank)
        assert [mine.weight(batch, step, None) for step in range(2)] == weights
        stream = ArchitectureBatches(lambda mine=mine: mine)
        stream._loader, mine.position = mine, 2
        assert stream.weight(batch, None) == weights[1]


def test_validation_batches_go_on_over_epochs_and_after_a_restart():
    stream, whole = ArchitectureBatches(loader), loader()
    expected = read(whole) + read(whole)
    assert [stream.next().tolist() for _ in range(6)] == expected[:6]
    resumed = ArchitectureBatches(loader)
    resumed.load_state_dict(stream.state_dict())
    assert [resumed.next().tolist() for _ in range(2)] == expected[6:8]


def test_a_loader_without_batches_is_refused():
    empty = ArchitectureBatches(lambda: SeededLoader([], seed=0, stream=1))
    with pytest.raises(DataError, match="gave no batch"):
        empty.next()


# ---- several processes, without any ----------------------------------------------------------------------------

WORLD = 2
HALF = [0, 2, 4, 6, 8, 9]


class Numbers(IterableDataset):
    """Numbers without a length."""

    def __init__(self, count=10):
        self.count = count

    def __iter__(self):
        return iter(range(self.count))


class Backwards:
    """A user's sampler that draws nothing."""

    def __iter__(self):
        return iter(reversed(HALF))

    def __len__(self):
        return len(HALF)


def shares(make, *, epochs=1):
    """What each process reads of a loader in each epoch, flat."""
    found = []
    for rank in range(WORLD):
        reading = SeededLoader(make(), seed=1, stream=0, process=lambda rank=rank: (rank, WORLD))
        found.append([list(itertools.chain(*read(reading))) for _ in range(epochs)])
    return found


SAMPLERS = {
    "subset": lambda: SubsetRandomSampler(HALF),
    "subset with a generator": lambda: SubsetRandomSampler(HALF, generator=torch.Generator().manual_seed(5)),
    "a user's own": Backwards,
    "weighted": lambda: WeightedRandomSampler([1.0 if i in HALF else 0.0 for i in range(10)], 6, replacement=False),
}


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_processes_share_what_the_users_sampler_gives_and_nothing_else(name, traced):
    """The architecture half of a SubsetRandomSampler's data must never reach weight steps."""
    loader = TracedLoader if traced else DataLoader
    first, second = shares(lambda: loader(NUMBERS, batch_size=2, sampler=SAMPLERS[name]()), epochs=2)
    for mine, theirs in zip(first, second, strict=True):
        assert sorted(mine + theirs) == HALF
    assert (first[0] != first[1]) == (name != "a user's own"), "a new order in each epoch"


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_share_of_an_epoch_can_be_resumed(name):
    def reading():
        loader = DataLoader(NUMBERS, batch_size=1, sampler=SAMPLERS[name]())
        return SeededLoader(loader, seed=1, stream=0, process=lambda: (1, WORLD))

    whole, resumed = reading(), reading()
    read(whole)
    second = read(whole)
    resumed.load_state_dict({"epoch": 1, "position": 2})
    assert read(resumed) == second[2:]


def test_a_batch_sampler_of_a_subset_keeps_it():
    def make(workers=0):
        batches = BatchSampler(SubsetRandomSampler(HALF), 2, drop_last=False)
        return DataLoader(NUMBERS, batch_sampler=batches, num_workers=workers)

    first, second = shares(make)
    assert sorted(first[0] + second[0]) == HALF
    twin = SeededLoader(make(workers=1), seed=1, stream=0).twin(stream=5)
    batches = read(twin)
    assert [len(batch) for batch in batches] == [2, 2, 2]
    assert sorted(itertools.chain(*batches)) == HALF


def test_a_random_sampler_that_is_no_permutation_keeps_its_number():
    first, second = shares(lambda: DataLoader(NUMBERS, sampler=RandomSampler(NUMBERS, num_samples=4)))
    assert len(first[0]) == len(second[0]) == 2


@pytest.mark.parametrize("drop_last", [False, True])
def test_all_processes_get_the_same_number_of_batches(drop_last):
    first, second = shares(
        lambda: DataLoader(NUMBERS, batch_size=1, sampler=SubsetRandomSampler(HALF[:5]), drop_last=drop_last)
    )
    assert len(first[0]) == len(second[0]) == (2 if drop_last else 3)
    assert set(first[0] + second[0]) <= set(HALF)


class Filtering(DataLoader):
    """A loader whose own iteration leaves images out."""

    def __iter__(self):
        return itertools.islice(super().__iter__(), 1)


class PairsOfSame(BatchSampler):
    """A user's own batch sampler."""


def undividable(kind):
    return {
        "iterable": lambda: DataLoader(Numbers(), batch_size=2),
        "unmeasured": lambda: DataLoader(NUMBERS, batch_size=2, sampler=iterable_without_length()),
        "foreign": lambda: DataLoader(NUMBERS, sampler=DistributedSampler(NUMBERS, num_replicas=1, rank=0)),
        "batch_sampler": lambda: DataLoader(NUMBERS, batch_sampler=PairsOfSame(RandomSampler(NUMBERS), 2, False)),
        "iter": lambda: Filtering(NUMBERS, batch_size=2),
    }[kind]()


def iterable_without_length():
    class Endless:
        def __iter__(self):
            return itertools.count()

    return Endless()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("iterable", r"IterableDataset \(Numbers\) cannot be divided among 2 processes"),
        ("unmeasured", r"sampler without a length \(Endless\)"),
        ("foreign", "DistributedSampler is of rank 0 of 1 processes, but this is rank 1 of 2"),
        ("batch_sampler", r"batch_sampler \(PairsOfSame\)"),
        ("iter", r"own __iter__ \(Filtering\)"),
    ],
)
def test_what_cannot_be_divided_is_refused_by_name(kind, words):
    reading = SeededLoader(undividable(kind), seed=1, stream=0, process=lambda: (1, WORLD))
    with pytest.raises(DataError, match=words):
        read(reading)


def test_a_distributed_sampler_of_this_process_is_kept():
    sampler = DistributedSampler(NUMBERS, num_replicas=2, rank=1, shuffle=False)
    reading = SeededLoader(DataLoader(NUMBERS, sampler=sampler), seed=1, stream=0, process=lambda: (1, WORLD))
    assert list(itertools.chain(*read(reading))) == [1, 3, 5, 7, 9]


# ---- loaders without length, without batches, with a batch of one image ----------------------------------------


def test_a_loader_without_length_resumes_and_has_a_twin():
    def reading(workers=0):
        return SeededLoader(DataLoader(Numbers(), batch_size=3, num_workers=workers), seed=1, stream=0)

    resumed = reading()
    resumed.load_state_dict({"epoch": 0, "position": 2})
    assert read(resumed) == [[6, 7, 8], [9]]
    assert read(reading(workers=1).twin(stream=5)) == read(reading())


class Images(IterableDataset):
    """The images of `tiny`, without a length."""

    def __iter__(self):
        return iter(tiny.data())


def searched_on(train=None, validation=None, *, space=tiny.TinySpace, trainer=None, **options):
    made = tiny.evaluator(epochs=4, **(trainer or {}))
    made.train_dataloaders = made.train_dataloaders if train is None else train
    made.val_dataloaders = made.val_dataloaders if validation is None else validation
    options = {"cost": tiny.costs(), "target": 8.0, "steps_per_update": 2, **options}
    strategy = tiny.ProxylessStrategy(**options)
    strategy.search(space(), made)
    return strategy


def test_training_images_without_a_length_need_a_number_of_batches():
    with pytest.raises(ConfigError, match=r"training loader has no length.* set limit_train_batches"):
        searched_on(DataLoader(Images(), batch_size=16))
    strategy = searched_on(DataLoader(Images(), batch_size=16), trainer={"limit_train_batches": 5})
    assert strategy.searched.counters["architecture"] == 4 * 5 // 2


def test_validation_images_without_a_length_are_read_again_and_again():
    assert searched_on(validation=DataLoader(Images(), batch_size=16)).searched.counters["architecture"] == 12


@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_loader_without_a_batch_is_refused_before_the_first_step(part):
    empty = DataLoader(tiny.data(8), batch_size=16, drop_last=True)
    loaders = {"train": empty} if part == "training" else {"validation": empty}
    with pytest.raises(DataError, match=f"the {part} loader of the evaluator has no batch"):
        searched_on(**loaders)


def test_a_training_without_batches_by_the_trainers_own_limit_is_refused():
    with pytest.raises(ConfigError, match="limit_train_batches = 0"):
        searched_on(trainer={"limit_train_batches": 0})


class Shrinking(tiny.TinySpace):
    """Maps of one pixel from the stem on, of which batch norms need more than one image."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1))


@pytest.mark.parametrize("rule", tiny.RULES)
@pytest.mark.parametrize("part", ["training", "validation"])
def test_a_last_batch_of_one_image_is_refused_before_the_first_step(part, rule, monkeypatch):
    steps = []
    monkeypatch.setattr(tiny.Module, "on_train_batch_end", lambda self, *rest: steps.append(rest))
    loader = DataLoader(tiny.data(33), batch_size=16, shuffle=True)
    loaders = {"train": loader} if part == "training" else {"validation": loader}
    with pytest.raises(DataError, match=f"the last batch of the {part} loader has one image.*drop_last=True"):
        searched_on(space=Shrinking, rule=rule, samples=2, **loaders)
    assert steps == []


def test_batches_of_one_image_are_refused_in_the_step_that_meets_them():
    with pytest.raises(DataError, match="training batch 1 has one image"):
        searched_on(DataLoader(tiny.data(8), batch_size=1), space=Shrinking)


def test_a_last_batch_of_one_image_is_trained_on_where_maps_are_larger():
    strategy = searched_on(DataLoader(tiny.data(33), batch_size=16, shuffle=True), steps_per_update=1)
    assert strategy.searched.counters["weights"] == 3 * 4


def test_which_loaders_end_with_one_image():
    images = TensorDataset(torch.arange(9.0))

    class Keyed(TensorDataset):
        def __getitem__(self, key):
            return self.tensors[0][key.indices]

    def of_keys(size, drop_last=False):
        options = {"shuffle": False, "drop_last": drop_last, "seed": 0}
        sampler = EpochBatches(length=9, batch_size=size, **options)
        return DataLoader(Keyed(torch.arange(9.0)), batch_size=None, sampler=sampler)

    assert lone_image_batch(DataLoader(images, batch_size=4))[0].tolist() == [8.0]
    assert lone_image_batch(of_keys(4)).tolist() == [8.0]
    others = [
        DataLoader(images, batch_size=4, drop_last=True),
        DataLoader(images, batch_size=5),
        of_keys(4, drop_last=True),
        of_keys(5),
        DataLoader(Numbers(), batch_size=4),
        [1, 2, 3],
    ]
    assert [lone_image_batch(loader) for loader in others] == [None] * len(others)
