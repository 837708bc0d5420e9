"""The parts of a data set and their loaders."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.data import resolve_data_config

from hardware.errors import ConfigError, DataError
from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.images import PARTS, ImageData
from proxyless_strategy.data.sources import load_data
from tests.proxyless_strategy.data.samples import Listed, batches, digits, equal, tensors, write_images


def test_single_image_equals_its_place_in_a_batch() -> None:
    data = digits()
    image, label = data.test[5]
    images, labels = batches(data, "test", shuffle=False)[0]
    assert torch.equal(image, images[5])
    assert label == labels[5]


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip", "imagenet"])
def test_loader_ignores_and_keeps_global_randomness(augment: str) -> None:
    data = load_data(DataConfig(augment=augment), input_size=8, seed=0)
    first = batches(data, epoch=4)[:3]
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    expected = torch.rand(1), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    loader = data.loader("weights", batch_size=32, shuffle=True, seed=3)
    loader.sampler.set_epoch(4)
    assert equal(first, list(loader)[:3])
    assert (torch.rand(1), random.random(), np.random.rand()) == expected  # noqa: NPY002
    assert not equal(first, batches(data, epoch=5)[:3])


def test_parts_have_their_own_order_under_one_seed() -> None:
    data = digits(architecture_fraction=0.5)
    size = min(len(data.weights), len(data.architecture))
    orders = [[key.indices for key in data.loader(part, batch_size=size, shuffle=True).sampler] for part in PARTS[:2]]
    assert orders[0][0][:20] != orders[1][0][:20]


def test_items_are_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    config = DataConfig(name="imagefolder", root=write_images(tmp_path), augment="imagenet")
    data = load_data(config, input_size=8, seed=0)
    alone = batches(data, batch_size=4, epoch=1)
    assert equal(alone, batches(data, batch_size=4, epoch=1, workers=2))
    unshuffled = [batches(data, batch_size=4, epoch=epoch, shuffle=False) for epoch in (1, 2)]
    assert not equal(*unshuffled)
    assert not equal(alone, batches(data, batch_size=4, epoch=2, workers=2))


def test_a_batch_that_is_larger_than_the_part() -> None:
    with pytest.raises(DataError, match=r"'test' has \d+ images.*lower the batch size"):
        digits().loader("test", batch_size=4000, drop_last=True)


def test_unknown_part() -> None:
    with pytest.raises(
        DataError, match="no part 'validation' of a data set; parts are weights, architecture, training, test"
    ):
        digits().loader("validation", batch_size=2)


def test_only_training_parts_are_augmented() -> None:
    data = digits(augment="crop")
    for part, changes in (("weights", True), ("training", True), ("architecture", False), ("test", False)):
        loader = data.loader(part, batch_size=8)
        first = next(iter(loader))[0]
        loader.sampler.set_epoch(1)
        assert torch.equal(first, next(iter(loader))[0]) != changes


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", ["none", "crop", "imagenet"])
def test_rand_augment_works_on_grey_and_colour(augment: Any, channels: int) -> None:
    data = digits(augment=augment, options={"channels": channels})
    plain, augmented = (batches(data, rand_augment=text)[0][0] for text in (None, "rand-m9-mstd0.5"))
    assert augmented.shape == plain.shape
    assert torch.isfinite(augmented).all()
    assert not torch.equal(augmented, plain)


def test_rand_augment_that_timm_does_not_know() -> None:
    with pytest.raises(ConfigError, match="rand_augment = 'autumn' is not timm's RandAugment"):
        digits().loader("weights", batch_size=8, rand_augment="autumn")


def test_image_data_of_foreign_data_sets_is_seeded_too() -> None:
    class Noisy(Listed):
        def __getitem__(self, index: int) -> Any:
            return torch.rand(1, 8, 8), index % 2

    noisy = Noisy([0] * 8, [0, 1] * 4)
    data = ImageData(2, 1, 8, (0.5,), (0.5,), "bicubic", *[noisy] * 4)
    assert equal(batches(data, batch_size=4), batches(data, batch_size=4))
    assert not equal(batches(data, batch_size=4), batches(data, batch_size=4, epoch=1))


def test_pretrained_cfg_is_understood_by_timm() -> None:
    data = digits()
    config = data.pretrained_cfg()
    assert config["label_names"] == [str(number) for number in range(10)]
    model = timm.create_model("mobilenetv2_035", pretrained_cfg_overlay=config, num_classes=10, in_chans=1)
    resolved = resolve_data_config(model=model)
    assert tuple(resolved["input_size"]) == (1, 16, 16)
    assert tuple(resolved["mean"]) == data.mean
    assert tuple(resolved["std"]) == data.std
    assert resolved["crop_pct"] == 1.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mean": (0.5, 0.5)}, "mean = .* has 2 values for images of 1 channels"),
        ({"class_names": ("one",)}, "1 class names are given for 2 classes"),
        ({"test": Listed([], [])}, "the part 'test' of the data set is empty"),
    ],
)
def test_image_data_that_contradicts_itself(changes: dict[str, Any], message: str) -> None:
    fields = {"mean": (0.5,), "std": (0.5,), **dict.fromkeys(PARTS, tensors(2)), **changes}
    with pytest.raises(DataError, match=message):
        ImageData(num_classes=2, channels=1, input_size=8, interpolation="bicubic", **fields)
