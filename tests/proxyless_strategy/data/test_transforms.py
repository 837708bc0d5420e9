"""The plain and the training transform."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config

from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.datasets import ItemImages
from proxyless_strategy.data.sources import load_data
from tests.proxyless_strategy.data.samples import write_images


def test_plain_transform_is_what_timm_makes_of_the_pretrained_cfg(tmp_path: Path) -> None:
    config = DataConfig(name="imagefolder", root=write_images(tmp_path), options={"crop_pct": 0.875})
    data = load_data(config, input_size=8, seed=0)
    resolved = resolve_data_config(pretrained_cfg=data.pretrained_cfg())
    path = data.test.source.samples[0][0]
    expected = create_transform(**resolved)(Image.open(path).convert("RGB"))
    assert torch.equal(data.test[0][0], expected)


@pytest.mark.parametrize("augment", ["none", "crop", "crop_flip"])
def test_augmented_items_are_normalised_as_plain_ones(tmp_path: Path, augment: Any) -> None:
    data = load_data(DataConfig(name="imagefolder", root=write_images(tmp_path), augment=augment), input_size=8, seed=0)
    plain = {data.training.source.samples[i][0]: data.training.source[i][0] for i in range(18)}
    assert len(plain) == 18
    image, _ = data.weights[0]
    expected, _ = ItemImages(data.weights.source, data.weights.indices, data.test.transform)[0]
    assert torch.allclose(image.mean(), expected.mean(), atol=1.0)
    if augment == "none":
        assert torch.allclose(image, expected, atol=1e-6)
