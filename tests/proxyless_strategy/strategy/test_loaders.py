"""Loaders: an order that depends on seed and epoch alone, positions that can be restored, streams that never end."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader

from hardware.errors import DataError
from proxyless_strategy.strategy.loaders import ArchitectureBatches, SeededLoader

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
