"""Images for a search: three parts (weights, architecture, test) of one data set, and loaders over them.

Weight steps see `weights`, architecture steps see `architecture`, retraining sees both together as `training`, and
`test` is touched once, after the last epoch. What a loader gives is a function of (seed, epoch) alone, whatever the
number of workers and whatever random numbers were drawn before, so that a resumed run continues bit for bit.
"""

from __future__ import annotations

import gzip
import importlib
import inspect
import operator
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.auto_augment import rand_augment_transform
from torch.nn import functional
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Sampler, TensorDataset, default_collate
from torchvision import datasets as torchvision_datasets
from torchvision import transforms

from hardware.errors import ConfigError, DataError

from .config import DataConfig
from .drawn_images import draw_cifar10, draw_image_folder
from .seeds import isolated_seed, seeded

Part = Literal["weights", "architecture", "training", "test"]
PARTS: tuple[Part, ...] = ("weights", "architecture", "training", "test")
SOURCES = "digits, imagefolder, torchvision:CLASS or module:function"

TEST_FRACTION = 0.2
"""Share of a data set without its own test part that is set aside as one."""
MEMORY_LIMIT = 2**30
"""Bytes of decoded images up to which a torchvision data set is kept in memory."""

_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_MODES = {1: "L", 3: "RGB"}
_LAYOUT = "imagefolder expects ROOT/train/CLASS/*.jpg and ROOT/val/CLASS/*.jpg (.png and others too)"


@dataclass(frozen=True)
class _PictureOptions:
    """What `data.options` may say about pictures."""

    channels: int
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    interpolation: str = "bicubic"
    crop_pct: float = 1.0


_PICTURE_OPTIONS = tuple(_PictureOptions.__dataclass_fields__)


class BatchKey(NamedTuple):
    """Which images one batch holds, and the seeds of their augmentation."""

    seed: int
    epoch: int
    number: int
    indices: list[int]


class EpochBatches(Sampler[BatchKey]):
    """The batches of an epoch, in an order that depends on (seed, epoch) alone.

    It hands out whole batches, so its `DataLoader` has `batch_size=None`. Lightning calls `set_epoch` by itself.

    Args:
        length: Number of images.
        batch_size: Images in a batch.
        shuffle: A new order in every epoch; otherwise the images come as they lie.
        drop_last: Leave out a last batch that is not full.
        seed: Seed of order and augmentation.
        epoch: The epoch that the next iteration gives.
        rank: Which of `replicas` processes this one is: it gets every `replicas`-th batch.
        replicas: Number of processes that share an epoch. All get the same number of batches; for that the first
            batches come twice, or with `drop_last` the last ones are left out.
    """

    def __init__(
        self,
        *,
        length: int,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        epoch: int = 0,
        rank: int = 0,
        replicas: int = 1,
    ):
        self.length = length
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.rank = rank
        self.replicas = replicas
        self.set_epoch(epoch)

    def set_epoch(self, epoch: int, *, start: int = 0) -> None:
        """Chooses the epoch of the next iteration, and the batch in it to start from (to resume within an epoch)."""
        self.epoch = epoch
        self.start = start

    def __len__(self) -> int:
        return _divided(_divided(self.length, self.batch_size, self.drop_last), self.replicas, self.drop_last)

    def __iter__(self) -> Iterator[BatchKey]:
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.epoch)).permutation(self.length)
        else:
            order = np.arange(self.length)
        batches = _divided(self.length, self.batch_size, self.drop_last)
        for step in range(self.start, len(self)):
            number = (step * self.replicas + self.rank) % batches
            indices = order[number * self.batch_size : (number + 1) * self.batch_size]
            yield BatchKey(self.seed, self.epoch, number, indices.tolist())


def _divided(count: int, size: int, drop_last: bool) -> int:
    return count // size if drop_last else -(-count // size)


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
            erase = _eraser(self.cutout, images.shape[-1])
            with isolated_seed(int(torch.randint(2**31, (), generator=generator))):
                images = torch.stack([erase(image) for image in images])
        return images, self.labels[where]


def _eraser(side: int, size: int) -> transforms.RandomErasing:
    """Cutout: a square of `side` pixels somewhere within each image becomes 0, the mean."""
    share = (side / size) ** 2
    return transforms.RandomErasing(p=1.0, scale=(share, share), ratio=(1.0, 1.0), value=0)


