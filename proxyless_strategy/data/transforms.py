"""What happens to an image on its way into a batch: conversion, augmentation, normalisation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.auto_augment import rand_augment_transform
from torchvision import transforms

from hardware.errors import ConfigError

from .reading import Reader

MOST_OPERATIONS = 100
"""Of RandAugment on one image; far above every use."""


def default_normalisation(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std of images whose own are not measured: ImageNet's; 0.5 and 0.5 for grey ones."""
    if channels == 3:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return (0.5,) * channels, (0.5,) * channels


def plain_transform(
    *,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str,
    crop_pct: float = 1.0,
    crop_mode: str = "center",
    reader: Reader | None = None,
) -> transforms.Compose:
    """Build the transform of images that are not augmented: PIL image to normalised `C x size x size`.

    It is timm's own for evaluation, so a network is searched and tested on what timm will feed its export with.
    """
    resize = create_transform(
        size, mean=mean, std=std, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode
    )
    return transforms.Compose([reader or Reader(len(mean)), resize])


def train_transform(
    augment: str,
    *,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str,
    crop_pct: float = 1.0,
    crop_mode: str = "center",
    reader: Reader | None = None,
    rand_augment: str | None = None,
) -> transforms.Compose:
    """Build the transform of training images: PIL image to augmented, normalised `C x size x size`.

    Args:
        augment: none, crop, crop_flip or imagenet.
        size: Height and width of the result.
        mean: One value a channel, of pixels in 0..1.
        std: One value a channel.
        interpolation: How images are resized, in timm's words.
        crop_pct: Share of the resized image that is kept; imagenet chooses its own.
        crop_mode: How it is kept, in timm's words; imagenet chooses its own.
        reader: What becomes of the modes that pictures have.
        rand_augment: timm's RandAugment string, applied first.

    Raises:
        ConfigError: timm does not know that RandAugment.
    """
    reader = reader or Reader(len(mean))
    before = [] if rand_augment is None else _rand_augment(rand_augment, size=size, mean=mean, reader=reader)
    if augment == "imagenet":
        crop = create_transform(
            size,
            is_training=True,
            mean=mean,
            std=std,
            interpolation=interpolation,
            # RandAugment has colour operations of its own.
            color_jitter=(0.4, 0.4, 0.4, 0.1) if rand_augment is None else 0.0,
        )
        return transforms.Compose([*before, reader, crop])
    # Without `normalize` timm ends with a uint8 tensor. The crop pads that with 0, black, as it does images in memory;
    # hence conversion and normalisation come after it.
    # Of a border timm makes the mean's colour.
    resize = create_transform(
        size, mean=mean, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode, normalize=False
    )
    after = [transforms.ConvertImageDtype(torch.float32), transforms.Normalize(mean, std)]
    return transforms.Compose([*before, reader, resize, *tensor_augment(augment, size), *after])


def tensor_augment(augment: str, size: int) -> list[Any]:
    """Build the augmentation of `C x size x size` tensors: a crop after padding by an eighth, and a flip."""
    crop = [transforms.RandomCrop(size, padding=size // 8)] if augment in ("crop", "crop_flip") else []
    flip = [transforms.RandomHorizontalFlip()] if augment == "crop_flip" else []
    return [*crop, *flip]


def cutout_transform(side: int, size: int) -> transforms.RandomErasing:
    """Build Cutout: a square of `side` pixels somewhere within each normalised image becomes 0, the mean."""
    share = (side / size) ** 2
    return transforms.RandomErasing(p=1.0, scale=(share, share), ratio=(1.0, 1.0), value=0)


def unchanged(value: Any) -> Any:
    """Return the value; a function with a name, as worker processes unpickle it."""
    return value


def _rand_augment(text: str, *, size: int, mean: tuple[float, ...], reader: Reader) -> list[Any]:
    colour = mean if len(mean) == 3 else mean * 3
    hints = {"translate_const": int(size * 0.45), "img_mean": tuple(min(255, round(255 * m)) for m in colour)}
    try:
        augment = rand_augment_transform(text, hints)
    except (AssertionError, ValueError, KeyError) as error:
        raise ConfigError(f"rand_augment = {text!r} is not timm's RandAugment; write e.g. rand-m9-mstd0.5") from error
    if not 1 <= augment.num_layers <= MOST_OPERATIONS:
        raise ConfigError(
            f"rand_augment = {text!r} has {augment.num_layers} operations an image; write 1 to {MOST_OPERATIONS}, as "
            "in rand-m9-n2"
        )
    # timm fills what an operation lays bare with a colour of three values, which a grey image does not take.
    return [replace(reader, channels=3), augment]
