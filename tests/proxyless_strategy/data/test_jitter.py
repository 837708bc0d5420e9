"""Colours of a batch, against Pillow's by way of torchvision, and against values by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from torchvision.transforms import functional

from proxyless_strategy.data.jitter import jittered, luma

FUNCTIONS: Any = (
    functional.adjust_brightness,
    functional.adjust_contrast,
    functional.adjust_saturation,
    functional.adjust_hue,
)
SAME = (1.0, 1.0, 1.0, 0.0)


def images(channels: int = 3) -> torch.Tensor:
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    ramp = np.broadcast_to(np.arange(96, dtype=np.uint8)[:, None, None] * 2, (96, 96, 3))
    real = [load_sample_image(f"{name}.jpg")[100:196, 200:296] for name in ("china", "flower")]
    stacked = torch.from_numpy(np.stack([*real, noise, ramp])).permute(0, 3, 1, 2)
    return stacked[:, :channels].contiguous()


def by_pillow(image: torch.Tensor, order: Any, factors: Any) -> torch.Tensor:
    pixels = image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0])
    for number in order:
        picture = FUNCTIONS[number](picture, factors[number])
    return torch.from_numpy(np.asarray(picture).copy()).reshape(96, 96, -1).permute(2, 0, 1).float()


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("number", range(4))
def test_each_operation_is_pillows(number: int, channels: int) -> None:
    given = images(channels)
    for value in (0.6, 0.83, 1.0, 1.4) if number < 3 else (-0.1, -0.03, 0.0, 0.1, 0.5):
        factors = list(SAME)
        factors[number] = value
        # A hue that is turned by nothing goes through 8 bits all the same, in Pillow too.
        order = [number, *(each for each in range(4) if each != number)]
        expected = torch.stack([by_pillow(image, order, factors) for image in given])
        given_factors = torch.tensor([factors] * len(given), dtype=torch.float64)
        found = jittered(given.float(), torch.tensor([order] * len(given)), given_factors)
        assert torch.equal(found, expected), (value, float((found - expected).abs().max()))


def test_each_image_has_its_own_factors_in_its_own_order() -> None:
    given = images()
    orders = [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]]
    factors = [[0.7, 1.3, 0.8, 0.05], [1.3, 0.7, 1.4, -0.08], [1.1, 0.6, 1.2, 0.1], [0.9, 1.4, 0.6, -0.02]]
    expected = torch.stack([by_pillow(*each) for each in zip(given, orders, factors, strict=True)])
    found = jittered(given.float(), torch.tensor(orders), torch.tensor(factors, dtype=torch.float64))
    assert torch.equal(found, expected)
    other = torch.stack([by_pillow(*each) for each in zip(given, orders[::-1], factors, strict=True)])
    assert float((other - expected).abs().mean()) > 0.3, "the order does not show in these pictures"


def test_the_hue_of_pure_colours_turns_by_a_third() -> None:
    red = torch.tensor([255.0, 0, 0]).view(1, 3, 1, 1)
    order = torch.tensor([[3, 0, 1, 2]])
    third = jittered(red.clone(), order, torch.tensor([[1.0, 1, 1, 1 / 3]], dtype=torch.float64)).flatten().tolist()
    assert third == [0, 255, 0]
    grey = torch.full((1, 3, 1, 1), 77.0)
    assert torch.equal(jittered(grey.clone(), order, torch.tensor([[1.0, 1, 1, 0.3]], dtype=torch.float64)), grey), (
        "grey has no hue"
    )


def test_grey_is_pillows() -> None:
    given = images()
    expected = [np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L")) for image in given]
    assert np.array_equal(luma(given.float()).squeeze(1).numpy(), np.stack(expected))
