"""Small data sets for tests: files, tensors, and the digits."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.images import ImageData
from proxyless_strategy.data.sources import load_data


def write_images(
    root: Path, *, parts: tuple[str, ...] = ("train", "val"), classes: str = "abc", count: int = 6
) -> Path:
    generator = np.random.default_rng(0)
    for part in parts:
        for name in classes:
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (12, 14, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def settle(root: Path) -> Path:
    """Set the times of a folder and those in it back to where its clock can tell them from now."""
    before = time.time() - 60
    for folder in (root, *(path for path in root.rglob("*") if path.is_dir())):
        os.utime(folder, (before, before))
    return root


def write_idx(folder: Path, *, packed: bool, train: int = 40, test: int = 20) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for start, count in (("train", train), ("t10k", test)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, values in ((f"{start}-images-idx3-ubyte", images), (f"{start}-labels-idx1-ubyte", labels)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
            content = header + values.tobytes()
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


def write_cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        data = generator.integers(0, 256, (20, 3072), dtype=np.uint8)
        (folder / name).write_bytes(pickle.dumps({"data": data, "labels": [index % 10 for index in range(20)]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"class {number}" for number in range(10)]}))
    return root


def digits(**settings: Any) -> ImageData:
    return load_data(DataConfig(name="digits", **settings), input_size=16, seed=0)


def batches(data: ImageData, which: Any = "weights", **arguments: Any) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(data.loader(which, **{"batch_size": 32, "shuffle": True, "seed": 3, **arguments}))


def equal(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(first, second, strict=True)
    )


class Listed(torch.utils.data.Dataset):
    """(image, label) pairs, as a user's own data set might give them."""

    def __init__(self, images: list, labels: list[int]):
        self.items = list(zip(images, labels, strict=True))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def tensors(count: int, size: int = 8) -> Listed:
    return Listed([torch.full((2, size, size), float(index)) for index in range(count)], [0, 1] * (count // 2))


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    """Write a tar file of these members, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(folder: Path, root: Path, *, each: int = 5) -> Path:
    """Write the pictures of an ImageFolder as shards of `each` samples, in the folder's order, and its classes."""
    names = sorted(path.name for path in (folder / "train").iterdir())
    for part in ("train", "val"):
        files = [path for name in names for path in sorted((folder / part / name).iterdir())]
        for number, start in enumerate(range(0, len(files), each)):
            members = {}
            for path in files[start : start + each]:
                key = f"{path.parent.name}/{path.stem}"
                members[f"{key}{path.suffix}"] = path.read_bytes()
                members[f"{key}.cls"] = str(names.index(path.parent.name)).encode()
            write_shard(root / f"{part}-{number:04d}.tar", members)
    (root / "classes.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    return root
