"""Load and check what the config names as data: the one way in."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, TensorDataset
from torchvision import datasets as torchvision_datasets
from torchvision import transforms

from hardware.errors import ConfigError, DataError
from search_spaces.user_function import import_function

from ..config import DataConfig
from .datasets import ItemImages, TensorImages, _labels_of, _Pictures
from .drawn import draw_image_folder
from .images import ImageData
from .pictures import _from_pictures, _picture_options
from .split import stratified_split
from .torchvision_source import _load_torchvision, _torchvision_part
from .transforms import _as_it_is, _default_normalisation, _plain_transform, _tensor_augment, _train_transform

SOURCES = "digits, imagefolder, torchvision:CLASS or module:function"

TEST_FRACTION = 0.2
"""Share of a data set without its own test part that is set aside as one."""


_LAYOUT = "imagefolder expects ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg (.png and others too)"


def load_data(config: DataConfig, *, input_size: int, seed: int) -> ImageData:
    """Reads and splits a data set.

    The architecture part is drawn from the training images, class by class; where a data set has no test part of its
    own (digits), a fifth of it is set aside in the same way first. Images of a torchvision data set that lie in memory
    anyway stay there, resized, up to 1 GiB; without `mean` and `std` they are normalised with those of the training
    images. Other images are normalised with ImageNet's mean and std (grey ones: 0.5 and 0.5).

    Args:
        config: The source, its options, the split and the training transform.
        input_size: Height and width of an image.
        seed: Seed of the split.

    Raises:
        DataError: The data set is unknown or missing, has another layout than expected, or is too small to be split.
    """
    if config.name == "digits":
        data = _load_digits(config, input_size=input_size, seed=seed)
    elif config.name == "imagefolder":
        data = _load_imagefolder(config, input_size=input_size, seed=seed)
    elif config.name.startswith("torchvision:"):
        data = _load_torchvision(config, input_size=input_size, seed=seed)
    else:
        data = _load_function(config, input_size=input_size)
    if config.num_classes is None or config.num_classes == data.num_classes:
        return data
    if config.num_classes < data.num_classes:
        raise DataError(
            f"data.num_classes = {config.num_classes}, but {config.name} has {data.num_classes} classes; raise or "
            "remove it"
        )
    return replace(data, num_classes=config.num_classes, class_names=None)


def check_data(config: DataConfig, *, scan: bool = True) -> None:
    """Says what `load_data` would miss, without reading the images.

    Args:
        config: The data set.
        scan: Also list the files of an ImageFolder, which takes long for a million of them.

    Raises:
        DataError: The data set is unknown, missing, or has another layout than expected.
    """
    if config.name == "digits":
        _picture_options(config, channels=1)
    elif config.name == "imagefolder":
        _check_layout(config)
        if scan:
            _imagefolders(config)
        _picture_options(config, channels=3)
    elif config.name.startswith("torchvision:"):
        _torchvision_part(config, train=False)
    else:
        _function(config)


# --- sources -----------------------------------------------------------------------------------------------------


def _load_digits(config: DataConfig, *, input_size: int, seed: int) -> ImageData:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = bunch.target.astype(np.int64)
    train, test = stratified_split(labels, fraction=TEST_FRACTION, seed=(seed, 1))
    targets = torch.from_numpy(labels)
    return _from_pictures(
        config,
        train=_Pictures(pixels[train], targets[train]),
        train_labels=labels[train],
        test=_Pictures(pixels[test], targets[test]),
        class_names=tuple(str(name) for name in bunch.target_names),
        options=_picture_options(config, channels=1),
        in_memory=True,
        input_size=input_size,
        seed=seed,
    )


def _load_imagefolder(config: DataConfig, *, input_size: int, seed: int) -> ImageData:
    train, test = _imagefolders(config)
    return _from_pictures(
        config,
        train=train,
        train_labels=np.asarray(train.targets),
        test=test,
        class_names=tuple(train.classes),
        options=_picture_options(config, channels=3),
        in_memory=False,
        input_size=input_size,
        seed=seed,
    )


def _check_layout(config: DataConfig) -> Path:
    """The root of an ImageFolder whose parts have the same classes, which need not have images.

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
    """Both parts; a million files are listed once in a process, unless a class was added or removed since."""
    folders = []
    for folder in (root / "train", root / "val"):
        try:
            folders.append(torchvision_datasets.ImageFolder(str(folder)))
        except FileNotFoundError as error:
            raise DataError(f"{' '.join(str(error).split())}; looked in {folder}, and {_LAYOUT}") from error
    return tuple(folders)


