"""Pillow's brightness, contrast, saturation and hue of many images at once, each by its own factors in its own order.

Every operation ends in 8 bits, as Pillow's do, so that images come out as a worker process would have made them.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LUMA = (19595, 38470, 7471)
"""Of red, green and blue, in 65536ths: ITU-R BT.601 as Pillow rounds it."""


def luma(images: Tensor) -> Tensor:
    """Return the `B x 1 x H x W` grey of `B x 3 x H x W` images, with whole values from 0 to 255 in float32."""
    red, green, blue = images.unbind(1)
    # Whole numbers below 2^24 are exact in float32.
    total = red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2] + 0x8000
    return (total / 0x10000).floor().unsqueeze(1)


def jittered(images: Tensor, order: Tensor, factors: Tensor) -> Tensor:
    """Change each image's colours.

    Args:
        images: `B x C x H x W` with whole values from 0 to 255, float32; changed in place.
        order: `B x 4`, on the CPU: the numbers of the operations (0 brightness, 1 contrast, 2 saturation, 3 hue).
        factors: `B x 4`, on the CPU, by those numbers: three factors, and the hue's share of a turn.
    """
    grey = images.shape[1] == 1
    for position in range(4):
        for number in range(4):
            which = (order[:, position] == number).nonzero().flatten()
            if not len(which) or (grey and number >= 2):  # grey has neither saturation nor hue
                continue
            where = which.to(images.device)
            factor = factors[which, number].to(images.device).view(-1, 1, 1, 1)
            images[where] = _changed(images[where], number, factor)
    return images


def _changed(images: Tensor, number: int, factor: Tensor) -> Tensor:
    if number == 0:
        return _blended(torch.zeros_like(images), images, factor)
    if number == 3:
        return _turned(images, factor)
    grey = luma(images) if images.shape[1] == 3 else images
    if number == 1:
        grey = (grey.mean((1, 2, 3), keepdim=True, dtype=torch.float64) + 0.5).floor().float()
    return _blended(grey, images, factor)


def _blended(away: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Go from one picture to another and on; Pillow cuts fractions off where it does not round them."""
    return (away + factor.float() * (images - away)).clamp_(0, 255).floor_()


def _turned(images: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue, in Pillow's HSV of 8 bits each.

    With the greatest channel V, the least m and the middle one, hue is a place on a hexagon: which channel is V, and
    where the middle one lies between m and V.

    Sums are in float64 and what Pillow keeps is in float32, as in its C: a hue that is rounded to the next of 256 would
    change a saturated colour by 6 levels.
    """
    red, green, blue = images.unbind(1)
    value, least = images.amax(1), images.amin(1)
    span = value - least
    safe = torch.where(span == 0, 1.0, span)
    to_red, to_green, to_blue = (((value - channel) / safe).double() for channel in (red, green, blue))
    sector = torch.where(
        red == value,
        to_blue - to_green,
        torch.where(green == value, 2 + to_red - to_blue, 4 + to_green - to_red),
    )
    hue = (((sector.float().double() / 6 + 1) % 1).float().double() * 255).floor()
    hue = torch.where(span == 0, 0.0, hue)
    saturation = ((span / torch.where(value == 0, 1.0, value)).double() * 255).floor()
    # Pillow's hue is a byte, which wraps around.
    hue = (hue + (turn.view(-1, 1, 1) * 255).trunc()) % 256
    place = hue * 6 / 255
    side = place.floor()
    inner, strength = (place - side).float().double(), (saturation / 255).float().double()
    # Of three channels one is V, one the least, and the third falls or rises along the side.
    low = _rounded(value * (1 - strength))
    falling = _rounded(value * (1 - strength * inner))
    rising = _rounded(value * (1 - strength * (1 - inner)))
    channels = torch.stack([value.double(), falling, low, rising])
    # By side: which of the four is red, green, blue.
    table = torch.tensor([[0, 3, 2], [1, 0, 2], [2, 0, 3], [2, 1, 0], [3, 2, 0], [0, 2, 1]], device=images.device)
    chosen = table[side.long() % 6].permute(3, 0, 1, 2)
    return channels.gather(0, chosen).permute(1, 0, 2, 3).float()


def _rounded(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp_(0, 255)
