"""Data sets that a user's function `module:function` returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, TensorDataset
from torchvision import transforms

from hardware.errors import ConfigError, DataError
from search_spaces.user_function import import_function

from ..config import DataConfig
from .datasets import ItemImages, TensorImages, check_labels, labels_of
from .images import ImageData
from .pictures import channels_of_all
from .reading import Reader, background_colour
from .transforms import default_normalisation, plain_transform, tensor_augment, train_transform, unchanged
from .user_items import user_parts

_PARTS = ("weights", "architecture", "test")
SOURCES = "digits, imagefolder, webdataset, hfds, torchvision:CLASS or module:function"


def find_function(config: DataConfig) -> Callable[..., Any]:
    """Import the function that `data.name` names.

    Raises:
        DataError: There is none.
    """
    if ":" not in config.name:
        raise DataError(f"unknown data set {config.name!r}; data.name is {SOURCES}")
    try:
        return import_function(config.name)
    except ConfigError as error:
        raise DataError(f"cannot load the data set {config.name!r}: {error}") from error


def load_function(config: DataConfig, *, input_size: int) -> ImageData:
    """Call the user's function and read what it returns: an `ImageData`, or the parts weights, architecture, test.

    Raises:
        DataError: There is no such function, it failed, or it returned something else.
    """
    function = find_function(config)
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
    if isinstance(returned, Mapping) and sorted(returned) == sorted(_PARTS):
        returned = [returned[part] for part in _PARTS]
    if not isinstance(returned, Sequence) or isinstance(returned, str) or len(returned) != 3:
        raise DataError(
            f"{config.name} must return an ImageData or three data sets (weights, architecture, test), "
            f"but returned {type(returned).__name__}"
        )
    parts = dict(zip(_PARTS, returned, strict=True))
    if len({id(part) for part in parts.values()}) < 3:
        raise DataError(f"{config.name} returned one data set twice; weights, architecture and test must not overlap")
    parts = user_parts(config.name, parts, skip=config.skip_unreadable)
    return _from_parts(config, parts, input_size=input_size)


def _first_image(parts: Mapping[str, Any]) -> Any:
    for dataset in parts.values():
        for index in range(len(dataset)):
            try:
                return dataset[index][0]
            except Exception:
                continue  # it is named when it is read, or left out
    return None


def _from_parts(config: DataConfig, parts: Mapping[str, Any], *, input_size: int) -> ImageData:
    """Choose transforms by an image: PIL images are resized and normalised, float tensors given as they are."""
    image = _first_image(parts)
    names = getattr(parts["weights"], "classes", None)
    labels = {part: labels_of(dataset) for part, dataset in parts.items()}
    num_classes = len(names) if names else int(max(values.max() for values in labels.values())) + 1
    for part, values in labels.items():
        check_labels(values, num_classes, f"{config.name}: a label of {part}")
    both: Dataset = ConcatDataset([parts["weights"], parts["architecture"]])
    plain: Callable[[Any], torch.Tensor]
    reader: Reader | None = None
    if isinstance(image, Image.Image):
        background = background_colour(config.background)
        channels = channels_of_all(*parts.values(), background=background)
        mean, std = default_normalisation(channels)
        reader = Reader(channels, background)
        settings: dict[str, Any] = {"size": input_size, "mean": mean, "std": std, "interpolation": "bicubic"}
        settings["reader"] = reader
        augmented = train_transform(config.augment, **settings)
        plain = plain_transform(**settings)
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
        augmented, plain = transforms.Compose(tensor_augment(config.augment, input_size)), unchanged
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
        reader=reader,
        workers=config.workers,
    )


def _joined(first: Any, second: Any) -> TensorDataset | None:
    """Join tensors to tensors, which are read by the batch; a `ConcatDataset` of them would be read one by one."""
    if isinstance(first, TensorDataset) and isinstance(second, TensorDataset):
        return TensorDataset(*(torch.cat(pair) for pair in zip(first.tensors, second.tensors, strict=True)))
    return None
