"""Images of your own: a function that returns three data sets, for weights, architecture and test.

A search config names it as `data: my_data:stripes`. The function gets `data.root` (None where the config has none) and
`data.options` as keyword arguments. The module lies beside the YAML or in the current folder.

A data set has `len()` and gives pairs of an image and a class number. Images are PIL images, which are resized to
`input_size`, augmented and normalised; or `C x H x W` float tensors, which are used as they are. `classes` names the
classes. `targets` spares reading every image for its label.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

ANGLES = (0, 45, 90, 135)


class Stripes:
    """Grey pictures of noisy stripes; the class is their angle.

    Args:
        count: Number of pictures.
        size: Height and width in pixels.
        seed: Seed of the noise and of the stripes' distance and position; every part needs its own.
    """

    classes = tuple(f"{angle} degrees" for angle in ANGLES)

    def __init__(self, count: int, *, size: int, seed: int):
        self.size = size
        self.seed = seed
        self.targets = [index % len(ANGLES) for index in range(count)]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        label = self.targets[index]  # raises IndexError at the end, by which Python's iteration stops
        generator = np.random.default_rng((self.seed, index))  # a picture is the same whenever it is read
        angle = math.radians(ANGLES[label])
        y, x = np.mgrid[: self.size, : self.size]
        wave = 2 * math.pi * (x * math.cos(angle) + y * math.sin(angle)) / generator.uniform(4, 8)
        picture = 128 + 60 * np.sin(wave + generator.uniform(0, 2 * math.pi)) + generator.normal(0, 40, x.shape)
        return Image.fromarray(picture.clip(0, 255).astype(np.uint8)), label


def stripes(root: Path | None, *, count: int = 400, size: int = 24) -> tuple[Stripes, ...]:
    """Draw the parts for weights, architecture and test, which must not overlap.

    Args:
        root: `data.root`, for files; these pictures are drawn and need none.
        count: Pictures for weights; the other parts have half as many each.
        size: Height and width of a picture in pixels.
    """
    return tuple(Stripes(n, size=size, seed=seed) for seed, n in enumerate((count, count // 2, count // 2)))
