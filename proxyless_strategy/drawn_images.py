"""An ImageFolder of drawn pictures, to try a search of photographs without photographs."""

from __future__ import annotations

import colorsys
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from hardware.errors import DataError
from proxyless_strategy.config import DrawnImages

QUALITY = 90


def draw_image_folder(root: Path, settings: DrawnImages) -> None:
    """Write `root/train/CLASS/*.jpg` and `root/val/CLASS/*.jpg`, whole or not at all; an existing `root` stays.

    A class is a colour and a direction of stripes; position and width of the stripes and noise differ from picture to
    picture. The same settings always give the same files.

    Args:
        root: The folder to make.
        settings: Number of classes and pictures, and their size.

    Raises:
        DataError: The folder cannot be written.
    """
    if root.exists():
        return
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{root.name}-", dir=root.parent))
    except OSError as error:
        raise DataError(f"cannot write pictures to {root}: {error.strerror}; choose another data.root") from error
    try:
        for number in range(settings.classes):
            for part, count in (("train", settings.train), ("val", settings.val)):
                folder = beside / part / f"class{number:04d}"
                folder.mkdir(parents=True)
                for index in range(count):
                    seed = (number, part == "val", index)
                    picture = _picture(number / settings.classes, settings.size, np.random.default_rng(seed))
                    picture.save(folder / f"{index:04d}.jpg", quality=QUALITY)
        beside.chmod(0o755)
        try:
            beside.rename(root)
        except OSError:
            if not root.exists():
                raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _picture(position: float, size: int, generator: np.random.Generator) -> Image.Image:
    """A picture of the class at `position` (0..1) of all classes."""
    colour = np.array(colorsys.hsv_to_rgb(position, 0.7, 0.8))
    y, x = np.mgrid[:size, :size] / size
    angle = np.pi * position
    phase = 2 * np.pi * generator.uniform(3, 5) * (x * np.cos(angle) + y * np.sin(angle)) + generator.uniform(0, 6)
    stripes = 0.5 + 0.5 * np.sin(phase)[..., None]
    pixels = colour * stripes + generator.normal(0, 0.08, (size, size, 3))
    return Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8))
