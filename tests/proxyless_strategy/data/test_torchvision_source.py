"""Data sets of torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from PIL import Image

from hardware.errors import DataError
from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.datasets import TensorImages
from proxyless_strategy.data.images import PARTS
from proxyless_strategy.data.sources import check_data, load_data
from tests.proxyless_strategy.data.samples import batches, write_cifar, write_idx


@pytest.mark.parametrize("layout", ["torchvision", "flat", "packed"])
def test_fashion_mnist_in_each_layout(tmp_path: Path, layout: str) -> None:
    write_idx(tmp_path / "FashionMNIST" / "raw" if layout == "torchvision" else tmp_path, packed=layout == "packed")
    config = DataConfig(name="torchvision:FashionMNIST", root=tmp_path)
    check_data(config)
    data = load_data(config, input_size=28, seed=0)
    assert (data.channels, data.num_classes, len(data.training), len(data.test)) == (1, 10, 40, 20)
    assert data.class_names is not None
    assert data.class_names[9] == "Ankle boot"
    expected = np.random.default_rng(0).integers(0, 256, (40, 28, 28), dtype=np.uint8)
    assert np.array_equal(data.training.images[:, 0].numpy(), expected)
    assert data.training.targets == [index % 10 for index in range(40)]


def test_grey_images_as_colour(tmp_path: Path) -> None:
    root = write_idx(tmp_path, packed=False)
    config = DataConfig(name="torchvision:FashionMNIST", root=root, options={"channels": 3})
    assert load_data(config, input_size=32, seed=0).test[0][0].shape == (3, 32, 32)


@pytest.mark.parametrize("augment", ["none", "imagenet"])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, augment: Any) -> None:
    config = DataConfig(name="torchvision:CIFAR10", root=write_cifar(tmp_path, monkeypatch), augment=augment)
    data = load_data(config, input_size=32, seed=0)
    assert (data.channels, data.num_classes, len(data.training), len(data.test)) == (3, 10, 100, 20)
    assert isinstance(data.weights, TensorImages) == (augment == "none")
    images, _ = batches(data)[0]
    assert images.shape == (32, 3, 32, 32)
    assert images.abs().max() < 5


def test_data_sets_with_a_split_argument(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Split(torchvision.datasets.VisionDataset):
        def __init__(self, root: str, split: str = "train", difficulty: int = 1):
            self.split, self.difficulty = split, difficulty
            self.labels = [0, 1] * (8 if split == "train" else 3)

        def __len__(self) -> int:
            return len(self.labels)

        def __getitem__(self, index: int) -> Any:
            return Image.new("RGB", (8, 8), (self.difficulty, 0, 0)), self.labels[index]

    monkeypatch.setattr(torchvision.datasets, "Split", Split, raising=False)
    config = DataConfig(name="torchvision:Split", root=tmp_path, options={"difficulty": 7, "mean": [0, 0, 0]})
    data = load_data(config, input_size=8, seed=0)
    assert [len(getattr(data, part)) for part in PARTS] == [12, 4, 16, 6]
    assert data.weights.source.difficulty == 7
    with pytest.raises(DataError, match=r"unknown data option 'hardness'; Split takes .*difficulty"):
        check_data(DataConfig(name="torchvision:Split", root=tmp_path, options={"hardness": 7}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:Fashion", "no data set 'Fashion'; take a class of torchvision.datasets"),
        ("torchvision:utils", "no data set 'utils'"),
        ("torchvision:CIFAR10", "cannot read torchvision's CIFAR10 in .*; put it there, or set data.options.download"),
        ("torchvision:FakeData", "FakeData has no train and test part"),
    ],
)
def test_torchvision_data_that_is_not_there(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        check_data(DataConfig(name=name, root=tmp_path))


def test_torchvision_without_root() -> None:
    with pytest.raises(DataError, match=r"data\.root is missing; give the folder that holds torchvision's MNIST"):
        check_data(DataConfig(name="torchvision:MNIST"))


def test_flat_files_of_which_one_is_missing(tmp_path: Path) -> None:
    write_idx(tmp_path, packed=True)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte \(or .*gz\) is missing"):
        check_data(DataConfig(name="torchvision:FashionMNIST", root=tmp_path))
