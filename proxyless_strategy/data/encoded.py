"""Batches of files' bytes: what processes that read images hand on where another one decodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from hardware.reading import Unreadable, opened

from ..seeds import seeded
from .batches import BatchKey
from .carried import read_batch
from .datasets import ItemImages
from .drawn_views import Drawn, Draws
from .jpeg_header import PlainJpeg, plain_jpeg
from .reading import item_of


class EncodedBatch(NamedTuple):
    """One batch of `B` pictures, `K` of which are plain JPEG files that nobody has decoded yet.

    Attributes:
        content: The bytes of the `K` files, one after the other: one piece of shared memory, not one a file.
        sizes: Bytes of each.
        places: Where each belongs in the batch.
        numbers: Which item of the data set's source each is, for messages.
        headers: `K x 3`: rows, columns, components.
        views: `K x 13`, rows of `drawn_views.View`.
        order: `K x 4`, in which colours are changed.
        factors: `K x 4`, by how much.
        erased: `K x 4`: top, left, height and width of what is erased.
        ready: The other pictures, `(B - K) x C x H x W`, as Pillow and the training transform made them.
        labels: `B` class numbers.
    """

    content: Tensor
    sizes: list[int]
    places: list[int]
    numbers: list[int]
    headers: Tensor
    views: Tensor
    order: Tensor
    factors: Tensor
    erased: Tensor
    ready: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class EncodedImages(Dataset):
    """Picture files that are read one by one and, where they are plain JPEG, left encoded.

    Attributes:
        pictures: The same images by Pillow; what is no plain JPEG is read by it.
        draws: The random numbers of their transform.
    """

    pictures: ItemImages
    draws: Draws

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, key: int | BatchKey) -> Any:
        return read_batch(self._batch, key) if isinstance(key, BatchKey) else self.pictures[key]

    def _batch(self, key: BatchKey) -> EncodedBatch:
        contents: list[bytes] = []
        headers: list[PlainJpeg] = []
        drawn: list[Drawn] = []
        ready: list[Tensor] = []
        places, numbers, labels = [], [], []
        for place, index in enumerate(key.indices):
            # Each image has the random numbers that Pillow's transform would have drawn for it.
            with seeded(key.seed, key.epoch, index):
                found = self._plain(index)
                if found is None:
                    image, label = self.pictures[index]
                    ready.append(image)
                else:
                    content, header, label = found
                    contents.append(content)
                    headers.append(header)
                    drawn.append(self.draws(header.height, header.width))
                    places.append(place)
                    numbers.append(int(self.pictures.indices[index]))
            labels.append(label)
        return EncodedBatch(
            content=torch.frombuffer(bytearray(b"".join(contents)), dtype=torch.uint8) if contents else torch.empty(0),
            sizes=[len(content) for content in contents],
            places=places,
            numbers=numbers,
            headers=torch.tensor(headers, dtype=torch.int64).view(-1, 3),
            views=torch.tensor([each.view for each in drawn], dtype=torch.int64).view(len(drawn), -1),
            order=torch.tensor([each.order for each in drawn], dtype=torch.int64).view(-1, 4),
            factors=torch.tensor([each.factors for each in drawn], dtype=torch.float64).view(-1, 4),
            erased=torch.tensor([each.erased for each in drawn], dtype=torch.int64).view(-1, 4),
            ready=torch.stack(ready) if ready else torch.empty(0),
            labels=default_collate(labels),
        )

    def _plain(self, index: int) -> tuple[bytes, PlainJpeg, int] | None:
        """Return a file's bytes, header and class where it is a plain JPEG."""
        folder, number = item_of(self.pictures.source, int(self.pictures.indices[index]))
        path, label = folder.samples[number]
        try:
            with opened(path) as file:
                content = file.read()
        except (OSError, Unreadable):
            return None  # Pillow's way of reading it names it
        header = plain_jpeg(content)
        return None if header is None else (content, header, int(label))
