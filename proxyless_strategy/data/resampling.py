"""Pillow's crop-and-resize of many pictures at once, as two products of matrices on any device.

Pillow's resampling is separable: a row of the result is a weighted sum of the rows in the box, and so is a column. Both
sums are linear, so for one picture X (of one channel) the result is V X H^T, and for a batch two batched products. The
crop, the flip and a shift over a black border are rows of V and H too, so that they cost nothing. When a picture is
made smaller the filter widens with the scale, which keeps high frequencies from coming back as others.

Between the passes and after them Pillow rounds to 8 bits; so does this. Columns come first, as in Pillow before 13,
which since then begins with the rows where those become many fewer: a level more or less in some pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MOST_PIXELS = 1 << 26
"""Of the padded pictures that are resampled together; in float32 they take 0.8 GB."""


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_(min=0)


def _cubic(x: Tensor) -> Tensor:
    """Keys' cubic convolution with a = -1/2 (IEEE TASSP 29, 1981, equation 4)."""
    a, x = -0.5, x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _box(x: Tensor) -> Tensor:
    return ((x > -0.5) & (x <= 0.5)).to(x.dtype)


def _hamming(x: Tensor) -> Tensor:
    window = 0.54 + 0.46 * torch.cos(math.pi * x)
    return torch.where(x.abs() < 1, torch.sinc(x) * window, torch.zeros_like(x))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 3, torch.sinc(x) * torch.sinc(x / 3), torch.zeros_like(x))


FILTERS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "bilinear": (_triangle, 1.0),
    "bicubic": (_cubic, 2.0),
    "box": (_box, 0.5),
    "hamming": (_hamming, 1.0),
    "lanczos": (_lanczos, 3.0),
}
"""By the distance in pixels of the coarser of the two grids, and how far they reach."""


def axis_weights(
    length: Tensor,
    resized: Tensor,
    start: Tensor,
    window: tuple[Tensor, Tensor],
    flipped: Tensor,
    *,
    size: int,
    interpolation: str,
) -> Tensor:
    """Return what each pixel along one axis of a box weighs in each of `size` pixels of the result.

    Args:
        length: Pixels of each of `B` boxes along the axis.
        resized: What they are resized to.
        start: Where in that the result begins; it may be negative.
        window: First pixel of it that is shown, and the one behind the last; others are black.
        flipped: Whether the result is mirrored.
        size: Pixels of the result.
        interpolation: `nearest` or one of `FILTERS`.

    Returns:
        `B x size x longest box`, float32; rows sum to 1, or to 0 where they are black.
    """
    length, resized, start, first, last = (value.view(-1, 1) for value in (length, resized, start, *window))
    pixel = torch.arange(size, device=length.device)
    place = start + torch.where(flipped.view(-1, 1), size - 1 - pixel, pixel)
    shown = (place >= first) & (place < last)
    # In float64, as Pillow does: in float32 the centre of a pixel in a large picture is off by a part of it.
    scale = length.double() / resized
    centre = ((place + 0.5) * scale).unsqueeze(-1)
    source = torch.arange(int(length.max()), device=length.device)
    if interpolation == "nearest":
        weights = (source == centre.floor()).double()
    else:
        # Pillow's own order of operations, and its own ends: at the edge of a box filter the last bit decides.
        kernel, reach = FILTERS[interpolation]
        stretch = scale.clamp(min=1).unsqueeze(-1)
        reached = (source >= (centre - reach * stretch + 0.5).floor()) & (
            source < (centre + reach * stretch + 0.5).floor()
        )
        weights = kernel((source - centre + 0.5) * (1 / stretch)) * reached
    weights = weights * (source < length.unsqueeze(-1))
    total = weights.sum(-1, keepdim=True)
    # A row outside of the box may have no pixel at all; it is black, not 0 / 0.
    return (weights / torch.where(total == 0, 1.0, total) * shown.unsqueeze(-1)).float()


def resampled(pictures: Sequence[Tensor], views: Tensor, *, size: int, interpolation: str) -> Tensor:
    """Cut a box out of each picture, resize it, shift and flip it, as `views` say.

    Args:
        pictures: `C x H x W` uint8 each, on one device, of one number of channels.
        views: `B x 13` integers, rows of `drawn_views.View`, on the CPU.
        size: Height and width of the result.
        interpolation: In timm's words.

    Returns:
        `B x C x size x size`, float32 with whole values from 0 to 255.
    """
    channels, device = pictures[0].shape[0], pictures[0].device
    result = torch.empty(len(pictures), channels, size, size, device=device)
    for group in _groups(views):
        boxes = views[group]
        high, wide = int(boxes[:, 2].max()), int(boxes[:, 3].max())
        padded = torch.zeros(len(group), channels, high, wide, dtype=torch.uint8, device=device)
        for slot, number in zip(padded, group, strict=True):
            top, left, height, width = views[number, :4].tolist()
            slot[:, :height, :width] = pictures[number][:, top : top + height, left : left + width]
        _, _, height, width, rows, columns, y, x, first_row, last_row, first_column, last_column, flipped = boxes.to(
            device
        ).unbind(1)
        upright = torch.zeros_like(flipped, dtype=torch.bool)
        shared = {"size": size, "interpolation": interpolation}
        across = axis_weights(width, columns, x, (first_column, last_column), flipped.bool(), **shared)  # type: ignore[arg-type]
        down = axis_weights(height, rows, y, (first_row, last_row), upright, **shared)  # type: ignore[arg-type]
        # A training step's autocast would round weights to 8 bits; pixels between 0 and 255 are whole in any format.
        with torch.autocast(device.type, enabled=False):
            lines = _to_8_bits(torch.bmm(padded.flatten(1, 2).float(), across.transpose(1, 2)))
            lines = lines.view(len(group), channels, high, size).permute(0, 2, 1, 3).flatten(2)
            found = _to_8_bits(torch.bmm(down, lines)).view(len(group), size, channels, size)
        result[torch.tensor(group, device=device)] = found.permute(0, 2, 1, 3)
    return result


def _to_8_bits(values: Tensor) -> Tensor:
    """Round halves up, as Pillow does, and cut off what sharp filters overshoot."""
    return values.add_(0.5).floor_().clamp_(0, 255)


def _groups(views: Tensor) -> list[list[int]]:
    """Divide pictures into groups of like size, of which each padded to its largest box is at most `MOST_PIXELS`."""
    heights, widths = views[:, 2].tolist(), views[:, 3].tolist()
    groups: list[list[int]] = []
    high = wide = 0
    for number in sorted(range(len(views)), key=lambda each: heights[each] * widths[each]):
        high, wide = max(high, heights[number]), max(wide, widths[number])
        if groups and (len(groups[-1]) + 1) * high * wide <= MOST_PIXELS:
            groups[-1].append(number)
        else:
            groups.append([number])
            high, wide = heights[number], widths[number]
    return groups
