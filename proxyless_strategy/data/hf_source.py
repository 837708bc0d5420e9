"""Data sets of the Hugging Face library `datasets`: by their name there, or from a folder on the disk.

Nothing that is found in a folder is fetched from elsewhere or run: its files are named one by one.
"""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hardware.errors import DataError, ProxylessError
from hardware.reading import cut, is_there

from ..config import DataConfig
from .datasets import check_labels
from .digest import CONTENT_BYTES, CONTENT_FILES
from .images import ImageData
from .picture_options import PICTURE_OPTIONS
from .pictures import image_data, picture_options
from .reading import NamedItems, PictureProblem, open_picture, picture_in, shown

NAME = "hfds"
PREFIX = "hfds/"
OPTIONS = ("train", "val", "image", "label", "subset", "revision")
"""What `data.options` takes beside what is said of pictures."""
_TESTS = ("validation", "val", "valid", "test")
"""Splits that may be the test part, of which a data set must have exactly one unless `val` says which."""
SAVED = "dataset_dict.json"
"""What `DatasetDict.save_to_disk` writes beside the folders of the splits; in each of these lies `state.json`."""
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)


class HfImages(NamedItems):
    """Pictures of a table, decoded as files are.

    Attributes:
        targets: `B` class numbers, int64.
        fingerprint: A digest of the content of some of them.
    """

    def __init__(self, table: Any, column: str, labels: np.ndarray, name: str):
        self.targets = labels
        self._column = column
        self._name = name
        self._table = table
        digest = hashlib.sha256(f"{len(labels)}".encode())
        for number in range(0, len(labels), max(1, -(-len(labels) // CONTENT_FILES))):
            held = self._held(number)
            content = held.get("bytes") or (held.get("path") or "").encode("utf-8", "surrogateescape")
            digest.update(hashlib.sha256(f"{len(content)}\0".encode() + content[:CONTENT_BYTES]).digest())
        self.fingerprint = digest.hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, number: int) -> tuple[Image.Image, int]:
        number = range(len(self))[number]  # IndexError beyond the end, by which iteration ends too
        held = self._held(number)
        if held.get("bytes"):
            image = picture_in(io.BytesIO(held["bytes"]))
        elif held.get("path"):
            image = open_picture(held["path"])
        else:
            raise PictureProblem("there is no picture in this row")
        return image, int(self.targets[number])

    def item_name(self, number: int) -> str:
        """Return how a message names a picture: by the split, its row, and the name of its file where it has one."""
        path = self._held(number).get("path")
        return f"row {number} of {self._name}" + (f" ({shown(path)})" if path else "")

    def _held(self, number: int) -> dict[str, Any]:
        return self._table[int(number)][self._column] or {}


def is_hf(name: str) -> bool:
    """Say whether `data.name` is of this source."""
    return name == NAME or name.startswith(PREFIX)


def is_of_hub(name: str) -> bool:
    """Say whether `data.name` is of a data set on huggingface.co, which has no folder of the user's."""
    return name.startswith(PREFIX)


def load_hf(config: DataConfig, *, input_size: int, seed: int) -> ImageData:
    """Load a data set of Hugging Face; `val` is the test part, `train` is divided.

    Raises:
        DataError: As `check_hf`; or a class is too small to be divided.
    """
    parts, names = _parts(config)
    return image_data(
        config,
        train=parts["train"],
        train_labels=parts["train"].targets,
        test=parts["val"],
        class_names=names,
        options=picture_options(config, channels=3, others=True),
        in_memory=False,
        input_size=input_size,
        seed=seed,
    )


def check_hf(config: DataConfig) -> None:
    """Say what `load_hf` would miss, without decoding a picture.

    Raises:
        DataError: The package or the data set is missing, an option is impossible, or there is no column of pictures
            or of class numbers.
    """
    picture_options(config, channels=3, others=True)
    _parts(config)


def _parts(config: DataConfig) -> tuple[dict[str, HfImages], tuple[str, ...] | None]:
    options = _options(config)
    splits = _splits(config, options)
    chosen = _chosen(splits, options, config.name)
    image, label = _columns(splits[chosen["train"]], options, config.name)
    parts, classes = {}, []
    for part, split in chosen.items():
        table, place = splits[split], f"{config.name}, {split}"
        if not len(table):
            raise DataError(f"{place}: the split is empty; set data.options.{part} to one with pictures")
        for column in (image, label):
            if column not in table.column_names:
                raise DataError(
                    f"{place} has no column {column!r} ({cut(', '.join(table.column_names))}); choose others"
                )
        classes.append(getattr(table.features[label], "names", None))
        labels = _labels(table, label, place)
        bare = table.select_columns([image]).cast_column(image, _library().Image(decode=False)).with_format(None)
        parts[part] = HfImages(bare, image, labels, place)
    if classes[0] != classes[1]:
        raise DataError(f"{config.name}: {chosen['train']} and {chosen['val']} have different classes; give the same")
    names = None if classes[0] is None else tuple(str(name) for name in classes[0])
    count = len(names) if names else int(parts["train"].targets.max()) + 1
    for part, images in parts.items():
        check_labels(images.targets, count, f"{config.name}: a label of {chosen[part]} ({label})")
    return parts, names


def _options(config: DataConfig) -> dict[str, str | None]:
    unknown = [key for key in config.options if key not in (*PICTURE_OPTIONS, *OPTIONS)]
    if unknown:
        raise DataError(
            f"unknown data option {unknown[0]!r}; {config.name} takes {', '.join((*OPTIONS, *PICTURE_OPTIONS))}"
        )
    options = {key: config.options.get(key) for key in OPTIONS}
    for key, value in options.items():
        if value is not None and not (isinstance(value, str) and value):
            raise DataError(f"data.options.{key} = {value!r}; give a text, or remove it")
    return options


def _library() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"data.name = {NAME} needs the package datasets ({' '.join(str(error).split())[:200]}); install it with "
            "`pip install 'proxyless-strategy[hf]'`"
        ) from error
    return datasets


def _splits(config: DataConfig, options: dict[str, str | None]) -> dict[str, Any]:
    """Return the tables of a data set by the names of its splits.

    Raises:
        DataError: There is none, or the library cannot read it.
    """
    library, name = _library(), config.name.removeprefix(PREFIX)
    if config.name == NAME:
        remedy = "give a folder of `save_to_disk`, or of parquet files train-*.parquet and validation-*.parquet"
        if config.root is None or not config.root.is_dir():
            which = "data.root is missing" if config.root is None else f"{config.root} is no folder"
            raise DataError(f"{which}; {remedy}, or set data.name to {PREFIX}NAME of a data set on huggingface.co")
        for key in ("subset", "revision"):
            if options[key] is not None:
                raise DataError(f"data.options.{key} = {options[key]!r} is of a data set on huggingface.co; remove it")
    else:
        remedy = (
            "write its name as on huggingface.co and fetch it once where there is a network, or give a folder "
            f"(data.name: {NAME}, data.root)"
        )
        if not _HUB_NAME.fullmatch(name):
            raise DataError(f"data.name = {cut(config.name)} is no {PREFIX}NAME or {PREFIX}OWNER/NAME; {remedy}")
        if config.root is not None:
            raise DataError(
                f"{config.name} lies where its library keeps it (HF_HOME), not in data.root = {config.root}; "
                "remove that"
            )
        if is_there(Path(name)):
            # the library would take that for the data set
            raise DataError(f"{name} is a file or folder here and not {config.name}; start in another folder")
    try:
        if config.name != NAME:
            found = library.load_dataset(name, options["subset"], revision=options["revision"])
        else:
            found = _from_folder(library, Path(str(config.root)), options)
    except ProxylessError:
        raise
    except Exception as error:  # the library raises errors of its own, of the hub's, of pyarrow's and of the network's
        reason = cut(" ".join(str(error).split()) or type(error).__name__, 300)
        raise DataError(
            f"cannot load {config.name if config.root is None else config.root}: {reason}; {remedy}"
        ) from error
    return dict(found)


def _from_folder(library: Any, root: Path, options: dict[str, str | None]) -> dict[str, Any]:
    if is_there(root / SAVED):
        return dict(library.load_from_disk(str(root)))
    saved = sorted(path.parent for path in root.glob("*/state.json"))
    if saved:
        return {folder.name: library.load_from_disk(str(folder)) for folder in saved}
    files: dict[str, list[str]] = {}
    for path in sorted([*root.glob("*.parquet"), *root.glob("*/*.parquet")]):
        # as the hub names them: data/train-00000-of-00005.parquet, or train/0000.parquet
        split = re.split(r"[-.]", path.name)[0]
        files.setdefault(path.parent.name if split.isdigit() and path.parent != root else split, []).append(str(path))
    if not files:
        raise DataError(
            f"{root} holds neither what `save_to_disk` writes nor parquet files; give such a folder, or set data.name "
            "to imagefolder for ROOT/train/CLASS/*.jpg, to webdataset for tar files"
        )
    return dict(library.load_dataset("parquet", data_files=files))


def _chosen(splits: dict[str, Any], options: dict[str, str | None], name: str) -> dict[str, str]:
    """Choose the splits of both parts.

    Raises:
        DataError: One is not there, or it is not clear which is meant.
    """
    train, val = options["train"] or "train", options["val"]
    has = cut(", ".join(splits)) or "none"
    tests = [split for split in splits if split in _TESTS]
    if val is None and len(tests) == 1:
        val = tests[0]
    if val is None:
        raise DataError(f"{name} has the splits {has}; set data.options.val to the one that is tested on")
    for key, split in (("train", train), ("val", val)):
        if split not in splits:
            raise DataError(f"data.options.{key}: {name} has no split {cut(split)!r} ({has}); choose one of these")
    if train == val:
        raise DataError(f"data.options: {name} would be trained and tested on the split {train!r}; choose two")
    return {"train": train, "val": val}


def _columns(table: Any, options: dict[str, str | None], name: str) -> tuple[str, str]:
    """Return the columns of the pictures and of the class numbers.

    Raises:
        DataError: One is not there, or it is not clear which is meant.
    """
    library, features = _library(), table.features
    kinds = {"image": library.Image, "label": library.ClassLabel}
    found = {}
    for key, kind in kinds.items():
        chosen = options[key]
        if chosen is None:
            fitting = [column for column, feature in features.items() if isinstance(feature, kind)]
            if len(fitting) != 1:
                raise DataError(
                    f"{name} has {len(fitting)} columns of {kind.__name__} ({cut(', '.join(features))}); set "
                    f"data.options.{key} to one of its columns"
                )
            chosen = fitting[0]
        elif chosen not in features:
            raise DataError(f"data.options.{key}: {name} has no column {cut(chosen)!r} ({cut(', '.join(features))})")
        found[key] = chosen
    if not isinstance(features[found["image"]], library.Image):
        raise DataError(
            f"data.options.image: the column {found['image']!r} of {name} holds no pictures; choose another"
        )
    return found["image"], found["label"]


def _labels(table: Any, column: str, place: str) -> np.ndarray:
    labels = np.asarray(table.select_columns([column]).with_format("numpy")[:][column])
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(
            f"{place}: the column {column!r} holds {labels.dtype} and not a class number in each row; use "
            f"`class_encode_column({column!r})` and `save_to_disk`, or set data.options.label"
        )
    return labels.astype(np.int64)
