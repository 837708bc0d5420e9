"""Load and check what the config names as data: the one way in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from hardware.errors import DataError

from ..config import DataConfig
from .datasets import MemoryPictures
from .decoding import check_decoder
from .first_batches import check_first_batches
from .function_source import find_function, load_function
from .hf_source import check_hf, is_hf, load_hf
from .imagefolder_source import check_imagefolder, load_imagefolder
from .images import ImageData
from .look import look_at
from .pictures import image_data, picture_options
from .shard_source import NAME as SHARDS
from .shard_source import check_shards, load_shards
from .split import stratified_split
from .torchvision_source import PREFIX, load_torchvision, torchvision_part
from .unreadable import without_unreadable

TEST_FRACTION = 0.2
"""Share of a data set without its own test part that is set aside as one."""


def load_data(config: DataConfig, *, input_size: int, seed: int) -> ImageData:
    """Read and split a data set.

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
        PictureError: A picture of those that are read now cannot be, or a setting must say how.
    """
    check_decoder(config)
    if config.name == "digits":
        data = _load_digits(config, input_size=input_size, seed=seed)
    elif config.name == "imagefolder":
        data = load_imagefolder(config, input_size=input_size, seed=seed)
    elif config.name == SHARDS:
        data = load_shards(config, input_size=input_size, seed=seed)
    elif is_hf(config.name):
        data = load_hf(config, input_size=input_size, seed=seed)
    elif config.name.startswith(PREFIX):
        data = load_torchvision(config, input_size=input_size, seed=seed)
    else:
        data = load_function(config, input_size=input_size)
    if config.skip_unreadable:
        data = without_unreadable(data)
    look_at(data)
    # Looked at as Pillow reads them: what is not trained on here, as where a table is built, needs no GPU.
    check_first_batches(replace(data, decoder="pillow"), config.name)
    if config.num_classes is None or config.num_classes == data.num_classes:
        return data
    if config.num_classes < data.num_classes:
        raise DataError(
            f"data.num_classes = {config.num_classes}, but {config.name} has {data.num_classes} classes; raise or "
            "remove it"
        )
    return replace(data, num_classes=config.num_classes, class_names=None)


def is_function(name: str) -> bool:
    """Say whether `data.name` is a user's `module:function`."""
    return ":" in name and not name.startswith(PREFIX) and not is_hf(name)


def reads_pictures(name: str) -> bool:
    """Say whether `data.name` is of pictures that are read in colour unless the options say otherwise."""
    return name in ("imagefolder", SHARDS) or is_hf(name)


def check_data(config: DataConfig, *, scan: bool = True) -> None:
    """Say what `load_data` would miss, without reading the images.

    Args:
        config: The data set.
        scan: Also list the files of an ImageFolder or of shards, which takes long for a million of them.

    Raises:
        DataError: The data set is unknown, missing, or has another layout than expected.
    """
    check_decoder(config)
    if config.name == "digits":
        picture_options(config, channels=1)
    elif config.name == "imagefolder":
        check_imagefolder(config, scan=scan)
    elif config.name == SHARDS:
        check_shards(config, scan=scan)
    elif is_hf(config.name):
        check_hf(config)
    elif config.name.startswith(PREFIX):
        torchvision_part(config, train=False)
    else:
        find_function(config)


def _load_digits(config: DataConfig, *, input_size: int, seed: int) -> ImageData:
    """Load scikit-learn's 1,797 digits of 8 x 8 pixels, whose grey levels 0..16 become 0..255."""
    from sklearn.datasets import load_digits  # slow, and no other source needs scikit-learn

    bunch = load_digits()
    pixels = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = bunch.target.astype(np.int64)
    train, test = stratified_split(labels, fraction=TEST_FRACTION, seed=(seed, 1))
    targets = torch.from_numpy(labels)
    return image_data(
        config,
        train=MemoryPictures(pixels[train], targets[train]),
        train_labels=labels[train],
        test=MemoryPictures(pixels[test], targets[test]),
        class_names=tuple(str(name) for name in bunch.target_names),
        options=picture_options(config, channels=1),
        in_memory=True,
        input_size=input_size,
        seed=seed,
    )
