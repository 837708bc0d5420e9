"""The part `loader` of the check of a GPU: how fast images come by Pillow and by nvJPEG, and whether they are the same.

Pictures are JPEG files of 500 x 375. Rates are of the loader alone, at the settings of a search.
"""

from __future__ import annotations

import io
import itertools
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

FIGURES = (
    "loader_images",
    "nvjpeg_images",
    "step_images",
    "workers",
    "loader_is_slower",
    "nvjpeg_is_slower",
    "nvjpeg_difference",
    "advice",
)
DIFFERENCE = 4.0
"""Levels of 255 that images of both decoders may differ by on average. The CPU's decoder smooths chroma on its way to
full resolution and nvJPEG need not; other colours, or a turned picture, are an order above."""
_WIDTH, _HEIGHT, _DIFFERENT = 500, 375, 32


def loader(dry: bool) -> dict[str, Any]:
    """Hold the images that the loader gives a second, by both decoders, against what a training step takes."""
    from proxyless_strategy.config import parse_config
    from proxyless_strategy.runs.bottleneck import feeding
    from proxyless_strategy.runs.forecast import forecast, loader_rate
    from proxyless_strategy.runs.prepare import prepare

    from .gpu import need

    size, batch, count = (32, 8, 8) if dry else (224, 256, 250)
    workers = 0 if dry else min(16, os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        write_photographs(Path(folder, "pictures"), classes=4 if dry else 20, count=count)
        data = {"name": "imagefolder", "root": f"{folder}/pictures", "augment": "imagenet", "workers": workers}
        config = parse_config(
            {
                "space": "small_mbconv" if dry else "imagenet_mbconv",
                "data": data,
                "input_size": size,
                "hardware": {"cost": "macs", "device": "other"},
                "target": 0.5,
                "search": {
                    "batch_size": batch,
                    "epochs": 2,
                    "warmup_epochs": 0,
                    "steps_per_update": 1,
                    "channels_last": True,
                    "precision": "bf16-mixed",
                    "accelerator": "cpu" if dry else "gpu",
                },
                "retrain": None,
                "out": f"{folder}/run",
            }
        )
        prepared = prepare(config, quiet=True)
        pillow = prepared.data
        found = forecast(config, prepared.space, prepared.costs, pillow)
        # A dry run decodes on the CPU, by the same code.
        nvjpeg = replace(pillow, decoder="nvjpeg", decodes_on="cpu" if dry else "cuda")
        rate = loader_rate(nvjpeg, batch)
        rates = {"loader_images": found.loader_images, "step_images": found.step_images}
        fed = feeding(config, nvjpeg, **{**rates, "loader_images": rate}, on_gpu=not dry)
        difference = differing(pillow, nvjpeg, batch)
    need(difference <= DIFFERENCE, f"images differ by {difference:.2f} levels on average, more than {DIFFERENCE}")
    assert found.feeding is not None
    return {
        **{name: round(value) for name, value in rates.items()},
        "nvjpeg_images": round(rate),
        "workers": workers,
        "loader_is_slower": found.loader_is_slower,
        "nvjpeg_is_slower": fed.loader_is_slower,
        "nvjpeg_difference": round(difference, 3),
        "advice": {"pillow": found.feeding.sentence(), "nvjpeg": fed.sentence()},
    }


def differing(pillow: Any, nvjpeg: Any, batch: int) -> float:
    """Return by how many levels of 255 one batch of the same crops differs between two decoders, on average."""
    (first, labels), (second, others) = (
        next(iter(data.loader("weights", batch_size=batch, shuffle=True, workers=0))) for data in (pillow, nvjpeg)
    )
    assert torch.equal(labels, others)
    std = torch.tensor(pillow.std).view(-1, 1, 1)
    return float(((first - second.cpu()) * std).abs().mean()) * 255


def write_photographs(root: Path, *, classes: int, count: int) -> None:
    """Write an ImageFolder of JPEG files, a few pictures over and over: to draw thousands would take a minute."""
    pictures = itertools.cycle(photographs())
    for part, files in (("train", count), ("val", 2)):
        for name in range(classes):
            folder = root / part / f"{name:02d}"
            folder.mkdir(parents=True)
            for number in range(files):
                (folder / f"{number}.jpg").write_bytes(next(pictures))


def photographs() -> list[bytes]:
    """Draw smooth colours, an edge and a little noise."""
    drawn = np.random.default_rng(0)
    rows, columns = np.mgrid[0:_HEIGHT, 0:_WIDTH] / 50
    files = []
    for _ in range(_DIFFERENT):
        a, b, c = drawn.uniform(0.3, 3, 3)
        waves = np.stack([np.sin(a * rows + c), np.cos(b * columns), np.sin(a * rows + b * columns)], -1)
        pixels = 127 + 90 * waves + drawn.normal(0, 6, waves.shape)
        top, left = drawn.integers(0, 250, 2)
        pixels[top : top + 120, left : left + 160] = drawn.integers(0, 256, 3)
        stream = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    return files
