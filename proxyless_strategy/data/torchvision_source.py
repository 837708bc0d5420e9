"""Data sets of torchvision, by name."""

from __future__ import annotations

import inspect
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import datasets as torchvision_datasets

from hardware.errors import DataError, PictureError
from hardware.reading import Unreadable, check_regular, cut, is_there

from ..config import DataConfig
from .datasets import check_labels, class_number, labels_of
from .drawn import draw_cifar10
from .idx import idx_file, read_idx
from .images import ImageData
from .pictures import PICTURE_OPTIONS, channels_of_all, image_data, picture_options
from .plain_pickles import arrays_alone, check_named
from .reading import background_colour
from .user_items import described

PREFIX = "torchvision:"
_MISSING = re.compile(r"not found|not exist|download", re.IGNORECASE)
"""Words of torchvision about files that are not there; it has no error of its own for that."""
_IDX_CLASSES = ("MNIST", "FashionMNIST", "KMNIST")
"""Classes with the same four files and ten classes; EMNIST and QMNIST have other ones."""
MEMORY_LIMIT = 2**30
"""Bytes of decoded images up to which a data set is kept in memory."""


def load_torchvision(config: DataConfig, *, input_size: int, seed: int) -> ImageData:
    """Load a class of `torchvision.datasets` with a train and a test part.

    All of `data.options` that are not about pictures reach its constructor. One that differs between the parts is given
    as a mapping: `split: {train: train-standard, test: val}`. A `split` of one name is that of the train part.

    Raises:
        DataError: There is no such class, its files are missing, an option is impossible, or a class is too small to
            be divided.
    """
    train = torchvision_part(config, train=True)
    test = torchvision_part(config, train=False)
    labels = {}
    for part, dataset in (("train", train), ("test", test)):
        if not len(dataset):
            raise DataError(
                f"the {part} part of {config.name} has no image; give another split, or look into data.root"
            )
        labels[part] = _labels(config.name, part, dataset)
    channels = channels_of_all(train, test, background=background_colour(config.background))
    options = picture_options(config, channels=channels, others=True)
    size = (len(train) + len(test)) * options.channels * input_size**2
    names = getattr(train, "classes", None)
    num_classes = len(names) if names else int(labels["train"].max()) + 1
    for part, values in labels.items():
        check_labels(values, num_classes, f"{config.name}: a label of the {part} part")
    return image_data(
        config,
        train=train,
        train_labels=labels["train"],
        test=test,
        class_names=tuple(str(name) for name in names) if names else None,
        options=options,
        # Classes with `data` (MNIST's, CIFAR) hold all pixels in memory anyway; the others read a file for each image.
        in_memory=hasattr(train, "data") and size <= MEMORY_LIMIT,
        input_size=input_size,
        seed=seed,
    )


def torchvision_channels(config: DataConfig) -> int:
    """Return the channels that the pictures of both parts need.

    Raises:
        DataError: As `load_torchvision`.
    """
    parts = (torchvision_part(config, train=train) for train in (True, False))
    return channels_of_all(*parts, background=background_colour(config.background))


def _labels(name: str, part: str, dataset: Any) -> np.ndarray:
    """Return the labels of a part, checked against its first items.

    Raises:
        DataError: Items are no pairs of an image and a class number, or other ones than the data set lists.
    """
    try:
        labels = labels_of(dataset)
        for index in sorted({0, len(dataset) // 2, len(dataset) - 1}):
            try:
                item = dataset[index]
            except (OSError, PictureError):  # it is named, or left out, later on
                continue
            if not isinstance(item, tuple) or len(item) != 2 or not isinstance(item[0], Image.Image):
                raise DataError(f"item {index} is {described(item)}, not a picture and a class; use another data set")
            if class_number(item[1]) != labels[index]:
                raise DataError(f"item {index} has the class {item[1]}, but the data set lists {labels[index]} for it")
    except DataError as error:
        raise DataError(f"{name}, {part} part: {error}") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name}, {part} part: reading its labels raised {type(error).__name__}: {reason}; look into data.root"
        ) from error
    return labels


