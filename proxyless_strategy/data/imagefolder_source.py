"""Data sets of picture files: `ROOT/train/CLASS/*` and `ROOT/val/CLASS/*`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from hardware.errors import DataError

from ..config import DataConfig
from .drawn import draw_image_folder
from .images import ImageData
from .notice import notice
from .picture_folder import ImageFolder, class_names
from .pictures import image_data, picture_options
from .reading import shown

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
        try:
            classes[folder] = set(class_names(folder))
        except OSError as error:
            raise DataError(f"cannot list {folder}: {error.strerror}; let it be read, or set data.root") from error
        if not classes[folder]:
            raise DataError(f"there is no class: looked in {folder}, and {_LAYOUT}")
    different = sorted(set.symmetric_difference(*classes.values()))
    if different:
        alone = "; ".join(
            f"{folder.name} alone has {_few(sorted(set(different) & names))}"
            for folder, names in classes.items()
            if set(different) & names
        )
        raise DataError(
            f"{root}: train and val must have the same classes, but only one of them has {_few(different)} ({alone}); "
            f"{_LAYOUT}"
        )
    return root


def _few(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


_LISTED: dict[Path, tuple[ImageFolder, ...]] = {}
"""The last root's files: listing a million takes long, and checking and loading both ask for them."""


def _imagefolders(config: DataConfig) -> tuple[ImageFolder, ...]:
    """List the files of both parts, and say what is no part of them."""
    root = _check_layout(config)
    if root in _LISTED and all(folder.is_true() for folder in _LISTED[root]):
        return _LISTED[root]
    folders = []
    for part in (root / "train", root / "val"):
        try:
            folders.append(ImageFolder(str(part)))
        except FileNotFoundError as error:
            raise DataError(f"{' '.join(str(error).split())}; looked in {part}, and {_LAYOUT}") from error
    told = left_aside(root, sum((folder.others for folder in folders), Counter()))
    if told:
        notice(told)
    _LISTED.clear()
    _LISTED[root] = tuple(folders)
    return _LISTED[root]


def left_aside(root: Path, others: Counter[str]) -> str:
    """Say what of a root is neither trained nor tested on, nothing where there is no such thing.

    Args:
        root: The data set's.
        others: How many files of its classes are no pictures, by the ends of their names.
    """
    said = []
    if others:
        first = sorted(others, key=lambda suffix: (-others[suffix], suffix))[:5]
        kinds = ", ".join(f"{others[suffix]} {shown(suffix) or 'without a suffix'}" for suffix in first)
        said.append(f"{others.total()} files are no pictures by their names ({kinds})")
    more = [entry.name for entry in root.iterdir() if entry.is_dir() and entry.name in ("test", "valid", "validation")]
    if more:
        said.append(f"{' and '.join(sorted(more))} is not read, as val is the test part")
    return f"{root}: {'; '.join(said)}" if said else ""
