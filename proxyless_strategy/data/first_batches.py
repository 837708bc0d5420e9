"""The first batch of every part, as a network will get it: what a training would fail at is said before it."""

from __future__ import annotations

import torch

from hardware.errors import DataError, PictureError

from ..seeds import isolated_seed
from .datasets import TensorImages, check_labels
from .images import PARTS, ImageData

SIZE = 4
"""Images of such a batch."""


def check_first_batches(data: ImageData, name: str) -> None:
    """Check a few images and labels of every part, whatever source they come from.

    Args:
        data: The images.
        name: The source, for messages.

    Raises:
        DataError: A batch is no float32 images of the stated size with one class number each.
    """
    for part in PARTS:
        dataset = getattr(data, part)
        if isinstance(dataset, TensorImages):
            labels = dataset.labels[dataset.indices]
            if labels.dtype != torch.int64 or labels.ndim != 1:
                raise DataError(
                    f"{name}: the labels of {part} are {labels.dtype} of {tuple(labels.shape)}; give one int64 each"
                )
            check_labels(labels.numpy(), data.num_classes, f"{name}: a label of {part}")
        loader = data.loader(part, batch_size=min(SIZE, len(dataset)), workers=0)
        try:
            with isolated_seed(0):  # what a user's data set draws here it would not have drawn without this look
                batch = next(iter(loader))
        except PictureError:
            continue  # it is named, or left out, where it is read
        except DataError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(
                f"{name}: the first batch of {part} raised {type(error).__name__}: {reason}; give pairs of an image "
                "and a class number, all images in one form"
            ) from error
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise DataError(f"{name}: the first batch of {part} is {type(batch).__name__}; give images and labels")
        images, labels = batch
        shape = (data.channels, data.input_size, data.input_size)
        if not isinstance(images, torch.Tensor) or images.dtype != torch.float32 or images.shape[1:] != shape:
            found = f"{images.dtype} of {tuple(images.shape)}" if isinstance(images, torch.Tensor) else type(images)
            raise DataError(
                f"{name}: the first batch of {part} is {found}, but must be torch.float32 of "
                f"{(len(images), *shape)}; correct the images, or channels and input_size"
            )
        if not bool(images.isfinite().all()):
            raise DataError(f"{name}: the first images of {part} are not finite; correct them, or mean and std")
        if not isinstance(labels, torch.Tensor) or labels.shape != (len(images),) or labels.dtype != torch.int64:
            found = f"{labels.dtype} of {tuple(labels.shape)}" if isinstance(labels, torch.Tensor) else type(labels)
            raise DataError(
                f"{name}: the first labels of {part} are {found}, but must be torch.int64 of {(len(images),)}; give "
                "one class number each"
            )
        check_labels(labels.numpy(), data.num_classes, f"{name}: a label of {part}")
