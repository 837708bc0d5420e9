"""Images in memory and images read one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.datasets import ItemImages, TensorImages
from proxyless_strategy.data.images import PARTS, ImageData
from proxyless_strategy.data.sources import load_data
from tests.proxyless_strategy.data.samples import batches, write_cifar


def marked(augment: str, count: int = 64) -> torch.Tensor:
    """Images of 16 x 16 with distinct pixels, as floats that no normalisation changes."""
    image = torch.arange(1, 257, dtype=torch.float32).view(1, 1, 16, 16)
    images = TensorImages(
        image.expand(count, -1, -1, -1), torch.zeros(count).long(), torch.arange(count), (0.0,), (1.0,), augment
    )
    return next(iter(loader_of(images, count)))[0]


def loader_of(dataset: TensorImages, batch_size: int) -> Any:
    parts = dict.fromkeys(PARTS, dataset)
    data = ImageData(2, 1, 16, (0.0,), (1.0,), "bicubic", **parts)
    return data.loader("weights", batch_size=batch_size)


def test_crop_moves_by_at_most_an_eighth() -> None:
    plain, cropped = marked("none"), marked("crop")
    offsets = set()
    for image in cropped[:, 0]:
        row, column = (image[8, 8].item() - 1) // 16 - 8, (image[8, 8].item() - 1) % 16 - 8
        offsets.add((row, column))
        shifted = torch.zeros(16, 16)
        rows = slice(max(0, -int(row)), 16 - max(0, int(row)))
        columns = slice(max(0, -int(column)), 16 - max(0, int(column)))
        source_rows = slice(max(0, int(row)), 16 - max(0, -int(row)))
        source_columns = slice(max(0, int(column)), 16 - max(0, -int(column)))
        shifted[rows, columns] = plain[0, 0, source_rows, source_columns]
        assert torch.equal(image, shifted)
    assert {offset for pair in offsets for offset in pair} == {-2, -1, 0, 1, 2}


def test_flip_turns_about_half_of_the_images() -> None:
    data = TensorImages(
        torch.arange(16 * 16).float().view(1, 1, 16, 16).expand(400, -1, -1, -1),
        torch.zeros(400).long(),
        torch.arange(400),
        (0.0,),
        (1.0,),
        "crop_flip",
    )
    images, _ = next(iter(loader_of(data, 400)))
    flipped = (images[:, 0, 8, 8] > images[:, 0, 8, 9]).sum().item()
    assert 150 < flipped < 250


def test_memory_and_items_give_the_same_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    config = DataConfig(name="torchvision:CIFAR10", root=write_cifar(tmp_path, monkeypatch), options=options)
    in_memory = load_data(config, input_size=24, seed=0)
    monkeypatch.setattr("proxyless_strategy.data.torchvision_source.MEMORY_LIMIT", 0)
    by_item = load_data(config, input_size=24, seed=0)
    assert isinstance(by_item.weights, ItemImages)
    for part in PARTS:
        for (a, b), (c, d) in zip(batches(in_memory, part), batches(by_item, part), strict=True):
            assert torch.allclose(a, c, atol=1e-6)
            assert torch.equal(b, d)