def _random_crop(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    size = images.shape[-1]
    padding = size // 8
    padded = functional.pad(images, (padding,) * 4)
    top, left = torch.randint(2 * padding + 1, (2, len(images)), generator=generator)
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
        return _labels_of(self.source)[np.asarray(self.indices)].tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int | BatchKey) -> tuple[torch.Tensor, Any]:
        if not isinstance(key, BatchKey):
            return self._read(key)
        items = []
        for index in key.indices:
            with seeded(key.seed, key.epoch, index):
                items.append(self._read(index))
        return tuple(default_collate(items))

    def _read(self, index: int) -> tuple[torch.Tensor, int]:
        try:
            image, label = self.source[self.indices[index]]
        except OSError as error:
            samples = getattr(self.source, "samples", None)
            name = samples[self.indices[index]][0] if samples else f"image {self.indices[index]}"
            raise DataError(f"cannot read {name}: {error}; replace or remove it") from error
        return (image if self.transform is None else self.transform(image)), int(label)


@dataclass(frozen=True, eq=False)
class _Pictures(Dataset):
    """uint8 images in memory, seen as PIL images."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return transforms.functional.to_pil_image(self.images[index]), int(self.labels[index])


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
        workers: Processes that read images, unless `loader` is told another number.

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
    workers: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.num_classes < 2:
            raise DataError(f"the data set has {self.num_classes} class; a classifier needs at least 2")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise DataError(
                    f"{name} = {tuple(values)} has {len(values)} values for images of {self.channels} channels; "
                    "give one value a channel"
                )
        if min(self.std) <= 0:
            raise DataError(f"std = {tuple(self.std)} must be above 0 in every channel")
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise DataError(f"{len(self.class_names)} class names are given for {self.num_classes} classes")
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
        """A loader of (`B x C x H x W` float images, `B` class numbers) that is a function of (seed, epoch) alone.

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
        return DataLoader(
            dataset,
            batch_size=None,
            sampler=sampler,
            num_workers=processes,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator().manual_seed(seed),
            persistent_workers=processes > 0,
        )

    def pretrained_cfg(self) -> dict[str, Any]:
        """What a model trained on this data must be fed with, in timm's names."""
        config: dict[str, Any] = {
            "input_size": [self.channels, self.input_size, self.input_size],
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "crop_pct": self.crop_pct,
            "num_classes": self.num_classes,
        }
        if self.class_names is not None:
            config["label_names"] = list(self.class_names)
        return config

    def _cut_out(self, dataset: TensorImages | ItemImages, side: int) -> TensorImages | ItemImages:
        if not side < self.input_size:
            raise DataError(f"cutout = {side} leaves nothing of images of {self.input_size} pixels; lower it")
        if isinstance(dataset, TensorImages):
            return replace(dataset, cutout=side)
        before = [] if dataset.transform is None else [dataset.transform]
        return replace(dataset, transform=transforms.Compose([*before, _eraser(side, self.input_size)]))

    def _rand_augmented(self, dataset: TensorImages | ItemImages, rand_augment: str) -> ItemImages:
        if isinstance(dataset, TensorImages) and dataset.images.dtype == torch.uint8:
            dataset = ItemImages(_Pictures(dataset.images, dataset.labels), dataset.indices.tolist())
        if isinstance(dataset, TensorImages) or not isinstance(dataset.source[dataset.indices[0]][0], Image.Image):
            raise DataError(
                f"rand_augment = {rand_augment!r} works on PIL images, but this data set gives tensors; "
                "return PIL images, or leave rand_augment out"
            )
        transform = _train_transform(
            self.augment,
            size=self.input_size,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            crop_pct=self.crop_pct,
            rand_augment=rand_augment,
        )
        return replace(dataset, transform=transform)


def load_data(config: DataConfig, *, input_size: int, seed: int) -> ImageData:
    """Reads and splits a data set.

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
    """
    if config.name == "digits":
        data = _load_digits(config, input_size=input_size, seed=seed)
    elif config.name == "imagefolder":
        data = _load_imagefolder(config, input_size=input_size, seed=seed)
    elif config.name.startswith("torchvision:"):
        data = _load_torchvision(config, input_size=input_size, seed=seed)
    else:
        data = _load_function(config, input_size=input_size)
    if config.num_classes is None or config.num_classes == data.num_classes:
        return data
    if config.num_classes < data.num_classes:
        raise DataError(
            f"data.num_classes = {config.num_classes}, but {config.name} has {data.num_classes} classes; raise or "
            "remove it"
        )
    return replace(data, num_classes=config.num_classes, class_names=None)


