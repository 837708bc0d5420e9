"""From pictures to parts: options, decoding by Pillow, channels, moments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import Dataset

from hardware.errors import DataError

from ..config import DataConfig
from .datasets import ItemImages, TensorImages
from .images import ImageData
from .picture_options import PICTURE_OPTIONS, PictureOptions
from .reading import (
    PIL_MODES,
    Colour,
    PictureProblem,
    Reader,
    background_colour,
    channels_of,
    name_in,
    picture_error,
    read_range,
)
from .split import stratified_split
from .transforms import default_normalisation, plain_transform, train_transform

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_CROP_MODES = ("center", "squash", "border")


LEAST_CROP, LEAST_STD = 0.05, 1e-4
"""Below them a picture is enlarged beyond every memory, and a pixel beyond every network's range."""


def image_data(
    config: DataConfig,
    *,
    train: Any,
    train_labels: np.ndarray,
    test: Any,
    class_names: tuple[str, ...] | None,
    options: PictureOptions,
    in_memory: bool,
    input_size: int,
    seed: int,
) -> ImageData:
    """Divide pictures into the parts of a search.

    Args:
        config: The split and the training transform.
        train: Gives (PIL image, class number); becomes the weight and the architecture part.
        train_labels: The class of each training image.
        test: Gives (PIL image, class number).
        class_names: The name of every class, where known.
        options: Channels, normalisation and resizing.
        in_memory: Whether to decode and resize everything now. Without a mean or std of `options` images are then
            normalised with those of the training images.
        input_size: Height and width of an image.
        seed: Seed of the split.

    Raises:
        DataError: A class is too small to be divided.
    """
    weights, architecture = stratified_split(
        train_labels,
        fraction=config.architecture_fraction,
        per_class=config.architecture_per_class,
        seed=(seed, 0),
        class_names=class_names,
    )
    both = np.arange(len(train_labels))
    reader = Reader(options.channels, background_colour(config.background), options.range)
    geometry: dict[str, Any] = {
        "size": input_size,
        "interpolation": options.interpolation,
        "crop_pct": options.crop_pct,
        "crop_mode": options.crop_mode,
        "reader": reader,
    }
    parts: dict[str, Dataset]
    # ImageNet's random crop chooses its part of the picture before it resizes; what lies in memory is resized already.
    if in_memory and config.augment != "imagenet":
        border = options.mean or default_normalisation(options.channels)[0]
        images, labels = _decoded(train, mean=border, **geometry)
        test_images, test_labels = _decoded(test, mean=border, **geometry)
        measured_mean, measured_std = _moments(images)
        mean, std = options.mean or measured_mean, options.std or measured_std
        everything = TensorImages(images, labels, torch.from_numpy(both), mean, std, config.augment)
        parts = {
            "weights": replace(everything, indices=torch.from_numpy(weights)),
            "architecture": replace(everything, indices=torch.from_numpy(architecture), augment="none"),
            "training": everything,
            "test": TensorImages(test_images, test_labels, torch.arange(len(test_labels)), mean, std),
        }
    else:
        default_mean, default_std = default_normalisation(options.channels)
        mean, std = options.mean or default_mean, options.std or default_std
        augmented = train_transform(config.augment, mean=mean, std=std, **geometry)
        plain = plain_transform(mean=mean, std=std, **geometry)
        parts = {
            "weights": ItemImages(train, weights, augmented),
            "architecture": ItemImages(train, architecture, plain),
            "training": ItemImages(train, both, augmented),
            "test": ItemImages(test, range(len(test)), plain),
        }
    return ImageData(
        num_classes=len(class_names) if class_names else int(train_labels.max()) + 1,
        channels=options.channels,
        input_size=input_size,
        mean=mean,
        std=std,
        interpolation=options.interpolation,
        class_names=class_names,
        augment=config.augment,
        crop_pct=options.crop_pct,
        crop_mode=options.crop_mode,
        reader=reader,
        workers=config.workers,
        decoder=config.decoder,
        weights=parts["weights"],
        architecture=parts["architecture"],
        training=parts["training"],
        test=parts["test"],
    )