def torchvision_part(config: DataConfig, *, train: bool) -> Any:
    """Build one part of the data set, as torchvision gives it; reads its index, not its images.

    Raises:
        DataError: As `load_torchvision`.
    """
    name = config.name.removeprefix(PREFIX)
    found: Any = getattr(torchvision_datasets, name, None)
    if not (inspect.isclass(found) and issubclass(found, torchvision_datasets.VisionDataset)):
        raise DataError(f"torchvision has no data set {name!r}; take a class of torchvision.datasets")
    arguments = _arguments(config, found, name, train=train)
    if "root" in _parameters(found):
        if config.root is None:
            raise DataError(f"data.root is missing; give the folder that holds torchvision's {name}")
        arguments["root"] = str(config.root)
    if config.root is not None:
        if config.draw is not None:
            draw_cifar10(config.root, config.draw)
            found = _unchecked(found)
        place = _idx_place(found, config.root)
        if place is not None:
            found = _idx_reader(found, place, fetched=place != config.root and bool(arguments.get("download")))
    try:
        with warnings.catch_warnings():
            # What torchvision's readers warn of (deprecated calls of numpy) the user cannot mend.
            warnings.simplefilter("ignore")
            with arrays_alone() as labels:
                if config.root is not None:
                    for folder in _folders(found):
                        _check_files(config.root / folder)
                    if issubclass(found, torchvision_datasets.CIFAR10) and not arguments.get("download"):
                        _check_there(found, config.root)
                part = found(**arguments)
                if issubclass(found, torchvision_datasets.CIFAR10):
                    check_named(part, labels)
                return part
    except Exception as error:
        reason = cut(" ".join(str(error).split()), 300)
        missing = isinstance(error, FileNotFoundError | NotADirectoryError | Unreadable) or _MISSING.search(reason)
        if not missing:
            given = ", ".join(f"{key} = {value!r}" for key, value in arguments.items() if key != "root")
            raise DataError(
                f"torchvision's {name} cannot be made{f' with {cut(given)}' if given else ''}: {type(error).__name__}: "
                f"{reason}; correct data.options, or what is in data.root = {config.root}"
            ) from error
        download = "" if arguments.get("download") else ", or set data.options.download: true"
        raise DataError(
            f"cannot read torchvision's {name} in {config.root}: {reason}; put it there{download}"
        ) from error


def _arguments(config: DataConfig, found: Any, name: str, *, train: bool) -> dict[str, Any]:
    """Return what the constructor of a part is called with: all of the user's options, and which part it is.

    An option whose value is a mapping of `train` and `test` has a value of its own for each part.

    Raises:
        DataError: An option is unknown, belongs to the search, or does not tell the parts apart.
    """
    parameters = _parameters(found)
    given = {key: value for key, value in config.options.items() if key not in PICTURE_OPTIONS}
    for key, remedy in (("root", "give data.root"), ("train", "leave it out, as both parts are read")):
        if key in given:
            raise DataError(f"data.options.{key} = {given[key]!r} is not an option of {name} here; {remedy}")
    unknown = sorted(given.keys() - parameters)
    if unknown:
        known = sorted({*PICTURE_OPTIONS, *parameters} - {"self", "root", "transform", "target_transform", "train"})
        raise DataError(f"unknown data option {unknown[0]!r}; {name} takes {', '.join(known)}")
    parts: dict[str, dict[str, Any]] = {}
    for part in ("train", "test"):
        parts[part] = {key: value[part] if _by_part(value) else value for key, value in given.items()}
        if "train" in parameters:
            parts[part]["train"] = part == "train"
        elif "split" in parameters and ("split" not in given or (part == "test" and not _by_part(given["split"]))):
            parts[part]["split"] = part
    if parts["train"] == parts["test"]:
        if "split" not in parameters:
            raise DataError(
                f"torchvision's {name} has no train and test part; give an option that tells them apart as "
                "data.options: {NAME: {train: VALUE, test: VALUE}}, or use another data set or module:function"
            )
        raise DataError(
            f"data.options.split = {given['split']!r} is that of the test part too; write {{train: NAME, test: NAME}}"
        )
    return parts["train" if train else "test"]