def check_data(config: DataConfig, *, scan: bool = True) -> None:
    """Says what `load_data` would miss, without reading the images.

    Args:
        config: The data set.
        scan: Also list the files of an ImageFolder, which takes long for a million of them.

    Raises:
        DataError: The data set is unknown, missing, or has another layout than expected.
    """
    if config.name == "digits":
        _picture_options(config, channels=1)
    elif config.name == "imagefolder":
        _check_layout(config)
        if scan:
            _imagefolders(config)
        _picture_options(config, channels=3)
    elif config.name.startswith("torchvision:"):
        _torchvision_part(config, train=False)
    else:
        _function(config)


# --- sources -----------------------------------------------------------------------------------------------------


def _load_digits(config: DataConfig, *, input_size: int, seed: int) -> ImageData:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = bunch.target.astype(np.int64)
    train, test = stratified_split(labels, fraction=TEST_FRACTION, seed=(seed, 1))
    targets = torch.from_numpy(labels)
    return _from_pictures(
        config,
        train=_Pictures(pixels[train], targets[train]),
        train_labels=labels[train],
        test=_Pictures(pixels[test], targets[test]),
        class_names=tuple(str(name) for name in bunch.target_names),
        options=_picture_options(config, channels=1),
        in_memory=True,
        input_size=input_size,
        seed=seed,
    )


def _load_imagefolder(config: DataConfig, *, input_size: int, seed: int) -> ImageData:
    train, test = _imagefolders(config)
    return _from_pictures(
        config,
        train=train,
        train_labels=np.asarray(train.targets),
        test=test,
        class_names=tuple(train.classes),
        options=_picture_options(config, channels=3),
        in_memory=False,
        input_size=input_size,
        seed=seed,
    )


def _check_layout(config: DataConfig) -> Path:
    """The root of an ImageFolder whose parts have the same classes, which need not have images.

    Raises:
        DataError: The root is not given, or a part or a class is missing.
    """
    root = config.root
    if root is None:
        raise DataError(f"data.root is missing; {_LAYOUT}")
    if config.draw is not None:
        draw_image_folder(root, config.draw)
    classes = {}
    for folder in (root / "train", root / "val"):
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder; {_LAYOUT}; put the images there, or set data.root")
        classes[folder] = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
        if not classes[folder]:
            raise DataError(f"there is no class: looked in {folder}, and {_LAYOUT}")
    different = sorted(set.symmetric_difference(*classes.values()))
    if different:
        named = ", ".join(different[:5]) + (f" and {len(different) - 5} more" if len(different) > 5 else "")
        raise DataError(
            f"{root}: train and val must have the same classes, but only one of them has {named}; {_LAYOUT}"
        )
    return root


def _imagefolders(config: DataConfig) -> tuple[torchvision_datasets.ImageFolder, ...]:
    root = _check_layout(config)
    return _scanned(root, *((root / name).stat().st_mtime_ns for name in ("train", "val")))


@lru_cache(maxsize=2)
def _scanned(root: Path, *changed: int) -> tuple[torchvision_datasets.ImageFolder, ...]:
    """Both parts; a million files are listed once in a process, unless a class was added or removed since."""
    folders = []
    for folder in (root / "train", root / "val"):
        try:
            folders.append(torchvision_datasets.ImageFolder(str(folder)))
        except FileNotFoundError as error:
            raise DataError(f"{' '.join(str(error).split())}; looked in {folder}, and {_LAYOUT}") from error
    return tuple(folders)


def _load_torchvision(config: DataConfig, *, input_size: int, seed: int) -> ImageData:
    train = _torchvision_part(config, train=True)
    test = _torchvision_part(config, train=False)
    image = train[0][0]
    if not isinstance(image, Image.Image):
        raise DataError(f"{config.name} gives {type(image).__name__}, not images; use another data set")
    options = _picture_options(config, channels=1 if image.mode in ("1", "L") else 3, others=True)
    size = (len(train) + len(test)) * options.channels * input_size**2
    names = getattr(train, "classes", None)
    return _from_pictures(
        config,
        train=train,
        train_labels=_labels_of(train),
        test=test,
        class_names=tuple(str(name) for name in names) if names else None,
        options=options,
        in_memory=hasattr(train, "data") and size <= MEMORY_LIMIT,
        input_size=input_size,
        seed=seed,
    )


