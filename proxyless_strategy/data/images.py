"""Images for a search: three parts (weights, architecture, test) of one data set, and loaders over them.

Weight steps see `weights`, architecture steps see `architecture`, retraining sees both together as `training`, and
`test` is touched once, after the last epoch. What a loader gives is a function of (seed, epoch) alone, whatever the
number of workers and whatever random numbers were drawn before, so that a resumed run continues bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from hardware.errors import DataError

from ..sections import Decoder
from ..signals import end_workers_at_exit, last_through
from ..strategy.loaders import FinishingLoader
from .batches import EpochBatches
from .datasets import ItemImages, MemoryPictures, TensorImages
from .decoding import Finish
from .drawn_views import draws_of
from .encoded import EncodedImages
from .reading import Reader
from .transforms import cutout_transform, train_transform, unchanged

Part = Literal["weights", "architecture", "training", "test"]
PARTS: tuple[Part, ...] = ("weights", "architecture", "training", "test")
AUGMENTED: tuple[Part, ...] = ("weights", "training")
"""Under the training transform; the others are read by Pillow, whatever the decoder."""


@dataclass(frozen=True, eq=False)
class ImageData:
    """One data set in its parts, with what a model of it must know.

    Attributes:
        num_classes: Number of classes.
        channels: Channels of an image.
        input_size: Height and width of an image.
        mean: One value a channel, of pixels in 0..1; images are normalised with it.
        std: One value a channel.
        interpolation: How images are resized, in timm's words.
        weights: What weight steps see, under the training transform.
        architecture: What architecture steps see, under the plain transform.
        training: Both together, under the training transform; for retraining.
        test: Touched once, after the last epoch.
        class_names: The name of every class, where known.
        augment: The training transform.
        crop_pct: Share of the resized image that the plain transform keeps.
        crop_mode: How the plain transform keeps it, in timm's words.
        reader: What becomes of the modes that pictures have; None: see `Reader`.
        left_out: What is wrong with each picture that no part has, as `data.skip_unreadable` says.
        replaced: Marks (see `data.digest`) of files that were replaced since the run began, as they were then.
        marks: Marks of other files, as the last digest found them, by absolute path.
        workers: Processes that read images, unless `loader` is told another number.
        decoder: What decodes the pictures of augmented parts: pillow, or nvjpeg (see `data.decoding`).
        decodes_on: The device of the latter: `cuda`, the process's own GPU, or any of torch's.

    Raises:
        DataError: A part is empty, or sizes contradict each other.
    """

    num_classes: int
    channels: int
    input_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    weights: Dataset
    architecture: Dataset
    training: Dataset
    test: Dataset
    class_names: tuple[str, ...] | None = None
    augment: str = "none"
    crop_pct: float = 1.0
    crop_mode: str = field(default="center", kw_only=True)
    reader: Reader | None = field(default=None, kw_only=True)
    left_out: tuple[str, ...] = field(default=(), kw_only=True)
    replaced: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    marks: dict[str, str] = field(default_factory=dict, kw_only=True, repr=False)
    workers: int = field(default=0, kw_only=True)
    decoder: Decoder = field(default="pillow", kw_only=True)
    decodes_on: str = field(default="cuda", kw_only=True)

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise DataError(f"the data set has {self.num_classes} class; give images of 2 classes or more")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise DataError(
                    f"{name} = {tuple(values)} has {len(values)} values for images of {self.channels} channels; "
                    "give one value a channel"
                )
        if min(self.std) <= 0:
            raise DataError(f"std = {tuple(self.std)} must be above 0 in every channel; images are divided by it")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise DataError(
                f"{len(self.class_names)} class names are given for {self.num_classes} classes; give one a class"
            )
        for part in PARTS:
            if not len(getattr(self, part)):
                raise DataError(f"the part {part!r} of the data set is empty; give it images")

    def loader(
        self,
        which: Part,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        epoch: int = 0,
        workers: int | None = None,
        drop_last: bool = False,
        rand_augment: str | None = None,
        cutout: int = 0,
        rank: int = 0,
        replicas: int = 1,
    ) -> DataLoader:
        """Build a loader of (`B x C x H x W` float images, `B` class numbers), a function of (seed, epoch) alone.

        Images of an augmented part lie on `decodes_on` where `decoder` is nvjpeg, else in CPU memory.

        Call `loader.sampler.set_epoch(epoch)` before every further epoch (Lightning does).

        Args:
            which: The part to read.
            batch_size: Images in a batch.
            shuffle: A new order in every epoch.
            seed: Seed of order and augmentation; each part has its own order under one seed.
            epoch: The epoch that the first iteration gives.
            workers: Processes that read images; None: as the data set was configured. Images in memory need none.
            drop_last: Leave out a last batch that is not full.
            rand_augment: timm's RandAugment string (`rand-m9-mstd0.5`), before the training transform.
            cutout: Side of a square at a random place that every image loses, after the normalisation; 0 for none.
            rank: This process among `replicas` that share the epoch.
            replicas: Number of such processes.

        Raises:
            DataError: There is no such part, no batch is left, or images in this form cannot be augmented so.
        """
        if which not in PARTS:
            raise DataError(f"there is no part {which!r} of a data set; parts are {', '.join(PARTS)}")
        dataset = getattr(self, which)
        if not isinstance(dataset, TensorImages | ItemImages):
            dataset = ItemImages(dataset, range(len(dataset)))
        if rand_augment is not None:
            dataset = self._rand_augmented(dataset, rand_augment)
        if cutout:
            dataset = self._cut_out(dataset, cutout)
        sampler = EpochBatches(
            length=len(dataset),
            batch_size=batch_size,
            shuffle=shuffle,
            drop_last=drop_last,
            # Mixed with the part: under one seed, parts of equal length would else be shuffled alike.
            seed=int(np.random.SeedSequence((seed, PARTS.index(which))).generate_state(1)[0]),
            epoch=epoch,
            rank=rank,
            replicas=replicas,
        )
        if not len(sampler):
            raise DataError(
                f"the part {which!r} has {len(dataset)} images, fewer than {replicas} full batch of {batch_size}; "
                "lower the batch size"
            )
        processes = 0 if isinstance(dataset, TensorImages) else self.workers if workers is None else workers
        if processes:
            end_workers_at_exit()
        make: Callable[..., DataLoader] = DataLoader
        pinned = torch.cuda.is_available()
        if self.decoder == "nvjpeg" and which in AUGMENTED and isinstance(dataset, ItemImages):
            draws = draws_of(dataset.transform, self.input_size)
            finish = Finish(dataset.source, draws, self.mean, self.std, self.decodes_on)
            # nvJPEG reads files in ordinary memory.
            make, pinned, dataset = partial(FinishingLoader, finish=finish), False, EncodedImages(dataset, draws)
        return make(
            dataset,
            # The sampler gives whole batches and the data set reads them; torch must neither batch nor convert again.
            batch_size=None,
            sampler=sampler,
            num_workers=processes,
            collate_fn=unchanged,
            pin_memory=pinned,
            # Starting to iterate draws a number for the workers, by default from the caller's global generator.
            generator=torch.Generator().manual_seed(seed),
            persistent_workers=processes > 0,
            worker_init_fn=last_through,
        )

    def without_test(self) -> ImageData:
        """Return the images of a training that is judged by the architecture part, with the weight part alone."""
        return replace(self, training=self.weights, test=self.architecture)

    def pretrained_cfg(self) -> dict[str, Any]:
        """Return what a model trained on this data must be fed with, in timm's names.

        `label_names`, and `pictures` where the pictures' modes were read by a setting, stand beside timm's own keys in
        an export.
        """
        config: dict[str, Any] = {
            "input_size": [self.channels, self.input_size, self.input_size],
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "crop_mode": self.crop_mode,
            "num_classes": self.num_classes,
        }
        if self.class_names is not None:
            config["label_names"] = list(self.class_names)
        if self.reader is not None and self.reader.settings():
            config["pictures"] = self.reader.settings()
        return config

    def record(self) -> dict[str, Any]:
        """Return what a run's record says of its pictures: nothing, where it has them all as they were."""
        record: dict[str, Any] = {"left_out": list(self.left_out)} if self.left_out else {}
        return record | ({"replaced": sorted(self.replaced)} if self.replaced else {})

    def _cut_out(self, dataset: TensorImages | ItemImages, side: int) -> TensorImages | ItemImages:
        """Return the data set with Cutout as its last transform."""
        if not side < self.input_size:
            raise DataError(f"cutout = {side} leaves nothing of images of {self.input_size} pixels; lower it")
        if isinstance(dataset, TensorImages):
            return replace(dataset, cutout=side)
        before = [] if dataset.transform is None else [dataset.transform]
        return replace(dataset, transform=transforms.Compose([*before, cutout_transform(side, self.input_size)]))

    def _rand_augmented(self, dataset: TensorImages | ItemImages, rand_augment: str) -> ItemImages:
        """Return the data set with RandAugment before its training transform, item by item: it works on PIL images."""
        if isinstance(dataset, TensorImages) and dataset.images.dtype == torch.uint8:
            dataset = ItemImages(MemoryPictures(dataset.images, dataset.labels), dataset.indices.tolist())
        if isinstance(dataset, TensorImages) or not isinstance(dataset.source[dataset.indices[0]][0], Image.Image):
            raise DataError(
                f"rand_augment = {rand_augment!r} works on PIL images, but this data set gives tensors; "
                "return PIL images, or leave rand_augment out"
            )
        transform = train_transform(
            self.augment,
            size=self.input_size,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            reader=self.reader,
            rand_augment=rand_augment,
        )
        return replace(dataset, transform=transform)
