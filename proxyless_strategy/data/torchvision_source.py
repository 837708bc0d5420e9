"""Data sets of torchvision, by name."""

from __future__ import annotations

import inspect
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import datasets as torchvision_datasets

from hardware.errors import DataError
from hardware.reading import Unreadable, bytes_of, check_regular, cut, is_there, shown, unpacked

from ..config import DataConfig
from .datasets import labels_of
from .drawn import draw_cifar10
from .images import ImageData
from .pictures import PICTURE_OPTIONS, channels_of_all, image_data, picture_options
from .plain_pickles import arrays_alone
from .reading import background_colour

PREFIX = "torchvision:"
MEMORY_LIMIT = 2**30
"""Bytes of decoded images up to which a data set is kept in memory."""


def load_torchvision(config: DataConfig, *, input_size: int, seed: int) -> ImageData:
    """Load a class of `torchvision.datasets` with a train and a test part.

    Raises:
        DataError: There is no such class, its files are missing, an option is impossible, or a class is too small to
            be divided.
    """
    train = torchvision_part(config, train=True)
    test = torchvision_part(config, train=False)
    image = train[0][0]
    if not isinstance(image, Image.Image):
        raise DataError(f"{config.name} gives {type(image).__name__}, not images; use another data set")
    channels = channels_of_all(train, test, background=background_colour(config.background))
    options = picture_options(config, channels=channels, others=True)
    size = (len(train) + len(test)) * options.channels * input_size**2
    names = getattr(train, "classes", None)
    return image_data(
        config,
        train=train,
        train_labels=labels_of(train),
        test=test,
        class_names=tuple(str(name) for name in names) if names else None,
        options=options,
        # Classes with `data` (MNIST's, CIFAR) hold all pixels in memory anyway; the others read a file for each image.
        in_memory=hasattr(train, "data") and size <= MEMORY_LIMIT,
        input_size=input_size,
        seed=seed,
    )


def torchvision_part(config: DataConfig, *, train: bool) -> Any:
    """Build one part of the data set, as torchvision gives it; reads its index, not its images.

    Raises:
        DataError: As `load_torchvision`.
    """
    name = config.name.removeprefix(PREFIX)
    found: Any = getattr(torchvision_datasets, name, None)
    if not (inspect.isclass(found) and issubclass(found, torchvision_datasets.VisionDataset)):
        raise DataError(f"torchvision has no data set {name!r}; take a class of torchvision.datasets")
    parameters = inspect.signature(found.__init__).parameters
    if not {"train", "split"} & parameters.keys() or "root" not in parameters:
        raise DataError(f"torchvision's {name} has no train and test part; use another data set or module:function")
    if config.root is None:
        raise DataError(f"data.root is missing; give the folder that holds torchvision's {name}")
    arguments = {key: value for key, value in config.options.items() if key not in PICTURE_OPTIONS}
    unknown = arguments.keys() - parameters.keys()
    if unknown:
        known = sorted({*PICTURE_OPTIONS, *parameters} - {"self", "root", "transform", "target_transform", "train"})
        raise DataError(f"unknown data option {sorted(unknown)[0]!r}; {name} takes {', '.join(known)}")
    if "train" in parameters:
        arguments["train"] = train
    else:
        arguments["split"] = "train" if train else "test"
    if config.draw is not None:
        draw_cifar10(config.root, config.draw)
        found = _unchecked(found)
    if issubclass(found, torchvision_datasets.MNIST) and (_idx_file(config.root, "train-images-idx3-ubyte")):
        found = _flat(found)
    try:
        with warnings.catch_warnings():
            # What torchvision's readers warn of (deprecated calls of numpy) the user cannot mend.
            warnings.simplefilter("ignore")
            with arrays_alone():
                for name in _folders(found):
                    _check_files(config.root / name)
                return found(root=str(config.root), **arguments)
    except Exception as error:
        download = "" if arguments.get("download") else ", or set data.options.download: true"
        reason = cut(" ".join(str(error).split()), 300)
        raise DataError(
            f"cannot read torchvision's {name} in {config.root}: {reason}; put it there{download}"
        ) from error


def _unchecked(found: Any) -> Any:
    """Return the CIFAR class without its check sums: drawn files have others than the original's."""
    lists = {name: [[file, None] for file, _ in getattr(found, name)] for name in ("train_list", "test_list")}
    return type("Unchecked", (found,), {**lists, "meta": {**found.meta, "md5": None}})


def _flat(found: Any) -> Any:
    """Return the MNIST-like class that reads files, packed or not, in the root itself, as Debian ships them."""

    # torchvision looks in ROOT/CLASS/raw alone, whose path it makes itself; these are the two methods that read there.
    class Flat(found):
        def _check_exists(self) -> bool:
            return True

        def _load_data(self) -> tuple[torch.Tensor, torch.Tensor]:
            start = "train" if self.train else "t10k"
            images = _read_idx(Path(self.root), f"{start}-images-idx3-ubyte")
            labels = _read_idx(Path(self.root), f"{start}-labels-idx1-ubyte")
            if images.ndim != 3 or labels.shape != images.shape[:1]:
                raise Unreadable(f"{start}: images of shape {images.shape} do not go with labels of {labels.shape}")
            return torch.from_numpy(images), torch.from_numpy(labels).long()

    return Flat


def _folders(found: Any) -> tuple[str, ...]:
    """Name the folders of few files that CIFAR's and MNIST's classes read; others may hold a million pictures."""
    if issubclass(found, torchvision_datasets.MNIST):
        return (f"{found.__name__}/raw",)
    return (found.base_folder,) if issubclass(found, torchvision_datasets.CIFAR10) else ()


def _idx_file(root: Path, name: str) -> Path | None:
    return next((path for path in (root / name, root / f"{name}.gz") if is_there(path) and not path.is_dir()), None)


def _read_idx(root: Path, name: str) -> np.ndarray:
    """Read an IDX file: 2 zero bytes, type, number of dimensions, their sizes (big-endian), then bytes."""
    path = _idx_file(root, name)
    if path is None:
        raise FileNotFoundError(f"{name} (or {name}.gz) is missing")
    try:
        content = unpacked(bytes_of(path)) if path.suffix == ".gz" else bytes_of(path)
        return _idx_array(content)
    except Unreadable as error:
        raise Unreadable(f"{path}: {error}") from None


def _idx_array(content: bytes) -> np.ndarray:
    if content[:3] != b"\0\0\x08" or len(content) < 4:
        raise Unreadable("it is no IDX file of bytes (its first three are not 0, 0, 8)")
    start = 4 + 4 * content[3]
    if len(content) < start:
        raise Unreadable(f"it is cut short: {len(content)} bytes do not hold its header")
    shape = [int(side) for side in np.frombuffer(content, ">u4", content[3], 4)]
    if not shape or start + math.prod(shape) != len(content):
        raise Unreadable(f"its header says {shown(shape)} values, but {len(content) - start} follow")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape).copy()


def _check_files(folder: Path) -> None:
    """Refuse what torchvision would wait for: it opens whatever has the right name."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if is_there(path) and not path.is_dir():
            try:
                check_regular(path)
            except Unreadable as error:
                raise Unreadable(f"{path}: {error}") from None