def _torchvision_part(config: DataConfig, *, train: bool) -> Any:
    name = config.name.removeprefix("torchvision:")
    found: Any = getattr(torchvision_datasets, name, None)
    if not (inspect.isclass(found) and issubclass(found, torchvision_datasets.VisionDataset)):
        raise DataError(f"torchvision has no data set {name!r}; take a class of torchvision.datasets")
    parameters = inspect.signature(found.__init__).parameters
    if not {"train", "split"} & parameters.keys() or "root" not in parameters:
        raise DataError(f"torchvision's {name} has no train and test part; use another data set or module:function")
    if config.root is None:
        raise DataError(f"data.root is missing; give the folder that holds torchvision's {name}")
    arguments = {key: value for key, value in config.options.items() if key not in _PICTURE_OPTIONS}
    unknown = arguments.keys() - parameters.keys()
    if unknown:
        known = sorted({*_PICTURE_OPTIONS, *parameters} - {"self", "root", "transform", "target_transform", "train"})
        raise DataError(f"unknown data option {sorted(unknown)[0]!r}; {name} takes {', '.join(known)}")
    if "train" in parameters:
        arguments["train"] = train
    else:
        arguments["split"] = "train" if train else "test"
    if config.draw is not None:
        draw_cifar10(config.root, config.draw)
        found = _unchecked(found)
    if issubclass(found, torchvision_datasets.MNIST) and (_idx_file(config.root, "train-images-idx3-ubyte")):
        found = _flat(found)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return found(root=str(config.root), **arguments)
    except Exception as error:
        download = "" if arguments.get("download") else ", or set data.options.download: true"
        reason = " ".join(str(error).split())
        raise DataError(
            f"cannot read torchvision's {name} in {config.root}: {reason}; put it there{download}"
        ) from error


def _unchecked(found: Any) -> Any:
    """The CIFAR class for drawn files, which have other check sums than the original's; they must only be there."""

    lists = {name: [[file, None] for file, _ in getattr(found, name)] for name in ("train_list", "test_list")}
    return type("Unchecked", (found,), {**lists, "meta": {**found.meta, "md5": None}})


def _flat(found: Any) -> Any:
    """The MNIST-like class, reading files (packed or not) that lie in the root itself, as Debian ships them."""

    class Flat(found):
        def _check_exists(self) -> bool:
            return True

        def _load_data(self) -> tuple[torch.Tensor, torch.Tensor]:
            start = "train" if self.train else "t10k"
            return (
                torch.from_numpy(_read_idx(Path(self.root), f"{start}-images-idx3-ubyte")),
                torch.from_numpy(_read_idx(Path(self.root), f"{start}-labels-idx1-ubyte")).long(),
            )

    return Flat


def _idx_file(root: Path, name: str) -> Path | None:
    return next((path for path in (root / name, root / f"{name}.gz") if path.is_file()), None)


def _read_idx(root: Path, name: str) -> np.ndarray:
    path = _idx_file(root, name)
    if path is None:
        raise FileNotFoundError(f"{name} (or {name}.gz) is missing")
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dimensions = content[3]
    shape = np.frombuffer(content, ">i4", dimensions, 4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape).copy()


def _function(config: DataConfig) -> Callable[..., Any]:
    module_name, colon, function_name = config.name.partition(":")
    if not colon:
        raise DataError(f"unknown data set {config.name!r}; data.name is {SOURCES}")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DataError(f"cannot load the data set {config.name!r}: {error}; data.name is {SOURCES}") from error
    if not callable(function):
        raise DataError(f"{config.name} is {type(function).__name__}, not a function that returns data sets")
    return function


def _load_function(config: DataConfig, *, input_size: int) -> ImageData:
    function = _function(config)
    try:
        returned = function(config.root, **config.options)
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{config.name} raised {type(error).__name__}: {error}; mend that function") from error
    if isinstance(returned, ImageData):
        if returned.input_size != input_size:
            raise DataError(
                f"{config.name} returned images of size {returned.input_size}, but input_size is {input_size}; "
                "make them equal"
            )
        return returned
    if not isinstance(returned, Sequence) or len(returned) != 3:
        raise DataError(
            f"{config.name} must return an ImageData or three data sets (weights, architecture, test), "
            f"but returned {type(returned).__name__}"
        )
    parts = dict(zip(("weights", "architecture", "test"), returned, strict=True))
    if len({id(part) for part in parts.values()}) < 3:
        raise DataError(f"{config.name} returned one data set twice; weights, architecture and test must not overlap")
    for part, dataset in parts.items():
        if not len(dataset):
            raise DataError(f"{config.name} returned an empty data set for {part}; give it images")
    return _from_parts(config, parts, input_size=input_size)


