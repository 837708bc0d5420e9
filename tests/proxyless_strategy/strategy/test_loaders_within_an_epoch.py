"""A loader that continues within an epoch gives what an uninterrupted one would, without reading what was before."""

import pytest
import torch
from torch.utils.data import DataLoader, Sampler, TensorDataset

from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.datasets import TensorImages
from proxyless_strategy.data.sources import load_data
from proxyless_strategy.strategy.loaders import SeededLoader


class ImagesFrom(Sampler):
    """A user's sampler of images, whose `start` is none of batches."""

    def __init__(self, length):
        self.length, self.start = length, 0

    def set_epoch(self, epoch, start=0):
        self.start = start

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(range(self.start, self.length))


def ours(**changes):
    config = DataConfig.model_validate({"name": "digits", "augment": "crop", **changes})
    data = load_data(config, input_size=8, seed=0)
    return data.loader("weights", batch_size=100, shuffle=True, drop_last=True)


def plain(sampler=None):
    numbers = TensorDataset(torch.arange(1000.0))
    return DataLoader(numbers, batch_size=100, shuffle=sampler is None, sampler=sampler)


def pictures(tmp_path, workers):
    values = {"name": "imagefolder", "root": tmp_path, "augment": "imagenet", "workers": workers}
    config = DataConfig.model_validate({**values, "draw": {"classes": 2, "train": 8, "size": 16}})
    return load_data(config, input_size=16, seed=0).loader("weights", batch_size=2, shuffle=True)


def equal(first, second):
    return len(first) == len(second) and all(
        torch.equal(a, b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    )


def read(make, stop):
    """The rest of an epoch and the next one: as they are, and after a stop at a batch."""
    whole = SeededLoader(make(), seed=3, stream=0)
    expected = [list(whole), list(whole)]
    first = SeededLoader(make(), seed=3, stream=0)
    for _, _batch in zip(range(stop), first, strict=False):
        pass
    again = SeededLoader(make(), seed=3, stream=0)
    again.load_state_dict(first.state_dict())
    return [expected[0][stop:], expected[1]], [list(again), list(again)]


@pytest.mark.parametrize("stop", [1, 4, 9])
@pytest.mark.parametrize(
    "make", [ours, plain, lambda: plain(ImagesFrom(1000))], ids=["ours", "torch's", "a user's sampler"]
)
def test_the_rest_of_an_epoch(make, stop):
    expected, found = read(make, stop)
    assert len(found[0]) == 10 - stop
    assert all(equal(*pair) for pair in zip(expected, found, strict=True))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_the_rest_of_an_epoch_of_files(tmp_path, workers):
    expected, found = read(lambda: pictures(tmp_path / "data", workers), 3)
    assert all(equal(*pair) for pair in zip(expected, found, strict=True))


def test_what_was_trained_on_is_not_read_again(monkeypatch):
    loader = SeededLoader(ours(), seed=3, stream=0)
    keys, getitem = [], TensorImages.__getitem__
    monkeypatch.setattr(TensorImages, "__getitem__", lambda images, key: keys.append(key) or getitem(images, key))
    loader.load_state_dict({"epoch": 2, "position": 7})
    assert len(loader) == 10
    assert len(list(loader)) == len(keys) == 3
    assert [key.number for key in keys] == [7, 8, 9]
    assert len(list(loader)) == 10
