"""What happens to an image on its way into a batch: conversion, augmentation, normalisation."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.auto_augment import rand_augment_transform
from torchvision import transforms

from hardware.errors import ConfigError

_MODES = {1: "L", 3: "RGB"}


def _default_normalisation(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if channels == 3:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return (0.5,) * channels, (0.5,) * channels


def _plain_transform(
    *,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str,
    crop_pct: float = 1.0,
) -> transforms.Compose:
    resize = create_transform(size, mean=mean, std=std, interpolation=interpolation, crop_pct=crop_pct)
    return transforms.Compose([_converter(len(mean)), resize])


def _train_transform(
    augment: str,
    *,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    interpolation: str,
    crop_pct: float = 1.0,
    rand_augment: str | None = None,
) -> transforms.Compose:
    before = [] if rand_augment is None else _rand_augment(rand_augment, size=size, mean=mean)
    if augment == "imagenet":
        crop = create_transform(
            size,
            is_training=True,
            mean=mean,
            std=std,
            interpolation=interpolation,
            color_jitter=(0.4, 0.4, 0.4, 0.1) if rand_augment is None else 0.0,
        )
        return transforms.Compose([*before, _converter(len(mean)), crop])
    resize = create_transform(size, interpolation=interpolation, crop_pct=crop_pct, normalize=False)
    after = [transforms.ConvertImageDtype(torch.float32), transforms.Normalize(mean, std)]
    return transforms.Compose([*before, _converter(len(mean)), resize, *_tensor_augment(augment, size), *after])


def _tensor_augment(augment: str, size: int) -> list[Any]:
    crop = [transforms.RandomCrop(size, padding=size // 8)] if augment in ("crop", "crop_flip") else []
    flip = [transforms.RandomHorizontalFlip()] if augment == "crop_flip" else []
    return [*crop, *flip]


def _rand_augment(text: str, *, size: int, mean: tuple[float, ...]) -> list[Any]:
    colour = mean if len(mean) == 3 else mean * 3
    hints = {"translate_const": int(size * 0.45), "img_mean": tuple(min(255, round(255 * m)) for m in colour)}
    try:
        augment = rand_augment_transform(text, hints)
    except (AssertionError, ValueError, KeyError) as error:
        raise ConfigError(f"rand_augment = {text!r} is not timm's RandAugment; write e.g. rand-m9-mstd0.5") from error
    return [_converter(3), augment]


def _converter(channels: int) -> Callable[[Any], Any]:
    return operator.methodcaller("convert", _MODES[channels])


def _as_it_is(value: Any) -> Any:
    return value
