"""Channels, normalisation and resizing of pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hardware.errors import DataError
from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.sources import check_data, load_data
from tests.proxyless_strategy.data.samples import batches, digits, write_images


def test_digits_are_normalised_with_the_training_images_own_moments() -> None:
    data = digits()
    images = torch.cat([images for images, _ in batches(data, "training", shuffle=False)])
    assert images.shape[1:] == (1, 16, 16)
    assert images.mean().item() == pytest.approx(0, abs=1e-3)
    assert images.std().item() == pytest.approx(1, abs=1e-3)


def test_digits_as_colour_images() -> None:
    data = digits(options={"channels": 3})
    images, _ = batches(data)[0]
    assert images.shape[1] == len(data.mean) == 3
    assert torch.equal(images[:, 0], images[:, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"colours": 3}, "unknown data option 'colours'; .* takes channels, mean, std, interpolation, crop_pct"),
        ({"channels": 2}, "channels = 2; it must be 1"),
        ({"mean": 0.5}, "mean = 0.5; give one number for each of the 3 channels"),
        ({"std": [0.5, 0.5]}, "give one number for each of the 3 channels"),
        ({"std": [0.5, "wide", 0.5]}, "give one number for each of the 3 channels"),
        ({"interpolation": "magic"}, "interpolation = 'magic'; use one of nearest, bilinear"),
        ({"crop_pct": 1.5}, "crop_pct = 1.5; it must be above 0"),
        ({"crop_pct": "all"}, "crop_pct = 'all'; it must be above 0"),
    ],
)
def test_impossible_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    config = DataConfig(name="imagefolder", root=write_images(tmp_path, count=2), options=options)
    with pytest.raises(DataError, match=message):
        check_data(config)
    with pytest.raises(DataError, match=message):
        load_data(config, input_size=8, seed=0)


def test_zero_std_is_refused() -> None:
    with pytest.raises(DataError, match="must be above 0"):
        digits(options={"std": [0.0]})
