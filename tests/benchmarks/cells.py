"""Photos of solar cells, sound and broken, as an image folder: a harder set than pictures of clothes.

    .venv/bin/pip install -e '.[cells]'
    .venv/bin/python -m tests.benchmarks.cells FOLDER [--train 2000] [--seed 0]

PyPI's `elpv-dataset` has 2,624 electroluminescence pictures, 300 pixels high and wide, each with the probability of a
defect that experts gave it: 0, 1/3, 2/3 or 1. Those of 1/2 or more are `broken` here. Its pictures are CC BY-NC-SA 4.0,
and none is part of this project. What is not for training is for the test. The last line says how many there are of
each class, as always naming the larger one is right that often.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
from collections import Counter
from pathlib import Path

import numpy as np

from hardware.files import new_folder

CLASSES = ("sound", "broken")


def source() -> Path:
    """Return the folder of the installed package's pictures and labels."""
    found = importlib.util.find_spec("elpv_dataset")
    if found is None or found.origin is None:
        raise SystemExit("elpv-dataset is not installed; `pip install -e '.[cells]'`")
    return Path(found.origin).parent / "data"


def write_cells(data: Path, out: Path, *, train: int, seed: int) -> Counter[tuple[str, str]]:
    """Write `out/train/CLASS/*.png` and `out/val/CLASS/*.png`, whole or not at all.

    Args:
        data: Holds `labels.csv`, whose lines are picture, probability of a defect, kind of cell; and the pictures.
        out: The new folder.
        train: Pictures of the training part.
        seed: Seed of their choice.

    Returns:
        How many pictures each part has of each class.
    """
    rows = [line.split() for line in (data / "labels.csv").read_text(encoding="utf-8").splitlines() if line.strip()]
    if not 0 < train < len(rows):
        raise SystemExit(f"--train {train}, but there are {len(rows)} pictures; leave some for the test")
    count: Counter[tuple[str, str]] = Counter()
    with new_folder(out) as beside:
        for place, number in enumerate(np.random.default_rng(seed).permutation(len(rows))):
            name, probability, _ = rows[number]
            key = ("train" if place < train else "val", CLASSES[float(probability) >= 0.5])
            folder = beside.joinpath(*key)
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(data / name, folder / Path(name).name)
            count[key] += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--train", type=int, default=2000, metavar="PICTURES")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.folder.exists():
        raise SystemExit(f"{arguments.folder} is there already; remove it, or give another folder")
    count = write_cells(source(), arguments.folder, train=arguments.train, seed=arguments.seed)
    for part in ("train", "val"):
        print(f"{part}: " + ", ".join(f"{count[part, name]} {name}" for name in CLASSES))


if __name__ == "__main__":
    main()