def _from_parts(config: DataConfig, parts: Mapping[str, Any], *, input_size: int) -> ImageData:
    image = parts["weights"][0][0]
    names = getattr(parts["weights"], "classes", None)
    labels = {part: _labels_of(dataset) for part, dataset in parts.items()}
    num_classes = len(names) if names else int(max(values.max() for values in labels.values())) + 1
    for part, values in labels.items():
        if values.min() < 0 or values.max() >= num_classes:
            raise DataError(f"{config.name}: a label of {part} is outside 0..{num_classes - 1}")
    both: Dataset = ConcatDataset([parts["weights"], parts["architecture"]])
    plain: Callable[[Any], torch.Tensor]
    if isinstance(image, Image.Image):
        channels = 1 if image.mode in ("1", "L") else 3
        mean, std = _default_normalisation(channels)
        settings: dict[str, Any] = {"size": input_size, "mean": mean, "std": std, "interpolation": "bicubic"}
        augmented = _train_transform(config.augment, **settings)
        plain = _plain_transform(**settings)
    elif isinstance(image, torch.Tensor) and image.is_floating_point() and image.ndim == 3:
        channels = image.shape[0]
        mean, std = (0.0,) * channels, (1.0,) * channels
        if image.shape[1:] != (input_size, input_size):
            raise DataError(
                f"{config.name} gives images of {' x '.join(map(str, image.shape))}, but input_size is {input_size}; "
                "make them equal, or return PIL images"
            )
        if config.augment == "imagenet":
            raise DataError(f"augment: imagenet needs PIL images, but {config.name} gives tensors; use another augment")
        augmented, plain = transforms.Compose(_tensor_augment(config.augment, input_size)), _as_it_is
    else:
        kind = f"{image.dtype} of {tuple(image.shape)}" if isinstance(image, torch.Tensor) else type(image).__name__
        raise DataError(f"{config.name} gives images as {kind}; give PIL images or C x H x W float tensors")

    def wrapped(dataset: Any, *, train: bool) -> Dataset:
        if isinstance(dataset, TensorDataset):
            images, targets = dataset.tensors
            augment = config.augment if train else "none"
            return TensorImages(images, targets.long(), torch.arange(len(images)), mean, std, augment)
        return ItemImages(dataset, range(len(dataset)), augmented if train else plain)

    return ImageData(
        num_classes=num_classes,
        channels=channels,
        input_size=input_size,
        mean=mean,
        std=std,
        interpolation="bicubic",
        weights=wrapped(parts["weights"], train=True),
        architecture=wrapped(parts["architecture"], train=False),
        training=wrapped(_joined(parts["weights"], parts["architecture"]) or both, train=True),
        test=wrapped(parts["test"], train=False),
        class_names=tuple(str(name) for name in names) if names else None,
        augment=config.augment,
        workers=config.workers,
    )


def _joined(first: Any, second: Any) -> TensorDataset | None:
    if isinstance(first, TensorDataset) and isinstance(second, TensorDataset):
        return TensorDataset(*(torch.cat(pair) for pair in zip(first.tensors, second.tensors, strict=True)))
    return None


# --- from PIL images to parts --------------------------------------------------------------------------------------


def _from_pictures(
    config: DataConfig,
    *,
    train: Any,
    train_labels: np.ndarray,
    test: Any,
    class_names: tuple[str, ...] | None,
    options: _PictureOptions,
    in_memory: bool,
    input_size: int,
    seed: int,
) -> ImageData:
    weights, architecture = stratified_split(
        train_labels,
        fraction=config.architecture_fraction,
        per_class=config.architecture_per_class,
        seed=(seed, 0),
        class_names=class_names,
    )
    both = np.arange(len(train_labels))
    geometry: dict[str, Any] = {
        "size": input_size,
        "interpolation": options.interpolation,
        "crop_pct": options.crop_pct,
    }
    parts: dict[str, Dataset]
    if in_memory and config.augment != "imagenet":
        images, labels = _decoded(train, channels=options.channels, **geometry)
        test_images, test_labels = _decoded(test, channels=options.channels, **geometry)
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
        default_mean, default_std = _default_normalisation(options.channels)
        mean, std = options.mean or default_mean, options.std or default_std
        augmented = _train_transform(config.augment, mean=mean, std=std, **geometry)
        plain = _plain_transform(mean=mean, std=std, **geometry)
        parts = {
            "weights": ItemImages(train, weights.tolist(), augmented),
            "architecture": ItemImages(train, architecture.tolist(), plain),
            "training": ItemImages(train, both.tolist(), augmented),
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
        workers=config.workers,
        **parts,
    )


