"""A folder of pictures that nobody has described yet: how it is laid out, and what a few of its pictures are like."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from hardware.errors import DataError
from hardware.files import writing

from .other_kinds import other_kind
from .picture_folder import SUFFIXES, class_names, files_below, is_picture
from .reading import PictureProblem, open_picture

LOOKED_AT = 300
"""Pictures that are opened, spread over all."""
GREY = ("1", "L", "LA", "I", "I;16", "F")
"""Pillow's modes of one channel."""
VAL_SHARE = 0.2


@dataclass(frozen=True)
class Survey:
    """What a folder holds.

    Attributes:
        root: The folder, with `train` and `val`.
        train: Number of training pictures by class.
        val: Number of test pictures by class.
        sides: Shorter sides of the pictures that were looked at, in pixels.
        grey: Share of these of one channel, 0..1.
        modes: How many have each of Pillow's modes.
        transparent: How many may have transparent pixels.
        unreadable: How many of them cannot be read.
    """

    root: Path
    train: dict[str, int]
    val: dict[str, int]
    sides: tuple[int, ...]
    grey: float
    modes: dict[str, int]
    transparent: int
    unreadable: int

    @property
    def images(self) -> int:
        """Number of training pictures."""
        return sum(self.train.values())

    @property
    def side(self) -> int:
        """The median of the shorter sides, in pixels."""
        return int(median(self.sides))


def survey(root: Path) -> Survey:
    """Count the pictures of an image folder, and open a few of them.

    Raises:
        DataError: It is no image folder, has one class, or none of the pictures can be read.
    """
    parts = {}
    for name in ("train", "val"):
        folder = root / name
        if not folder.is_dir():
            raise DataError(f"{folder} is no folder: {_layout(root)}")
        parts[name] = {label: _pictures(folder / label) for label in class_names(folder)}
    empty = [f"{root / part / label}" for part, found in parts.items() for label, files in found.items() if not files]
    if empty:
        raise DataError(f"{empty[0]} holds no picture ({', '.join(SUFFIXES)}); put some there, or remove the folder")
    if len(parts["train"]) < 2 or parts["train"].keys() != parts["val"].keys():
        raise DataError(
            f"{root} has the classes {_named(parts['train'])} in train and {_named(parts['val'])} in val; give at "
            "least two, and the same in both"
        )
    files = [path for found in parts.values() for listed in found.values() for path in listed]
    looked = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, LOOKED_AT).astype(int))]
    sides, modes, transparent, unreadable = [], Counter[str](), 0, 0
    for path in looked:
        try:
            image = open_picture(path)
        except PictureProblem:
            unreadable += 1
            continue
        sides.append(min(image.size))
        modes[image.mode] += 1
        transparent += image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
    if not sides:
        raise DataError(f"none of {len(looked)} pictures of {root} can be read; `proxyless data check {root}` says why")
    return Survey(
        root=root,
        train={label: len(listed) for label, listed in parts["train"].items()},
        val={label: len(listed) for label, listed in parts["val"].items()},
        sides=tuple(sides),
        grey=sum(modes[mode] for mode in GREY) / len(sides),
        modes=dict(modes.most_common()),
        transparent=transparent,
        unreadable=unreadable,
    )


def divide(root: Path, into: Path) -> None:
    """Make an image folder of links to the pictures of `ROOT/CLASS`, every fifth of a class for `val`.

    Args:
        root: Holds a folder for each class; nothing in it is changed.
        into: The folder to make.

    Raises:
        DataError: There are no two classes, one has less than five pictures, or `into` is there already.
    """
    classes = {} if not root.is_dir() else {label: _pictures(root / label) for label in class_names(root)}
    few = [f"{label} ({len(files)})" for label, files in classes.items() if len(files) < 5]
    if len(classes) < 2 or few:
        what = f"the classes {', '.join(few[:5])}" if few else f"{len(classes)} class folders"
        other = other_kind(root)
        if other:
            raise DataError(f"{root} holds {other}; --split divides folders of pictures alone")
        raise DataError(f"{root} has {what}; give a folder of at least two classes, of five pictures or more each")
    if into.exists() and any(into.iterdir()):
        raise DataError(f"{into} is not empty; give a new folder")
    every = round(1 / VAL_SHARE)
    for label, files in classes.items():
        for number, path in enumerate(files):
            part = "val" if number % every == every - 1 else "train"
            # In its own name the place of a picture in folders of its class would be lost, and two be one.
            name = os.path.relpath(path, root / label).replace(os.sep, "-")
            with writing(into, error=DataError):
                (into / part / label).mkdir(parents=True, exist_ok=True)
                (into / part / label / name).symlink_to(os.path.abspath(path))


def _layout(root: Path) -> str:
    wanted = "pictures lie in ROOT/train/CLASS and ROOT/val/CLASS"
    if root.is_dir() and any(_pictures(root / label) for label in class_names(root)):
        return f"{wanted}; --split DIR links those of {root}/CLASS into such a folder"
    other = other_kind(root)
    if other:
        return f"it holds {other}; `init` writes configs for folders of pictures alone"
    return f"{wanted}; give the root of such a folder"


def _pictures(folder: Path) -> list[str]:
    try:
        return sorted(filter(is_picture, files_below(str(folder))[0]))
    except OSError as error:
        raise DataError(f"cannot list {error.filename}: {error.strerror}; let it be read, or remove it") from error


def _named(classes: dict[str, list[str]]) -> str:
    names = list(classes)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "of none"
