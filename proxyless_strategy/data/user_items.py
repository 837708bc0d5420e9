"""What a user's data set yields, as pairs of an image and a class number where there is exactly one right way."""

from __future__ import annotations

import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

from hardware.errors import DataError, ProxylessError

from ..seeds import seeded
from .datasets import class_number, listed_labels
from .digest import item_digest, rows_digest

WANTED = "give PIL images or C x H x W float tensors, each with one class number"
_FILES = ("samples", "_samples", "_image_files", "imgs")
_UNREAD: Any = object()
_REFUSED: tuple[type[Exception], ...] = (OSError, SyntaxError, Image.DecompressionBombError)
"""What decoders raise on a picture that they cannot read."""
_LABEL_NAMES = ("label", "target")
_COMPARED = 8
"""Items of a data set that are read twice: whether they are the same again, and for its digest."""


class UserImages(Dataset):
    """A user's data set, whose items are (image, class number) whatever its own are.

    Attributes:
        dataset: The user's.
        targets: The class number of every image.
        fingerprint: A digest of what its items are, as far as they are the same whenever they are read.
    """

    def __init__(self, dataset: Any, keys: tuple[Any, Any], names: Mapping[str, int], targets: np.ndarray, digest: str):
        self.dataset = dataset
        self.targets = targets
        self.fingerprint = digest
        self._keys = keys
        self._names = names

    def __getattr__(self, name: str) -> Any:
        # the paths of its files, by which messages name them; `dataset` itself is missing while it is unpickled
        if name in _FILES and "dataset" in self.__dict__:
            return getattr(self.dataset, name)
        raise AttributeError(name)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = _pair(self.dataset[index], self._keys)
        return as_image(image), class_number(label, self._names)


def user_parts(name: str, parts: Mapping[str, Any], *, skip: bool = False) -> dict[str, Any]:
    """Check the parts that a user's function returned by their first items, and make pairs of what they yield.

    Args:
        name: The function, for messages.
        parts: Its data sets by part.
        skip: Whether items that raise anything will be left out.

    Raises:
        DataError: One has no length, yields something with no right way to read it, or raises; its labels are not one
            class number each; or the parts differ in what they yield.
    """
    for part, dataset in parts.items():
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(
                f"{name} returned {type(dataset).__name__} for {part}, which has no len() or no items; give a data set "
                "with both"
            )
        if not len(dataset):
            raise DataError(f"{name} returned an empty data set for {part}; give it images")
    unread = (Exception,) if skip else _REFUSED
    first, keys, kinds = parts["weights"], None, {}
    for part, dataset in parts.items():
        for index in _first_items(dataset):
            place = f"{name}: item {index} of {part}"
            item = _item(name, part, dataset, index, unread=unread)
            if item is _UNREAD:  # a picture that cannot be read is named, or left out, later on
                continue
            keys = keys or _keys_of(item, place, name)
            try:
                image, label = _pair(item, keys)
            except LookupError:
                raise DataError(f"{place} is {described(item)}, unlike item 0 of weights; {WANTED}") from None
            if not is_image(image):
                raise DataError(f"{name} gives images as {described(image)} (item {index} of {part}); {WANTED}")
            if not is_label(label):
                raise DataError(f"{place} has the label {described(label)}; give one class number each")
            kinds[place] = _kind(as_image(image))
    if keys is None:
        _item(name, "weights", first, 0)
        raise DataError(f"{name}: none of the first items of any part can be read; mend that data set")
    odd = next((place for place, kind in kinds.items() if kind != next(iter(kinds.values()))), None)
    if odd is not None:
        raise DataError(
            f"{odd} is {kinds[odd]}, but item 0 of weights is {next(iter(kinds.values()))}; give all images in one form"
        )
    found = {part: _labels(name, part, dataset, keys) for part, dataset in parts.items()}
    names = _class_names(
        name, first, [str(label) for labels in found.values() for label in labels if isinstance(label, str)]
    )
    made: dict[str, Any] = {}
    for part, dataset in parts.items():
        place = f"{name}: the labels of {part}"
        try:
            targets = np.array([class_number(label, names) for label in found[part]], dtype=np.int64)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        _check_listed(name, part, dataset, keys, names, targets, unread=unread)
        if _is_plain_tensors(dataset):
            made[part] = TensorDataset(dataset.tensors[0].float(), torch.from_numpy(targets))
        else:
            made[part] = UserImages(dataset, keys, names, targets, _fingerprint(name, part, dataset, unread=unread))
        if names:
            made[part].classes = tuple(names)
        elif getattr(dataset, "classes", None) is not None:
            made[part].classes = dataset.classes
    return made


