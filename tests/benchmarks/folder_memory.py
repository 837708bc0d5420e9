"""Memory of a folder of pictures of ImageNet's size: of the process that trains, and of each one that reads images.

The pictures are hard links of a few small ones. A process that reads images shares the memory of the one that started
it until either writes there, and Python writes to every object that it looks at. What only it has (USS) therefore shows
whether the list of files is made of objects.

    .venv/bin/python -m tests.benchmarks.folder_memory [--files 200000] [--classes 100] [--workers 4] [--batches 60]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.digest import data_digest
from proxyless_strategy.data.sources import load_data

SIZE = 8
BATCH = 512
LINKS = 50_000
"""Of one file: file systems have a most, on ext4 65,000."""


def make_folder(root: Path, *, files: int, classes: int) -> None:
    """Write `root/train/CLASS/*.png` and a few of `root/val`, as ImageNet names them."""
    random = np.random.default_rng(0)
    sources = []
    for number in range(-(-files // LINKS)):
        source = root / f"source{number}.png"
        source.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)).save(source)
        sources.append(source)
    each = files // classes
    for label in range(classes):
        for part, count in (("train", each), ("val", 1)):
            folder = root / part / f"n{label:08d}"
            folder.mkdir(parents=True)
            for number in range(count):
                source = sources[(label * each + number) // LINKS]
                os.link(source, folder / f"n{label:08d}_{number:06d}.png")


def own(process: psutil.Process) -> float:
    """Return the MB that only this process has."""
    return process.memory_full_info().uss / 1e6


def measure(root: Path, *, workers: int, batches: int) -> dict[str, Any]:
    """Load the folder, make its digest, read batches; return MB and seconds."""
    me = psutil.Process()
    before, begun = own(me), time.perf_counter()
    config = DataConfig.model_validate({"name": "imagefolder", "root": root, "augment": "none", "workers": workers})
    data = load_data(config, input_size=SIZE, seed=0)
    loaded, listing = own(me), time.perf_counter() - begun
    digest = data_digest(data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    loader = data.loader("weights", batch_size=BATCH, shuffle=True, drop_last=True)
    iterator = iter(loader)
    next(iterator)
    first = [own(child) for child in me.children()]
    for _ in range(min(batches, len(loader) - 1)):
        next(iterator)
    last = [own(child) for child in me.children()]
    return {
        "digest": digest,
        "seconds_to_list": round(listing, 1),
        "main_mb": round(loaded - before),
        "main_peak_mb": round(peak),
        "main_start_mb": round(before),
        "worker_first_mb": round(float(np.mean(first))),
        "worker_last_mb": round(float(np.mean(last))),
        "worker_growth_mb": round(float(np.mean(last) - np.mean(first))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=200_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--batches", type=int, default=60)
    arguments = parser.parse_args()
    root = Path(tempfile.mkdtemp())
    try:
        make_folder(root, files=arguments.files, classes=arguments.classes)
        measured = measure(root, workers=arguments.workers, batches=arguments.batches)
    finally:
        shutil.rmtree(root)
    print(json.dumps({"files": arguments.files, "workers": arguments.workers, **measured}))


if __name__ == "__main__":
    main()