def picture_options(config: DataConfig, *, channels: int, others: bool = False) -> PictureOptions:
    """Read `data.options`.

    Args:
        config: The data set.
        channels: What its pictures have, unless the options say otherwise.
        others: Whether further options are let through, for the data set's own class.

    Raises:
        DataError: An option is unknown, or a value impossible.
    """
    given = {"channels": channels, **config.options}
    unknown = [key for key in given if key not in PICTURE_OPTIONS]
    if unknown and not others:
        raise DataError(f"unknown data option {unknown[0]!r}; {config.name} takes {', '.join(PICTURE_OPTIONS)}")
    channels = given["channels"]
    if channels not in PIL_MODES:
        raise DataError(f"data.options.channels = {channels!r}; it must be 1 (grey) or 3 (colour)")
    interpolation = given.get("interpolation", PictureOptions.interpolation)
    if interpolation not in _INTERPOLATIONS:
        raise DataError(f"data.options.interpolation = {interpolation!r}; use one of {', '.join(_INTERPOLATIONS)}")
    crop_pct = given.get("crop_pct", PictureOptions.crop_pct)
    if isinstance(crop_pct, bool) or not isinstance(crop_pct, int | float) or not LEAST_CROP <= crop_pct <= 1:
        raise DataError(
            f"data.options.crop_pct = {crop_pct!r}; it must be above 0, at least {LEAST_CROP}, and at most 1"
        )
    crop_mode = given.get("crop_mode", PictureOptions.crop_mode)
    if crop_mode not in _CROP_MODES:
        raise DataError(f"data.options.crop_mode = {crop_mode!r}; use one of {', '.join(_CROP_MODES)}")
    background_colour(config.background)
    return PictureOptions(
        channels=channels,
        mean=_channel_values("mean", given.get("mean"), channels),
        std=_channel_values("std", given.get("std"), channels),
        interpolation=interpolation,
        crop_pct=float(crop_pct),
        crop_mode=crop_mode,
        range=read_range(given.get("range")),
    )


def channels_of_all(*datasets: Any, background: Colour | None = None) -> int:
    """Return the channels that the pictures of data sets need: 3 as soon as one of them is coloured.

    Every picture is read, until the first one in colour.

    Args:
        *datasets: Give (PIL image, class number).
        background: What lies beneath transparent pixels.
    """
    for dataset in datasets:
        pixels = getattr(dataset, "data", None)
        # An array has one shape for all its pictures.
        uniform = isinstance(pixels, np.ndarray | torch.Tensor) and len(pixels) == len(dataset)
        for index in range(1 if uniform else len(dataset)):
            try:
                image = dataset[index][0]
            except Exception:
                continue  # it is named when it is read, or left out
            if isinstance(image, Image.Image) and channels_of(image, background) == 3:
                return 3
    return 1


def _channel_values(name: str, given: Any, channels: int) -> tuple[float, ...] | None:
    if given is None:
        return None
    values = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    if len(values) != channels or not numbers or not all(map(math.isfinite, values)):
        raise DataError(f"data.options.{name} = {given!r}; give one number for each of the {channels} channels")
    low = LEAST_STD if name == "std" else 0.0
    if not all(low <= value <= 1 for value in values):
        bounds = f"above 0, at least {low:g}, and" if low else "at least 0 and"
        raise DataError(f"data.options.{name} = {given!r}; it must be {bounds} at most 1, as pixels are in 0..1")
    return tuple(float(value) for value in values)


def _decoded(
    source: Any,
    *,
    size: int,
    mean: tuple[float, ...],
    interpolation: str,
    crop_pct: float,
    crop_mode: str,
    reader: Reader,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Read all images as `B x C x size x size` uint8, a quarter of what floats take, and their `B` class numbers."""
    # Of a border timm makes the mean's colour.
    resize = create_transform(
        size, mean=mean, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode, normalize=False
    )
    images = torch.empty(len(source), reader.channels, size, size, dtype=torch.uint8)
    labels = torch.empty(len(source), dtype=torch.long)
    for index in range(len(source)):
        image, labels[index] = source[index]
        try:
            images[index] = resize(reader(image))
        except PictureProblem as error:
            name, path = name_in(source, index)
            raise picture_error(name, error, path=path) from error
    return images, labels


def _moments(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and std of each channel of `B x C x H x W` uint8 images, of pixels in 0..1, to 4 digits."""
    # By the histogram: exact in float64 without a float copy of all images, which would take eight times their memory.
    values = torch.arange(256, dtype=torch.float64) / 255
    moments = []
    for channel in images.unbind(1):
        weights = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (weights * values).sum()
        moments.append((float(mean), float((weights * (values - mean) ** 2).sum().sqrt())))
    return tuple(round(mean, 4) for mean, _ in moments), tuple(round(std, 4) for _, std in moments)