def _function(config: DataConfig) -> Callable[..., Any]:
    if ":" not in config.name:
        raise DataError(f"unknown data set {config.name!r}; data.name is {SOURCES}")
    try:
        return import_function(config.name)
    except ConfigError as error:
        raise DataError(f"cannot load the data set {config.name!r}: {error}") from error


def _load_function(config: DataConfig, *, input_size: int) -> ImageData:
    function = _function(config)
    try:
        returned = function(config.root, **config.options)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{config.name} raised {type(error).__name__}: {error}; mend that function") from error
    if isinstance(returned, ImageData):
        if returned.input_size != input_size:
            raise DataError(
                f"{config.name} returned images of size {returned.input_size}, but input_size is {input_size}; "
                "make them equal"
            )
        return returned
    if not isinstance(returned, Sequence) or len(returned) != 3:
        raise DataError(
            f"{config.name} must return an ImageData or three data sets (weights, architecture, test), "
            f"but returned {type(returned).__name__}"
        )
    parts = dict(zip(("weights", "architecture", "test"), returned, strict=True))
    if len({id(part) for part in parts.values()}) < 3:
        raise DataError(f"{config.name} returned one data set twice; weights, architecture and test must not overlap")
    for part, dataset in parts.items():
        if not len(dataset):
            raise DataError(f"{config.name} returned an empty data set for {part}; give it images")
    return _from_parts(config, parts, input_size=input_size)


def _from_parts(config: DataConfig, parts: Mapping[str, Any], *, input_size: int) -> ImageData:
    image = parts["weights"][0][0]
    names = getattr(parts["weights"], "classes", None)
    labels = {part: _labels_of(dataset) for part, dataset in parts.items()}
    num_classes = len(names) if names else int(max(values.max() for values in labels.values())) + 1
    for part, values in labels.items():
        if values.min() < 0 or values.max() >= num_classes:
            raise DataError(f"{config.name}: a label of {part} is outside 0..{num_classes - 1}")
    both: Dataset = ConcatDataset([parts["weights"], parts["architecture"]])
    plain: Callable[[Any], torch.Tensor]
    if isinstance(image, Image.Image):
        channels = 1 if image.mode in ("1", "L") else 3
        mean, std = _default_normalisation(channels)
        settings: dict[str, Any] = {"size": input_size, "mean": mean, "std": std, "interpolation": "bicubic"}
        augmented = _train_transform(config.augment, **settings)
        plain = _plain_transform(**settings)
    elif isinstance(image, torch.Tensor) and image.is_floating_point() and image.ndim == 3:
        channels = image.shape[0]
        mean, std = (0.0,) * channels, (1.0,) * channels
        if image.shape[1:] != (input_size, input_size):
            raise DataError(
                f"{config.name} gives images of {' x '.join(map(str, image.shape))}, but input_size is {input_size}; "
                "make them equal, or return PIL images"
            )
        if config.augment == "imagenet":
            raise DataError(f"augment: imagenet needs PIL images, but {config.name} gives tensors; use another augment")
        augmented, plain = transforms.Compose(_tensor_augment(config.augment, input_size)), _as_it_is
    else:
        kind = f"{image.dtype} of {tuple(image.shape)}" if isinstance(image, torch.Tensor) else type(image).__name__
        raise DataError(f"{config.name} gives images as {kind}; give PIL images or C x H x W float tensors")

    def wrapped(dataset: Any, *, train: bool) -> Dataset:
        if isinstance(dataset, TensorDataset):
            images, targets = dataset.tensors
            augment = config.augment if train else "none"
            return TensorImages(images, targets.long(), torch.arange(len(images)), mean, std, augment)
        return ItemImages(dataset, range(len(dataset)), augmented if train else plain)

    return ImageData(
        num_classes=num_classes,
        channels=channels,
        input_size=input_size,
        mean=mean,
        std=std,
        interpolation="bicubic",
        weights=wrapped(parts["weights"], train=True),
        architecture=wrapped(parts["architecture"], train=False),
        training=wrapped(_joined(parts["weights"], parts["architecture"]) or both, train=True),
        test=wrapped(parts["test"], train=False),
        class_names=tuple(str(name) for name in names) if names else None,
        augment=config.augment,
        workers=config.workers,
    )


def _joined(first: Any, second: Any) -> TensorDataset | None:
    if isinstance(first, TensorDataset) and isinstance(second, TensorDataset):
        return TensorDataset(*(torch.cat(pair) for pair in zip(first.tensors, second.tensors, strict=True)))
    return None
