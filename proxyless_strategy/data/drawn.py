"""Data sets of drawn pictures, to try a search of photographs without photographs."""

from __future__ import annotations

import colorsys
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from hardware.errors import DataError
from hardware.files import new_folder, write_atomically, writing

from ..sections import DrawnImages

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

    def write(folder: Path) -> None:
        for number in range(settings.classes):
            for part, count in (("train", settings.train), ("val", settings.val)):
                place = folder / part / f"class{number:04d}"
                place.mkdir(parents=True)
                for index in range(count):
                    _drawn(number, part, index, settings).save(place / f"{index:04d}.jpg", quality=QUALITY)

    _appear(root, write)


def draw_cifar10(root: Path, settings: DrawnImages) -> None:
    """Write `root/cifar-10-batches-py`, whole or not at all; an existing `root` stays.

    The files have the layout of CIFAR-10's Python version (five pickled training batches, a test batch and the names
    of the classes) and the pictures of `draw_image_folder`.

    Args:
        root: The folder to make.
        settings: Number of classes and pictures.

    Raises:
        DataError: The folder cannot be written.
    """

    def write(folder: Path) -> None:
        batches = folder / "cifar-10-batches-py"
        batches.mkdir()
        names = [f"class{number:04d}" for number in range(settings.classes)]
        train = [(number, index) for index in range(settings.train) for number in range(settings.classes)]
        test = [(number, index) for index in range(settings.val) for number in range(settings.classes)]
        files = [(f"data_batch_{batch + 1}", "train", train[batch::5]) for batch in range(5)]
        for name, part, members in [*files, ("test_batch", "val", test)]:
            pictures = [np.asarray(_drawn(number, part, index, settings)) for number, index in members]
            content = {
                "batch_label": name,
                "labels": [number for number, _ in members],
                "data": np.stack([picture.transpose(2, 0, 1).reshape(-1) for picture in pictures]),
                "filenames": [f"{names[number]}_{index:04d}.png" for number, index in members],
            }
            write_atomically(batches / name, pickle.dumps(content), error=DataError)
        meta = {"num_cases_per_batch": len(files[0][2]), "label_names": names, "num_vis": 3 * settings.size**2}
        write_atomically(batches / "batches.meta", pickle.dumps(meta), error=DataError)

    _appear(root, write)


def _appear(root: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a folder beside `root`, and give it that name; an existing `root` stays."""
    if root.exists():
        return
    # another trial of the same sweep may draw it in the meantime
    with (
        writing(root, error=DataError, remedy="choose another data.root", what="cannot write pictures to"),
        new_folder(root, first_stays=True) as beside,
    ):
        write(beside)


def _drawn(number: int, part: str, index: int, settings: DrawnImages) -> Image.Image:
    # A seed for each picture: it does not depend on how many others are drawn.
    seed = (number, part == "val", index)
    return _picture(number / settings.classes, settings.size, np.random.default_rng(seed))


def _picture(position: float, size: int, generator: np.random.Generator) -> Image.Image:
    """Draw a picture of the class at `position` (0..1) of all classes."""
    colour = np.array(colorsys.hsv_to_rgb(position, 0.7, 0.8))
    y, x = np.mgrid[:size, :size] / size
    angle = np.pi * position
    phase = 2 * np.pi * generator.uniform(3, 5) * (x * np.cos(angle) + y * np.sin(angle)) + generator.uniform(0, 6)
    stripes = 0.5 + 0.5 * np.sin(phase)[..., None]
    pixels = colour * stripes + generator.normal(0, 0.08, (size, size, 3))
    return Image.fromarray((255 * pixels.clip(0, 1)).astype(np.uint8))
