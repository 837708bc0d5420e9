"""Data sets of picture files: `ROOT/train/CLASS/*` and `ROOT/val/CLASS/*`."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

import numpy as np
from torchvision import datasets as torchvision_datasets

from hardware.errors import DataError

from ..config import DataConfig
from .drawn import draw_image_folder
from .images import ImageData
from .pictures import image_data, picture_options

_LAYOUT = "imagefolder expects ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg (.png and others too)"


def load_imagefolder(config: DataConfig, *, input_size: int, seed: int) -> ImageData:
    """Load a folder of pictures; `val` is the test part, `train` is divided.

    Raises:
        DataError: As `check_imagefolder`; or a class is too small to be divided.
    """
    train, test = _imagefolders(config)
    return image_data(
        config,
        train=train,
        train_labels=np.asarray(train.targets),
        test=test,
        class_names=tuple(train.classes),
        options=picture_options(config, channels=3),
        in_memory=False,
        input_size=input_size,
        seed=seed,
    )


def check_imagefolder(config: DataConfig, *, scan: bool) -> None:
    """Say what `load_imagefolder` would miss, without reading the images.

    Args:
        config: The data set.
        scan: Also list the files, which takes long for a million of them.

    Raises:
        DataError: The root is not given, a part or a class is missing, or an option is impossible.
    """
    _check_layout(config)
    if scan:
        _imagefolders(config)
    picture_options(config, channels=3)


def _check_layout(config: DataConfig) -> Path:
    """Return the root of an ImageFolder whose parts have the same classes, which need not have images.

    Raises:
        DataError: The root is not given, or a part or a class is missing.
    """
    root = config.root
    if root is None:
        raise DataError(f"data.root is missing; {_LAYOUT}")
    if config.draw is not None:
        draw_image_folder(root, config.draw)
    classes = {}
    for folder in (root / "train", root / "val"):
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; {_LAYOUT}; put the images there, or set data.root")
        classes[folder] = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
        if not classes[folder]:
            raise DataError(f"there is no class: looked in {folder}, and {_LAYOUT}")
    different = sorted(set.symmetric_difference(*classes.values()))
    if different:
        named = ", ".join(different[:5]) + (f" and {len(different) - 5} more" if len(different) > 5 else "")
        raise DataError(
            f"{root}: train and val must have the same classes, but only one of them has {named}; {_LAYOUT}"
        )
    return root


def _imagefolders(config: DataConfig) -> tuple[torchvision_datasets.ImageFolder, ...]:
    root = _check_layout(config)
    return _scanned(root, *((root / name).stat().st_mtime_ns for name in ("train", "val")))


@lru_cache(maxsize=2)
def _scanned(root: Path, *changed: int) -> tuple[torchvision_datasets.ImageFolder, ...]:
    """List the files of both parts.

    Listing a million files takes long, and checking and loading both ask for it. `changed` says when a class was added
    or removed, so that the cache does not outlive that.
    """
    folders = []
    for folder in (root / "train", root / "val"):
        try:
            folders.append(torchvision_datasets.ImageFolder(str(folder)))
        except FileNotFoundError as error:
            raise DataError(f"{' '.join(str(error).split())}; looked in {folder}, and {_LAYOUT}") from error
    return tuple(folders)