def _parameters(found: Any) -> set[str]:
    """Return the names of a constructor's arguments, also of those handed on as `**kwargs` (EMNIST's `train`)."""
    names: set[str] = set()
    for each in found.__mro__:
        if "__init__" in vars(each):
            given = inspect.signature(each.__init__).parameters.values()
            names |= {one.name for one in given if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)}
            if all(one.kind is not one.VAR_KEYWORD for one in given):
                break
    return names


def _by_part(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"train", "test"}


def _unchecked(found: Any) -> Any:
    """Return the CIFAR class without its check sums: drawn files have others than the original's."""
    lists = {name: [[file, None] for file, _ in getattr(found, name)] for name in ("train_list", "test_list")}
    return type("Unchecked", (found,), {**lists, "meta": {**found.meta, "md5": None}})


def _idx_place(found: Any, root: Path) -> Path | None:
    """Return where the four files of an MNIST-like class lie: in the root itself, as Debian ships them, or below it."""
    if not issubclass(found, torchvision_datasets.MNIST):
        return None
    names = [f"{start}-{what}-ubyte" for start in ("train", "t10k") for what in ("images-idx3", "labels-idx1")]
    places = (root, *([root / found.__name__ / "raw"] if found.__name__ in _IDX_CLASSES else []))
    return next((place for place in places if any(idx_file(place, name) for name in names)), None)


def _idx_reader(found: Any, place: Path, *, fetched: bool) -> Any:
    """Return the MNIST-like class that reads its files, packed or not, in a place, and names the one that is bad.

    Args:
        found: The class.
        place: Their folder.
        fetched: Whether torchvision shall fetch those that are not there.
    """

    # torchvision looks in ROOT/CLASS/raw alone, whose path it makes itself; these are the methods that read there.
    class Reader(found):
        def _check_exists(self) -> bool:
            return not fetched or bool(super()._check_exists())

        def _load_data(self) -> tuple[torch.Tensor, torch.Tensor]:
            start = "train" if self.train else "t10k"
            images, labels = (f"{start}-images-idx3-ubyte", f"{start}-labels-idx1-ubyte")
            pixels, numbers = read_idx(place, images), read_idx(place, labels)
            if pixels.ndim != 3 or numbers.shape != pixels.shape[:1]:
                raise Unreadable(
                    f"the shape {_dims(pixels)} of {place / images} does not go with {_dims(numbers)} of {labels}"
                )
            if not pixels.size:
                raise Unreadable(f"the shape {_dims(pixels)} of {place / images} has no pixel")
            if found.__name__ in _IDX_CLASSES and int(numbers.max()) >= len(found.classes):
                raise Unreadable(f"{place / labels} has the label {numbers.max()} of {len(found.classes)} classes")
            return torch.from_numpy(pixels), torch.from_numpy(numbers).long()

    Reader.__name__ = found.__name__  # its folder's name
    return Reader


def _dims(values: np.ndarray) -> str:
    return cut(" x ".join(map(str, values.shape)), 60)


def _check_there(found: Any, root: Path) -> None:
    """Name the file of CIFAR that is missing, which torchvision does not."""
    for file in (*(name for name, _ in (*found.train_list, *found.test_list)), found.meta["filename"]):
        if not (root / found.base_folder / file).is_file():
            raise FileNotFoundError(f"{found.base_folder}/{file} is missing")


def _folders(found: Any) -> tuple[str, ...]:
    """Name the folders of few files that CIFAR's and MNIST's classes read; others may hold a million pictures."""
    if issubclass(found, torchvision_datasets.MNIST):
        return (f"{found.__name__}/raw",)
    return (found.base_folder,) if issubclass(found, torchvision_datasets.CIFAR10) else ()


def _check_files(folder: Path) -> None:
    """Refuse what torchvision would wait for: it opens whatever has the right name."""
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if is_there(path) and not path.is_dir():
            try:
                check_regular(path)
            except Unreadable as error:
                raise Unreadable(f"{path}: {error}") from None
