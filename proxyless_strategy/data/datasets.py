"""torch data sets over images in memory and over files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset, default_collate
from torchvision.transforms.functional import to_pil_image

from hardware.errors import DataError, PictureError, ProxylessError

from ..seeds import isolated_seed, seeded
from .batches import BatchKey
from .carried import read_batch
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
    indices: Sequence[int] | np.ndarray
    transform: Callable[[Any], torch.Tensor] | None = None

    @cached_property
    def targets(self) -> list[int]:
        """The label of every image, in order."""
        return labels_of(self.source)[np.asarray(self.indices)].tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | BatchKey) -> tuple[torch.Tensor, Any]:
        return read_batch(self._batch, key) if isinstance(key, BatchKey) else self._read(key)

    def _batch(self, key: BatchKey) -> tuple[torch.Tensor, Any]:
        items = []
        for index in key.indices:
            # The global generators are seeded, as a user's data set and torchvision's transforms draw from those; and
            # for each image anew, so that neither the batch it comes in nor the worker that reads it matters.
            with seeded(key.seed, key.epoch, index):
                items.append(self._read(index))
        return tuple(default_collate(items))

    def _read(self, index: int) -> tuple[torch.Tensor, int]:
        where = int(self.indices[index])
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
    """Return the class number of every image, without reading the images where the data set lists its labels.

    Raises:
        DataError: They are not one class number each.
    """
    listed = listed_labels(dataset)
    if listed is None:
        listed = [_label_of(dataset, index) for index in range(len(dataset))]
    return np.array([class_number(label) for label in listed], dtype=np.int64)


def _label_of(dataset: Any, index: int) -> Any:
    try:
        return dataset[index][1]
    except ProxylessError:
        raise
    except Exception as error:
        raise _named(dataset, index, error) from error


def listed_labels(dataset: Any) -> Sequence[Any] | None:
    """Return the label of every image as a data set lists them; None where only its items tell.

    Raises:
        DataError: It lists fewer labels than images, or more.
    """
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
        return list(dataset.tensors[1].numpy())
    if isinstance(dataset, Subset):
        within = listed_labels(dataset.dataset)
        return None if within is None else [within[index] for index in dataset.indices]
    if isinstance(dataset, ConcatDataset):
        parts = [listed_labels(part) for part in dataset.datasets]
        return None if any(part is None for part in parts) else [label for part in parts for label in part or ()]
    for name in ("targets", "labels", "_labels"):  # torchvision's classes use all three
        values: Any = getattr(dataset, name, None)
        if values is None or not hasattr(values, "__len__") or isinstance(values, Mapping):
            continue
        if len(values) != len(dataset):
            raise DataError(
                f"{type(dataset).__name__} lists {len(values)} labels (`{name}`) for {len(dataset)} images; give one "
                "for each"
            )
        return list(np.asarray(values)) if isinstance(values, torch.Tensor | np.ndarray) else list(values)
    for name in ("samples", "_samples"):  # pairs of a path and a class number
        values = getattr(dataset, name, ())
        pairs = isinstance(values, list | tuple) and len(values) == len(dataset)
        if pairs and all(isinstance(pair, tuple) and len(pair) == 2 and type(pair[1]) is int for pair in values):
            return [label for _, label in values]
    return None


def class_number(label: Any, names: Mapping[str, int] | None = None) -> int:
    """Return the number that a label says: a whole number, the name of a class, or a vector with a 1 at its place.

    Raises:
        DataError: It says none, or more than one.

    >>> class_number(np.array([0, 0, 1])), class_number(torch.tensor([3.0])), class_number("cat", {"cat": 1})
    (2, 3, 1)
    """
    value = label
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray | list | tuple):
        array = np.asarray(value)
        if array.size == 1:
            value = array.reshape(-1)[0]
        elif array.ndim == 1 and array.dtype.kind in "biuf" and sorted(array.tolist())[-2:] == [0, 1]:
            value = int(array.argmax()) if array.sum() == 1 and array.min() == 0 else None
    if isinstance(value, str) and names is not None and value in names:
        return names[value]
    if isinstance(value, bool | np.bool_ | int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return int(value)
    text = " ".join(repr(label).split())
    raise DataError(f"the label {text if len(text) <= 60 else text[:57] + '...'} is no class number; give 0, 1, 2, ...")


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Refuse labels that are none of the classes.

    Raises:
        DataError: The first such image is named by its number.
    """
    wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
    if len(wrong):
        raise DataError(
            f"{where} is outside 0..{num_classes - 1}: image {wrong[0]} has {labels[wrong[0]]}"
            + (f", and {len(wrong) - 1} more have others" if len(wrong) > 1 else "")
            + "; correct the labels or the list of classes"
        )
