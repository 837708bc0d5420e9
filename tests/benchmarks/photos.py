"""120 photos of three classes in one folder, as a new user has them: crops of the photos that packages ship.

    .venv/bin/python -m tests.benchmarks.photos FOLDER [--each 40] [--seed 0]

scikit-learn ships a temple and a flower, matplotlib a portrait. Crops are of different sizes and places, a third of
them mirrored, saved as JPEG in `FOLDER/CLASS/`. What `proxyless init FOLDER --split`, `search` and `report` then do is
the shortest way from photos to a deployed ONNX file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib import cbook
from PIL import Image
from sklearn.datasets import load_sample_image

SMALLEST = 0.35
"""Least side of a crop, as a share of the photo's shorter side."""


def write_photos(folder: Path, *, each: int = 40, seed: int = 0) -> list[Path]:
    """Write the photos; return their files.

    Args:
        folder: A new folder, or an empty one.
        each: Photos of a class.
        seed: Seed of the crops.
    """
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} is not empty; name a new folder")
    generator = np.random.default_rng(seed)
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        portrait = Image.open(file).convert("RGB")
    photos = {
        "temple": Image.fromarray(load_sample_image("china.jpg")),
        "flower": Image.fromarray(load_sample_image("flower.jpg")),
        "portrait": portrait,
    }
    written = []
    for name, photo in photos.items():
        place = folder / name
        place.mkdir(parents=True, exist_ok=True)
        for number in range(each):
            side = int(min(photo.size) * generator.uniform(SMALLEST, 0.9))
            width, height = side, int(side * generator.uniform(0.8, 1.0))
            left = int(generator.integers(0, photo.width - width + 1))
            top = int(generator.integers(0, photo.height - height + 1))
            crop = photo.crop((left, top, left + width, top + height))
            if generator.random() < 1 / 3:
                crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            path = place / f"{name}_{number:03}.jpg"
            crop.save(path, quality=88)
            written.append(path)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--each", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    written = write_photos(arguments.folder, each=arguments.each, seed=arguments.seed)
    print(f"{len(written)} photos in {arguments.folder}")


if __name__ == "__main__":
    main()
