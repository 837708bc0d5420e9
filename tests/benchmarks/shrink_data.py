"""Fashion-MNIST as an image folder: some training images of every class by a fixed seed, and the test images.

    .venv/bin/python -m tests.benchmarks.shrink_data --data ROOT --out FOLDER [--train 2000] [--test 10000] [--seed 0]

ROOT holds Fashion-MNIST's four idx files, packed or not (/usr/share/datasets/fashion-mnist of Debian's package
`dataset-fashion-mnist`). The pictures are grey, 28 pixels high and wide, and written as they are: whoever reads them
makes them colour pictures of another size. The same seed always gives the same files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from hardware.files import new_folder
from proxyless_strategy.data.idx import read_idx

CLASSES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")


def chosen(labels: np.ndarray, count: int, *, seed: int, option: str = "--train") -> np.ndarray:
    """Choose images, equally many of each class.

    Args:
        labels: The class of each image.
        count: How many in all; a multiple of the number of classes.
        seed: Seed of the choice.
        option: What asked for so many, for messages.

    Returns:
        Their numbers, in ascending order.
    """
    classes = np.unique(labels)
    if count % len(classes) or count < len(classes):
        raise SystemExit(f"{option} {count} is no multiple of {len(classes)} classes; give one")
    generator = np.random.default_rng(seed)
    share = count // len(classes)
    found = [generator.permutation(np.flatnonzero(labels == number))[:share] for number in classes]
    if min(map(len, found)) < share:
        raise SystemExit(f"{option} {count}, but a class has {min(map(len, found))} images; give fewer")
    return np.sort(np.concatenate(found))


def write_folder(root: Path, out: Path, *, train: int, test: int, seed: int) -> None:
    """Write `out/train/CLASS/*.png` and `out/val/CLASS/*.png`, whole or not at all."""
    with new_folder(out) as beside:
        for part, start, option, count in (("train", "train", "--train", train), ("val", "t10k", "--test", test)):
            pixels = read_idx(root, f"{start}-images-idx3-ubyte")
            labels = read_idx(root, f"{start}-labels-idx1-ubyte")
            numbers = chosen(labels, count, seed=seed, option=option)
            for name in CLASSES:
                (beside / part / name).mkdir(parents=True)
            for number in numbers:
                place = beside / part / CLASSES[labels[number]] / f"{number:05d}.png"
                Image.fromarray(pixels[number]).save(place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--train", type=int, default=2000, metavar="IMAGES")
    parser.add_argument("--test", type=int, default=10_000, metavar="IMAGES")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.out.exists():
        raise SystemExit(f"{arguments.out} is there already; remove it, or give another folder")
    write_folder(arguments.data, arguments.out, train=arguments.train, test=arguments.test, seed=arguments.seed)
    print(arguments.out)


if __name__ == "__main__":
    main()
