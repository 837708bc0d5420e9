"""torch data sets over images in memory and over files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import ConcatDataset, Dataset, TensorDataset, default_collate, get_worker_info
from torchvision.transforms.functional import to_pil_image

from hardware.errors import PictureError, ProxylessError

from ..seeds import isolated_seed, seeded
from .batches import BatchKey
from .carried import carried
from .reading import PictureProblem, name_in, picture_error
from .transforms import cutout_transform


@dataclass(frozen=True, eq=False)
class TensorImages(Dataset):
    """Images that lie in memory; a batch is one indexing of the whole tensor.

    Attributes:
        images: `B x C x H x W`, either uint8 (normalised with `mean` and `std` when read) or float (given as it is).
        labels: `B` class numbers.
        indices: The images that belong to this part.
        mean: One value a channel, of pixels in 0..1.
        std: One value a channel.
        augment: none, crop or crop_flip.
        cutout: Side of the square that every image loses; 0 for none.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: str = "none"
    cutout: int = 0

    @cached_property
    def targets(self) -> list[int]:
        """The label of every image, in order."""
        return self.labels[self.indices].tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | BatchKey) -> tuple[torch.Tensor, torch.Tensor]:
        if not isinstance(key, BatchKey):
            images, labels = self._read(self.indices[key].reshape(1), torch.default_generator)
            return images[0], labels[0]
        # One generator for the whole batch: its images are augmented together, in a few tensor operations.
        seed = np.random.SeedSequence((key.seed, key.epoch, key.number)).generate_state(1)[0]
        return self._read(self.indices[key.indices], torch.Generator().manual_seed(int(seed)))

    def _read(self, where: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        images = self.images[where]
        if self.augment in ("crop", "crop_flip"):
            images = _random_crop(images, generator)
        if self.augment == "crop_flip":
            flip = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
            images = torch.where(flip, images.flip(-1), images)
        if not images.is_floating_point():
            mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (self.mean, self.std))
            images = images.float().div_(255).sub_(mean).div_(std)
        if self.cutout:
            erase = cutout_transform(self.cutout, images.shape[-1])
            # RandomErasing takes no generator: it draws from torch's global one, which is seeded from ours.
            with isolated_seed(int(torch.randint(2**31, (), generator=generator))):
                images = torch.stack([erase(image) for image in images])
        return images, self.labels[where]


def _random_crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift each of `B x C x H x W` images by up to an eighth of its side, over a border of zeros."""
    size = images.shape[-1]
    padding = size // 8
    padded = functional.pad(images, (padding,) * 4)
    top, left = torch.randint(2 * padding + 1, (2, len(images)), generator=generator)
    # `unfold` views every window of the padded images without a copy; the indexing copies one of each.
    return padded.unfold(2, size, 1).unfold(3, size, 1)[torch.arange(len(images)), :, top, left]


@dataclass(frozen=True, eq=False)
class ItemImages(Dataset):
    """Images that are read one by one.

    Attributes:
        source: Gives (image, class number).
        indices: The images of `source` that belong to this part.
        transform: Makes a `C x H x W` float tensor of an image.
    """

    source: Dataset
    indices: Sequence[int]
    transform: Callable[[Any], torch.Tensor] | None = None

    @cached_property
    def targets(self) -> list[int]:
        """The label of every image, in order."""
        return labels_of(self.source)[np.asarray(self.indices)].tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | BatchKey) -> tuple[torch.Tensor, Any]:
        if not isinstance(key, BatchKey):
            return self._read(key)
        try:
            return self._batch(key)
        except ProxylessError as error:
            if get_worker_info() is None:
                raise
            raise carried(error) from error

    def _batch(self, key: BatchKey) -> tuple[torch.Tensor, Any]:
        items = []
        for index in key.indices:
            # The global generators are seeded, as a user's data set and torchvision's transforms draw from those; and
            # for each image anew, so that neither the batch it comes in nor the worker that reads it matters.
            with seeded(key.seed, key.epoch, index):
                items.append(self._read(index))
        return tuple(default_collate(items))

    def _read(self, index: int) -> tuple[torch.Tensor, int]:
        where = self.indices[index]
        try:
            image, label = self.source[where]
        except ProxylessError:
            raise
        except Exception as error:  # decoders raise all kinds, and none names the file
            raise _named(self.source, where, error) from error
        try:
            return (image if self.transform is None else self.transform(image)), int(label)
        except PictureProblem as error:
            raise _named(self.source, where, error) from error


def _named(source: Any, index: int, error: Exception) -> PictureError:
    name, path = name_in(source, index)
    return picture_error(name, error, path=path)


@dataclass(frozen=True, eq=False)
class MemoryPictures(Dataset):
    """uint8 images in memory, seen as PIL images.

    Attributes:
        images: `B x C x H x W`.
        labels: `B` class numbers.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return to_pil_image(self.images[index]), int(self.labels[index])


def labels_of(dataset: Any) -> np.ndarray:
    """Return the class number of every image, without reading the images where the data set lists its labels."""
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1].numpy().astype(np.int64)
    if isinstance(dataset, ConcatDataset):
        return np.concatenate([labels_of(part) for part in dataset.datasets])
    for name in ("targets", "labels", "_labels"):  # torchvision's classes use all three
        values = getattr(dataset, name, None)
        if values is not None and len(values) == len(dataset):
            return np.asarray(values).astype(np.int64)
    return np.array([_label_of(dataset, index) for index in range(len(dataset))])


def _label_of(dataset: Any, index: int) -> int:
    try:
        return int(dataset[index][1])
    except ProxylessError:
        raise
    except Exception as error:
        raise _named(dataset, index, error) from error
