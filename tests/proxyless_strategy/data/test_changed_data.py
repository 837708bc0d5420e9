"""Data that changed between two starts have another digest, whatever their source; no cache serves what is gone."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.data import TensorDataset

from hardware.tables.shipped import open_table
from hardware.tables.table import LatencyTable
from proxyless_strategy.config import DataConfig, SearchConfig
from proxyless_strategy.data import state
from proxyless_strategy.data.digest import data_digest
from proxyless_strategy.data.sources import check_data, load_data
from proxyless_strategy.data.state import source_state
from proxyless_strategy.runs.prepare import Library

COUNT, CLASSES, SIZE = 24, ("ant", "bee", "cow"), 8
CHANGES = ("content", "order", "label", "name", "class", "more")


class Records:
    """What a data set is made of, and what may change in it between two starts."""

    def __init__(self, change: str = "", *, part: int = 0):
        generator = np.random.default_rng(part)
        count = COUNT + 3 * (change == "more")
        self.labels = [index % 3 for index in range(count)]
        self.pixels = generator.integers(0, 256, (count, SIZE, SIZE), dtype=np.uint8)
        self.names = [f"{index:03}.bmp" for index in range(count)]
        self.classes = list(CLASSES)
        if change == "content":
            self.pixels[0, 3, 3] ^= 1
        elif change == "order":
            # of two pictures of one class
            self.pixels[[0, 3]] = self.pixels[[3, 0]]
        elif change == "label":
            self.labels[0], self.labels[1] = self.labels[1], self.labels[0]
        elif change == "name":
            self.names[0] = "another.bmp"
        elif change == "class":
            self.classes[2] = "dog"

    def write(self, folder: Path) -> list[tuple[str, int]]:
        samples = []
        for pixels, label, name in zip(self.pixels, self.labels, self.names, strict=True):
            place = folder / self.classes[label]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / name)  # without compression: all files have one size
            samples.append((str(place / name), label))
        return samples


class Files:
    """A user's own data set of files, under names of its own."""

    def __init__(self, records: Records, folder: Path):
        samples = records.write(folder)
        self.where = [path for path, _ in samples]
        self.classes = tuple(records.classes)
        self.targets = [label for _, label in samples]

    def __len__(self) -> int:
        return len(self.where)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self.where[index]) as image:
            return image.copy(), self.targets[index]


class Arrays:
    """A user's own data set of arrays, under names of its own; items are not what they hold."""

    def __init__(self, records: Records):
        self.x = records.pixels
        self.y = records.labels
        self.classes = tuple(records.classes)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(self.x[index]).float()[None] / 255, self.y[index]


class Drawn(Arrays):
    """The same with augmentation of its own, which no seed makes the same again."""

    def __getitem__(self, index: int) -> Any:
        image, label = super().__getitem__(index)
        return image + float(np.random.default_rng().normal()), label


class Computed(Arrays):
    """The same, but nothing of what it holds has one row for each image."""

    def __init__(self, records: Records):
        super().__init__(records)
        self.held = {"pixels": self.__dict__.pop("x"), "labels": self.__dict__.pop("y")}

    def __len__(self) -> int:
        return len(self.held["pixels"])

    def __getitem__(self, index: int) -> Any:
        return torch.from_numpy(self.held["pixels"][index]).float()[None] / 255, self.held["labels"][index]


class Listed(torchvision.datasets.VisionDataset):
    """As torchvision's sets of files: paths and labels in hidden lists."""

    def __init__(self, root: str, split: str = "train"):
        super().__init__(root)
        self.classes = sorted(os.listdir(Path(root) / split))
        found = sorted((path.name, path) for path in (Path(root) / split).glob("*/*"))
        self._image_files = [path for _, path in found]
        self._labels = [self.classes.index(path.parent.name) for _, path in found]

    def __len__(self) -> int:
        return len(self._image_files)

    def __getitem__(self, index: int) -> Any:
        with Image.open(self._image_files[index]) as image:
            return image.copy(), self._labels[index]


def parts(make: Any, change: str) -> list[Any]:
    return [make(Records(change if part == 0 else "", part=part), part) for part in range(3)]


