"""Data sets of pictures in tar files, as webdataset writes them: `KEY.jpg` with `KEY.cls`, beside each other."""

from __future__ import annotations

import hashlib
import io
import os
from collections import Counter
from typing import Any

import numpy as np
from PIL import Image

from hardware.errors import DataError
from hardware.reading import Kind, cut, is_there, read_text

from ..config import DataConfig
from .digest import CONTENT_BYTES, CONTENT_FILES
from .images import ImageData
from .notice import notice
from .pictures import PICTURE_OPTIONS, image_data, picture_options
from .reading import NamedItems, PictureProblem, picture_in, reason_of, shown
from .shard_index import JSON, ShardIndex, Wanted, index_of
from .shard_names import shard_paths

NAME = "webdataset"
OPTIONS = {"train": "train-*.tar", "val": "val-*.tar", "classes": None, "label": "cls", "image": None}
"""What `data.options` takes beside what is said of pictures, and what each is by default."""
CLASSES_FILE = "classes.txt"
"""In the root: the names of the classes, where `classes` names no other file."""
_CLASSES = Kind("the list of classes", "write one name a line, that of class 0 first", DataError)


class ShardImages(NamedItems):
    """Pictures of tar files, each of which is read alone, in the modes that they have.

    Attributes:
        index: Where they lie.
        targets: `B` class numbers, int64.
        fingerprint: A digest of their names, sizes and, for some of them, content; not of how they are divided among
            shards.
    """

    def __init__(self, index: ShardIndex):
        self.index = index
        self.targets = index.files.labels
        self.fingerprint = _fingerprint(index)

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        number = range(len(self))[number]  # IndexError beyond the end, by which iteration ends too
        try:
            content = self.index.content(number)
        except OSError as error:
            raise PictureProblem(reason_of(error)) from error
        return picture_in(io.BytesIO(content)), int(self.targets[number])

    def item_name(self, number: int) -> str:
        return self.index.name(number)


def load_shards(config: DataConfig, *, input_size: int, seed: int) -> ImageData:
    """Load tar files of pictures; those of `val` are the test part, those of `train` are divided.

    Raises:
        DataError: As `check_shards`; or a class is too small to be divided.
    """
    train, test, names = _parts(config)
    return image_data(
        config,
        train=ShardImages(train),
        train_labels=train.files.labels,
        test=ShardImages(test),
        class_names=names,
        options=picture_options(config, channels=3, others=True),
        in_memory=False,
        input_size=input_size,
        seed=seed,
    )


def check_shards(config: DataConfig, *, scan: bool) -> None:
    """Say what `load_shards` would miss, without reading the pictures.

    Args:
        config: The data set.
        scan: Also look for the pictures in the shards, which takes long for a million of them, but only once.

    Raises:
        DataError: The root is not given, a shard or an option is missing or impossible, or a shard is none (see
            `shard_index.index_of`).
    """
    _options(config)
    picture_options(config, channels=3, others=True)
    if scan:
        _parts(config)
    else:
        _shards(config)


def _options(config: DataConfig) -> dict[str, Any]:
    """Return the options of the shards, each checked alone.

    Raises:
        DataError: One is unknown or impossible.
    """
    unknown = [key for key in config.options if key not in (*PICTURE_OPTIONS, *OPTIONS)]
    if unknown:
        raise DataError(
            f"unknown data option {unknown[0]!r}; {NAME} takes {', '.join(OPTIONS)}, {', '.join(PICTURE_OPTIONS)}"
        )
    options: dict[str, Any] = {key: config.options.get(key, default) for key, default in OPTIONS.items()}
    for key in ("label", "image", "classes"):
        value = options[key]
        optional = OPTIONS[key] is None
        if not (isinstance(value, str) and value.strip()) and not (optional and value is None):
            raise DataError(f"data.options.{key} = {value!r}; give a text, or remove it")
    label, image = options["label"], options["image"]
    if label == JSON or (label == "json"):
        raise DataError(f"data.options.label = {label!r} names no field; write json.FIELD, such as json.label")
    for key in ("label", "image"):
        if options[key] is not None and not (key == "label" and label.startswith(JSON)):
            options[key] = options[key].lower().removeprefix(".")
    if image is not None and options["image"] == Wanted(options["label"]).label_ending:
        raise DataError(f"data.options.image and label are both {image!r}; a picture is no class number")
    return options


