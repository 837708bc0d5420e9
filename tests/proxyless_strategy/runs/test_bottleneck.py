"""What a forecast says of given rates: which is the slower, and what would lift it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from proxyless_strategy.config import DataConfig, parse_config
from proxyless_strategy.data.sources import load_data
from proxyless_strategy.runs import bottleneck
from proxyless_strategy.runs.bottleneck import Feeding, feeding, mostly_jpeg

# The rates of one H200 and 16 cores are those that the README of the benchmarks has.
SLOW = Feeding(
    loader_images=6500,
    step_images=13000,
    workers=8,
    cores=16,
    batch=256,
    on_gpu=True,
    decoder="pillow",
    jpegs=True,
    in_memory=False,
)
NVJPEG = "data.decoder: nvjpeg has the GPU decode"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, f"the loader is the slower; more data.workers may help (16 would do if each reads as many), and {NVJPEG}"),
        ({"jpegs": False}, "the loader is the slower; more data.workers may help (16 would do if each reads as many)"),
        ({"workers": 16}, f"the loader is the slower; {NVJPEG}"),
        (
            {"workers": 16, "on_gpu": False},
            "the loader is the slower; nothing in the settings lifts it, smaller pictures would",
        ),
        (
            {"workers": 16, "decoder": "nvjpeg"},
            "the loader is the slower; nothing in the settings lifts it, smaller pictures would",
        ),
        (
            {"workers": 0, "step_images": 6501, "decoder": "nvjpeg"},
            "the loader is the slower; more data.workers may help (2 would do if each reads as many)",
        ),
        (
            {"workers": 12, "decoder": "nvjpeg"},
            "the loader is the slower; more data.workers may help (up to 16 of this machine's cores, which are still "
            "too few if each reads as many)",
        ),
        (
            {"in_memory": True},
            "the loader is the slower, though its images lie in memory; no setting of the data lifts it",
        ),
        ({"step_images": 6500}, "the GPU is the slower; nothing in the settings of data and batch lifts it"),
        (
            {"step_images": 3000, "batch": 255},
            "the GPU is the slower; a larger search.batch_size may lift it, more data.workers do not",
        ),
        (
            {"step_images": 3000, "batch": 32, "on_gpu": False},
            "the training step is the slower; nothing in the settings of data and batch lifts it",
        ),
    ],
)
def test_the_slower_one_and_what_lifts_it(changes: dict, expected: str) -> None:
    found = Feeding(**{**vars(SLOW), **changes})
    assert found.sentence() == expected
    assert found.loader_is_slower == expected.startswith("the loader")


def pictures(root: Path, suffixes: str) -> Path:
    for part in ("train", "val"):
        for name in "ab":
            (root / part / name).mkdir(parents=True)
            for number, suffix in enumerate(suffixes.split()):
                pixels = np.full((9, 9, 3), 9 * number, np.uint8)
                pixels[0, 0] = 255
                Image.fromarray(pixels).save(root / part / name / f"{number}.{suffix}")
    return root


def test_the_settings_and_the_files_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bottleneck.os, "cpu_count", lambda: 12)
    mixed = pictures(tmp_path / "mixed", "jpg JPG png png")
    values = {"data": {"name": "imagefolder", "root": str(mixed), "workers": 3}, "input_size": 8}
    config = parse_config({**values, "search": {"devices": 4, "batch_size": 64}})
    data = load_data(config.data, input_size=8, seed=0)
    found = feeding(config, data, loader_images=1.0, step_images=2.0, on_gpu=True)
    assert found == Feeding(1.0, 2.0, 3, 3, 16, True, "pillow", True, False)
    digits = parse_config({"data": "digits"})
    in_memory = load_data(digits.data, input_size=8, seed=0)
    found = feeding(digits, in_memory, loader_images=1.0, step_images=2.0, on_gpu=False)
    assert (found.jpegs, found.in_memory, found.cores) == (False, True, 12)
    few = DataConfig(name="imagefolder", root=pictures(tmp_path / "few", "jpg png png png"))
    assert not mostly_jpeg(load_data(few, input_size=8, seed=0))