def stratified_split(
    labels: np.ndarray,
    *,
    fraction: float,
    per_class: int | None = None,
    seed: Sequence[int],
    class_names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Splits images class by class, at random.

    Args:
        labels: The class of each image.
        fraction: Share of each class that the second part gets, rounded, but at least one image.
        per_class: Exact number of each class that the second part gets; overrides the fraction.
        seed: Seed of the draw.
        class_names: For messages.

    Returns:
        Sorted indices of the first and of the second part; they are disjoint and hold every image.

    Raises:
        DataError: A class has too few images to leave at least one in both parts.
    """
    generator = np.random.default_rng(tuple(seed))
    second = []
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        count = per_class if per_class is not None else max(1, round(fraction * len(members)))
        if per_class is None and len(members) > 1:
            count = min(count, len(members) - 1)
        if count >= len(members):
            name = class_names[label] if class_names else label
            raise DataError(
                f"class {name!r} has {len(members)} training images, too few to give {count} of them away; add images"
                + (" or lower data.architecture_per_class" if per_class is not None else "")
            )
        second.append(generator.choice(members, size=count, replace=False))
    taken = np.sort(np.concatenate(second))
    return np.setdiff1d(np.arange(len(labels)), taken), taken


def _picture_options(config: DataConfig, *, channels: int, others: bool = False) -> _PictureOptions:
    given = {"channels": channels, **config.options}
    unknown = [key for key in given if key not in _PICTURE_OPTIONS]
    if unknown and not others:
        raise DataError(f"unknown data option {unknown[0]!r}; {config.name} takes {', '.join(_PICTURE_OPTIONS)}")
    channels = given["channels"]
    if channels not in _MODES:
        raise DataError(f"data.options.channels = {channels!r}; it must be 1 (grey) or 3 (colour)")
    interpolation = given.get("interpolation", _PictureOptions.interpolation)
    if interpolation not in _INTERPOLATIONS:
        raise DataError(f"data.options.interpolation = {interpolation!r}; use one of {', '.join(_INTERPOLATIONS)}")
    crop_pct = given.get("crop_pct", _PictureOptions.crop_pct)
    if not isinstance(crop_pct, int | float) or not 0 < crop_pct <= 1:
        raise DataError(f"data.options.crop_pct = {crop_pct!r}; it must be above 0 and at most 1")
    return _PictureOptions(
        channels=channels,
        mean=_channel_values("mean", given.get("mean"), channels),
        std=_channel_values("std", given.get("std"), channels),
        interpolation=interpolation,
        crop_pct=float(crop_pct),
    )


def _channel_values(name: str, given: Any, channels: int) -> tuple[float, ...] | None:
    if given is None:
        return None
    values = list(given) if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    if len(values) != channels or not all(isinstance(value, int | float) for value in values):
        raise DataError(f"data.options.{name} = {given!r}; give one number for each of the {channels} channels")
    return tuple(float(value) for value in values)


def _default_normalisation(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if channels == 3:
        return IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    return (0.5,) * channels, (0.5,) * channels


def _labels_of(dataset: Any) -> np.ndarray:
    if isinstance(dataset, TensorDataset):
        return dataset.tensors[1].numpy().astype(np.int64)
    for name in ("targets", "labels", "_labels"):
        values = getattr(dataset, name, None)
        if values is not None and len(values) == len(dataset):
            return np.asarray(values).astype(np.int64)
    return np.array([int(dataset[index][1]) for index in range(len(dataset))])


def _decoded(
    source: Any, *, channels: int, size: int, interpolation: str, crop_pct: float
) -> tuple[torch.Tensor, torch.Tensor]:
    resize = create_transform(size, interpolation=interpolation, crop_pct=crop_pct, normalize=False)
    images = torch.empty(len(source), channels, size, size, dtype=torch.uint8)
    labels = torch.empty(len(source), dtype=torch.long)
    for index in range(len(source)):
        image, labels[index] = source[index]
        images[index] = resize(image.convert(_MODES[channels]))
    return images, labels


def _moments(images: torch.Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    values = torch.arange(256, dtype=torch.float64) / 255
    moments = []
    for channel in images.unbind(1):
        weights = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean = (weights * values).sum()
        moments.append((float(mean), float((weights * (values - mean) ** 2).sum().sqrt())))
    return tuple(round(mean, 4) for mean, _ in moments), tuple(round(std, 4) for _, std in moments)


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