def write_fashion(root: Path, records: list[Records]) -> None:
    for start, of in (("train", records[0]), ("t10k", records[1])):
        pixels, labels = np.asarray(of.pixels), np.array(of.labels, np.uint8)
        for name, values in ((f"{start}-images-idx3-ubyte", pixels), (f"{start}-labels-idx1-ubyte", labels)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            (root / name).write_bytes(header + values.tobytes())


def tensors(records: Records, part: int) -> TensorDataset:
    return TensorDataset(torch.from_numpy(records.pixels).float()[:, None], torch.tensor(records.labels))


SOURCES = (
    "imagefolder",
    "torchvision in memory",
    "torchvision's files",
    "files",
    "arrays",
    "computed",
    "drawn",
    "tensors",
)
UNSEEN = {
    # what is not there: a tensor has no class names, an array no files' names
    ("torchvision in memory", "name"),
    ("torchvision in memory", "class"),
    ("arrays", "name"),
    ("computed", "name"),
    ("drawn", "name"),
    ("tensors", "name"),
    ("tensors", "class"),
}


@pytest.fixture
def digest_of(tmp_path: Path, user_module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(torchvision.datasets, "Listed", Listed, raising=False)

    def of(source: str, change: str = "") -> str:
        root = tmp_path / "data"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        config = DataConfig(name="my_data:data", root=root)
        if source == "imagefolder":
            for part, name in enumerate(("train", "val")):
                Records("class" if change == "class" else change if not part else "", part=part).write(root / name)
            config = DataConfig(name="imagefolder", root=root, options={"channels": 1})
        elif source == "torchvision in memory":
            write_fashion(root, [Records(change), Records(part=1)])
            config = DataConfig(name="torchvision:FashionMNIST", root=root)
        elif source == "torchvision's files":
            for part, name in enumerate(("train", "test")):
                Records("class" if change == "class" else change if not part else "", part=part).write(root / name)
            config = DataConfig(name="torchvision:Listed", root=root)
        else:
            make = {
                "files": lambda records, part: Files(records, root / str(part)),
                "arrays": lambda records, part: Arrays(records),
                "computed": lambda records, part: Computed(records),
                "drawn": lambda records, part: Drawn(records),
                "tensors": tensors,
            }[source]
            made = parts(make, change)
            user_module.data = lambda root: made
        check_data(config)
        return data_digest(load_data(config, input_size=SIZE, seed=0))

    return of


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("source", SOURCES)
def test_another_start_notices_what_changed(digest_of: Any, source: str, change: str) -> None:
    before = digest_of(source)
    assert digest_of(source) == before
    assert (digest_of(source, change) == before) == ((source, change) in UNSEEN)


# ---- caches --------------------------------------------------------------------------------------------------------


def age(root: Path, seconds: float = 60) -> None:
    """Let files and folders look older than the coarsest clock."""
    for folder, _, names in os.walk(root, topdown=False):
        for path in (*(os.path.join(folder, name) for name in names), folder):
            status = os.stat(path)
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns - int(seconds * 1e9)))


ALTERATIONS = {
    "a picture more": lambda root: shutil.copy(root / "train/ant/000.bmp", root / "train/ant/new.bmp"),
    "a picture less": lambda root: (root / "train/ant/000.bmp").unlink(),
    "a picture in a folder below": lambda root: shutil.copytree(root / "train/bee", root / "train/ant/deeper"),
    "a name": lambda root: (root / "train/ant/000.bmp").rename(root / "train/ant/other.bmp"),
    "a class less": lambda root: [shutil.rmtree(root / part / "cow") for part in ("train", "val")],
    "another root": lambda root: (
        root.rename(root.with_name("old")),
        shutil.copytree(root.with_name("old"), root),
        (root / "train/ant/000.bmp").unlink(),
    ),
}


@pytest.mark.parametrize("aged", [False, True], ids=["just written", "long ago"])
@pytest.mark.parametrize("how", ALTERATIONS)
def test_a_folder_is_listed_again_when_it_changed(tmp_path: Path, how: str, aged: bool) -> None:
    root = tmp_path / "data"
    for part, name in enumerate(("train", "val")):
        Records(part=part).write(root / name)
    if aged:
        age(root)
    config = DataConfig(name="imagefolder", root=root)
    before = load_data(config, input_size=SIZE, seed=0)
    ALTERATIONS[how](root)
    if not aged:
        # as if the change fell into the same tick of the file system's clock
        for folder, changed in before.training.source.changed.items():
            if os.path.isdir(folder):
                os.utime(folder, ns=(changed, changed))
    after = load_data(config, input_size=SIZE, seed=0)
    on_disk = {str(path) for path in (root / "train").rglob("*.bmp")}
    assert {path for path, _ in after.training.source.samples} == on_disk
    assert data_digest(after) != data_digest(before)


def search(**data: Any) -> SearchConfig:
    return SearchConfig.model_validate({"data": data, "input_size": SIZE})


def test_the_library_reads_again_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_fashion(tmp_path, [Records(), Records(part=1)])
    config, library = search(name="torchvision:FashionMNIST", root=str(tmp_path)), Library()
    monkeypatch.setattr(state, "SETTLED_NS", -(10**12))  # as if all had been written long ago
    first = library.data(config, {})
    assert library.data(config, {}) is first
    write_fashion(tmp_path, [Records("content"), Records(part=1)])
    assert not torch.equal(library.data(config, {}).training.images, first.training.images)


def test_the_library_trusts_no_clock_about_what_was_just_written(tmp_path: Path) -> None:
    write_fashion(tmp_path, [Records(), Records(part=1)])
    config, library = search(name="torchvision:FashionMNIST", root=str(tmp_path)), Library()
    assert library.data(config, {}) is not library.data(config, {})


def test_the_library_asks_a_users_function_each_time(user_module: Any) -> None:
    changes = iter(["", "content"])
    user_module.data = lambda root: parts(lambda records, part: Arrays(records), next(changes))
    library = Library()
    config = search(name="my_data:data")
    assert data_digest(library.data(config, {})) != data_digest(library.data(config, {}))


def test_the_library_reads_a_replaced_table_again(tmp_path: Path) -> None:
    table, path, library = open_table("pixel1"), tmp_path / "table.yml", Library()
    assert library.table(path, LatencyTable) is None
    table.save(path)
    first = library.table(path, LatencyTable)
    assert library.table(path, LatencyTable) is first
    key = next(iter(table.entries))
    other = replace(table, entries={**table.entries, key: replace(table.entries[key], ms=9.0)})
    other.save(path)
    assert library.table(path, LatencyTable) == other
    assert library.keep(path, other) is library.table(path, LatencyTable)
    path.unlink()
    assert library.table(path, LatencyTable) is None


def test_of_many_files_nothing_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Records().write(tmp_path / "train")
    monkeypatch.setattr(state, "SETTLED_NS", -(10**12))
    config = DataConfig(name="imagefolder", root=tmp_path)
    assert source_state(config) is not None
    monkeypatch.setattr(state, "MOST_FILES", 10)
    assert source_state(config) is None
