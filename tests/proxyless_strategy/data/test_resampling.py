"""Crop, resize, shift and flip of a batch by two products of matrices, against sums by hand and against Pillow."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from proxyless_strategy.data import resampling
from proxyless_strategy.data.drawn_views import View
from proxyless_strategy.data.resampling import resampled

PILLOW = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}
LEVELS, MEAN = 1, 0.03
"""Of 255: how far a pixel may be from Pillow's, and how far all may be on average. Pillow adds up whole numbers of 22
bits, and a float32 has 24: a sum that is all but a half may be rounded to the other side."""
MADE = ("stripes", "noise")
"""Pictures full of such sums."""
AS_IT_IS = 0.3
"""The average where Pillow chooses by which axis it begins, and so what it rounds first."""


def whole(height: int, width: int, size: int) -> View:
    return View(0, 0, height, width, size, size, 0, 0, 0, size, 0, size, False)


def smooth() -> np.ndarray:
    rows, columns = np.mgrid[0:300, 0:420] / 60
    waves = [np.sin(rows + shift) * np.cos(columns - shift) for shift in (0, 1, 2)]
    return np.rint(127.5 + 120 * np.stack(waves, -1)).astype(np.uint8)


def stripes() -> np.ndarray:
    """The finest there are, which turn into coarse ones where a picture is made smaller without a filter."""
    lines = np.zeros((331, 487, 3), np.uint8)
    lines[:, ::2] = (251, 17, 140)
    lines[::2, :, 1] = 90
    return lines


def pictures() -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0).integers(0, 256, (260, 190, 3), dtype=np.uint8)
    real = {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    return {**real, "smooth": smooth(), "stripes": stripes(), "noise": noise}


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)


def by_pillow(
    pixels: np.ndarray, view: View, size: int, interpolation: str, *, columns_first: bool = True
) -> torch.Tensor:
    box = (view.left, view.top, view.left + view.width, view.top + view.height)
    image = Image.fromarray(pixels).crop(box)
    if columns_first:
        image = image.resize((size, image.height), PILLOW[interpolation])
    image = image.resize((size, size), PILLOW[interpolation])
    if view.flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return tensor(np.asarray(image))


@pytest.mark.parametrize("interpolation", sorted(PILLOW))
def test_boxes_become_what_pillow_makes_of_them(interpolation: str) -> None:
    drawn = random.Random(0)
    given, views, expected, as_it_is = [], [], [], []
    size = 48
    for pixels in pictures().values():
        high, wide = pixels.shape[:2]
        odd = ((high - 1) | 1, (wide - 1) | 1)
        boxes = [(0, 0, *odd), (high - 7, wide - 5, 7, 5), (0, 0, 1, odd[1]), (3, 2, size, size)]
        for _ in range(1):
            # Odd: no centre of a new pixel lies between two old ones, where nearest hangs on the last bit.
            height, width = drawn.randrange(1, high, 2), drawn.randrange(1, wide, 2)
            boxes.append((drawn.randint(0, high - height), drawn.randint(0, wide - width), height, width))
        for number, box in enumerate(boxes):
            view = whole(1, 1, size)._replace(**dict(zip(View._fields, box, strict=False)), flipped=number % 2 == 1)
            given.append(tensor(pixels))
            views.append(view)
            expected.append(by_pillow(pixels, view, size, interpolation))
            as_it_is.append(by_pillow(pixels, view, size, interpolation, columns_first=False))
    found = resampled(given, torch.tensor(views), size=size, interpolation=interpolation)
    away = (found - torch.stack(expected)).abs()
    assert float(away.max()) <= LEVELS
    assert float(away.mean()) <= 2 * MEAN
    assert float((found - torch.stack(as_it_is)).abs().mean()) <= AS_IT_IS


@pytest.mark.parametrize("size", [5, 16, 224])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_pictures_made_much_smaller_or_larger(interpolation: str, size: int) -> None:
    for name, pixels in pictures().items():
        view = whole(*pixels.shape[:2], size)
        found = resampled([tensor(pixels)], torch.tensor([view]), size=size, interpolation=interpolation)[0]
        away = (found - by_pillow(pixels, view, size, interpolation)).abs()
        assert float(away.max()) <= LEVELS, name
        assert float(away.mean()) <= MEAN or name in MADE, name


def test_fine_stripes_made_smaller_are_grey() -> None:
    """Half of the pixels are 0 and half 255: a filter as wide as the scale has their mean, any other has not."""
    pixels = np.zeros((64, 64, 1), np.uint8)
    pixels[:, ::2] = 255
    found = resampled([tensor(pixels)], torch.tensor([whole(64, 64, 4)]), size=4, interpolation="box")
    assert torch.equal(found, torch.full((1, 1, 4, 4), 128.0))


def test_a_line_made_twice_as_long_is_halfway_between() -> None:
    """Centres of the new pixels lie at 1/4 and 3/4 of the old ones: of 0 and 100, 0, 25, 75 and 100."""
    line = tensor(np.array([[[0], [100]]], np.uint8))
    found = resampled([line], torch.tensor([whole(1, 2, 4)]), size=4, interpolation="bilinear")
    assert found[0, 0, 0].tolist() == [0, 25, 75, 100]


def test_a_window_that_is_shifted_shows_black_beyond_it() -> None:
    pixels = np.arange(1, 37, dtype=np.uint8).reshape(6, 6, 1)
    expected = torch.zeros(4, 4)
    expected[1:, :3] = torch.from_numpy(pixels[1:4, 2:5, 0].astype(np.float32))
    # Rows 1..4 and columns 1..4 are shown; the result begins a row above them, and a column to the right.
    view = View(0, 0, 6, 6, 6, 6, 0, 2, 1, 5, 1, 5, False)
    found = resampled([tensor(pixels)] * 2, torch.tensor([view, view._replace(flipped=True)]), size=4, **CUBIC)
    assert torch.equal(found[0, 0], expected)
    assert torch.equal(found[1, 0], expected.flip(-1))


CUBIC: dict[str, Any] = {"interpolation": "bicubic"}


def test_what_else_is_in_the_batch_changes_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    given = list(pictures().values())
    views = [whole(*pixels.shape[:2], 24) for pixels in given]
    together = resampled([tensor(pixels) for pixels in given], torch.tensor(views), size=24, **CUBIC)
    alone = [
        resampled([tensor(pixels)], torch.tensor([view]), size=24, **CUBIC)
        for pixels, view in zip(given, views, strict=True)
    ]
    assert float((together - torch.cat(alone)).abs().max()) <= LEVELS
    monkeypatch.setattr(resampling, "MOST_PIXELS", 400_000)
    assert len(resampling._groups(torch.tensor(views))) > 1
    divided = resampled([tensor(pixels) for pixels in given], torch.tensor(views), size=24, **CUBIC)
    assert float((together - divided).abs().max()) <= LEVELS


def test_one_large_picture_does_not_make_the_others_large() -> None:
    boxes = [(100, 100)] * 50 + [(9000, 9000)] + [(100, 120)] * 50
    groups = resampling._groups(torch.tensor([whole(*box, 8) for box in boxes]))
    assert sorted(number for group in groups for number in group) == list(range(101))
    assert [50] in groups
    assert max(map(len, groups)) == 100


def test_under_autocast_it_is_the_same() -> None:
    pixels = pictures()["china"]
    arguments: Any = ([tensor(pixels)], torch.tensor([whole(*pixels.shape[:2], 64)]))
    plain = resampled(*arguments, size=64, **CUBIC)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resampled(*arguments, size=64, **CUBIC), plain)
