"""Data sets that a user's function returns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, TensorDataset

from hardware.errors import DataError
from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.datasets import TensorImages
from proxyless_strategy.data.images import PARTS
from proxyless_strategy.data.sources import check_data, load_data
from tests.proxyless_strategy.data.samples import Listed, batches, tensors


def pictures(count: int, mode: str = "RGB") -> Listed:
    return Listed([Image.new(mode, (10, 10)) for _ in range(count)], [index % 2 for index in range(count)])


def test_a_function_that_returns_tensors(user_module: Any) -> None:
    user_module.data = lambda root, scale: (tensors(6), tensors(4), tensors(2))
    config = DataConfig(name="my_data:data", options={"scale": 2})
    check_data(config)
    data = load_data(config, input_size=8, seed=0)
    assert (data.channels, data.num_classes, data.mean, data.std) == (2, 2, (0.0, 0.0), (1.0, 1.0))
    assert isinstance(data.training.source, ConcatDataset)
    assert [len(getattr(data, part)) for part in PARTS] == [6, 4, 10, 2]
    images, labels = batches(data, "training", shuffle=False, batch_size=10)[0]
    assert images[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]
    assert labels.tolist() == [0, 1] * 5


@pytest.mark.parametrize("augment", ["none", "crop_flip", "imagenet"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_function_that_returns_pictures(user_module: Any, augment: Any, mode: str) -> None:
    user_module.data = lambda root: (pictures(6, mode), pictures(4, mode), pictures(2, mode))
    data = load_data(DataConfig(name="my_data:data", augment=augment), input_size=8, seed=0)
    assert data.channels == (1 if mode == "L" else 3)
    assert batches(data, "training", batch_size=10)[0][0].shape == (10, data.channels, 8, 8)


def test_a_function_that_returns_tensor_data_sets_is_read_by_batch(user_module: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [TensorDataset(torch.rand(n, 3, 8, 8, generator=generator), torch.arange(n) % 3) for n in (9, 6, 3)]
    user_module.data = lambda root: parts
    data = load_data(DataConfig(name="my_data:data"), input_size=8, seed=0)
    assert all(isinstance(getattr(data, part), TensorImages) for part in PARTS)
    images, labels = batches(data, "training", shuffle=False, batch_size=15)[0]
    assert torch.equal(images, torch.cat([parts[0].tensors[0], parts[1].tensors[0]]))
    assert labels.tolist() == [0, 1, 2] * 5


def test_a_function_that_returns_image_data(user_module: Any) -> None:
    whole = load_data(DataConfig(), input_size=8, seed=0)
    user_module.data = lambda root: whole
    config = DataConfig(name="my_data:data")
    assert load_data(config, input_size=8, seed=0) is whole
    with pytest.raises(DataError, match="returned images of size 8, but input_size is 16"):
        load_data(config, input_size=16, seed=0)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (3, "must return an ImageData or three data sets .*, but returned int"),
        ((tensors(2), tensors(2)), "three data sets"),
        ((tensors(2), tensors(2), tensors(0)), "returned an empty data set for test"),
        ([tensors(2)] * 3, "returned one data set twice"),
        ((tensors(2, 9), tensors(2, 9), tensors(2, 9)), "gives images of 2 x 9 x 9, but input_size is 8"),
        ((Listed(["x"], [0]), tensors(2), tensors(2)), "gives images as str 'x'; give PIL images"),
        (
            tuple(Listed([torch.zeros(1, 8, 8).long()] * 2, [0, 1]) for _ in range(3)),
            r"gives images as torch.int64 of \(1, 8, 8\)",
        ),
        ((tensors(2), Listed([torch.zeros(2, 8, 8)], [-1]), tensors(2)), r"label of architecture is outside 0..1"),
        (tuple(Listed([torch.zeros(1, 8, 8)], [0]) for _ in range(3)), "the data set has 1 class"),
    ],
)
def test_a_function_that_returns_nonsense(user_module: Any, returned: Any, message: str) -> None:
    user_module.data = lambda root: returned
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(name="my_data:data"), input_size=8, seed=0)


def test_tensors_cannot_be_augmented_as_pictures(user_module: Any) -> None:
    user_module.data = lambda root: (tensors(6), tensors(4), tensors(2))
    with pytest.raises(DataError, match="augment: imagenet needs PIL images"):
        load_data(DataConfig(name="my_data:data", augment="imagenet"), input_size=8, seed=0)
    data = load_data(DataConfig(name="my_data:data"), input_size=8, seed=0)
    with pytest.raises(DataError, match="works on PIL images, but this data set gives tensors"):
        data.loader("weights", batch_size=2, rand_augment="rand-m9")


def test_a_function_that_fails(user_module: Any) -> None:
    def data(root: Path) -> None:
        raise KeyError("label")

    user_module.data = data
    with pytest.raises(DataError, match="my_data:data raised KeyError: 'label'; mend that function"):
        load_data(DataConfig(name="my_data:data"), input_size=8, seed=0)
    with pytest.raises(DataError, match="my_data:data raised TypeError"):
        load_data(DataConfig(name="my_data:data", options={"size": 1}), input_size=8, seed=0)