def is_image(value: Any) -> bool:
    """Whether there is exactly one way to read a value as an image."""
    if isinstance(value, Image.Image):
        return True
    if not isinstance(value, torch.Tensor | np.ndarray) or value.ndim not in (2, 3) or 0 in value.shape:
        return False
    if isinstance(value, torch.Tensor):
        return value.is_floating_point() or (value.dtype == torch.uint8 and _layout(value) is not None)
    return value.dtype.kind == "f" or (value.dtype == np.uint8 and _layout(value) is not None)


def as_image(value: Any) -> Any:
    """Return an image as a PIL image or a `C x H x W` float32 tensor; anything that is none stays as it is."""
    if isinstance(value, Image.Image) or not is_image(value):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, torch.Tensor) and value.is_floating_point():
        return (value if value.ndim == 3 else value[None]).float()
    layout = _layout(value)
    pixels = np.asarray(value)
    if layout == "CHW":
        pixels = np.moveaxis(pixels, 0, -1)
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels))


def is_label(value: Any) -> bool:
    """Whether there is exactly one way to read a value as a class."""
    if isinstance(value, str | bool | np.bool_ | numbers.Real):
        return True
    if not isinstance(value, torch.Tensor | np.ndarray) or value.ndim > 1:
        return False
    values = np.asarray(value)
    if values.dtype.kind not in "biuf":
        return False
    return values.size == 1 or (values.size > 1 and values.sum() == 1 and int((values != 0).sum()) == 1)


def described(value: Any) -> str:
    """Say what a value is, in a few words."""
    if isinstance(value, Image.Image):
        return f"a PIL image of {value.width} x {value.height}"
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} of {tuple(value.shape)}"
    if isinstance(value, np.ndarray):
        return f"numpy's {value.dtype} of {value.shape}"
    if isinstance(value, Mapping):
        return f"{type(value).__name__} of {_few([f'{key!r}: {described(v)}' for key, v in value.items()])}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of {_few([described(v) for v in value])}"
    if isinstance(value, bool | int | float):
        return f"the number {value!r}"[:60]
    return f"{type(value).__name__} {value[:20]!r}" if isinstance(value, str) else type(value).__name__


def _few(words: list[str]) -> str:
    return "(" + ", ".join(words[:5]) + (", ...)" if len(words) > 5 else ")")


def _layout(value: Any) -> str | None:
    """Return where the channels of 8-bit pixels stand; None where that is not clear."""
    shape = tuple(value.shape)
    if len(shape) == 2:
        return "HW"
    first, last = shape[0] in (1, 3), shape[2] in (1, 3)
    return None if first == last else "CHW" if first else "HWC"


def _kind(image: Any) -> str:
    return "a PIL image" if isinstance(image, Image.Image) else described(image)


