"""A look at a few pictures as a network will get them, before the first step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from hardware.errors import PictureError

from ..seeds import isolated_seed
from .datasets import ItemImages, TensorImages
from .images import ImageData
from .notice import notice
from .reading import channels_of, name_in

LOOKED_AT = 16
"""Pictures of a part."""


def look_at(data: ImageData) -> None:
    """Warn of pictures that no one could want, by a few that are spread over the parts without augmentation.

    Raises:
        PictureError: One of the few can be read, but a setting must say how.
    """
    flat, coloured, looked = [], [], 0
    with isolated_seed(0):  # what a user's data set draws here it would not have drawn without this look
        for part in (data.architecture, data.test):
            for index in np.unique(np.linspace(0, len(part) - 1, LOOKED_AT).astype(int)).tolist():  # type: ignore[arg-type]
                try:
                    name, source, image = _item(part, index)
                except PictureError as error:
                    if error.unclear:
                        raise
                    continue
                except Exception:
                    continue  # it is named when it is read, or left out
                if isinstance(source, Image.Image) and channels_of(source) > data.channels:
                    coloured.append(name)
                if isinstance(image, torch.Tensor) and image.ndim == 3:
                    looked += 1
                    if bool((image == image[:, :1, :1]).all()):
                        flat.append(name)
    if 2 * len(flat) > looked:
        notice(
            f"{len(flat)} of {looked} pictures that were looked at have one value throughout, such as {flat[0]}; look "
            "at the files, and at how they were written"
        )
    if coloured:
        notice(f"pictures in colour, such as {coloured[0]}, are read as grey, as the images have 1 channel")


def grey_throughout(data: ImageData) -> bool:
    """Say whether all pictures that are looked at are grey; what lies in memory was decoded as the options say."""
    looked = []
    with isolated_seed(0):
        for part in (data.architecture, data.test):
            for index in np.unique(np.linspace(0, len(part) - 1, LOOKED_AT).astype(int)).tolist():  # type: ignore[arg-type]
                try:
                    _, source, _ = _item(part, index)
                except Exception:
                    continue  # it is named when it is read, or left out
                if isinstance(source, Image.Image):
                    looked.append(channels_of(source))
    return bool(looked) and set(looked) == {1}


def _item(part: Any, index: int) -> tuple[str, Any, Any]:
    """Return an item's name, the picture where it comes from one, and what the network gets."""
    if isinstance(part, ItemImages):
        where = part.indices[index]
        return name_in(part.source, where)[0], part.source[where][0], part[index][0]
    name = f"image {int(part.indices[index])}" if isinstance(part, TensorImages) else f"image {index}"
    return name, None, part[index][0]
