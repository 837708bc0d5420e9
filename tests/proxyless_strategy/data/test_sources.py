"""The digits, and names of data sets that there are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hardware.errors import DataError
from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.datasets import TensorImages
from proxyless_strategy.data.sources import check_data, load_data
from tests.proxyless_strategy.data.samples import digits


def test_digits_have_disjoint_stratified_parts() -> None:
    data = digits()
    assert isinstance(data.weights, TensorImages)
    assert isinstance(data.architecture, TensorImages)
    assert isinstance(data.training, TensorImages)
    assert isinstance(data.test, TensorImages)
    weights, architecture = set(data.weights.indices.tolist()), set(data.architecture.indices.tolist())
    assert not weights & architecture
    assert weights | architecture == set(data.training.indices.tolist())
    assert len(data.training) + len(data.test) == 1797
    assert data.test.images.data_ptr() != data.training.images.data_ptr()
    for part, share in ((data.test, 0.2), (data.architecture, 0.8 * 0.3)):
        counts = np.bincount(part.targets, minlength=10)
        assert np.all(np.abs(counts - share * 179.7) < 4)


def test_digits_test_images_are_no_training_images() -> None:
    data = load_data(DataConfig(name="digits"), input_size=8, seed=0)
    seen = {image.numpy().tobytes() for image in data.training.images}
    assert not [image for image in data.test.images if image.numpy().tobytes() in seen]


def test_digits_split_follows_the_seed() -> None:
    first, again, other = (load_data(DataConfig(), input_size=8, seed=seed) for seed in (0, 0, 1))
    assert first.weights.targets == again.weights.targets
    assert torch.equal(first.test.images, again.test.images)
    assert first.test.images.shape != other.test.images.shape or not torch.equal(
        first.test.images,
        other.test.images,
    )


def test_architecture_per_class_overrides_the_fraction() -> None:
    data = digits(architecture_per_class=5)
    assert np.bincount(data.architecture.targets).tolist() == [5] * 10


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "cifar",
            "unknown data set 'cifar'; data.name is digits, imagefolder, webdataset, hfds, torchvision:CLASS or "
            "module:function",
        ),
        ("no_such_module:data", "cannot load the data set 'no_such_module:data'"),
        ("my_data:absent", "cannot load the data set 'my_data:absent'"),
        (":data", "cannot load the data set ':data'"),
        ("my_data:number", "my_data:number is int, not a function"),
    ],
)
def test_unknown_data_sets(user_module: Any, name: str, message: str) -> None:
    user_module.number = 3
    for call in (check_data, lambda config: load_data(config, input_size=8, seed=0)):
        with pytest.raises(DataError, match=message):
            call(DataConfig(name=name))
