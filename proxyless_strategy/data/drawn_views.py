"""What a training transform does to a picture, drawn from the random numbers that the transform itself would draw.

The transform works on PIL images; a decoder on a GPU works on a batch. So the draws are taken apart from the pixels:
same generators, same order, same numbers, whichever of the two then crops, flips and colours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from timm.data.transforms import MaybePILToTensor, MaybeToTensor, RandomResizedCropAndInterpolation
from torchvision import transforms

from hardware.errors import DataError

from .reading import Reader

_LETTERS: dict[type, str] = {
    Reader: "r",
    RandomResizedCropAndInterpolation: "P",
    transforms.Resize: "S",
    transforms.CenterCrop: "C",
    MaybePILToTensor: "t",
    transforms.RandomCrop: "K",
    transforms.RandomHorizontalFlip: "F",
    transforms.ColorJitter: "J",
    MaybeToTensor: "d",
    transforms.ConvertImageDtype: "d",
    transforms.Normalize: "N",
    transforms.RandomErasing: "E",
}
_ORDER = re.compile("r(PF?J?|SCtK?F?)dNE?")
_UNCHANGED = (0, 1, 2, 3), (1.0, 1.0, 1.0, 0.0)


class View(NamedTuple):
    """Which part of a picture becomes the `size x size` output, in pixels.

    A box is cut out and resized to `rows x columns`; the output begins at (`y`, `x`) of that, and outside of the
    window from (`first_row`, `first_column`) to before (`last_row`, `last_column`) it is black.
    """

    top: int
    left: int
    height: int
    width: int
    rows: int
    columns: int
    y: int
    x: int
    first_row: int
    last_row: int
    first_column: int
    last_column: int
    flipped: bool


class Drawn(NamedTuple):
    """What was drawn for one picture.

    Attributes:
        view: Its part, resized.
        order: Of brightness, contrast, saturation and hue, by their numbers 0..3.
        factors: Of the four in that numbering; 1, 1, 1 and 0 change nothing.
        erased: Top, left, height and width of what the output loses; zeros for nothing.
    """

    view: View
    order: tuple[int, ...] = _UNCHANGED[0]
    factors: tuple[float, ...] = _UNCHANGED[1]
    erased: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one training transform.

    Attributes:
        steps: The transform's own objects, in order: each draws by its own method.
        size: Height and width of the output.
        interpolation: How the transform resizes, in timm's words.
        coloured: Whether colours are jittered.
    """

    steps: Sequence[Any]
    size: int
    interpolation: str
    coloured: bool

    def __call__(self, height: int, width: int) -> Drawn:
        """Draw from the global generators what the transform would for a picture of this size."""
        view = View(0, 0, height, width, height, width, 0, 0, 0, height, 0, width, False)
        drawn = Drawn(view)
        for step in self.steps:
            if isinstance(step, RandomResizedCropAndInterpolation):
                top, left, tall, wide = step.get_params(_blank(height, width), step.scale, step.ratio)
                view = View(top, left, tall, wide, self.size, self.size, 0, 0, 0, self.size, 0, self.size, False)
            elif isinstance(step, transforms.Resize):
                rows, columns = _resized(height, width, step.size)
                view = view._replace(rows=rows, columns=columns)
            elif isinstance(step, transforms.CenterCrop):
                # torchvision's rounding, by which an odd remainder falls to either side.
                y, x = round((view.rows - self.size) / 2.0), round((view.columns - self.size) / 2.0)
                view = view._replace(
                    y=y, x=x, first_row=y, last_row=y + self.size, first_column=x, last_column=x + self.size
                )
            elif isinstance(step, transforms.RandomCrop):
                side = self.size + 2 * int(step.padding)
                down, right, _, _ = step.get_params(_blank(side, side), step.size)
                view = view._replace(y=view.y + down - int(step.padding), x=view.x + right - int(step.padding))
            elif isinstance(step, transforms.RandomHorizontalFlip):
                view = view._replace(flipped=bool(torch.rand(1) < step.p))
            elif isinstance(step, transforms.ColorJitter):
                order, *factors = step.get_params(step.brightness, step.contrast, step.saturation, step.hue)
                given = [same if value is None else value for value, same in zip(factors, _UNCHANGED[1], strict=True)]
                drawn = drawn._replace(order=tuple(order.tolist()), factors=tuple(given))
            elif isinstance(step, transforms.RandomErasing) and bool(torch.rand(1) < step.p):
                box = step.get_params(_blank(self.size, self.size), step.scale, step.ratio, [0.0])
                drawn = drawn._replace(erased=tuple(box[:4]))
        return drawn._replace(view=view)


def draws_of(transform: Any, size: int) -> Draws:
    """Take a training transform apart.

    Args:
        transform: What `transforms.train_transform` builds, and Cutout after it.
        size: Height and width of its images.

    Raises:
        DataError: It does something that a batch on a GPU does not.
    """
    steps = list(_flat(transform))
    strange = [step for step in steps if type(step) not in _LETTERS]
    if strange or not _ORDER.fullmatch("".join(_LETTERS[type(step)] for step in steps)):
        named = ", ".join(type(step).__name__ for step in strange or steps)
        raise DataError(
            f"data.decoder = nvjpeg crops and colours batches on the GPU, where there is no {named}; set data.decoder "
            "to pillow"
        )
    resizing: Any = next(
        step for step in steps if isinstance(step, RandomResizedCropAndInterpolation | transforms.Resize)
    )
    return Draws(
        steps=steps,
        size=size,
        interpolation=str(resizing.interpolation.value),
        coloured=any(isinstance(step, transforms.ColorJitter) for step in steps),
    )


def _flat(transform: Any) -> Any:
    if isinstance(transform, transforms.Compose):
        for step in transform.transforms:
            yield from _flat(step)
    else:
        yield transform


def _blank(height: int, width: int) -> torch.Tensor:
    """Return a tensor of a picture's shape and no memory: torchvision's draws ask for the shape alone."""
    return torch.empty(()).expand(3, height, width)


def _resized(height: int, width: int, size: Any) -> tuple[int, int]:
    """Return the rows and columns that torchvision resizes to; one number is the shorter side."""
    if not isinstance(size, int) and len(size) == 2:
        return size[0], size[1]
    shorter = size if isinstance(size, int) else size[0]
    longer = int(shorter * max(height, width) / min(height, width))
    return (shorter, longer) if height <= width else (longer, shorter)