def _first_items(dataset: Any) -> list[int]:
    return sorted({0, len(dataset) // 2, len(dataset) - 1})


def _keys_of(item: Any, place: str, name: str) -> tuple[Any, Any]:
    """Return where the image and the label of an item stand.

    Raises:
        DataError: There is none, or more than one way.
    """
    if isinstance(item, Mapping):
        entries = dict(item)
    elif isinstance(item, tuple | list):
        entries = dict(enumerate(item))
    else:
        raise DataError(f"{place} is {described(item)}; {WANTED}")
    images = [key for key, value in entries.items() if is_image(value)]
    labels = [key for key, value in entries.items() if key not in images and is_label(value)]
    if len(labels) > 1 and isinstance(item, Mapping):
        # a mapping says itself which of its numbers is the class
        labels = [key for key in labels if key in _LABEL_NAMES] or labels
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    if len(entries) == 2 and not images and not isinstance(item, Mapping):
        raise DataError(f"{name} gives images as {described(item[0])}; {WANTED}")
    lacks = "no image" if not images else "no class" if not labels else "more than one image or class"
    raise DataError(f"{place} is {described(item)}, in which there is {lacks} to be told; {WANTED}")


def _pair(item: Any, keys: tuple[Any, Any]) -> tuple[Any, Any]:
    try:
        return item[keys[0]], item[keys[1]]
    except TypeError as error:
        raise LookupError(str(error)) from error


def _item(name: str, part: str, dataset: Any, index: int, *, unread: tuple[type[Exception], ...] = ()) -> Any:
    """Read an item; one that raises any of `unread` is `_UNREAD`."""
    try:
        with seeded(0, index):
            return dataset[index]
    except ProxylessError:
        raise
    except Exception as error:
        if isinstance(error, unread):
            return _UNREAD
        words = " ".join(str(error).split())[:200]
        raise DataError(
            f"{name}: item {index} of {part} raised {type(error).__name__}: {words}; mend that data set"
        ) from error


def _is_plain_tensors(dataset: Any) -> bool:
    """Whether a data set is images and labels in two tensors, which are read by the batch."""
    if type(dataset) is not TensorDataset or len(dataset.tensors) != 2:
        return False
    return dataset.tensors[0].ndim == 4 and dataset.tensors[0].is_floating_point()


def _labels(name: str, part: str, dataset: Any, keys: tuple[Any, Any]) -> Sequence[Any]:
    """Return the label of every image as it is given: from the data set's list, or from its items."""
    try:
        listed = listed_labels(dataset)
    except DataError as error:
        raise DataError(f"{name}: {part}: {error}") from None
    if listed is not None:
        return listed
    labels = []
    for index in range(len(dataset)):
        item = _item(name, part, dataset, index)
        try:
            labels.append(_pair(item, keys)[1])
        except LookupError:
            raise DataError(
                f"{name}: item {index} of {part} is {described(item)}, unlike item 0 of weights; {WANTED}"
            ) from None
    return labels


def _class_names(name: str, first: Any, texts: Sequence[str]) -> dict[str, int]:
    """Number the classes that are said in words: as `classes` lists them, else in the order of the alphabet."""
    if not texts:
        return {}
    listed = getattr(first, "classes", None)
    names = sorted(set(texts)) if listed is None else [str(text) for text in listed]
    unknown = sorted(set(texts) - set(names))
    if unknown:
        raise DataError(f"{name} has the label {unknown[0]!r}, which is none of its classes {_few(names)}; add it")
    return {text: number for number, text in enumerate(names)}


def _check_listed(
    name: str,
    part: str,
    dataset: Any,
    keys: tuple[Any, Any],
    names: Mapping[str, int],
    targets: np.ndarray,
    *,
    unread: tuple[type[Exception], ...],
) -> None:
    for index in _first_items(dataset):
        item = _item(name, part, dataset, index, unread=unread)
        if item is _UNREAD:
            continue
        label = class_number(_pair(item, keys)[1], names)
        if label != targets[index]:
            raise DataError(
                f"{name}: item {index} of {part} has the class {label}, but the data set lists {targets[index]} for "
                "it; list its labels in the order of its items"
            )


def _fingerprint(name: str, part: str, dataset: Any, *, unread: tuple[type[Exception], ...]) -> str:
    """Digest what a data set holds for each image, and a few items, where these are the same again."""
    places = np.unique(np.linspace(0, len(dataset) - 1, _COMPARED).astype(int)).tolist()
    held = rows_digest(dataset)
    read = [item_digest([_item(name, part, dataset, index, unread=unread) for index in places]) for _ in range(2)]
    return held + (read[0] if read[0] == read[1] else "")
