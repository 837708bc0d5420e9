"""Folders of picture files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hardware.errors import DataError
from proxyless_strategy.config import DataConfig
from proxyless_strategy.data.images import PARTS
from proxyless_strategy.data.sources import check_data, load_data
from tests.proxyless_strategy.data.samples import batches, write_images


def test_imagefolder(tmp_path: Path) -> None:
    config = DataConfig(name="imagefolder", root=write_images(tmp_path), workers=0)
    check_data(config)
    data = load_data(config, input_size=8, seed=0)
    assert data.class_names == ("a", "b", "c")
    assert [len(getattr(data, part)) for part in PARTS] == [12, 6, 18, 18]
    assert np.bincount(data.architecture.targets).tolist() == [2, 2, 2]
    images, labels = batches(data, batch_size=5)[0]
    assert images.shape == (5, 3, 8, 8)
    assert labels.dtype == torch.long


def test_imagefolder_without_root() -> None:
    with pytest.raises(DataError, match=r"data.root is missing; imagefolder expects ROOT/train/CLASS"):
        check_data(DataConfig(name="imagefolder"))


@pytest.mark.parametrize("parts", [(), ("train",), ("val",)])
def test_imagefolder_without_a_part(tmp_path: Path, parts: tuple[str, ...]) -> None:
    config = DataConfig(name="imagefolder", root=write_images(tmp_path, parts=parts))
    missing = tmp_path / ("val" if "train" in parts else "train")
    for call in (check_data, lambda config: load_data(config, input_size=8, seed=0)):
        with pytest.raises(DataError, match=r"is no folder; imagefolder expects ROOT/train/CLASS") as raised:
            call(config)
        assert str(missing) in str(raised.value)


def test_imagefolder_without_class_folders(tmp_path: Path) -> None:
    write_images(tmp_path, parts=("val",))
    (tmp_path / "train").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "0.png")
    with pytest.raises(DataError, match=r"looked in .*train, and imagefolder expects"):
        check_data(DataConfig(name="imagefolder", root=tmp_path))


def test_imagefolder_with_an_empty_class(tmp_path: Path) -> None:
    write_images(tmp_path)
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(DataError, match="empty"):
        check_data(DataConfig(name="imagefolder", root=tmp_path))


def test_imagefolder_with_different_classes(tmp_path: Path) -> None:
    write_images(tmp_path, parts=("train",), classes="abc")
    write_images(tmp_path, parts=("val",), classes="abd")
    with pytest.raises(DataError, match="only one of them has c, d"):
        check_data(DataConfig(name="imagefolder", root=tmp_path))


def test_imagefolder_that_is_too_small_to_split(tmp_path: Path) -> None:
    config = DataConfig(name="imagefolder", root=write_images(tmp_path, count=1))
    with pytest.raises(DataError, match="class 'a' has 1 training images, too few"):
        load_data(config, input_size=8, seed=0)


def test_imagefolder_with_a_broken_image(tmp_path: Path) -> None:
    write_images(tmp_path)
    broken = tmp_path / "val" / "a" / "0.png"
    broken.write_bytes(b"no image")
    data = load_data(DataConfig(name="imagefolder", root=tmp_path), input_size=8, seed=0)
    with pytest.raises(DataError, match=r"cannot read .*0\.png") as raised:
        batches(data, "test", shuffle=False)
    assert str(broken) in str(raised.value)