def _shards(config: DataConfig) -> dict[str, list[str]]:
    """Return the paths of the shards of both parts.

    Raises:
        DataError: The root is not given, a shard is missing, or one is named twice.
    """
    options = _options(config)
    root = config.root
    if root is None or not root.is_dir():
        which = "data.root is missing" if root is None else f"{root} is no folder"
        raise DataError(f"{which}; give the folder of the shards (data.options.train = {options['train']!r}, ...)")
    found = {part: shard_paths(root, options[part], option=f"data.options.{part}") for part in ("train", "val")}
    seen: dict[tuple[int, int], str] = {}
    for part, paths in found.items():
        for path in paths:
            status = os.stat(path)
            name = f"{shown(path)} ({part})"
            before = seen.setdefault((status.st_dev, status.st_ino), name)
            if before is not name:
                raise DataError(
                    f"{before} and {name} are one file, whose pictures would be there twice; name each shard once, in "
                    "data.options.train or val"
                )
    return found


def _parts(config: DataConfig) -> tuple[ShardIndex, ShardIndex, tuple[str, ...] | None]:
    """Return the indices of both parts and the names of the classes, where they have some.

    Raises:
        DataError: A shard is none, or a label none of the classes; or a class has no training picture.
    """
    options = _options(config)
    shards = _shards(config)
    wanted = Wanted(options["label"], options["image"])
    train, test = (index_of(shards[part], wanted) for part in ("train", "val"))
    names = _class_names(config, options["classes"])
    count = int(train.files.labels.max()) + 1 if names is None else len(names)
    named = "without data.options.classes, as many as train has" if names is None else "as the list of classes says"
    for index in (train, test):
        wrong = np.flatnonzero(index.files.labels >= count)
        if len(wrong):
            first = int(wrong[0])
            more = f", and {len(wrong) - 1} more are" if len(wrong) > 1 else ""
            raise DataError(
                f"{index.name(first)} is of class {index.files.labels[first]}, outside 0..{count - 1} ({named}){more}; "
                "correct the labels or the list of classes"
            )
    for part, index in (("train", train), ("val", test)):
        present = np.unique(index.files.labels)
        if len(present) == count:
            continue
        lacking = np.setdiff1d(np.arange(min(count, int(present[-1]) + 2)), present)
        first = int(lacking[0])
        name = f"class {first}" if names is None else f"class {first} ({names[first]})"
        if part == "train":
            raise DataError(
                f"{name} has no training picture, but the classes are 0..{count - 1} ({named}); number them from 0 "
                "without a gap, or correct the list of classes"
            )
        notice(f"{count - len(present)} of {count} classes have no test picture, such as {name}")
    return train, test, names


def _class_names(config: DataConfig, given: str | None) -> tuple[str, ...] | None:
    assert config.root is not None
    path = config.root / (given or CLASSES_FILE)
    if given is None and not is_there(path):
        return None
    lines = [line.strip() for line in read_text(path, _CLASSES).splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    twice = [name for name, times in Counter(lines).items() if times > 1]
    if not lines or not all(lines) or twice:
        what = (
            f"names {cut(twice[0])!r} twice" if lines and all(lines) else "has an empty line" if lines else "is empty"
        )
        raise DataError(f"the list of classes {path} {what}; write one name a line, that of class 0 first")
    return tuple(lines)


def _fingerprint(index: ShardIndex) -> str:
    digest = hashlib.sha256()
    for name, array in {**index.files.arrays(), "sizes": index.sizes}.items():
        digest.update(f"{name}\0{array.dtype}\0{len(array)}\0".encode())
        digest.update(np.ascontiguousarray(array).data)
    for number in range(0, len(index), max(1, -(-len(index) // CONTENT_FILES))):
        try:
            digest.update(hashlib.sha256(index.content(number, most=CONTENT_BYTES)).digest())
        except OSError:
            digest.update(b"unreadable")  # it is named when it is read, or left out
    return digest.hexdigest()[:16]
